"""Draws of categories by weight."""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels.creation import bits, stream_at, unit
from tgrad.kernels.launch import INTERPRET, Launch, prepare


@triton.jit
def choose(out, weights, seed, offset, n, samples, categories, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """out[i]: the first category of row i // samples where the running sum of weights exceeds a uniform draw of it."""
    seed, offset = stream_at(seed, offset)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    row = weights + i // samples * categories
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, categories, WIDTH):
        j = first + tl.arange(0, WIDTH)
        w = tl.load(row[:, None] + j[None, :], mask=mask[:, None] & (j < categories)[None, :], other=0)
        total += tl.sum(w, 1)
    mark = unit(bits(seed, offset, i)).to(tl.float64) * total
    passed = tl.zeros((BLOCK,), tl.float64)
    chosen = tl.zeros((BLOCK,), tl.int64)
    last = tl.zeros((BLOCK,), tl.int64)
    for first in range(0, categories, WIDTH):
        j = first + tl.arange(0, WIDTH)
        w = tl.load(row[:, None] + j[None, :], mask=mask[:, None] & (j < categories)[None, :], other=0)
        reached = passed[:, None] + tl.cumsum(w, 1)
        chosen += tl.sum(((reached <= mark[:, None]) & (j < categories)[None, :]).to(tl.int64), 1)
        last = tl.maximum(last, tl.max(tl.where(w > 0, j[None, :], 0), 1))
        passed += tl.sum(w, 1)
    tl.store(out + i, tl.minimum(chosen, last), mask=mask)  # rounding may put the mark past the last running sum


def prepare_choice(rows: int, samples: int, categories: int, seed: str) -> Launch:
    """A launch of `choose`; takes the result, the weights (float64, row-major), seed and offset.

    Args:
        seed: the Triton type of the seed, or of the address of one.
    """
    n = rows * samples
    block, width = (max(2, min(triton.next_power_of_2(n), 1024)), 128) if INTERPRET else (32, 64)
    constexprs = {"BLOCK": block, "WIDTH": width}
    runtime = ("*i64", "*fp64", seed, "i64")
    return prepare(choose, (triton.cdiv(n, block),), runtime, (n, samples, categories), constexprs, aligned=False)
