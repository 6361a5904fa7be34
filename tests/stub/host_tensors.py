"""What a script does with CPU tensors on a machine with CUDA, which store, copy and convert: run by two_devices.py."""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.stub.two_devices import raises

CASES: dict[str, Callable[[], None]] = {}
X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
INDEX, PLACES = np.array([1, 0, -1, 1]), np.array([[[3, 0]]])


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def pairs(*arrays: Any) -> tuple[tuple, tuple]:
    """CPU tensors of tgrad, and of torch."""
    import torch

    import tgrad

    return tuple(tgrad.tensor(a, device="cpu") for a in arrays), tuple(torch.tensor(a) for a in arrays)


def compare(calls: list[Callable[..., Any]], *arrays: Any) -> None:
    """Values, shapes, strides and devices are torch's."""
    for i, call in enumerate(calls):
        ours, theirs = pairs(*arrays)
        got, want = call(*ours), call(*theirs)
        assert got.device.type == "cpu", i
        assert got.tolist() == want.tolist() and tuple(got.shape) == tuple(want.shape), (i, got, want)
        assert got.stride() == want.stride() or got.dtype.is_floating_point is False, (i, got.stride(), want.stride())


def written(x: Any, key: Any, value: Any) -> Any:
    x[key] = value
    return x


@case
def copies() -> None:
    compare([
        lambda x: x.clone(), lambda x: x.permute(2, 0, 1).clone(), lambda x: x[:, 1:, ::2].clone(),
        lambda x: x.permute(1, 2, 0)[:, :2].clone(), lambda x: x[:1].expand(3, 3, 4).clone(),
        lambda x: x[0, 1, 2].clone(), lambda x: x[:0].clone(), lambda x: x.permute(2, 0, 1).contiguous(),
        lambda x: x.transpose(0, 2).reshape(-1),
        lambda x: x.transpose(0, 2).flatten(1), lambda x: x.repeat(2, 1, 3), lambda x: x.tile(2),
        lambda x: x.flip(0, 2), lambda x: x.repeat_interleave(2, 1), lambda x: x.roll(1, 1),
        lambda x: copy.deepcopy(x.transpose(0, 1)),
        lambda x: pickle.loads(pickle.dumps(x)), lambda x: x.bfloat16().permute(1, 0, 2).contiguous().float(),
        lambda x: x.clone().fill_(3.5), lambda x: x.transpose(0, 1).clone().zero_(), lambda x: x.int().fill_(2),
        lambda x: x.clone().copy_(x.flip(0)), lambda x: x.double().copy_(x[0]), lambda x: x.long().copy_(x),
        lambda x: x.detach(), lambda x: x.bfloat16().copy_(x.half()).float(),
    ], X)  # fmt: skip


@case
def joined_and_indexed() -> None:
    import torch

    import tgrad

    of = lambda x: tgrad if isinstance(x, tgrad.Tensor) else torch
    compare([
        lambda x, i, m, k: of(x).cat([x, x[:, :1]], 1), lambda x, i, m, k: of(x).stack([x, x.flip(0)], 2),
        lambda x, i, m, k: of(x).cat([x[:0], x]), lambda x, i, m, k: of(x).vstack([x, x]),
        lambda x, i, m, k: x[i], lambda x, i, m, k: x[:, i], lambda x, i, m, k: x[:, :, [0, 3, -1]],
        lambda x, i, m, k: x[i.reshape(2, 2)], lambda x, i, m, k: x[i, i], lambda x, i, m, k: x[i, :, i],
        lambda x, i, m, k: x[:, i[:, None], i], lambda x, i, m, k: x[m], lambda x, i, m, k: x[m[:, :, 0]],
        lambda x, i, m, k: x[:, m[0]], lambda x, i, m, k: x[[True, False]], lambda x, i, m, k: x[True],
        lambda x, i, m, k: x[[]], lambda x, i, m, k: x.index_select(1, i[:2]), lambda x, i, m, k: x.masked_select(m),
        lambda x, i, m, k: x.gather(2, k), lambda x, i, m, k: x.take_along_dim(k, 2), lambda x, i, m, k: m.nonzero(),
        lambda x, i, m, k: of(x).take(x, i), lambda x, i, m, k: x.scatter(2, k, 9.0), lambda x, i, m, k: x.half()[i],
    ], X, INDEX, X > 5, PLACES)  # fmt: skip
    ours, _ = pairs(X, np.array([0, 2]))
    raises(IndexError, "index 2 is out of bounds for dimension 0 with size 2", lambda: ours[0][ours[1]])


@case
def written_at_places() -> None:
    compare([
        lambda x, i, m: written(x, m, 5.0), lambda x, i, m: written(x, i[:2], x[:1].clone()),
        lambda x, i, m: written(x, ([0, 1], slice(None), [1, 2]), 7.0),
        lambda x, i, m: written(x, (0, [0, 2]), x[1, :2]), lambda x, i, m: written(x, (slice(None), 1), 2.0),
        lambda x, i, m: written(x[:, :, 1:], m[:, :, 1:], 0.0),
        lambda x, i, m: written(x, Ellipsis, x.flip(1)), lambda x, i, m: x.index_fill(0, i[:2], 3.0),
    ], X, INDEX, X > 5)  # fmt: skip
    ours, _ = pairs(X)
    raises(IndexError, "index 9 is out of bounds", lambda: written(ours[0], [0, 9], 1.0))
    assert ours[0].tolist() == X.tolist()


@case
def indices_beside_a_cuda_tensor() -> None:
    import tgrad

    x, (i, m) = tgrad.tensor([[1.0, 2.0], [3.0, 4.0]]), pairs(np.array([1]), np.array([True, False]))[0]
    assert x[i].tolist() == [[3.0, 4.0]] and x[m].tolist() == [[1.0, 2.0]] and x[i].is_cuda
    x[i] = 9.0
    assert x.tolist() == [[1.0, 2.0], [9.0, 9.0]]
    raises(RuntimeError, "indices should be either on cpu or on the same device", lambda: x.cpu()[tgrad.tensor([0])])


@case
def gradients_through_copies() -> None:
    import tgrad

    for call in (lambda x: x.clone(), lambda x: x.t().contiguous(), lambda x: x.flip(0), lambda x: x.t().reshape(4),
                 lambda x: tgrad.cat([x.clone(), tgrad.zeros(1, 2, device="cpu")])):  # fmt: skip
        x = tgrad.tensor([[1.0, 2.0], [3.0, 4.0]], device="cpu", requires_grad=True)
        y = call(x).cuda()
        (y * y).sum().backward()
        assert x.grad.tolist() == [[2.0, 4.0], [6.0, 8.0]] and x.grad.device.type == "cpu"
    raises(RuntimeError, "spread: expected all tensors on cuda:0", lambda: x[[0, 1]].cuda().sum().backward())
    raises(RuntimeError, "leaf Variable that requires grad", lambda: x.zero_())


@case
def batches() -> None:
    import torch
    from torch.utils.data import DataLoader

    import tgrad

    data = [{"x": tgrad.tensor([float(k), 0.0], device="cpu"), "y": k} for k in range(5)]
    found = list(DataLoader(data, batch_size=2))  # type: ignore[arg-type]
    assert [tuple(b["x"].shape) for b in found] == [(2, 2), (2, 2), (1, 2)]
    assert found[1]["x"][:, 0].tolist() == [2.0, 3.0]
    assert all(b["x"].device.type == "cpu" and b["x"].cuda().is_cuda for b in found)

    def asked(*_: Any) -> Any:
        raise AssertionError("a forked process may not ask CUDA anything")

    before = torch.cuda.current_stream
    torch.cuda.current_stream = asked
    try:  # what a worker process does
        x = tgrad.cat([tgrad.tensor([1.0], device="cpu"), tgrad.zeros(1, device="cpu")]).to(tgrad.float64)[[0, 1, 1]]
        y = tgrad.stack([x.clone(), copy.deepcopy(x), pickle.loads(pickle.dumps(x))])
        assert y.tolist() == [[1.0, 0.0, 0.0]] * 3
        assert "device='cpu'" in repr(y) and tgrad.from_numpy(X).numpy().sum() == X.sum()
        y[0].copy_(y[1])
    finally:
        torch.cuda.current_stream = before


@case
def checkpoints() -> None:
    import tgrad

    model = tgrad.nn.Linear(3, 2)
    optimizer = tgrad.optim.AdamW(model.parameters())
    for _ in range(2):
        model(tgrad.ones(4, 3)).sum().backward()
        optimizer.step()
    state = {k: v.cpu().clone() for k, v in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        tgrad.save(state, Path(folder) / "a.safetensors")
        loaded = tgrad.load(Path(folder) / "a.safetensors")
    assert {k: v.tolist() for k, v in loaded.items()} == {k: v.tolist() for k, v in model.state_dict().items()}
    host = copy.deepcopy(copy.deepcopy(model).cpu())
    assert host.weight.device.type == "cpu" and host.weight.tolist() == model.weight.tolist()
    assert "device='cpu'" in repr(host.weight)
    assert host.cuda()(tgrad.ones(1, 3)).tolist() == model(tgrad.ones(1, 3)).tolist()
    kept = pickle.loads(pickle.dumps(copy.deepcopy(optimizer.state_dict())))
    assert kept["state"][0]["step"].item() == 2.0
    optimizer.load_state_dict(kept)
    optimizer.step()
    assert optimizer.state_dict()["state"][0]["step"].item() == 3.0


@case
def what_computes_says_what_to_do() -> None:
    import tgrad
    import tgrad.nn.functional as F

    x = tgrad.ones(2, 3, device="cpu")
    calls: list[Callable[[], Any]] = [
        lambda: x == x, lambda: x.sum(), lambda: x.max(), lambda: x > 0, lambda: -x, lambda: x.sort(),
        lambda: x.add_(1), lambda: x.cumsum(0), lambda: tgrad.allclose(x, x), lambda: tgrad.nn.Linear(3, 2)(x),
        lambda: F.relu(x),
        lambda: tgrad.where(x.bool(), x, x), lambda: F.cross_entropy(x, tgrad.zeros(2, dtype=tgrad.int64)),
        lambda: x.masked_fill(x.bool(), 0.0), lambda: tgrad.optim.SGD([x.requires_grad_()], lr=0.1).step() or x.norm(),
    ]  # fmt: skip
    for call in calls:
        raises(RuntimeError, "move it with .to('cuda:0')", call)
