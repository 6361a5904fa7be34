"""Sorting rows, stably: short runs by counting who comes first, then merged pairwise by binary search.

Every element finds its own place, so a pass is one launch without communication, right for any length. nan is greater
than any number.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels.launch import INTERPRET, Launch, prepare


@triton.jit
def key(x):
    """x as something that compares: half types as float32, bools as integers."""
    if x.dtype == tl.float16 or x.dtype == tl.bfloat16:
        y = x.to(tl.float32)
    elif x.dtype == tl.int1:
        y = x.to(tl.int32)
    else:
        y = x
    return y


@triton.jit
def before(a, b, DESCENDING: tl.constexpr):
    """Whether a goes before b, and is not its equal."""
    if DESCENDING:
        c = (a > b) | ((a != a) & (b == b))
    else:
        c = (a < b) | ((b != b) & (a == a))
    return c


@triton.jit
def rank(out, places, x, n, N, RUN, DESCENDING: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """Sort each run of RUN elements of each row of N: an element's rank is the number of those before it."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = e < n
    i = e % N
    start = i // RUN * RUN
    end = tl.minimum(start + RUN, N)
    raw = tl.load(x + e, mask=mask, other=0)
    a = key(raw)[:, None]
    total = tl.zeros((BLOCK,), tl.int64)
    for first in range(0, tl.minimum(RUN, N), WIDTH):
        j = start[:, None] + (first + tl.arange(0, WIDTH))[None, :]
        seen = mask[:, None] & (j < end[:, None])
        b = key(tl.load(x + ((e - i)[:, None] + j), mask=seen, other=0))
        ahead = before(b, a, DESCENDING) | ((j < i[:, None]) & (before(a, b, DESCENDING) == 0))
        total += tl.sum((ahead & seen).to(tl.int64), 1)
    to = e - i + start + total
    tl.store(out + to, raw, mask=mask)
    tl.store(places + to, i, mask=mask)


@triton.jit
def merge(out, places, x, origin, n, N, RUN, STEPS, DESCENDING: tl.constexpr, BLOCK: tl.constexpr):
    """Merge neighbouring sorted runs of RUN elements; `origin` and `places` say where elements came from."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = e < n
    i = e % N
    row = e - i
    pair = i // (2 * RUN) * (2 * RUN)
    left = i < pair + RUN
    middle = tl.minimum(pair + RUN, N)
    other = tl.where(left, middle, pair)
    low = tl.zeros((BLOCK,), tl.int64)
    high = tl.where(left, tl.minimum(pair + 2 * RUN, N) - middle, RUN)
    raw = tl.load(x + e, mask=mask, other=0)
    a = key(raw)
    for _ in range(0, STEPS):
        half = (low + high) // 2
        alive = mask & (low < high)
        b = key(tl.load(x + row + other + half, mask=alive, other=0))
        ahead = tl.where(left, before(b, a, DESCENDING), before(a, b, DESCENDING) == 0)  # the left one of equals first
        low = tl.where(alive & ahead, half + 1, low)
        high = tl.where(alive & (ahead == 0), half, high)
    to = row + pair + tl.where(left, i - pair, i - middle) + low
    tl.store(out + to, raw, mask=mask)
    tl.store(places + to, tl.load(origin + e, mask=mask, other=0), mask=mask)


def tile(n: int) -> tuple[int, int, int]:
    """(elements per program, length of the runs that are ranked, how many are compared with at once)."""
    if INTERPRET:
        return max(2, min(triton.next_power_of_2(n), 1 << 16)), 16, 16
    return 64, 64, 16


def prepare_sort(kind: str, rows: int, length: int, descending: bool) -> list[Launch]:
    """The launches of a sort of contiguous rows, in turn.

    The first takes the addresses of sorted values, of their places and of x; the others of values, places, and the
    values and places of the launch before.
    """
    n = rows * length
    block, run, width = tile(n)
    grid = (triton.cdiv(n, block),)
    fixed: tuple[int, ...] = (n, length, run)
    constexprs = {"DESCENDING": descending, "BLOCK": block, "WIDTH": width}
    kinds = ("*" + kind, "*i64")
    launches = [prepare(rank, grid, (*kinds, kinds[0]), fixed, constexprs, name="sort", aligned=False)]
    while run < length:
        fixed = (n, length, run, run.bit_length() + 1)
        constexprs = {"DESCENDING": descending, "BLOCK": block}
        launches.append(prepare(merge, grid, kinds * 2, fixed, constexprs, name="sort", aligned=False))
        run *= 2
    return launches
