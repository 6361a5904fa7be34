"""tgrad as on a machine with CUDA, on one without: kernels are interpreted, and "cuda:0" is host memory.

`python -m tests.stub.two_devices REPORT.json` runs the cases, which are about what lives where. Values are right, too.
"""

from __future__ import annotations

import copy
import math
import os
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.stub.outcomes import outcomes

CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def pretend() -> None:
    """Let torch say that there is a device, and put what is on it into host memory."""
    import torch

    plain = torch.empty

    def available() -> bool:
        os.environ["TRITON_INTERPRET"] = "1"  # from the moment on at which tgrad has chosen its device
        return True

    torch.cuda.is_available = available
    torch.cuda.is_initialized = lambda: False
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_stream = lambda *_: SimpleNamespace(cuda_stream=0)
    torch._C._cuda_getCurrentRawStream = lambda index: torch.cuda.current_stream(index).cuda_stream
    torch.empty = lambda *size, device=None, **options: plain(*size, **options)


def one_stream() -> None:
    """Let launches go, in name, to the stream that is torch's current one."""
    from tgrad.kernels import launch

    launch._stream = 0


def raises(kind: type, says: str, call: Callable[[], Any]) -> None:
    try:
        call()
    except kind as error:
        assert says in str(error), error
    else:
        raise AssertionError(f"no {kind.__name__}")


@case
def device() -> None:
    import tgrad

    assert tgrad.cuda.is_available() and tgrad.cuda.device_count() == 1
    for t in (tgrad.zeros(2), tgrad.tensor([1.0]), tgrad.rand(3), tgrad.arange(3), tgrad.eye(2), tgrad.zeros(2).exp()):
        assert t.is_cuda and str(t.device) == "cuda:0"
    assert tgrad.zeros(2, device="cpu").device.type == "cpu" and tgrad.zeros(2, device="cuda").is_cuda
    raises(RuntimeError, "one device a process", lambda: tgrad.zeros(2, device="cuda:1"))


@case
def moves() -> None:
    import tgrad

    x = tgrad.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    for t in (x, x.t(), x[:, 1:], x[1], x[0, 1]):
        host = t.cpu()
        assert host.device.type == "cpu" and host.tolist() == t.tolist() and host.cuda().tolist() == t.tolist()
        assert host.cpu() is host and t.cuda() is t
        copy = host.to("cpu", copy=True)
        assert copy.tolist() == t.tolist() and copy.data_ptr() != host.data_ptr()
        for dtype in (tgrad.float64, tgrad.bfloat16, tgrad.int64, tgrad.bool):
            for there in ("cpu", "cuda"):
                for source in (t, host):
                    got = source.to(there, dtype)
                    assert got.device.type == there and got.dtype is dtype and got.shape == t.shape
                    assert got.tolist() == t.to(dtype).tolist()
    y = tgrad.tensor([1.0, 2.0], requires_grad=True)
    (y.cpu().cuda() * 3).sum().backward()
    assert y.grad.is_cuda and y.grad.tolist() == [3.0, 3.0]


@case
def host_values() -> None:
    import tgrad

    x = tgrad.tensor([[1.5, 2.0], [3.0, 4.0]])
    assert repr(x) == "tensor([[1.5000, 2.0000],\n        [3.0000, 4.0000]])"
    assert "device='cpu'" in repr(x.cpu())
    assert (x[1, 0].item(), float(x[0, 0]), x.t()[0].tolist(), bool(x[0, 0] > 1)) == (3.0, 1.5, [1.5, 3.0], True)
    raises(TypeError, "Use Tensor.cpu()", x.numpy)
    raises(TypeError, "Use Tensor.cpu()", lambda: np.asarray(x))
    assert x.cpu().numpy().sum() == 10.5
    assert f"{x[0, 0]:.1f}" == "1.5" and [float(v.sum()) for v in x] == [3.5, 7.0]


@case
def arrays() -> None:
    import tgrad

    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    shared = tgrad.from_numpy(array)
    assert shared.device.type == "cpu"
    array[0, 0] = 9
    assert shared.tolist()[0][0] == 9
    assert tgrad.as_tensor(array).is_cuda and tgrad.tensor(array.T).is_cuda
    frozen = array.copy()
    frozen.flags.writeable = False
    assert tgrad.tensor(frozen).tolist() == array.tolist()
    assert tgrad.tensor([tgrad.tensor(1.0), 2.0]).tolist() == [1.0, 2.0]


@case
def host_tensors_do_not_compute() -> None:
    import tgrad

    x = tgrad.zeros(2, 3, device="cpu")
    raises(RuntimeError, "move it with .to('cuda:0')", lambda: x + 1)
    raises(RuntimeError, "move it with .to('cuda:0')", lambda: x.cuda() + x)
    raises(RuntimeError, "move it with .to('cuda:0')", lambda: x.cuda().add_(x))
    raises(RuntimeError, "move it with .to('cuda:0')", lambda: x @ tgrad.zeros(3, 2))
    x[0] = 5.0
    x[1, 1:] = tgrad.tensor([1.0, 2.0])
    assert x.tolist() == [[5.0, 5.0, 5.0], [0.0, 1.0, 2.0]]


@case
def host_scalars() -> None:
    """A 0-dim CPU tensor is an operand like any other, as in PyTorch."""
    import tgrad

    x, two = tgrad.tensor([1.0, 2.0]), tgrad.tensor(2.0, device="cpu")
    for _ in range(2):
        assert (x * two).tolist() == [2.0, 4.0] and (two - x).tolist() == [1.0, 0.0] and (x * two).is_cuda
    assert (x * tgrad.tensor(2.0, device="cpu", dtype=tgrad.float64)).dtype is tgrad.float32
    assert (tgrad.arange(2) * tgrad.tensor(0.5, device="cpu", dtype=tgrad.float64)).dtype is tgrad.float64
    x.mul_(two)
    x += two
    assert x.tolist() == [4.0, 6.0]
    w = tgrad.tensor(3.0, device="cpu", requires_grad=True)
    (x * w).sum().backward()
    assert w.grad.device.type == "cpu" and w.grad.item() == 10.0


@case
def training() -> None:
    import tgrad
    import tgrad.nn as nn

    tgrad.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)).to("cuda")
    assert all(p.is_cuda for p in model.parameters())
    optimizer = tgrad.optim.AdamW(model.parameters(), lr=0.01)
    x, target = tgrad.randn(6, 4), tgrad.tensor([0, 1, 2, 0, 1, 9])
    assert math.isnan(nn.functional.cross_entropy(model(x), target).item())  # as on a GPU: a check would wait for it
    target = tgrad.tensor([0, 1, 2, 0, 1, 2])
    first = nn.functional.cross_entropy(model(x), target)
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
    assert loss.item() < first.item()
    kept = copy.deepcopy(optimizer.state_dict())["state"]
    assert all(s["step"].device.type == "cpu" and s["step"].item() == 20 for s in kept.values())
    state = {k: v.cpu() for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    assert all(v.is_cuda for v in model.state_dict().values())
    with tgrad.inference_mode():
        assert model.eval()(x).is_cuda


@case
def guarded() -> None:
    import tgrad
    from tgrad.storage import guarded

    with guarded():
        assert tgrad.tensor([1.0, 2.0]).exp().sum().item() > 0


def main(report: str) -> None:
    for name in ("TGRAD_LAUNCH", "TRITON_INTERPRET"):
        os.environ.pop(name, None)
    pretend()
    one_stream()
    from tests.stub import host_tensors

    outcomes(CASES | host_tensors.CASES, report)


if __name__ == "__main__":
    main(*sys.argv[1:])
