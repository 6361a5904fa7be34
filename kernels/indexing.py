"""Kernels that read and write where an index tensor says, find the elements that are not zero, and cut triangles.

An index counts through some dimensions of a tensor in row-major order, from the front or, if negative, from the back.
An index out of range touches no memory: reading gives nan, or 0 for integers; writing does nothing. (The host refuses
one on the CPU, and on a GPU where it asks `first_outside`.)
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels.launch import Launch, prepare
from tgrad.kernels.pointwise import coordinates, offset, tile
from tgrad.kernels.program import TYPES, convert

NOWHERE = 2**63 - 1  # no position: what `first_outside` starts from

# What `put` can add to in one atomic operation; other types are added up in ACCUMULATORS.
ATOMIC = frozenset(("fp32", "fp64", "i32", "i64"))


@triton.jit
def target(where, index, index_strides, sizes, steps, total, mask, NDIM: tl.constexpr, K: tl.constexpr,
           WIDE: tl.constexpr):  # fmt: skip
    """The offset that the index of coordinates `where` means, and whether it is in range."""
    at = tl.load(index + offset(where, index_strides, NDIM), mask=mask, other=0).to(tl.int64)
    at = tl.where(at < 0, at + total, at)
    inside = mask & (at >= 0) & (at < total)
    at = tl.where(inside, at, 0)
    if not WIDE:
        at = at.to(tl.int32)
    return offset(coordinates(at, sizes, K), steps, K), inside


@triton.jit
def get(
    out, x, index, n, total, shape, x_strides, index_strides, sizes, steps,
    NDIM: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[where] = x[where by x_strides, index[where] by steps]. WIDE: offsets are 64-bit."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WIDE:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    where = coordinates(i, shape, NDIM)
    at, inside = target(where, index, index_strides, sizes, steps, total, mask, NDIM, K, WIDE)
    other = float("nan") if x.dtype.element_ty.is_floating() else 0
    tl.store(out + i, tl.load(x + offset(where, x_strides, NDIM) + at, mask=inside, other=other), mask=mask)


@triton.jit
def put(
    out, index, value, n, total, shape, out_strides, index_strides, value_strides, sizes, steps,
    TYPE: tl.constexpr, ADD: tl.constexpr, NDIM: tl.constexpr, K: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[where by out_strides, index[where] by steps] = or += value[where].

    Added atomically: floats that meet in one place are added in any order. WIDE: offsets are 64-bit.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WIDE:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    where = coordinates(i, shape, NDIM)
    at, inside = target(where, index, index_strides, sizes, steps, total, mask, NDIM, K, WIDE)
    v = convert(tl.load(value + offset(where, value_strides, NDIM), mask=inside, other=0), TYPE)
    to = out + offset(where, out_strides, NDIM) + at
    if ADD:
        tl.atomic_add(to, v, mask=inside, sem="relaxed")
    else:
        tl.store(to, v, mask=inside)


@triton.jit
def first_outside(
    found, index, low, high, ignored, n, shape, index_strides, NDIM: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """found[0] = the least i whose index is neither in [low, high) nor `ignored`; left alone if there is none."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if WIDE:
        i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    v = tl.load(index + offset(coordinates(i, shape, NDIM), index_strides, NDIM), mask=mask, other=0).to(tl.int64)
    wrong = mask & ((v < low) | (v >= high)) & (v != ignored)
    first = tl.min(tl.where(wrong, i.to(tl.int64), 0x7FFFFFFFFFFFFFFF), 0)
    tl.atomic_min(found, first, mask=first != 0x7FFFFFFFFFFFFFFF)


@triton.jit
def count(out, x, n, BLOCK: tl.constexpr):
    """The number of true elements in each block of x."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = tl.load(x + i, mask=i < n, other=0).to(tl.int64)
    tl.store(out + tl.program_id(0), tl.sum(here, 0))


@triton.jit
def compact(out, x, starts, n, room, shape, NDIM: tl.constexpr, BLOCK: tl.constexpr):
    """The coordinates of the true elements of x, a row of NDIM numbers for each, in order."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = tl.load(x + i, mask=i < n, other=0).to(tl.int64)
    row = tl.load(starts + tl.program_id(0)) + tl.cumsum(here, 0) - 1
    mask = (here != 0) & (row < room)
    where = coordinates(i, shape, NDIM)
    for d in tl.static_range(NDIM):
        tl.store(out + row * NDIM + d, where[d], mask=mask)


@triton.jit
def triangle(out, x, n, rows, columns, diagonal, UPPER: tl.constexpr, BLOCK: tl.constexpr):
    """x with zeros below (UPPER) or above a diagonal of each matrix."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    distance = i % columns - i // columns % rows
    keep = distance >= diagonal if UPPER else distance <= diagonal
    tl.store(out + i, tl.load(x + i, mask=mask & keep, other=0), mask=mask)


Walk = tuple[tuple[int, ...], list[tuple[int, ...]]]  # sizes, and strides over them for each operand


def prepare_get(types: tuple[str, str], region: Walk, indexed: Walk, total: int, *, wide: bool, name: str) -> Launch:
    """A launch of `get`; takes the result, x and the index.

    Args:
        types: Triton types of x and of the index.
        region: sizes of the result, strides of x and of the index over them.
        indexed: sizes of the indexed dimensions and x's strides over them; `total`: their product.
        wide: whether some offset exceeds 31 bits.
    """
    (shape, (x, index)), (sizes, (steps,)) = region, indexed
    n = _numel(shape)
    block = _block(n)
    runtime = ("*" + types[0], "*" + types[0], "*" + types[1])
    constexprs = {"NDIM": len(shape), "K": len(sizes), "WIDE": wide, "BLOCK": block}
    fixed = (n, total, shape, x, index, sizes, steps)
    return prepare(get, (triton.cdiv(n, block),), runtime, fixed, constexprs, name=name, aligned=False)


def prepare_put(
    types: tuple[str, str, str], region: Walk, indexed: Walk, total: int, *, add: bool, wide: bool, name: str
) -> Launch:
    """A launch of `put`; takes the target, the index and the values.

    Args:
        types: Triton types of the target, the index and the values; to be added to, the target's is in ATOMIC.
        region: sizes of the values, strides of the target, the index and the values over them.
        indexed: sizes of the indexed dimensions and the target's strides over them; `total`: their product.
        wide: whether some offset exceeds 31 bits.
    """
    (shape, (out, index, value)), (sizes, (steps,)) = region, indexed
    n = _numel(shape)
    block = _block(n)
    runtime = tuple("*" + t for t in types)
    constexprs = {
        "TYPE": TYPES[types[0]],
        "ADD": add,
        "NDIM": len(shape),
        "K": len(sizes),
        "WIDE": wide,
        "BLOCK": block,
    }
    fixed = (n, total, shape, out, index, value, sizes, steps)
    return prepare(put, (triton.cdiv(n, block),), runtime, fixed, constexprs, name=name, aligned=False)


def prepare_first_outside(kind: str, shape: tuple[int, ...], strides: tuple[int, ...], *, wide: bool) -> Launch:
    """A launch of `first_outside`; takes the found position (NOWHERE at first), the index, and three integers.

    Args:
        kind: Triton type of the index; `shape`, `strides`: its own, collapsed.
        wide: whether some offset exceeds 31 bits.
    """
    n = _numel(shape)
    block = _block(n)
    runtime = ("*i64", "*" + kind, "i64", "i64", "i64")
    constexprs = {"NDIM": len(shape), "WIDE": wide, "BLOCK": block}
    return prepare(
        first_outside, (triton.cdiv(n, block),), runtime, (n, shape, strides), constexprs, name="check_indices",
        aligned=False,
    )  # fmt: skip


def _block(n: int) -> int:
    return max(2, min(tile(n, 8), 1 << 16))


def prepare_count(n: int) -> tuple[Launch, int]:
    """A launch of `count` over n bools, and the number of blocks; takes the counts and the bools."""
    block = _block(n)
    blocks = triton.cdiv(n, block)
    return prepare(count, (blocks,), ("*i64", "*i1"), (n,), {"BLOCK": block}, aligned=False), blocks


def prepare_compact(n: int, room: int, shape: tuple[int, ...]) -> Launch:
    """A launch of `compact` into `room` rows; takes the rows, the bools and where each block's rows start."""
    block = _block(n)
    constexprs = {"NDIM": len(shape), "BLOCK": block}
    runtime = ("*i64", "*i1", "*i64")
    return prepare(compact, (triton.cdiv(n, block),), runtime, (n, room, shape), constexprs, aligned=False)


def prepare_triangle(kind: str, n: int, rows: int, columns: int, diagonal: int, upper: bool) -> Launch:
    """A launch of `triangle` over n elements of row-major matrices; takes the result and x."""
    block = _block(n)
    constexprs = {"UPPER": upper, "BLOCK": block}
    name = "triu" if upper else "tril"
    fixed = (n, rows, columns, diagonal)
    return prepare(triangle, (triton.cdiv(n, block),), ("*" + kind,) * 2, fixed, constexprs, name=name, aligned=False)


def _numel(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n
