"""The second run of a checkpointed block: it keeps recipes where there are some, and ends before what nobody needs."""

import numpy as np
import pytest

import tgrad
import tgrad.nn.functional as F
from tgrad import dispatch, nn
from tgrad.storage import ledger
from tgrad.utils.checkpoint import checkpoint

pytestmark = pytest.mark.anywhere
N, D = 64, 32  # large enough for recipes


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(D), nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
        self.drop = nn.Dropout(0.25)

    def forward(self, x):
        return x + self.b(self.drop(F.gelu(self.a(self.norm(x)))))


class Ops:
    """The names of what runs."""

    def __init__(self):
        self.names = []

    def begin(self, op):
        self.names.append(op)

    def end(self, op):
        pass


def stack(blocks=2):
    tgrad.manual_seed(0)
    return nn.Sequential(nn.Linear(D, D), *[Residual() for _ in range(blocks)])


def step(model, policy, monkeypatch=None, between=None, **patterns):
    """Gradients of a step, the peak of its backward above what was live, and what backward ran."""
    tgrad.manual_seed(1)
    x, g = tgrad.randn(N, D), tgrad.randn(N, D)
    with tgrad.activation_memory(policy, **patterns):
        y = model(x)
    ops, before = Ops(), ledger.live_bytes
    ledger.reset_peak()
    if monkeypatch is not None:
        monkeypatch.setattr(dispatch, "observer", ops)
    y.backward(g)
    if monkeypatch is not None:
        monkeypatch.undo()
    peak = ledger.peak_bytes - before
    found = [p.grad.numpy().copy() for p in model.parameters()]
    model.zero_grad()
    return found, peak, ops.names


def test_a_block_keeps_recipes_and_leaves_out_its_last_product(monkeypatch):
    model = stack()
    want, _, _ = step(model, "keep")
    got, lean, ops = step(model, "leanest", monkeypatch)
    for a, b in zip(want, got, strict=True):
        np.testing.assert_array_equal(a, b)
    assert ops.count("layer_norm (recomputed)") == ops.count("linear") == ops.count("gelu") == 2
    assert not any("gelu (recomputed)" in o or "dropout (recomputed)" in o for o in ops)  # asked for at once: kept


def test_keep_means_keep_in_there_too(monkeypatch):
    model = stack()
    _, keep, ops = step(model, "keep", monkeypatch, checkpoint="Residual")
    assert not [o for o in ops if "recomputed" in o] and ops.count("linear") == 2
    _, lean, _ = step(model, "lean", checkpoint="Residual")
    assert lean <= keep - 4 * N * D  # the norm's result


def test_twice_through_one_graph_and_second_derivatives():
    model = stack()
    tgrad.manual_seed(1)
    x, g = tgrad.randn(N, D, requires_grad=True), tgrad.randn(N, D)

    def derivatives(policy):
        tgrad.manual_seed(2)
        with tgrad.activation_memory(policy):
            y = model(x)
        first = [tgrad.autograd.grad(y, x, g, retain_graph=True)[0] for _ in range(2)]
        (d,) = tgrad.autograd.grad(y, x, g, create_graph=True)
        second = tgrad.autograd.grad(d.square().sum(), [x, *model.parameters()], allow_unused=True)
        return [t.numpy() for t in (*first, d.detach(), *[s for s in second if s is not None])]

    for a, b in zip(derivatives("keep"), derivatives("leanest"), strict=True):
        np.testing.assert_array_equal(a, b)


def descend(p):
    p.data.sub_(p.grad, alpha=0.1)


def test_a_step_inside_backward():
    """Parameters are written as soon as their gradients are there; recipes that read them have run by then."""

    def trained(policy):
        model = stack()
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(descend)
        step(model, policy)
        return [p.detach().numpy() for p in model.parameters()]

    for a, b in zip(trained("keep"), trained("leanest"), strict=True):
        np.testing.assert_array_equal(a, b)


class Changing(nn.Module):
    """A block that decides for itself, and checkpoints within."""

    def __init__(self):
        super().__init__()
        self.inner, self.outer = Residual(), Residual()

    def forward(self, x):
        with tgrad.activation_memory("keep"):
            x = checkpoint(self.inner, x, use_reentrant=False)
        return self.outer(x.tanh())


def test_contexts_and_checkpoints_within_a_block():
    tgrad.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, D), Changing(), Changing())
    want, _, _ = step(model, "keep")
    for policy in ("lean", "leanest"):
        got, _, _ = step(model, policy)
        for a, b in zip(want, got, strict=True):
            np.testing.assert_array_equal(a, b)
