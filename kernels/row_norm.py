"""Normalisation of rows, forward and backward: layer, group and root-mean-square norms.

Operands are contiguous. A row holds P channels of S elements; row m belongs to group m % G, and has that group's P
weights. Layer norm is G = S = 1. Gradients of weights alone are in row_norm_sums.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels import libm
from tgrad.kernels.launch import Launch, Static, multiple, prepare
from tgrad.kernels.program import TYPES
from tgrad.kernels.rows import block, columns, longest, row_numbers, tile, warps, wide


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
def statistics(stats, at, valid, RMS: tl.constexpr, TYPE: tl.constexpr, BM: tl.constexpr):
    """Of BM rows the mean, RMS: 0, and 1 / sqrt(variance + eps), as the forward stored them."""
    mean = tl.zeros((BM,), TYPE)
    if not RMS:
        mean = tl.load(stats[0] + at, mask=valid, other=0).to(TYPE)
    return mean, tl.load(stats[len(stats) - 1] + at, mask=valid, other=0).to(TYPE)


@triton.jit
def norm(
    out, stats, x, affine, eps, M, N, G, P, S,
    RMS: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """out = (x - mean) * rstd * weight + bias, rstd = 1 / sqrt(variance + eps); RMS: mean 0, which is not stored.

    `stats`, here and below: the means, but not of RMS, and rstd. `affine`: the weight and the bias, as far as given.
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
        tl.store(stats[0] + m, mean, mask=valid)
    tl.store(stats[len(stats) - 1] + m, rstd, mask=valid)
    for start in range(0, BN if WHOLE else N, BN):
        if not WHOLE:
            n, mask = columns(start, rows, valid, N, BN)
            v = block(x, rows, n, 1, mask, TYPE, 0) - mean[:, None]
        y = v * rstd[:, None]
        c = (m % G)[:, None] * P + (n // S)[None, :]
        if WEIGHT:
            y = y * tl.load(affine[0] + c, mask=mask, other=0).to(TYPE)
        if BIAS:
            y = y + tl.load(affine[len(affine) - 1] + c, mask=mask, other=0).to(TYPE)
        tl.store(out + (rows[:, None] + n[None, :]), y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def scaled(
    g, x, affine, m, n, mask, mean, rstd, N, G, P, S, WEIGHT: tl.constexpr, TYPE: tl.constexpr
):  # fmt: skip
    """h = (x - mean) * rstd and d = g * weight, at rows m and columns n."""
    h = (block(x, m * N, n, 1, mask, TYPE, 0) - mean[:, None]) * rstd[:, None]
    d = block(g, m * N, n, 1, mask, TYPE, 0)
    if WEIGHT:
        d = d * tl.load(affine[0] + ((m % G)[:, None] * P + (n // S)[None, :]), mask=mask, other=0).to(TYPE)
    return h, d


@triton.jit
def norm_backward(
    dx, g, x, stats, affine, M, N, G, P, S,
    RMS: tl.constexpr, WEIGHT: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    WHOLE: tl.constexpr,
):  # fmt: skip
    """With h and d of `scaled`: (d - mean(d) - h * mean(d * h)) * rstd; RMS: mean(d) is 0."""
    m = row_numbers(WIDE, BM)
    valid = m < M
    mean, rstd = statistics(stats, m, valid, RMS, TYPE, BM)
    first = tl.zeros((BM,), TYPE)
    second = tl.zeros((BM,), TYPE)
    n, mask = columns(0, m, valid, N, BN)
    if WHOLE:
        h, d = scaled(g, x, affine, m, n, mask, mean, rstd, N, G, P, S, WEIGHT, TYPE)
        if not RMS:
            first = tl.sum(d, 1)
        second = tl.sum(tl.where(mask, d * h, 0.0), 1)
    else:
        for start in range(0, N, BN):
            n, mask = columns(start, m, valid, N, BN)
            h, d = scaled(g, x, affine, m, n, mask, mean, rstd, N, G, P, S, WEIGHT, TYPE)
            if not RMS:
                first += tl.sum(d, 1)
            second += tl.sum(tl.where(mask, d * h, 0.0), 1)
    first = ratio(first, N, TYPE, BM)
    second = ratio(second, N, TYPE, BM)
    for start in range(0, BN if WHOLE else N, BN):
        if not WHOLE:
            n, mask = columns(start, m, valid, N, BN)
            h, d = scaled(g, x, affine, m, n, mask, mean, rstd, N, G, P, S, WEIGHT, TYPE)
        y = (d - (first[:, None] + h * second[:, None])) * rstd[:, None]
        tl.store(dx + ((m * N)[:, None] + n[None, :]), y.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def norm_backward_sums(
    dx, sums, g, x, stats, affine, M, N, CHUNK,
    RMS: tl.constexpr, WEIGHT: tl.constexpr, BY_WEIGHT: tl.constexpr, BY_BIAS: tl.constexpr, TYPE: tl.constexpr,
    WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """`norm_backward` of CHUNK rows, each one block and a group of its own, and the sums of g * h and of g over these
    rows: program k stores the former in row k of the first of `sums`, the latter in row k of the last. Without a `dx`,
    the sums alone.

    Each program adds up its rows in order, and keeps the sums in registers: no atomics, the same bits each time.
    """
    k = tl.program_id(0)
    if WIDE:
        k = k.to(tl.int64)
    last = tl.minimum(k * CHUNK + CHUNK, M)
    by_weight = tl.zeros((BM, BN), TYPE)
    by_bias = tl.zeros((BM, BN), TYPE)
    c = tl.arange(0, BN)
    if WEIGHT:
        w = tl.load(affine[0] + c, mask=c < N, other=0).to(TYPE)
    for start in range(k * CHUNK, last, BM):
        m = start + tl.arange(0, BM)
        valid = m < last
        n, mask = columns(0, m, valid, N, BN)
        d = block(g, m * N, n, 1, mask, TYPE, 0)
        if BY_WEIGHT or len(dx) > 0:
            mean, rstd = statistics(stats, m, valid, RMS, TYPE, BM)
            h = (block(x, m * N, n, 1, mask, TYPE, 0) - mean[:, None]) * rstd[:, None]
        if BY_WEIGHT:
            by_weight += d * h
        if BY_BIAS:
            by_bias += d
        if len(dx) > 0:
            if WEIGHT:
                d = d * w[None, :]
            second = ratio(tl.sum(tl.where(mask, d * h, 0.0), 1), N, TYPE, BM)
            y = h * second[:, None]
            if not RMS:
                y = ratio(tl.sum(d, 1), N, TYPE, BM)[:, None] + y
            y = (d - y) * rstd[:, None]
            tl.store(dx[0] + ((m * N)[:, None] + n[None, :]), y.to(dx[0].dtype.element_ty), mask=mask)
    if BY_WEIGHT:
        tl.store(sums[0] + (k * N + c), tl.sum(by_weight, 0).to(sums[0].dtype.element_ty), mask=c < N)
    if BY_BIAS:
        to = sums[len(sums) - 1]
        tl.store(to + (k * N + c), tl.sum(by_bias, 0).to(to.dtype.element_ty), mask=c < N)


@triton.jit
def norm_backward_channels(
    dx, g, x, stats, affine, by_weight, by_bias, M, N, G, P, S,
    WEIGHT: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """`norm_backward` where the sums of g * h and of g over each channel of a row are known: BN columns a program."""
    m = row_numbers(WIDE, BM)
    valid = m < M
    mean, rstd = statistics(stats, m, valid, False, TYPE, BM)
    first = tl.zeros((BM,), TYPE)
    second = tl.zeros((BM,), TYPE)
    for start in range(0, P, BP):
        c, mask = columns(start, m, valid, P, BP)
        a = block(by_bias, m * P, c, 1, mask, TYPE, 0)
        b = block(by_weight, m * P, c, 1, mask, TYPE, 0)
        if WEIGHT:
            w = tl.load(affine[0] + ((m % G)[:, None] * P + c[None, :]), mask=mask, other=0).to(TYPE)
            a, b = a * w, b * w
        first += tl.sum(a, 1)
        second += tl.sum(b, 1)
    first = ratio(first, N, TYPE, BM)
    second = ratio(second, N, TYPE, BM)
    n, mask = columns(tl.program_id(1) * BN, m, valid, N, BN)
    h, d = scaled(g, x, affine, m, n, mask, mean, rstd, N, G, P, S, WEIGHT, TYPE)
    y = (d - (first[:, None] + h * second[:, None])) * rstd[:, None]
    tl.store(dx + ((m * N)[:, None] + n[None, :]), y.to(dx.dtype.element_ty), mask=mask)


KERNELS = {"norm": norm, "norm_backward": norm_backward}


# Operands of which a row that is one block stays in registers; the sums are two of them.
KEPT = {"norm": 1, "norm_backward": 2, "norm_backward_sums": 4}


def fixed_sizes(m: int, sizes: tuple[int, int, int]) -> tuple[int, ...]:
    """M, N, G, P and S as arguments of a kernel; `sizes` are the last three."""
    n = sizes[1] * sizes[2]
    return m, multiple(n), *(Static(1) if size == 1 else multiple(size) for size in sizes)


def prepare_norm(
    name: str, types: tuple, m: int, sizes: tuple[int, int, int], constants: dict[str, bool], *, accumulator: str,
    aligned: bool,
) -> Launch:  # fmt: skip
    """A launch of one of KERNELS over `m` rows; the callable takes the addresses, then the scalars.

    Args:
        types: Triton types of the run-time parameters, tuples of those of `stats` and `affine`.
        sizes: groups, channels of a group, elements of a channel.
    """
    _, channels, elements = sizes
    n = channels * elements
    kept = KEPT[name] * (1 if elements == 1 else 2)  # each element's weight takes an address
    bm, bn = tile(m, n, longest(n, kept, accumulator))
    constexprs = {
        **constants, "TYPE": TYPES[accumulator], "WIDE": wide(m, n), "BM": bm, "BN": bn, "WHOLE": n <= bn
    }  # fmt: skip
    return prepare(
        KERNELS[name], (triton.cdiv(m, bm),), types, fixed_sizes(m, sizes), constexprs, name=name,
        warps=warps(bm, bn), aligned=aligned,
    )  # fmt: skip


def prepare_norm_backward_channels(
    types: tuple, m: int, sizes: tuple[int, int, int], weighted: bool, *, accumulator: str, aligned: bool
) -> Launch:
    """A launch of `norm_backward_channels` over `m` rows; arguments as of `prepare_norm`."""
    _, channels, elements = sizes
    n = channels * elements
    bm, bn = tile(m, n, 2048)
    constexprs = {
        "WEIGHT": weighted, "TYPE": TYPES[accumulator], "WIDE": wide(m, n), "BM": bm, "BN": bn,
        "BP": max(2, min(triton.next_power_of_2(channels), 512)),
    }  # fmt: skip
    grid = triton.cdiv(m, bm), triton.cdiv(n, bn)
    return prepare(
        norm_backward_channels, grid, types, fixed_sizes(m, sizes), constexprs,
        name="norm_backward", warps=warps(bm, bn), aligned=aligned,
    )  # fmt: skip
