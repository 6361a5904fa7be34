"""Ops whose products of half types torch's CPU forms in float32, written as products of the half types themselves.

tgrad multiplies half types as they are, as GPUs do, torch's kernels there among them. The error that torch's own
composition has on a sample is then the measure of how ill-conditioned it is (agreement.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


def _attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if enable_gqa:
        key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype is torch.bool else scores + attn_mask
    return F.dropout(scores.softmax(-1), dropout_p) @ value


def _linear_cross_entropy(*args: Any, **kwargs: Any) -> Any:
    return F.linear_cross_entropy(*args, **{**kwargs, "options": None})  # which is linear and cross_entropy


_COMPOSED: dict[str, Callable] = {
    "nn.functional.scaled_dot_product_attention": _attention,
    "nn.functional.linear_cross_entropy": _linear_cross_entropy,
}


def reference(name: str, function: Callable, input: Any) -> Callable:
    """What a sample of an op is compared with: torch's function, or its composition."""
    half = isinstance(input, torch.Tensor) and input.dtype in (torch.float16, torch.bfloat16)
    return _COMPOSED.get(name, function) if half else function
