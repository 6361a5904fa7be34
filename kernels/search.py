"""Where values belong in sorted rows: binary search, each element by itself."""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels.launch import Launch, prepare
from tgrad.kernels.pointwise import tile
from tgrad.kernels.program import TYPES, convert


@triton.jit
def search(
    out, rows, values, order, count, n, per_row, row_step,
    TYPE: tl.constexpr, RIGHT: tl.constexpr, ORDERED: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[i]: how many of the n elements of a row stand before values[i]: those less, or with RIGHT not greater.

    The row begins at (i // per_row) * row_step. ORDERED: element k of a row is the one at order[k]. A nan goes last.
    """
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    value = convert(tl.load(values + i, mask=mask, other=0), TYPE)
    start = i // per_row * row_step
    low = tl.zeros((BLOCK,), tl.int64)
    high = tl.zeros((BLOCK,), tl.int64) + n
    for _ in range(STEPS):
        looking = mask & (low < high)
        middle = (low + high) // 2
        at = middle
        if ORDERED:
            at = tl.load(order + (start + middle), mask=looking, other=0)
            looking = looking & (at >= 0) & (at < n)
        found = convert(tl.load(rows + (start + at), mask=looking, other=0), TYPE)
        beyond = found > value if RIGHT else found >= value
        low = tl.where(looking & (beyond == 0), middle + 1, low)
        high = tl.where(looking & beyond, middle, high)
    tl.store(out + i, low.to(out.dtype.element_ty), mask=mask)


def prepare_search(kind: str, result: str, count: int, n: int, per_row: int, row_step: int, *, right: bool,
                   ordered: bool) -> Launch:  # fmt: skip
    """A launch of `search`; takes the result, the rows, the values, and the order (the rows again, if not `ordered`).

    Args:
        kind: Triton type of rows and values; result: "i64" or "i32".
        count: number of values; n: of elements in a row; per_row: of values for each row; row_step: from row to row.
    """
    block = max(2, min(tile(count, 8), 1 << 16))
    runtime = ("*" + result, "*" + kind, "*" + kind, "*i64" if ordered else "*" + kind)
    wide = "fp32" if kind in ("fp16", "bf16") else kind
    constexprs = {"TYPE": TYPES[wide], "RIGHT": right, "ORDERED": ordered, "STEPS": n.bit_length(), "BLOCK": block}
    return prepare(
        search, (triton.cdiv(count, block),), runtime, (count, n, per_row, row_step), constexprs, aligned=False
    )
