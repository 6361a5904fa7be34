"""Attention, composed of matrix products, a mask, softmax and dropout."""

from __future__ import annotations

import math

from tgrad import dtypes, modes
from tgrad.autocasting import low
from tgrad.device import compute
from tgrad.dtypes import dtype
from tgrad.kernels import scalar
from tgrad.kernels.launch import Launch
from tgrad.kernels.program import program
from tgrad.layout import Layout, broadcast_shapes, layout
from tgrad.op import Kernel, pointwise_launch
from tgrad.ops import creation, pointwise as p, reduce as r_
from tgrad.ops.creation import dropout
from tgrad.ops.matmul import bmm_op, matmul, product_launch
from tgrad.ops.softmax import softmax
from tgrad.ops.views import COPY, transpose
from tgrad.storage import workspace
from tgrad.tensor import Tensor

INFINITY = float("inf")


# --- products with a scale, and of half types with one side in float32 -----------------------------------------------
def _product(name: str, a: Tensor, b: Tensor, kind: dtype, scale: float = 1.0) -> tuple[Layout, Launch]:
    if a.shape[-1] != b.shape[-2]:
        raise RuntimeError(f"scaled_dot_product_attention: shapes {tuple(a.shape)} and {tuple(b.shape)} do not fit")
    batch = broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
    out = layout(kind, (*batch, a.shape[-2], b.shape[-1]), None, compute)
    left = a.layout if a.dtype is b.dtype else layout(b.dtype, tuple(a.shape), None, compute)
    epilogue = None
    if scale != 1.0 and a.shape[-1]:
        accumulator = dtypes.accumulator(left.dtype).triton
        epilogue = program(1, ((scale, accumulator),), ((scalar.mul, ((0, None), (1, None))),), ((2, kind.triton),))
    return out, product_launch(name, left, b.layout, out, batch, (), epilogue)


def _build_scores(a: Tensor, b: Tensor, scale: float, kind: dtype) -> tuple[list[Layout], Launch]:
    out, launch = _product("attention_scores", a, b, kind, scale)
    return [out], launch


def _build_weigh(weights: Tensor, value: Tensor) -> tuple[list[Layout], Launch]:
    out, product = _product("attention_values", weights, value, value.dtype)
    narrow = layout(value.dtype, tuple(weights.shape), None, compute)
    cast = pointwise_launch(
        "cast", COPY.lower(((weights.dtype, dtypes.TENSOR),), [value.dtype]), [narrow], [weights.layout]
    )

    def launch(to: int, source: int, values: int) -> None:
        scratch = workspace(narrow.nbytes)
        cast(scratch.ptr, source)
        product(to, scratch.ptr, values)

    return [out], launch


def _mT(x: Tensor) -> Tensor:
    return transpose(x, -2, -1)


# A product times `scale`, which is a constant of the kernel, rounded once, to `kind`: no scaled copy is made or kept.
scores_op: Kernel = Kernel(
    "attention_scores", ("a", "b"), _build_scores,
    {"a": lambda g, b, *, scale, a_dtype: scores_op(g.to(b.dtype), _mT(b), scale=scale, kind=a_dtype),
     "b": lambda g, a, *, scale, b_dtype: scores_op(_mT(a), g.to(a.dtype), scale=scale, kind=b_dtype)},
    settings=("scale", "kind"),
)  # fmt: skip
# A float32 operand, rounded to the other's dtype, and a product of that dtype.
weigh_op: Kernel = Kernel(
    "attention_values", ("weights", "value"), _build_weigh,
    {"weights": lambda g, value, *, weights_dtype: scores_op(g, _mT(value), scale=1.0, kind=weights_dtype),
     "value": lambda g, weights: bmm_op(_mT(p.cast(g.dtype)(weights)), g)},
)  # fmt: skip


# --- the composition -------------------------------------------------------------------------------------------------
def default_scale(query: Tensor) -> float:
    return 1 / math.sqrt(query.shape[-1]) if query.shape[-1] else 0.0


def _causal(rows: int, columns: int, like: Tensor) -> Tensor:
    """(rows, columns), True where column <= row."""
    at = lambda n: creation.arange(n, device=like.device)
    return p.le(at(columns), at(rows).reshape(rows, 1))


def _added(mask: Tensor, kind: dtype) -> Tensor:
    """A mask as numbers to add: a bool one, True where attention goes, becomes 0 or -inf."""
    return p.where(mask, 0.0, -INFINITY).to(kind) if mask.dtype is dtypes.bool_ else mask


def _weights(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None, dropout_p: float
) -> tuple[Tensor, Tensor | None]:
    """(attention weights (..., L, S), the rows that attend to nothing (..., L, 1) or None)."""
    # As in PyTorch's kernels, scores and weights of half types are float32.
    kind = dtypes.accumulator(query.dtype)
    if scale is None:
        x = scores_op(query, _mT(key), scale=default_scale(query), kind=kind)
    else:  # a user's number is no constant of a kernel
        x = scores_op(query, _mT(key), scale=1.0, kind=kind)
        x = x if scale == 1.0 else x * scale
    dead = None
    if mask is not None:
        mask = _added(mask, x.dtype)
        if mask.numel():
            with modes.no_grad():
                dead = p.eq(r_.amax(mask.detach(), -1, keepdim=True), -INFINITY)
            mask = p.where(dead, 0, mask)
        x = x + mask
    x = softmax(x, -1)  # one name for all, so that each is freed as soon as the next is made
    return dropout(x, dropout_p) if dropout_p > 0.0 else x, dead


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(query @ key.T * scale + mask) @ value (Vaswani et al., 2017).

    A row whose mask shuts everything out gives zeros.

    Args:
        attn_mask: broadcast to (..., L, S): bool, True where attention goes, or numbers to add.
        dropout_p: of the weights; applied whatever the mode.
        is_causal: row i attends to columns 0 to i.
        scale: None: 1 / sqrt(E).
        enable_gqa: query may have a multiple of key's heads, the third dimension from the right.

    Shape: query (..., L, E), key (..., S, E) and value (..., S, V) give (..., L, V).
    Dtype: floating, the same of all three; the result has it.
    Raises:
        RuntimeError: both attn_mask and is_causal; shapes or dtypes that do not fit.
    """
    query, key, value = low(query, key, value)
    if is_causal and attn_mask is not None:
        raise RuntimeError("_scaled_dot_product_attention: Explicit attn_mask should not be set when is_causal=True")
    if min(query.ndim, key.ndim, value.ndim) < 2:
        raise RuntimeError(
            "scaled_dot_product_attention: Expected query, key, and value to all be  at least 2 dimensional, but got "
            f"query dim: {query.ndim}, key dim: {key.ndim} and value dim: {value.ndim} instead."
        )
    if not query.dtype is key.dtype is value.dtype:
        raise RuntimeError(
            f"Expected query, key, and value to have the same dtype, but got query.dtype: {query.dtype.name} "
            f"key.dtype: {key.dtype.name} and value.dtype: {value.dtype.name} instead."
        )
    if enable_gqa:
        key, value = _repeated(key, query.shape[-3]), _repeated(value, query.shape[-3])
    mask = _causal(query.shape[-2], key.shape[-2], query) if is_causal else attn_mask
    weights, dead = _weights(query, key, mask, scale, dropout_p)
    out = matmul(weights, value) if weights.dtype is value.dtype else weigh_op(weights, value)
    del weights
    return out if dead is None or is_causal else p.where(dead, 0, out)


def _repeated(x: Tensor, heads: int) -> Tensor:
    """(..., H, S, E) with each head repeated, heads // H times."""
    *lead, have, length, width = x.shape
    if heads % have:
        raise RuntimeError(
            f"Number of heads in key and value must divide the number of heads in query, got {have} and {heads}"
        )
    wide = r_.expand(x.unsqueeze(-3), *lead, have, heads // have, length, width)
    return wide.reshape(*lead, heads, length, width)
