"""An MLP's training step with AdamW, small, medium and large: eager, by torch.compile, and as CUDA graphs.

Wall time. The error is of the loss after two steps, against the same steps in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import tgrad
from tests.benchmarks.gpu import models, timing
from tests.benchmarks.gpu.bench import Bench, Contest
from tests.benchmarks.gpu.data import share

# name: (batch, width, layers, dtype, calls per wall time)
SIZES = {
    "small": (64, 64, 4, torch.float32, 100), "medium": (1024, 1024, 6, torch.bfloat16, 30),
    "large": (8192, 4096, 6, torch.bfloat16, 4),
}  # fmt: skip


def run(b: Bench) -> None:
    for graph in (False, True):
        for name in SIZES:
            _step(b, name, graph)


def _step(b: Bench, name: str, graph: bool) -> None:
    batch, width, depth, dtype, count = SIZES[name]
    batch, width = b.size(batch, width)

    def build() -> Contest:
        make = models.perceptron(width, depth)
        values = b.random((batch, width), dtype), b.random((batch, width), dtype)
        ours, theirs = models.same(make, dtype, b.device)
        start = {k: v.clone() for k, v in theirs.state_dict().items()}

        def fresh(kind: torch.dtype = dtype) -> Any:
            model = make(torch.nn, torch.nn.functional).to(device=b.device, dtype=kind)
            model.load_state_dict(start)
            return model

        def torch_step(model: Any, forward: Callable | None = None, kind: torch.dtype = dtype, **options: Any) -> Any:
            # On a GPU fused is PyTorch's fastest; capturable keeps the step count on the device, as a graph needs.
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **options)
            x, y = (t.to(kind) for t in values)
            run = forward or (lambda m, x, y: torch.nn.functional.mse_loss(m(x), y))

            def step() -> Any:
                optimizer.zero_grad()
                loss = run(model, x, y)
                loss.backward()
                optimizer.step()
                return loss.detach()

            return step

        def tgrad_step(model: Any) -> Any:
            optimizer = tgrad.optim.AdamW(model.parameters(), lr=1e-3)
            x, y = (share(t) for t in values)

            def step() -> Any:
                optimizer.zero_grad()
                loss = tgrad.nn.functional.mse_loss(model(x), y)
                loss.backward()
                optimizer.step()
                return loss.detach()

            return step

        def exact() -> list[torch.Tensor]:
            step = torch_step(fresh(torch.float64), kind=torch.float64)
            return [[step() for _ in range(2)][-1]]

        loss = lambda m, x, y: torch.nn.functional.mse_loss(m(x), y)
        fused = {"fused": True}
        if not graph:
            calls = {
                "tgrad": tgrad_step(ours), "torch": torch_step(theirs, **fused),
                "torch.compile": torch_step(fresh(), b.compiled(loss), **fused),
            }  # fmt: skip
            return Contest(calls, exact)
        if b.smoke:
            return Contest({"tgrad": tgrad_step(ours), "torch": torch_step(theirs, **fused)}, exact)
        # A graph is captured at the first call, after warm-up steps, so losses are not those of two steps.
        def later(capture: Callable[[Any], Any], step: Any) -> Any:
            ready: list[Any] = []

            def call() -> Any:
                if not ready:
                    ready.append(capture(step))
                return ready[0]()

            return call

        calls = {
            "tgrad": later(timing.graphed, tgrad_step(ours)),
            "torch": later(timing.captured, torch_step(theirs, capturable=True, **fused)),
            "torch.compile": torch_step(fresh(), b.compiled(loss, mode="reduce-overhead"), capturable=True, **fused),
        }  # fmt: skip
        return Contest(calls)

    name = f"MLP step, {name}" + (", graphs" if graph else "")
    goal = "training graphs" if graph else "training"
    b.case(name, dtype, (batch, width, depth), build, grad=True, device=False, wall=count, goal=goal,
           flops=6.0 * batch * width * width * depth)  # fmt: skip
