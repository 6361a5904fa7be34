"""Linear + cross-entropy with 128k classes: `linear_cross_entropy` beside PyTorch's two ops. Bytes, time, error."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as TF

import tgrad
import tgrad.nn.functional as GF
from tests.benchmarks.gpu import peers
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.data import error, results, share
from tests.benchmarks.gpu.rows import Row

ROWS, WIDTH, CLASSES = 8192, 2048, 131072


def run(b: Bench) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        _case(b, dtype)


def _case(b: Bench, dtype: torch.dtype) -> None:
    m, k, n = b.size(ROWS, WIDTH, CLASSES)

    def build() -> None:
        base = Row(b.section, "linear_cross_entropy, both ways", str(dtype).rpartition(".")[2], f"{m}x{k}x{n}",
                   flops=6.0 * m * n * k, goal="classes")  # fmt: skip
        values = b.random((m, k), dtype), b.random((n, k), dtype, k**-0.5)
        classes, target = b.integers(n, (m,))
        theirs = [t.clone().requires_grad_() for t in values]
        ours = [share(t.clone()).requires_grad_() for t in values]
        two = lambda x, w: TF.cross_entropy(TF.linear(x, w), target)
        calls: dict[str, Callable[[], Any]] = {
            "torch": lambda: torch.autograd.grad(two(*theirs), theirs),
            "tgrad": lambda: tgrad.autograd.grad(GF.linear_cross_entropy(*ours, classes), ours),
            "tgrad two ops": lambda: tgrad.autograd.grad(GF.cross_entropy(GF.linear(*ours), classes), ours),
        }
        if liger := peers.liger("linear_cross_entropy"):
            calls["liger"] = lambda: torch.autograd.grad(liger(theirs[0], theirs[1], target), theirs)
        exact = _exact(values, target)
        found: dict[str, dict[str, Any]] = {}
        for name, call in calls.items():
            try:
                call()
                found[name] = _measured(b, call, exact)
            except Exception as failure:
                b.failed(base, name, failure)
        times = {}
        if not b.smoke:
            names = list(found)
            times = dict(zip(names, b.timer.device([calls[n] for n in names], 1.0), strict=True))
        for name, facts in found.items():
            if b.smoke:
                b.add(base, name, "smoke", None, error=facts["error"], note="smoke: no timings")
            else:
                b.add(base, name, "peak", None, **facts)
                b.add(base, name, "device", times[name], error=facts["error"])

    b.alone("linear_cross_entropy, both ways", dtype, (m, k, n), build)


def _exact(values: tuple[torch.Tensor, ...], target: torch.Tensor, rows: int = 256) -> torch.Tensor:
    """The gradient of the first rows of the input in float64, a chunk of rows being all that is needed."""
    x, w = values[0][:rows].double().requires_grad_(), values[1].double()
    loss = TF.cross_entropy(TF.linear(x, w), target[:rows], reduction="sum") / len(target)
    return torch.autograd.grad(loss, x)[0]


def _measured(b: Bench, call: Callable[[], Any], exact: torch.Tensor) -> dict[str, Any]:
    if b.smoke:
        return {"error": error(results(call())[0][: len(exact)], exact)}
    b.timer.free()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    out = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    return {"error": error(results(out)[0][: len(exact)], exact), "bytes": peak}
