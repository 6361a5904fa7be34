"""Running sums, products and extremes along one dimension."""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from tgrad.kernels.launch import INTERPRET, Launch, Static, multiple, multiples, prepare, strides
from tgrad.kernels.pointwise import coordinates, offset
from tgrad.kernels.program import TYPES, convert
from tgrad.kernels.reduce import IDENTITIES
from tgrad.kernels.scalar import maximum, minimum, mul

if INTERPRET:
    from tgrad.kernels.interpret import elementwise

    # The interpreter's own scans are numpy's too, but in the type of the block: in float64 the error vanishes.
    _sums = elementwise(lambda x: np.cumsum(x, axis=1, dtype=np.float64))
    _products = elementwise(lambda x: np.cumprod(x, axis=1, dtype=np.float64))
    _greatest = elementwise(lambda x: np.maximum.accumulate(x, axis=1), integers=True)
    _least = elementwise(lambda x: np.minimum.accumulate(x, axis=1), integers=True)

    @triton.jit
    def running(x, KIND: tl.constexpr):
        if KIND == "max":
            y = _greatest(x)
        elif KIND == "min":
            y = _least(x)
        elif x.dtype.is_floating():
            y = _sums(x) if KIND == "sum" else _products(x)
        else:
            y = tl.cumsum(x, 1) if KIND == "sum" else tl.cumprod(x, 1)
        return y
else:

    @triton.jit
    def running(x, KIND: tl.constexpr):
        if KIND == "max":
            y = tl.associative_scan(x, 1, maximum)
        elif KIND == "min":
            y = tl.associative_scan(x, 1, minimum)
        else:
            y = tl.cumsum(x, 1) if KIND == "sum" else tl.cumprod(x, 1)
        return y


@triton.jit
def scan(
    out, x, M, N, shape, out_strides, x_strides, out_step, x_step,
    KIND: tl.constexpr, IDENTITY: tl.constexpr, REVERSE: tl.constexpr, SOURCE: tl.constexpr, TYPE: tl.constexpr,
    RESULT: tl.constexpr, KEPT: tl.constexpr, WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Each program scans BM of the M rows, from the first of the N elements on, or from the last if REVERSE.

    Values are converted to SOURCE, then to TYPE, in which they accumulate.
    """
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    if WIDE:
        m = tl.program_id(0).to(tl.int64) * BM + tl.arange(0, BM)
    if KEPT > 0:
        where = coordinates(m, shape, KEPT)
        to, source = offset(where, out_strides, KEPT), offset(where, x_strides, KEPT)
    else:
        to, source = m * 0, m * 0
    total = tl.full((BM,), IDENTITY, TYPE)
    for start in range(0, N, BN):
        n = start + tl.arange(0, BN)
        if WIDE:
            n = n.to(tl.int64)
        mask = (m[:, None] < M) & (n[None, :] < N)
        if REVERSE:
            n = tl.where(n < N, N - 1 - n, 0)
        value = tl.load(x + (source[:, None] + (n * x_step)[None, :]), mask=mask, other=0)
        value = tl.where(mask, convert(convert(value, SOURCE), TYPE), tl.full((), IDENTITY, TYPE))
        if KIND == "sum":
            result = running(value, KIND) + total[:, None]
            total += tl.sum(value, 1)
        elif KIND == "max":
            result = maximum(running(value, KIND), total[:, None])
            total = maximum(total, tl.reduce(value, 1, maximum))
        elif KIND == "min":
            result = minimum(running(value, KIND), total[:, None])
            total = minimum(total, tl.reduce(value, 1, minimum))
        else:
            result = running(value, KIND) * total[:, None]
            total *= tl.reduce(value, 1, mul)
        tl.store(out + (to[:, None] + (n * out_step)[None, :]), convert(result, RESULT), mask=mask)


def tile(m: int, n: int) -> tuple[int, int]:
    """(rows, elements of each) per block."""
    bm, bn = triton.next_power_of_2(m), triton.next_power_of_2(max(n, 1))
    if INTERPRET:
        bm, bn = max(2, bm), max(2, min(bn, 1 << 16))  # it takes a block of 1 for a scalar
        return min(bm, (1 << 18) // bn), bn
    bn = min(bn, 1024)
    return min(bm, 2048 // bn, 64), bn


def prepare_scan(
    kind: str,
    reverse: bool,
    types: tuple[str, str, str, str],
    rows: tuple[tuple[int, ...], list[tuple[int, ...]]],
    n: int,
    steps: tuple[int, int],
    *,
    aligned: bool,
    wide: bool,
    name: str,
) -> Launch:
    """A launch of a scan; the callable takes the result, then the operand.

    Args:
        kind: "sum", "prod", "max" or "min".
        types: Triton types of the result, of the operand, of what it is converted to first, and of the accumulator.
        rows: collapsed sizes of the other dimensions, and the strides of both along them.
        n: size of the dimension.
        steps: strides of both along it.
    """
    m = 1
    for size in rows[0]:
        m *= size
    bm, bn = tile(m, n)
    out, x, source, accumulator = types
    constexprs = {
        "KIND": kind, "IDENTITY": IDENTITIES[kind][accumulator], "REVERSE": reverse, "SOURCE": TYPES[source],
        "TYPE": TYPES[accumulator], "RESULT": TYPES[out],
        "KEPT": len(rows[0]), "WIDE": wide, "BM": bm, "BN": bn,
    }  # fmt: skip
    unit = [Static(1) if s == 1 else multiple(s) for s in steps]
    fixed = (m, multiple(n), multiples(rows[0]), *(strides(tuple(s)) for s in rows[1]), *unit)
    return prepare(
        scan, (triton.cdiv(m, bm),), ("*" + out, "*" + x), fixed, constexprs, name=name, aligned=aligned
    )  # fmt: skip
