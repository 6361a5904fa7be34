"""The models on which the policies of activation memory are compared: blocks fed by a Linear, and stacks of blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tgrad
import tgrad.nn.functional as F
from tgrad import nn
from tgrad.profiler.workloads import Workload
from tgrad.tensor import Tensor

HEADS = 4
HIDDEN = 4  # times the width


@dataclass(frozen=True)
class Sizes:
    """rows of flat inputs and tokens of sequences; width of the stream; depth of the stacks."""

    rows: int = 256
    width: int = 64
    depth: int = 6


@dataclass(frozen=True)
class Block:
    """What is compared, and what is to be reached.

    Attributes:
        length: tokens of a sequence, as a share of the width; 0: rows are flat.
        lean, leanest, peak: goals, ratios to PyTorch by dtype: of what lean and leanest keep, and of leanest's peak.
    """

    name: str
    make: Callable[[Sizes, Any], nn.Module]
    length: float = 0.0
    lean: dict[str, float] | None = None
    leanest: float | None = None
    peak: float | None = None


class SwiGLU(nn.Module):
    """silu(a x) * (b x), then a Linear (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, dtype: Any) -> None:
        super().__init__()
        hidden = HIDDEN * width
        self.a, self.b = nn.Linear(width, hidden, dtype=dtype), nn.Linear(width, hidden, dtype=dtype)
        self.c = nn.Linear(hidden, width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.silu(self.a(x)) * self.b(x))


class Residual(nn.Module):
    """x + MLP(LayerNorm(x)), with GELU."""

    def __init__(self, width: int, dtype: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, dtype=dtype)
        self.a, self.act = nn.Linear(width, HIDDEN * width, dtype=dtype), nn.GELU()
        self.b = nn.Linear(HIDDEN * width, width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.act(self.a(self.norm(x))))


def encoder(width: int, dtype: Any) -> nn.Module:
    """A pre-norm transformer encoder block with dropout 0.1."""
    return nn.TransformerEncoderLayer(
        width, HEADS, HIDDEN * width, dropout=0.1, activation="gelu", norm_first=True, batch_first=True, dtype=dtype
    )


def _mlp(*between: Callable[[], nn.Module]) -> Callable[[Sizes, Any], nn.Module]:
    def make(s: Sizes, dtype: Any) -> nn.Module:
        first, last = (nn.Linear(a, b, dtype=dtype) for a, b in _ends(s.width))
        return nn.Sequential(first, *[m() for m in between], last)

    return make


def _ends(width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    return (width, HIDDEN * width), (HIDDEN * width, width)


def _normed(norm: Any, *more: Callable[[], nn.Module]) -> Callable[[Sizes, Any], nn.Module]:
    def make(s: Sizes, dtype: Any) -> nn.Module:
        w = s.width
        ends = [nn.Linear(w, w, dtype=dtype) for _ in range(2)]
        return nn.Sequential(ends[0], norm(w, dtype=dtype), *[m() for m in more], ends[1])

    return make


def _stack(block: Callable[[int, Any], nn.Module], count: int = 0) -> Callable[[Sizes, Any], nn.Module]:
    def make(s: Sizes, dtype: Any) -> nn.Module:
        blocks = [block(s.width, dtype) for _ in range(count or s.depth)]
        return nn.Sequential(nn.Linear(s.width, s.width, dtype=dtype), *blocks)

    return make


def _both(ratio: float) -> dict[str, float]:
    return {"float32": ratio, "bfloat16": ratio}


# In torch_blocks.py stands the same in PyTorch, by name.
BLOCKS = (
    Block("ReLU", _mlp(nn.ReLU), lean=_both(1.0)),
    Block("GELU", _mlp(nn.GELU), lean=_both(0.5)),
    Block("SiLU", _mlp(nn.SiLU), lean=_both(0.5)),
    Block("GELU, dropout", _mlp(nn.GELU, lambda: nn.Dropout(0.1)), lean={"float32": 0.45, "bfloat16": 0.4}),
    Block("SwiGLU", lambda s, dtype: SwiGLU(s.width, dtype), lean=_both(0.5)),
    Block("LayerNorm", _normed(nn.LayerNorm), lean=_both(0.5)),
    Block("RMSNorm", _normed(nn.RMSNorm), lean=_both(0.5)),
    Block("BatchNorm, ReLU", _normed(nn.BatchNorm1d, nn.ReLU), lean=_both(0.5)),
    Block("encoder, length D/8", _stack(encoder, 1), 1 / 8, lean=_both(0.5)),
    Block("encoder, length D/2", _stack(encoder, 1), 1 / 2, lean=_both(0.5)),
    Block("stack of residual MLPs", _stack(Residual), leanest=0.2, peak=0.5),
    Block("stack of encoders", _stack(encoder), 1 / 2, leanest=0.2, peak=0.5),
)


def shape(block: Block, sizes: Sizes) -> tuple[int, ...]:
    """The shape of a batch: (rows, width), or (sequences, length, width) with as many tokens."""
    if not block.length:
        return sizes.rows, sizes.width
    length = max(1, round(block.length * sizes.width))
    return max(1, sizes.rows // length), length, sizes.width


def workload(block: Block, sizes: Sizes, dtype: str) -> Workload:
    """The block as a workload without a loss: backward starts from a random gradient."""
    kind = getattr(tgrad, dtype)
    size = shape(block, sizes)
    batch = lambda: ((tgrad.randn(*size, dtype=kind),), ())
    return Workload(block.name, block.make(sizes, kind), batch, None, 1, size[0])
