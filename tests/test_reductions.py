"""Reductions beyond sum: zeros in products, places of extremes, accuracy over huge rows, and what torch refuses."""

import time

import numpy as np
import pytest
import torch

import tgrad
from tests.compare import FLOATS, INTEGERS, TORCH, assert_same, random, values

ALL = FLOATS + INTEGERS


def pair(data, dtype=tgrad.float64, requires_grad=False):
    x = tgrad.tensor(data, dtype=dtype, requires_grad=requires_grad)
    u = torch.tensor(np.asarray(data)).to(TORCH[dtype])
    return x, u.requires_grad_(requires_grad)


# --- products with zeros ---------------------------------------------------------------------------------------------
ROWS = {
    "none": [[1.5, -2.0, 3.0]], "one": [[1.5, 0.0, 3.0]], "two": [[0.0, 2.0, 0.0]], "three": [[0.0, 0.0, 0.0]],
    "mixed": [[1.5, 0.0, 3.0], [0.0, 2.0, 0.0], [1.0, 2.0, 3.0]], "first": [[0.0, 2.0, 3.0]], "last": [[1.0, 2.0, 0.0]],
}  # fmt: skip


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("name, dim", [("prod", 1), ("prod", None), ("cumprod", 1), ("cumprod", 0)])
def test_derivatives_of_products_with_zeros(name, dim, rows):
    """First, second and third derivatives are torch's, whatever the number of zeros; fused and recorded."""
    args = () if dim is None else (dim,)
    x, u = pair(rows, requires_grad=True)
    g, h = (random(k, name).normal(size=np.shape(rows)) for k in "gh")
    y, v = getattr(tgrad, name)(x, *args), getattr(torch, name)(u, *args)
    w = np.resize(g, tuple(v.shape))
    (fused,) = tgrad.autograd.grad(y, x, tgrad.tensor(w, dtype=tgrad.float64), retain_graph=True)
    (first,) = tgrad.autograd.grad(y, x, tgrad.tensor(w, dtype=tgrad.float64), create_graph=True)
    (want,) = torch.autograd.grad(v, u, torch.tensor(w), create_graph=True)
    np.testing.assert_allclose(values(fused), want.detach().numpy(), rtol=1e-13)
    np.testing.assert_allclose(values(first), want.detach().numpy(), rtol=1e-13)
    if not want.requires_grad:
        return
    (second,) = tgrad.autograd.grad((first * tgrad.tensor(h)).sum(), x, create_graph=True)
    (wanted,) = torch.autograd.grad((want * torch.tensor(h)).sum(), u, create_graph=True)
    np.testing.assert_allclose(values(second), wanted.detach().numpy(), rtol=1e-12, atol=1e-13)


# --- extremes --------------------------------------------------------------------------------------------------------
@pytest.mark.anywhere
@pytest.mark.parametrize("dtype", ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["max", "min"])
def test_places_of_extremes(name, dtype):
    """The first of those that tie, in every dtype; nan wins."""
    data = random("places").integers(0, 2 if dtype is tgrad.bool else 4, size=(9, 40)).astype(float)
    if dtype.is_floating_point:
        data[0, 7] = data[0, 3] = np.nan
        data[1] = np.inf if name == "min" else -np.inf
    x, u = pair(data, dtype)
    for dim in (0, 1, -1):
        got, want = getattr(tgrad, name)(x, dim), getattr(torch, name)(u, dim)
        assert_same(got.values, want.values)
        if dim:
            if dtype is not tgrad.bool:
                assert_same(got.indices, want.indices)
            assert got.indices.tolist() == (np.argmax if name == "max" else np.argmin)(data, axis=dim).tolist()
    if dtype is not tgrad.bool:
        arg = getattr(tgrad, f"arg{name}")
        assert_same(arg(x), getattr(torch, f"arg{name}")(u))
        assert_same(arg(x.T), torch.tensor((np.argmax if name == "max" else np.argmin)(data.T)))
        assert_same(arg(x, 1, keepdim=True), getattr(torch, f"arg{name}")(u, 1, keepdim=True))
    values_, indices = getattr(x, name)(dim=1, keepdim=True)
    assert values_.shape == indices.shape == (9, 1)


def test_places_beyond_one_block():
    """Ties in different blocks: the earlier place wins."""
    x = np.zeros((1, 200_001), np.float32)
    x[0, [70_000, 131_072 + 3, 200_000]] = 1
    assert tgrad.tensor(x).argmax(1).tolist() == [70_000] and tgrad.tensor(-x).argmin().item() == 70_000


@pytest.mark.parametrize("shape, dim", [((3, 1000), 1), ((1000, 3), 0), ((3, 50, 40), None)], ids=str)
def test_places_in_pieces(shape, dim, monkeypatch):
    """In two passes, as on a GPU where there are few results."""
    from tgrad.kernels import reduce
    from tgrad.ops import extremes

    monkeypatch.setattr(reduce, "chunks", lambda m, n, bm, bn: 3)
    monkeypatch.setattr(reduce, "tile", lambda m, n, across: (2, 16))
    data = random("pieces", shape).integers(0, 5, size=shape).astype(np.float32)
    for found in (data, np.where(random("nan").random(shape) < 0.01, np.nan, data).astype(np.float32)):
        x = tgrad.tensor(found)
        extremes.max_op.plans.clear()
        extremes.min_op.plans.clear()
        assert x.argmax(dim).tolist() == found.argmax(dim).tolist()
        assert x.argmin(dim).tolist() == found.argmin(dim).tolist()
        if dim is not None:
            assert_same(x.max(dim).values, torch.tensor(found.max(dim)))
    extremes.max_op.plans.clear()
    extremes.min_op.plans.clear()


def test_max_of_two_tensors_and_of_all():
    x, y = tgrad.tensor([1.0, 5.0], requires_grad=True), tgrad.tensor([3.0, 2.0])
    assert tgrad.max(x, y).tolist() == [3.0, 5.0] and x.min(other=y).tolist() == [1.0, 2.0]
    tied = tgrad.tensor([2.0, 2.0, 1.0], requires_grad=True)
    assert tgrad.autograd.grad(tied.max(), tied)[0].tolist() == [0.5, 0.5, 0.0]
    assert tgrad.autograd.grad(tied.max(0).values, tied)[0].tolist() == [1.0, 0.0, 0.0]


# --- accuracy and size -----------------------------------------------------------------------------------------------
def relative(got, want):
    return float(np.max(np.abs(values(got).astype(np.float64) - want) / np.abs(want)))


@pytest.mark.anywhere
@pytest.mark.parametrize("shape, dim", [((4, 100_000), 1), ((100_000, 4), 0), ((100_000, 4), 1)], ids=str)
def test_huge_rows_are_accurate(shape, dim):
    """Errors in float32, far from zero: as of one rounding of the result times a small number, whatever the length."""
    data = (random("huge", shape).normal(size=shape) + 1000).astype(np.float32)
    wide, x = data.astype(np.float64), tgrad.tensor(data)
    n = shape[dim]
    assert relative(x.sum(dim), wide.sum(dim)) < 1e-6
    assert relative(x.var(dim), wide.var(dim, ddof=1)) < 1e-5, "one pass would have no digits"
    assert relative(x.std(dim, unbiased=False), wide.std(dim)) < 1e-5
    assert relative(tgrad.norm(x, 2, dim), np.linalg.norm(wide, axis=dim)) < 1e-6
    peak = wide.max(dim, keepdims=True)
    want = np.log(np.exp(wide - peak).sum(dim)) + peak.squeeze(dim)
    assert relative(x.logsumexp(dim), want) < 1e-6
    assert relative(x.cumsum(dim), wide.cumsum(dim)) < (1e-4 if n > 1000 else 1e-6)
    near = (1 + (wide - 1000) * 1e-4).astype(np.float32)
    assert relative(tgrad.prod(tgrad.tensor(near), dim), near.astype(np.float64).prod(dim)) < 1e-2 * min(1.0, n / 1000)
    assert tgrad.argmax(x, dim).tolist() == data.argmax(dim).tolist()


@pytest.mark.parametrize("dtype", [tgrad.float16, tgrad.bfloat16], ids=lambda d: d.name)
def test_half_types_accumulate_in_float32(dtype):
    x = tgrad.ones(5000, dtype=dtype)
    assert x.cumsum(0)[-1].item() == tgrad.tensor(5000.0, dtype=dtype).item()
    assert tgrad.norm(tgrad.full((10_000,), 10.0, dtype=dtype)).item() == 1000.0
    assert tgrad.var(tgrad.tensor([1.0, 3.0] * 2000, dtype=dtype), correction=0).item() == 1.0


def test_scans_of_huge_tensors_are_quick():
    x = tgrad.ones(1000, 1000)
    x.cumsum(1)
    start = time.perf_counter()
    x.cumsum(0)
    x.cumprod(1)
    assert time.perf_counter() - start < 5


@pytest.mark.anywhere
@pytest.mark.parametrize("dtype", ALL, ids=lambda d: d.name)
def test_truth_and_counts(dtype):
    x, u = pair([[0, 0, 0], [1, 0, 1], [1, 1, 1]], dtype)
    for name in ("any", "all"):
        assert_same(getattr(x, name)(), getattr(u, name)())
        assert_same(getattr(x, name)(1), getattr(u, name)(1))
        assert_same(getattr(x[:0], name)(), getattr(u[:0], name)())
    assert_same(tgrad.count_nonzero(x, 0), torch.count_nonzero(u, 0))
    whole = tgrad.full((300,), 1, dtype=tgrad.uint8)
    assert whole.any().item() == 1 and whole[:256].any().item() == 1


def test_special_values():
    for data in ([np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf], [np.inf, -np.inf], [0.0, 0.0]):
        x, u = pair(data)
        for name in ("logsumexp", "cumsum", "cumprod", "prod", "var", "norm", "nansum", "any", "all"):
            args = (0,) if name in ("logsumexp", "cumsum", "cumprod") else ()
            assert_same(getattr(x, name)(*args), getattr(u, name)(*args), f"{name} of {data}")


def test_var_of_one_element_is_nan_and_warns():
    with pytest.warns(UserWarning, match="degrees of freedom"):
        assert np.isnan(tgrad.ones(1).var().item())
    x = tgrad.tensor([2.0, 2.0], requires_grad=True)
    assert tgrad.autograd.grad(x.std(), x)[0].tolist() == [0.0, 0.0]
    spread, mean = tgrad.var_mean(tgrad.tensor([1.0, 3.0]))
    assert (spread.item(), mean.item()) == (2.0, 2.0)
    assert tgrad.std_mean(tgrad.tensor([1.0, 3.0]), unbiased=False)[0].item() == 1.0


REFUSED = [
    (lambda x: x.max(3), IndexError, "Dimension out of range"), (lambda x: x[:0].max(), RuntimeError, "non-zero|numel"),
    (lambda x: x[:0].argmax(0), IndexError, "argmax.*non-zero size"),
    (lambda x: x.bool().argmax(), RuntimeError, "argmax: dtype bool is not supported; cast"),
    (lambda x: x.long().var(), RuntimeError, "var: dtype int64 is not supported; cast to a floating dtype"),
    (lambda x: x.long().norm(), RuntimeError, "norm: dtype int64 is not supported"),
    (lambda x: x.cumsum(2), IndexError, "Dimension out of range"),
    (lambda x: x.prod((0, 1)), TypeError, "'dim' must be"),
    (lambda x: tgrad.linalg.vector_norm(x[:0], float("inf")), RuntimeError, "identity"),
    (lambda x: x.norm("nuc"), RuntimeError, "'nuc' is not supported"),
]  # fmt: skip


@pytest.mark.parametrize("call, kind, words", REFUSED, ids=[words for _, _, words in REFUSED])
def test_refusals(call, kind, words):
    with pytest.raises(kind, match=words):
        call(tgrad.ones(3, 4))
