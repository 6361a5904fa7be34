"""What kernels over rows share: the rows of a program, where each begins, and the blocks in which they are walked.

A row that fits into the registers of a program is one block: it is read once and kept. A longer one is walked, and
walked again for what depends on all of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels.launch import INTERPRET, MULTIPROCESSORS, NARROW
from tgrad.kernels.pointwise import coordinates, offset


@triton.jit
def row_numbers(WIDE: tl.constexpr, BM: tl.constexpr):
    """The rows of this program, as 64-bit numbers if WIDE."""
    if WIDE:
        m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    else:
        m = tl.program_id(0) * BM + tl.arange(0, BM)
    return m


@triton.jit
def row_offsets(m, shape, row_strides, NDIM: tl.constexpr):
    """The offset of row m's first element."""
    if NDIM > 0:
        at = offset(coordinates(m, shape, NDIM), row_strides, NDIM)
    else:
        at = m * 0
    return at


@triton.jit
def columns(start, rows, valid, N, BN: tl.constexpr):
    """The BN columns from `start` on, in numbers as wide as offsets are, and which elements of the block exist."""
    n = (start + tl.arange(0, BN)).to(rows.dtype)
    return n, valid[:, None] & (n[None, :] < N)


@triton.jit
def block(x, rows, n, stride, mask, TYPE: tl.constexpr, OTHER: tl.constexpr):
    """Columns n of some rows, as TYPE, and OTHER where there is nothing."""
    return tl.load(x + (rows[:, None] + n[None, :] * stride), mask=mask, other=OTHER).to(TYPE)


LONGEST = 32768  # of a row that is one block: 32 registers a thread for each operand that is kept, of 64


def tile(m: int, n: int, most: int = 4096) -> tuple[int, int]:
    """(rows, columns) per block: whole rows of up to `most` columns on a GPU, and 2048 elements, or down to 512 where
    the multiprocessors would not all have some; the interpreter, 2^18.
    """
    bn = triton.next_power_of_2(n)
    if INTERPRET:
        bn = max(2, min(bn, 1 << 16))
        return max(2, min(triton.next_power_of_2(m), (1 << 18) // bn)), bn
    bn = bn if bn <= most else 4096
    bm = max(1, min(triton.next_power_of_2(m), 2048 // bn))
    while bm > 1 and bm * bn > 512 and triton.cdiv(m, bm) < MULTIPROCESSORS:
        bm //= 2
    return bm, bn


def longest(n: int, kept: int, accumulator: str) -> int:
    """The most columns of a row that is one block, for rows of n, of which a kernel keeps `kept` operands: half as many
    where rows begin anywhere, so that each element takes an address."""
    return LONGEST // kept // (4 if accumulator == "fp64" else 1) // (2 if n % 4 else 1)


def wide(m: int, n: int) -> bool:
    """Whether kernels count in 64 bits, for m dense rows of n."""
    return m * n >= 2**31 or m >= NARROW


def warps(bm: int, bn: int) -> int:
    """Warps for a block: 16 elements a thread, and more only where there are no more threads."""
    return min(32, max(1, bm * bn // 512))
