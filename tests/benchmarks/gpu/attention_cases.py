"""Attention, forward and both ways, beside PyTorch's fused attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as TF

import tgrad
import tgrad.nn.functional as GF
from tests.benchmarks.gpu.bench import Bench, Contest
from tests.benchmarks.gpu.data import share

BATCH, HEADS = 4, 16


def run(b: Bench) -> None:
    for length, width in ((4096, 128), (4096, 64), (1024, 128), (1024, 64)):
        for causal in (False, True):
            _attention(b, length, width, causal)


def _attention(b: Bench, length: int, width: int, causal: bool) -> None:
    """Two products forward; backward five, of which two are those of the forward again, and no other is counted."""
    dtype, shape = torch.bfloat16, b.size(BATCH, HEADS, length, width)
    n, heads, rows, e = shape
    flops = 4.0 * n * heads * rows * rows * e * (0.5 if causal else 1.0)
    name = "attention, causal" if causal else "attention"
    nbytes = 4 * n * heads * rows * e * dtype.itemsize

    def operands(count: int) -> list[torch.Tensor]:
        """As a projection of a stream gives them: (batch, rows, heads, width), transposed."""
        return [b.random((n, rows, heads, e), dtype).transpose(1, 2) for _ in range(count)]

    def exact(*x: torch.Tensor) -> torch.Tensor:
        return TF.scaled_dot_product_attention(*(t.double() for t in x), is_causal=causal)

    def forward() -> Contest:
        theirs = operands(3)
        ours = [share(t) for t in theirs]
        calls: dict[str, Callable[[], Any]] = {
            "tgrad": lambda: GF.scaled_dot_product_attention(*ours, is_causal=causal),
            "torch": lambda: TF.scaled_dot_product_attention(*theirs, is_causal=causal),
        }
        return Contest(calls, (lambda: [exact(*theirs)]) if _comparable(rows) else None)

    def both() -> Contest:
        *leaves, g = operands(4)
        theirs = [t.clone().requires_grad_() for t in leaves]
        ours, arriving = [share(t.clone()).requires_grad_() for t in leaves], share(g)

        def mine() -> Any:
            return tgrad.autograd.grad(GF.scaled_dot_product_attention(*ours, is_causal=causal), ours, arriving)

        def torchs() -> Any:
            return torch.autograd.grad(TF.scaled_dot_product_attention(*theirs, is_causal=causal), theirs, g)

        def reference() -> list[torch.Tensor]:
            wide = [t.double().requires_grad_() for t in leaves]
            with torch.enable_grad():
                out = exact(*wide)
            return list(torch.autograd.grad(out, wide, g.double()))

        return Contest({"tgrad": mine, "torch": torchs}, reference if _comparable(rows) else None)

    b.case(name, dtype, shape, forward, flops=flops, nbytes=nbytes)
    b.case(f"{name}, both ways", dtype, shape, both, flops=3.5 * flops, nbytes=3 * nbytes, grad=True)


def _comparable(rows: int) -> bool:
    """Whether a map in float64, which PyTorch composes, fits beside the rest: of 4096 rows it has 8.6 GB."""
    return rows <= 1024
