"""The gradients of attention, without its map: FlashAttention-2 (Dao 2023, arXiv 2307.08691), backward.

Weights are made again from query, key and the sums that the forward kept. One kernel goes through the queries and sums
over keys, one through the keys and sums over queries: each sum has one order, so the same bits come each time.

    p = exp2(scores - lse)    dp = dropout(dout @ v.T)    ds = p * (dp - delta)    delta = sum of dout * out of a row
    dq = scale * ds @ k       dk = scale * ds.T @ q       dv = dropout(p).T @ dout

Where a weight is near 1, dp - delta cancels, and in half types delta has the error of the rounding of `out`, which is
larger than that of the sums. `attention_query` finds the error and corrects it, at the price of a product more; of one
block of keys it has delta itself.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels import libm
from tgrad.kernels.attention import Problem, block, full, moved, numbers, pairs_of, product, scores, stays
from tgrad.kernels.launch import Launch, multiples, prepare, strides
from tgrad.kernels.scalar import maximum


@triton.jit
def slopes(
    s, slope, i, j, pair, lse, masks, draws, mask_strides, valid, L, S, factor,
    CAUSAL: tl.constexpr, EDGE: tl.constexpr, BOOL: tl.constexpr, TYPE: tl.constexpr,
    SLOPE: tl.constexpr, ONE: tl.constexpr,
):  # fmt: skip
    """(weights, those that stay, the gradient dp of the weights) of s, which is q @ k.T, and slope, dout @ v.T.

    i, j: as in `scores`; lse: of the queries, shaped like i. SLOPE: whether dp is wanted. ONE: all keys are here.
    """
    s, _ = scores(s, i, j, masks, mask_strides, valid, L, S, factor, CAUSAL, EDGE, BOOL, TYPE)
    if ONE:  # the row is here, and log-sum-exp would round more
        AXIS: tl.constexpr = len(s.shape) - 1
        top = tl.expand_dims(tl.reduce(s, AXIS, maximum), -1)
        weights = libm.exp2(s - tl.where(top == float("-inf"), 0.0, top))
        total = tl.expand_dims(tl.sum(weights, AXIS), -1)
        weights = libm.div(weights, tl.where(total == 0, 1.0, total) + tl.zeros_like(weights))
    else:
        weights = libm.exp2(s - lse)
    kept = weights
    if len(draws) > 0:
        stay = stays(draws, pair, i, j, L, S)
        kept = tl.where(stay, weights, 0.0)
    if SLOPE:
        if len(draws) > 0:
            slope = tl.where(stay, slope * draws[3], 0.0)
    return weights, kept, slope


@triton.jit
def walk_keys(
    acc, mean, rest, x, g, lse, delta, k, v, masks, draws, i, pair, valid, first, last, L, S, E, V, factor,
    g_strides, q_strides, k_strides, v_strides, mask_strides,
    CAUSAL: tl.constexpr, EDGE: tl.constexpr, BOOL: tl.constexpr, PRECISION: tl.constexpr, TYPE: tl.constexpr,
    WIDE: tl.constexpr, PAIRS: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr, BV: tl.constexpr,
    WHOLE: tl.constexpr, HELD: tl.constexpr, ONE: tl.constexpr, CORRECT: tl.constexpr,
):  # fmt: skip
    """acc + ds @ k and, if CORRECT, mean + p @ k and rest + the sum of ds, over the keys from `first` to `last`. If
    ONE, where they are all keys at once: ds @ k, mean and delta itself.
    """
    AXIS: tl.constexpr = 1 if PAIRS == 1 else 2
    e, d = numbers(0, WIDE, BE), numbers(0, WIDE, BV)
    for start in range(first, last, BS):
        j = numbers(start, WIDE, BS)
        y = block(k, j, e, k_strides[0], k_strides[1], valid, S, E, EDGE, not WHOLE, PAIRS)
        b, c = k, v
        if HELD:
            b, c = y, block(v, j, d, v_strides[0], v_strides[1], valid, S, V, EDGE, not WHOLE, PAIRS)
        s = product(x, b, i, j, q_strides, k_strides, valid, L, S, E, HELD, PRECISION, TYPE, WIDE, PAIRS, BE, WHOLE)
        slope = product(g, c, i, j, g_strides, v_strides, valid, L, S, V, HELD, PRECISION, TYPE, WIDE, PAIRS, BV, WHOLE)
        weights, _, slope = slopes(
            s, slope, i[:, None], j[None, :], pair, lse, masks, draws, mask_strides, valid, L, S, factor,
            CAUSAL, EDGE, BOOL, TYPE, True, ONE,
        )  # fmt: skip
        if ONE:
            rest = tl.sum(weights * slope, AXIS)
            slope = weights * (slope - tl.expand_dims(rest, -1))
        else:
            slope = weights * (slope - delta)
        if CORRECT:
            mean = tl.dot(weights.to(y.dtype), y, mean, input_precision=PRECISION, out_dtype=TYPE)
            rest += tl.sum(slope, AXIS)
        acc = tl.dot(slope.to(y.dtype), y, acc, input_precision=PRECISION, out_dtype=TYPE)
    return acc, mean, rest


@triton.jit
def attention_query(
    dq, g, q, k, v, masks, lse, delta, scale, factor, draws, N, L, S, E, V, shape, out_strides, g_strides, q_strides,
    k_strides, v_strides, mask_strides, CAUSAL: tl.constexpr, BOOL: tl.constexpr, PRECISION: tl.constexpr,
    TYPE: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr, HELD: tl.constexpr,
    PAIRS: tl.constexpr, BL: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr, BV: tl.constexpr, ONE: tl.constexpr,
    CORRECT: tl.constexpr,
):  # fmt: skip
    """The gradient of the query, of N matrices; arguments as of `attention`.

    CORRECT: each row of ds sums to zero; what it sums to instead is the error of `delta`, which is taken out of the
    gradient, and of `delta` for `attention_key`. ONE: there is one block of keys, from which delta comes as it is, and
    is stored.
    """
    tiles = tl.cdiv(L, BL)
    tile = tiles - 1 - tl.program_id(0) % tiles
    pair, valid = pairs_of(tl.program_id(0) // tiles, N, WIDE, PAIRS)
    i = numbers(tile * BL, WIDE, BL)
    e, d = numbers(0, WIDE, BE), numbers(0, WIDE, BV)
    k, v = moved(k, pair, shape, k_strides, NDIM), moved(v, pair, shape, v_strides, NDIM)
    if len(masks) > 0:
        masks = (moved(masks[0], pair, shape, mask_strides, NDIM),)
    x = moved(q, pair, shape, q_strides, NDIM)
    h = moved(g, pair, shape, g_strides, NDIM)
    if HELD:
        x = block(x, i, e, q_strides[NDIM], q_strides[NDIM + 1], valid, L, E, True, not WHOLE, PAIRS)
        h = block(h, i, d, g_strides[NDIM], g_strides[NDIM + 1], valid, L, V, True, not WHOLE, PAIRS)
    there = valid & (i[:, None] < L)
    sums = tl.load(lse + (pair * L + i[:, None]), mask=there, other=float("inf"))
    own = sums
    if not ONE:
        own = tl.load(delta + (pair * L + i[:, None]), mask=there, other=0)
    last, inner = S, S // BS * BS
    if CAUSAL:
        last = tl.minimum(S, (tile + 1) * BL)
        inner = tl.minimum(inner, (tile * BL + 1) // BS * BS)
    acc, rest = full(0, TYPE, PAIRS, BL, BE), full(0, TYPE, PAIRS, BL, 0)
    mean = acc
    acc, mean, rest = walk_keys(
        acc, mean, rest, x, h, sums, own, k, v, masks, draws, i, pair, valid, 0, inner, L, S, E, V, factor,
        g_strides[NDIM:], q_strides[NDIM:], k_strides[NDIM:], v_strides[NDIM:], mask_strides[NDIM:],
        CAUSAL, False, BOOL, PRECISION, TYPE, WIDE, PAIRS, BS, BE, BV, WHOLE, HELD, ONE, CORRECT,
    )  # fmt: skip
    acc, mean, rest = walk_keys(
        acc, mean, rest, x, h, sums, own, k, v, masks, draws, i, pair, valid, inner, last, L, S, E, V, factor,
        g_strides[NDIM:], q_strides[NDIM:], k_strides[NDIM:], v_strides[NDIM:], mask_strides[NDIM:],
        CAUSAL, True, BOOL, PRECISION, TYPE, WIDE, PAIRS, BS, BE, BV, WHOLE, HELD, ONE, CORRECT,
    )  # fmt: skip
    rest = tl.expand_dims(rest, -1)
    if CORRECT:
        acc -= rest * mean
        rest += own
    if ONE or CORRECT:
        tl.store(delta + (pair * L + i[:, None]), rest, mask=there)
    at = moved(dq, pair, shape, out_strides, NDIM)
    at = at + (i[:, None] * out_strides[NDIM] + e[None, :] * out_strides[NDIM + 1])
    mask = valid & ((i[:, None] < L) & (e[None, :] < E))
    tl.store(at, (acc * scale).to(dq.dtype.element_ty), mask=mask)


@triton.jit
def walk_queries(
    dk, dv, y, z, q, g, lse, delta, masks, draws, j, pair, valid, first, last, L, S, E, V, factor,
    g_strides, q_strides, k_strides, v_strides, mask_strides,
    CAUSAL: tl.constexpr, EDGE: tl.constexpr, BOOL: tl.constexpr, PRECISION: tl.constexpr, TYPE: tl.constexpr,
    WIDE: tl.constexpr, PAIRS: tl.constexpr, BL: tl.constexpr, BE: tl.constexpr, BV: tl.constexpr,
    WHOLE: tl.constexpr, HELD: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
):  # fmt: skip
    """dk + ds.T @ q, and dv + dropout(p).T @ dout, over the queries from `first` to `last`."""
    e, d = numbers(0, WIDE, BE), numbers(0, WIDE, BV)
    for start in range(first, last, BL):
        i = numbers(start, WIDE, BL)
        x = block(q, i, e, q_strides[0], q_strides[1], valid, L, E, True, not WHOLE, PAIRS)
        h = block(g, i, d, g_strides[0], g_strides[1], valid, L, V, True, not WHOLE, PAIRS)
        there = valid & (i[None, :] < L)
        sums = tl.load(lse + (pair * L + i[None, :]), mask=there, other=float("inf"))
        a, c = q, g
        if HELD:
            a, c = x, h
        s = product(y, a, j, i, k_strides, q_strides, valid, S, L, E, HELD, PRECISION, TYPE, WIDE, PAIRS, BE, WHOLE)
        slope = s
        if KEY:
            slope = product(
                z, c, j, i, v_strides, g_strides, valid, S, L, V, HELD, PRECISION, TYPE, WIDE, PAIRS, BV, WHOLE
            )
        weights, kept, slope = slopes(
            s, slope, i[None, :], j[:, None], pair, sums, masks, draws, mask_strides, valid, L, S, factor,
            CAUSAL, EDGE, BOOL, TYPE, KEY, False,
        )  # fmt: skip
        if VALUE:
            dv = tl.dot(kept.to(h.dtype), h, dv, input_precision=PRECISION, out_dtype=TYPE)
        if KEY:
            slope = weights * (slope - tl.load(delta + (pair * L + i[None, :]), mask=there, other=0))
            dk = tl.dot(slope.to(x.dtype), x, dk, input_precision=PRECISION, out_dtype=TYPE)
    return dk, dv


@triton.jit
def attention_key(
    dk, dv, g, q, k, v, masks, lse, delta, scale, factor, draws, N, L, S, E, V, shape, out_strides, sum_strides,
    g_strides, q_strides, k_strides, v_strides, mask_strides, group_strides, CAUSAL: tl.constexpr, BOOL: tl.constexpr,
    PRECISION: tl.constexpr, TYPE: tl.constexpr, NDIM: tl.constexpr, WIDE: tl.constexpr, WHOLE: tl.constexpr,
    HELD: tl.constexpr, PAIRS: tl.constexpr, BL: tl.constexpr, BS: tl.constexpr, BE: tl.constexpr, BV: tl.constexpr,
    GROUP: tl.constexpr, KEY: tl.constexpr, VALUE: tl.constexpr,
):  # fmt: skip
    """The gradients of key and value, of N matrices, each attended to by GROUP matrices of queries.

    Arguments are as of `attention`, out_strides those of dk, sum_strides of dv. group_strides: of g, q and the mask,
    from one matrix of a group to the next. KEY, VALUE: which of the two is wanted.
    """
    tiles = tl.cdiv(S, BS)
    first = tl.program_id(0) % tiles * BS
    pair, valid = pairs_of(tl.program_id(0) // tiles, N, WIDE, PAIRS)
    j = numbers(first, WIDE, BS)
    e, d = numbers(0, WIDE, BE), numbers(0, WIDE, BV)
    y = moved(k, pair, shape, k_strides, NDIM)
    z = moved(v, pair, shape, v_strides, NDIM)
    if HELD:
        y = block(y, j, e, k_strides[NDIM], k_strides[NDIM + 1], valid, S, E, True, not WHOLE, PAIRS)
        z = block(z, j, d, v_strides[NDIM], v_strides[NDIM + 1], valid, S, V, True, not WHOLE, PAIRS)
    key, value = full(0, TYPE, PAIRS, BS, BE), full(0, TYPE, PAIRS, BS, BV)
    for member in range(0, GROUP):
        x = moved(q, pair, shape, q_strides, NDIM) + member * group_strides[1]
        h = moved(g, pair, shape, g_strides, NDIM) + member * group_strides[0]
        held = masks
        if len(masks) > 0:
            held = (moved(masks[0], pair, shape, mask_strides, NDIM) + member * group_strides[2],)
        begin = 0
        if CAUSAL:
            begin = first // BL * BL
            inner = tl.minimum(L, tl.cdiv(first + BS - 1, BL) * BL)
            key, value = walk_queries(
                key, value, y, z, x, h, lse, delta, held, draws, j, pair * GROUP + member, valid, begin, inner,
                L, S, E, V, factor, g_strides[NDIM:], q_strides[NDIM:], k_strides[NDIM:], v_strides[NDIM:],
                mask_strides[NDIM:],
                CAUSAL, True, BOOL, PRECISION, TYPE, WIDE, PAIRS, BL, BE, BV, WHOLE, HELD, KEY, VALUE,
            )  # fmt: skip
            begin = tl.maximum(begin, inner)
        key, value = walk_queries(
            key, value, y, z, x, h, lse, delta, held, draws, j, pair * GROUP + member, valid, begin, L,
            L, S, E, V, factor, g_strides[NDIM:], q_strides[NDIM:], k_strides[NDIM:], v_strides[NDIM:],
            mask_strides[NDIM:],
            CAUSAL, False, BOOL, PRECISION, TYPE, WIDE, PAIRS, BL, BE, BV, WHOLE, HELD, KEY, VALUE,
        )  # fmt: skip
    if KEY:
        at = moved(dk, pair, shape, out_strides, NDIM)
        at = at + (j[:, None] * out_strides[NDIM] + e[None, :] * out_strides[NDIM + 1])
        mask = valid & ((j[:, None] < S) & (e[None, :] < E))
        tl.store(at, (key * scale).to(dk.dtype.element_ty), mask=mask)
    if VALUE:
        if len(draws) > 0:
            value = value * draws[3]
        at = moved(dv, pair, shape, sum_strides, NDIM)
        at = at + (j[:, None] * sum_strides[NDIM] + d[None, :] * sum_strides[NDIM + 1])
        mask = valid & ((j[:, None] < S) & (d[None, :] < V))
        tl.store(at, value.to(dv.dtype.element_ty), mask=mask)


def delta_is_made(problem: Problem) -> bool:
    """Whether `attention_query` makes delta, and does not read it: all keys are in one block."""
    return problem.tile("query").bs >= problem.sizes[1]


def delta_is_corrected(problem: Problem) -> bool:
    """Whether `attention_query` reads and corrects it: its error is the rounding of a half type."""
    return problem.dtype != problem.total and not delta_is_made(problem)


# --- launches --------------------------------------------------------------------------------------------------------
def prepare_query(
    problem: Problem, g: str, shape: tuple[int, ...], operand_strides: list[tuple[int, ...]], name: str
) -> Launch:
    """A launch of `attention_query`; takes the addresses of the result, the gradient that arrives, query, key, value,
    the mask if there is one, the sums and delta, then scale, scale * log2(e) and the four numbers
    of dropout if there is one. See `delta_is_made` and `delta_is_corrected` for what it does to delta.

    Args:
        g: Triton type of the gradient.
        shape: of the batch, collapsed.
        operand_strides: of result, gradient, query, key, value and the mask if there is one: of the batch, rows and
            columns.
    """
    chosen = problem.tile("query")
    steps = [strides(s) for s in operand_strides] + [()] * (problem.mask is None)
    grid = (triton.cdiv(problem.sizes[0], chosen.bl) * triton.cdiv(problem.pairs, chosen.pairs),)
    pointer, total = "*" + problem.dtype, problem.total
    runtime = (
        pointer, "*" + g, pointer, pointer, pointer, problem.masks, "*" + total, "*" + total, total, total,
        problem.draws,
    )  # fmt: skip
    constants = problem.constants(chosen, len(shape)) | {
        "ONE": delta_is_made(problem), "CORRECT": delta_is_corrected(problem),
    }  # fmt: skip
    return prepare(
        attention_query, grid, runtime, (problem.pairs, *problem.sizes, shape, *steps), constants, name=name,
        warps=chosen.warps, stages=chosen.stages, aligned=problem.aligned, contract=True,
    )  # fmt: skip


def prepare_key(
    problem: Problem, g: str, shape: tuple[int, ...], operand_strides: list[tuple[int, ...]],
    group: tuple[int, tuple[int, ...]], wanted: tuple[bool, bool], name: str,
) -> Launch:  # fmt: skip
    """A launch of `attention_key`; takes the addresses of the gradients of key and value, then what `prepare_query`'s
    takes. Of one that is not wanted the address may be any.

    Args:
        shape: of the batch of keys, collapsed; `problem.pairs` counts these.
        operand_strides: of the two results, gradient, query, key, value and the mask if there is one.
        group: how many matrices of queries attend to one of keys, and from one of them to the next the strides of
            gradient, query and mask.
        wanted: whether the gradients of key and of value are.
    """
    chosen = problem.tile("key", grouped=group[0] > 1)
    steps = [strides(s) for s in operand_strides] + [()] * (problem.mask is None)
    grid = (triton.cdiv(problem.sizes[1], chosen.bs) * triton.cdiv(problem.pairs, chosen.pairs),)
    pointer, total = "*" + problem.dtype, problem.total
    runtime = (
        pointer, pointer, "*" + g, pointer, pointer, pointer, problem.masks, "*" + total, "*" + total, total, total,
        problem.draws,
    )  # fmt: skip
    members = (*multiples(group[1][:2]), *multiples(group[1][2:]))
    constants = problem.constants(chosen, len(shape)) | {"GROUP": group[0], "KEY": wanted[0], "VALUE": wanted[1]}
    return prepare(
        attention_key, grid, runtime, (problem.pairs, *problem.sizes, shape, *steps, members),
        constants, name=name, warps=chosen.warps, stages=chosen.stages, aligned=problem.aligned, contract=True,
    )  # fmt: skip
