"""Reductions: sum, product, maximum and minimum over any dimensions, of a Program of any number of operands."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from tgrad.kernels.launch import INTERPRET, MULTIPROCESSORS, VECTOR, Launch, multiple, multiples, prepare, strides
from tgrad.kernels.pointwise import coordinates, loaded, offset
from tgrad.kernels.program import TYPES, Program, run
from tgrad.kernels.scalar import maximum, minimum, mul

if INTERPRET:
    from tgrad.kernels.interpret import register_reduce


if INTERPRET:
    register_reduce(maximum, lambda x, axis: np.max(x, axis=axis))
    register_reduce(minimum, lambda x, axis: np.min(x, axis=axis))
    register_reduce(mul, lambda x, axis: np.prod(x, axis=axis, dtype=np.float64 if x.dtype.kind == "f" else None))


@triton.jit
def combine(a, b, KIND: tl.constexpr):
    if KIND == "sum":
        c = a + b
    elif KIND == "prod":
        c = a * b
    elif KIND == "max":
        c = maximum(a, b)
    else:
        c = minimum(a, b)
    return c


@triton.jit
def fold(x, AXIS: tl.constexpr, KIND: tl.constexpr):
    """Combine a block along AXIS."""
    if KIND == "sum":
        y = tl.sum(x, AXIS)
    elif KIND == "prod":
        y = tl.reduce(x, AXIS, mul)
    elif KIND == "max":
        y = tl.reduce(x, AXIS, maximum)
    else:
        y = tl.reduce(x, AXIS, minimum)
    return y


@triton.jit
def reduce(
    outs, ins, scalars, M, N, CHUNK, kept_shape, reduced_shape, kept_strides, reduced_strides,
    PROGRAM: tl.constexpr, NUMBERS: tl.constexpr, EPILOGUE: tl.constexpr, KIND: tl.constexpr, IDENTITY: tl.constexpr,
        TYPE: tl.constexpr,
    KEPT: tl.constexpr, REDUCED: tl.constexpr, WIDE: tl.constexpr, SPLIT: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """Each program reduces, for BM of the M results, CHUNK of the N elements that belong to each.

    PROGRAM maps the operands and the first NUMBERS scalars to a value of type TYPE; EPILOGUE maps the total and the
    other scalars to what is stored. With several chunks, chunk k of result m is stored at k * M + m. SPLIT: only blocks
    at the edges are masked.
    """
    if WIDE:
        m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
        first = tl.program_id(1).to(tl.int64) * CHUNK
    else:
        m = tl.program_id(0) * BM + tl.arange(0, BM)
        first = tl.program_id(1) * CHUNK
    row = ()
    if KEPT > 0:
        kept = coordinates(m, kept_shape, KEPT)
        for i in tl.static_range(len(ins)):
            row = row + (offset(kept, kept_strides[i], KEPT),)
    else:
        for _ in tl.static_range(len(ins)):
            row = row + (m * 0,)
    acc = tl.full((BM, BN), IDENTITY, TYPE)
    last = tl.minimum(first + CHUNK, N)
    if SPLIT:
        whole = tl.program_id(0) * BM <= M - BM
    for start in range(first, last, BN):
        n = start + tl.arange(0, BN)
        if WIDE:
            n = n.to(tl.int64)
        mask = (m[:, None] < M) & (n[None, :] < last)
        if REDUCED > 0:
            reduced = coordinates(n, reduced_shape, REDUCED)
        values = ()
        for i in tl.static_range(len(ins)):
            if REDUCED > 0:
                column = offset(reduced, reduced_strides[i], REDUCED)
            else:
                column = n
            at = ins[i] + (row[i][:, None] + column[None, :])
            if SPLIT:
                element = loaded(at, mask, (start <= last - BN) & whole)
            else:
                element = tl.load(at, mask=mask, other=0)
            values = values + (element,)
        for i in tl.static_range(NUMBERS):
            values = values + (scalars[i],)
        value = run(values, PROGRAM)[0]
        acc = combine(acc, tl.where(mask, value, tl.full((), IDENTITY, TYPE)), KIND)
    total = fold(acc, 1, KIND)
    values = (total,)
    for i in tl.static_range(NUMBERS, len(scalars)):
        values = values + (scalars[i],)
    result = run(values, EPILOGUE)[0]
    tl.store(outs[0] + tl.program_id(1) * M + m, result, mask=m < M)


IDENTITIES: dict[str, dict[str, float | int]] = {
    "sum": dict.fromkeys(TYPES, 0),
    "prod": dict.fromkeys(TYPES, 1),
    "max": {"fp32": float("-inf"), "fp64": float("-inf"), "i32": -(2**31), "i64": -(2**63), "u8": 0},
    "min": {"fp32": float("inf"), "fp64": float("inf"), "i32": 2**31 - 1, "i64": 2**63 - 1, "u8": 255},
}


def tile(m: int, n: int, across: bool) -> tuple[int, int]:
    """(results, elements of each) per program. `across`: neighbouring results are neighbours in memory.

    GPU: about 4096 elements a program, wide along what is contiguous. Interpreter: as few programs as fit in 2^18.
    """
    bm, bn = triton.next_power_of_2(m), triton.next_power_of_2(max(n, 1))
    if INTERPRET:
        bm, bn = max(2, bm), max(2, min(bn, 1 << 16))  # it takes a block of 1 for a scalar
        return min(bm, (1 << 18) // bn), bn
    if across:
        bm = min(bm, max(128, 1024 // bn))
        return bm, min(bn, 4096 // bm)
    bn = min(bn, 2048)
    bm = min(bm, 4096 // bn, 512)
    while bm > 1 and bm * bn > 1024 and triton.cdiv(m, bm) < MULTIPROCESSORS:
        bm //= 2
    return bm, bn


RESIDENT = 4  # programs that one of them runs at a time, so that memory is kept busy while each waits for its own


def chunks(m: int, n: int, bm: int, bn: int) -> int:
    """Pieces to cut each reduction into, each time the same, so that there are programs for all multiprocessors; up to
    four blocks stay one piece, since a second pass takes longer."""
    if INTERPRET or n <= 4 * bn:
        return 1
    pieces = max(1, min(RESIDENT * MULTIPROCESSORS // triton.cdiv(m, bm), triton.cdiv(n, bn)))
    return triton.cdiv(n, triton.cdiv(triton.cdiv(n, pieces), bn) * bn)  # of whole blocks: the last is not empty


def split(m: int, n: int, in_strides: list[tuple[int, ...]]) -> bool:
    """Whether whole blocks go unmasked: where rows begin at multiples of 16 bytes, or there is one, but a mask would
    divide them."""
    return not INTERPRET and n % VECTOR != 0 and all(v % VECTOR == 0 for s in in_strides for v in s)


def prepare_reduce(
    program: Program,
    epilogue: Program,
    kind: str,
    types: tuple[str, tuple[str, ...], tuple[str, ...], str],
    kept: tuple[tuple[int, ...], list[tuple[int, ...]]],
    reduced: tuple[tuple[int, ...], list[tuple[int, ...]]],
    *,
    numbers: int,
    pieces: int,
    block: tuple[int, int],
    aligned: bool,
    wide: bool,
    name: str,
) -> Launch:
    """A launch of one pass; the callable takes the result, the operands, then the scalars.

    Args:
        types: Triton types of the result, the operands, the scalars, and of the accumulator.
        kept, reduced: collapsed sizes and each operand's strides, of the dimensions that stay and that go.
        numbers: how many of the scalars belong to `program`.
        pieces: how many partial results each result gets.
    """
    m, n = _product(kept[0]), _product(reduced[0])
    bm, bn = block
    chunk = triton.cdiv(triton.cdiv(n, pieces), bn) * bn
    out, ins, scalars, accumulator = types
    dense = len(reduced[0]) == 1 and all(s == (1,) for s in reduced[1])
    runtime = (("*" + out,), tuple("*" + t for t in ins), scalars)
    fixed = (
        multiple(m), multiple(n), multiple(chunk), multiples(kept[0]), () if dense else multiples(reduced[0]),
        tuple(strides(s) for s in kept[1]), () if dense else tuple(strides(s) for s in reduced[1]),
    )  # fmt: skip
    constexprs = {
        "PROGRAM": program, "NUMBERS": numbers, "EPILOGUE": epilogue, "KIND": kind,
        "IDENTITY": IDENTITIES[kind][accumulator],
        "TYPE": TYPES[accumulator], "KEPT": len(kept[0]), "REDUCED": 0 if dense else len(reduced[0]), "WIDE": wide,
        "SPLIT": dense and split(m, n, kept[1]), "BM": bm, "BN": bn,
    }  # fmt: skip
    grid = (triton.cdiv(m, bm), pieces)
    warps = 8 if bm * bn >= 4096 else 4
    return prepare(reduce, grid, runtime, fixed, constexprs, name=name, warps=warps, aligned=aligned)


def _product(sizes: tuple[int, ...]) -> int:
    n = 1
    for size in sizes:
        n *= size
    return n
