"""Attention, composed of matrix products, a mask, softmax and dropout."""

from __future__ import annotations

import math

from tgrad import dtypes, modes
from tgrad.dtypes import dtype
from tgrad.ops import creation, pointwise as p, reduce as r_
from tgrad.ops.creation import dropout
from tgrad.ops.matmul import matmul
from tgrad.ops.softmax import softmax
from tgrad.tensor import Tensor

INFINITY = float("inf")


def _causal(rows: int, columns: int, like: Tensor) -> Tensor:
    """(rows, columns), True where column <= row."""
    at = lambda n: creation.arange(n, device=like.device)
    return p.le(at(columns), at(rows).reshape(rows, 1))


def _added(mask: Tensor, kind: dtype) -> Tensor:
    """A mask as numbers to add: a bool one, True where attention goes, becomes 0 or -inf."""
    return p.where(mask, 0.0, -INFINITY).to(kind) if mask.dtype is dtypes.bool_ else mask


def _weights(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, dropout_p: float
) -> tuple[Tensor, Tensor | None]:
    """(attention weights (..., L, S), the rows that attend to nothing (..., L, 1) or None)."""
    scores = matmul(query * scale, key.transpose(-2, -1))
    dead = None
    if mask is not None:
        mask = _added(mask, query.dtype)
        if mask.numel():
            with modes.no_grad():
                dead = p.eq(r_.amax(mask.detach(), -1, keepdim=True), -INFINITY)
            mask = p.where(dead, 0, mask)
        scores = scores + mask
    weights = softmax(scores, -1)
    return dropout(weights, dropout_p) if dropout_p > 0.0 else weights, dead


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(query @ key.T * scale + mask) @ value: (..., L, E), (..., S, E), (..., S, V) give (..., L, V).

    A row whose mask shuts everything out gives zeros.

    Args:
        attn_mask: broadcast to (..., L, S): bool, True where attention goes, or numbers to add.
        dropout_p: of the weights; applied whatever the mode.
        is_causal: row i attends to columns 0 to i.
        scale: None: 1 / sqrt(E).
        enable_gqa: query may have a multiple of key's heads, the third dimension from the right.

    Raises:
        RuntimeError: both attn_mask and is_causal, or shapes and dtypes that do not fit.
    """
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
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1]) if query.shape[-1] else 0.0
    weights, dead = _weights(query, key, mask, scale, dropout_p)
    out = matmul(weights, value)
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
