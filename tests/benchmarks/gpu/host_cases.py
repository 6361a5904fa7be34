"""Host time of an op: calls too small for the device to matter, in the three grad modes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as TF

import tgrad
import tgrad.nn.functional as GF
from tests.benchmarks.gpu.bench import Bench, Contest
from tests.benchmarks.gpu.data import results
from tests.benchmarks.gpu.timing import Call

MODES = ("grad", "no_grad", "inference_mode")
COUNT = 2000


def run(b: Bench) -> None:
    n = 8
    (x, tx), (w, tw), (v, tv), (g, tg) = (b.pair(s, torch.float32) for s in ((n, n), (n, n), (n,), (n, n)))
    for t in (w, tw, v, tv):
        t.requires_grad_()
    wide = [t.detach().double().requires_grad_() for t in (tx, tw, tv)]
    dx, dw, dv = wide
    cases: dict[str, tuple[Call, Call, Call]] = {
        "a + b": (lambda: x + w, lambda: tx + tw, lambda: dx + dw),
        "a * 2.0": (lambda: x * 2.0, lambda: tx * 2.0, lambda: dx * 2.0),
        "relu": (lambda: tgrad.relu(w), lambda: torch.relu(tw), lambda: torch.relu(dw)),
        "linear": (lambda: GF.linear(x, w, v), lambda: TF.linear(tx, tw, tv), lambda: TF.linear(dx, dw, dv)),
    }
    for mode in MODES:
        for name, calls in cases.items():
            _case(b, name, mode, (n, n), *calls)

    def backward() -> Any:
        return tgrad.autograd.grad(tgrad.relu(GF.linear(x, w, v)), (w, v), g)

    def torch_backward() -> Any:
        return torch.autograd.grad(torch.relu(TF.linear(tx, tw, tv)), (tw, tv), tg)

    def exact_backward() -> Any:
        return torch.autograd.grad(torch.relu(TF.linear(dx, dw, dv)), (dw, dv), tg.double())

    _case(b, "linear + relu, both ways", "grad", (n, n), backward, torch_backward, exact_backward, 500)


def _case(
    b: Bench, name: str, mode: str, shape: tuple[int, ...], ours: Call, theirs: Call, exact: Call, count: int = COUNT
) -> None:
    def build() -> Contest:
        return Contest({"tgrad": ours, "torch": theirs}, lambda: results(exact()))

    with ExitStack() as modes:
        if mode != "grad":
            for library in (tgrad, torch):
                modes.enter_context(getattr(library, mode)())
        # The mode is entered around the whole case, so that only the calls are timed.
        b.case(f"{name}, {mode}", torch.float32, shape, build, grad=True, device=False, wall=count, goal="host")
