"""The greatest or least elements, and where they are."""

from __future__ import annotations

import math

import numpy as np
import triton
import triton.language as tl

from tgrad.kernels.launch import INTERPRET, Launch, multiple, multiples, prepare, strides
from tgrad.kernels.pointwise import coordinates, offset
from tgrad.kernels.program import TYPES, convert
from tgrad.kernels.reduce import IDENTITIES

NOWHERE = tl.constexpr(2**63 - 1)


@triton.jit
def _first(better, tie, a, i, b, j):
    take = better | (tie & (i < j))
    return tl.where(take, a, b), tl.where(take, i, j)


@triton.jit
def greater(a, i, b, j):
    """The greater of a at i and b at j; nan wins, and of two that tie the one that comes first."""
    return _first((a > b) | ((a != a) & (b == b)), (a == b) | ((a != a) & (b != b)), a, i, b, j)


@triton.jit
def less(a, i, b, j):
    return _first((a < b) | ((a != a) & (b == b)), (a == b) | ((a != a) & (b != b)), a, i, b, j)


if INTERPRET:
    from tgrad.kernels.interpret import register_reduce

    def _registered(best):
        def reduce(blocks, axis):
            values, at = blocks
            found = best(values, axis=axis, keepdims=True)
            hit = (values == found) | ((values != values) & (found != found))
            place = np.argmin(np.where(hit, at, np.iinfo(at.dtype).max), axis=axis)
            place = np.expand_dims(place, axis)
            return tuple(np.take_along_axis(x, place, axis).squeeze(axis) for x in blocks)

        return reduce

    register_reduce(greater, _registered(np.max))
    register_reduce(less, _registered(np.min))


@triton.jit
def extreme(
    values, indices, x, places, M, N, CHUNK, kept_shape, reduced_shape, kept_strides, reduced_strides,
    KIND: tl.constexpr, IDENTITY: tl.constexpr, TYPE: tl.constexpr, RESULT: tl.constexpr,
    KEPT: tl.constexpr, REDUCED: tl.constexpr, PLACED: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Each program finds, for BM of the M results, the extreme of CHUNK of N elements, in row-major order.

    With several chunks, chunk k of result m is stored at k * M + m. PLACED: x holds extremes already, those of the
    chunks, and `places` where each was found.
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    first = tl.program_id(1) * CHUNK
    if WIDE:
        m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
        first = tl.program_id(1).to(tl.int64) * CHUNK
    row = m * 0
    if KEPT > 0:
        row = offset(coordinates(m, kept_shape, KEPT), kept_strides, KEPT)
    best = tl.full((BM, BN), IDENTITY, TYPE)
    at = tl.full((BM, BN), NOWHERE, tl.int64)
    last = tl.minimum(first + CHUNK, N)
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
        if WIDE:
            n = n.to(tl.int64)
        mask = (m[:, None] < M) & (n[None, :] < last)
        column = offset(coordinates(n, reduced_shape, REDUCED), reduced_strides, REDUCED)
        value = convert(tl.load(x + (row[:, None] + column[None, :]), mask=mask, other=0), TYPE)
        value = tl.where(mask, value, tl.full((), IDENTITY, TYPE))
        if PLACED:
            place = tl.load(places + (row[:, None] + column[None, :]), mask=mask, other=0)
        else:
            place = n[None, :].to(tl.int64)
        place = tl.where(mask, place, NOWHERE)
        if KIND == "max":
            best, at = greater(value, place, best, at)
        else:
            best, at = less(value, place, best, at)
    if KIND == "max":
        best, at = tl.reduce((best, at), 1, greater)
    else:
        best, at = tl.reduce((best, at), 1, less)
    to = tl.program_id(1) * M + m
    tl.store(values + to, convert(best, RESULT), mask=m < M)
    tl.store(indices + to, at, mask=m < M)


def prepare_extreme(
    kind: str,
    types: tuple[str, str],
    kept: tuple[tuple[int, ...], tuple[int, ...]],
    reduced: tuple[tuple[int, ...], tuple[int, ...]],
    *,
    pieces: int,
    block: tuple[int, int],
    placed: bool,
    aligned: bool,
    wide: bool,
    name: str,
) -> Launch:
    """A launch of a search; the callable takes values, indices (int64), the operand, then its indices if `placed`.

    Args:
        kind: "max" or "min".
        types: Triton types of the operand, which the values have, and of the comparison.
        kept, reduced: collapsed sizes and strides of the dimensions that stay and that go.
        pieces: how many partial results each result gets.
        placed: whether the operand holds the results of pieces.
    """
    m, n = math.prod(kept[0]), math.prod(reduced[0])
    bm, bn = block
    chunk = triton.cdiv(triton.cdiv(n, pieces), bn) * bn
    constexprs = {
        "KIND": kind, "IDENTITY": IDENTITIES[kind][types[1]], "TYPE": TYPES[types[1]], "RESULT": TYPES[types[0]],
        "KEPT": len(kept[0]), "REDUCED": len(reduced[0]), "PLACED": placed, "WIDE": wide,
        "BM": bm, "BN": bn,
    }  # fmt: skip
    fixed = (
        multiple(m), multiple(n), multiple(chunk), multiples(kept[0]), multiples(reduced[0]), strides(kept[1]),
        strides(reduced[1]),
    )  # fmt: skip
    runtime = ("*" + types[0], "*i64", "*" + types[0], "*i64")
    call = prepare(
        extreme, (triton.cdiv(m, bm), pieces), runtime, fixed, constexprs, name=name,
        warps=8 if bm * bn >= 4096 else 4, aligned=aligned,
    )  # fmt: skip
    return call if placed else lambda values, indices, x: call(values, indices, x, indices)
