"""Bytes by the CUDA allocator and by the ledger, and wall time, of training steps under each policy of activation
memory, and with offload.

Saved: allocated after the forward, above what was before it, without the result. Peak: the most allocated during
forward and backward, above what was before them; "ledger" is tgrad's own exact figure for it, and "host" what was moved
there. Gradients of every policy are compared with those of "keep", bit for bit. A contender that fails, as for want of
memory, becomes a row, and the others go on. Linear + cross-entropy of 128k classes is in classes_cases.py.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

import tgrad
from tests.benchmarks.gpu import models
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.data import as_torch, share
from tests.benchmarks.gpu.rows import Row
from tgrad import graph
from tgrad.storage import ledger

POLICIES = ("tgrad keep", "tgrad lean", "tgrad leanest")
OFFLOAD = "tgrad offload"
WIDTH, ROWS, LENGTH = 2048, 8192, 512
CASES: dict[str, tuple[Callable[[int], Callable], str]] = {
    "gelu": (lambda w: models.feedforward(w, "GELU"), "memory 0.5"),
    "swiglu": (models.swiglu, "memory 0.5"),
    "8 residual blocks": (lambda w: models.residual(w, 8), "memory blocks"),
    "6 encoder blocks": (lambda w: models.encoder(w, 6), "memory encoders"),
    "layer_norm": (lambda w: models.normed(w, "LayerNorm"), "memory 0.5"),
    "rms_norm": (lambda w: models.normed(w, "RMSNorm"), "memory 0.5"),
    "gelu, dropout": (lambda w: models.feedforward(w, "GELU", 0.1), "memory 0.4"),
    "relu": (lambda w: models.feedforward(w, "ReLU"), "memory 1.0"),
}
STACKS = {"8 residual blocks": "blocks.*", "6 encoder blocks": "layers.*"}  # what is offloaded


def run(b: Bench) -> None:
    with _nothing_too_small(b.smoke):
        for name, (make, goal) in CASES.items():
            model(b, name, make(*b.size(WIDTH)), goal)


@contextmanager
def _nothing_too_small(smoke: bool) -> Iterator[None]:
    """In a smoke run tiny tensors are recomputed and moved too."""
    before = graph.SMALLEST_RECIPE
    graph.SMALLEST_RECIPE = 1 if smoke else before
    try:
        yield
    finally:
        graph.SMALLEST_RECIPE = before


def model(b: Bench, name: str, make: Callable, goal: str) -> None:
    """One case: PyTorch, then tgrad under each policy."""
    dtype = torch.bfloat16
    rows, width = b.size(ROWS, WIDTH)
    length = b.pick(LENGTH, 4)
    shape = (rows // length, length, width) if "encoder" in name else (rows, width)

    def build() -> None:
        base = Row(b.section, name, "bfloat16", "x".join(map(str, shape)), goal=goal)
        ours, theirs = models.same(make, dtype, b.device)
        values = b.random(shape, dtype), b.random(shape, dtype)
        steps: dict[str, Callable[..., Any]] = {"torch": _step(theirs, *values, nullcontext)}
        x, g = (share(t) for t in values)
        for policy in POLICIES:
            chosen = policy.removeprefix("tgrad ")
            steps[policy] = _step(ours, x, g, lambda chosen=chosen: tgrad.activation_memory(chosen))
        if name in STACKS:
            steps[OFFLOAD] = _step(ours, x, g, lambda: tgrad.activation_memory("lean", offload=STACKS[name]))
        expected: list[torch.Tensor] = []
        for contender in list(steps):
            try:
                found = _bytes(b, steps[contender], contender != "torch")
            except Exception as failure:
                b.failed(base, contender, failure)
                del steps[contender]
                _gradients(ours), _gradients(theirs)
                b.timer.free()
                continue
            note, gradients = "", _gradients(theirs if contender == "torch" else ours)
            if contender != "torch":
                expected = expected or gradients
                same = all(torch.equal(p, q) for p, q in zip(gradients, expected, strict=True))
                note = f"gradients {'equal' if same else 'NOT EQUAL'} to those of keep, bit for bit"
            if b.smoke:
                figures = [f"{kind} {count}" for kind, count in found.items()]
                said = "; ".join(["smoke: no timings", *figures, *([note] if note else [])])
                b.add(base, contender, "smoke", None, note=said)
                continue
            for kind, count in found.items():
                b.add(base, contender, kind, None, bytes=count, note=note)
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


def _bytes(b: Bench, step: Callable[..., Any], is_ours: bool) -> dict[str, int]:
    """Once to allocate what stays, as gradients do not; then to measure."""
    tgrad.manual_seed(0)
    found: dict[str, int] = {}
    if not b.smoke:
        step()
        b.timer.free()
    for _ in range(b.pick(2, 1)):
        gc.collect()
        _settle(b)
        before, live, host = _allocated(b), ledger.live_bytes, ledger.host_bytes
        ledger.reset_peak()

        def between(y: Any, before: int = before, host: int = host) -> None:
            found["saved"] = _allocated(b) - before - y.nbytes
            found["host"] = ledger.host_bytes - host

        step(between)
        _settle(b, reset=False)
        found["peak"] = 0 if b.smoke else torch.cuda.max_memory_allocated() - before
        found["ledger"] = ledger.peak_bytes - live
    kinds = () if b.smoke else ("saved", "peak")
    return {kind: found[kind] for kind in (*kinds, *(("ledger", "host") if is_ours else ()))}


def _settle(b: Bench, reset: bool = True) -> None:
    if not b.smoke:
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()


def _allocated(b: Bench) -> int:
    return 0 if b.smoke else torch.cuda.memory_allocated()
