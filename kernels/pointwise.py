"""The pointwise template: one kernel that runs every Program over strided operands, broadcast by strides of 0."""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels.launch import INTERPRET, Launch, prepare, strides
from tgrad.kernels.program import Program, run


@triton.jit
def coordinates(index, shape, NDIM: tl.constexpr):
    """The coordinates of a flat index, outermost first."""
    where = ()
    for k in tl.static_range(NDIM - 1):
        where = (index % shape[NDIM - 1 - k],) + where
        index = index // shape[NDIM - 1 - k]
    return (index,) + where


@triton.jit
def offset(where, strides, NDIM: tl.constexpr):
    """The distance from the first element, in elements, of coordinates `where`."""
    total = where[0] * strides[0]
    for k in tl.static_range(1, NDIM):
        total += where[k] * strides[k]
    return total


@triton.jit
def pointwise(
    outs, ins, scalars, n, shape, out_strides, in_strides,
    PROGRAM: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program computes BLOCK consecutive elements of the flattened results.

    NDIM 0: every operand is dense and has the results' shape. An operand with empty strides is dense.
    WIDE: offsets are 64-bit.
    """
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WIDE:
        index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n
    if NDIM > 0:
        where = coordinates(index, shape, NDIM)
    values = ()
    for i in tl.static_range(len(ins)):
        if len(in_strides[i]) == 0:
            values = values + (tl.load(ins[i] + index, mask=mask, other=0),)
        else:
            values = values + (tl.load(ins[i] + offset(where, in_strides[i], NDIM), mask=mask, other=0),)
    for i in tl.static_range(len(scalars)):
        values = values + (scalars[i],)
    results = run(values, PROGRAM)
    for k in tl.static_range(len(outs)):
        if len(out_strides[k]) == 0:
            tl.store(outs[k] + index, results[k], mask=mask)
        else:
            tl.store(outs[k] + offset(where, out_strides[k], NDIM), results[k], mask=mask)


def tile(n: int, widest: int) -> int:
    """Elements per program, for operands of at most `widest` bytes per element.

    GPU: 1024 with 4 warps is 8 elements a thread, the fewest that give 16-byte accesses in half types; the interpreter
    pays per program, and gains nothing above 2^18.
    """
    if INTERPRET:
        return min(triton.next_power_of_2(n), 1 << 18)
    return 2048 if widest <= 2 else 1024


def prepare_pointwise(
    program: Program,
    types: tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]],
    shape: tuple[int, ...],
    out_strides: list[tuple[int, ...]],
    in_strides: list[tuple[int, ...]],
    *,
    aligned: bool,
    wide: bool,
    name: str,
) -> Launch:
    """A launch of `program` over `shape`, which has been collapsed; the callable takes outs, ins, scalars.

    Args:
        types: Triton type names of results, of tensor inputs and of run-time scalars.
        out_strides, in_strides: one stride per dimension of `shape` for each operand.
        aligned: whether every address is a multiple of 16.
        wide: whether some offset exceeds 31 bits.
    """
    n = 1
    for size in shape:
        n *= size
    dense = _dense(shape)
    outs = [() if s == dense else strides(s) for s in out_strides]
    ins = [() if s == dense else strides(s) for s in in_strides]
    flat = not any(outs) and not any(ins)
    widest = max(int(t.lstrip("bfpiu")) // 8 for t in (*types[0], *types[1]))
    block = tile(n, widest)
    runtime = (tuple("*" + t for t in types[0]), tuple("*" + t for t in types[1]), types[2])
    fixed = (n, () if flat else shape, tuple(outs), tuple(ins))
    constexprs = {"PROGRAM": program, "NDIM": 0 if flat else len(shape), "WIDE": wide, "BLOCK": block}
    return prepare(pointwise, (triton.cdiv(n, block),), runtime, fixed, constexprs, name=name, aligned=aligned)


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
