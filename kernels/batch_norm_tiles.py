"""How batch normalisation walks an operand: elements of channels, by programs that take blocks of some channels.

An operand has any strides, over samples of channels of L elements: element k of a channel is element k % L of sample
k // L, and K of them are what its statistics are of. `steps`: an operand's strides along samples, channels, elements.

Where all elements of some channels fit into registers, a program takes those. Where they do not, programs take pieces
of each channel, each time the same, so that the bits are the same on every chip.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from tgrad.kernels.launch import INTERPRET, MULTIPROCESSORS, Static, multiple
from tgrad.kernels.rows import LONGEST


@triton.jit
def channels(WIDE: tl.constexpr, BC: tl.constexpr):
    """The channels of this program, as 64-bit numbers if WIDE."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    if WIDE:
        c = c.to(tl.int64)
    return c


@triton.jit
def places(k, c, L, steps):
    """The offsets of elements k of channels c, in numbers as wide as c is: division in 64 bits is slow."""
    return ((k // L).to(c.dtype) * steps[0] + (k % L).to(c.dtype) * steps[2])[:, None] + (c * steps[1])[None, :]


@triton.jit
def piece_number(LONG: tl.constexpr):
    """Which piece of its channels this program takes, as a 64-bit number if LONG."""
    piece = tl.program_id(1)
    if LONG:
        piece = piece.to(tl.int64)
    return piece


Steps = tuple[int, int, int]


class Planes(NamedTuple):
    """What is normalised: channels, K elements of each, of which L lie in one sample, and bytes of an element.

    Attributes:
        x_steps: the input's.
        wide: whether offsets take 64 bits.
    """

    c: int
    k: int
    l: int
    itemsize: int
    x_steps: Steps
    wide: bool

    @property
    def long(self) -> bool:
        """Whether the elements of a channel are counted in 64 bits."""
        return self.k >= 2**30

    @property
    def sizes(self) -> tuple[int, int, int]:
        return multiple(self.c), multiple(self.k), Static(1) if self.l == 1 else multiple(self.l)

    @property
    def narrowest(self) -> int:
        """The fewest channels of a block that reads whole sectors, of 32 bytes, of the input."""
        sample, channel, element = self.x_steps
        run = self.l if element == 1 and self.l > 1 else self.k if sample == 1 and channel != 1 else 1
        return min(triton.next_power_of_2(self.c), max(1, 32 // self.itemsize // run))


def fixed_steps(steps: Steps) -> tuple[int, ...]:
    return tuple(Static(s) if s in (0, 1) else multiple(s) for s in steps)


def whole(planes: Planes, kept: int, accumulator: str) -> tuple[int, int] | None:
    """(elements, channels) per block where all elements of a channel, of `kept` operands, fit into registers."""
    bk, bc = triton.next_power_of_2(planes.k), planes.narrowest
    if bk * bc > LONGEST // (2 * kept) // (4 if accumulator == "fp64" else 1):
        return None
    if INTERPRET:
        return max(2, bk), max(2, min(triton.next_power_of_2(planes.c), (1 << 18) // bk))
    while bc < planes.c and bk * bc < 2048 and triton.cdiv(planes.c, 2 * bc) >= MULTIPROCESSORS:
        bc *= 2
    return bk, bc


RESIDENT = 4  # programs that a multiprocessor runs at a time, so that memory is kept busy


def cut(planes: Planes, accumulator: str) -> tuple[tuple[int, int], int, int]:
    """((elements, channels) per block, elements of a piece, pieces) where a channel is cut; the interpreter: two."""
    c, k = triton.next_power_of_2(planes.c), triton.next_power_of_2(planes.k)
    if INTERPRET:
        bc = max(2, min(c, 1 << 16))
        bk = max(2, min(triton.next_power_of_2(triton.cdiv(planes.k, 2)), (1 << 18) // bc))
        wanted = 2
    else:
        elements = 2048 if accumulator == "fp64" else 4096
        bc = min(c, 8 * planes.narrowest if planes.narrowest > 1 else 1)
        bk = min(k, elements // bc)
        wanted = max(1, RESIDENT * MULTIPROCESSORS // triton.cdiv(planes.c, bc))
    chunk = triton.cdiv(triton.cdiv(planes.k, wanted), bk) * bk
    return (bk, bc), chunk, triton.cdiv(planes.k, chunk)
