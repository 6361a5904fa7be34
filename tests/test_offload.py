"""Checkpoint and offload by module pattern: bytes, bits, what is recomputed from the host, and bad input."""

import numpy as np
import pytest

import tgrad
from tgrad import nn, offload
from tgrad.autograd import Function
from tgrad.autograd.graph import saved_tensors_hooks
from tgrad.policy import Patterns, matches
from tgrad.profiler import Workload, memory
from tgrad.storage import ledger

N, D, BLOCKS = 64, 32, 3
BYTES = 4 * N * D  # of a tensor of the stream


def block():
    return nn.Sequential(nn.LayerNorm(D), nn.Linear(D, 4 * D), nn.GELU(), nn.Dropout(0.1), nn.Linear(4 * D, D))


@pytest.fixture(scope="module")
def model():
    tgrad.manual_seed(0)
    return nn.Sequential(nn.Linear(D, D), *[block() for _ in range(BLOCKS)])


def step(model, policy="lean", make=lambda: tgrad.randn(N, D), **patterns):
    """(live bytes, host bytes) after the forward, and all gradients."""
    tgrad.manual_seed(1)
    x, g = make(), tgrad.randn(N, D)
    model.zero_grad()
    before = ledger.live_bytes
    with tgrad.activation_memory(policy, **patterns):
        y = model(x)
        live, host = ledger.live_bytes - before - BYTES, ledger.host_bytes
        y.backward(g)
    assert ledger.host_bytes == 0
    return live, host, [p.grad.cpu().numpy() for p in model.parameters()]


STATISTICS, RANDOM = 2 * 4 * N, 16


@pytest.mark.parametrize(
    ("policy", "patterns", "live", "host"),
    [
        ("keep", {"offload": "*"}, BLOCKS * STATISTICS, BYTES + BLOCKS * 10 * BYTES - BYTES),
        # Recipes read what is on the host: of a block its input and the hidden layer before GELU.
        ("lean", {"offload": "*"}, BLOCKS * STATISTICS, BLOCKS * 5 * BYTES + BYTES),
        ("lean", {"offload": "2"}, 2 * (5 * BYTES + STATISTICS) + STATISTICS, 5 * BYTES),
        ("lean", {"checkpoint": "1,3"}, 2 * (BYTES + RANDOM) + 5 * BYTES + STATISTICS, 0),
        ("lean", {"checkpoint": "1,3", "offload": "?"}, 2 * RANDOM + STATISTICS, 7 * BYTES + BYTES),
        ("leanest", {"offload": "*"}, BLOCKS * RANDOM, BLOCKS * BYTES + BYTES),
        ("lean", {"checkpoint": ""}, RANDOM, 0),
        ("lean", {"offload": "LayerNorm, GELU"}, None, BLOCKS * 5 * BYTES),
    ],
)
@pytest.mark.parametrize("ahead", [False, True])
def test_bytes_on_both_sides_and_the_same_bits(model, policy, patterns, live, host, ahead, monkeypatch):
    monkeypatch.setattr(offload, "AHEAD", ahead)
    *_, want = step(model, "keep")
    found, moved, got = step(model, policy, **patterns)
    if policy == "keep":  # the input of a block, its norm, two hidden layers and dropout's; and the batch
        host = BYTES + BLOCKS * (2 + 2 * 4) * BYTES
    assert moved == host and (live is None or found == live)
    for a, b in zip(want, got, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_ledger_lists_what_moved_and_what_is_made_from_it(model):
    workload = Workload("m", model, lambda: ((tgrad.randn(N, D),), ()))
    with tgrad.activation_memory("lean", offload="1"):
        found = memory.measure(workload, "grad", "")
    rows = [r for r in found.saved if r.kind in ("offloaded", "recomputed") and r.module.startswith("1.")]
    assert [(r.module, r.kind, r.charged_bytes, r.host_bytes) for r in rows] == [
        ("1.0", "offloaded", 0, BYTES), ("1.1", "recomputed", 0, 0), ("1.2", "offloaded", 0, 4 * BYTES),
        ("1.4", "recomputed", 0, 0),
    ]  # fmt: skip
    assert rows[3].reason.endswith("recomputed by dropout(gelu(offload))")
    assert found.figures["host_bytes"] == 5 * BYTES and found.figures["residual_bytes"] == 0


def test_one_block_is_brought_back_ahead(model, monkeypatch):
    monkeypatch.setattr(offload, "AHEAD", True)
    with tgrad.activation_memory("lean", offload="?"):
        y = model(tgrad.randn(N, D))
    regions, last = [], offload.Region.last
    while last is not None and last() is not None and len(regions) < BLOCKS + 1:
        regions.append(last())
        last = last().before
    assert len(regions) == BLOCKS + 1

    def here(region):
        return [r().result is not None for r in region.copies if r() is not None]

    hidden = next(s for s in y.node.saved if type(s).__name__ == "Recomputed")
    hidden.unpack(y.node)  # the last block's hidden layer, made from what is on the host
    assert all(here(regions[1])) and not any(here(regions[2]))
    y.sum().backward()


@pytest.mark.parametrize("patterns", [{"offload": "*"}, {"checkpoint": "*"}])
def test_writes_to_what_was_saved_are_seen_or_allowed_as_ever(patterns):
    lin = nn.Sequential(nn.Sequential(nn.Linear(D, D), nn.Tanh()))
    x = tgrad.randn(N, D)
    with tgrad.activation_memory("lean", **patterns):
        y = lin(x)
        x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    w = tgrad.randn(N, D, requires_grad=True)
    with tgrad.activation_memory("lean", **patterns):
        y = nn.Sequential(nn.Tanh())(w * 1.0)
        y.data.zero_()  # behind autograd's back: what went to the host stays what it was
        (g,) = tgrad.autograd.grad(y.sum(), w)
    want = 1 - np.tanh(w.detach().cpu().numpy()) ** 2
    np.testing.assert_allclose(g.cpu().numpy(), want, rtol=1e-5, atol=1e-6)


class Doubled(Function):
    calls = 0

    @staticmethod
    def forward(ctx, x):
        Doubled.calls += 1
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


class Odd(nn.Module):
    """What may not happen twice: a custom Function, a draw from a user's generator."""

    def __init__(self, generator):
        super().__init__()
        self.linear, self.generator = nn.Linear(D, D), generator

    def forward(self, x):
        return Doubled.apply(self.linear(x)) * tgrad.rand(D, generator=self.generator)


@pytest.mark.parametrize("patterns", [{"offload": "Odd"}, {"checkpoint": "Odd"}, {"checkpoint": "1", "offload": "*"}])
def test_custom_functions_and_generators_run_once(patterns):
    found = []
    for given in ({}, patterns):
        Doubled.calls = 0
        tgrad.manual_seed(0)
        model = nn.Sequential(nn.Linear(D, D), Odd(tgrad.Generator().manual_seed(5)), nn.Linear(D, D))
        found.append(step(model, **given)[2])
        assert Doubled.calls == 1
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_second_derivatives_and_two_backwards_from_the_host(model):
    x = tgrad.randn(N, D, requires_grad=True)

    def grads(**patterns):
        tgrad.manual_seed(2)
        with tgrad.activation_memory("lean", **patterns):
            y = model(x).square().sum()
            first = tgrad.autograd.grad(y, x, create_graph=True, retain_graph=True)[0]
            second = tgrad.autograd.grad(first.square().sum(), x, retain_graph=True)[0]
            return [second, tgrad.autograd.grad(y, x)[0]]

    for a, b in zip(grads(), grads(offload="*"), strict=True):
        np.testing.assert_array_equal(a.cpu().numpy(), b.cpu().numpy())


def test_users_hooks_get_the_real_tensors_and_nothing_moves(model):
    with tgrad.activation_memory("lean", offload="*", checkpoint="1"), saved_tensors_hooks(lambda t: t, lambda t: t):
        y = model(tgrad.randn(N, D))
        assert ledger.host_bytes == 0
    y.sum().backward()


def test_patterns():
    module = nn.ReLU()
    assert matches("layers.*", "layers.0", module) and matches("a, ReLU", "b", module) and matches("", "", module)
    assert not any(matches(p, "", nn.Linear(1, 1)) for p in (None, "*", "a")) and not matches("", "a", module)
    for wrong in ("a,", ",", "a,,b"):
        with pytest.raises(ValueError, match="has an empty pattern in it"):
            tgrad.activation_memory("lean", offload=wrong)
    with pytest.raises(TypeError, match="checkpoint is of type list; expected a pattern of module paths"):
        tgrad.activation_memory("lean", checkpoint=["a"])
    with tgrad.activation_memory("lean", offload="x"), tgrad.activation_memory("keep", checkpoint="y"):
        assert tgrad.graph.patterns.get() == Patterns("y", None) != Patterns("y", "z")
    assert tgrad.graph.patterns.get() is None
    assert repr(tgrad.activation_memory("lean", offload="x")) == "activation_memory('lean', offload='x')"
    with pytest.raises(ValueError, match=r"as a decorator it takes a policy too: @activation_memory\('leanest'\)"):
        tgrad.activation_memory(lambda: None)


def test_a_pattern_that_means_no_module_is_told(model):
    x = tgrad.randn(N, D)
    with pytest.warns(UserWarning, match="no module that ran has the path or class of checkpoint='layers.*', offload"):
        with tgrad.activation_memory("lean", checkpoint="layers.*, 1", offload="Dropot"):
            model(x)
    # One within a checkpointed module means something, though the outermost counts; and nothing is said where no module
    # ran, where nothing is recorded, or when the block raises.
    with tgrad.activation_memory("lean", checkpoint="1,1.*"):
        model(x)
    with tgrad.activation_memory("lean", checkpoint="nothing"):
        x.exp()
    with tgrad.activation_memory("lean", checkpoint="nothing"), tgrad.no_grad():
        model(x)
    with pytest.raises(KeyError), tgrad.activation_memory("lean", checkpoint="nothing"):
        model(x)
        raise KeyError
