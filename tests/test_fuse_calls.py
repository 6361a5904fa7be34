"""How `tgrad.fuse` is called: what is traced when, modules, tuples, modes, and what it refuses."""

import gc
import math

import numpy as np
import pytest
import torch

import tgrad
import tgrad.nn.functional as F
from tests.compare import TORCH, same_bits, values
from tests.test_fuse import cotangent, here, launched, leaves, run
from tgrad import nn
from tgrad.storage import ledger


# --- calls -----------------------------------------------------------------------------------------------------------
def counted(f):
    calls = []

    def function(*args, **kwargs):
        calls.append(args)
        return f(*args, **kwargs)

    return function, calls


def scaled(x, factor=2.0, *, shift=None):
    y = x * factor
    return y if shift is None else y + shift


def test_numbers_compile_nothing():
    fused, x = tgrad.fuse(scaled), leaves(1, (5, 7))[0]
    before = None
    for factor, shift in ((2.0, None), (0.1, None), (3, 0.5), (0.0, 1.0), (-0.0, 1.0), (math.inf, 1), (True, -1)):
        assert same_bits(fused(x, factor, shift=shift), scaled(x, factor, shift=shift))
        if shift is None:
            plans = launched(lambda f=factor: fused(x, f))
            assert before is None or plans == before
            before = plans


BIAS = 0.25


def biased(x):
    return x + BIAS


def through(x):
    return biased(x) * 2


def test_what_it_reads_may_change(monkeypatch):
    fused, x = tgrad.fuse(through), leaves(1, (3,))[0]
    assert same_bits(fused(x), (x + 0.25) * 2)
    monkeypatch.setattr("tests.test_fuse_calls.BIAS", 0.5)
    assert same_bits(fused(x), (x + 0.5) * 2)
    monkeypatch.setattr("tests.test_fuse_calls.biased", lambda x: x - 1)
    assert same_bits(fused(x), (x - 1) * 2)
    scale = 2.0
    closed = tgrad.fuse(lambda x: x * scale)
    assert same_bits(closed(x), x * 2)
    scale = 3.0
    assert same_bits(closed(x), x * 3)
    state = {"by": 1.0}
    seeing = tgrad.fuse(lambda x: x * state["by"])
    assert same_bits(seeing(x), x * 1)
    state["by"] = 7.0
    assert same_bits(seeing(x), x * 7)


def test_traced_once():
    function, calls = counted(lambda x: x * 2)
    fused = tgrad.fuse(function)
    x, y = leaves(1, (3,))[0], leaves(1, (4,))[0]
    for _ in range(3):
        fused(x), fused(y)
    assert len(calls) == 6  # `calls` is a list, whose changes nobody sees
    seen = []
    from tgrad.fusion import fuse as fusion

    traced = fusion._Traced
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "_Traced", lambda *a: seen.append(a) or traced(*a))
        again = tgrad.fuse(scaled)
        for _ in range(3):
            again(x), again(y), again(y, 3.0)
        assert len(seen) == 3


class Scale(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = nn.Parameter(tgrad.ones(n) * 0.5)
        self.power = 2.0

    @tgrad.fuse
    def forward(self, x):
        """weight * tanh(x) ** power"""
        return self.weight * tgrad.tanh(x) ** self.power


def test_method_of_a_module():
    m, x = Scale(7), leaves(1, (5, 7))[0]
    assert m.forward.__name__ == "forward" and m.forward.__doc__ == "weight * tanh(x) ** power"
    for power in (2.0, 3.0):
        m.power = power
        out = m(x)
        assert same_bits(out, m.weight * tgrad.tanh(x) ** power)
        assert out.grad_fn.name() == "ForwardBackward0"
    out.backward(cotangent(out))
    assert m.weight.grad.shape == (7,) and x.grad is not None
    m.weight = nn.Parameter(tgrad.ones(7) * 3)
    assert same_bits(m(x), m.weight * tgrad.tanh(x) ** 3.0)
    assert launched(lambda: m(x)) == ["forward"]


def test_tuples_and_inputs():
    f = lambda x, y: (x + y, x * tgrad.exp(y), x, y * 2, (x - y).sum(0))
    args = leaves(2, [(5, 7), (7,)])
    got, want = tgrad.fuse(f)(*args), f(*args)
    assert got[2] is args[0] and all(same_bits(a, b) for a, b in zip(got, want, strict=True))
    total = lambda outs: sum((o * cotangent(o)).sum() for o in outs)
    for a, b in zip(*(tgrad.autograd.grad(total(outs), args) for outs in (got, want)), strict=True):
        assert np.allclose(values(a), values(b), rtol=1e-5, atol=1e-5)
    assert len(launched(lambda: tgrad.fuse(lambda x, y: (x + y, x * y, -x))(*args))) == 1
    both = tgrad.fuse(lambda x: (x, x * 2, x * 2))(args[0])
    assert both[0] is args[0] and isinstance(both, tuple) and len(both) == 3


def test_tuple_derivatives():
    f = tgrad.fuse(lambda x, y: ((t := tgrad.tanh(x * y)), t * x))
    args = leaves(2, (2, 3), dtype=tgrad.float64)
    assert tgrad.autograd.gradcheck(f, args) and tgrad.autograd.gradgradcheck(f, args)


def test_fused_in_fused():
    inner = tgrad.fuse(lambda x, y: F.gelu(x) * y)
    outer = tgrad.fuse(lambda x, y: inner(x, y) + inner(y, x))
    args = leaves(2, (5, 7))
    plain = lambda x, y: F.gelu(x) * y + F.gelu(y) * x
    assert same_bits(outer(*args), plain(*args)) and len(launched(lambda: outer(*args))) == 1


def test_modes():
    f, n = here("swiglu")
    fused, args = tgrad.fuse(f), leaves(n, (5, 7))
    out = fused(*args)
    with tgrad.no_grad():
        quiet = fused(*args)
    with tgrad.inference_mode():
        inference = fused(*args)
    assert out.requires_grad and not quiet.requires_grad and inference.is_inference()
    assert same_bits(out, quiet) and same_bits(out, inference)
    assert not fused(*[a.detach() for a in args]).requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        a = args[0] * 1
        out = fused(a, args[1])
        a.add_(1)
        out.sum().backward()


def test_autocast():
    f = lambda x, y: tgrad.exp(x) * y
    args = leaves(2, (5, 7), dtype=tgrad.bfloat16)
    fused = tgrad.fuse(f)
    assert fused(*args).dtype is tgrad.bfloat16
    with tgrad.autocast("cpu"):
        assert fused(*args).dtype is f(*args).dtype is tgrad.float32
    assert fused(*args).dtype is tgrad.bfloat16


def test_bool_arithmetic_and_lost_gradients():
    f = lambda a, b: ((a > 0) + (b > 0)) * 1.0 + a
    args = leaves(2, (5, 7))
    assert same_bits(tgrad.fuse(f)(*args), f(*args))
    g = lambda a: a * a.to(tgrad.int32) + a.bool()
    (x, grads), (y, expected) = run(tgrad.fuse(g), args[:1]), run(g, args[:1])
    assert same_bits(x, y) and same_bits(grads[0], expected[0])
    assert not tgrad.fuse(lambda a: a > 0)(args[0]).requires_grad


def test_tensors_met_on_the_way():
    w = leaves(1, (7,), key="w")[0]
    f = lambda x: x * w.exp() + tgrad.ones(7)
    args = leaves(1, (5, 7))
    assert same_bits(tgrad.fuse(f)(*args), f(*args))
    tgrad.fuse(f)(*args).sum().backward()
    assert w.grad is not None and TORCH[w.dtype] is torch.float32
    noisy = tgrad.fuse(lambda x: x + tgrad.rand_like(x))
    assert not same_bits(noisy(*args), noisy(*args))


def test_holds_no_tensors():
    w = leaves(1, (7,), key="w")[0]
    gc.collect()
    gc.disable()
    try:
        for fused in (tgrad.fuse(lambda x: x * w.exp()), tgrad.fuse(scaled), Scale(7).forward):
            before = ledger.live_bytes
            x = tgrad.ones(5, 7).requires_grad_()
            fused(x).sum().backward()
            del x
            w.grad = None
            if hasattr(fused, "__self__"):
                fused.__self__.weight.grad = None
            assert ledger.live_bytes == before
        with pytest.raises(NotImplementedError):
            tgrad.fuse(lambda x: x.cumsum(0))(tgrad.ones(5, 7))
    finally:
        gc.enable()


# --- refusals --------------------------------------------------------------------------------------------------------
REFUSED = {
    "mm": lambda x: tgrad.mm(x, x),
    "view": lambda x: x.reshape(-1) * 2,
    "permute": lambda x: x.T * 2,
    "select": lambda x: x[0],
    "softmax": lambda x: tgrad.softmax(x, 0),
    "dropout": lambda x: F.dropout(x, 0.5),
    "cumsum": lambda x: x.cumsum(0),
    "cat": lambda x: tgrad.cat([x, x]),
    "linear": lambda x: F.linear(x, x),
    "item": lambda x: x * x.item(),
    "bool": lambda x: x if x > 0 else -x,
    "detach": lambda x: x.detach() * 2,
    "works in place": lambda x: x.add_(1),
    "comes after 'sum'": lambda x: x.sum().exp(),
    "grad mode changes": lambda x: with_no_grad(x),
    "array": lambda x: np.asarray(x) + 1,
    "requires_grad": lambda x: x * 2 if x.requires_grad else x,
}


def with_no_grad(x):
    with tgrad.no_grad():
        return x * 2


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(what):
    with pytest.raises(NotImplementedError, match=f"tgrad.fuse: .*{what}.*test_fuse_calls.py:[0-9]+|{what}"):
        tgrad.fuse(REFUSED[what])(leaves(1, (3, 3))[0])


def test_bad_results_and_functions():
    x, kept = leaves(1, (3,))[0], []
    for result in (None, 1.0, [x], "a"):
        with pytest.raises(TypeError, match=f"returned a {type(result).__name__}: expected a tensor"):
            tgrad.fuse(lambda x, r=result: r)(x)
    with pytest.raises(TypeError, match="expected a function, got int"):
        tgrad.fuse(3)
    with pytest.raises(TypeError, match="expected a function, got type"):
        tgrad.fuse(Scale)
    with pytest.raises(TypeError, match="suspended"):
        tgrad.fuse(lambda x: (yield x))
    tgrad.fuse(lambda x: kept.append(x) or x * 2)(x)
    with pytest.raises(RuntimeError, match="another call"):
        tgrad.fuse(lambda x: x + kept[0])(x)
    with pytest.raises(RuntimeError, match="must match the size"):
        tgrad.fuse(lambda x: x + tgrad.ones(4))(x)
    with pytest.raises(RuntimeError, match="Subtraction, the `-` operator, with a bool tensor"):
        tgrad.fuse(lambda x: (x > 0) - (x < 0))(x)
