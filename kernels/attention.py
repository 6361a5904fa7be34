"""Attention whose map is never stored: FlashAttention-2 (Dao 2023, arXiv 2307.08691), forward.

A program takes BL queries of one matrix of the batch, or of PAIRS of them where they are small, and walks over the keys
BS at a time. It keeps the greatest score of each row so far, and the sum of weights relative to it (Milakov and
Gimelshein 2018, arXiv 1805.02867). Scores are in base 2: exp2(x * log2(e)) is exp(x). attention_backward.py is the way
back, attention_tiles.py says how much a program takes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from tgrad.kernels import libm
from tgrad.kernels.attention_tiles import Tile, blocks, tile
from tgrad.kernels.creation import bits, stream_at, unit
from tgrad.kernels.launch import Launch, prepare, strides
from tgrad.kernels.matmul_tiles import itemsize
from tgrad.kernels.pointwise import coordinates, offset
from tgrad.kernels.program import TYPES
from tgrad.kernels.scalar import maximum

LOG2E = 1.4426950408889634
_LOG2E = tl.constexpr(LOG2E)


# --- parts, of the backward kernels too ------------------------------------------------------------------------------
@triton.jit
def full(value, TYPE: tl.constexpr, PAIRS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A block of one value: for each of PAIRS, if there are several, ROWS numbers, or ROWS x COLUMNS."""
    if COLUMNS > 0:
        x = tl.full((PAIRS, ROWS, COLUMNS) if PAIRS > 1 else (ROWS, COLUMNS), value, TYPE)
    else:
        x = tl.full((PAIRS, ROWS) if PAIRS > 1 else (ROWS,), value, TYPE)
    return x


@triton.jit
def pairs_of(number, N, WIDE: tl.constexpr, PAIRS: tl.constexpr):
    """The matrices of the batch that program `number` takes, and which of them exist."""
    pair = number
    if WIDE:
        pair = pair.to(tl.int64)
    if PAIRS > 1:
        pair = pair * PAIRS + tl.arange(0, PAIRS)[:, None, None]
    return pair, pair < N


@triton.jit
def moved(x, pair, shape, operand_strides, NDIM: tl.constexpr):
    """The address x moved to the matrix, or matrices, `pair` of the batch."""
    at = x
    if NDIM > 0:
        at = x + offset(coordinates(pair, shape, NDIM), operand_strides, NDIM)
    elif len(pair.shape) > 0:
        at = x + pair * 0
    return at


@triton.jit
def numbers(start, WIDE: tl.constexpr, COUNT: tl.constexpr):
    """COUNT numbers from `start` on, as wide as offsets are."""
    n = start + tl.arange(0, COUNT)
    if WIDE:
        n = n.to(tl.int64)
    return n


@triton.jit
def block(x, rows, columns, row_stride, column_stride, valid, N, M, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
          PAIRS: tl.constexpr):  # fmt: skip
    """Rows and columns of the N x M matrices at x, 0 where there are none: ROWS, COLUMNS: which may be missing."""
    at = x + (rows[:, None] * row_stride + columns[None, :] * column_stride)
    if ROWS or COLUMNS or PAIRS > 1:
        mask = valid
        if ROWS:
            mask = mask & (rows[:, None] < N)
        if COLUMNS:
            mask = mask & (columns[None, :] < M)
        found = tl.load(at, mask=mask, other=0)
    else:
        found = tl.load(at)
    return found


@triton.jit
def product(
    a, b, rows, columns, a_steps, b_steps, valid, N, M, K, HELD: tl.constexpr, PRECISION: tl.constexpr,
    TYPE: tl.constexpr, WIDE: tl.constexpr, PAIRS: tl.constexpr, BK: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """a @ b.T of two blocks or, if not HELD, of rows of N x K and M x K matrices at a and b, a part of K at a time.

    Whole blocks of float32, cut into parts for three tf32 products, take more registers than there are for wide heads.
    """
    if HELD:
        sums = tl.dot(a, tl.trans(b), input_precision=PRECISION, out_dtype=TYPE)
    else:
        STEP: tl.constexpr = BK if BK < 32 else 32
        sums = full(0, TYPE, PAIRS, rows.shape[0], columns.shape[0])
        for first in range(0, BK, STEP):
            k = numbers(first, WIDE, STEP)
            x = block(a, rows, k, a_steps[0], a_steps[1], valid, N, K, True, not WHOLE, PAIRS)
            y = block(b, columns, k, b_steps[0], b_steps[1], valid, M, K, True, not WHOLE, PAIRS)
            sums = tl.dot(x, tl.trans(y), sums, input_precision=PRECISION, out_dtype=TYPE)
    return sums


@triton.jit
def scores(
    s, i, j, masks, mask_strides, valid, L, S, factor,
    CAUSAL: tl.constexpr, EDGE: tl.constexpr, BOOL: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Scores factor * s + mask, and the mask: both in base 2.

    Args:
        i, j: numbers of the queries and of the keys, shaped as they lie along the scores.
        masks: one pointer, at the matrix, or none. BOOL: it is of bools, not of numbers to add.
        EDGE: some of the keys may be past the end or, if CAUSAL, past the query: they get -inf.
    """
    s *= factor
    shift = s
    if len(masks) > 0:
        at = masks[0] + (i * mask_strides[0] + j * mask_strides[1])
        inside = valid & ((i < L) & (j < S))
        if BOOL:
            shift = tl.where(tl.load(at, mask=inside, other=0) != 0, 0.0, float("-inf")).to(TYPE)
        else:
            shift = tl.load(at, mask=inside, other=float("-inf")).to(TYPE) * _LOG2E
        s += shift
    if EDGE:
        seen = j < S
        if CAUSAL:
            seen = seen & (j <= i)
        s = tl.where(seen, s, float("-inf"))
    return s, shift


@triton.jit
def stays(draws, pair, i, j, L, S):
    """Whether the weights of keys j for queries i stay: by the draws of those elements of a map (..., L, S)."""
    seed, first = stream_at(draws[0], draws[1])
    return unit(bits(seed, first, (pair.to(tl.int64) * L + i) * S + j)) >= draws[2]


# --- forward ---------------------------------------------------------------------------------------------------------
@triton.jit
def walk(
    acc, top, total, most, x, k, v, masks, draws, i, pair, valid, first, last, L, S, E, V, factor,
    q_strides, k_strides, v_strides, mask_strides,
    CAUSAL: tl.constexpr, EDGE: tl.constexpr, BOOL: tl.constexpr, PRECISION: tl.constexpr, TYPE: tl.constexpr,
    WIDE: tl.constexpr, PAIRS: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr, BV: tl.constexpr,
    WHOLE: tl.constexpr, HELD: tl.constexpr,
):  # fmt: skip
    """The sums of weights times values, and of weights, with the keys from `first` to `last` added; and `top`, which
    they are relative to, and the greatest value of the mask.
    """
    AXIS: tl.constexpr = 1 if PAIRS == 1 else 2
    e, d = numbers(0, WIDE, BE), numbers(0, WIDE, BV)
    for start in range(first, last, BS):
        j = numbers(start, WIDE, BS)
        y = k
        if HELD:
            y = block(k, j, e, k_strides[0], k_strides[1], valid, S, E, EDGE, not WHOLE, PAIRS)
        s = product(x, y, i, j, q_strides, k_strides, valid, L, S, E, HELD, PRECISION, TYPE, WIDE, PAIRS, BE, WHOLE)
        s, shift = scores(s, i[:, None], j[None, :], masks, mask_strides, valid, L, S, factor, CAUSAL, EDGE, BOOL, TYPE)
        if len(masks) > 0:
            most = maximum(most, tl.reduce(shift, AXIS, maximum))
        new = maximum(top, tl.reduce(s, AXIS, maximum))
        safe = tl.where(new == float("-inf"), 0.0, new)  # nothing yet: exp2(-inf - 0), not exp2(-inf + inf)
        weights = libm.exp2(s - tl.expand_dims(safe, -1))
        shrink = libm.exp2(top - safe)
        total = total * shrink + tl.sum(weights, AXIS)
        if len(draws) > 0:
            weights = tl.where(stays(draws, pair, i[:, None], j[None, :], L, S), weights, 0.0)
        z = block(v, j, d, v_strides[0], v_strides[1], valid, S, V, EDGE, not WHOLE, PAIRS)
        acc = acc * tl.expand_dims(shrink, -1)
        acc = tl.dot(weights.to(z.dtype), z, acc, input_precision=PRECISION, out_dtype=TYPE)
        top = new
    return acc, top, total, most


@triton.jit
def attention(
    out, lse, q, k, v, masks, factor, draws, N, L, S, E, V, shape, out_strides, q_strides, k_strides, v_strides,
    mask_strides, CAUSAL: tl.constexpr, BOOL: tl.constexpr, PRECISION: tl.constexpr, TYPE: tl.constexpr,
    NDIM: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, HELD: tl.constexpr, PAIRS: tl.constexpr,
    BL: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """out = softmax(q @ k.T * scale + mask) @ v of N matrices, and lse: for each query log2 of the sum of exp2 of its
    scores in base 2, inf where it attends to nothing, which gives zeros.

    Args:
        factor: scale * log2(e).
        draws: seed, offset, the probability that a weight is dropped, and what the others are multiplied by; or none.
        strides: those of `shape`, the batch, of NDIM dimensions; then of rows and columns.
        WHOLE: E and V are BE and BV. HELD: q is held, not read in parts.
    """
    tiles = tl.cdiv(L, BL)
    tile = tiles - 1 - tl.program_id(0) % tiles  # the last first: if CAUSAL, they have the most keys
    pair, valid = pairs_of(tl.program_id(0) // tiles, N, WIDE, PAIRS)
    i = numbers(tile * BL, WIDE, BL)
    e, d = numbers(0, WIDE, BE), numbers(0, WIDE, BV)
    q, k, v = moved(q, pair, shape, q_strides, NDIM), moved(k, pair, shape, k_strides, NDIM), moved(
        v, pair, shape, v_strides, NDIM)  # fmt: skip
    if len(masks) > 0:
        masks = (moved(masks[0], pair, shape, mask_strides, NDIM),)
    x = q
    if HELD:
        x = block(q, i, e, q_strides[NDIM], q_strides[NDIM + 1], valid, L, E, True, not WHOLE, PAIRS)
    acc, total = full(0, TYPE, PAIRS, BL, BV), full(0, TYPE, PAIRS, BL, 0)
    top = full(float("-inf"), TYPE, PAIRS, BL, 0)
    most = top
    last, inner = S, S // BS * BS
    if CAUSAL:
        last = tl.minimum(S, (tile + 1) * BL)
        inner = tl.minimum(inner, (tile * BL + 1) // BS * BS)
    acc, top, total, most = walk(
        acc, top, total, most, x, k, v, masks, draws, i, pair, valid, 0, inner, L, S, E, V, factor,
        q_strides[NDIM:], k_strides[NDIM:], v_strides[NDIM:], mask_strides[NDIM:],
        CAUSAL, False, BOOL, PRECISION, TYPE, WIDE, PAIRS, BS, BE, BV, WHOLE, HELD,
    )  # fmt: skip
    acc, top, total, most = walk(
        acc, top, total, most, x, k, v, masks, draws, i, pair, valid, inner, last, L, S, E, V, factor,
        q_strides[NDIM:], k_strides[NDIM:], v_strides[NDIM:], mask_strides[NDIM:],
        CAUSAL, True, BOOL, PRECISION, TYPE, WIDE, PAIRS, BS, BE, BV, WHOLE, HELD,
    )  # fmt: skip
    nothing = (total == 0) & (S == 0)
    if len(masks) > 0:
        nothing = most == float("-inf")
    share = libm.div(full(1, TYPE, PAIRS, BL, 0), total)
    if len(draws) > 0:
        share = share * draws[3]
    acc = tl.where(tl.expand_dims(nothing, -1), 0.0, acc * tl.expand_dims(share, -1))
    mask = valid & ((i[:, None] < L) & (d[None, :] < V))
    at = moved(out, pair, shape, out_strides, NDIM)
    at = at + (i[:, None] * out_strides[NDIM] + d[None, :] * out_strides[NDIM + 1])
    tl.store(at, acc.to(out.dtype.element_ty), mask=mask)
    sums = tl.expand_dims(tl.where(nothing, float("inf"), top + libm.log2(total)), -1)
    tl.store(lse + (pair * L + i[:, None]), sums, mask=valid & (i[:, None] < L))


# --- launches --------------------------------------------------------------------------------------------------------
class Problem(NamedTuple):
    """What attention is of, in Triton's types and in elements.

    Attributes:
        dtype: of query, key, value and the result; `total` that of sums.
        mask: of the mask; None: there is none.
        seed: of dropout's seed or its address; None: there is no dropout.
        pairs: matrices in the batch; sizes: L, S, E, V.
        precision: how float32 products are formed: "ieee", "tf32x3" or "tf32".
        aligned: whether every address is a multiple of 16.
        wide: whether offsets need 64 bits.
    """

    dtype: str
    total: str
    mask: str | None
    seed: str | None
    pairs: int
    sizes: tuple[int, int, int, int]
    causal: bool
    precision: str
    aligned: bool
    wide: bool

    @property
    def masks(self) -> tuple[str, ...]:
        return () if self.mask is None else ("*" + self.mask,)

    @property
    def draws(self) -> tuple[str, ...]:
        return () if self.seed is None else (self.seed, "i64", "fp32", self.total)

    def tile(self, kernel: str, grouped: bool = False) -> Tile:
        """The tile of "forward", "query" or "key"; grouped: see `attention_tiles.tile`."""
        mask = 0 if self.mask is None else 1 if self.mask == "i1" else itemsize(self.mask)
        return tile(kernel, self.dtype, self.pairs, self.sizes, mask, self.seed is not None, self.wide, grouped)

    def constants(self, tile: Tile, ndim: int) -> dict[str, Any]:
        """The constants of all kernels of attention, in their order."""
        _, _, width, values = self.sizes
        be, bv = blocks(width), blocks(values)
        return {
            "CAUSAL": self.causal, "BOOL": self.mask == "i1", "PRECISION": self.precision, "TYPE": TYPES[self.total],
            "NDIM": ndim, "WIDE": self.wide, "WHOLE": (be, bv) == (width, values), "HELD": tile.held,
            "PAIRS": tile.pairs, "BL": tile.bl, "BS": tile.bs, "BE": be, "BV": bv,
        }  # fmt: skip


def prepare_attention(
    problem: Problem, shape: tuple[int, ...], operand_strides: list[tuple[int, ...]], name: str
) -> Launch:
    """A launch of `attention`; takes the addresses of the result, the sums, query, key, value and the mask if there is
    one, then scale * log2(e) and the four numbers of dropout if there is one.

    Args:
        shape: of the batch, collapsed.
        operand_strides: of result, query, key, value and the mask if there is one: of the batch, rows and columns.
    """
    length = problem.sizes[0]
    chosen = problem.tile("forward")
    pointer, total = "*" + problem.dtype, problem.total
    runtime = (pointer, "*" + total, pointer, pointer, pointer, problem.masks, total, problem.draws)
    steps = [strides(s) for s in operand_strides]
    steps += [()] * (problem.mask is None)
    grid = (triton.cdiv(length, chosen.bl) * triton.cdiv(problem.pairs, chosen.pairs),)
    return prepare(
        attention, grid, runtime, (problem.pairs, *problem.sizes, shape, *steps),
        problem.constants(chosen, len(shape)), name=name, warps=chosen.warps, stages=chosen.stages,
        aligned=problem.aligned, contract=True,
    )  # fmt: skip
