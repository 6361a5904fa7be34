"""What the rest is measured against: copy bandwidth, cuBLAS, and the noise of the method."""

from __future__ import annotations

import torch

from tests.benchmarks.gpu.bench import Bench, Contest


def run(b: Bench) -> None:
    for size in (1 << 30, 64 << 20):
        (n,) = b.size(size)

        def copy(n: int = n) -> Contest:
            source = torch.randint(0, 255, (n,), dtype=torch.uint8, device=b.device)
            target, other = torch.empty_like(source), torch.empty_like(source)
            calls = {"torch": lambda: target.copy_(source), "torch again": lambda: other.copy_(source)}
            return Contest(calls, lambda: [source])

        b.case("copy", torch.uint8, (n,), copy, nbytes=2 * n)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        m, n, k = b.size(8192, 8192, 8192)

        def product(dtype: torch.dtype = dtype, m: int = m, n: int = n, k: int = k) -> Contest:
            x, y = b.random((m, k), dtype), b.random((k, n), dtype)
            some = lambda t: t[:64]
            return Contest({"torch": lambda: x @ y}, lambda: [x[:64].double() @ y.double()], some)

        b.case("cuBLAS", dtype, (m, n, k), product, flops=2 * m * n * k)
