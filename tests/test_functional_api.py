"""tgrad.autograd.functional, the same calls on torch and tgrad."""

import numpy as np
import pytest

import tgrad
from tests.semantics.harness import attempt, statement

DATA = np.random.default_rng(3).normal(size=(2, 3))


def inputs(M, requires_grad=False):
    x = M.tensor(DATA.tolist(), dtype=M.float64, requires_grad=requires_grad)
    w = M.tensor((DATA[0] + 1).tolist(), dtype=M.float64, requires_grad=requires_grad)
    return x, w


def one(x):
    return (x * x.exp()).sum(0)


def two(x, w):
    return x * w, (x.sin() @ w).sum()


def scalar(x, w):
    return (x * x * w).sum() + w.exp().sum()


def flags(t):
    return [flags(v) for v in t] if isinstance(t, tuple) else (t.requires_grad, t.is_leaf, t)


@statement()
def test_jacobian(M):
    F, (x, w) = M.autograd.functional, inputs(M)
    return [
        F.jacobian(one, x), F.jacobian(two, (x, w)), F.jacobian(lambda x: x.sum(), x), F.jacobian(lambda x: (x,), (x,)),
        F.jacobian(lambda x: x.detach(), x), F.jacobian(lambda x, w: w * 2, (x, w)),
        F.jacobian(lambda x: x[0, 0] * 2, x), F.jacobian(one, x.float()),
    ]  # fmt: skip


@statement()
def test_hessian(M):
    F, (x, w) = M.autograd.functional, inputs(M)
    return [
        F.hessian(scalar, (x, w)), F.hessian(lambda x: x.exp().sum(), x), F.hessian(lambda x: x.sum(), x),
        F.hessian(lambda x: (x**3).sum().reshape(1, 1), x), F.hessian(lambda x: x.square().sum(), (x,)),
    ]  # fmt: skip


@statement()
def test_products(M):
    F, (x, w) = M.autograd.functional, inputs(M)
    return [
        F.vjp(one, x, w), F.vjp(two, (x, w), (x, w[0])), F.vjp(lambda x: x.sum(), x), F.jvp(one, x, x),
        F.jvp(two, (x, w), (x, w)),
        F.jvp(lambda s: s * w, w[0], None), F.vhp(scalar, (x, w), (x, w)), F.hvp(scalar, (x, w), (x, w)),
        F.vhp(lambda x: x.sum(), x, x), F.hvp(lambda s: s**3, w[0]), F.vhp(lambda s: s**3, w[0]), F.vjp(one, x, (w,)),
        F.jvp(lambda x: x.detach(), x, x), F.vjp(lambda x, w: w * 1, (x, w), w),
        F.hvp(lambda x: x.exp().sum(), (x,), (x,)),
    ]  # fmt: skip


@statement()
def test_create_graph(M):
    F, found = M.autograd.functional, []
    for requires_grad in (False, True):
        for create_graph in (False, True):
            x, w = inputs(M, requires_grad)
            for call in (
                lambda **k: F.jacobian(one, x, **k), lambda **k: F.hessian(scalar, (x, w), **k),
                lambda **k: F.vjp(one, x, w, **k), lambda **k: F.jvp(one, x, x.detach(), **k),
                lambda **k: F.vhp(scalar, (x, w), (x, w), **k), lambda **k: F.hvp(scalar, (x, w), (x, w), **k),
            ):  # fmt: skip
                found.append(flags(call(create_graph=create_graph)))
    x, w = inputs(M, True)
    j = F.jacobian(one, x, create_graph=True)
    found.append(M.autograd.grad(j.square().sum(), x))
    _, p = F.vjp(one, x, w, create_graph=True)
    found.append(M.autograd.grad(p.square().sum(), (x, w)))
    _, p = F.jvp(one, x, x, create_graph=True)
    found.append(M.autograd.grad(p.square().sum(), x))
    h = F.hessian(lambda x: (x**4).sum(), x, create_graph=True)
    found.append(M.autograd.grad(h.sum(), x))
    _, p = F.hvp(lambda x: (x**4).sum(), x, x, create_graph=True)
    found.append(M.autograd.grad(p.sum(), x))
    return found, x.grad


@statement()
def test_strict(M):
    F, (x, w) = M.autograd.functional, inputs(M)
    rx, _ = inputs(M, True)
    const = lambda x: M.ones(2, dtype=M.float64)
    half = lambda x, w: x.exp().sum()
    linear = lambda x: (x * 2).sum()
    calls = [
        lambda: F.jacobian(const, x, strict=True), lambda: F.jacobian(lambda x, w: (x * 2, w), (x, w), strict=True),
        lambda: F.jacobian(lambda x: x * 2, rx, create_graph=True, strict=True),
        lambda: F.hessian(linear, x, strict=True),
        lambda: F.hessian(lambda x: x.detach().sum(), x, strict=True), lambda: F.hessian(half, (x, w), strict=True),
        lambda: F.hessian(lambda x: (x * x).sum(), rx, create_graph=True, strict=True),
        lambda: F.vjp(const, x, M.ones(2, dtype=M.float64), strict=True), lambda: F.vjp(half, (x, w), strict=True),
        lambda: F.vjp(linear, rx, create_graph=True, strict=True), lambda: F.jvp(const, x, x, strict=True),
        lambda: F.jvp(half, (x, w), (x, w), strict=True), lambda: F.jvp(linear, rx, x, create_graph=True, strict=True),
        lambda: F.vhp(linear, x, x, strict=True), lambda: F.vhp(half, (x, w), (x, w), strict=True),
        lambda: F.vhp(lambda x: (x * x).sum(), rx, x, create_graph=True, strict=True),
        lambda: F.hvp(linear, x, x, strict=True), lambda: F.hvp(half, (x, w), (x, w), strict=True),
        lambda: F.hvp(lambda x: x.exp().sum(), x, x, strict=True), lambda: F.jacobian(one, x, strict=True),
    ]  # fmt: skip
    return [attempt(call) for call in calls]


@statement()
def test_errors(M):
    F, (x, w) = M.autograd.functional, inputs(M)
    calls = [
        lambda: F.jacobian(one, 3), lambda: F.jacobian(one, (x, 3)), lambda: F.jacobian(one, [x]),
        lambda: F.jacobian(lambda x: 3, x), lambda: F.jacobian(lambda x: (x, "a"), x), lambda: F.hessian(one, x),
        lambda: F.hessian(lambda x: (x.sum(), x.sum()), x), lambda: F.hessian(lambda x: (x.sum(),), x),
        lambda: F.vjp(one, x), lambda: F.vjp(one, x, x), lambda: F.vjp(one, x, (w, w)), lambda: F.vjp(two, (x, w), x),
        lambda: F.vjp(two, (x, w), (x, w)), lambda: F.vjp(one, x, 3), lambda: F.jvp(one, x), lambda: F.jvp(one, x, w),
        lambda: F.jvp(two, (x, w), x), lambda: F.jvp(two, (x, w), (w, w)), lambda: F.vhp(one, x, x),
        lambda: F.vhp(lambda x: (x.sum(),), x, x), lambda: F.vhp(scalar, (x, w)), lambda: F.hvp(one, x, x),
        lambda: F.hvp(lambda x: (x.sum(),), x, x), lambda: F.hvp(scalar, (x, w), x), lambda: F.hvp(scalar, (x, w)),
    ]  # fmt: skip
    return [attempt(call) for call in calls]


@statement()
def test_modes_and_inputs_are_left_alone(M):
    F, found = M.autograd.functional, []
    for mode in (M.no_grad, M.enable_grad):
        x, w = inputs(M, True)
        with mode():
            found += [flags(F.jacobian(one, x)), flags(F.vjp(one, x, w)), flags(F.jvp(one, x, x)), M.is_grad_enabled()]
            found.append(flags(F.hvp(lambda x: x.exp().sum(), x, x, create_graph=True)))
        found.append((x.grad, x.requires_grad, x.is_leaf))
    return found


@pytest.mark.parametrize("call", [
    lambda F, x: F.jacobian(one, x, vectorize=True), lambda F, x: F.hessian(lambda x: x.sum(), x, vectorize=True),
], ids=["jacobian", "hessian"])  # fmt: skip
def test_there_is_no_vmap(call):
    with pytest.raises(NotImplementedError, match="vectorize=True needs vmap, which tgrad does not have"):
        call(tgrad.autograd.functional, tgrad.ones(2))


def test_there_is_no_forward_mode():
    F, x = tgrad.autograd.functional, tgrad.ones(2)
    with pytest.raises(NotImplementedError, match="no forward mode"):
        F.jacobian(one, x, strategy="forward-mode")
    with pytest.raises(NotImplementedError, match="no forward mode"):
        F.hessian(lambda x: x.sum(), x, outer_jacobian_strategy="forward-mode")
    with pytest.raises(AssertionError, match="Expected strategy to be either"):
        F.jacobian(one, x, strategy="other")


def test_outputs_without_elements():
    """torch raises an error about `stack`."""
    x = tgrad.ones(2, 0)
    assert tgrad.autograd.functional.jacobian(lambda x: x * 2, x).shape == (2, 0, 2, 0)
