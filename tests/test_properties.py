"""Random programs, compared with torch: graphs of ops, views, writes in place, and the layout of results."""

import numpy as np
import pytest
import torch

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings, strategies as st

import tgrad
from tests.compare import values

bounded = lambda n: settings(max_examples=n, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**16)


# --- graphs ----------------------------------------------------------------------------------------------------------
UNARY = {
    "tanh": lambda m, a: a.tanh(), "sin": lambda m, a: a.sin(), "sigmoid": lambda m, a: a.sigmoid(), "relu": lambda m,
    a: a.relu(),
    "exp": lambda m, a: a.tanh().exp(), "log": lambda m, a: (a.square() + 1).log(), "abs": lambda m, a: a.abs(),
    "half": lambda m, a: a * 0.5,
    "sqrt": lambda m, a: (a.abs() + 0.5).sqrt(), "clamp": lambda m, a: a.clamp(-0.7, 0.9), "neg": lambda m, a: 1 - a,
    "sum0": lambda m, a: a.sum(0, keepdim=True), "mean": lambda m, a: a.mean(-1, keepdim=True), "amax": lambda m,
    a: a.amax(0),
    "t": lambda m, a: a.transpose(0, -1), "slice": lambda m, a: a[::2], "flat": lambda m, a: a.reshape(-1),
    "new": lambda m, a: a[None],
    "softmax": lambda m, a: m.softmax(a, -1), "log_softmax": lambda m, a: m.log_softmax(a, 0), "clone": lambda m,
    a: a.clone(),
}  # fmt: skip
BINARY = {
    "add": lambda m, a, b: a + b, "sub": lambda m, a, b: a - b, "mul": lambda m, a, b: a * b.tanh(), "div": lambda m, a,
    b: a / (b.square() + 1),
    "maximum": lambda m, a, b: m.maximum(a, b), "minimum": lambda m, a, b: m.minimum(a, b), "where": lambda m, a,
    b: m.where(a > b, a * 2, b),
    "matmul": lambda m, a, b: (a.tanh() @ b.tanh()) * 0.5, "outer": lambda m, a, b: a.unsqueeze(-1).tanh() * b.tanh(),
}  # fmt: skip
STEPS = st.lists(st.tuples(st.sampled_from([*UNARY, *BINARY]), st.integers(0, 9), st.integers(0, 9)), min_size=1,
    max_size=8)
SHAPES = st.sampled_from([(3,), (3, 3), (1, 3), (3, 1), (5, 3), (2, 3, 3)])


def execute(m, leaves, steps):
    """Run the steps that fit the shapes; returns the values made and which steps ran."""
    made, ran = list(leaves), []
    for name, i, j in steps:
        a, b = made[i % len(made)], made[j % len(made)]
        try:
            out = UNARY[name](m, a) if name in UNARY else BINARY[name](m, a, b)
        except (RuntimeError, IndexError) as error:
            ran.append(type(error).__name__)
            continue
        if out.numel() > 200 or out.ndim > 4:
            continue
        ran.append(name)
        made.append(out)
    return made, ran


@bounded(150)
@given(steps=STEPS, shapes=st.tuples(SHAPES, SHAPES), seed=seeds)
def test_graphs(steps, shapes, seed):
    rng = np.random.default_rng(seed)
    data = [rng.normal(size=s) for s in shapes]
    weight = rng.normal(size=10)
    results = []
    for m in (tgrad, torch):
        leaves = [m.tensor(d, dtype=m.float64, requires_grad=True) for d in data]
        made, ran = execute(m, leaves, steps)
        total = sum((made[k].sin() * float(weight[k])).sum() for k in range(len(made)))
        total.backward()
        results.append((ran, [np.asarray(t.tolist()) for t in made], [np.asarray(t.grad.tolist()) for t in leaves]))
    (ran, made, grads), (ran_there, made_there, grads_there) = results
    assert ran == ran_there
    for a, b in zip([*made, *grads], [*made_there, *grads_there], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@bounded(40)
@given(steps=STEPS, shape=SHAPES, seed=seeds)
def test_second_derivatives_of_graphs(steps, shape, seed):
    rng = np.random.default_rng(seed)
    data, weight = rng.normal(size=shape), rng.normal(size=shape)
    results = []
    for m in (tgrad, torch):
        x = m.tensor(data, dtype=m.float64, requires_grad=True)
        made, _ = execute(m, [x], steps)
        (g,) = m.autograd.grad(made[-1].sin().sum(), x, create_graph=True)
        scalar = (g * m.tensor(weight, dtype=m.float64)).sum() + (x * x).sum()
        results.append(np.asarray(m.autograd.grad(scalar, x)[0].tolist()))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-9, atol=1e-10)


# --- layouts of results ----------------------------------------------------------------------------------------------
@st.composite
def arranged(draw, shape):
    """A function that makes a tensor of `shape` with strides of some kind, in either library."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.sampled_from([1, 1, 2])) for _ in shape]
    single = [draw(st.booleans()) and draw(st.booleans()) for _ in shape]
    expanded = [draw(st.booleans()) and draw(st.booleans()) for _ in shape]

    def make(m, seed):
        sizes = [1 if s or e else n * k for n, k, s, e in zip(shape, steps, single, expanded, strict=True)]
        data = np.random.default_rng(seed).normal(size=[sizes[d] for d in order])
        t = m.tensor(data, dtype=m.float64).permute(*[order.index(d) for d in range(len(shape))])
        t = t[tuple(slice(None, None, 1 if s or e else k) for k, s, e in zip(steps, single, expanded, strict=True))]
        return t.expand(*[n if e else -1 for n, e in zip(shape, expanded, strict=True)])

    return make


@bounded(200)
@given(data=st.data(), shape=st.lists(st.sampled_from([1, 2, 3, 5]), min_size=1, max_size=4), count=st.integers(1, 3))
def test_strides_of_pointwise_results(data, shape, count):
    makers = [data.draw(arranged(shape)) for _ in range(count)]
    strides = {}

    def run(m):
        ts = [make(m, i) for i, make in enumerate(makers)]
        strides[m] = [t.stride() for t in ts]
        return ts[0].exp() if count == 1 else ts[0] + ts[1] if count == 2 else m.clamp(ts[0], ts[1], ts[2])

    try:
        want = run(torch)
    except RuntimeError:
        return
    got = run(tgrad)
    np.testing.assert_allclose(values(got), want.numpy(), rtol=1e-14)
    # One or two operands of the same strides: torch's, exactly; else up to those of dimensions of size 1.
    alike = len(set(strides[torch])) == 1 and want.ndim < 4
    moving = [d for d, n in enumerate(want.shape) if alike or n > 1]
    assert strides[tgrad] == strides[torch]
    assert [got.stride(d) for d in moving] == [want.stride(d) for d in moving], (shape, strides[torch])


# --- views and writes ------------------------------------------------------------------------------------------------
VIEWS = {
    "t": lambda v, i: v.transpose(0, -1), "head": lambda v, i: v[: 1 + i], "step": lambda v, i: v[i % 2 :: 2],
    "item": lambda v, i: v[i % max(len(v), 1)],
    "last": lambda v, i: v[..., i:], "new": lambda v, i: v.unsqueeze(i % 2), "flat": lambda v,
    i: v.view(-1), "same": lambda v, i: v.view(v.shape),
}  # fmt: skip
WRITES = {
    "mul_": lambda m, v, w: v.mul_(w), "add_": lambda m, v, w: v.add_(w), "number": lambda m, v, w: v.mul_(2.5),
    "zero_": lambda m, v, w: v.zero_(),
    "copy_": lambda m, v, w: v.copy_(w), "sin_": lambda m, v, w: v.sin_(), "itself": lambda m, v, w: v.add_(v),
    "div_": lambda m, v, w: v.div_(w + 3),
    "read": lambda m, v, w: v.square(),
}  # fmt: skip
PROGRAM = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(list(VIEWS)), st.integers(0, 3), st.sampled_from([None, *WRITES])),
    min_size=1, max_size=7
)


@bounded(200)
@given(program=PROGRAM, grad=st.booleans(), seed=seeds)
def test_writes_through_views(program, grad, seed):
    """Views of views of one base, some written in place: values and gradients of everything are torch's."""
    rng = np.random.default_rng(seed)
    base, factor, weight = rng.normal(size=(4, 3)), rng.normal(), rng.normal(size=(4, 3))

    def run(m):
        x = m.tensor(base, dtype=m.float64, requires_grad=grad)
        w = m.tensor(factor, dtype=m.float64, requires_grad=True)
        root = x * 1.5
        views, log, extra = [root], [], m.zeros((), dtype=m.float64)
        for i, name, k, write in program:
            v = views[i % len(views)]
            if not v.ndim:
                continue
            try:
                v = VIEWS[name](v, k)
                views.append(v)
                if write is not None:
                    result = WRITES[write](m, v, w)
                    if write == "read":
                        extra = extra + result.sum()
            except (RuntimeError, IndexError) as error:
                log.append(type(error).__name__)
        total = (root * m.tensor(weight, dtype=m.float64)).sum() + extra + sum(v.sum() for v in views[1:]) + w
        try:
            grads = m.autograd.grad(total, [x, w] if grad else [w], allow_unused=True)
        except RuntimeError as error:
            assert "modified by an inplace" in str(error)
            return log, root.tolist(), None
        found = [None if g is None else np.asarray(g.tolist()) for g in grads]
        return log, [np.asarray(v.tolist()) for v in views], found

    (log, made, grads), (log_there, made_there, grads_there) = run(tgrad), run(torch)
    assert log == log_there
    if grads is None or grads_there is None:
        # torch refuses h.mul_(h)-like writes that tgrad copies an old value for, never the other way round
        assert grads_there is None
        return
    for a, b in zip([*made, *grads], [*made_there, *grads_there], strict=True):
        if a is None or b is None:
            assert not np.any(np.asarray(a if b is None else b, dtype=float))
        else:
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@bounded(150)
@given(shape=st.lists(st.integers(0, 4), max_size=4), data=st.data())
def test_sums_over_any_dimensions(shape, data):
    dims = data.draw(st.lists(st.integers(0, max(len(shape) - 1, 0)), unique=True, max_size=len(shape)))
    keepdim = data.draw(st.booleans())
    x = np.random.default_rng(0).integers(-9, 9, size=shape)
    for kind in ("int64", "float64"):
        got = tgrad.tensor(x, dtype=getattr(tgrad, kind)).sum(dims, keepdim)
        want = torch.tensor(x, dtype=getattr(torch, kind)).sum(dims, keepdim)
        assert got.shape == want.shape and got.tolist() == want.tolist()


@bounded(100)
@given(data=st.data(), m=st.integers(1, 5), k=st.integers(1, 5), n=st.integers(1, 5),
    lead=st.sampled_from([(), (2,), (3, 1), (1, 2)]))
def test_products_of_any_strides(data, m, k, n, lead):
    left = data.draw(arranged([*lead, m, k]))
    right = data.draw(arranged([2, k, n]) if lead in ((), (2,)) else arranged([k, n]))
    try:
        want = left(torch, 0) @ right(torch, 1)
    except RuntimeError:
        return
    np.testing.assert_allclose(values(left(tgrad, 0) @ right(tgrad, 1)), want.numpy(), rtol=1e-13, atol=1e-13)
