"""Writing in place: results, versions, refusals before anything is written, and histories, compared with torch."""

import numpy as np
import pytest
import torch

import tgrad
from tests.compare import assert_same, random, values

pytestmark = pytest.mark.anywhere


def both(function, *data, dtype="float32"):
    """[function(module, *tensors)] with tgrad and torch."""
    return [function(m, *[m.tensor(d, dtype=getattr(m, dtype)) for d in data]) for m in (tgrad, torch)]


A, B = random("a").normal(size=(5, 7)), random("b").normal(size=(5, 7)) + 3

WRITES = {
    "add_": lambda m, a, b: a.add_(b), "sub_": lambda m, a, b: a.sub_(b), "mul_": lambda m, a, b: a.mul_(b),
    "div_": lambda m, a, b: a.div_(b),
    "add_ number": lambda m, a, b: a.add_(2.5), "add_ alpha": lambda m, a, b: a.add_(b, alpha=0.5), "pow_": lambda m, a,
    b: a.abs_().pow_(b),
    "iadd": lambda m, a, b: a.__iadd__(b), "isub": lambda m, a, b: a.__isub__(1), "imul": lambda m, a, b: a.__imul__(b),
    "idiv": lambda m, a, b: a.__itruediv__(b),
    "broadcast": lambda m, a, b: a.add_(b[0]), "itself": lambda m, a, b: a.mul_(a), "scalar tensor": lambda m, a,
    b: a.mul_(b[0, 0]),
    "neg_": lambda m, a, b: a.neg_(), "exp_": lambda m, a, b: a.exp_(), "relu_": lambda m, a, b: a.relu_(),
    "tanh_": lambda m, a, b: a.tanh_(),
    "clamp_": lambda m, a, b: a.clamp_(-0.5, 0.5), "clamp_ min": lambda m, a, b: a.clamp_(min=0), "zero_": lambda m, a,
    b: a.zero_(),
    "fill_": lambda m, a, b: a.fill_(3), "copy_": lambda m, a, b: a.copy_(b), "copy_ row": lambda m, a,
    b: a.copy_(b[:1]),
    "copy_ cast": lambda m, a, b: a.copy_(b.double()), "sqrt_": lambda m, a, b: a.abs_().sqrt_(), "sigmoid_": lambda m,
    a, b: a.sigmoid_(),
    "transposed": lambda m, a, b: a.t().add_(b.t()), "column": lambda m, a, b: a[:, 2].mul_(10), "step": lambda m, a,
    b: a[::2, 1::3].add_(1),
}  # fmt: skip
EXACT = {"exp_": 1e-6, "tanh_": 1e-6, "sigmoid_": 1e-6, "pow_": 2e-6}


@pytest.mark.parametrize("name", WRITES)
def test_values_and_versions(name):
    def run(m, a, b):
        result = WRITES[name](m, a, b)
        return a, result, a._version

    (ours, result, version), (theirs, wanted, count) = both(run, A, B)
    np.testing.assert_allclose(values(ours), theirs.numpy(), rtol=EXACT.get(name, 0), atol=0)
    assert version == count and (result is ours) == (wanted is theirs) and result.storage is ours.storage


@pytest.mark.parametrize("key, value", [
    (0, 5.0), ((1, 2), 7), (slice(1, 4), 0.5), ((slice(None), 3), "row"), (Ellipsis, 1.0),
    ((slice(None, None, 2), slice(1, 3)), 2), (2, "column"),
    ((slice(None), None, 1), 4), (slice(3, 3), 1.0),
], ids=str)  # fmt: skip
def test_setitem(key, value):
    def run(m, a, b):
        a[key] = b[0, :5] if value == "row" else b[0] if value == "column" else value
        return a, a._version

    (ours, version), (theirs, count) = both(run, A, B)
    assert_same(ours, theirs)
    assert version == count


def test_setitem_takes_lists_and_counts_each_write():
    x = tgrad.zeros(3)
    x[:2] = [1.0, 2.0]
    x[2] += 5  # on the view, then the item
    assert x.tolist() == [1.0, 2.0, 5.0]
    y = torch.zeros(3)
    y[:2] = torch.tensor([1.0, 2.0])
    y[2] += 5
    assert x._version == y._version


def test_who_shares_the_version():
    x = tgrad.zeros(4)
    shared = [x[1:], x.view(2, 2), x.detach(), x.t(), x[1:][0]]
    apart = [x.clone(), x.data]
    x.add_(1)
    shared[0].mul_(2)
    assert x._version == 2 and all(t._version == 2 for t in shared) and all(t._version == 0 for t in apart)
    x.requires_grad_()
    x.data.fill_(5)
    assert x._version == 2 and x.tolist() == [5.0] * 4


def test_integers_in_place():
    def run(m, a, b):
        a.add_(b).mul_(3).sub_(1)
        a[1:2] = 7
        return a

    ours, theirs = both(run, [1, 2, 3], [4, 5, 6], dtype="int64")
    assert_same(ours, theirs)


# --- refusals --------------------------------------------------------------------------------------------------------
REFUSED = {
    "leaf": lambda m, x: x.add_(1), "leaf, +=": lambda m, x: x.__iadd__(1), "leaf, zero_": lambda m, x: x.zero_(),
    "leaf, setitem": lambda m, x: x.__setitem__(0, 1.0), "view of a leaf": lambda m, x: x[1:].mul_(2),
    "leaf, normal_": lambda m, x: x.normal_(),
    "shape": lambda m, x: x.detach().add_(m.ones(2, 3)), "shape, copy_": lambda m, x: x.detach().copy_(m.ones(4)),
    "dtype": lambda m, x: m.zeros(3, dtype=m.int64).add_(1.5), "dtype, tensor": lambda m,
    x: m.zeros(3, dtype=m.int32).mul_(m.ones(3)),
    "dtype, bool": lambda m, x: m.zeros(3, dtype=m.bool).add_(1), "dtype, exp_": lambda m,
    x: m.ones(3, dtype=m.int64).exp_(),
    "overlap of itself": lambda m, x: m.zeros(1).expand(3).add_(1), "overlap of itself, copy_": lambda m,
    x: m.zeros(1).expand(3).copy_(m.ones(3)),
    "partial overlap": lambda m, x: x.detach()[1:].add_(x.detach()[:-1]), "partial overlap, copy_": lambda m,
    x: x.detach()[:2].mul_(x.detach()[1:]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written(name):
    raised = []
    for m in (tgrad, torch):
        x = m.tensor([1.0, 2.0, 3.0], requires_grad=True)
        with pytest.raises(RuntimeError) as error:
            REFUSED[name](m, x)
        raised.append(str(error.value))
        assert x._version == 0 and x.tolist() == [1.0, 2.0, 3.0]
    assert raised[0][:45] == raised[1][:45]


def test_overlap_that_is_allowed():
    x = tgrad.zeros(1)
    x.expand(3).fill_(5)
    assert x.tolist() == [5.0]
    y = tgrad.arange(6)
    y[:3].copy_(y[3:])
    assert y.tolist() == [3, 4, 5, 3, 4, 5]
    z = tgrad.arange(4)
    z.mul_(z)
    assert z.tolist() == [0, 1, 4, 9]


# --- saved values ----------------------------------------------------------------------------------------------------
MODIFIED = "one of the variables needed for gradient computation has been modified by an inplace operation"


@pytest.mark.parametrize("modify", [
    lambda x, w, y: w.add_(1), lambda x, w, y: w[0].fill_(1), lambda x, w, y: w.detach().zero_(), lambda x, w,
    y: w.zero_(),
    lambda x, w, y: w.__setitem__(1, 5.0),
], ids=["add_", "view", "detach", "zero_", "setitem"])  # fmt: skip
def test_a_saved_tensor_that_was_modified_is_noticed(modify):
    x, w = tgrad.tensor([1.0, 2.0], requires_grad=True), tgrad.tensor([3.0, 4.0])
    y = x * w
    modify(x, w, y)
    with pytest.raises(RuntimeError, match=MODIFIED) as error:
        y.sum().backward()
    assert "[torch.FloatTensor [2]]" in str(error.value).replace("cuda.",
        "") and "is at version 1; expected version 0" in str(error.value)


def test_a_result_that_was_saved_and_modified_is_noticed():
    x = tgrad.tensor([1.0, 2.0], requires_grad=True)
    y = x.exp()
    y.add_(1)
    with pytest.raises(RuntimeError, match="output 0 of ExpBackward0|output 0 of AddBackward0"):
        y.sum().backward()


def test_what_is_not_saved_may_be_modified():
    x, w = tgrad.tensor([1.0, 2.0], requires_grad=True), tgrad.tensor([3.0, 4.0])
    y = x + w
    z = x.exp()
    w.add_(1)
    with tgrad.no_grad():
        x.add_(1)  # exp keeps its result, not x
    y.add_(1)
    (y + z).sum().backward()
    np.testing.assert_allclose(values(x.grad), 1 + np.exp([1.0, 2.0]), rtol=1e-6)


def test_data_is_not_counted():
    x, w = tgrad.tensor([1.0, 2.0], requires_grad=True), tgrad.tensor([3.0, 4.0])
    y = x * w
    w.data.fill_(10)
    y.sum().backward()
    assert x.grad.tolist() == [10.0, 10.0]


# --- histories, against torch ----------------------------------------------------------------------------------------
def op(name):
    return lambda m, h, w: getattr(h, name)()


HISTORIES = {
    "mul_ w": lambda m, h, w: h.mul_(w), "div_ w": lambda m, h, w: h.div_(w), "add_ itself": lambda m, h, w: h.add_(h),
    "exp_": op("exp_"), "tanh_": op("tanh_"), "sin_": op("sin_"), "relu_": op("relu_"), "square_": op("square_"),
    "pow_": lambda m, h, w: h.abs_().pow_(3),
    "log_": lambda m, h, w: h.abs_().log_(), "sqrt_": lambda m, h, w: h.abs_().sqrt_(), "sigmoid_": op("sigmoid_"),
    "clamp_": lambda m, h, w: h.clamp_(-1, 1),
    "zero_": op("zero_"), "fill_": lambda m, h, w: h.fill_(2), "copy_": lambda m, h, w: h.copy_(w),
    "copy_ broadcast": lambda m, h, w: h.copy_(w[:1]),
    "chain": lambda m, h, w: h.mul_(2).add_(w).mul_(w).sin_(), "pow_ w": lambda m, h, w: h.abs_().pow_(w),
    "view": lambda m, h, w: h[1:].mul_(w[1:]), "setitem": lambda m, h, w: h.__setitem__(0, w[0]),
    "setitem number": lambda m, h, w: h.__setitem__((0, 1), 5.0),
    "view of a view": lambda m, h, w: h.t()[1:].t()[::2].mul_(w[::2, 1:]), "two views": lambda m, h,
    w: (h[0].add_(w[1]), h[:, 1].mul_(w[:, 0])),
    "view then base": lambda m, h, w: (h[0].mul_(3), h.mul_(w), h[1].zero_()), "view read later": lambda m, h,
    w: (lambda v: (h.mul_(w), h.add_(v.sum())))(h[1]),
    "+=": lambda m, h, w: h.__setitem__(1, h[1].__iadd__(w[0])),
}  # fmt: skip


@pytest.mark.parametrize("name", HISTORIES)
@pytest.mark.parametrize("plain", [False, True], ids=["recorded", "plain base"])
def test_gradients_through_writes(name, plain):
    """h is computed from x (or, plain, does not require grad) and written with w; torch's gradients of both."""
    data = random("histories").normal(size=(2, 3, 4)) + 0.1

    def run(m):
        x, w = (m.tensor(d, dtype=m.float64, requires_grad=True) for d in data)
        h = m.tensor(data[0] * 2, dtype=m.float64) if plain else x * 2
        HISTORIES[name](m, h, w)
        out = (h * m.tensor(data[1] * 3 + 1, dtype=m.float64)).sum()
        grads = m.autograd.grad(out, [x, w], allow_unused=True) if out.requires_grad else [None, None]
        return [h.tolist(), out.requires_grad, *(None if g is None else g.tolist() for g in grads)]

    ours, theirs = run(tgrad), run(torch)
    for a, b in zip(ours, theirs, strict=True):
        if a is None or b is None:  # torch gives zeros for some histories that lead nowhere
            assert not np.any(np.asarray(a if b is None else b))
        else:
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_the_old_value_is_copied_where_a_gradient_needs_it():
    """torch refuses h.mul_(h) in backward; here the product's factor is the value it had."""
    x = tgrad.tensor([1.0, 2.0], requires_grad=True)
    h = x * 3
    h.mul_(h)
    h.sin_()
    h.sum().backward()
    np.testing.assert_allclose(values(x.grad), 18 * np.array([1, 2]) * np.cos([9.0, 36.0]), rtol=1e-5)


def test_earlier_consumers_keep_the_old_history():
    x = tgrad.tensor([1.0, 2.0], requires_grad=True)
    h = x * 1
    y = h * 2
    h.mul_(3)
    (y.sum() + h.sum()).backward()
    assert x.grad.tolist() == [5.0, 5.0]


def test_a_plain_tensor_written_with_a_recorded_value_is_recorded():
    x, p = tgrad.tensor([1.0, 2.0], requires_grad=True), tgrad.zeros(2)
    p.add_(x)
    assert p.requires_grad and not p.is_leaf
    (p * 3).sum().backward()
    assert x.grad.tolist() == [3.0, 3.0]
    q = tgrad.zeros(2)
    with tgrad.no_grad():
        q.copy_(x)
    assert not q.requires_grad


def test_in_place_on_what_a_matmul_or_reshape_gave():
    """Their results own their memory, though tgrad makes them by a view."""
    x = tgrad.ones(2, 3, 4, requires_grad=True)
    for make in (lambda: x @ tgrad.ones(4, 2), lambda: x[0] @ tgrad.ones(4), lambda: x.permute(1, 0, 2).reshape(3, 8)):
        y = make()
        assert y._base is None
        y.mul_(2)
        x.grad = None
        y.sum().backward()
        assert x.grad is not None


def test_long_in_place_chains_do_not_recurse():
    x = tgrad.ones((), requires_grad=True)
    h = x * 1.0
    for _ in range(2000):
        h.add_(1.0)
    h.backward()
    assert x.grad.item() == 1.0
    base = tgrad.ones(2, requires_grad=True) * 1.0
    for _ in range(100):
        base[0].add_(1.0)
    base.sum().backward()
