"""The same models with the same parameters in tgrad and in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import tgrad
from tests.benchmarks.gpu.data import share


def same(make: Callable[[Any, Any], Any], dtype: torch.dtype, device: torch.device) -> tuple[Any, Any]:
    """(tgrad's, torch's) of `make(nn, F)`; the parameters of the first are copies of the second's."""
    theirs = make(torch.nn, torch.nn.functional).to(device=device, dtype=dtype)
    ours = make(tgrad.nn, tgrad.nn.functional).to(getattr(tgrad, str(dtype).rpartition(".")[2]))
    names = dict(theirs.named_parameters())
    with tgrad.no_grad():
        for name, p in ours.named_parameters():
            p.copy_(share(names.pop(name).detach()))
    if names:
        raise ValueError(f"the models differ: tgrad's lacks {sorted(names)}")
    return ours, theirs


def perceptron(width: int, depth: int, activation: str = "ReLU") -> Callable[[Any, Any], Any]:
    def make(nn: Any, F: Any) -> Any:
        return nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(width, width), getattr(nn, activation)())])

    return make


def feedforward(width: int, activation: str, dropout: float = 0.0) -> Callable[[Any, Any], Any]:
    """Linear -> activation [-> dropout] -> Linear, four times as wide between, fed by a Linear."""

    def make(nn: Any, F: Any) -> Any:
        between = [getattr(nn, activation)(), *([nn.Dropout(dropout)] if dropout else [])]
        up, down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        return nn.Sequential(nn.Linear(width, width), up, *between, down)

    return make


def normed(width: int, norm: str) -> Callable[[Any, Any], Any]:
    def make(nn: Any, F: Any) -> Any:
        return nn.Sequential(nn.Linear(width, width), getattr(nn, norm)(width), nn.Linear(width, width))

    return make


def swiglu(width: int) -> Callable[[Any, Any], Any]:
    """silu(a x) * (b x), then a Linear: Shazeer 2020, arXiv 2002.05202; fed by a Linear."""

    def make(nn: Any, F: Any) -> Any:
        class SwiGLU(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(width, 4 * width), nn.Linear(width, 4 * width)
                self.c = nn.Linear(4 * width, width)

            def forward(self, x: Any) -> Any:
                return self.c(F.silu(self.a(x)) * self.b(x))

        return nn.Sequential(nn.Linear(width, width), SwiGLU())

    return make


def residual(width: int, depth: int) -> Callable[[Any, Any], Any]:
    """`depth` blocks x + W2 gelu(W1 norm(x)), as children of a ModuleList: what "leanest" recomputes one by one."""

    def make(nn: Any, F: Any) -> Any:
        class Block(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = nn.LayerNorm(width)
                self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

            def forward(self, x: Any) -> Any:
                return x + self.down(F.gelu(self.up(self.norm(x))))

        class Stack(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.blocks = nn.ModuleList([Block() for _ in range(depth)])

            def forward(self, x: Any) -> Any:
                for block in self.blocks:
                    x = block(x)
                return x

        return Stack()

    return make


def encoder(width: int, depth: int) -> Callable[[Any, Any], Any]:
    """`depth` pre-norm encoder blocks with dropout, as children of a ModuleList; heads of 64."""

    def make(nn: Any, F: Any) -> Any:
        class Stack(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                options = {"activation": "gelu", "norm_first": True, "batch_first": True}
                heads = max(1, width // 64)
                layers = [nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, **options) for _ in range(depth)]
                self.layers = nn.ModuleList(layers)

            def forward(self, x: Any) -> Any:
                for layer in self.layers:
                    x = layer(x)
                return x

        return Stack()

    return make
