"""Memory, files and gradients between tgrad, PyTorch and numpy."""

import json
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import tgrad as T
from tests.compare import TORCH, random
from tests.twins import host, leaves, same, same_grads
from tgrad import interop, nn
from tgrad.device import compute
from tgrad.storage import ledger

safetensors = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.skipif(T.device("cpu") is not compute, reason="PyTorch's tensors are on the CPU here")


@pytest.mark.parametrize("dtype", list(TORCH), ids=repr)
def test_memory_is_shared_both_ways(dtype):
    theirs = torch.arange(24).reshape(2, 3, 4).to(TORCH[dtype])[:, 1:, ::2].transpose(0, 2)
    ours = interop.from_torch(theirs)
    assert ours.dtype is dtype and ours.stride() == theirs.stride() and ours.data_ptr() == theirs.data_ptr()
    assert ours.storage_offset() == theirs.storage_offset() and tuple(ours.shape) == tuple(theirs.shape)
    assert np.array_equal(ours._values(), theirs.float().numpy())
    theirs.fill_(1)
    assert (ours._values() == 1).all()
    back = interop.to_torch(ours[1:])
    assert back.dtype == theirs.dtype and back.stride() == theirs[1:].stride()
    assert back.data_ptr() == theirs[1:].data_ptr()
    ours.fill_(0)
    assert not back.any()


def test_lifetime_and_empty_tensors():
    ours = interop.from_torch(torch.arange(5.0))
    assert ours.tolist() == [0, 1, 2, 3, 4]
    theirs = interop.to_torch(T.arange(1000))
    assert theirs.sum() == 499500
    assert interop.from_torch(torch.zeros(0, 3)).shape == (0, 3) and interop.to_torch(T.zeros(0, 3)).shape == (0, 3)
    assert interop.to_torch(T.tensor(2.5)).item() == 2.5


def test_gradients_are_not_dropped_silently():
    with pytest.raises(RuntimeError, match=r"from_torch: the tensor requires grad.*tgrad_function"):
        interop.from_torch(torch.ones(2, requires_grad=True))
    with pytest.raises(RuntimeError, match=r"to_torch: the tensor requires grad.*torch_function"):
        interop.to_torch(T.ones(2, requires_grad=True))
    for x in (3, np.ones(2)):
        with pytest.raises(TypeError, match="expected a"):
            interop.from_torch(x)
        with pytest.raises(TypeError, match="expected a"):
            interop.to_torch(x)
    with pytest.raises(TypeError, match="dtype torch.complex64 is not supported"):
        interop.from_torch(torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(TypeError, match="expected a dense tensor"):
        interop.from_torch(torch.eye(2).to_sparse())


def test_dlpack():
    x = T.arange(6).reshape(2, 3).float()
    for theirs in (torch.from_dlpack(x), torch.as_tensor(np.from_dlpack(x))):
        assert theirs.data_ptr() == x.data_ptr() and theirs.tolist() == x.tolist()
    assert x.__dlpack_device__() == (1, 0)
    array = np.arange(4.0)
    ours = T.from_dlpack(array)
    array[0] = 9
    assert ours.tolist() == [9, 1, 2, 3] and T.from_dlpack(x).data_ptr() == x.data_ptr()
    with pytest.raises(BufferError, match="Can't export tensors that require gradient"):
        torch.from_dlpack(T.ones(2, requires_grad=True))
    with pytest.raises(TypeError, match="expected an object with __dlpack__"):
        T.from_dlpack([1])
    assert not hasattr(x, "__cuda_array_interface__")


def test_as_tensor_takes_torch_tensors():
    theirs = torch.arange(3.0)
    assert T.as_tensor(theirs).data_ptr() == theirs.data_ptr()
    copied = T.tensor(theirs, dtype=T.float64, requires_grad=True)
    theirs.zero_()
    assert copied.tolist() == [0, 1, 2] and copied.requires_grad and copied.dtype is T.float64
    assert T.tensor(torch.ones(2, dtype=torch.bfloat16)).dtype is T.bfloat16


def test_data_loader():
    rows = [(np.full(3, i, np.float32), i) for i in range(10)]
    for batch, labels in DataLoader(rows, batch_size=5):
        x, y = T.as_tensor(batch), T.as_tensor(labels)
        assert x.shape == (5, 3) and y.dtype is T.int64 and x.data_ptr() == batch.data_ptr()
        assert y.tolist() == labels.tolist()
    (x,) = next(iter(DataLoader(TensorDataset(torch.eye(4)), batch_size=4)))
    assert np.array_equal(np.asarray(T.as_tensor(x)), np.eye(4))


# --- models ----------------------------------------------------------------------------------------------------
def model(n):
    return n.Sequential(
        n.Embedding(7, 8, padding_idx=0), n.LayerNorm(8), n.Linear(8, 8), n.GELU("tanh"), n.Dropout(0.25),
        n.Identity(),
        n.TransformerEncoder(n.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True, norm_first=True), 2,
                             n.RMSNorm(8), enable_nested_tensor=False),
        n.Flatten(), n.BatchNorm1d(24), n.LeakyReLU(0.2), n.Unflatten(1, (3, 8)), n.GroupNorm(3, 3), n.PReLU(),
    )  # fmt: skip


@pytest.mark.parametrize("share", [False, True])
def test_from_torch_converts_known_layers(share):
    theirs = model(torch.nn).eval().double()
    ours = nn.from_torch(theirs, share)
    assert repr(ours).replace("\n", "") == repr(model(nn)).replace("\n", "") and not ours.training
    tokens = random("tokens").integers(0, 7, (4, 3))
    a, b = ours(T.tensor(tokens)), theirs(torch.tensor(tokens))
    same(a, b)
    a.sum().backward(), b.sum().backward()
    same(ours[2].weight.grad, theirs[2].weight.grad)
    assert (ours[2].weight.data_ptr() == theirs[2].weight.data_ptr()) is share
    theirs[2].weight.requires_grad_(False)
    assert not nn.from_torch(theirs)[2].weight.requires_grad


def test_from_torch_names_the_first_unknown_layer():
    class Mine(torch.nn.Module):
        pass

    for layer, name in ((torch.nn.Conv2d(1, 1, 1), "torch.nn.modules.conv.Conv2d"), (Mine(), "Mine")):
        theirs = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.ReLU(), layer))
        with pytest.raises(TypeError, match=rf"layer '1\.1' is a .*{name.split('.')[-1]}, which has no twin"):
            nn.from_torch(theirs)
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module"):
        nn.from_torch(nn.Linear(1, 1))


def test_state_dict_of_torch():
    theirs, ours = torch.nn.Linear(3, 2), nn.Linear(3, 2)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    same(ours.weight, theirs.weight)
    assert ours.weight.data_ptr() != theirs.weight.data_ptr()


# --- files -----------------------------------------------------------------------------------------------------
def test_files_are_safetensors(tmp_path):
    values = {d.name: T.tensor(random(d.name).integers(0, 2, (3, 2)), dtype=d) for d in TORCH}
    values |= {"scalar": T.tensor(2.5), "empty": T.zeros(0, 2), "turned": T.arange(6).reshape(2, 3).T}
    T.save(values, tmp_path / "a.safetensors", {"made by": "tgrad"})
    theirs = safetensors.load_file(tmp_path / "a.safetensors")
    ours = T.load(tmp_path / "a.safetensors")
    assert set(ours) == set(theirs) == set(values)
    for name, t in values.items():
        assert ours[name].dtype is t.dtype and TORCH[t.dtype] == theirs[name].dtype
        assert ours[name].tolist() == t.tolist() == theirs[name].tolist()
    safetensors.save_file({"x": torch.arange(3, dtype=torch.bfloat16)}, tmp_path / "b.safetensors")
    assert T.load(tmp_path / "b.safetensors")["x"].tolist() == [0, 1, 2]
    for wrong in ([T.ones(1)], {"a": 1}, {3: T.ones(1)}):
        with pytest.raises(TypeError, match="save: expected"):
            T.save(wrong, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_loading_holds_no_second_copy(tmp_path):
    ours = nn.Sequential(*(nn.Linear(50, 50, bias=False) for _ in range(8)))
    T.save(ours.state_dict(), tmp_path / "m")
    before = ledger.live_bytes
    ledger.reset_peak()
    ours.load_state_dict(tmp_path / "m")
    assert ledger.peak_bytes - before <= 50 * 50 * 4  # one tensor at a time, over the file
    ours.load_state_dict(tmp_path / "m", assign=True)
    ours[0].weight.detach().zero_()
    assert T.load(tmp_path / "m")["0.weight"].abs().sum().item() > 0  # the file is not written through


def test_a_file_whose_tensors_are_not_aligned(tmp_path):
    entries = {"a": ("U8", [3], 0, 3), "b": ("F32", [2], 3, 11), "c": ("F64", [], 11, 19)}
    header = json.dumps({k: {"dtype": d, "shape": s, "data_offsets": [b, e]} for k, (d, s, b, e) in entries.items()})
    data = b"\1\2\3" + np.array([1.5, 2.5], np.float32).tobytes() + np.float64(0.25).tobytes()
    (tmp_path / "m").write_bytes(len(header).to_bytes(8, "little") + header.encode() + data)
    found = T.load(tmp_path / "m")
    assert {k: v.tolist() for k, v in found.items()} == {"a": [1, 2, 3], "b": [1.5, 2.5], "c": 0.25}
    module = nn.Module()
    module.register_buffer("b", T.zeros(2))
    module.load_state_dict(tmp_path / "m", strict=False)
    assert module.b.tolist() == [1.5, 2.5]


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    for call in (lambda: T.save({}, tmp_path / "m"), lambda: T.load(tmp_path / "m")):
        with pytest.raises(ImportError, match=r"needs the package safetensors.*pip install"):
            call()


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        T.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError, match="is a directory"):
        T.load(tmp_path)
    with pytest.raises(OSError, match="nowhere"):
        T.save({"a": T.ones(1)}, tmp_path / "nowhere" / "m")
    T.save({}, tmp_path / "empty")
    assert T.load(tmp_path / "empty") == {}


def test_a_model_of_torch_save(tmp_path):
    theirs, ours = torch.nn.Linear(3, 4), nn.Linear(3, 4)
    torch.save(theirs.state_dict(), tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"pass torch\.load's state_dict to load_state_dict"):
        ours.load_state_dict(tmp_path / "m.pt")
    ours.load_state_dict(torch.load(tmp_path / "m.pt"))
    same(ours.weight, theirs.weight)


def test_a_model_through_a_file(tmp_path):
    theirs, ours = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)), nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4))  # fmt: skip
    safetensors.save_file(theirs.state_dict(), tmp_path / "m")
    ours.load_state_dict(tmp_path / "m")
    for name, t in theirs.state_dict().items():
        same(ours.state_dict()[name], t)


def broken(data, change):
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


BROKEN = [
    (lambda d: d[:-4], "tensor 'bias' is truncated|tensor 'weight' is truncated"),
    (lambda d: d[:5], "no header"), (lambda d: d[:20], "truncated in its header"),
    (lambda d: b"\xff" * 64, "header too large"), (lambda d: d[:8] + b"x" + d[9:], "its header is no JSON"),
    (lambda d: broken(d, lambda h: h["weight"].update(dtype="F8_E4M3")), "tensor 'weight' has dtype F8_E4M3"),
    (lambda d: broken(d, lambda h: h["weight"].update(shape=[5, 5])), "tensor 'weight' of shape .* needs 100 bytes"),
    (lambda d: broken(d, lambda h: h["bias"].pop("shape")), "tensor 'bias' has no dtype, shape or data_offsets"),
    (lambda d: broken(d, lambda h: h["bias"].update(shape=[-2])), "tensor 'bias' has shape"),
    (lambda d: broken(d, lambda h: h["bias"].update(data_offsets=[4, 12])), "tensor `bias`|not fully covered"),
    (lambda d: d + b"more", "not fully covered"), (lambda d: b"", "it has 0 bytes, no header"),
    (lambda d: b"PK\x03\x04" + d, "is a zip, as torch.save writes"),
]  # fmt: skip


@pytest.mark.parametrize(("breaks", "says"), BROKEN)
def test_broken_files_leave_the_model_unchanged(breaks, says, tmp_path):
    T.save(nn.Linear(3, 2).state_dict(), tmp_path / "m")
    (tmp_path / "m").write_bytes(breaks((tmp_path / "m").read_bytes()))
    ours = nn.Linear(3, 2)
    before = {k: v.tolist() for k, v in ours.state_dict().items()}
    with pytest.raises(ValueError, match=says):
        ours.load_state_dict(tmp_path / "m")
    assert {k: v.tolist() for k, v in ours.state_dict().items()} == before


def test_files_of_another_model_leave_it_unchanged(tmp_path):
    ours = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    before = {k: v.tolist() for k, v in ours.state_dict().items()}
    state = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 5)).state_dict()
    state["more"] = T.ones(1)
    del state["0.bias"]
    T.save(state, tmp_path / "m")
    with pytest.raises(RuntimeError, match=r'(?s)Missing.*"0.bias".*Unexpected.*"more".*size mismatch for 1.weight'):
        ours.load_state_dict(tmp_path / "m")
    assert {k: v.tolist() for k, v in ours.state_dict().items()} == before


# --- bridges ---------------------------------------------------------------------------------------------------
def test_a_tgrad_function_inside_torch():
    f = interop.torch_function(lambda a, b, k: ((a * b).exp() * k, a.sum()))
    x, y = (torch.tensor(random("bridge", i).standard_normal((3, 4)), requires_grad=True) for i in range(2))
    first, second = f(x * 2, y, 3.0)
    (first.square().sum() + second).backward()
    p, q = (t.detach().clone().requires_grad_() for t in (x, y))
    ((((2 * p) * q).exp() * 3).square().sum() + (2 * p).sum()).backward()
    assert torch.allclose(x.grad, p.grad) and torch.allclose(y.grad, q.grad)
    assert not f(x.detach(), y.detach(), 1.0)[0].requires_grad


def test_a_tgrad_model_inside_a_torch_model():
    inner = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).double()
    twin = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()).double()
    bridged = interop.torch_function(inner)
    twin.load_state_dict(bridged.state_dict())
    head = torch.nn.Linear(4, 1).double()
    whole, expected = torch.nn.Sequential(bridged, head), torch.nn.Sequential(twin, head)
    x = torch.tensor(random("inner").standard_normal((3, 4)))
    assert [n for n, _ in whole.named_parameters()] == [n for n, _ in expected.named_parameters()]
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (bridged, twin)]
    for _ in range(3):
        for m, o in zip((whole, expected), optimizers):
            o.zero_grad()
            m(x).square().sum().backward()
        for o in optimizers:
            o.step()
    for p, q in zip(bridged.parameters(), twin.parameters()):
        assert torch.allclose(p, q)
    assert np.array_equal(host(inner[0].weight), bridged.state_dict()["0.weight"].numpy())


def test_a_torch_model_inside_a_tgrad_model():
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Softplus()).double()
    bridged = interop.tgrad_function(theirs)
    x, y = leaves(random("outer").standard_normal((3, 4)))
    out = nn.functional.softmax(bridged(x * 2), -1).square().sum()
    out.backward()
    torch.softmax(theirs(y * 2), -1).square().sum().backward()
    same(x.grad, y.grad)
    same_grads(bridged, theirs)
    before = host(bridged.state_dict()["0.weight"]).copy()
    T.optim.SGD(bridged.parameters(), lr=0.1).step()
    assert not np.array_equal(before, theirs[0].weight.detach().numpy())
    function = interop.tgrad_function(lambda a: torch.linalg.inv(a))
    square = T.tensor(np.eye(2) * 2, requires_grad=True)
    function(square).sum().backward()
    assert square.grad.tolist() == [[-0.25, -0.25], [-0.25, -0.25]]
