"""First and second derivatives against central differences in float64, for every differentiable row."""

import numpy as np
import pytest
import torch

import tgrad
from tests.compare import random, tolerance, values
from tests.samples import DIFFERENTIABLE
from tgrad import autograd
from tgrad.ops import matmul, norm, reduce, softmax

STEP = 1e-5  # central differences are then exact to about STEP^2 = 1e-10 and rounding / STEP = 1e-11
CLOSE = 2e-7


def tensor(array):
    return tgrad.tensor(array, dtype=tgrad.float64, requires_grad=True)


def inner(arrays, others):
    return sum(float(np.sum(a * b)) for a, b in zip(arrays, others, strict=True))


def directional(f, inputs, direction):
    """The derivative of f, a function of arrays, at `inputs` in `direction`, by central differences."""
    ahead = f([x + STEP * d for x, d in zip(inputs, direction, strict=True)])
    behind = f([x - STEP * d for x, d in zip(inputs, direction, strict=True)])
    return (ahead - behind) / (2 * STEP)


def agree(analytic, numeric, what):
    close = abs(analytic - numeric) <= CLOSE * max(1.0, abs(numeric))
    assert close, f"{what}: {analytic!r}, by differences {numeric!r}"


def setup(sample, case):
    """(arrays of the differentiable inputs, function of tensors for them, random numbers, cotangent)."""
    ours, _, _ = sample.build(case, tgrad.float64, points=False)
    at = [i for i, t in enumerate(ours) if t.requires_grad]

    def function(*tensors):
        full = [t.detach() for t in ours]
        for i, t in zip(at, tensors, strict=True):
            full[i] = t
        return sample.ours(*full, **case.settings)

    rng = random("gradcheck", sample.id)
    arrays = [values(ours[i]).copy() for i in at]
    u = rng.normal(size=tuple(sample.ours(*ours, **case.settings).shape))
    return arrays, function, rng, u


PICKED = ("odd", "broadcast", "transposed", "rows", "columns", "batch", "odd-mean", "odd-none", "images-sum", "images")


def cases():
    """Up to three cases of each row: a plain one, one that broadcasts or has settings, a transposed one."""
    picked = {s: [c for c in s.cases if c.id in PICKED][:3] or s.cases[:2] for s in DIFFERENTIABLE}
    return [pytest.param(s, c, id=f"{s.id}-{c.id}") for s, chosen in picked.items() for c in chosen]


@pytest.mark.parametrize("sample, case", cases())
def test_gradcheck(sample, case):
    """<u, J v> by differences, and <J^T u, v> by backward."""
    arrays, function, rng, u = setup(sample, case)
    leaves = [tensor(a) for a in arrays]
    grads = [values(g) for g in autograd.grad(function(*leaves), leaves, tgrad.tensor(u))]
    for _ in range(2):
        v = [rng.normal(size=a.shape) for a in arrays]
        numeric = directional(lambda xs: inner([values(function(*map(tensor, xs)))], [u]), arrays, v)
        agree(inner(grads, v), numeric, "first derivative")


@pytest.mark.parametrize("sample, case", cases())
def test_gradgradcheck(sample, case):
    """The same for the gradient as a function of the inputs and of the cotangent."""
    arrays, function, rng, u = setup(sample, case)
    w = [rng.normal(size=a.shape) for a in arrays]

    def gradients(xs, cotangent, create_graph):
        return autograd.grad(function(*xs), xs, cotangent, create_graph=create_graph)

    leaves, g = [tensor(a) for a in arrays], tensor(u)
    firsts = gradients(leaves, g, True)
    seconds = autograd.grad(firsts, [*leaves, g], [tgrad.tensor(x) for x in w], allow_unused=True,
        materialize_grads=True)
    v = [rng.normal(size=a.shape) for a in (*arrays, u)]
    numeric = directional(
        lambda xs: inner(map(values, gradients([tensor(x) for x in xs[:-1]], tensor(xs[-1]), False)), w), [*arrays, u],
        v
    )
    agree(inner(map(values, seconds), v), numeric, "second derivative")


# --- fused kernels and their composed twins --------------------------------------------------------------------------
def both(op, inputs, *settings):
    """The gradients by the fast formulas (a plain backward) and by the composed ones (create_graph)."""
    rng = random("twins", *settings)
    out = op(*inputs, *settings)
    g = tgrad.tensor(rng.normal(size=tuple(out.shape)), dtype=out.dtype)
    leaves = [t for t in inputs if t.requires_grad]
    fast = autograd.grad(out, leaves, g, retain_graph=True)
    composed = autograd.grad(out, leaves, g, create_graph=True)
    return zip(fast, composed, strict=True)


def rounding(a, b, length):
    allowed = tolerance(a.dtype, length, factor=8) * max(1.0, np.abs(values(b)).max())
    assert np.abs(values(a) - values(b)).max() <= allowed


@pytest.mark.parametrize("dtype", [tgrad.float32, tgrad.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("op", [softmax.softmax, softmax.log_softmax], ids=["softmax", "log_softmax"])
@pytest.mark.parametrize("dim", [0, 1])
def test_softmax_backward_is_its_composed_twin(op, dim, dtype):
    x = tgrad.tensor(random("x").normal(size=(5, 7)) * 3, dtype=dtype, requires_grad=True)
    for a, b in both(op, [x], dim):
        rounding(a, b, 7)


@pytest.mark.parametrize("dtype", [tgrad.float32, tgrad.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("reduction", softmax.REDUCTIONS)
@pytest.mark.parametrize("ignore", [-100, 2])
@pytest.mark.parametrize(("weighted", "smoothing"), [(False, 0.0), (True, 0.0), (False, 0.25), (True, 0.25)])
def test_cross_entropy_backward_is_its_composed_twin(reduction, ignore, weighted, smoothing, dtype):
    x = tgrad.tensor(random("x").normal(size=(7, 5)) * 3, dtype=dtype, requires_grad=True)
    t = tgrad.tensor([0, 4, 2, 2, 1, 3, 0])
    w = tgrad.tensor([0.5, 2.0, 1.25, 0.0, 3.0], dtype=dtype) if weighted else None
    for a, b in both(softmax.cross_entropy, [x, t], ignore, reduction, w, smoothing):
        rounding(a, b, 7)


def test_batch_norm_backward_is_its_recorded_form():
    rng = random("norm")
    x, w, b = (tgrad.tensor(rng.normal(size=s), dtype=tgrad.float64, requires_grad=True) for s in ((7, 5), (5,), (5,)))
    for fast, recorded in both(lambda *a: norm.batch_norm(a[0], None, None, a[1], a[2], training=True), [x, w, b]):
        rounding(fast, recorded, 35)


def test_every_fast_formula_is_compared_with_its_twin():
    """A new op with a fused backward needs a test above."""
    compared = {"softmax", "log_softmax", "cross_entropy"}
    ops = [v for m in (matmul, norm, reduce, softmax) for v in vars(m).values()]
    assert {op.name for op in ops if getattr(op, "fast", None)} == compared


# --- higher orders ---------------------------------------------------------------------------------------------------
def test_third_derivatives():
    """Differentiating what a backward recorded, again and again."""
    x = tensor(np.array([0.3, -1.2, 2.0]))
    for function, third in ((lambda x: x**4, lambda v: 24 * v), (lambda x: x.sin(), lambda v: -np.cos(v)),
                            (lambda x: (x * 2).exp() * x, lambda v: (8 * v + 12) * np.exp(2 * v))):  # fmt: skip
        y = function(x)
        for _ in range(3):
            (y,) = autograd.grad(y.sum(), x, create_graph=True)
        np.testing.assert_allclose(values(y), third(values(x)), rtol=1e-13)


def test_gradient_of_a_gradient_penalty():
    """A training step through a norm of gradients, as in WGAN-GP, against torch."""
    rng = random("penalty")
    data, weight = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
    results = []
    for m in (tgrad, torch):
        x, w = (m.tensor(a, dtype=m.float64, requires_grad=True) for a in (data, weight))
        out = (x @ w.t()).sigmoid().sum()
        (gx,) = m.autograd.grad(out, x, create_graph=True)
        ((gx.square().sum(1) + 1e-3).sqrt() - 1).square().mean().backward()
        results.append(np.asarray(w.grad.tolist()))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-12)
