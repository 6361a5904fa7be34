"""`tgrad.fuse`: the bits of the operations one by one, in one kernel, for no more memory."""


import numpy as np
import pytest
import torch

import tgrad
import tgrad.nn.functional as F
from tests.compare import assert_close, pair, random, same_bits, values
from tgrad.autograd import graph as saved_by
from tgrad.fusion.mincut import cheapest_cut
from tgrad.kernels import launch

# name: (a function of tensors, written for tgrad and torch alike, and how many it takes)
FUNCTIONS = {
    "swiglu": (lambda xp, F: lambda x, g: F.silu(g) * x, 2),
    "bias gelu": (lambda xp, F: lambda x, b: F.gelu(x + b), 2),
    "gelu tanh": (lambda xp, F: lambda x: F.gelu(x * 1.5, approximate="tanh"), 1),
    "gates": (lambda xp, F: lambda a, b, c, d: xp.tanh(a + b) * xp.sigmoid(c + d), 4),
    "masked": (lambda xp, F: lambda x, y: xp.where(x > y, x * y, x - y), 2),
    "relu sum": (lambda xp, F: lambda a, b, c: F.relu(a + b) * c, 3),
    "used again": (lambda xp, F: lambda x: xp.exp(x) * xp.exp(x) + x / (1 + xp.exp(-x)) - x, 1),
    "affine": (lambda xp, F: lambda x, m, r, w: (x - m) * r * w + 0.25, 4),
    "clamped": (lambda xp, F: lambda x, y: xp.clamp(x, -1.0, 0.5).maximum(y).abs() ** 2, 2),
    "leaky": (lambda xp, F: lambda x: F.leaky_relu(2 - x, 0.2) + F.softplus(x) + F.elu(x), 1),
    "mixed": (lambda xp, F: lambda x, y: x.double() * y + x, 2),
    "integers": (lambda xp, F: lambda x, y: x * (y * 3).to(xp.int64) + (x > 0) * y, 2),
    "logs": (lambda xp, F: lambda x, y: xp.log1p(x * x) + xp.atan2(x, y).square(), 2),
    "one": (lambda xp, F: lambda x: xp.sigmoid(x), 1),
    "scaled add": (lambda xp, F: lambda x, y: xp.add(x, y, alpha=3).sub(y, alpha=0.5), 2),
}
EACH = pytest.mark.parametrize("name", FUNCTIONS)


def here(name):
    make, n = FUNCTIONS[name]
    return make(tgrad, F), n


def pairs(n, shapes, dtype=tgrad.float32, way="plain", key="fuse"):
    shapes = shapes if isinstance(shapes, list) else [shapes] * n
    return [pair(random(key, i, s).standard_normal(s), dtype, way, True) for i, s in enumerate(shapes[:n])]


def leaves(*args, **options):
    return [ours for ours, _, _ in pairs(*args, **options)]


def cotangent(out):
    return tgrad.tensor(random("g", tuple(out.shape)).standard_normal(out.shape), dtype=out.dtype)


def run(f, args):
    """The result and the gradients."""
    out = f(*args)
    return out, tgrad.autograd.grad(out, args, cotangent(out), allow_unused=True)


def same_gradient(name, got, want):
    if got is None or want is None:
        return got is want
    if name == "mixed":  # rounded once, not for each of the two paths
        return got.dtype is want.dtype and np.allclose(values(got), values(want), rtol=3e-7, atol=3e-7)
    return got.dtype is want.dtype and same_bits(got, want)


def launched(f):
    names = []
    with launch.listen(names.append):
        f()
    return names


def launched_backward(f, args, g):
    names = []
    with launch.listen(names.append):
        out = f(*args)
        names.clear()
        tgrad.autograd.grad(out, [a for a in args if a.requires_grad], g, allow_unused=True)
    return names


# --- values ----------------------------------------------------------------------------------------------------------
@EACH
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (7, 13)], ids=str)
def test_same_bits(name, shape):
    f, n = here(name)
    for dtype in (tgrad.float32, tgrad.float64):
        args = leaves(n, shape, dtype=dtype)
        (got, grads), (want, expected) = run(tgrad.fuse(f), args), run(f, args)
        assert got.dtype is want.dtype and got.stride() == want.stride() and same_bits(got, want)
        assert all(same_gradient(name, g, e) for g, e in zip(grads, expected, strict=True))


@EACH
@pytest.mark.parametrize("way", ["transposed", "sliced", "expanded"])
def test_same_bits_in_any_layout(name, way):
    f, n = here(name)
    args = leaves(n, (5, 7), way=way)
    args[-1] = tgrad.tensor(random("last").standard_normal((5, 7)), dtype=tgrad.float32, requires_grad=True)
    (got, grads), (want, expected) = run(tgrad.fuse(f), args), run(f, args)
    assert got.stride() == want.stride() and same_bits(got, want)
    assert all(same_gradient(name, g, e) for g, e in zip(grads, expected, strict=True))


@EACH
def test_broadcast_as_torch(name):
    make, n = FUNCTIONS[name]
    shapes = [(3, 5, 7), (7,), (5, 1), ()]
    trio = pairs(n, shapes)
    ours, exact = [t[0] for t in trio], [t[2] for t in trio]
    got, grads = run(tgrad.fuse(make(tgrad, F)), ours)
    assert same_bits(got, make(tgrad, F)(*ours))
    want = make(torch, torch.nn.functional)(*exact)
    assert_close(got, want, factor=8, scale=4)
    g = torch.tensor(values(cotangent(got)).astype(np.float64))
    for mine, theirs in zip(grads, torch.autograd.grad(want, exact, g), strict=True):
        assert_close(mine, theirs, length=105, factor=16, scale=16)


@EACH
@pytest.mark.parametrize("dtype", [tgrad.float16, tgrad.bfloat16], ids=lambda d: d.name)
def test_half_types_round_as_well(name, dtype):
    make, n = FUNCTIONS[name]
    trio = pairs(n, (31, 17), dtype)
    ours, exact = [t[0] for t in trio], [t[2] for t in trio]
    want = make(torch, torch.nn.functional)(*exact)
    fused, plain = run(tgrad.fuse(make(tgrad, F)), ours), run(make(tgrad, F), ours)
    g = torch.tensor(values(cotangent(plain[0])).astype(np.float64))
    truth = [want, *torch.autograd.grad(want, exact, g)]
    assert fused[0].dtype is plain[0].dtype
    for mine, theirs, true in zip([fused[0], *fused[1]], [plain[0], *plain[1]], truth, strict=True):
        error = lambda t, true=true: float(np.abs(values(t) - true.detach().numpy()).sum())
        assert error(mine) <= error(theirs) * 1.0001


@pytest.mark.parametrize("name", ["swiglu", "gates", "masked", "relu sum", "used again", "clamped", "one"])
def test_derivatives(name):
    f, n = here(name)
    args = leaves(n, (2, 3), dtype=tgrad.float64)
    fused = tgrad.fuse(f)
    assert tgrad.autograd.gradcheck(fused, args)
    if name in ("gates", "masked"):
        assert tgrad.autograd.gradcheck(fused, [a[:1] if i else a for i, a in enumerate(args)])
    assert tgrad.autograd.gradgradcheck(fused, args)


def test_create_graph_has_the_bits():
    f, n = here("swiglu")
    args = leaves(n, (5, 7))
    second = []
    for g in (tgrad.fuse(f), f):
        out = g(*args)
        first = tgrad.autograd.grad(out, args, cotangent(out), create_graph=True)
        second.append(tgrad.autograd.grad((first[0] * first[1]).sum(), args))
    assert all(np.allclose(values(a), values(b), rtol=1e-5, atol=1e-6) for a, b in zip(*second, strict=True))


# --- kernels and memory ----------------------------------------------------------------------------------------------
ONE_NODE = set(FUNCTIONS) - {"gates", "relu sum"}


@EACH
def test_one_kernel(name):
    f, n = here(name)
    args = leaves(n, (5, 7))
    fused = tgrad.fuse(f)
    assert len(launched(lambda: fused(*args))) == 1
    with tgrad.no_grad():
        assert len(launched(lambda: fused(*args))) == 1
    with tgrad.inference_mode():
        assert len(launched(lambda: fused(*args))) == 1
    took = launched_backward(fused, args, cotangent(f(*args)))
    assert took == ["fused_backward"] * (1 if name in ONE_NODE else len(took)) and len(took) <= 2


def test_a_kernel_for_each_broadcast_gradient():
    f, n = here("affine")
    args = leaves(n, [(6, 5), (5,), (6, 1), (5,)])
    assert launched_backward(tgrad.fuse(f), args, cotangent(f(*args))) == ["fused_backward"] * n


def kept(out, args):
    own = {id(a.storage) for a in args}
    found = {}
    for node in saved_by.nodes(out):
        found |= {id(s.storage): s.storage.nbytes for s in node.saved if s.storage is not None}
    return sum(nbytes for _, nbytes in found.items()), len(own)


@EACH
@pytest.mark.parametrize("dtype", [tgrad.float32, tgrad.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize("shapes", [[(64, 32)] * 4, [(64, 32), (32,), (64, 1), (64, 32)]], ids=["same", "broadcast"])
def test_keeps_no_more(name, dtype, shapes):
    f, n = here(name)
    args = leaves(n, shapes, dtype=dtype)
    with tgrad.activation_memory("keep"):
        plain, fused = f(*args), tgrad.fuse(f)(*args)
        assert kept(fused, args)[0] <= kept(plain, args)[0]
        args[0].requires_grad_(False)
        if n > 1:
            assert kept(tgrad.fuse(f)(*args), args)[0] <= kept(f(*args), args)[0]


def test_what_is_kept():
    size = 64 * 32 * 4
    amount = lambda name: kept(tgrad.fuse(here(name)[0])(*(args := leaves(here(name)[1], (64, 32)))), args)[0]
    with tgrad.activation_memory("keep"):
        assert amount("one") == size and amount("swiglu") == 2 * size
        assert amount("gates") == 2 * size and amount("relu sum") == 2 * size
    f = tgrad.fuse(lambda x, b: tgrad.sigmoid(x + b))
    out = f(*leaves(2, (64, 32)))
    (record,) = saved_by.saved(out)
    assert record.argument == "out" and record.storage_bytes == size


def test_the_cut():
    costs = {"a": 4, "b": 4, "sum": 5, "narrow": None, "out": 4}
    before = {"sum": ("a", "b"), "narrow": ("sum",), "out": ("narrow",)}
    assert cheapest_cut(costs, before, {"narrow"}) == {"sum"}
    assert cheapest_cut(costs, before, {"out"}) == {"out"}
    assert cheapest_cut(costs, before, {"narrow", "a"}) == {"a", "b"}
    assert cheapest_cut(costs | {"sum": 3}, before, {"narrow", "a"}) == {"sum", "a"}
    assert cheapest_cut(costs | {"sum": 9}, before, {"narrow"}) == {"a", "b"}
    assert cheapest_cut(costs, before, ()) == set()


# --- reductions ------------------------------------------------------------------------------------------------------
REDUCED = {
    "sum": lambda x, y: F.silu(x).sum(),
    "dim": lambda x, y: (x * y).sum(0),
    "keepdim": lambda x, y: F.mse_loss(x, y, reduction="none").mean(-1, keepdim=True),
    "mean": lambda x, y: F.mse_loss(x, y),
    "dims": lambda x, y: (x * y * 0.5).mean((0, 1)),
    "double": lambda x, y: (x * y).sum(1, dtype=tgrad.float64),
}


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("shape", [(5, 7), (1, 1), (3, 0), (37, 130)], ids=str)
def test_reductions(name, shape):
    f = REDUCED[name]
    args = leaves(2, shape)
    fused = tgrad.fuse(f)
    (got, grads), (want, expected) = run(fused, args), run(f, args)
    assert got.dtype is want.dtype and same_bits(got, want)
    same = same_bits if name != "double" else lambda a, b: np.allclose(values(a), values(b), rtol=1e-6)
    assert all((g is None and e is None) or same(g, e) for g, e in zip(grads, expected, strict=True))
    if shape == (5, 7):
        assert len(launched(lambda: fused(*args))) == 1
        assert launched_backward(fused, args, cotangent(want)) == ["fused_backward"]
        used = [a for a, e in zip(args, expected, strict=True) if e is not None]
        wide = [a.detach().double()[:3, :3].contiguous().requires_grad_() for a in used]
        if name in ("sum", "keepdim", "dims"):
            call = fused if len(wide) == 2 else lambda x: fused(x, x)
            assert tgrad.autograd.gradcheck(call, wide) and tgrad.autograd.gradgradcheck(call, wide)


@pytest.mark.parametrize("way", ["amax", "amin"])
def test_extremes(way):
    f = lambda x, y: getattr(x * y, way)(1)
    args = leaves(2, (5, 7))
    (got, grads), (want, expected) = run(tgrad.fuse(f), args), run(f, args)
    assert same_bits(got, want) and all(same_bits(g, e) for g, e in zip(grads, expected, strict=True))
    with tgrad.no_grad():
        assert launched(lambda: tgrad.fuse(f)(*args)) == [f"fused_{way}"]
    with pytest.raises(IndexError, match="non-zero size"):
        tgrad.fuse(f)(*leaves(2, (5, 0)))


def test_a_reduction_keeps_no_more():
    f = lambda a, b, c: (F.relu(a + b + c) * 2).sum(0)
    args = leaves(3, (64, 32))
    with tgrad.activation_memory("keep"):
        assert kept(tgrad.fuse(f)(*args), args)[0] <= kept(f(*args), args)[0]
    (_, grads), (_, expected) = run(tgrad.fuse(f), args), run(f, args)
    assert all(same_bits(g, e) for g, e in zip(grads, expected, strict=True))
