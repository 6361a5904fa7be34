"""CUDA graphs with right values and no GPU: `python -m tests.stub.graphs REPORT.json`.

As in two_devices.py kernels are interpreted and "cuda:0" is host memory. In the place of the driver, launches are kept
while a graph is captured, and run when it is launched: with the addresses and numbers of the capture, as on a GPU.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.stub import graph_refusals, graph_replays
from tests.stub.outcomes import outcomes
from tests.stub.two_devices import one_stream, pretend

CASES = graph_replays.CASES | graph_refusals.CASES


class Graph:
    def __init__(self, launches: list[tuple[Callable, tuple]]) -> None:
        self.launches = launches

    def launch(self) -> None:
        for call, values in self.launches:
            call(*values)


def install() -> None:
    """Let launches be captured. Before anything is launched."""
    from tgrad.kernels import cuda_graph, interpret

    plain, captures = interpret.prepare, []
    _refuse_memory_for_the_default_stream(captures)

    def prepare(kernel: Any, grid: Any, runtime: tuple, fixed: tuple, constexprs: dict) -> Callable:
        call = plain(kernel, grid, runtime, fixed, constexprs)
        kinds = [k for given in runtime for k in (given if isinstance(given, tuple) else (given,))]

        def launch(*values: float) -> None:
            if not captures:
                call(*values)
                return
            capture, launches, thread = captures[-1]
            if threading.get_ident() != thread:
                raise RuntimeError("another thread is capturing a CUDA graph")
            launches.append((call, values))
            capture.addresses += [v for v, k in zip(values, kinds, strict=True) if k.startswith("*")]

        return launch

    @contextmanager
    def capturing() -> Iterator[Any]:
        capture, launches = cuda_graph.Capture(), []
        captures.append((capture, launches, threading.get_ident()))
        try:
            yield capture
        finally:
            captures.pop()
        capture.graph = Graph(launches)

    interpret.prepare = prepare
    cuda_graph.capturing, cuda_graph.why_not = capturing, lambda: None


def _refuse_memory_for_the_default_stream(captures: list) -> None:
    """As CUDA does while a stream that it waits for is captured: torch asks about its stream before it takes memory."""
    import torch

    empty, elsewhere = torch.empty, []

    def ask_first(*size: int, device: Any = None, **options: Any) -> Any:
        if captures and not elsewhere and device is not None and "cuda" in str(device):
            raise RuntimeError("CUDA: operation would make the legacy stream depend on a capturing blocking stream")
        return empty(*size, device=device, **options)

    @contextmanager
    def stream(other: Any) -> Iterator[None]:
        elsewhere.append(other)
        try:
            yield
        finally:
            elsewhere.pop()

    torch.empty, torch.cuda.stream, torch.cuda.Stream = ask_first, stream, lambda device=None: object()


def main(report: str, *names: str) -> None:
    for name in ("TGRAD_LAUNCH", "TRITON_INTERPRET"):
        os.environ.pop(name, None)
    pretend()
    one_stream()
    install()
    outcomes(CASES, report, names)


if __name__ == "__main__":
    main(*sys.argv[1:])
