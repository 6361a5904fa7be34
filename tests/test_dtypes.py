"""dtypes, devices, conversions between them, and how they read."""

import pickle

import pytest
import torch

import tgrad
from tests.compare import FLOATS, INTEGERS, TORCH, values
from tgrad import dtypes
from tgrad.device import compute

ALL = FLOATS + INTEGERS


@pytest.mark.parametrize("d", ALL, ids=lambda d: d.name)
def test_names_and_sizes(d):
    other = TORCH[d]
    assert repr(d) == str(d) == repr(other) and d.itemsize == other.itemsize
    assert d.is_floating_point == other.is_floating_point and d.is_complex == other.is_complex
    assert pickle.loads(pickle.dumps(d)) is d
    assert tgrad.zeros(2, dtype=d).dtype is d


def test_aliases():
    assert (tgrad.float, tgrad.double, tgrad.half, tgrad.int, tgrad.long) == (
        tgrad.float32, tgrad.float64, tgrad.float16, tgrad.int32, tgrad.int64,
    )  # fmt: skip


@pytest.mark.parametrize("a", ALL, ids=lambda d: d.name)
def test_promotion_of_dtypes(a):
    for b in ALL:
        assert TORCH[dtypes.promote(a, b)] == torch.promote_types(TORCH[a], TORCH[b])


@pytest.mark.parametrize("a", ALL, ids=lambda d: d.name)
def test_result_type_of_operands(a):
    """Over tensors, 0-dim tensors and numbers: `torch.result_type`."""
    makers = [(dtypes.TENSOR, lambda d: torch.zeros(2, dtype=TORCH[d])),
        (dtypes.SCALAR_TENSOR, lambda d: torch.zeros((), dtype=TORCH[d]))]
    for rank, make in makers:
        for other_rank, other_make in makers:
            for b in ALL:
                want = torch.result_type(make(a), other_make(b))
                assert TORCH[dtypes.result([(a, rank), (b, other_rank)])[0]] == want
        for number in (True, 2, 2.5):
            want = torch.result_type(make(a), number)
            assert TORCH[dtypes.result([(a, rank), (dtypes.of_number(number), dtypes.NUMBER)])[0]] == want


@pytest.mark.anywhere
def test_conversions():
    x = tgrad.tensor([1.5, -2.5, 0.0], requires_grad=True)
    assert x.to(tgrad.float32) is x and x.float() is x and x.to(compute) is x and x.to(x) is x
    assert x.to(tgrad.float32, copy=True) is not x
    for method, kind in (("double", tgrad.float64), ("half", tgrad.float16), ("bfloat16", tgrad.bfloat16),
        ("int", tgrad.int32),
                         ("long", tgrad.int64), ("bool", tgrad.bool)):  # fmt: skip
        y = getattr(x, method)()
        assert y.dtype is kind and y.requires_grad == kind.is_floating_point
    assert x.int().tolist() == [1, -2, 0] and x.bool().tolist() == [True, True, False]
    assert x.type_as(tgrad.zeros(1, dtype=tgrad.float64)).dtype is tgrad.float64
    assert tgrad.tensor([300, -1]).byte().tolist() == [44, 255]
    assert x.to(dtype=tgrad.float64, device=compute).dtype is tgrad.float64


@pytest.mark.anywhere
def test_gradients_are_cast_back():
    x = tgrad.tensor([1.0, 2.0], requires_grad=True)
    y = tgrad.tensor(3.0, requires_grad=True)
    (x.double() * 2).sum().backward()
    assert x.grad.dtype is tgrad.float32 and x.grad.tolist() == [2.0, 2.0]
    (y * tgrad.tensor([1.0, 2.0], dtype=tgrad.float64)).sum().backward()
    assert y.grad.dtype is tgrad.float32 and y.grad.shape == () and y.grad.item() == 3.0


@pytest.mark.anywhere
@pytest.mark.parametrize("d", [tgrad.float16, tgrad.bfloat16], ids=lambda d: d.name)
def test_half_types_round_to_nearest_even(d):
    x = torch.linspace(0.5, 2, 3001, dtype=torch.float64)
    for source in (tgrad.float32, tgrad.float64):
        got = values(tgrad.tensor(x.numpy(), dtype=source).to(d))
        assert (torch.tensor(got) == x.to(TORCH[source]).to(TORCH[d]).float()).all()
    assert (torch.tensor(values(tgrad.tensor(x.numpy(), dtype=d))) == x.to(TORCH[d]).float()).all()


# --- devices ---------------------------------------------------------------------------------------------------------
def test_devices():
    assert repr(tgrad.device("cpu")) == "device(type='cpu')" and str(tgrad.device("cuda", 0)) == "cuda:0"
    assert tgrad.device("cuda:1") == tgrad.device("cuda", 1) and tgrad.device("cpu") is tgrad.zeros(1,
        device="cpu").device
    for bad in ("tpu", "cuda:x", ""):
        with pytest.raises(RuntimeError, match="expected 'cpu'"):
            tgrad.device(bad)
    with pytest.raises(TypeError, match="expected a string"):
        tgrad.device(1)


@pytest.mark.skipif(compute.type == "cuda", reason="there is a CUDA device")
def test_a_missing_gpu_is_named():
    assert not tgrad.cuda.is_available() and tgrad.cuda.device_count() == 0
    for call in (lambda: tgrad.zeros(2, device="cuda"), lambda: tgrad.zeros(2).to("cuda"),
        lambda: tgrad.zeros(2).cuda()):
        with pytest.raises(RuntimeError, match="no CUDA device.*device='cpu'") as raised:
            call()
        assert "\n" not in str(raised.value)


@pytest.mark.gpu
def test_moves_between_devices():
    x = tgrad.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    assert x.is_cuda and not x.cpu().is_cuda and x.t().cpu().tolist() == [[1.0, 3.0], [2.0, 4.0]]
    (x.cpu().to(compute) * 3).sum().backward()
    assert x.grad.tolist() == [[3.0] * 2] * 2
    back = tgrad.tensor([1, 2], device="cpu", dtype=tgrad.bfloat16).to(compute, tgrad.float32)
    assert back.is_cuda and back.tolist() == [1.0, 2.0]


@pytest.mark.gpu
def test_cpu_tensors_do_not_compute_on_a_cuda_machine():
    c = tgrad.ones(2, device="cpu")
    for call in (lambda: c + 1, lambda: c + tgrad.ones(2), lambda: c.sum(), lambda: c @ c, lambda: c.add_(1)):
        with pytest.raises(RuntimeError, match="expected all tensors on cuda"):
            call()
    with pytest.raises(TypeError, match="can't convert cuda"):
        tgrad.ones(2).numpy()
