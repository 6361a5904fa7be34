"""Kernels over rows: softmax, log-softmax and cross-entropy, forward and backward.

A row is `N` elements that lie `stride` apart; row m begins at the offset of m's coordinates over the other dimensions.
Rows of any length are walked in blocks of BN columns, BM rows at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels import libm
from tgrad.kernels.launch import Launch, Static, multiple, multiples, prepare, strides
from tgrad.kernels.program import TYPES
from tgrad.kernels.rows import block, columns, longest, row_numbers, row_offsets, tile, warps
from tgrad.kernels.scalar import maximum


@triton.jit
def extended(top, total, v):
    """A maximum, and the sum of exp(x - maximum), of what gave `top` and `total` and of the block v too."""
    new = tl.maximum(top, tl.reduce(v, 1, maximum), propagate_nan=tl.PropagateNan.ALL)
    safe = tl.where(new == float("-inf"), 0.0, new)  # a row of -inf so far: exp(-inf - 0), not exp(-inf + inf)
    return new, total * libm.exp(top - safe) + tl.sum(libm.exp(v - safe[:, None]), 1)


@triton.jit
def log_sum_exp_of(v, TYPE: tl.constexpr, BM: tl.constexpr):
    """`log_sum_exp` of BM rows that are the block v."""
    top, total = extended(tl.full((BM,), float("-inf"), TYPE), tl.zeros((BM,), TYPE), v)
    return top, libm.log(total)


@triton.jit
def log_sum_exp(x, rows, valid, stride, N, TYPE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """(maximum, log of the sum of exp(x - maximum)) of BM rows, in one pass with a running maximum."""
    top = tl.full((BM,), float("-inf"), TYPE)
    total = tl.zeros((BM,), TYPE)
    for start in range(0, N, BN):
        n, mask = columns(start, rows, valid, N, BN)
        top, total = extended(top, total, block(x, rows, n, stride, mask, TYPE, float("-inf")))
    return top, libm.log(total)


@triton.jit
def softmax(
    out, x, M, N, stride_out, stride_x, shape, out_strides, x_strides,
    LOG: tl.constexpr, TYPE: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """out = softmax of x's rows, or its logarithm. WHOLE, here and below: a row is one block, which is read once."""
    m = row_numbers(WIDE, BM)
    valid = m < M
    rows = row_offsets(m, shape, x_strides, NDIM)
    to = row_offsets(m, shape, out_strides, NDIM)
    n, mask = columns(0, rows, valid, N, BN)
    if WHOLE:
        v = block(x, rows, n, stride_x, mask, TYPE, float("-inf"))
        top, log_total = log_sum_exp_of(v, TYPE, BM)
    else:
        top, log_total = log_sum_exp(x, rows, valid, stride_x, N, TYPE, BM, BN)
    for start in range(0, BN if WHOLE else N, BN):
        if not WHOLE:
            n, mask = columns(start, rows, valid, N, BN)
            v = block(x, rows, n, stride_x, mask, TYPE, float("-inf"))
        y = (v - top[:, None]) - log_total[:, None]
        if not LOG:
            y = libm.exp(y)
        tl.store(out + (to[:, None] + n[None, :] * stride_out), y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def softmax_backward(
    dx, g, y, M, N, stride_dx, stride_g, stride_y, shape, dx_strides, g_strides, y_strides,
    LOG: tl.constexpr, TYPE: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """From the result y: g - exp(y) * sum(g) for the logarithm, (g - sum(g * y)) * y for softmax itself."""
    m = row_numbers(WIDE, BM)
    valid = m < M
    to = row_offsets(m, shape, dx_strides, NDIM)
    g_rows = row_offsets(m, shape, g_strides, NDIM)
    y_rows = row_offsets(m, shape, y_strides, NDIM)
    total = tl.zeros((BM,), TYPE)
    n, mask = columns(0, g_rows, valid, N, BN)
    if WHOLE:
        v = block(g, g_rows, n, stride_g, mask, TYPE, 0)
        s = block(y, y_rows, n, stride_y, mask, TYPE, 0)
        total += tl.sum(v if LOG else v * s, 1)
    else:
        for start in range(0, N, BN):
            n, mask = columns(start, g_rows, valid, N, BN)
            v = block(g, g_rows, n, stride_g, mask, TYPE, 0)
            if not LOG:
                v = v * block(y, y_rows, n, stride_y, mask, TYPE, 0)
            total += tl.sum(v, 1)
    for start in range(0, BN if WHOLE else N, BN):
        if not WHOLE:
            n, mask = columns(start, g_rows, valid, N, BN)
            v = block(g, g_rows, n, stride_g, mask, TYPE, 0)
            s = block(y, y_rows, n, stride_y, mask, TYPE, 0)
        if LOG:
            d = v - libm.exp(s) * total[:, None]
        else:
            d = (v - total[:, None]) * s
        tl.store(dx + (to[:, None] + n[None, :] * stride_dx), d.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def cross_entropy(
    loss, kept, x, target, M, N, IGNORE, stride_x, shape, x_strides, target_strides,
    TYPE: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """loss[m] = log-sum-exp of row m minus its element target[m], kept[m] = 1; both 0 where target[m] is IGNORE.

    A target outside the row gives nan.
    """
    m = row_numbers(WIDE, BM)
    valid = m < M
    rows = row_offsets(m, shape, x_strides, NDIM)
    t = tl.load(target + row_offsets(m, shape, target_strides, NDIM), mask=valid, other=0)
    top, log_total = log_sum_exp(x, rows, valid, stride_x, N, TYPE, BM, BN)
    inside = (t >= 0) & (t < N)
    picked = tl.load(x + (rows + t * stride_x), mask=valid & inside, other=0).to(TYPE)
    value = log_total - (picked - top)
    value = tl.where(inside, value, float("nan"))
    counts = t != IGNORE
    tl.store(loss + m, tl.where(counts, value, 0.0), mask=valid)
    tl.store(kept + m, counts.to(kept.dtype.element_ty), mask=valid)


@triton.jit
def cross_entropy_backward(
    dx, g, x, target, count, M, N, IGNORE, stride_dx, stride_x, shape, dx_strides, g_strides, x_strides, target_strides,
    MEAN: tl.constexpr, TYPE: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """dx = (softmax(x) - one_hot(target)) * g, divided by the number of kept rows if MEAN. The softmax is computed
    again.
    """
    m = row_numbers(WIDE, BM)
    valid = m < M
    rows = row_offsets(m, shape, x_strides, NDIM)
    to = row_offsets(m, shape, dx_strides, NDIM)
    t = tl.load(target + row_offsets(m, shape, target_strides, NDIM), mask=valid, other=0)
    arriving = tl.load(g + row_offsets(m, shape, g_strides, NDIM), mask=valid, other=0).to(TYPE)
    if MEAN:
        arriving = libm.div(arriving, tl.load(count).to(TYPE) + tl.zeros((BM,), TYPE))
    arriving = tl.where(t != IGNORE, arriving, 0.0)
    n, mask = columns(0, rows, valid, N, BN)
    if WHOLE:
        v = block(x, rows, n, stride_x, mask, TYPE, float("-inf"))
        top, log_total = log_sum_exp_of(v, TYPE, BM)
    else:
        top, log_total = log_sum_exp(x, rows, valid, stride_x, N, TYPE, BM, BN)
    for start in range(0, BN if WHOLE else N, BN):
        if not WHOLE:
            n, mask = columns(start, rows, valid, N, BN)
            v = block(x, rows, n, stride_x, mask, TYPE, float("-inf"))
        p = libm.exp((v - top[:, None]) - log_total[:, None])
        d = (p - (n[None, :] == t[:, None]).to(TYPE)) * arriving[:, None]
        d = tl.where((t != IGNORE)[:, None], d, 0.0)
        tl.store(dx + (to[:, None] + n[None, :] * stride_dx), d.to(dx.dtype.element_ty), mask=mask)


KERNELS = {
    "softmax": softmax, "softmax_backward": softmax_backward, "cross_entropy": cross_entropy,
    "cross_entropy_backward": cross_entropy_backward,
}  # fmt: skip


KEPT = {"softmax_backward": 2}  # operands of which a row that is one block stays in registers, where not one


def prepare_rows(
    name: str,
    pointers: tuple[str, ...],
    m: int,
    n: int,
    fixed: tuple[int, ...],
    shape: tuple[int, ...],
    row_strides: list[tuple[int, ...]],
    inner: tuple[int, ...],
    constants: dict[str, bool],
    *,
    accumulator: str,
    aligned: bool,
    wide: bool,
) -> Launch:
    """A launch of one of KERNELS over `m` rows of `n`; the callable takes the addresses.

    Args:
        pointers: Triton types of the operands.
        fixed: fixed arguments after M and N, before the inner strides.
        shape, row_strides: of the dimensions that number the rows, collapsed, for each operand that has rows.
        inner: distance of neighbours in a row, for each operand that has rows of n.
    """
    bm, bn = tile(m, n, longest(n, KEPT.get(name, 1), accumulator))
    unit = [Static(1) if s == 1 else multiple(s) for s in inner]
    values = (m, multiple(n), *fixed, *unit, multiples(shape), *(strides(s) for s in row_strides))
    constexprs = {**constants, "TYPE": TYPES[accumulator], "NDIM": len(shape), "WIDE": wide, "BM": bm, "BN": bn}
    if name != "cross_entropy":  # it has no second walk
        constexprs["WHOLE"] = n <= bn
    runtime = tuple("*" + t for t in pointers)
    return prepare(
        KERNELS[name], (triton.cdiv(m, bm),), runtime, values, constexprs, name=name, warps=warps(bm, bn),
        aligned=aligned,
    )  # fmt: skip
