"""Tensors side by side: one kernel copies up to MOST_PIECES dense tensors into slices of one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import triton
import triton.language as tl

from tgrad.kernels.launch import INTERPRET, Launch, multiples, prepare
from tgrad.kernels.pointwise import tile

MOST_PIECES = 16  # of one launch: each costs every program two comparisons
MOST_ELEMENTS = 1 << 30  # of the result: offsets are 32-bit


@triton.jit
def copy_block(out, source, start, width, at, rows, total, ONE_ROW: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK elements of a piece, from its element `start` on: `rows` rows of `width` in rows of `total`."""
    index = start + tl.arange(0, BLOCK)
    mask = index < rows * width
    if ONE_ROW:
        to = at + index
    else:
        to = index // width * total + (at + index % width)
    tl.store(out + to, tl.load(source + index, mask=mask), mask=mask)


@triton.jit
def join(
    out, sources, rows, total, widths, places, first, ONE_ROW: tl.constexpr, BLOCK: tl.constexpr, TURNS: tl.constexpr
):
    """out, `rows` rows of `total` elements, with piece i in the columns places[i] to places[i] + widths[i].

    Each program copies BLOCK elements of one piece, and first[i] is the first program of piece i; with TURNS the one
    program copies all.
    """
    for i in tl.static_range(len(sources)):
        if TURNS:
            for start in range(0, rows * widths[i], BLOCK):
                copy_block(out, sources[i], start, widths[i], places[i], rows, total, ONE_ROW, BLOCK)
        else:
            k = tl.program_id(0) - first[i]
            if (k >= 0) & (k * BLOCK < rows * widths[i]):
                copy_block(out, sources[i], k * BLOCK, widths[i], places[i], rows, total, ONE_ROW, BLOCK)


def slots(pieces: int) -> int:
    """Pieces that a launch over `pieces` has room for: a power of two on a GPU, so that few kernels are compiled."""
    return pieces if INTERPRET else triton.next_power_of_2(pieces)


def prepare_join(
    itemsize: int, rows: int, total: int, widths: Sequence[int], places: Sequence[int], *, aligned: bool, name: str
) -> Launch:
    """A launch that copies at most MOST_PIECES pieces, of `itemsize` bytes an element, whatever their type.

    Args:
        widths, places: of each piece, the elements in a row and the column where they go; no width is 0.
        aligned: whether every address is a multiple of 16.

    Returns:
        A callable that takes the address of the result, and those of `slots(len(widths))` pieces, of which those after
        the last are not used.
    """
    block = tile(rows * max(widths), itemsize)
    first = list(accumulate((triton.cdiv(rows * w, block) for w in widths), initial=0))
    empty = (0,) * (slots(len(widths)) - len(widths))
    room = len(widths) + len(empty)
    total, *of_pieces = multiples((total, *widths, *empty, *places, *empty))
    starts = (*first[:-1], *[first[-1]] * len(empty))
    fixed = rows, total, tuple(of_pieces[:room]), tuple(of_pieces[room:]), starts
    runtime = f"*i{8 * itemsize}", (f"*i{8 * itemsize}",) * room
    constexprs = {"ONE_ROW": rows == 1, "BLOCK": block, "TURNS": INTERPRET}
    return prepare(join, (1 if INTERPRET else first[-1],), runtime, fixed, constexprs, name=name, aligned=aligned)
