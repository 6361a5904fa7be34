"""Cross-entropy of parts of the logits: the losses of some rows, and, in place, the gradient of some columns.

A part holds M rows of N scores, one after another. Between the two only the log-sum-exp of each row is kept.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from tgrad.kernels import libm
from tgrad.kernels.launch import Launch, prepare
from tgrad.kernels.program import TYPES
from tgrad.kernels.rows import row_numbers, tile
from tgrad.kernels.softmax import log_sum_exp


@triton.jit
def row_losses(
    loss, counted, lse, x, target, weights, keep, share, M, N, IGNORE, stride_target,
    SMOOTH: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """loss[m] = keep * w[t] * (lse - x[m, t]) + share * sum over n of w[n] * (lse - x[m, n]) for t = target[m],
    counted[m] = w[t]; both 0 where t is IGNORE. A target outside the row gives nan.

    weights: one pointer, to w, or none (ones); SMOOTH: whether there is a second term.
    """
    m = row_numbers(WIDE, BM)
    valid = m < M
    rows = m * N
    t = tl.load(target + m * stride_target, mask=valid, other=0)
    top, log_total = log_sum_exp(x, rows, valid, 1, N, TYPE, BM, BN)
    inside = (t >= 0) & (t < N)
    counts = t != IGNORE
    picked = tl.load(x + (rows + t), mask=valid & inside, other=0).to(TYPE)
    value = log_total - (picked - top)
    factor = counts.to(TYPE)
    if len(weights) > 0:
        each = tl.load(weights[0] + t, mask=valid & inside, other=0).to(TYPE)
        value = value * each
        factor = tl.where(counts, each, 0.0)
    if SMOOTH:
        spread = tl.zeros((BM,), TYPE)
        for start in range(0, N, BN):
            n = (start + tl.arange(0, BN)).to(rows.dtype)
            mask = valid[:, None] & (n[None, :] < N)
            v = tl.load(x + (rows[:, None] + n[None, :]), mask=mask, other=0).to(TYPE)
            d = log_total[:, None] - (v - top[:, None])
            if len(weights) > 0:
                d = d * tl.load(weights[0] + n, mask=n < N, other=0).to(TYPE)[None, :]
            spread += tl.sum(tl.where(mask, d, 0.0), 1)
        value = keep * value + share * spread
    value = tl.where(inside, value, float("nan"))
    tl.store(loss + m, tl.where(counts, value, 0.0), mask=valid)
    tl.store(counted + m, factor, mask=valid)
    tl.store(lse + m, top + log_total, mask=valid)


@triton.jit
def column_gradients(
    x, g, target, lse, count, weights, keep, share, first, M, N, CLASSES, IGNORE, stride_g, stride_target,
    MEAN: tl.constexpr, SMOOTH: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """The gradient of `row_losses` by the columns from `first` on, which x holds, times g[m], divided by `count` if
    MEAN; written over x.
    """
    m = row_numbers(WIDE, BM)
    valid = m < M
    rows = m * N
    t = tl.load(target + m * stride_target, mask=valid, other=0)
    counts = t != IGNORE
    inside = (t >= 0) & (t < CLASSES)
    total = tl.load(lse + m, mask=valid, other=0)
    arriving = tl.load(g + m * stride_g, mask=valid, other=0).to(TYPE)
    if MEAN:
        arriving = libm.div(arriving, tl.load(count).to(TYPE) + tl.zeros((BM,), TYPE))
    arriving = tl.where(counts, arriving, 0.0)
    hot = arriving
    if len(weights) > 0:
        hot = hot * tl.load(weights[0] + t, mask=valid & inside, other=0).to(TYPE)
    if SMOOTH:
        hot = hot * keep
        arriving = arriving * share
        every = tl.zeros((1,), TYPE) + CLASSES
        if len(weights) > 0:
            every = tl.zeros((1,), TYPE)
            for start in range(0, CLASSES, BN):
                n = start + tl.arange(0, BN)
                every += tl.sum(tl.load(weights[0] + n, mask=n < CLASSES, other=0).to(TYPE)[None, :], 1)
    for start in range(0, N, BN):
        n = (start + tl.arange(0, BN)).to(rows.dtype)
        mask = valid[:, None] & (n[None, :] < N)
        at = rows[:, None] + n[None, :]
        p = libm.exp(tl.load(x + at, mask=mask, other=0).to(TYPE) - total[:, None])
        d = (p - (first + n[None, :] == t[:, None]).to(TYPE)) * hot[:, None]
        if SMOOTH:
            p = p * every[:, None]
            if len(weights) > 0:
                p = p - tl.load(weights[0] + (first + n), mask=n < N, other=0).to(TYPE)[None, :]
            else:
                p = p - 1.0
            d += p * arriving[:, None]
        d = tl.where(counts[:, None], d, 0.0)
        tl.store(x + at, d.to(x.dtype.element_ty), mask=mask)


def prepare_losses(
    kind: str, target: str, weights: str | None, sizes: tuple[int, int], ignore_index: int, stride: int, *,
    smooth: bool, accumulator: str, aligned: bool,
) -> Launch:  # fmt: skip
    """A launch of `row_losses` over a part of (rows, classes) `sizes`.

    The callable takes the addresses, without that of the weights if there are none, then `keep` and `share`.

    Args:
        kind, target, weights: Triton types of the scores, the targets and the weights of classes.
        stride: of the targets.
    """
    pointers = (accumulator,) * 3 + (kind, target)
    runtime = (*("*" + t for t in pointers), _tuple(weights), accumulator, accumulator)
    fixed = (*sizes, ignore_index, stride)
    return _prepare(row_losses, runtime, fixed, sizes, {"SMOOTH": smooth}, accumulator, aligned)


def prepare_gradients(
    kind: str, g: str, target: str, weights: str | None, sizes: tuple[int, int], classes: int, ignore_index: int,
    strides: tuple[int, int], *, mean: bool, smooth: bool, accumulator: str, aligned: bool,
) -> Launch:  # fmt: skip
    """A launch of `column_gradients` over a part of (rows, columns) `sizes`.

    The callable takes the addresses, without that of the weights if there are none, then `keep`, `share` and `first`.

    Args:
        kind, g, target, weights: Triton types of the scores, the gradient, the targets and the weights of classes.
        strides: of g and the targets.
    """
    pointers = (kind, g, target, accumulator, accumulator)
    runtime = (*("*" + t for t in pointers), _tuple(weights), accumulator, accumulator, "i64")
    fixed = (*sizes, classes, ignore_index, *strides)
    return _prepare(column_gradients, runtime, fixed, sizes, {"MEAN": mean, "SMOOTH": smooth}, accumulator, aligned)


def _tuple(weights: str | None) -> tuple[str, ...]:
    return () if weights is None else ("*" + weights,)


def _prepare(
    kernel: Any, runtime: tuple, fixed: tuple[int, ...], sizes: tuple[int, int], constants: dict[str, bool],
    accumulator: str, aligned: bool,
) -> Launch:  # fmt: skip
    m, n = sizes
    bm, bn = tile(m, n)
    constexprs = {**constants, "TYPE": TYPES[accumulator], "WIDE": m * n >= 2**31, "BM": bm, "BN": bn}
    name = "linear_cross_entropy" if kernel is row_losses else "linear_cross_entropy_backward"
    warps = 8 if bm * bn >= 4096 else 4
    return prepare(kernel, (triton.cdiv(m, bm),), runtime, fixed, constexprs, name=name, warps=warps, aligned=aligned)
