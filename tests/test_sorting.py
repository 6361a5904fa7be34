"""Sorting, compared with torch and numpy: values, indices, stability, nan, any length."""

import numpy as np
import pytest
import torch

import tgrad
from tests.compare import FLOATS, INTEGERS, TORCH, assert_close, assert_same, pair, random
from tgrad.kernels import sort as kernels
from tgrad.ops import sorting

pytestmark = pytest.mark.anywhere


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=lambda d: d.name)
def test_stable_with_many_equals(dtype, descending):
    values = random("ties", dtype.name).integers(0, 5, size=(4, 77))
    ours, theirs, _ = pair(values, dtype)
    got, want = tgrad.sort(ours, 1, descending), torch.sort(theirs, dim=1, descending=descending, stable=True)
    assert_same(got.values, want.values)
    assert_same(got.indices, want.indices)


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 63, 64, 65, 127, 1000, 4097])
def test_any_length(length):
    x = random("length", length).integers(0, length, size=(2, length)).astype(np.float32)
    got = tgrad.tensor(x).sort()
    order = np.argsort(x, 1, kind="stable")
    assert np.array_equal(got.indices.cpu().numpy(), order)
    assert np.array_equal(got.values.cpu().numpy(), np.take_along_axis(x, order, 1))


def test_a_long_row():
    x = random("long").normal(size=100_000)
    got = tgrad.tensor(x).sort(descending=True)
    assert np.array_equal(got.values.cpu().numpy(), np.sort(x)[::-1])


@pytest.mark.parametrize("descending", [False, True])
def test_special_values(descending):
    data = [1.0, np.nan, -np.inf, 0.0, -0.0, np.inf, np.nan, -1.0] * 20
    for dtype in FLOATS:
        ours, theirs = tgrad.tensor(data, dtype=dtype), torch.tensor(data).to(TORCH[dtype])
        got, want = ours.sort(descending=descending), torch.sort(theirs, descending=descending, stable=True)
        assert_same(got[0], want[0])
        assert_same(got[1], want[1])


def test_extremes_of_integers():
    data = [2**63 - 1, -(2**63), 0, -1, 1]
    assert tgrad.tensor(data).sort()[0].tolist() == sorted(data)
    assert tgrad.tensor([255, 0, 128], dtype=tgrad.uint8).argsort(descending=True).tolist() == [0, 2, 1]


@pytest.mark.parametrize("way", ["plain", "transposed", "sliced", "expanded", "rotated"])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_dimensions_and_strides(dim, way):
    ours, theirs, _ = pair(random("strides", way).normal(size=(3, 5, 7)), tgrad.float64, way)
    got, want = ours.sort(dim), torch.sort(theirs, dim=dim, stable=True)
    assert_same(got.values, want.values)
    assert_same(got.indices, want.indices)
    got.values.add_(1)  # a result like any other, that may be written
    assert got.values._base is None


def test_topk():
    ours, theirs, _ = pair(random("topk").permutation(60).reshape(3, 20), tgrad.float32)
    for k in (0, 1, 7, 20):
        for largest in (True, False):
            got, want = ours.topk(k, largest=largest), theirs.topk(k, largest=largest)
            assert_same(got.values, want.values)
            assert_same(got.indices, want.indices)
    for k in (-1, 21):
        with pytest.raises(RuntimeError, match="selected index k out of range"):
            ours.topk(k)


@pytest.mark.parametrize("k", [0, 1, 5, 70])
@pytest.mark.parametrize("length", [255, 256, 257, 1500, 5000])
def test_topk_of_long_rows(length, k):
    """In the order of a stable sort, with many equals, nan among them, and gradients."""
    data = random("long topk", length).integers(0, 40, size=(2, length)).astype(np.float64)
    data[0, ::97] = np.nan
    ours, theirs, _ = pair(data, tgrad.float64, "transposed", True)
    for largest in (True, False):
        got, want = ours.topk(k, 1, largest), torch.sort(theirs, dim=1, descending=largest, stable=True)
        assert_same(got.indices, want.indices[:, :k])
        assert_same(got.values, want.values[:, :k])
        w = random("weights").normal(size=(2, k))
        (a,) = tgrad.autograd.grad((got.values * tgrad.tensor(w)).sum(), ours)
        (b,) = torch.autograd.grad((want.values[:, :k] * torch.tensor(w)).sum(), theirs)
        assert_same(a, b)
    assert_same(ours.t().topk(k, 0).indices, torch.sort(theirs, dim=1, descending=True, stable=True)[1][:, :k].t())


def test_scalars_and_empty():
    for values in (tgrad.tensor(3.0), tgrad.zeros(0), tgrad.zeros(2, 0)):
        got = tgrad.sort(values)
        assert got.values.shape == got.indices.shape == values.shape
    assert tgrad.topk(tgrad.tensor(3.0), 1).values.item() == 3.0


def test_gradients_follow_the_indices():
    ours, theirs, _ = pair(random("gradient").integers(0, 3, size=(4, 9)), tgrad.float64, "plain", True)
    got, want = ours.sort(0, descending=True), torch.sort(theirs, dim=0, descending=True, stable=True)
    w = torch.arange(36.0, dtype=torch.float64).reshape(4, 9)
    (a,) = tgrad.autograd.grad((got.values * tgrad.tensor(w.numpy())).sum(), ours)
    (b,) = torch.autograd.grad((want.values * w).sum(), theirs)
    assert_close(a, b)


def test_names_of_the_results():
    values, indices = tgrad.sort(tgrad.tensor([2.0, 1.0]))
    assert isinstance(sorting.topk(values, 1), sorting.Sorted)
    assert values.tolist() == [1.0, 2.0] and indices.tolist() == [1, 0] and indices.dtype is tgrad.int64


@pytest.mark.parametrize("blocks", [(2, 2, 2), (8, 4, 2), (16, 8, 8)])
def test_tiles(blocks, monkeypatch):
    """Short runs and many merges."""
    from tgrad.op import forget_plans

    monkeypatch.setattr(kernels, "tile", lambda n: blocks)
    forget_plans()
    x = random("tiles").integers(0, 20, size=(3, 53))
    assert np.array_equal(tgrad.tensor(x).argsort().cpu().numpy(), np.argsort(x, 1, kind="stable"))
    forget_plans()
