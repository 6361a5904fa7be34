"""Attention as one op, which keeps a number per row of its map and not the map (kernels/attention.py).

Under `create_graph` its gradients are those of the composition, with the weights made again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dispatch import dispatch
from tgrad.dtypes import TENSOR
from tgrad.expression import Expression
from tgrad.kernels.attention import LOG2E, Problem, prepare_attention
from tgrad.kernels.attention_backward import delta_is_corrected, delta_is_made, prepare_key, prepare_query
from tgrad.kernels.attention_tiles import fits
from tgrad.kernels.creation import seed_type
from tgrad.kernels.launch import Launch
from tgrad.layout import (
    Layout,
    broadcast_shapes,
    broadcast_strides,
    collapse,
    layout,
    numel,
    order_by_stride,
    strides_in_order,
)
from tgrad.op import Kernel
from tgrad.ops import pointwise as p
from tgrad.ops.composed_attention import causal, repeated, scores_op, together, weights_of
from tgrad.ops.creation import dropout_op
from tgrad.ops.matmul import PRECISIONS, get_float32_matmul_precision
from tgrad.ops.reduce import reduce_launch
from tgrad.ops.views import contiguous, fill_launch, transpose
from tgrad.random import default_generator
from tgrad.storage import workspace
from tgrad.tensor import Tensor

_PRODUCT = Expression.of(p.mul, 2)


# --- what is attended to what ----------------------------------------------------------------------------------------
class Batch(NamedTuple):
    """The batch of an attention: matrices of keys, of shape `outer`, and `group` matrices of queries to each."""

    outer: tuple[int, ...]
    group: int

    @property
    def queries(self) -> tuple[int, ...]:
        """The shape of the batch of queries: a group is part of the last dimension, the heads."""
        return self.outer if self.group == 1 else (*self.outer[:-1], self.outer[-1] * self.group)

    def of_queries(self, x: Layout, rows: int, columns: int) -> tuple[int, ...]:
        """x's strides over (*outer, group, rows, columns), x broadcasting to queries' batch, rows and columns."""
        *batch, row, column = broadcast_strides(tuple(x.shape), x.strides, (*self.queries, rows, columns))
        if self.group == 1:
            return (*batch, 0, row, column)
        return (*batch[:-1], batch[-1] * self.group, batch[-1], row, column)

    def of_keys(self, x: Layout) -> tuple[int, ...]:
        """Likewise of what broadcasts to the batch of keys: a group shares it."""
        *batch, row, column = broadcast_strides(tuple(x.shape), x.strides, (*self.outer, *x.shape[-2:]))
        return (*batch, 0, row, column)


@functools.lru_cache(maxsize=4096)
def _batch(q: Layout, k: Layout, v: Layout, grouped: bool) -> Batch | None:
    """The batch; None if heads cannot be grouped so. `grouped`: queries may have a multiple of the heads of keys.

    Raises:
        RuntimeError: the batches do not broadcast.
    """
    if not grouped:
        return Batch(broadcast_shapes(*(tuple(x.shape[:-2]) for x in (q, k, v))), 1)
    if min(len(x.shape) for x in (q, k, v)) < 3:
        return None
    heads, have = q.shape[-3], k.shape[-3]
    if have != v.shape[-3] or not have or heads % have or not heads:
        return None
    return Batch((*broadcast_shapes(*(tuple(x.shape[:-3]) for x in (q, k, v))), have), heads // have)


def _in_order_of(x: Layout, shape: tuple[int, ...], columns: int) -> Layout:
    """A layout of (*shape, columns) whose rows are whole and lie in the order of x's, which broadcasts to it."""
    order = order_by_stride(shape, [broadcast_strides(tuple(x.shape[:-1]), x.strides[:-1], shape)])
    whole = (*shape, columns)
    return layout(x.dtype, whole, strides_in_order(whole, [*order, len(shape)]), compute)


def serves(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, grouped: bool) -> bool:
    """Whether the fused op can serve. What is wrong with the arguments is left to the composition to say."""
    if mask is None:
        return _serves(query.layout, key.layout, value.layout, None, grouped)
    return not mask.requires_grad and _serves(query.layout, key.layout, value.layout, mask.layout, grouped)


@functools.lru_cache(maxsize=4096)
def _serves(q: Layout, k: Layout, v: Layout, mask: Layout | None, grouped: bool) -> bool:
    kind = q.dtype
    if not kind.is_floating_point or q.shape[-1] != k.shape[-1] or k.shape[-2] != v.shape[-2]:
        return False
    if not fits(kind.triton, q.shape[-1], v.shape[-1]):
        return False
    try:
        batch = _batch(q, k, v, grouped)
        if batch is None or mask is None:
            return batch is not None
        whole = (*batch.queries, q.shape[-2], k.shape[-2])
        if broadcast_shapes(tuple(mask.shape), whole) != whole:
            return False
    except RuntimeError:
        return False
    total = dtypes.accumulator(kind)
    return mask.dtype is dtypes.bool_ or (mask.dtype.is_floating_point and dtypes.promote(mask.dtype, total) is total)


# --- kernels ---------------------------------------------------------------------------------------------------------
def _problem(
    tensors: Sequence[Tensor], mask: Tensor | None, seed: int | None, batch: Batch, is_causal: bool, outs: list[Layout]
) -> Problem:
    """What the kernels are to be prepared for; `tensors` are query, key, value and others."""
    query, key, value = tensors[:3]
    total = dtypes.accumulator(query.dtype)
    every = [t.layout for t in (*tensors, *(() if mask is None else (mask,)))] + outs
    pairs = numel(batch.queries)
    rows = pairs * query.shape[-2] * (key.shape[-2] if mask is not None else 1)
    return Problem(
        query.dtype.triton, total.triton, None if mask is None else mask.dtype.triton,
        None if seed is None else seed_type(seed), pairs,
        (query.shape[-2], key.shape[-2], query.shape[-1], value.shape[-1]), is_causal,
        "ieee" if total is dtypes.float64 else PRECISIONS[get_float32_matmul_precision()],
        aligned=all(l.aligned for l in every), wide=max(*(l.extent for l in every), rows) >= 2**31,
    )  # fmt: skip


def _collapsed(shape: tuple[int, ...], operands: list[tuple[int, ...]]) -> tuple[tuple[int, ...], list]:
    """The batch `shape` and the operands' strides over it, collapsed; those of rows and columns follow as they are."""
    n = len(shape)
    sizes, batch = collapse(shape, [s[:n] for s in operands])
    return sizes, [(*b, *s[-2:]) for b, s in zip(batch, operands, strict=True)]


def _keep(p: float) -> float:
    """What weights that stay are multiplied by."""
    return 0.0 if p == 1 else 1 / (1 - p)


def _build(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, seed: int | None, offset: int | None,
    p: float | None, is_causal: bool, grouped: bool,
) -> tuple[list[Layout], Launch]:  # fmt: skip
    """Results: attention, and for each row log2 of the sum of exp2 of its scores in base 2, inf where it has none."""
    batch = _batch(query.layout, key.layout, value.layout, grouped)
    assert batch is not None
    rows = (*batch.queries, query.shape[-2])
    out = _in_order_of(query.layout, rows, value.shape[-1])
    sums = layout(dtypes.accumulator(query.dtype), rows, None, compute)
    if not out.numel:
        return [out, sums], lambda *addresses: None
    sizes = query.shape[-2], key.shape[-2]
    of = [batch.of_queries(l, sizes[0], l.shape[-1]) for l in (out, query.layout)]
    of += [batch.of_keys(key.layout), batch.of_keys(value.layout)]
    of += [] if mask is None else [batch.of_queries(mask.layout, *sizes)]
    problem = _problem((query, key, value), mask, seed, batch, is_causal, [out])
    run = prepare_attention(problem, *_collapsed((*batch.outer, batch.group), of), "attention")
    count = 5 + (mask is not None)

    def launch(*given: float) -> None:
        scale, *draws = given[count:]
        run(*given[:count], scale * LOG2E, *draws, *(_keep(p) for p in draws[2:]))

    return [out, sums], launch


def _build_backward(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, out: Tensor | None, sums: Tensor,
    scale: float, seed: int | None, offset: int | None, p: float | None, is_causal: bool, grouped: bool,
    wanted: tuple[str, ...],
) -> tuple[list[Layout], Launch]:  # fmt: skip
    """Results: the gradients of `wanted`, for the whole batch: summed where that broadcasts by who asks."""
    batch = _batch(query.layout, key.layout, value.layout, grouped)
    assert batch is not None
    length, keys = query.shape[-2], key.shape[-2]
    shapes = {"query": (*batch.queries, length), "key": (*batch.outer, keys), "value": (*batch.outer, keys)}
    results = {
        name: _in_order_of(t.layout, shapes[name], t.shape[-1])
        for name, t in (("query", query), ("key", key), ("value", value)) if name in wanted
    }  # fmt: skip
    if not g.numel() or not keys:
        fills = [fill_launch("zeros", l) if l.numel else None for l in results.values()]

        def zeros(*addresses: float) -> None:
            for to, fill in zip(addresses, fills, strict=False):
                if fill is not None:
                    fill(to, 0)

        return list(results.values()), zeros
    tensors = [t for t in (query, key, value, g, out) if t is not None]
    problem = _problem(tensors, mask, seed, batch, is_causal, list(results.values()))
    of_g, of_q = (batch.of_queries(t.layout, length, t.shape[-1]) for t in (g, query))
    of_k, of_v = batch.of_keys(key.layout), batch.of_keys(value.layout)
    of_mask = [] if mask is None else [batch.of_queries(mask.layout, length, keys)]
    shape, name = (*batch.outer, batch.group), "attention_backward"
    dq, dk, dv = (results.get(n) for n in ("query", "key", "value"))
    by_query, by_keys = None, []
    changed = delta_is_made(problem) or delta_is_corrected(problem)
    if dq is None and dk is not None and changed:  # the kernel of dq does that
        dq = _in_order_of(query.layout, shapes["query"], query.shape[-1])
    if dq is not None:
        of = [batch.of_queries(dq, length, dq.shape[-1]), of_g, of_q, of_k, of_v, *of_mask]
        by_query = prepare_query(problem, g.dtype.triton, *_collapsed(shape, of), name)
    if dk is not None or dv is not None:
        of_dk, of_dv = (key.layout if l is None else l for l in (dk, dv))
        of = [batch.of_keys(of_dk), batch.of_keys(of_dv), of_g, of_q, of_k, of_v, *of_mask]
        sizes, steps = _collapsed(batch.outer, [(*s[:-3], *s[-2:]) for s in of])
        group = batch.group, tuple(s[-3] for s in (of_g, of_q, *of_mask))
        both = dk is not None, dv is not None
        of_keys = problem._replace(pairs=numel(batch.outer))
        launches = [both] if of_keys.tile("key").together else [(True, False)] * both[0] + [(False, True)] * both[1]
        by_keys = [prepare_key(of_keys, g.dtype.triton, sizes, steps, group, which, name) for which in launches]
    delta = layout(sums.dtype, tuple(sums.shape), None, compute)
    subtract = None
    if out is not None and not delta_is_made(problem):
        operands = (g.dtype, TENSOR), (out.dtype, TENSOR)
        factors = [g.layout, out.layout]
        dims = (len(sums.shape),)
        subtract = reduce_launch(name, "sum", _PRODUCT, operands, factors, tuple(g.shape), dims, delta)
    n, with_out, with_mask = len(results), out is not None, mask is not None
    dq_bytes = 0 if dq is None else dq.nbytes

    def launch(*given: float) -> None:
        to = dict(zip(results, given, strict=False))
        arriving, q, k, v, *rest = given[n:]
        masks = (rest.pop(0),) if with_mask else ()
        result = rest.pop(0) if with_out else 0
        lse, scale, *draws = rest
        draws += [_keep(p) for p in draws[2:]]
        room = workspace(delta.nbytes)
        if subtract is not None:
            subtract(room.ptr, arriving, result)
        rest = [arriving, q, k, v, *masks, lse, room.ptr, scale, scale * LOG2E, *draws]
        if by_query is not None:
            spare = None if "query" in to else workspace(max(dq_bytes, 16))
            by_query(to["query"] if spare is None else spare.ptr, *rest)
        for by_key in by_keys:
            by_key(to.get("key", arriving), to.get("value", arriving), *rest)

    return list(results.values()), launch


_backward = Kernel(
    "attention_backward", ("g", "query", "key", "value", "mask", "out", "logsumexp", "scale", "seed", "offset", "p"),
    _build_backward, {}, settings=("is_causal", "grouped", "wanted"),
)  # fmt: skip


def _gradients(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, seed: int | None,
    offset: int | None, p: float | None, out: Tensor | None, logsumexp: Tensor, *, is_causal: bool, grouped: bool,
    wanted: tuple[str, ...],
) -> Sequence[Tensor] | None:  # fmt: skip
    args = g, query, key, value, mask, out, logsumexp, scale, seed, offset, p
    return dispatch(_backward, args, (is_causal, grouped, wanted))


# --- formulas --------------------------------------------------------------------------------------------------------
def _mT(x: Tensor) -> Tensor:
    return transpose(x, -2, -1)


class _Parts(NamedTuple):
    """What the formulas share: the gradient that arrives, key and value for each head of queries, the weights; and how
    dropout is applied.
    """

    g: Tensor
    key: Tensor
    value: Tensor
    weights: Tensor
    drop: Callable[[Tensor], Tensor]


def _parts(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, seed: int | None,
    offset: int | None, p_: float | None, is_causal: bool, grouped: bool,
) -> _Parts:  # fmt: skip
    if grouped:
        key, value = repeated(key, query.shape[-3]), repeated(value, query.shape[-3])
    mask = causal(query.shape[-2], key.shape[-2], query) if is_causal else mask
    weights, dead = weights_of(query, key, mask, scale)
    if dead is not None:
        g = p.where(dead, 0, g)

    def drop(x: Tensor) -> Tensor:
        return x if p_ is None else dropout_op(contiguous(x), seed, offset, p_, _keep(p_))

    return _Parts(g, key, value, weights, drop)


def _slope(parts: _Parts, out: Tensor, scale: float) -> Tensor:
    """The gradient of query @ key.T, in the dtype of the gradient that arrives."""
    g, _, value, weights, drop = parts
    kind = weights.dtype
    delta = (p.cast(kind)(g) * p.cast(kind)(out)).sum(-1, keepdim=True)
    return p.cast(g.dtype)(weights * (drop(scores_op(g, _mT(value), scale=1.0, kind=kind)) - delta) * scale)


def _query_grad(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, seed: int | None,
    offset: int | None, p: float | None, out: Tensor, logsumexp: Tensor, *, is_causal: bool, grouped: bool,
) -> Tensor:  # fmt: skip
    parts = _parts(g, query, key, value, mask, scale, seed, offset, p, is_causal, grouped)
    return scores_op(_slope(parts, out, scale), parts.key, scale=1.0, kind=g.dtype)


def _key_grad(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, seed: int | None,
    offset: int | None, p: float | None, out: Tensor, logsumexp: Tensor, *, is_causal: bool, grouped: bool,
) -> Tensor:  # fmt: skip
    parts = _parts(g, query, key, value, mask, scale, seed, offset, p, is_causal, grouped)
    result = scores_op(_mT(_slope(parts, out, scale)), query, scale=1.0, kind=g.dtype)
    return together(result, key.shape[-3]) if grouped else result


def _value_grad(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, seed: int | None,
    offset: int | None, p: float | None, logsumexp: Tensor, *, is_causal: bool, grouped: bool,
) -> Tensor:  # fmt: skip
    parts = _parts(g, query, key, value, mask, scale, seed, offset, p, is_causal, grouped)
    kept = _cast(parts.drop(parts.weights), g)
    result = scores_op(_mT(kept), parts.g, scale=1.0, kind=g.dtype)
    return together(result, value.shape[-3]) if grouped else result


def _cast(x: Tensor, like: Tensor) -> Tensor:
    return p.cast(like.dtype)(x)


def _cheap(args: Sequence[Tensor], settings: tuple) -> bool:
    """Whether the result is rather made again than kept: where its 4 L S E operations a head are at most a quarter of
    the 2 L D^2 of one projection of the joined heads, D wide, of which there are four beside it.
    """
    query, key, value = args[:3]
    heads = query.shape[-3] if query.ndim > 2 else 1
    return 4 * key.shape[-2] <= heads * value.shape[-1]


attention_op = Kernel(
    "attention", ("query", "key", "value", "mask", "scale", "seed", "offset", "p"), _build,
    {"query": _query_grad, "key": _key_grad, "value": _value_grad}, settings=("is_causal", "grouped"),
    results=("out", "logsumexp"), joint=(("query", "key", "value"), _gradients), again=_cheap,
    grad_name="ScaledDotProductAttention",
)  # fmt: skip


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float, is_causal: bool, scale: float,
    grouped: bool,
) -> Tensor:  # fmt: skip
    """`scaled_dot_product_attention` of what the op `serves`. It keeps query, key, value, the mask, its result (which
    "lean" makes again if that is cheap) and a number a row of the map.

    Shape, Dtype, Raises: as there.
    """
    seed = offset = p = None
    if dropout_p > 0.0:
        batch = _batch(query.layout, key.layout, value.layout, grouped)
        assert batch is not None
        seed, offset = default_generator.take(numel(batch.queries) * query.shape[-2] * key.shape[-2])
        p = float(dropout_p)
    args = query, key, value, mask, scale, seed, offset, p
    return attention_op(*args, is_causal=is_causal, grouped=grouped)
