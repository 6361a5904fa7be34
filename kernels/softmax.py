"""Kernels over rows: softmax, log-softmax and cross-entropy, forward and backward.

A row is `N` elements that lie `stride` apart; row m begins at the offset of m's coordinates over the other dimensions.
Rows of any length are walked in blocks of BN columns, BM rows at a time.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels import libm
from tgrad.kernels.launch import NARROW, Launch, Static, multiple, multiples, prepare, strides
from tgrad.kernels.program import TYPES
from tgrad.kernels.reduce import chunks, tile as reduce_tile
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
    loss, counted, lse, x, target, weights, smoothing, M, N, IGNORE, stride_x, shape, x_strides, target_strides,
    TYPE: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """loss[m] = keep * w[t] * (lse[m] - x[m, t]) + share * sum over n of w[n] * (lse[m] - x[m, n]) for t = target[m],
    counted[m] = w[t]; both 0 where t is IGNORE. A target outside the row gives nan.

    Args:
        counted, lse: one pointer each, or none: nobody wants these.
        weights: one pointer, to w, or none (ones).
        smoothing: keep and share, or nothing: 1 and 0, and no second term. Without it WHOLE does not matter: there is
            no second walk.
    """
    m = row_numbers(WIDE, BM)
    valid = m < M
    rows = row_offsets(m, shape, x_strides, NDIM)
    t = tl.load(target + row_offsets(m, shape, target_strides, NDIM), mask=valid, other=0)
    n, mask = columns(0, rows, valid, N, BN)
    if len(smoothing) > 0 and WHOLE:
        v = block(x, rows, n, stride_x, mask, TYPE, float("-inf"))
        top, log_total = log_sum_exp_of(v, TYPE, BM)
    else:
        top, log_total = log_sum_exp(x, rows, valid, stride_x, N, TYPE, BM, BN)
    inside = (t >= 0) & (t < N)
    counts = t != IGNORE
    picked = tl.load(x + (rows + t * stride_x), mask=valid & inside, other=0).to(TYPE)
    value = log_total - (picked - top)
    factor = counts.to(TYPE)
    if len(weights) > 0:
        each = tl.load(weights[0] + t, mask=valid & inside, other=0).to(TYPE)
        value = value * each
        factor = tl.where(counts, each, 0.0)
    if len(smoothing) > 0:
        spread = tl.zeros((BM,), TYPE)
        for start in range(0, BN if WHOLE else N, BN):
            if not WHOLE:
                n, mask = columns(start, rows, valid, N, BN)
                v = block(x, rows, n, stride_x, mask, TYPE, 0)
            d = log_total[:, None] - (v - top[:, None])
            if len(weights) > 0:
                d = d * tl.load(weights[0] + n, mask=n < N, other=0).to(TYPE)[None, :]
            spread += tl.sum(tl.where(mask, d, 0.0), 1)
        value = smoothing[0] * value + smoothing[1] * spread
    value = tl.where(inside, value, float("nan"))
    tl.store(loss + m, tl.where(counts, value, 0.0).to(loss.dtype.element_ty), mask=valid)
    if len(counted) > 0:
        tl.store(counted[0] + m, factor, mask=valid)
    if len(lse) > 0:
        tl.store(lse[0] + m, top + log_total, mask=valid)


@triton.jit
def mean_of_rows(
    out, counted, losses, counts, M, CHUNK,
    DIVIDE: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program adds up CHUNK losses and as many counts; DIVIDE: what it stores in `out` is their quotient."""
    first = tl.program_id(0) * CHUNK
    if WIDE:
        first = tl.program_id(0).to(tl.int64) * CHUNK
    last = tl.minimum(first + CHUNK, M)
    loss = tl.zeros((BLOCK,), TYPE)
    count = tl.zeros((BLOCK,), TYPE)
    for start in range(first, last, BLOCK):
        m = start + tl.arange(0, BLOCK)
        loss += tl.load(losses + m, mask=m < last, other=0)
        count += tl.load(counts + m, mask=m < last, other=0)
    total = tl.sum(loss, 0)
    every = tl.sum(count, 0)
    tl.store(counted + tl.program_id(0), every)
    if DIVIDE:
        total = libm.div(total, every)
    tl.store(out + tl.program_id(0), total.to(out.dtype.element_ty))


@triton.jit
def cross_entropy_backward(
    dx, g, x, target, count, weights, smoothing, M, N, IGNORE, stride_dx, stride_x, shape, dx_strides, g_strides,
    x_strides, target_strides,
    MEAN: tl.constexpr, TYPE: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """The gradient of `cross_entropy` times g, divided by `count` if MEAN. The softmax is computed again."""
    m = row_numbers(WIDE, BM)
    valid = m < M
    rows = row_offsets(m, shape, x_strides, NDIM)
    to = row_offsets(m, shape, dx_strides, NDIM)
    t = tl.load(target + row_offsets(m, shape, target_strides, NDIM), mask=valid, other=0)
    arriving = tl.load(g + row_offsets(m, shape, g_strides, NDIM), mask=valid, other=0).to(TYPE)
    if MEAN:
        arriving = libm.div(arriving, tl.load(count).to(TYPE) + tl.zeros((BM,), TYPE))
    arriving = tl.where(t != IGNORE, arriving, 0.0)
    hot = arriving
    if len(weights) > 0:
        hot = hot * tl.load(weights[0] + t, mask=valid & (t >= 0) & (t < N), other=0).to(TYPE)
    if len(smoothing) > 0:
        hot = hot * smoothing[0]
        arriving = arriving * smoothing[1]
        every = tl.zeros((1,), TYPE) + N
        if len(weights) > 0:
            every = tl.zeros((1,), TYPE)
            for start in range(0, N, BN):
                c = start + tl.arange(0, BN)
                every += tl.sum(tl.load(weights[0] + c, mask=c < N, other=0).to(TYPE)[None, :], 1)
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
        d = (p - (n[None, :] == t[:, None]).to(TYPE)) * hot[:, None]
        if len(smoothing) > 0:
            p = p * every[:, None]
            if len(weights) > 0:
                p = p - tl.load(weights[0] + n, mask=n < N, other=0).to(TYPE)[None, :]
            else:
                p = p - 1.0
            d += p * arriving[:, None]
        d = tl.where((t != IGNORE)[:, None], d, 0.0)
        tl.store(dx + (to[:, None] + n[None, :] * stride_dx), d.to(dx.dtype.element_ty), mask=mask)


KERNELS = {
    "softmax": softmax, "softmax_backward": softmax_backward, "cross_entropy": cross_entropy,
    "cross_entropy_backward": cross_entropy_backward,
}  # fmt: skip


KEPT = {"softmax_backward": 2}  # operands of which a row that is one block stays in registers, where not one


def prepare_rows(
    kernel: str,
    pointers: tuple[str | tuple[str, ...], ...],
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
    numbers: tuple[tuple[str, ...], ...] = (),
    name: str | None = None,
) -> Launch:
    """A launch of one of KERNELS over `m` rows of `n`; the callable takes the addresses, then the numbers.

    Args:
        pointers: Triton types of the operands; a tuple of them for an operand that is one.
        fixed: fixed arguments after M and N, before the inner strides.
        shape, row_strides: of the dimensions that number the rows, collapsed, for each operand that has rows.
        inner: distance of neighbours in a row, for each operand that has rows of n.
        numbers: Triton types of run-time numbers, in tuples as the kernel takes them.
        name: of the launch; None: the kernel's.
    """
    bm, bn = tile(m, n, longest(n, KEPT.get(kernel, 1), accumulator))
    unit = [Static(1) if s == 1 else multiple(s) for s in inner]
    values = (m, multiple(n), *fixed, *unit, multiples(shape), *(strides(s) for s in row_strides))
    constexprs = {**constants, "TYPE": TYPES[accumulator], "NDIM": len(shape), "WIDE": wide, "BM": bm, "BN": bn}
    constexprs["WHOLE"] = n <= bn
    runtime = tuple("*" + t if isinstance(t, str) else tuple("*" + each for each in t) for t in pointers) + numbers
    return prepare(
        KERNELS[kernel], (triton.cdiv(m, bm),), runtime, values, constexprs, name=name or kernel, warps=warps(bm, bn),
        aligned=aligned,
    )  # fmt: skip


def prepare_mean_of_rows(m: int, result: str, accumulator: str) -> tuple[Launch, Launch | None, int]:
    """The launches that divide the sum of `m` losses by the sum of as many counts, both of type `accumulator`.

    Returns:
        A callable that takes the addresses of the result, of the sum of counts, of the losses and of the counts. Where
        there are many it is to be given sums of them: a callable that makes these, with the addresses of sums of losses
        and of counts in place of the results, and how many it makes; else None and 0.
    """
    block = reduce_tile(1, m, across=False)[1]
    pieces = chunks(1, m, 1, block)
    wide = m >= NARROW

    def launch(m: int, pieces: int, to: str, divide: bool) -> Launch:
        runtime = tuple("*" + t for t in (to, accumulator, accumulator, accumulator))
        chunk = triton.cdiv(triton.cdiv(m, pieces), block) * block
        constexprs = {"DIVIDE": divide, "TYPE": TYPES[accumulator], "WIDE": wide, "BLOCK": block}
        return prepare(mean_of_rows, (pieces,), runtime, (m, chunk), constexprs, name="cross_entropy_mean")

    if pieces == 1:
        return launch(m, 1, result, True), None, 0
    return launch(pieces, 1, result, True), launch(m, pieces, accumulator, False), pieces
