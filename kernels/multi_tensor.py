"""One kernel over many tensors: a Program run on each of several rows of dense tensors, as an optimiser's step wants;
and the sum of what it makes of their elements, as a norm of all gradients wants.

A row is what the Program works on at a time: a parameter, its gradient and its state. Rows differ in size. Their
addresses are arguments of the launch, and a program finds its row by comparing its number with the first program of
each. A table in device memory would hold any number of rows, but somebody would have to copy it there and to keep it
until the kernel has run; arguments need no copy, no waiting and no owner, and a CUDA graph records them. They are few
(4 KB on every GPU), and each costs every program an instruction or two: more than MOST_ROWS rows are several launches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import triton
import triton.language as tl

from tgrad.kernels.launch import INTERPRET, Launch, prepare
from tgrad.kernels.pointwise import tile
from tgrad.kernels.program import Program, run

MOST_ROWS = 16  # of one launch
MOST_ELEMENTS = 1 << 30  # of a row: its offsets are 32-bit
SUMMED = 2  # times the tile of an update: a sum reads one tensor and keeps nothing
# In the interpreter one program takes the rows in turn: choosing among addresses there costs more than computing does.
IN_TURN = INTERPRET


@triton.jit
def row_at(tensors, i, COLUMNS: tl.constexpr):
    """The addresses of row i, a constant."""
    row = ()
    for c in tl.static_range(COLUMNS):
        row = row + (tensors[i * COLUMNS + c],)
    return row


@triton.jit
def choose(condition, yes, no, COLUMNS: tl.constexpr):
    """One of two rows of addresses."""
    row = ()
    for c in tl.static_range(COLUMNS):
        row = row + (tl.where(condition, yes[c], no[c]),)
    return row


@triton.jit
def find_row(at, tensors, sizes, first, COLUMNS: tl.constexpr):
    """Of the row that program `at` works on: its addresses, its size, and which of its programs this is."""
    row = row_at(tensors, 0, COLUMNS)
    size = sizes[0]
    begin = first[0]
    for i in tl.static_range(1, len(sizes)):
        later = at >= first[i]
        row = choose(later, row_at(tensors, i, COLUMNS), row, COLUMNS)
        size = tl.where(later, sizes[i], size)
        begin = tl.where(later, first[i], begin)
    return row, size, at - begin


@triton.jit
def results_at(row, scalars, index, mask, PROGRAM: tl.constexpr, COLUMNS: tl.constexpr):
    """What PROGRAM makes of the elements `index` of a row; mask None: all of them exist."""
    values = ()
    for c in tl.static_range(COLUMNS):
        values = values + (tl.load(row[c] + index, mask=mask),)
    for k in tl.static_range(len(scalars)):
        values = values + (scalars[k],)
    return run(values, PROGRAM)


@triton.jit
def update_elements(row, scalars, index, mask, PROGRAM: tl.constexpr, COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr):
    """Run PROGRAM on the elements `index` of a row; mask None: all of them exist."""
    results = results_at(row, scalars, index, mask, PROGRAM, COLUMNS)
    for k in tl.static_range(len(OUTPUTS)):
        tl.store(row[OUTPUTS[k]] + index, results[k], mask=mask)


@triton.jit
def update_tile(
    row, scalars, start, size, PROGRAM: tl.constexpr, COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Run PROGRAM on BLOCK elements of a row. Whole tiles are not masked: they move 16 bytes at a time in any size."""
    index = start + tl.arange(0, BLOCK)
    if start + BLOCK <= size:
        update_elements(row, scalars, index, None, PROGRAM, COLUMNS, OUTPUTS)
    else:
        update_elements(row, scalars, index, index < size, PROGRAM, COLUMNS, OUTPUTS)


@triton.jit
def multi_tensor(
    tensors, shared, scalars, sizes, first,
    PROGRAM: tl.constexpr, COLUMNS: tl.constexpr, OUTPUTS: tl.constexpr, BLOCKS: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Run PROGRAM on rows of COLUMNS tensors each, and store its results in the columns OUTPUTS.

    Each program updates BLOCKS[0] elements of one row; but with TURNS the one program updates all rows, each in tiles
    of its own size.

    Args:
        tensors: addresses, row by row.
        shared: addresses of single elements: inputs of PROGRAM after a row's tensors.
        sizes: elements of each row.
        first: the first program of each row.
    """
    values = ()
    for k in tl.static_range(len(shared)):
        values = values + (tl.load(shared[k]),)
    for k in tl.static_range(len(scalars)):
        values = values + (scalars[k],)
    if TURNS:
        for i in tl.static_range(len(sizes)):
            for start in range(0, sizes[i], BLOCKS[i]):
                update_tile(row_at(tensors, i, COLUMNS), values, start, sizes[i], PROGRAM, COLUMNS, OUTPUTS, BLOCKS[i])
    else:
        row, size, k = find_row(tl.program_id(0), tensors, sizes, first, COLUMNS)
        update_tile(row, values, k * BLOCKS[0], size, PROGRAM, COLUMNS, OUTPUTS, BLOCKS[0])


@triton.jit
def sum_tile(row, scalars, start, size, TYPE: tl.constexpr, PROGRAM: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of what PROGRAM makes of BLOCK elements of a row of one tensor."""
    index = start + tl.arange(0, BLOCK)
    if start + BLOCK <= size:
        total = tl.sum(results_at(row, scalars, index, None, PROGRAM, 1)[0], axis=0)
    else:
        value = results_at(row, scalars, index, index < size, PROGRAM, 1)[0]
        total = tl.sum(tl.where(index < size, value, tl.full((), 0, TYPE)), axis=0)
    return total


@triton.jit
def multi_tensor_sum(
    out, tensors, scalars, sizes, first, base, PROGRAM: tl.constexpr, BLOCKS: tl.constexpr, TURNS: tl.constexpr
):
    """Sums of what PROGRAM makes of the elements of many tensors: out[base[0] + k] of the k-th program, which takes
    BLOCKS[0] elements of one tensor; with TURNS, of the k-th tensor."""
    if TURNS:
        for i in tl.static_range(len(sizes)):
            total = tl.full((), 0, out.dtype.element_ty)
            for start in range(0, sizes[i], BLOCKS[i]):
                total += sum_tile(
                    row_at(tensors, i, 1), scalars, start, sizes[i], out.dtype.element_ty, PROGRAM, BLOCKS[i]
                )
            tl.store(out + base[0] + i, total)
    else:
        at = tl.program_id(0)
        row, size, k = find_row(at, tensors, sizes, first, 1)
        total = sum_tile(row, scalars, k * BLOCKS[0], size, out.dtype.element_ty, PROGRAM, BLOCKS[0])
        tl.store(out + base[0] + at, total)


def slots(rows: int) -> int:
    """Rows that a launch over `rows` rows has room for: a power of two on a GPU, so that few kernels are compiled."""
    return rows if IN_TURN else triton.next_power_of_2(rows)


def _division(sizes: Sequence[int], blocks: tuple[int, ...]) -> tuple[int, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Number of programs; the sizes of the rows, and the first program of each, filled up to `slots`."""
    first = [0, *accumulate(triton.cdiv(n, blocks[0]) for n in sizes)]
    empty = slots(len(sizes)) - len(sizes)
    return 1 if IN_TURN else first[-1], ((*sizes, *[0] * empty), (*first[:-1], *[first[-1]] * empty))


def prepare_multi_tensor(
    program: Program, columns: tuple[str, ...], shared: tuple[str, ...], scalars: tuple[str, ...],
    outputs: tuple[int, ...], sizes: Sequence[int], *, aligned: bool, name: str,
) -> Launch:  # fmt: skip
    """A launch of `program` over rows of `sizes` elements (1 to MOST_ELEMENTS).

    Args:
        columns, shared, scalars: Triton type names of a row's tensors, of tensors of one element that all rows share,
            and of run-time scalars: the inputs of `program`.
        outputs: the column that each result goes to.
        aligned: whether every address is a multiple of 16.

    Returns:
        A callable that takes the addresses, row by row for `slots(len(sizes))` rows, of which those after the last are
        not used, then those of the shared tensors, then the scalars.
    """
    widest = max(int(t.lstrip("bfpiu")) // 8 for t in columns)
    blocks = tuple(tile(n, widest) for n in sizes) if IN_TURN else (tile(max(sizes), widest),)
    programs, fixed = _division(sizes, blocks)
    runtime = (tuple("*" + t for t in columns) * slots(len(sizes)), tuple("*" + t for t in shared), scalars)
    constexprs = {
        "PROGRAM": program, "COLUMNS": len(columns), "OUTPUTS": outputs, "BLOCKS": blocks, "TURNS": IN_TURN
    }  # fmt: skip
    return prepare(multi_tensor, (programs,), runtime, fixed, constexprs, name=name, aligned=aligned)


def prepare_multi_tensor_sum(
    program: Program, kind: str, scalars: tuple[str, ...], total: str, sizes: Sequence[int], base: int, *,
    aligned: bool, name: str,
) -> tuple[Launch, int]:  # fmt: skip
    """A launch that sums what `program`, of one result, makes of tensors of `sizes` elements; how many sums it gives.

    Args:
        kind, scalars, total: Triton type names of the tensors, of run-time scalars, and of the result and the sums.
        base: which place in the output the first sum takes.

    Returns:
        A callable that takes the address of the output, the addresses of `slots(len(sizes))` tensors, and the scalars.
    """
    widest = int(kind.lstrip("bfpiu")) // 8
    blocks = tuple(tile(n, widest) for n in sizes) if IN_TURN else (SUMMED * tile(max(sizes), widest),)
    programs, fixed = _division(sizes, blocks)
    runtime = ("*" + total, ("*" + kind,) * slots(len(sizes)), scalars)
    constexprs = {"PROGRAM": program, "BLOCKS": blocks, "TURNS": IN_TURN}
    launch = prepare(multi_tensor_sum, (programs,), runtime, (*fixed, (base,)), constexprs, name=name, aligned=aligned)
    return launch, len(sizes) if IN_TURN else programs
