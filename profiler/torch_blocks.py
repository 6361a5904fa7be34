"""The blocks of policy_models.py in PyTorch, with what its CUDA kernels save: dropout a bool mask, also on the CPU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _disable_current_modes as unseen
from torch.utils.checkpoint import checkpoint

from tgrad.profiler import torch_twin
from tgrad.profiler.records import SavedRow
from tgrad.profiler.torch_twin import Twin

HEADS, HIDDEN = 4, 4


class Dropout(nn.Module):
    """Dropout as CUDA has it: a bool mask, where the CPU's keeps one in the input's dtype."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.native_dropout(x, self.p, True)[0]


class FusedRmsNorm(torch.autograd.Function):
    """What CUDA's fused kernel saves: the input, the weight and a float32 number a row. The CPU has no such kernel: the
    values are composed where no tracker sees their temporaries.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        out, rstd = torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
        with unseen():
            wide = x.float()
            rstd.copy_(wide.square().mean(-1, keepdim=True).add(1e-6).rsqrt())
            out.copy_(wide * rstd * weight)
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, weight, rstd = ctx.saved_tensors
        dx, dw = torch.empty_like(x), torch.empty_like(weight)
        with unseen():
            g, hat = grads[0].float(), x.float() * rstd
            inner = g * weight
            dx.copy_(rstd * (inner - hat * (inner * hat).mean(-1, keepdim=True)))
            dw.copy_((g * hat).sum(0))
        return dx, dw


class WideStatistics(torch.autograd.Function):
    """x, and as many bytes for as long as a normalisation of x behind it keeps more on CUDA: in half types its mean and
    1 / deviation are float32 there, and half types on the CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, count: int) -> torch.Tensor:
        ctx.save_for_backward(x.new_empty(2 * count))
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grads[0], None


class LayerNorm(nn.LayerNorm):
    """With CUDA's statistics."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.itemsize > 2 else WideStatistics.apply(x, x[..., 0].numel()))


class BatchNorm(nn.BatchNorm1d):
    """With CUDA's statistics."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.itemsize > 2 else WideStatistics.apply(x, x.shape[1]))


class RMSNorm(nn.Module):
    """RMSNorm."""

    def __init__(self, width: int, dtype: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, dtype=dtype))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return FusedRmsNorm.apply(x, self.weight)


class Two(nn.Module):
    """Two Linears of one input, to the hidden size."""

    def __init__(self, width: int, dtype: Any) -> None:
        super().__init__()
        self.a, self.b = (nn.Linear(width, HIDDEN * width, dtype=dtype) for _ in range(2))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.a(x), self.b(x)


class Gated(nn.Module):
    """silu(a) * b, then a Linear."""

    def __init__(self, width: int, dtype: Any) -> None:
        super().__init__()
        self.c = nn.Linear(HIDDEN * width, width, dtype=dtype)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.c(F.silu(a) * b)


class Residual(nn.Module):
    """x + MLP(LayerNorm(x))."""

    def __init__(self, width: int, dtype: Any) -> None:
        super().__init__()
        self.norm = LayerNorm(width, dtype=dtype)
        self.a, self.b = nn.Linear(width, HIDDEN * width, dtype=dtype), nn.Linear(HIDDEN * width, width, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(F.gelu(self.a(self.norm(x))))


class Encoder(nn.Module):
    """A pre-norm encoder block whose attention is composed: matmul, scale, softmax, dropout, matmul."""

    def __init__(self, width: int, dtype: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(width, dtype=dtype), LayerNorm(width, dtype=dtype)
        self.inner, self.outer = nn.Linear(width, 3 * width, dtype=dtype), nn.Linear(width, width, dtype=dtype)
        self.a, self.b = nn.Linear(width, HIDDEN * width, dtype=dtype), nn.Linear(HIDDEN * width, width, dtype=dtype)
        self.drop = Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.drop(self.attend(self.norm1(x)))
        return x + self.drop(self.b(self.drop(F.gelu(self.a(self.norm2(x))))))

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        q, k, v = (p.view(n, length, HEADS, -1).transpose(1, 2) for p in self.inner(x).chunk(3, -1))
        scores = q @ k.transpose(-2, -1) * (1 / math.sqrt(width // HEADS))
        out = self.drop(scores.softmax(-1)) @ v
        return self.outer(out.transpose(1, 2).reshape(n, length, width))


class Stack(nn.Module):
    """A Linear, then blocks, each checkpointed if asked for."""

    def __init__(self, first: nn.Module, blocks: list[nn.Module], checkpointed: bool) -> None:
        super().__init__()
        self.first, self.blocks, self.checkpointed = first, nn.ModuleList(blocks), checkpointed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        for block in self.blocks:
            args = y if isinstance(y, tuple) else (y,)
            y = checkpoint(block, *args, use_reentrant=False) if self.checkpointed else block(*args)
        return y


def _mlp(width: int, dtype: Any, *between: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    hidden = HIDDEN * width
    rest = nn.Sequential(*between, nn.Linear(hidden, width, dtype=dtype))
    return nn.Linear(width, hidden, dtype=dtype), [rest]


def _normed(width: int, dtype: Any, *between: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    first, last = nn.Linear(width, width, dtype=dtype), nn.Linear(width, width, dtype=dtype)
    return first, [nn.Sequential(*between, last)]


def _stack(block: Any, width: int, dtype: Any, count: int) -> tuple[nn.Module, list[nn.Module]]:
    return nn.Linear(width, width, dtype=dtype), [block(width, dtype) for _ in range(count)]


# By name: (width, dtype, depth) -> (the Linear that feeds, the blocks).
MODELS: dict[str, Callable[[int, Any, int], tuple[nn.Module, list[nn.Module]]]] = {
    "ReLU": lambda w, d, n: _mlp(w, d, nn.ReLU()),
    "GELU": lambda w, d, n: _mlp(w, d, nn.GELU()),
    "SiLU": lambda w, d, n: _mlp(w, d, nn.SiLU()),
    "GELU, dropout": lambda w, d, n: _mlp(w, d, nn.GELU(), Dropout(0.1)),
    "SwiGLU": lambda w, d, n: (Two(w, d), [Gated(w, d)]),
    "LayerNorm": lambda w, d, n: _normed(w, d, LayerNorm(w, dtype=d)),
    "RMSNorm": lambda w, d, n: _normed(w, d, RMSNorm(w, dtype=d)),
    "BatchNorm, ReLU": lambda w, d, n: _normed(w, d, BatchNorm(w, dtype=d), nn.ReLU()),
    "encoder, length D/8": lambda w, d, n: _stack(Encoder, w, d, 1),
    "encoder, length D/2": lambda w, d, n: _stack(Encoder, w, d, 1),
    "stack of residual MLPs": lambda w, d, n: _stack(Residual, w, d, n),
    "stack of encoders": lambda w, d, n: _stack(Encoder, w, d, n),
}


def twin(name: str, shape: tuple[int, ...], dtype: str, depth: int, checkpointed: bool) -> Twin:
    """The block in PyTorch, on the CPU."""
    kind = getattr(torch, dtype)
    first, blocks = MODELS[name](shape[-1], kind, depth)
    return Twin(Stack(first, blocks, checkpointed), lambda: ((torch.randn(*shape, dtype=kind),), ()))


def kept(name: str, shape: tuple[int, ...], dtype: str, depth: int, checkpointed: bool) -> tuple[int, int, float]:
    """(saved, statistics, peak) in bytes: what PyTorch's graph keeps beside parameters and the batch, its statistics in
    float32 apart, and the most live in a step, by its MemTracker. NaN: not known.
    """
    record, rows = torch_twin.profile(twin(name, shape, dtype, depth, checkpointed), name, "")
    mine = [r for r in rows if r.category in ("intermediate", "output")]
    apart = sum(r.charged_bytes for r in mine if _is_statistic(r))
    return sum(r.charged_bytes for r in mine) - apart, apart, record.mem_tracker_peak_bytes


def _is_statistic(row: SavedRow) -> bool:
    if row.op in ("NativeLayerNorm", "NativeBatchNorm"):
        return row.argument in ("result1", "result2")
    return row.op == "WideStatistics" or (row.op == "FusedRmsNorm" and row.shape.endswith("x1"))


def fused_attention_change(shape: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """(saved, statistics): bytes more that a block keeps with PyTorch's fused attention than with the composed.

    By formula: the flash kernel (Dao 2023, arXiv 2307.08691, as PyTorch calls it) saves q, k, v and its result, which
    is the memory that the projection behind it saves anyway, and a log-sum-exp of 4 bytes for each row of the attention
    map and a seed; neither softmax's result, nor dropout's mask and result.
    """
    n, length, _ = shape
    maps = n * HEADS * length * length
    return -maps * (2 * itemsize + 1), 4 * n * HEADS * length + 16
