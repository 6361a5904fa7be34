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
from tgrad.kernels.launch import listen
from tgrad.storage import ledger
from tgrad.utils.checkpoint import checkpoint

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
    "linear_cross_entropy": lambda x: F.linear_cross_entropy(x, x, T.zeros(4, dtype=T.int64)),
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


# --- casts of weights that are kept ----------------------------------------------------------------------------
def casts(run, **options):
    """How many casts from float32 a run launches under autocast."""
    seen = []
    with listen(seen.append), T.autocast(DEVICE, T.bfloat16, **options):
        run()
    return seen.count("to_copy")


def test_a_weight_is_cast_once():
    w, x = T.randn(4, 4, requires_grad=True), T.randn(4, 4).bfloat16()
    twice = lambda w: (x @ w, x @ w)
    assert casts(lambda: twice(w)) == 1 and casts(lambda: twice(w), cache_enabled=False) == 2
    for other in (w.detach(), w * 1, w.view(4, 4)):  # leaves alone
        assert casts(lambda: twice(other)) == 2
    with T.autocast(DEVICE, T.bfloat16):
        assert casts(lambda: twice(w)) == 1  # kept by the outermost
        assert casts(lambda: twice(w)) == 0
        assert casts(lambda: twice(w), cache_enabled=False) == 2
        T.clear_autocast_cache()
        assert casts(lambda: twice(w)) == 1
        with T.autocast(DEVICE, T.float16):
            assert (x.half() @ w).dtype is T.float16
    assert casts(lambda: twice(w)) == 1 and T.is_autocast_cache_enabled()
    with T.autocast(DEVICE, T.bfloat16, cache_enabled=False), T.autocast(DEVICE, T.bfloat16):
        assert not T.is_autocast_cache_enabled()
        T.autocast(DEVICE, T.bfloat16, cache_enabled=True)(lambda: T.is_autocast_cache_enabled() or 1 / 0)()


def test_a_cast_is_never_stale_nor_without_history():
    w, x = T.ones(2, 2, requires_grad=True), T.ones(1, 2)
    with T.autocast(DEVICE, T.bfloat16):
        with T.no_grad():
            assert (x @ w).tolist() == [[2, 2]]
        (x @ w).sum().backward()
        assert w.grad.tolist() == [[1, 1], [1, 1]] and w.grad.dtype is T.float32
        with T.no_grad():
            w.mul_(3)
        assert (x @ w).tolist() == [[6, 6]]
        first = x @ w
        first.sum().backward()
        (x @ w).sum().backward()  # through the same cast, again
        assert w.grad.tolist() == [[3, 3], [3, 3]]


@pytest.mark.skipif(DEVICE != "cpu", reason="PyTorch's autocast is compared on the CPU")
def test_gradients_through_a_kept_cast_are_torchs():
    """Where a weight is used twice its gradients meet in the low type, as in PyTorch."""
    values = np.random.default_rng(0).standard_normal((2, 4, 4)).astype(np.float32)
    for caching in (True, False):
        found = []
        for library in (T, torch):
            x, w = (library.tensor(v) for v in values)
            w.requires_grad_()
            with library.autocast("cpu", dtype=library.bfloat16, cache_enabled=caching):
                y = (x @ w).float() @ w
            y.float().backward(library.tensor(values[0] * 2))
            found.append(w.grad.numpy())
        np.testing.assert_allclose(*found, rtol=2e-2, atol=2e-2)


def test_what_is_kept_for_backward_counts_a_shared_cast_once():
    w, x = T.randn(8, 8, requires_grad=True), T.randn(8, 8, dtype=T.bfloat16, requires_grad=True)
    pinned = {}
    for caching in (True, False):
        with T.autocast(DEVICE, T.bfloat16, cache_enabled=caching):
            y = (x @ w) + (x.relu() @ w)
        weights = {r.storage_id: r.logical_bytes for r in T.autograd.graph.saved(y) if r.storage_id != x.storage.id}
        pinned[caching] = sum(weights.values())
    assert pinned[False] - pinned[True] == 8 * 8 * 2
    del y
    before = ledger.live_bytes
    with T.autocast(DEVICE, T.bfloat16):
        x @ w
        assert ledger.live_bytes - before == 8 * 8 * 2
    assert ledger.live_bytes == before  # the casts went with the context


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_runs_again_as_it_ran(reentrant):
    w, x = T.randn(4, 4, requires_grad=True), T.randn(4, 4, requires_grad=True)
    seen = []

    def f(x):
        y = x @ w
        seen.append(y.dtype)
        return y.float().tanh()

    with T.autocast(DEVICE, T.bfloat16):
        y = checkpoint(f, x, use_reentrant=reentrant)
    y.sum().backward()
    z = checkpoint(f, x, use_reentrant=reentrant)
    with T.autocast(DEVICE, T.bfloat16):
        z.sum().backward()
    assert seen == [T.bfloat16, T.bfloat16, T.float32, T.float32]
