"""Activations folded into products in a plain backward: where, where not, and that no bit differs."""

import gc
import weakref

import pytest
import torch

import tgrad
import tgrad.nn.functional as F
from tests.compare import assert_close, pair, random, same_bits
from tgrad import engine, graph
from tgrad.kernels import launch


def leaves(dtype, *shapes):
    pairs = [pair(random("fold", i, s).standard_normal(s), dtype, requires_grad=True) for i, s in enumerate(shapes)]
    return [ours for ours, _, _ in pairs], [exact for _, _, exact in pairs]


SHAPES = (9, 8), (12, 8), (12,), (16, 12), (16,), (5, 16), (5,)


def network(x, w1, b1, w2, b2, w3, b3, *, linear, activation):
    return linear(activation(linear(activation(linear(x, w1, b1)), w2, b2)), w3, b3)


def gradients(ours, fold, activation=tgrad.relu, **options):
    """Of the network's leaves, and the kernels that ran in the backward, folding or not."""
    for t in ours:
        t.grad = None
    launched = []
    g = tgrad.ones(9, 5, dtype=ours[0].dtype) * 0.37
    with pytest.MonkeyPatch.context() as patch:
        if not fold:
            patch.setattr(engine, "fold", lambda *_: None)
        with launch.listen(launched.append):
            out = network(*ours, linear=F.linear, activation=activation)
            launched.clear()
            out.backward(g, **options)
    return [t.grad for t in ours], launched


MASKS = {"relu": tgrad.relu, "relu6": F.relu6, "hardtanh": F.hardtanh}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", [tgrad.float32, tgrad.bfloat16, tgrad.float64], ids=lambda d: d.name)
def test_same_bits(name, dtype):
    ours, _ = leaves(dtype, *SHAPES)
    folded, _ = gradients(ours, True, MASKS[name])
    plain, _ = gradients(ours, False, MASKS[name])
    assert all(same_bits(a, b) for a, b in zip(folded, plain, strict=True))


def test_as_torch():
    ours, exact = leaves(tgrad.float32, *SHAPES)
    found, launched = gradients(ours, True)
    out = network(*exact, linear=torch.nn.functional.linear, activation=torch.relu)
    out.backward(torch.full_like(out, 0.37))
    for got, want in zip(found, exact, strict=True):
        assert_close(got, want.grad, length=64, scale=4)
    assert "relu_backward" not in launched and launched.count("linear_backward") == 5  # 3 of weights, 2 with a mask
    assert gradients(ours, False)[1].count("relu_backward") == 2


# What each folds: it names its result, or what it is of.
FORMULAS = {
    "tanh": tgrad.tanh, "sigmoid": tgrad.sigmoid, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu, "hardswish": F.hardswish, "selu": F.selu, "exp": tgrad.exp,
}  # fmt: skip


@pytest.mark.parametrize(
    "name, dtype",
    [*((name, tgrad.float32) for name in FORMULAS), ("gelu", tgrad.bfloat16), ("silu", tgrad.float16)],
)
def test_formulas(name, dtype):
    ours, _ = leaves(dtype, *SHAPES)
    ours = [t.detach().mul(0.5).requires_grad_() for t in ours]  # exp of exp stays finite
    folded, launched = gradients(ours, True, FORMULAS[name])
    plain, apart = gradients(ours, False, FORMULAS[name])
    assert all(same_bits(a, b) for a, b in zip(folded, plain, strict=True))
    assert launched == ["linear_backward"] * 5 + ["matmul"]  # 3 of weights, 2 with a formula, and of x
    assert apart == (["linear_backward", "matmul", f"{name}_backward"] * 3)[:-1]


@pytest.mark.parametrize("name", ["gelu", "tanh"])
def test_formulas_as_torch(name):
    ours, exact = leaves(tgrad.float32, *SHAPES)
    found, _ = gradients(ours, True, FORMULAS[name])
    out = network(*exact, linear=torch.nn.functional.linear, activation=getattr(torch.nn.functional, name))
    out.backward(torch.full_like(out, 0.37))
    for got, want in zip(found, exact, strict=True):
        assert_close(got, want.grad, length=64, scale=4)


# Whose products a compiler may contract; a run-time number; more than an epilogue should compute; two tensors' dtypes.
ALONE = {
    "float64": (tgrad.float64, F.gelu, "gelu_backward"),
    "number": (tgrad.float32, lambda x: F.elu(x, 0.5), "elu_backward"),
    "long": (tgrad.float32, F.mish, "mish_backward"),
    "strides": (tgrad.float32, lambda x: x * tgrad.ones(x.shape[1], x.shape[0]).t(), "mul_backward"),
    "dtypes": (tgrad.float32, lambda x: x * tgrad.ones(*x.shape, dtype=tgrad.bfloat16), "mul_backward"),
}


@pytest.mark.parametrize("name", ALONE)
def test_left_alone(name):
    dtype, activation, kernel = ALONE[name]
    ours, _ = leaves(dtype, *SHAPES)
    _, launched = gradients(ours, True, activation)
    assert launched.count(kernel) == 2


def test_a_factor_that_is_not_differentiated():
    """As dropout by hand: x * mask / p."""
    mask = {n: tgrad.tensor(random("mask", n).random((9, n)) < 0.5, dtype=tgrad.float32) for n in (12, 16)}
    ours, _ = leaves(tgrad.float32, *SHAPES)
    found = [gradients(ours, fold, lambda x: x * mask[x.shape[1]]) for fold in (True, False)]
    assert all(same_bits(a, b) for a, b in zip(found[0][0], found[1][0], strict=True))
    assert [launched.count("mul_backward") for _, launched in found] == [0, 2]


def module_gradients(model, x, kept, fold, **options):
    """Of a model's parameters and its input, under a policy, and the kernels of the backward."""
    launched = []
    with pytest.MonkeyPatch.context() as patch, tgrad.activation_memory(kept):
        if not fold:
            patch.setattr(engine, "fold", lambda *_: None)
        model.zero_grad()
        x.grad = None
        with launch.listen(launched.append):  # from here, or it would not hear of recipes
            out = model(x)
            launched.clear()
            out.backward(out.detach(), **options)
    return [t.grad for t in (x, *model.parameters())], launched


@pytest.mark.parametrize("kept", ["keep", "lean", "leanest"])
@pytest.mark.parametrize("name", ["GELU", "Tanh"])
def test_policies(name, kept):
    """What the formula names may be kept, made again, or come of a second run: the bits are the same, and nothing is
    run again that would not be otherwise.
    """
    nn = tgrad.nn
    model = nn.Sequential(*[
        nn.Sequential(nn.Linear(13, 36), getattr(nn, name)(), nn.Linear(36, 13)) for _ in range(2)
    ])  # fmt: skip
    x = tgrad.randn(33, 13, requires_grad=True)
    assert x.shape[0] * 36 * 4 >= graph.SMALLEST_RECIPE
    folded, launched = module_gradients(model, x, kept, True)
    plain, apart = module_gradients(model, x, kept, False)
    again, _ = module_gradients(model, x, kept, True, retain_graph=True)
    assert all(same_bits(a, b) and same_bits(a, c) for a, b, c in zip(folded, plain, again, strict=True))
    kernel = f"{name.lower()}_backward"
    assert (launched.count(kernel), apart.count(kernel)) == (0, 2)
    assert len(launched) == len(apart) - 2
    if kept != "leanest":  # there, the second run makes it
        assert launched.count("gelu") == apart.count("gelu") == (2 if (name, kept) == ("GELU", "lean") else 0)


def test_an_unpack_hook_runs_once():
    (x, w, v), _ = leaves(tgrad.float32, (6, 5), (4, 5), (3, 4))
    unpacked = []
    with tgrad.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: unpacked.append(tuple(t.shape)) or t):
        out = F.linear(F.gelu(F.linear(x, w)), v)
    with launch.listen((launched := []).append):
        out.backward(tgrad.ones(6, 3))
    assert "gelu_backward" not in launched
    assert sorted(unpacked) == [(3, 4), (4, 5), (6, 4), (6, 4), (6, 5)]


def test_of_matrix_products():
    """mm and addmm, as linear; bmm's gradients are computed apart."""
    (x, w, v, b), (tx, tw, tv, tb) = leaves(tgrad.float32, (6, 5), (5, 4), (4, 3), (3,))
    with launch.listen((launched := []).append):
        tgrad.addmm(b, F.silu(x @ w), v).backward(tgrad.ones(6, 3))
    assert "silu_backward" not in launched
    torch.addmm(tb, torch.nn.functional.silu(tx @ tw), tv).backward(torch.ones(6, 3, dtype=torch.float64))
    for t, tt in ((x, tx), (w, tw), (v, tv), (b, tb)):
        assert_close(t.grad, tt.grad, length=32, scale=4)


def test_again_with_retain_graph():
    (x, w, b, v), _ = leaves(tgrad.float32, (6, 5), (4, 5), (4,), (3, 4))
    out = F.linear(tgrad.relu(F.linear(x, w, b)), v)
    g = tgrad.ones(6, 3)
    out.backward(g, retain_graph=True)
    first = w.grad.clone()
    out.backward(g)
    assert same_bits(w.grad, first * 2)
    with pytest.raises(RuntimeError, match="second time"):
        out.backward(g)


def test_what_the_mask_kept_is_freed():
    (x, w, v), _ = leaves(tgrad.float32, (6, 5), (4, 5), (3, 4))
    h = tgrad.relu(F.linear(x, w))
    out, storage = F.linear(h, v), weakref.ref(h.storage)
    del h
    out.backward(tgrad.ones(6, 3))
    gc.collect()
    assert storage() is None


def test_modified_mask_is_an_error():
    (x, w, v), _ = leaves(tgrad.float32, (6, 5), (4, 5), (3, 4))
    v.requires_grad_(False)
    h = tgrad.relu(F.linear(x, w))
    out = F.linear(h, v)
    with tgrad.no_grad():
        h.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward(tgrad.ones(6, 3))


def hooked(h, seen):
    h.register_hook(lambda g: seen.append(g) or g * 2)
    return h


def retained(h, seen):
    h.retain_grad()
    seen.append(h)
    return h


# Where the mask's node must see its gradient, or gets a further one: (what is done with h, the last layer).
ELSEWHERE = {
    "hook": (hooked, lambda h, v: F.linear(h, v)),
    "retain_grad": (retained, lambda h, v: F.linear(h, v)),
    "residual": (lambda h, seen: h, lambda h, v: F.linear(h, v) + h),
    "residual first": (lambda h, seen: h, lambda h, v: h * 3 + F.linear(h, v)),
    "twice": (lambda h, seen: h, lambda h, v: F.linear(h, v) * F.linear(h, v * 2)),
    "both operands": (lambda h, seen: h[:4], lambda h, v: F.linear(h, h)),
    "weight of it": (lambda h, seen: h, lambda h, v: F.linear(h, v * h.sum())),
}  # fmt: skip


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_consumers(name, monkeypatch):
    done, last = ELSEWHERE[name]
    found, seen = [], []
    for folds in (True, False):
        (x, w, v), (tx, tw, tv) = leaves(tgrad.float32, (6, 5), (4, 5), (4, 4))
        if not folds:
            monkeypatch.setattr(engine, "fold", lambda *_: None)
        out = last(done(tgrad.relu(F.linear(x, w)), seen), v)
        out.backward(tgrad.ones(*out.shape))
        found.append([x.grad, w.grad, v.grad if v.grad is not None else v.detach()])
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))
    assert len(seen) in (0, 2)
    if name == "retain_grad":
        assert same_bits(seen[0].grad, seen[1].grad)
    if name == "residual":
        torch.nn.functional.linear(h := torch.relu(tx @ tw.t()), tv).add(h).sum().backward()
        assert_close(found[0][0], tx.grad, length=32, scale=4)


def test_gradients_of_what_is_asked_for():
    """autograd.grad takes the gradient between, and create_graph records every formula."""
    (x, w, v), _ = leaves(tgrad.float32, (6, 5), (4, 5), (3, 4))
    h = tgrad.relu(F.linear(x, w))
    out = F.linear(h, v)
    gh, gw = tgrad.autograd.grad(out, (h, w), tgrad.ones(6, 3), retain_graph=True)
    assert same_bits(gh, tgrad.ones(6, 3) @ v.detach())
    (recorded,) = tgrad.autograd.grad(out, w, tgrad.ones(6, 3), create_graph=True)
    assert recorded.requires_grad and same_bits(recorded.detach(), gw)


@pytest.mark.parametrize("shape", [(0, 5), (6, 5)])
def test_three_dimensions_and_empty_batches(shape):
    (x, w, v), (tx, tw, tv) = leaves(tgrad.float32, shape, (4, 5), (3, 4))
    F.linear(tgrad.relu(F.linear(x, w)), v).backward(tgrad.ones(shape[0], 3))
    torch.nn.functional.linear(torch.relu(tx @ tw.t()), tv).backward(torch.ones(shape[0], 3, dtype=torch.float64))
    for t, tt in ((x, tx), (w, tw), (v, tv)):
        assert_close(t.grad, tt.grad, length=32, scale=4)
