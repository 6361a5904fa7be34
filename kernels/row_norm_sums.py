"""Gradients of the weights of row norms: the sums over rows of g * h and of g, with h the normalised input.

Rows are divided among programs, each time the same, so that the bits are the same on every chip: each stores partial
sums, and one small kernel adds those up. Operands are contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels.launch import INTERPRET, MULTIPROCESSORS, Launch, multiple, prepare
from tgrad.kernels.program import TYPES
from tgrad.kernels.row_norm import KEPT, norm_backward_sums, statistics
from tgrad.kernels.rows import block, columns, longest, row_numbers, tile, warps, wide

RESIDENT = 4  # programs that a multiprocessor runs at a time, where their blocks have 2048 elements
SMALL = 1 << 18  # bytes of partial sums that cost next to nothing: they stay in a cache


def parts(m: int, n: int, wanted: int, rows: int, sizes: tuple[int, int]) -> int:
    """Among how many programs, at most `wanted`, `m` rows of `n` are divided: each has at least `rows`, and the partial
    sums, two for each element of a row, are at most a quarter of the input's bytes, or SMALL. The interpreter: two.

    Args:
        sizes: bytes of an element of the input, and of a partial sum.
    """
    itemsize, accumulator = sizes
    most = 2 if INTERPRET else max(m * n * itemsize // 4, SMALL) // (2 * n * accumulator)
    programs = max(1, min(wanted, most, triton.cdiv(m, rows)))
    return triton.cdiv(m, triton.cdiv(m, programs))  # the last is not empty


@triton.jit
def norm_column_sums(
    sums, g, x, stats, M, N, P, G, CHUNK,
    RMS: tl.constexpr, BY_WEIGHT: tl.constexpr, BY_BIAS: tl.constexpr, GROUPED: tl.constexpr, TYPE: tl.constexpr,
    WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The sums alone, of BN columns and CHUNK of M rows, to `sums` as in `norm_backward_sums`. GROUPED: a row holds G
    groups of P columns, each with statistics of its own.
    """
    k = tl.program_id(1)
    if WIDE:
        k = k.to(tl.int64)
    last = tl.minimum(k * CHUNK + CHUNK, M)
    by_weight = tl.zeros((BM, BN), TYPE)
    by_bias = tl.zeros((BM, BN), TYPE)
    for start in range(k * CHUNK, last, BM):
        m = start + tl.arange(0, BM)
        valid = m < last
        n, mask = columns(tl.program_id(0) * BN, m, valid, N, BN)
        d = block(g, m * N, n, 1, mask, TYPE, 0)
        if BY_BIAS:
            by_bias += d
        if BY_WEIGHT:
            h = block(x, m * N, n, 1, mask, TYPE, 0)
            if GROUPED:
                at = m[:, None] * G + (n // P)[None, :]
                h = (h - tl.load(stats[0] + at, mask=mask, other=0)) * tl.load(stats[1] + at, mask=mask, other=0)
            else:
                mean, rstd = statistics(stats, m, valid, RMS, TYPE, BM)
                h = (h - mean[:, None]) * rstd[:, None]
            by_weight += d * h
    c = tl.program_id(0) * BN + tl.arange(0, BN)
    if BY_WEIGHT:
        tl.store(sums[0] + (k * N + c), tl.sum(by_weight, 0).to(sums[0].dtype.element_ty), mask=c < N)
    if BY_BIAS:
        to = sums[len(sums) - 1]
        tl.store(to + (k * N + c), tl.sum(by_bias, 0).to(to.dtype.element_ty), mask=c < N)


@triton.jit
def norm_channel_sums(
    by_weight, by_bias, g, x, stats, M, N, P,
    BY_WEIGHT: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The sums over each of M channels of N elements, BY_WEIGHT: of g * h too; P channels share statistics."""
    m = row_numbers(WIDE, BM)
    valid = m < M
    if BY_WEIGHT:
        mean, rstd = statistics(stats, m // P, valid, False, TYPE, BM)
    first = tl.zeros((BM, BN), TYPE)
    second = tl.zeros((BM, BN), TYPE)
    for start in range(0, N, BN):
        n, mask = columns(start, m, valid, N, BN)
        d = block(g, m * N, n, 1, mask, TYPE, 0)
        first += d
        if BY_WEIGHT:
            h = (block(x, m * N, n, 1, mask, TYPE, 0) - mean[:, None]) * rstd[:, None]
            second += tl.where(mask, d * h, 0.0)
    tl.store(by_bias + m, tl.sum(first, 1), mask=valid)
    if BY_WEIGHT:
        tl.store(by_weight + m, tl.sum(second, 1), mask=valid)


@triton.jit
def norm_sums(
    outs, ins, M, N, TYPE: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr
):  # fmt: skip
    """The sums of the M rows of each of `ins`: one or two matrices of partial sums, one for each row of the grid."""
    for i in tl.static_range(len(outs)):
        if tl.program_id(1) == i:
            total = tl.zeros((BM, BN), TYPE)
            for start in range(0, M, BM):
                m = start + tl.arange(0, BM)
                if WIDE:
                    m = m.to(tl.int64)
                n, mask = columns(tl.program_id(0) * BN, m, m < M, N, BN)
                total += block(ins[i], m * N, n, 1, mask, TYPE, 0)
            c = tl.program_id(0) * BN + tl.arange(0, BN)
            tl.store(outs[i] + c, tl.sum(total, 0).to(outs[i].dtype.element_ty), mask=c < N)


def _power_of_2_below(n: int) -> int:
    """The largest power of 2 that is at most n, or 1."""
    return 1 << (max(n, 1).bit_length() - 1)


def _tile(m: int, n: int, columns: int, elements: int) -> tuple[int, int]:
    """(rows, columns) per block of sums over rows, at most `columns` and `elements`; the interpreter, 2^18."""
    bm, bn = triton.next_power_of_2(m), triton.next_power_of_2(n)
    if INTERPRET:
        bn = max(2, min(bn, 1 << 16))
        return max(2, min(bm, (1 << 18) // bn)), bn
    bn = min(bn, columns)
    return min(bm, elements // bn), bn


def prepare_norm_sums(
    outs: tuple[str, ...], m: int, n: int, *, accumulator: str, aligned: bool
) -> Launch:
    """A launch that adds up `m` partial sums of each of `n` results; it takes the addresses of one or two results, of
    types `outs`, and of their partial sums, (m, n) each."""
    bm, bn = _tile(m, n, 16, 4096)
    constexprs = {"TYPE": TYPES[accumulator], "WIDE": wide(m, n), "BM": bm, "BN": bn}
    runtime = outs, ("*" + accumulator,) * len(outs)
    grid = triton.cdiv(n, bn), len(outs)
    return prepare(
        norm_sums, grid, runtime, (m, multiple(n)), constexprs, name="norm_sums", warps=warps(bm, bn), aligned=aligned
    )


def prepare_norm_backward_sums(
    dx: tuple[str, ...], operands: tuple, outs: tuple[str, ...], m: int, n: int, constants: dict[str, bool],
    sizes: tuple[int, int], *, accumulator: str, aligned: bool,
) -> tuple[int, Launch] | None:  # fmt: skip
    """Over `m` rows of `n`: how many partial sums there are, and a launch of `norm_backward_sums`; None where a row and
    its sums do not fit into registers.

    Args:
        dx, operands: Triton types of the input's gradient, if it is wanted, and of g, the input, its statistics and
            the weight.
        outs: of the sums, where there are no partial ones.
        sizes: bytes of an element of the input, and of a partial sum.

    Returns:
        The launch takes the addresses of the input's gradient, of the sums or partial sums, and of the other operands.
    """
    most = longest(n, KEPT["norm_backward_sums"], accumulator)
    bn = tile(m, n, most)[1]
    if n > bn:
        return None
    wanted = MULTIPROCESSORS * max(1, min(RESIDENT, most // bn))
    programs = parts(m, n, wanted, max(1, 512 // bn), sizes)
    chunk = triton.cdiv(m, programs)
    room = 1 << 18 if INTERPRET else most // triton.cdiv(programs, MULTIPROCESSORS)
    bm = min(triton.next_power_of_2(chunk), _power_of_2_below(room // bn))
    bm = max(2, bm) if INTERPRET else bm
    constexprs = {**constants, "TYPE": TYPES[accumulator], "WIDE": wide(m, n), "BM": bm, "BN": bn}
    sums = outs if programs == 1 else ("*" + accumulator,) * len(outs)
    launch = prepare(
        norm_backward_sums, (programs,), (dx, sums, *operands), (m, multiple(n), chunk), constexprs,
        name="norm_backward", warps=warps(bm, bn), aligned=aligned,
    )  # fmt: skip
    return programs, launch


def prepare_norm_column_sums(
    operands: tuple, outs: tuple[str, ...], m: int, groups: int, channels: int, constants: dict[str, bool],
    sizes: tuple[int, int], *, accumulator: str, aligned: bool,
) -> tuple[int, Launch]:  # fmt: skip
    """Over `m` rows of `groups` groups of `channels`: how many partial sums there are, and a launch of
    `norm_column_sums`, which takes the addresses of the sums or partial sums, of g, the input and its statistics."""
    n = groups * channels
    bm, bn = _tile(m, n, 128, 4096)
    wanted = max(1, RESIDENT * MULTIPROCESSORS // triton.cdiv(n, bn))
    programs = parts(m, n, wanted, 2 if INTERPRET else bm, sizes)
    chunk = triton.cdiv(m, programs)
    constexprs = {
        **constants, "GROUPED": groups > 1, "TYPE": TYPES[accumulator], "WIDE": wide(m, n), "BM": bm, "BN": bn
    }  # fmt: skip
    sums = outs if programs == 1 else ("*" + accumulator,) * len(outs)
    launch = prepare(
        norm_column_sums, (triton.cdiv(n, bn), programs), (sums, *operands),
        (m, multiple(n), multiple(channels), groups, chunk), constexprs, name="norm_weight", warps=warps(bm, bn),
        aligned=aligned,
    )  # fmt: skip
    return programs, launch


def prepare_norm_channel_sums(
    operands: tuple, m: int, n: int, channels: int, by_weight: bool, *, accumulator: str, aligned: bool
) -> Launch:
    """A launch of `norm_channel_sums` over `m` channels of `n` elements, `channels` of which share statistics.

    Args:
        operands: Triton types of g, the input and its statistics.
    """
    bm, bn = tile(m, n, 2048)
    bn = bn if INTERPRET else min(bn, 2048)
    constexprs = {"BY_WEIGHT": by_weight, "TYPE": TYPES[accumulator], "WIDE": wide(m, n), "BM": bm, "BN": bn}
    runtime = ("*" + accumulator, "*" + accumulator, *operands)
    return prepare(
        norm_channel_sums, (triton.cdiv(m, bm),), runtime, (m, multiple(n), multiple(channels)), constexprs,
        name="norm_channel_sums", warps=warps(bm, bn), aligned=aligned,
    )  # fmt: skip

