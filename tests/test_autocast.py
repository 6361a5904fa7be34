"""Mixed precision: the dtypes of results against torch's, and GradScaler."""

import threading

import numpy as np
import pytest
import torch

import tgrad as T
import tgrad.nn.functional as F
from tests.errors import message
from tgrad import amp, nn
from tgrad.device import compute

DEVICE = compute.type
pytestmark = pytest.mark.anywhere

LOW = {
    "linear": lambda x: F.linear(x, x), "matmul": lambda x: x @ x, "mm": lambda x: T.mm(x, x),
    "module": lambda x: nn.Linear(4, 2)(x), "bmm": lambda x: T.bmm(x.unsqueeze(0), x.unsqueeze(0)),
    "attention": lambda x: nn.MultiheadAttention(4, 2)(x, x, x)[0],
}  # fmt: skip
FULL = {
    "softmax": lambda x: F.softmax(x, -1), "method": lambda x: x.softmax(-1), "exp": T.exp, "log": lambda x: x.log(),
    "pow": lambda x: x**2, "sum": lambda x: x.sum(), "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "mse_loss": lambda x: F.mse_loss(x, x), "l1_loss": lambda x: F.l1_loss(x, x),
    "cross_entropy": lambda x: F.cross_entropy(x, T.zeros(4, dtype=T.int64)),
    "smoothed": lambda x: F.cross_entropy(x, T.zeros(4, dtype=T.int64), label_smoothing=0.1),
    "bce": lambda x: F.binary_cross_entropy_with_logits(x, x), "cosine": lambda x: F.cosine_similarity(x, x),
    "nll": lambda x: F.nll_loss(x, T.zeros(4, dtype=T.int64)), "group_norm": lambda x: F.group_norm(x, 2),
}  # fmt: skip
REST = {"add": lambda x: x + x, "relu": T.relu, "amax": T.amax, "number": lambda x: x * 2}


@pytest.mark.parametrize("kind", [T.bfloat16, T.float16], ids=repr)
def test_the_lists(kind):
    x, low = T.rand(4, 4), T.rand(4, 4).to(kind)
    with T.autocast(DEVICE, kind):
        for given in (x, low):
            for name, f in LOW.items():
                assert f(given).dtype is kind, name
            for name, f in FULL.items():
                assert f(given).dtype is T.float32, name
            for name, f in REST.items():
                assert f(given).dtype is given.dtype, name
        assert (x + low).dtype is T.float32
        assert (x.double() @ x.double()).dtype is T.float64 and T.arange(3).sum().dtype is T.int64
    assert (x @ x).dtype is T.float32 and F.softmax(low, -1).dtype is kind


def test_nesting_decorator_and_threads():
    x = T.ones(2, 2)
    with T.autocast(DEVICE, T.bfloat16):
        assert T.is_autocast_enabled() and T.get_autocast_dtype(DEVICE) is T.bfloat16
        with T.autocast(DEVICE, enabled=False):
            assert (x @ x).dtype is T.float32
        seen = []
        thread = threading.Thread(target=lambda: seen.append((x @ x).dtype))
        thread.start(), thread.join()
        assert seen == [T.float32] and (x @ x).dtype is T.bfloat16
    assert not T.is_autocast_enabled()

    @T.autocast(DEVICE, T.float16)
    def product(a):
        """Twice."""
        return a @ a

    assert product(x).dtype is T.float16 and product.__doc__ == "Twice."
    with pytest.raises(ZeroDivisionError), T.autocast(DEVICE, T.bfloat16):
        1 / 0
    assert not T.is_autocast_enabled()


def test_gradients_have_the_types_of_the_parameters():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)), T.randn(5, 4)
    with T.autocast(DEVICE, T.bfloat16):  # no kink: rounding would flip a unit
        loss = F.cross_entropy(model(x), T.zeros(5, dtype=T.int64))
    loss.backward()
    assert loss.dtype is T.float32 and all(p.grad.dtype is T.float32 for p in model.parameters())
    low = [p.grad.cpu().numpy() for p in model.parameters()]
    model.zero_grad()
    F.cross_entropy(model(x), T.zeros(5, dtype=T.int64)).backward()
    for a, p in zip(low, model.parameters()):
        np.testing.assert_allclose(a, p.grad.cpu().numpy(), atol=0.05)


def test_what_cannot_be_done_warns():
    other = "cuda" if DEVICE == "cpu" else "cpu"
    with pytest.warns(UserWarning, match="Disabling"):
        context = T.autocast(other)
    with context:
        assert not T.is_autocast_enabled()
    with pytest.warns(UserWarning, match="target dtype is not supported"):
        T.autocast(DEVICE, T.float64)
    with pytest.raises(RuntimeError, match="unsupported autocast device_type 'tpu'"):
        T.autocast("tpu")
    with T.autocast(DEVICE, T.bfloat16), pytest.raises(RuntimeError, match="unsafe to autocast"):
        F.binary_cross_entropy(T.ones(2), T.ones(2))


# --- GradScaler ------------------------------------------------------------------------------------------------
def scaled(library, scaler, values):
    """The factor and the parameter after steps whose gradients are multiples of `values`."""
    p = library.nn.Parameter(library.ones(2))
    optimizer = library.optim.SGD([p], lr=0.1)
    seen = []
    for v in values:
        optimizer.zero_grad()
        scaler.scale((p * v).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        seen.append((scaler.get_scale(), p.tolist()))
    return seen, optimizer, p


OPTIONS = {"init_scale": 8.0, "growth_interval": 2, "growth_factor": 4.0, "backoff_factor": 0.25}


def test_grad_scaler_does_what_torchs_does():
    values = [1.0, 2.0, float("inf"), 3.0, float("nan"), 1.0, 1.0, 1.0]
    ours, _, _ = scaled(T, amp.GradScaler(DEVICE, **OPTIONS), values)
    theirs, _, _ = scaled(torch, torch.amp.GradScaler("cpu", **OPTIONS), values)
    for a, b in zip(ours, theirs, strict=True):
        assert a[0] == b[0] and a[1] == pytest.approx(b[1])


def test_grad_scaler_state_and_order():
    scaler = amp.GradScaler(DEVICE, **OPTIONS)
    _, optimizer, p = scaled(T, scaler, [1.0])
    reference = torch.amp.GradScaler("cpu", **OPTIONS)
    scaled(torch, reference, [1.0])
    assert scaler.state_dict() == reference.state_dict()
    other = amp.GradScaler(DEVICE)
    other.load_state_dict(scaler.state_dict())
    assert other.state_dict() == scaler.state_dict()
    p.grad = T.ones(2) * 8
    scaler.unscale_(optimizer)
    assert p.grad.tolist() == [1, 1]
    with pytest.raises(RuntimeError, match="already been called on this optimizer"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match="step\\(\\) has already been called"):
        scaler.step(optimizer)
    scaler.update(2.0)
    assert scaler.get_scale() == 2.0
    assert message(lambda s: s.update(), scaler)[0] is AssertionError


def test_a_scaler_that_is_off():
    scaler = amp.GradScaler(DEVICE, enabled=False)
    x = T.ones(2)
    assert scaler.scale(x) is x and scaler.get_scale() == 1.0 and scaler.state_dict() == {}
    scaler.update()
