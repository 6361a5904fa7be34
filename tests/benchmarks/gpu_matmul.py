"""Linear layers beside PyTorch on one GPU: `python3 -m tests.benchmarks.gpu_matmul --out DIR`; the method is gpu.py's.

Forward, forward with relu, and backward with all three gradients, for large, skinny and odd shapes in three dtypes. The
errors are against float64, of the first 64 rows of a result; of a backward, the greatest of its gradients'. float32 is
tgrad's "highest" beside PyTorch's.
"""

from __future__ import annotations

import sys
from typing import Any

from tests.benchmarks import gpu
from tests.benchmarks.gpu import Bench, as_torch, error

SOME = 64  # rows that are compared
LARGE = [(8192, 8192, 8192), (4096, 4096, 1024), (16384, 1024, 4096)]
SKINNY = [(1, 4096, 4096), (16, 8192, 8192), (64, 4096, 16384), (8192, 16, 8192), (256, 256, 65536)]
ODD = [(4095, 4097, 1023), (1000, 10, 784), (333, 777, 555)]


def large(b: Bench) -> None:
    """Shapes of a transformer's layers: (rows, out features, in features)."""
    _layers(b, "large", LARGE)


def skinny(b: Bench) -> None:
    """Few tiles: K is cut into pieces."""
    _layers(b, "skinny", SKINNY)


def odd(b: Bench) -> None:
    """Rows that are no multiple of 16 bytes."""
    _layers(b, "odd", ODD)


def _layers(b: Bench, section: str, sizes: list[tuple[int, int, int]]) -> None:
    import torch

    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        for size in sizes:
            if b.late():
                return
            _layer(b, section, dtype, *b.size(*size))


def _layer(b: Bench, section: str, dtype: Any, m: int, n: int, k: int) -> None:
    import torch
    import torch.nn.functional as TF

    import tgrad
    import tgrad.nn.functional as GF

    (x, tx), (w, tw), (v, tv), (g, tg) = (b.random(shape, dtype) for shape in ((m, k), (n, k), (n,), (m, n)))
    shape, flops = (m, n, k), 2 * m * n * k
    exact = tx[:SOME].double() @ tw.double().t() + tv.double()
    with tgrad.no_grad(), torch.no_grad():
        ours, theirs = (lambda: GF.linear(x, w, v)), (lambda: TF.linear(tx, tw, tv))
        errors = {"error": error(as_torch(ours())[:SOME], exact), "torch_error": error(theirs()[:SOME], exact)}
        b.compare(section, "linear", dtype, shape, ours, theirs, flops=flops, **errors)
        ours, theirs = (lambda: tgrad.relu(GF.linear(x, w, v))), (lambda: torch.relu(TF.linear(tx, tw, tv)))
        exact = exact.relu()
        errors = {"error": error(as_torch(ours())[:SOME], exact), "torch_error": error(theirs()[:SOME], exact)}
        b.compare(section, "linear, relu", dtype, shape, ours, theirs, flops=flops, **errors)
    for t in (x, w, v, tx, tw, tv):
        t.requires_grad_()
    y, ty = GF.linear(x, w, v), TF.linear(tx, tw, tv)
    back = lambda: tgrad.autograd.grad(y, (x, w, v), g, retain_graph=True)
    torch_back = lambda: torch.autograd.grad(ty, (tx, tw, tv), tg, retain_graph=True)
    with torch.no_grad():
        columns = tg[:, :SOME].double()
        wanted = (tg[:SOME].double() @ tw.double(), columns.t() @ tx.double(), columns.sum(0))
    errors = {
        "error": max(error(as_torch(got)[:SOME], want) for got, want in zip(back(), wanted, strict=True)),
        "torch_error": max(error(got[:SOME], want) for got, want in zip(torch_back(), wanted, strict=True)),
    }
    b.compare(section, "linear backward", dtype, shape, back, torch_back, flops=2 * flops, **errors)


SECTIONS = (gpu.ceilings, large, skinny, odd)

if __name__ == "__main__":
    sys.exit(gpu.main(sections=SECTIONS))
