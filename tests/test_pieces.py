"""Gradients of parts of a tensor, put together: the same as one by one, in fewer kernels."""

import numpy as np
import pytest
import torch

import tgrad as T
from tests.compare import random
from tgrad.kernels import launch

CASES = {
    "split": (lambda x: (lambda q, k, v: q * k + v)(*(x * 2).split(4, -1)), (3, 12), ["cat"]),
    "split of a leaf": (lambda x: (lambda q, k, v: q * k + v)(*x.split(4, -1)), (3, 12), ["cat"]),
    "chunk, odd": (
        lambda x: (lambda a, b, c: a.exp().sum() + (b.exp() * b).sum() + c.sin().sum())(*(x * 1).chunk(3, 1)),
        (2, 7, 3), ["add_", "cat"],
    ),
    "unbind": (lambda x: (lambda u: u[0] * u[1] + u[2])((x * 1).unbind(0)), (3, 5), ["cat"]),
    "all but one": (lambda x: (lambda u: u[0] * u[2])((x * 1).unbind(0)), (3, 5), ["zeros", "slice_backward", "add_"]),
    "overlapping": (lambda x: (lambda h: h[:, 1:] * h[:, :-1])(x * 1), (3, 5), ["zeros", "slice_backward", "add_"]),
    "one part": (lambda x: (x * 1)[1:2] * 2, (3, 5), ["zeros", "slice_backward"]),
    "steps": (lambda x: (lambda h: h[::2] * 3 + h[1::2])(x * 1), (6, 5), ["zeros", "slice_backward", "add_"]),
    "two dimensions": (
        lambda x: (lambda h: h[0].sum() + h[:, 1].sum())(x * 1), (3, 5), ["zeros", "slice_backward", "add_"],
    ),
    "whole and parts": (
        lambda x: (lambda h: (h * h).sum() + h[0].sum() + (h * 2).sum() + h[:, 1].sum())(x * 1), (3, 5),
        ["add", "add_", "add_", "add_"],
    ),
    "nested": (lambda x: (lambda a, b: a.split(2, -1)[1] * b.split(2, -1)[0])(*(x * 1).split(4, -1)), (3, 8), None),
    "none of it": (lambda x: (x * 1)[:, 2:2].sum() + x.sum(), (3, 5), None),
}  # fmt: skip
JOINING = {"cat", "zeros", "slice_backward", "add", "add_", "copy_"}


def leaves(shape):
    x = random("pieces", shape).standard_normal(shape)
    return T.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)


@pytest.mark.parametrize("name", CASES)
def test_gradients_and_kernels(name):
    f, shape, kernels = CASES[name]
    x, y = leaves(shape)
    a, b = f(x), f(y)
    g = random("g", a.shape).standard_normal(tuple(a.shape))
    launched = []
    with launch.listen(launched.append):
        a.backward(T.tensor(g), retain_graph=True)
    b.backward(torch.tensor(g), retain_graph=True)
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-13, atol=1e-13)
    if kernels is not None:
        assert [k for k in launched if k in JOINING] == kernels
    a.backward(T.tensor(g)), b.backward(torch.tensor(g))  # into the same .grad
    np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-13, atol=1e-13)
    recorded = T.autograd.grad(f(x), x, T.tensor(g), create_graph=True)[0]
    np.testing.assert_allclose(recorded.detach().numpy(), y.grad.numpy() / 2, rtol=1e-13, atol=1e-13)
    assert T.autograd.gradgradcheck(lambda t: f(t).sin(), x)


def test_hooks_and_captures_see_tensors():
    x, y = leaves((3, 12))
    seen = {T: [], torch: []}
    for library, leaf in ((T, x), (torch, y)):
        h = leaf * 2
        parts = h.split(4, -1)
        h.register_hook(lambda g, to=seen[library]: to.append(g.numpy().copy()))
        parts[1].register_hook(lambda g, to=seen[library]: to.append(g.numpy().copy()))
        parts[1].retain_grad()
        out = (parts[0] * parts[1] + parts[2]).sum()
        wanted = library.autograd.grad(out, (h, parts[2]), retain_graph=True)
        out.backward()
        seen[library] += [g.numpy() for g in (*wanted, parts[1].grad, leaf.grad)]
    assert len(seen[T]) == len(seen[torch]) == 8
    for ours, theirs in zip(seen[T], seen[torch], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-13)


def test_a_gradient_that_others_hold_is_not_written():
    """The sum's gradient goes to h as it is, and is also what `held` keeps; parts are added to a tensor of h's own."""
    x, _ = leaves((3, 4))
    h, other = x * 1, T.zeros(3, 4, dtype=T.float64, requires_grad=True)
    total = h + other
    held = []
    total.register_hook(held.append)
    (total.sum() + h[0].sum() + h[:, 1].sum()).backward()
    assert (held[0].numpy() == 1).all() and (other.grad.numpy() == 1).all()
    expected = np.ones((3, 4))
    expected[0] += 1
    expected[:, 1] += 1
    assert (x.grad.numpy() == expected).all()


def test_a_second_walk_is_refused():
    x, _ = leaves((3, 4))
    out = (x * x)[0].sum()
    out.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        out.backward()
