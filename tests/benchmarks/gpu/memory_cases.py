"""Bytes by the CUDA allocator, and wall time, of training steps under each policy of activation memory.

Saved: allocated after the forward, above what was before it, without the result. Peak: the most allocated during
forward and backward, above what was before them. Gradients of every policy are compared with those of "keep", bit for
bit.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

import tgrad
from tests.benchmarks.gpu import models
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.data import as_torch, share
from tests.benchmarks.gpu.rows import Row

POLICIES = ("tgrad keep", "tgrad lean", "tgrad leanest")
WIDTH, ROWS = 2048, 8192
CASES: dict[str, tuple[Callable[[int], Callable], str]] = {
    "gelu": (lambda w: models.feedforward(w, "GELU"), "memory 0.5"),
    "swiglu": (models.swiglu, "memory 0.5"),
    "8 residual blocks": (lambda w: models.residual(w, 8), "memory blocks"),
    "layer_norm": (lambda w: models.normed(w, "LayerNorm"), "memory 0.5"),
    "rms_norm": (lambda w: models.normed(w, "RMSNorm"), "memory 0.5"),
    "gelu, dropout": (lambda w: models.feedforward(w, "GELU", 0.1), "memory 0.4"),
    "relu": (lambda w: models.feedforward(w, "ReLU"), "memory 1.0"),
}


def run(b: Bench) -> None:
    for name, (make, goal) in CASES.items():
        _model(b, name, make(*b.size(WIDTH)), goal)


def _model(b: Bench, name: str, make: Callable, goal: str) -> None:
    dtype = torch.bfloat16
    shape = b.size(ROWS, WIDTH)

    def build() -> None:
        base = Row(b.section, name, "bfloat16", "x".join(map(str, shape)), goal=goal)
        ours, theirs = models.same(make, dtype, b.device)
        values = b.random(shape, dtype), b.random(shape, dtype)
        steps: dict[str, Callable[[], Any]] = {"torch": _step(theirs, *values, nullcontext)}
        x, g = (share(t) for t in values)
        for policy in POLICIES:
            chosen = policy.removeprefix("tgrad ")
            steps[policy] = _step(ours, x, g, lambda chosen=chosen: tgrad.activation_memory(chosen))
        expected: list[torch.Tensor] = []
        for contender, step in steps.items():
            tgrad.manual_seed(0)
            found = _bytes(b, step)
            note, gradients = "", _gradients(theirs if contender == "torch" else ours)
            if contender == POLICIES[0]:
                expected = gradients
            if contender in POLICIES:
                same = all(torch.equal(p, q) for p, q in zip(gradients, expected, strict=True))
                note = f"gradients {'equal' if same else 'NOT EQUAL'} to those of keep, bit for bit"
            for kind, count in found.items():
                b.add(base, contender, kind, None, bytes=count, note=note)
            if b.smoke:
                b.add(base, contender, "smoke", None, note=f"smoke: no timings; {note}")
        if not b.smoke:
            base.goal = "policy time"
            for contender, times in zip(steps, b.timer.wall(list(steps.values()), 3, 7), strict=True):
                b.add(base, contender, "wall", times)
            _gradients(ours), _gradients(theirs)

    b.alone(name, dtype, shape, build)


def _step(model: Any, x: Any, g: Any, policy: Callable[[], Any]) -> Callable[..., Any]:
    """Forward and backward. `between` is called with the result, after the forward."""

    def step(between: Callable[[Any], None] = lambda y: None) -> None:
        for p in model.parameters():
            p.grad = None
        with policy():
            y = model(x)
            between(y)
            y.backward(g)

    return step


def _gradients(model: Any) -> list[torch.Tensor]:
    """Copies of the gradients, which are dropped."""
    found = []
    for p in model.parameters():
        if p.grad is not None:
            found.append((p.grad if isinstance(p.grad, torch.Tensor) else as_torch(p.grad)).clone())
            p.grad = None
    return found


def _bytes(b: Bench, step: Callable[..., Any]) -> dict[str, int]:
    """Once to allocate what stays, as gradients do not; then once to measure."""
    step()
    if b.smoke:
        return {}
    b.timer.free()
    for _ in range(2):
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        saved: list[int] = []
        step(lambda y, before=before: saved.append(torch.cuda.memory_allocated() - before - y.nbytes))
        torch.cuda.synchronize()
    return {"saved": saved[0], "peak": torch.cuda.max_memory_allocated() - before}
