"""Normalisation of rows, forward and backward: layer, group and root-mean-square norms.

Operands are contiguous. A row holds P channels of S elements; row m belongs to group m % G, and has that group's P
weights. Layer norm is G = S = 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels import libm
from tgrad.kernels.launch import Launch, Static, multiple, prepare
from tgrad.kernels.program import TYPES
from tgrad.kernels.rows import block, columns, longest, row_numbers, tile, warps


@triton.jit
def ratio(total, N, TYPE: tl.constexpr, BM: tl.constexpr):
    """total / N, for each of BM rows."""
    return libm.div(total, tl.zeros((BM,), TYPE) + N.to(TYPE))


@triton.jit
def moments(x, rows, valid, N, TYPE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """The mean of each of BM rows and the sum of squares about it, block by block (Chan, Golub and LeVeque, 1983)."""
    mean = tl.zeros((BM,), TYPE)
    spread = tl.zeros((BM,), TYPE)
    for start in range(0, N, BN):
        n, mask = columns(start, rows, valid, N, BN)
        v = block(x, rows, n, 1, mask, TYPE, 0)
        count = tl.minimum(N - start, BN)
        here = ratio(tl.sum(v, 1), count, TYPE, BM)
        v = tl.where(mask, v - here[:, None], 0.0)
        step = here - mean
        share = ratio(tl.zeros((BM,), TYPE) + count.to(TYPE), start + count, TYPE, BM)
        mean += step * share
        spread += tl.sum(v * v, 1) + step * step * (share * start)
    return mean, spread


@triton.jit
def squares(x, rows, valid, N, TYPE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """The sum of squares of each of BM rows."""
    spread = tl.zeros((BM,), TYPE)
    for start in range(0, N, BN):
        n, mask = columns(start, rows, valid, N, BN)
        v = block(x, rows, n, 1, mask, TYPE, 0)
        spread += tl.sum(v * v, 1)
    return spread


@triton.jit
def norm(
    out, means, rstds, x, weight, bias, eps, M, N, G, P, S,
    RMS: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """out = (x - mean) * rstd * weight + bias, rstd = 1 / sqrt(variance + eps); RMS: mean 0, which is not stored.

    WHOLE, here and below: a row is one block, which is read once.
    """
    m = row_numbers(WIDE, BM)
    valid = m < M
    rows = m * N
    mean = tl.zeros((BM,), TYPE)
    n, mask = columns(0, rows, valid, N, BN)
    if WHOLE:
        v = block(x, rows, n, 1, mask, TYPE, 0)
        if not RMS:
            mean = ratio(tl.sum(v, 1), N, TYPE, BM)
            v = v - mean[:, None]
        spread = tl.sum(tl.where(mask, v * v, 0.0), 1)
    elif RMS:
        spread = squares(x, rows, valid, N, TYPE, BM, BN)
    else:
        mean, spread = moments(x, rows, valid, N, TYPE, BM, BN)
    root = libm.sqrt(ratio(spread, N, TYPE, BM) + eps.to(TYPE))
    rstd = libm.div(tl.zeros((BM,), TYPE) + 1.0, root)
    if not RMS:
        tl.store(means + m, mean, mask=valid)
    tl.store(rstds + m, rstd, mask=valid)
    for start in range(0, BN if WHOLE else N, BN):
        if not WHOLE:
            n, mask = columns(start, rows, valid, N, BN)
            v = block(x, rows, n, 1, mask, TYPE, 0) - mean[:, None]
        y = v * rstd[:, None]
        c = (m % G)[:, None] * P + (n // S)[None, :]
        if WEIGHT:
            y = y * tl.load(weight + c, mask=mask, other=0).to(TYPE)
        if BIAS:
            y = y + tl.load(bias + c, mask=mask, other=0).to(TYPE)
        tl.store(out + (rows[:, None] + n[None, :]), y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def scaled(
    g, x, weight, m, n, mask, mean, rstd, N, G, P, S, WEIGHT: tl.constexpr, TYPE: tl.constexpr
):  # fmt: skip
    """h = (x - mean) * rstd and d = g * weight, at rows m and columns n."""
    h = (block(x, m * N, n, 1, mask, TYPE, 0) - mean[:, None]) * rstd[:, None]
    d = block(g, m * N, n, 1, mask, TYPE, 0)
    if WEIGHT:
        d = d * tl.load(weight + ((m % G)[:, None] * P + (n // S)[None, :]), mask=mask, other=0).to(TYPE)
    return h, d


@triton.jit
def norm_backward(
    dx, g, x, means, rstds, weight, M, N, G, P, S,
    RMS: tl.constexpr, WEIGHT: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """With h and d of `scaled`: (d - mean(d) - h * mean(d * h)) * rstd; RMS: mean(d) is 0."""
    m = row_numbers(WIDE, BM)
    valid = m < M
    mean = tl.zeros((BM,), TYPE)
    if not RMS:
        mean = tl.load(means + m, mask=valid, other=0).to(TYPE)
    rstd = tl.load(rstds + m, mask=valid, other=0).to(TYPE)
    first = tl.zeros((BM,), TYPE)
    second = tl.zeros((BM,), TYPE)
    n, mask = columns(0, m, valid, N, BN)
    if WHOLE:
        h, d = scaled(g, x, weight, m, n, mask, mean, rstd, N, G, P, S, WEIGHT, TYPE)
        if not RMS:
            first = tl.sum(d, 1)
        second = tl.sum(tl.where(mask, d * h, 0.0), 1)
    else:
        for start in range(0, N, BN):
            n, mask = columns(start, m, valid, N, BN)
            h, d = scaled(g, x, weight, m, n, mask, mean, rstd, N, G, P, S, WEIGHT, TYPE)
            if not RMS:
                first += tl.sum(d, 1)
            second += tl.sum(tl.where(mask, d * h, 0.0), 1)
    first = ratio(first, N, TYPE, BM)
    second = ratio(second, N, TYPE, BM)
    for start in range(0, BN if WHOLE else N, BN):
        if not WHOLE:
            n, mask = columns(start, m, valid, N, BN)
            h, d = scaled(g, x, weight, m, n, mask, mean, rstd, N, G, P, S, WEIGHT, TYPE)
        y = (d - (first[:, None] + h * second[:, None])) * rstd[:, None]
        tl.store(dx + ((m * N)[:, None] + n[None, :]), y.to(dx.dtype.element_ty), mask=mask)


KERNELS = {"norm": norm, "norm_backward": norm_backward}


KEPT = {"norm": 1, "norm_backward": 2}  # operands of which a row that is one block stays in registers


def prepare_norm(
    name: str, pointers: tuple[str, ...], scalars: tuple[str, ...], m: int, sizes: tuple[int, int, int],
    constants: dict[str, bool], *, accumulator: str, aligned: bool,
) -> Launch:  # fmt: skip
    """A launch of one of KERNELS over `m` rows; the callable takes the addresses, then the scalars.

    Args:
        pointers, scalars: Triton types of the operands, and of the run-time numbers after them.
        sizes: groups, channels of a group, elements of a channel.
    """
    _, channels, elements = sizes
    n = channels * elements
    bm, bn = tile(m, n, longest(n, KEPT[name], accumulator))
    constexprs = {
        **constants, "TYPE": TYPES[accumulator], "WIDE": m * n >= 2**31, "BM": bm, "BN": bn, "WHOLE": n <= bn
    }  # fmt: skip
    fixed = (m, multiple(n), *(Static(1) if size == 1 else multiple(size) for size in sizes))
    runtime = (*("*" + t for t in pointers), *scalars)
    return prepare(
        KERNELS[name], (triton.cdiv(m, bm),), runtime, fixed, constexprs, name=name, warps=warps(bm, bn),
        aligned=aligned,
    )  # fmt: skip
