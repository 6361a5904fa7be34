"""The encoder of the transformer (Vaswani et al., 2017), composed of attention, linear layers and layer norms."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from tgrad.dtypes import dtype
from tgrad.inplace import write
from tgrad.modes import current
from tgrad.nn import functional as F
from tgrad.nn.attention import MultiheadAttention
from tgrad.nn.calls import entered, is_plain
from tgrad.nn.container import ModuleList
from tgrad.nn.dropout import Dropout
from tgrad.nn.linear import Linear
from tgrad.nn.module import Module
from tgrad.nn.norm import LayerNorm
from tgrad.ops import pointwise as p
from tgrad.tensor import Tensor


class TransformerEncoderLayer(Module):
    """Self-attention and a feedforward network, each with a residual and a layer norm (Vaswani et al., 2017).

    Args:
        d_model, nhead, dim_feedforward: sizes of the stream, number of heads, hidden size of the feedforward network.
        activation: "relu", "gelu" or a function.
        norm_first: norms come before attention and feedforward, not after.

    Shape: (L, N, E), with batch_first (N, L, E), or (L, E); the result has the input's.
    Dtype: floating, the same of input and parameters: `dtype`.
    Raises:
        RuntimeError: an unknown activation.
        AssertionError: sizes or masks do not fit.
    """

    def __init__(
        self, d_model: int, nhead: int, dim_feedforward: int = 2048, dropout: float = 0.1,
        activation: str | Callable[[Tensor], Tensor] = F.relu, layer_norm_eps: float = 1e-5, batch_first: bool = False,
        norm_first: bool = False, bias: bool = True, device: Any = None, dtype: dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        made: dict[str, Any] = {"bias": bias, "device": device, "dtype": dtype}
        self.self_attn = MultiheadAttention(d_model, nhead, dropout=dropout, batch_first=batch_first, **made)
        self.linear1 = Linear(d_model, dim_feedforward, **made)
        self.dropout = Dropout(dropout)
        self.linear2 = Linear(dim_feedforward, d_model, **made)
        self.norm_first = norm_first
        self.norm1 = LayerNorm(d_model, eps=layer_norm_eps, **made)
        self.norm2 = LayerNorm(d_model, eps=layer_norm_eps, **made)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)
        known: dict[Any, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
        if isinstance(activation, str) and activation not in known:
            raise RuntimeError(f"activation should be relu/gelu, not {activation}")
        self.activation: Any = known[activation] if isinstance(activation, str) else activation

    def forward(
        self, src: Tensor, src_mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:  # fmt: skip
        """The stream after this layer; the masks are those of `MultiheadAttention`."""
        if self.norm_first:  # one name for the stream, so that each is freed as soon as the next is made
            src = src + self._attend(self.norm1(src), src_mask, src_key_padding_mask, is_causal)
            return src + self._feed(self.norm2(src))
        src = self.norm1(src + self._attend(src, src_mask, src_key_padding_mask, is_causal))
        return self.norm2(src + self._feed(src))

    def _attend(self, x: Tensor, mask: Tensor | None, padding: Tensor | None, is_causal: bool) -> Tensor:
        if not is_plain(self.self_attn):
            out, _ = self.self_attn(
                x, x, x, attn_mask=mask, key_padding_mask=padding, need_weights=False, is_causal=is_causal
            )
            return self.dropout1(out)
        given, x = [x] * 3, None  # type: ignore[assignment]  # nobody else holds it while attention runs
        with entered(self.self_attn):
            out, _ = self.self_attn.forward(
                given.pop(), given.pop(), given.pop(), attn_mask=mask, key_padding_mask=padding, need_weights=False,
                is_causal=is_causal,
            )  # fmt: skip
        return self.dropout1(out)

    def _feed(self, x: Tensor) -> Tensor:
        x = self.linear1(x)  # one name for all, so that each is freed as soon as the next is made
        x = self._activated(x)
        x = self.dropout(x)
        return self.dropout2(self.linear2(x))

    def _activated(self, x: Tensor) -> Tensor:
        """The activation of linear1's result; in its memory where nothing is recorded and nobody else can hold it."""
        f, first = self.activation, self.linear1
        row = p.relu if f is F.relu else p.gelu if f is F.gelu else None
        theirs = type(first) is not Linear or first._forward_hooks or "forward" in vars(first)
        return f(x) if row is None or theirs or current().record else write(row, x, (x,))


class TransformerEncoder(Module):
    """`num_layers` copies of a layer one after another, then `norm` if given.

    Args:
        enable_nested_tensor, mask_check: accepted for PyTorch's sake: they choose how it computes.

    Shape: as of its layers, which keep it.
    Dtype: floating, that of the parameters.
    Raises:
        RuntimeError: what its layers raise.
    """

    def __init__(
        self, encoder_layer: Module, num_layers: int, norm: Module | None = None, enable_nested_tensor: bool = True,
        mask_check: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.layers = ModuleList([copy.deepcopy(encoder_layer) for _ in range(num_layers)])
        self.num_layers = num_layers
        self.norm = norm

    def forward(
        self, src: Tensor, mask: Tensor | None = None, src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:  # fmt: skip
        """The stream after all layers; is_causal None: the mask alone says."""
        causal = bool(is_causal)
        for layer in self.layers:
            if not is_plain(layer):
                src = layer(src, src_mask=mask, is_causal=causal, src_key_padding_mask=src_key_padding_mask)
                continue
            given, src = [src], None  # type: ignore[assignment]  # nobody else holds it while the layer runs
            with entered(layer):
                src = layer.forward(
                    given.pop(), src_mask=mask, is_causal=causal, src_key_padding_mask=src_key_padding_mask
                )
        return src if self.norm is None else self.norm(src)
