"""Attention composed of matrix products, a mask, softmax and dropout: it stores the map, and can be differentiated."""

from __future__ import annotations

import math

from tgrad import dtypes, modes
from tgrad.device import compute
from tgrad.dtypes import dtype
from tgrad.kernels import scalar
from tgrad.kernels.launch import Launch
from tgrad.kernels.program import program
from tgrad.layout import Layout, broadcast_shapes, layout
from tgrad.op import Kernel, pointwise_launch
from tgrad.ops import creation, pointwise as p, reduce as r_
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


def causal(rows: int, columns: int, like: Tensor) -> Tensor:
    """(rows, columns), True where column <= row."""
    at = lambda n: creation.arange(n, device=like.device)
    return p.le(at(columns), at(rows).reshape(rows, 1))


def _added(mask: Tensor, kind: dtype) -> Tensor:
    """A mask as numbers to add: a bool one, True where attention goes, becomes 0 or -inf."""
    return p.where(mask, 0.0, -INFINITY).to(kind) if mask.dtype is dtypes.bool_ else mask


def weights_of(query: Tensor, key: Tensor, mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor | None]:
    """(attention weights (..., L, S), the rows that attend to nothing (..., L, 1) or None).

    As in PyTorch's kernels, scores and weights of half types are float32.
    """
    kind = dtypes.accumulator(query.dtype)
    if scale == default_scale(query):
        x = scores_op(query, _mT(key), scale=scale, kind=kind)
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
    return softmax(x, -1), dead


def composed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float, is_causal: bool, scale: float
) -> Tensor:
    """softmax(query @ key.T * scale + mask) @ value; rows whose mask shuts everything out give zeros.

    Raises:
        RuntimeError: shapes that do not fit.
    """
    mask = causal(query.shape[-2], key.shape[-2], query) if is_causal else mask
    weights, dead = weights_of(query, key, mask, scale)
    weights = creation.dropout(weights, dropout_p) if dropout_p > 0.0 else weights  # one name: each is freed early
    out = matmul(weights, value) if weights.dtype is value.dtype else weigh_op(weights, value)
    del weights
    return out if dead is None or is_causal else p.where(dead, 0, out)


def repeated(x: Tensor, heads: int) -> Tensor:
    """(..., H, S, E) with each head repeated, heads // H times."""
    *lead, have, length, width = x.shape
    if heads % have:
        raise RuntimeError(
            f"Number of heads in key and value must divide the number of heads in query, got {have} and {heads}"
        )
    wide = r_.expand(x.unsqueeze(-3), *lead, have, heads // have, length, width)
    return wide.reshape(*lead, heads, length, width)


def together(x: Tensor, heads: int) -> Tensor:
    """The sums of (..., H, S, E) over neighbours that stand for one of `heads` heads: the transpose of `repeated`."""
    *lead, have, length, width = x.shape
    return x.reshape(*lead, heads, have // heads, length, width).sum(-3)
