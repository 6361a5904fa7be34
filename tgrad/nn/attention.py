"""Attention with many heads."""

from __future__ import annotations

from typing import Any

from tgrad import dtypes
from tgrad.autocasting import low
from tgrad.dtypes import dtype
from tgrad.nn import functional as F, init
from tgrad.nn.linear import Linear
from tgrad.nn.module import Module
from tgrad.nn.parameter import Parameter
from tgrad.ops import creation, pointwise as p, reduce as r_
from tgrad.ops.attention import scaled_dot_product_attention
from tgrad.ops.composed_attention import INFINITY, default_scale, scores_op
from tgrad.ops.matmul import matmul
from tgrad.tensor import Tensor


class MultiheadAttention(Module):
    """Attention with `num_heads` projections of query, key and value (Vaswani et al., 2017).

    Args:
        embed_dim: E, a multiple of num_heads; kdim, vdim: of key and value, if they differ.
        dropout: of the attention weights, in training.
        bias: whether the projections have one.
        add_bias_kv, add_zero_attn: add one learned, and one zero, key and value to attend to.

    Shape: query (L, N, E), key (S, N, kdim) and value (S, N, vdim) give (L, N, E) and weights (N, L, S); with
    batch_first, (N, L, E), ...; without a batch, (L, E), ...
    Dtype: floating, the same of inputs and parameters: `dtype`.
    Raises:
        ValueError, AssertionError: sizes that do not fit.
        RuntimeError: a mask that does not fit.
    """

    in_proj_weight: Parameter | None
    in_proj_bias: Parameter | None
    bias_k: Parameter | None
    bias_v: Parameter | None

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True, add_bias_kv: bool = False,
        add_zero_attn: bool = False, kdim: int | None = None, vdim: int | None = None, batch_first: bool = False,
        device: Any = None, dtype: dtype | None = None,
    ) -> None:  # fmt: skip
        if embed_dim <= 0 or num_heads <= 0:
            raise ValueError(
                f"embed_dim and num_heads must be greater than 0, got embed_dim={embed_dim} and num_heads={num_heads} "
                "instead"
            )
        super().__init__()
        self.embed_dim, self.num_heads, self.dropout, self.batch_first = embed_dim, num_heads, dropout, batch_first
        self.kdim = embed_dim if kdim is None else kdim
        self.vdim = embed_dim if vdim is None else vdim
        self._qkv_same_embed_dim = self.kdim == embed_dim and self.vdim == embed_dim
        self.head_dim = embed_dim // num_heads
        if self.head_dim * num_heads != embed_dim:
            raise AssertionError("embed_dim must be divisible by num_heads")
        new = lambda *sizes: Parameter(creation.empty(*sizes, device=device, dtype=dtype))
        if self._qkv_same_embed_dim:
            self.in_proj_weight = new(3 * embed_dim, embed_dim)
            for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
                self.register_parameter(name, None)
        else:
            self.q_proj_weight = new(embed_dim, embed_dim)
            self.k_proj_weight = new(embed_dim, self.kdim)
            self.v_proj_weight = new(embed_dim, self.vdim)
            self.register_parameter("in_proj_weight", None)
        self.register_parameter("in_proj_bias", new(3 * embed_dim) if bias else None)
        self.out_proj = Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.register_parameter("bias_k", new(1, 1, embed_dim) if add_bias_kv else None)
        self.register_parameter("bias_v", new(1, 1, embed_dim) if add_bias_kv else None)
        self.add_zero_attn = add_zero_attn
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        for w in (self.in_proj_weight, self.q_proj_weight, self.k_proj_weight, self.v_proj_weight):
            if w is not None:
                init.xavier_uniform_(w)
        if self.in_proj_bias is not None:
            init.constant_(self.in_proj_bias, 0.0)
            init.constant_(self.out_proj.bias, 0.0)  # type: ignore[arg-type]
        for b in (self.bias_k, self.bias_v):
            if b is not None:
                init.xavier_normal_(b)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """(output as query, attention weights (N, L, S), or (N, heads, L, S) not averaged, or None).

        Args:
            key_padding_mask: (N, S): bool, True for keys to leave out, or numbers to add.
            attn_mask: (L, S) or (N * heads, L, S), likewise.
            is_causal: attn_mask is the causal mask; without weights or padding it then need not be read.

        Raises:
            RuntimeError, AssertionError: shapes do not fit; is_causal without attn_mask.
        """
        if query.ndim not in (2, 3):
            raise AssertionError(
                f"query should be unbatched 2D or batched 3D tensor but received {query.ndim}-D query tensor"
            )
        if not query.ndim == key.ndim == value.ndim:
            raise AssertionError(f"query, key and value must have one rank, got {query.ndim}, {key.ndim}, {value.ndim}")
        if is_causal and attn_mask is None:
            raise RuntimeError(
                "Need attn_mask if specifying the is_causal hint. You may use the Transformer module method "
                "`generate_square_subsequent_mask` to create this mask."
            )
        batched = query.ndim == 3
        if query.shape[-1] != self.embed_dim:
            raise AssertionError(
                f"was expecting embedding dimension of {self.embed_dim}, but got {query.shape[-1]}"
            )
        keys = key.shape[-2 if self.batch_first or not batched else 0]
        q, k, v = self._heads(query, key, value)  # (N, heads, length, E / heads)
        del query, key, value  # nobody may hold them but this call
        n, heads, length, width = q.shape
        mask = _attention_mask(attn_mask, n, heads, length, keys)
        k, v, extra = self._extended(k, v)
        # The hint is trusted, as in PyTorch: half of the map is then never looked at.
        causal = is_causal and not (need_weights or extra or key_padding_mask is not None)
        causal = causal and not (mask is not None and mask.requires_grad)
        mask = None if causal else _merged(mask, key_padding_mask, extra, n, k.shape[2], q.dtype)
        dropout_p = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = _unsafe_weights(q, k, mask, dropout_p)
            out = matmul(weights, v)
        else:
            out = scaled_dot_product_attention(q, k, v, mask, dropout_p, is_causal=causal)
        del q, k, v, mask  # not needed while the heads are joined and projected
        if not batched:
            out = out.permute(0, 2, 1, 3).reshape(length, self.embed_dim)
        elif self.batch_first:
            out = out.permute(0, 2, 1, 3).reshape(n, length, self.embed_dim)
        else:
            out = out.permute(2, 0, 1, 3).reshape(length, n, self.embed_dim)
        if weights is not None:
            weights = r_.mean(weights, 1) if average_attn_weights else weights
            weights = weights if batched else weights[0]
        return self.out_proj(out), weights

    def _heads(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        w, b, e = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        if w is None:
            given = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            bs = (None,) * 3 if b is None else b.split(e)
            projected = [F.linear(x, w_, b_) for x, w_, b_ in zip((query, key, value), given, bs)]
        elif query is key is value:
            projected = list(F.linear(query, w, b).split(e, -1))
        else:
            bs = (None,) * 3 if b is None else b.split(e)
            projected = [F.linear(x, w_, b_) for x, w_, b_ in zip((query, key, value), w.split(e), bs)]
        return [self._split(x) for x in projected]

    def _split(self, x: Tensor) -> Tensor:
        """(L, N, E), (N, L, E) or (L, E) as (N, heads, L, E / heads)."""
        parts = x.reshape(*x.shape[:-1], self.num_heads, self.head_dim)
        if x.ndim == 2:
            return parts.permute(1, 0, 2).unsqueeze(0)
        return parts.permute(0, 2, 1, 3) if self.batch_first else parts.permute(1, 2, 0, 3)

    def _extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Keys and values with those of add_bias_kv and add_zero_attn, and how many these are."""
        from tgrad.ops.joining import cat

        n, heads, _, width = k.shape
        extra = 0
        if self.bias_k is not None and self.bias_v is not None:
            wide = [r_.expand(b.reshape(1, heads, 1, width), n, heads, 1, width) for b in (self.bias_k, self.bias_v)]
            k, v, extra = cat([k, wide[0]], 2), cat([v, wide[1]], 2), 1
        if self.add_zero_attn:
            zero = creation.zeros(n, heads, 1, width, dtype=k.dtype, device=k.device)
            k, v, extra = cat([k, zero], 2), cat([v, zero], 2), extra + 1
        return k, v, extra


def _unsafe_weights(q: Tensor, k: Tensor, mask: Tensor | None, dropout_p: float) -> Tensor:
    """Weights whose rows are nan where the mask shuts everything out, as PyTorch's are when they are asked for."""
    q, k = low(q, k)
    scores = scores_op(q, k.transpose(-2, -1), scale=default_scale(q), kind=q.dtype)
    weights = F.softmax(scores if mask is None else scores + mask, -1)
    return F.dropout(weights, dropout_p) if dropout_p > 0.0 else weights


def _attention_mask(mask: Tensor | None, n: int, heads: int, length: int, keys: int) -> Tensor | None:
    if mask is None:
        return None
    if mask.ndim == 2:
        if tuple(mask.shape) != (length, keys):
            raise RuntimeError(f"The shape of the 2D attn_mask is {mask.shape}, but should be {(length, keys)}.")
        return mask
    if mask.ndim == 3:
        if tuple(mask.shape) != (n * heads, length, keys):
            raise RuntimeError(
                f"The shape of the 3D attn_mask is {mask.shape}, but should be {(n * heads, length, keys)}."
            )
        return mask.reshape(n, heads, length, keys)
    raise RuntimeError(f"attn_mask's dimension {mask.ndim} is not supported")


def _merged(
    mask: Tensor | None, padding: Tensor | None, extra: int, n: int, keys: int, kind: dtype
) -> Tensor | None:
    """Both masks (True: left out) as numbers to add, broadcast to (N, heads, L, S); `extra` last keys are free."""
    from tgrad.ops.joining import cat

    def numbers(m: Tensor) -> Tensor:
        if m.dtype is dtypes.bool_:
            m = p.where(m, -INFINITY, 0.0)
        elif not m.is_floating_point():
            raise AssertionError("only bool and floating types of masks are supported")
        m = m.to(kind)
        if extra:
            m = cat([m, creation.zeros(*m.shape[:-1], extra, dtype=kind, device=m.device)], m.ndim - 1)
        return m

    if padding is not None:
        padding = numbers(padding).reshape(n, 1, 1, keys)
    if mask is None:
        return padding
    return numbers(mask) if padding is None else numbers(mask) + padding


__all__ = ["MultiheadAttention"]
