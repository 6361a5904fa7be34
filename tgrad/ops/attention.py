"""scaled_dot_product_attention: by one kernel that stores no map, or composed where that one cannot serve."""

from __future__ import annotations

from tgrad.autocasting import low
from tgrad.ops.composed_attention import composed_attention, default_scale, repeated
from tgrad.ops.fused_attention import fused_attention, serves
from tgrad.tensor import Tensor


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(query @ key.T * scale + mask) @ value (Vaswani et al., 2017).

    The (..., L, S) map is not stored (FlashAttention-2: Dao 2023, arXiv 2307.08691), unless attn_mask requires grad, a
    head is wider than 256 (128 in float32), or the dtype is float64 on a GPU. A row whose mask shuts everything out
    gives zeros.

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
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2]:
        raise RuntimeError(
            "scaled_dot_product_attention: expected query and key of one width, and key and value of one length, got "
            f"shapes {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    factor = default_scale(query) if scale is None else float(scale)
    if serves(query, key, value, attn_mask, enable_gqa):
        return fused_attention(query, key, value, attn_mask, dropout_p, is_causal, factor, enable_gqa)
    if enable_gqa:
        key, value = repeated(key, query.shape[-3]), repeated(value, query.shape[-3])
    return composed_attention(query, key, value, attn_mask, dropout_p, is_causal, factor)
