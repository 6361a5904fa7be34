"""Cross-entropy of parts of the logits: the losses of some rows, and, in place, the gradient of some columns.

A part holds M rows of N scores, one after another. Between the two only the log-sum-exp of each row is kept. The losses
are those of `softmax.cross_entropy`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels import libm
from tgrad.kernels.launch import Launch, prepare
from tgrad.kernels.program import TYPES
from tgrad.kernels.rows import row_numbers, tile
from tgrad.kernels.softmax import prepare_rows


@triton.jit
def column_gradients(
    x, g, target, lse, count, weights, smoothing, first, M, N, CLASSES, IGNORE, stride_g, stride_target,
    MEAN: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """The gradient of `cross_entropy` by the columns from `first` on, which x holds, times g[m], divided by `count` if
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
    if len(smoothing) > 0:
        hot = hot * smoothing[0]
        arriving = arriving * smoothing[1]
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
        if len(smoothing) > 0:
            p = p * every[:, None]
            if len(weights) > 0:
                p = p - tl.load(weights[0] + (first + n), mask=n < N, other=0).to(TYPE)[None, :]
            else:
                p = p - 1.0
            d += p * arriving[:, None]
        d = tl.where(counts[:, None], d, 0.0)
        tl.store(x + at, d.to(x.dtype.element_ty), mask=mask)


def prepare_losses(
    loss: str, kind: str, target: str, weights: str | None, sizes: tuple[int, int], ignore_index: int, stride: int, *,
    counted: bool, smooth: bool, accumulator: str, aligned: bool,
) -> Launch:  # fmt: skip
    """A launch of `cross_entropy` over a part of (rows, classes) `sizes`.

    The callable takes the addresses, without those of the counts and of the weights if there are none, then, if
    `smooth`, the two numbers of the smoothing.

    Args:
        loss, kind, target, weights: Triton types of the losses, the scores, the targets and the weights of classes.
        stride: of the targets.
    """
    m, n = sizes
    pointers = (loss, (accumulator,) * counted, (accumulator,), kind, target, () if weights is None else (weights,))
    return prepare_rows(
        "cross_entropy", pointers, m, n, (ignore_index,), (m,), [(n,), (stride,)], (1,), {}, accumulator=accumulator,
        aligned=aligned, wide=m * n >= 2**31, numbers=((accumulator,) * (2 * smooth),), name="linear_cross_entropy",
    )  # fmt: skip


def prepare_gradients(
    kind: str, g: str, target: str, weights: str | None, sizes: tuple[int, int], classes: int, ignore_index: int,
    strides: tuple[int, int], *, mean: bool, smooth: bool, accumulator: str, aligned: bool,
) -> Launch:  # fmt: skip
    """A launch of `column_gradients` over a part of (rows, columns) `sizes`.

    The callable takes the addresses, without that of the weights if there are none, then, if
    `smooth`, the two numbers of the smoothing, then `first`.

    Args:
        kind, g, target, weights: Triton types of the scores, the gradient, the targets and the weights of classes.
        strides: of g and the targets.
    """
    pointers = (kind, g, target, accumulator, accumulator)
    each = () if weights is None else ("*" + weights,)
    runtime = (*("*" + t for t in pointers), each, (accumulator,) * (2 * smooth), "i64")
    fixed = (*sizes, classes, ignore_index, *strides)
    m, n = sizes
    bm, bn = tile(m, n)
    constexprs = {"MEAN": mean, "TYPE": TYPES[accumulator], "WIDE": m * n >= 2**31, "BM": bm, "BN": bn}
    return prepare(
        column_gradients, (triton.cdiv(m, bm),), runtime, fixed, constexprs, name="linear_cross_entropy_backward",
        warps=8 if bm * bn >= 4096 else 4, aligned=aligned,
    )  # fmt: skip
