"""Order statistics, running extremes, bins and masked_scatter against torch's."""

import numpy as np
import pytest
import torch

import tgrad as T
from tests.compare import random
from tests.twins import leaves, same
from tgrad.device import compute

NAN = float("nan")
VALUES = {
    "ties": random("ties").integers(0, 4, (3, 7, 5)).astype(np.float64),
    "long": random("long").standard_normal((2, 1030)),
    "nan": np.array([[1, NAN, 3, 0], [NAN, NAN, 2, NAN], [NAN] * 4]), "scalar": np.float64(2.5),
    "empty": np.zeros((3, 0)), "no rows": np.zeros((0, 3)), "one": np.ones((1, 1)),
    "int64": random("i").integers(-3, 5, (6, 4)), "uint8": random("u").integers(0, 5, (6, 4)).astype(np.uint8),
}  # fmt: skip


def equal(a, b):
    assert a.dtype.name == str(b.dtype).removeprefix("torch.") and tuple(a.shape) == tuple(b.shape)
    np.testing.assert_array_equal(a.detach().cpu().numpy(), b.detach().numpy())


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES)
def test_order_statistics_and_running_extremes(values):
    ours, theirs = T.tensor(values), torch.tensor(values)
    for name in ("median", "nanmedian"):
        equal(getattr(T, name)(ours), getattr(torch, name)(theirs))
    for d in range(-1, max(1, theirs.ndim) - 1):
        for name in ("cummax", "cummin"):  # of equal ones the last, as in PyTorch
            for a, b in zip(getattr(ours, name)(d), getattr(theirs, name)(d), strict=True):
                equal(a, b)
        n = theirs.shape[d] if theirs.ndim else 1
        calls = [(name, (d, keep)) for name in ("median", "nanmedian") for keep in (False, True)]
        calls += [("kthvalue", (k, d, True)) for k in {1, (n + 1) // 2, n}]
        for name, args in calls:
            if not n:
                with pytest.raises(IndexError, match=r"\(\): Expected reduction dim \d to have non-zero size"):
                    getattr(ours, name)(*args)
                continue
            a, b = getattr(ours, name)(*args), getattr(theirs, name)(*args)
            equal(a.values, b.values)
            if args[-1] and theirs.ndim and theirs.numel():  # which of equal ones is not said
                equal(T.gather(ours, d, a.indices), b.values)


@pytest.mark.parametrize("name, args", [("median", ()), ("nanmedian", ()), ("median", (1,)), ("nanmedian", (0, True)),
                                        ("kthvalue", (2, 0)), ("cummax", (1,)), ("cummin", (0,))])  # fmt: skip
def test_their_gradients(name, args):
    distinct = random(name).permutation(35).reshape(5, 7) * 0.5
    tied = np.array([[1.0, 2, 2, NAN, 2], [3, 2, 0, 5, 4]]) if name != "cummax" else distinct.T.copy()
    for values in (distinct,) if args and name != "cummax" else (distinct, tied):
        x, y = leaves(values)
        a, b = getattr(x, name)(*args), getattr(y, name)(*args)
        a, b = (t if isinstance(t, (T.Tensor, torch.Tensor)) else t[0] for t in (a, b))
        equal(a, b)
        g = random("g", tuple(b.shape)).standard_normal(tuple(b.shape))
        a.backward(T.tensor(g)), b.backward(torch.tensor(g))
        same(x.grad, y.grad)
    z = T.tensor(distinct, requires_grad=True)
    values = lambda t: (lambda r: r if isinstance(r, T.Tensor) else r[0])(getattr(t, name)(*args))
    assert T.autograd.gradgradcheck(values, (z,))


def test_errors_of_order_statistics():
    for call, says in ((lambda: T.ones(3).kthvalue(4), "selected number k out of range for dimension 0"),
                       (lambda: T.ones(3).kthvalue(0), "selected number k out of range"),
                       (lambda: T.ones(3).bool().median(), "median: not implemented for bool"),
                       (lambda: T.ones(3).bool().nanmedian(0), "nanmedian: not implemented for bool")):  # fmt: skip
        with pytest.raises(RuntimeError, match=says):
            call()


# --- bins ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8])
def test_searchsorted_and_bucketize(dtype):
    for rows, values in (((5,), (4, 3)), ((5,), ()), ((3, 7), (3, 2)), ((2, 3, 40), (2, 3, 70)), ((3, 0), (3, 2)),
                         ((0,), (2,)), ((1,), (0,)), ((1025,), (9,))):  # fmt: skip
        bounds = random("bounds", rows).integers(0, 9, rows).astype(dtype)
        given = random("given", values).integers(0, 9, values).astype(dtype)
        order = np.argsort(bounds, -1, kind="stable")
        for options in ({}, {"right": True}, {"side": "right", "out_int32": True}, {"side": "left"}):
            found = [lib.searchsorted(lib.tensor(np.sort(bounds, -1)), lib.tensor(given), **options)
                     for lib in (T, torch)]  # fmt: skip
            equal(*found)
            found = [lib.searchsorted(lib.tensor(bounds), lib.tensor(given), sorter=lib.tensor(order), **options)
                     for lib in (T, torch)]  # fmt: skip
            equal(*found)
    for value, bounds in ((1, [0, 1, 2]), (1.5, [0, 1, 2]), (1, [0.0, 1.0]), (NAN, [0.0, 1.0])):
        for right in (False, True):
            for given in (lambda lib, value=value: value, lambda lib, value=value: lib.tensor([value])):
                equal(*(lib.bucketize(given(lib), lib.tensor(bounds), right=right) for lib in (T, torch)))


BAD_SEARCHES = [
    (lambda lib: lib.searchsorted(lib.ones(2, 3), lib.ones(3, 2)), "first N-1 dimensions"),
    (lambda lib: lib.searchsorted(lib.ones(2, 3), 1.0), "can be a scalar only"),
    (lambda lib: lib.searchsorted(lib.ones(3), lib.ones(1), side="left", right=True), "set to opposites"),
    (lambda lib: lib.searchsorted(lib.ones(3), lib.ones(1), side="up"), "side can only be"),
    (lambda lib: lib.searchsorted(lib.ones(3), lib.ones(1), sorter=lib.tensor([0, 1])), "must have the same size"),
    (lambda lib: lib.searchsorted(lib.ones(3), lib.ones(1), sorter=lib.ones(3)), "must be a tensor of long dtype"),
    (lambda lib: lib.bucketize(lib.ones(1), lib.ones(2, 2)), "must be 1 dimension"),
    (lambda lib: lib.searchsorted(lib.ones(3).bool(), lib.ones(3).bool()), "not implemented for"),
    (lambda lib: lib.bincount(lib.tensor([-1])), "non-negative integral"),
    (lambda lib: lib.bincount(lib.tensor([[1]])), "non-negative integral"),
    (lambda lib: lib.bincount(lib.tensor([1.0])), "bincount"),
    (lambda lib: lib.bincount(lib.tensor([1]), minlength=-1), "minlength should be >= 0"),
    (lambda lib: lib.bincount(lib.tensor([1]), lib.ones(2)), "same length as input"),
    (lambda lib: lib.zeros(3).masked_scatter(lib.ones(3).bool(), lib.ones(2)), "Number of elements of source <"),
    (lambda lib: lib.zeros(3).masked_scatter(lib.ones(3), lib.ones(3)), "only supports boolean masks"),
    (lambda lib: lib.zeros(3).masked_scatter(lib.ones(3).bool(), lib.ones(3).double()), "to have same dtypes"),
]


@pytest.mark.parametrize("call, says", BAD_SEARCHES, ids=[s for _, s in BAD_SEARCHES])
def test_what_is_refused(call, says):
    for library in (T, torch):
        with pytest.raises(RuntimeError, match=says):
            call(library)


@pytest.mark.skipif(compute.type != "cpu", reason="on a GPU within check_indices")
def test_a_sorter_out_of_range():
    with pytest.raises(RuntimeError, match="sorter index out of range"):
        T.searchsorted(T.ones(3), T.ones(1), sorter=T.tensor([0, 1, 3]))


def test_bincount():
    for n, kind in ((0, np.int64), (50, np.int64), (300, np.uint8), (7, np.int32)):
        x = random("counted", n).integers(0, 9, n).astype(kind)
        for options in ({}, {"minlength": 12}):
            equal(T.bincount(T.tensor(x), **options), torch.bincount(torch.tensor(x), **options))
        for weight in (np.float32, np.float64, np.int64):
            w = random("weights", n).integers(-4, 5, n).astype(weight)
            equal(T.bincount(T.tensor(x), T.tensor(w)), torch.bincount(torch.tensor(x), torch.tensor(w)))


# --- masked_scatter --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape, mask", [((5, 7), (5, 7)), ((5, 7), (7,)), ((7,), (5, 7)), ((), ()), ((3,), ()),
                                         ((0, 3), (3,))])  # fmt: skip
def test_masked_scatter(shape, mask):
    chosen = random("mask", mask).random(mask) > 0.4
    (x, y), (s, u) = leaves(random("x", shape).standard_normal(shape)), leaves(random("s").standard_normal((6, 7)))
    m, n = T.tensor(chosen), torch.tensor(chosen)
    a, b = (x * 1).masked_scatter(m, s.T), (y * 1).masked_scatter(n, u.T)
    equal(a, b)
    g = random("g", tuple(b.shape)).standard_normal(tuple(b.shape))
    a.backward(T.tensor(g)), b.backward(torch.tensor(g))
    same(x.grad, y.grad)
    same(s.grad, u.grad)
    if tuple(b.shape) == shape:
        c, d = x * 1, y * 1
        c.masked_scatter_(m, s), d.masked_scatter_(n, u)
        equal(c, d)
        x.grad = y.grad = s.grad = u.grad = None
        c.backward(T.tensor(g)), d.backward(torch.tensor(g))
        same(x.grad, y.grad)
        same(s.grad, u.grad)
