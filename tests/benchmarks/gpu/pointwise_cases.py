"""Pointwise operations and chains, at 1 to 256 MB per tensor; fused by `tgrad.fuse` and by torch.compile."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as TF

import tgrad
import tgrad.nn.functional as GF
from tests.benchmarks.gpu.bench import Bench, Contest
from tests.benchmarks.gpu.data import share

HALF, FULL = torch.bfloat16, torch.float32
# name: (function of (tanh-like namespace F, x, y), tensors moved at least)
OPS: dict[str, tuple[Any, int]] = {
    "add": (lambda xp, F, x, y: x + y, 3), "relu": (lambda xp, F, x, y: xp.relu(x), 2),
    "gelu": (lambda xp, F, x, y: F.gelu(x), 2), "exp": (lambda xp, F, x, y: xp.exp(x), 2),
    "mul by a number": (lambda xp, F, x, y: x * 2.5, 2),
}  # fmt: skip
CHAINS: dict[str, Any] = {
    "relu(x * 2 + y)": lambda xp, F, x, y: xp.relu(x * 2.0 + y),
    "silu(x) * y": lambda xp, F, x, y: F.silu(x) * y,
    "tanh chain of 8": lambda xp, F, x, y: xp.tanh(xp.tanh(x * y + 1.0) * xp.sigmoid(y) - x) * 0.5 + y,
}


def run(b: Bench) -> None:
    for dtype in (HALF, FULL):
        for name in OPS:
            _op(b, name, dtype, 256 << 20)
    for dtype in (HALF, FULL):
        for name in CHAINS:
            _chain(b, name, dtype, 128 << 20)
        _chain_backward(b, "silu(x) * y", dtype, 64 << 20)
    for dtype in (HALF, FULL):
        _matrices(b, dtype)
    for nbytes in (64 << 20, 16 << 20, 4 << 20, 1 << 20):
        for name in ("add", "gelu"):
            _op(b, name, HALF, nbytes, graph=nbytes <= 4 << 20)


def _op(b: Bench, name: str, dtype: torch.dtype, nbytes: int, graph: bool = False) -> None:
    function, moved = OPS[name]
    shape = b.size(nbytes // dtype.itemsize)

    def build() -> Contest:
        (x, tx), (y, ty) = b.pair(shape, dtype), b.pair(shape, dtype)
        return Contest(
            {"tgrad": lambda: function(tgrad, GF, x, y), "torch": lambda: function(torch, TF, tx, ty)},
            lambda: [function(torch, TF, tx.double(), ty.double())],
        )

    goal = "pointwise" if nbytes >= 64 << 20 else ""
    b.case(name, dtype, shape, build, nbytes=moved * shape[0] * dtype.itemsize, graph=graph, goal=goal)


def _chain(b: Bench, name: str, dtype: torch.dtype, nbytes: int) -> None:
    function = CHAINS[name]
    shape = b.size(nbytes // dtype.itemsize)

    def build() -> Contest:
        (x, tx), (y, ty) = b.pair(shape, dtype), b.pair(shape, dtype)
        fused = tgrad.fuse(lambda p, q: function(tgrad, GF, p, q))
        compiled = b.compiled(lambda p, q: function(torch, TF, p, q))
        calls = {
            "tgrad fused": lambda: fused(x, y), "tgrad": lambda: function(tgrad, GF, x, y),
            "torch": lambda: function(torch, TF, tx, ty), "torch.compile": lambda: compiled(tx, ty),
        }  # fmt: skip
        return Contest(calls, lambda: [function(torch, TF, tx.double(), ty.double())])

    b.case(name, dtype, shape, build, nbytes=3 * shape[0] * dtype.itemsize, goal="chain")


def _chain_backward(b: Bench, name: str, dtype: torch.dtype, nbytes: int) -> None:
    function = CHAINS[name]
    shape = b.size(nbytes // dtype.itemsize)

    def build() -> Contest:
        values = [b.random(shape, dtype) for _ in range(3)]
        tx, ty = (t.clone().requires_grad_() for t in values[:2])
        x, y = (share(t).requires_grad_() for t in values[:2])
        tg, g = values[2], share(values[2])
        fused = tgrad.fuse(lambda p, q: function(tgrad, GF, p, q))
        compiled = b.compiled(lambda p, q: function(torch, TF, p, q))

        def exact() -> list[torch.Tensor]:
            p, q = (t.double().requires_grad_() for t in values[:2])
            return list(torch.autograd.grad(function(torch, TF, p, q), (p, q), tg.double()))

        return Contest(
            {
                "tgrad fused": lambda: tgrad.autograd.grad(fused(x, y), (x, y), g),
                "tgrad": lambda: tgrad.autograd.grad(function(tgrad, GF, x, y), (x, y), g),
                "torch": lambda: torch.autograd.grad(function(torch, TF, tx, ty), (tx, ty), tg),
                "torch.compile": lambda: torch.autograd.grad(compiled(tx, ty), (tx, ty), tg),
            },
            exact,
        )

    moved = 8 * shape[0] * dtype.itemsize
    b.case(f"{name}, both ways", dtype, shape, build, nbytes=moved, grad=True, goal="chain")


def _matrices(b: Bench, dtype: torch.dtype) -> None:
    m, n = shape = b.size(8192, 8192)
    moved = 2 * m * n * dtype.itemsize

    def row() -> Contest:
        (x, tx), (v, tv) = b.pair(shape, dtype), b.pair((n,), dtype)
        return Contest({"tgrad": lambda: x + v, "torch": lambda: tx + tv}, lambda: [tx.double() + tv.double()])

    def column() -> Contest:
        (x, tx), (v, tv) = b.pair(shape, dtype), b.pair((m, 1), dtype)
        return Contest({"tgrad": lambda: x * v, "torch": lambda: tx * tv}, lambda: [tx.double() * tv.double()])

    def transposed() -> Contest:
        x, tx = b.pair(shape, dtype)
        calls = {"tgrad": lambda: x.t().contiguous(), "torch": lambda: tx.t().contiguous()}
        return Contest(calls, lambda: [tx.t()])

    b.case("matrix + row", dtype, shape, row, nbytes=moved, goal="pointwise")
    b.case("matrix * column", dtype, shape, column, nbytes=moved, goal="pointwise")
    b.case("transposed copy", dtype, shape, transposed, nbytes=moved)
