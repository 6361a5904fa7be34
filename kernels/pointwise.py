"""The pointwise template: kernels that run every Program over strided operands, broadcast by strides of 0.

Memory moves 16 bytes at a time wherever a layout lets it, in three ways, which `prepare_pointwise` chooses among:

- whole blocks of dense operands are not masked: a mask against a size that 16 does not divide would split each access;
- where the innermost size allows, elements go in groups that differ in the innermost coordinate alone, so that a
  division serves a group, and a column that is repeated is read once for each;
- where operands lie across each other, as in the copy of a transpose, tiles: each is read along its own rows.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from tgrad.kernels.launch import INTERPRET, VECTOR, Launch, Static, multiple, multiples, prepare, strides
from tgrad.kernels.program import Program, run

ACROSS = 8  # the least size of both dimensions of a transpose that goes by tiles


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
def loaded(at, mask, whole):
    """The elements at `at`; if all of them exist the access is not masked, and so as wide as can be.

    A function of its own, since the elements of several operands have several types.
    """
    if whole:
        element = tl.load(at)
    else:
        element = tl.load(at, mask=mask, other=0)
    return element


@triton.jit
def pointwise(
    outs, ins, scalars, n, shape, out_strides, in_strides,
    PROGRAM: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr,
    GROUP: tl.constexpr, STILL: tl.constexpr,
):  # fmt: skip
    """Each program computes BLOCK consecutive elements of the flattened results.

    NDIM 0: every operand is dense and has the results' shape. An operand with empty strides is dense.
    WIDE: offsets are 64-bit.
    SPLIT: only the last block is masked.
    GROUP: n and the innermost size count groups of so many elements, which lie in one innermost row.
    STILL: for each input, whether all elements of a group are one.
    """
    start = tl.program_id(0) * (BLOCK // GROUP)
    if WIDE:
        start = tl.program_id(0).to(tl.int64) * (BLOCK // GROUP)
    index = start + tl.arange(0, BLOCK // GROUP)
    mask = index < n
    if NDIM > 0:
        first = coordinates(index, shape, NDIM)
    if GROUP > 1:
        first = first[: NDIM - 1] + (first[NDIM - 1] * GROUP,)
        lane = tl.arange(0, GROUP)[None, :]
        group_mask = mask[:, None]
        index = index[:, None] * GROUP + lane
        mask = tl.broadcast_to(group_mask, index.shape)
    if SPLIT:
        whole = start <= n - BLOCK  # in this form nothing overflows; n is at least BLOCK
    values = ()
    for i in tl.static_range(len(ins)):
        if len(in_strides[i]) == 0:
            at = ins[i] + index
        elif GROUP == 1:
            at = ins[i] + offset(first, in_strides[i], NDIM)
        elif STILL[i]:
            at = ins[i] + offset(first, in_strides[i], NDIM)[:, None]
        else:
            at = ins[i] + (offset(first, in_strides[i], NDIM)[:, None] + lane * in_strides[i][NDIM - 1])
        if STILL[i]:
            value = tl.broadcast_to(tl.load(at, mask=group_mask, other=0), index.shape)
        elif SPLIT:
            value = loaded(at, mask, whole)
        else:
            value = tl.load(at, mask=mask, other=0)
        values = values + (value,)
    for i in tl.static_range(len(scalars)):
        values = values + (scalars[i],)
    results = run(values, PROGRAM)
    for k in tl.static_range(len(outs)):
        if len(out_strides[k]) == 0:
            at = outs[k] + index
        elif GROUP == 1:
            at = outs[k] + offset(first, out_strides[k], NDIM)
        else:
            at = outs[k] + (offset(first, out_strides[k], NDIM)[:, None] + lane * out_strides[k][NDIM - 1])
        if SPLIT:
            if whole:
                tl.store(at, results[k])
            else:
                tl.store(at, results[k], mask=mask)
        else:
            tl.store(at, results[k], mask=mask)


@triton.jit
def pointwise_tiles(
    outs, ins, scalars, M, N, ROWS, COLUMNS, shape, out_strides, in_strides, out_steps, in_steps,
    PROGRAM: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Each program computes a tile of BM by BN elements of one of the matrices, M by N, that the results consist of.

    ROWS, COLUMNS: tiles along M and N.
    shape, out_strides, in_strides: of the NDIM dimensions that number the matrices.
    out_steps, in_steps: the strides along M and N.
    """
    tile = tl.program_id(0)
    if WIDE:
        tile = tile.to(tl.int64)
    m = (tile // COLUMNS) % ROWS * BM + tl.arange(0, BM)
    n = tile % COLUMNS * BN + tl.arange(0, BN)
    matrix = tile // COLUMNS // ROWS
    mask = (m < M)[:, None] & (n < N)[None, :]
    if NDIM > 0:
        where = coordinates(matrix, shape, NDIM)
    values = ()
    for i in tl.static_range(len(ins)):
        at = ins[i]
        if NDIM > 0:
            at += offset(where, in_strides[i], NDIM)
        at += (m * in_steps[i][0])[:, None] + (n * in_steps[i][1])[None, :]
        values = values + (tl.load(at, mask=mask, other=0),)
    for i in tl.static_range(len(scalars)):
        values = values + (scalars[i],)
    results = run(values, PROGRAM)
    for k in tl.static_range(len(outs)):
        at = outs[k]
        if NDIM > 0:
            at += offset(where, out_strides[k], NDIM)
        tl.store(at + ((m * out_steps[k][0])[:, None] + (n * out_steps[k][1])[None, :]), results[k], mask=mask)


def tile(n: int, widest: int) -> int:
    """Elements per program, for operands of at most `widest` bytes per element.

    GPU: 1024 with 4 warps is 8 elements a thread, the fewest that give 16-byte accesses in half types; the interpreter
    pays per program, and gains nothing above 2^18.
    """
    if INTERPRET:
        return min(triton.next_power_of_2(n), 1 << 18)
    return 2048 if widest <= 2 else 1024


def split(n: int, block: int) -> bool:
    """Whether whole blocks of n elements go unmasked, apart from the last."""
    return not INTERPRET and n % 16 != 0 and n >= block


def group(inner: int, narrowest: int) -> int:
    """Elements of a group, for an innermost dimension of size `inner` and at least `narrowest` bytes an element."""
    if INTERPRET:
        return 1
    return VECTOR if inner % VECTOR == 0 else 4 if inner % 4 == 0 and narrowest >= 4 else 1


def across(shape: tuple[int, ...], rows: list[tuple[int, ...]]) -> int | None:
    """The dimension along which some operand is contiguous, others being so along the innermost: a transpose."""
    if INTERPRET or len(shape) < 2 or shape[-1] < ACROSS or not any(row[-1] == 1 for row in rows):
        return None
    for row in rows:
        if row[-1] not in (0, 1):
            for d in range(len(shape) - 1):
                if row[d] == 1 and shape[d] >= ACROSS:
                    return d
    return None


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
    runtime = (tuple("*" + t for t in types[0]), tuple("*" + t for t in types[1]), types[2])
    dim = across(shape, [*out_strides, *in_strides])
    if dim is not None:
        return _prepare_tiles(
            program, runtime, shape, dim, out_strides, in_strides, aligned=aligned, wide=wide, name=name
        )
    n = math.prod(shape)
    dense = _dense(shape)
    outs = [() if s == dense else strides(s) for s in out_strides]
    ins = [() if s == dense else strides(s) for s in in_strides]
    flat = not any(outs) and not any(ins)
    widths = [int(t.lstrip("bfpiu")) // 8 or 1 for t in (*types[0], *types[1])]
    block = tile(n, max(widths))
    of = 1 if flat else group(shape[-1], min(widths))
    grouped = (*shape[:-1], shape[-1] // of) if shape else ()
    still = tuple(of > 1 and s != () and s[-1] == 0 for s in ins)
    fixed = (n // of, () if flat else grouped, tuple(outs), tuple(ins))
    constexprs = {
        "PROGRAM": program, "NDIM": 0 if flat else len(shape), "WIDE": wide, "BLOCK": block,
        "SPLIT": of == 1 and split(n, block), "GROUP": of, "STILL": still,
    }  # fmt: skip
    return prepare(pointwise, (triton.cdiv(n, block),), runtime, fixed, constexprs, name=name, aligned=aligned)


def _prepare_tiles(
    program: Program, runtime: tuple, shape: tuple[int, ...], dim: int, out_strides: list[tuple[int, ...]],
    in_strides: list[tuple[int, ...]], *, aligned: bool, wide: bool, name: str,
) -> Launch:  # fmt: skip
    """A launch over tiles of dimension `dim` and the innermost."""
    m, n = shape[dim], shape[-1]
    bm, bn = matrix_tile(m, n)

    def outer(values: tuple[int, ...]) -> tuple[int, ...]:
        return multiples((*values[:dim], *values[dim + 1 : -1]))

    def steps(values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(Static(s) if s in (0, 1) else multiple(s) for s in (values[dim], values[-1]))

    matrices = (*shape[:dim], *shape[dim + 1 : -1])
    fixed = (
        multiple(m), multiple(n), triton.cdiv(m, bm), triton.cdiv(n, bn), matrices,
        tuple(map(outer, out_strides)), tuple(map(outer, in_strides)),
        tuple(map(steps, out_strides)), tuple(map(steps, in_strides)),
    )  # fmt: skip
    constexprs = {"PROGRAM": program, "NDIM": len(matrices), "WIDE": wide, "BM": bm, "BN": bn}
    grid = (triton.cdiv(m, bm) * triton.cdiv(n, bn) * math.prod(matrices),)
    return prepare(pointwise_tiles, grid, runtime, fixed, constexprs, name=name, warps=8, aligned=aligned)


def matrix_tile(m: int, n: int) -> tuple[int, int]:
    """(rows, columns) of a tile: 64 by 64, longer where the other side is short."""
    bm = min(64, triton.next_power_of_2(m))
    bn = min(4096 // bm, triton.next_power_of_2(n))
    return min(4096 // bn, triton.next_power_of_2(m), 64), bn


def _dense(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))
