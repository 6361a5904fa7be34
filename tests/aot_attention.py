"""Attention for the sweep of ahead-of-time compilation (aot_sweep.py): forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.aot_sweep import Program, backward, pretended


def programs() -> Iterator[Program]:
    """Of the two usual widths in bfloat16, one with a mask, dropout and offsets beyond 31 bits; in float32."""
    import tgrad
    import tgrad.nn.functional as F

    def both(dtype: Any, width: int, strides: Any = None, mask: Any = None, **options: Any) -> None:
        q, k, v = (pretended((2, 4, 512, width), dtype, strides).requires_grad_() for _ in range(3))
        backward(F.scaled_dot_product_attention(q, k, v, mask, **options))

    far, mask = (2**31, 512 * 128, 128, 1), pretended((512, 512), tgrad.bool)
    tags = "attention", "bfloat16"
    yield Program("attention bfloat16", lambda: both(tgrad.bfloat16, 64, is_causal=True), tags)
    masked = lambda: both(tgrad.bfloat16, 128, far, mask, dropout_p=0.1)
    yield Program("attention bfloat16 of 128, sums in float32", masked, tags, full=True)
    yield Program("attention float32", lambda: both(tgrad.float32, 64), full=True)
