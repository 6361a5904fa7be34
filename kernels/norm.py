"""Normalisation of rows, forward and backward: layer, group and root-mean-square norms.

Operands are contiguous. A row holds P channels of S elements; row m belongs to group m % G, and has that group's P
weights. Layer norm is G = S = 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels import libm
from tgrad.kernels.launch import INTERPRET, Launch, prepare
from tgrad.kernels.program import TYPES


@triton.jit
def numbers(WIDE: tl.constexpr, BM: tl.constexpr):
    """The rows of this program, as 64-bit numbers if WIDE."""
    if WIDE:
        m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    else:
        m = tl.program_id(0) * BM + tl.arange(0, BM)
    return m


@triton.jit
def ratio(total, N, TYPE: tl.constexpr, BM: tl.constexpr):
    """total / N, for each of BM rows."""
    return libm.div(total, tl.zeros((BM,), TYPE) + N.to(TYPE))


@triton.jit
def norm(
    out, means, rstds, x, weight, bias, eps, M, N, G, P, S,
    RMS: tl.constexpr, WEIGHT: tl.constexpr, BIAS: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """out = (x - mean) * rstd * weight + bias, rstd = 1 / sqrt(variance + eps); RMS: mean 0, which is not stored."""
    m = numbers(WIDE, BM)
    valid = m < M
    mean = tl.zeros((BM,), TYPE)
    if not RMS:
        for start in range(0, N, BN):
            n = (start + tl.arange(0, BN)).to(m.dtype)
            mask = valid[:, None] & (n[None, :] < N)
            mean += tl.sum(tl.load(x + (m[:, None] * N + n[None, :]), mask=mask, other=0).to(TYPE), 1)
        mean = ratio(mean, N, TYPE, BM)
    spread = tl.zeros((BM,), TYPE)
    for start in range(0, N, BN):
        n = (start + tl.arange(0, BN)).to(m.dtype)
        mask = valid[:, None] & (n[None, :] < N)
        v = tl.load(x + (m[:, None] * N + n[None, :]), mask=mask, other=0).to(TYPE) - mean[:, None]
        spread += tl.sum(tl.where(mask, v * v, 0.0), 1)
    root = libm.sqrt(ratio(spread, N, TYPE, BM) + eps.to(TYPE))
    rstd = libm.div(tl.zeros((BM,), TYPE) + 1.0, root)
    if not RMS:
        tl.store(means + m, mean, mask=valid)
    tl.store(rstds + m, rstd, mask=valid)
    for start in range(0, N, BN):
        n = (start + tl.arange(0, BN)).to(m.dtype)
        mask = valid[:, None] & (n[None, :] < N)
        y = (tl.load(x + (m[:, None] * N + n[None, :]), mask=mask, other=0).to(TYPE) - mean[:, None]) * rstd[:, None]
        c = (m % G)[:, None] * P + (n // S)[None, :]
        if WEIGHT:
            y = y * tl.load(weight + c, mask=mask, other=0).to(TYPE)
        if BIAS:
            y = y + tl.load(bias + c, mask=mask, other=0).to(TYPE)
        tl.store(out + (m[:, None] * N + n[None, :]), y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def norm_backward(
    dx, g, x, means, rstds, weight, M, N, G, P, S,
    RMS: tl.constexpr, WEIGHT: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """With h = (x - mean) * rstd and d = g * weight: (d - mean(d) - h * mean(d * h)) * rstd; RMS: mean(d) is 0."""
    m = numbers(WIDE, BM)
    valid = m < M
    mean = tl.zeros((BM,), TYPE)
    if not RMS:
        mean = tl.load(means + m, mask=valid, other=0).to(TYPE)
    rstd = tl.load(rstds + m, mask=valid, other=0).to(TYPE)
    first = tl.zeros((BM,), TYPE)
    second = tl.zeros((BM,), TYPE)
    for start in range(0, N, BN):
        n = (start + tl.arange(0, BN)).to(m.dtype)
        mask = valid[:, None] & (n[None, :] < N)
        at = m[:, None] * N + n[None, :]
        h = (tl.load(x + at, mask=mask, other=0).to(TYPE) - mean[:, None]) * rstd[:, None]
        d = tl.load(g + at, mask=mask, other=0).to(TYPE)
        if WEIGHT:
            d = d * tl.load(weight + ((m % G)[:, None] * P + (n // S)[None, :]), mask=mask, other=0).to(TYPE)
        if not RMS:
            first += tl.sum(d, 1)
        second += tl.sum(tl.where(mask, d * h, 0.0), 1)
    first = ratio(first, N, TYPE, BM)
    second = ratio(second, N, TYPE, BM)
    for start in range(0, N, BN):
        n = (start + tl.arange(0, BN)).to(m.dtype)
        mask = valid[:, None] & (n[None, :] < N)
        at = m[:, None] * N + n[None, :]
        h = (tl.load(x + at, mask=mask, other=0).to(TYPE) - mean[:, None]) * rstd[:, None]
        d = tl.load(g + at, mask=mask, other=0).to(TYPE)
        if WEIGHT:
            d = d * tl.load(weight + ((m % G)[:, None] * P + (n // S)[None, :]), mask=mask, other=0).to(TYPE)
        y = (d - (first[:, None] + h * second[:, None])) * rstd[:, None]
        tl.store(dx + at, y.to(dx.dtype.element_ty), mask=mask)


KERNELS = {"norm": norm, "norm_backward": norm_backward}


def tile(m: int, n: int) -> tuple[int, int]:
    """(rows, columns) per block: whole rows up to 4096 columns on a GPU, about 4096 elements; the interpreter, 2^18."""
    bn = triton.next_power_of_2(n)
    if INTERPRET:
        bn = max(2, min(bn, 1 << 16))
        return max(2, min(triton.next_power_of_2(m), (1 << 18) // bn)), bn
    bn = min(bn, 4096)
    return max(1, min(triton.next_power_of_2(m), 2048 // bn)), bn


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
    bm, bn = tile(m, n)
    constexprs = {**constants, "TYPE": TYPES[accumulator], "WIDE": m * n >= 2**31, "BM": bm, "BN": bn}
    runtime = (*("*" + t for t in pointers), *scalars)
    warps = 8 if bm * bn >= 4096 else 4
    return prepare(
        KERNELS[name], (triton.cdiv(m, bm),), runtime, (m, n, *sizes), constexprs, name=name, warps=warps,
        aligned=aligned,
    )  # fmt: skip
