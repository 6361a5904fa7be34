"""The three kinds of time, in milliseconds: (median, 20th percentile, 80th percentile, how many)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

FLUSH = 256 << 20  # bytes written to empty the L2 cache: several times its size
Call = Callable[[], Any]


class Times(NamedTuple):
    """Milliseconds, and of how many samples."""

    ms: float
    p20: float
    p80: float
    samples: int


def quantiles(times: Sequence[float]) -> Times:
    """Median, 20th and 80th percentile (nearest rank)."""
    ordered = sorted(times)
    at = lambda q: ordered[round(q * (len(ordered) - 1))]
    return Times(at(0.5), at(0.2), at(0.8), len(ordered))


class Timer:
    """Times calls that take turns, on the current CUDA device. All have run before: nothing is compiled here."""

    def __init__(self) -> None:
        self._flush: torch.Tensor | None = None

    def flush(self) -> None:
        if self._flush is None:
            self._flush = torch.empty(FLUSH, dtype=torch.uint8, device="cuda")
        self._flush.zero_()

    def free(self) -> None:
        """Give the flushed memory back, so that peaks are of the calls alone."""
        self._flush = None

    def device(self, calls: Sequence[Call], seconds: float = 0.4) -> list[Times]:
        """Time between events around each call, the L2 cache emptied before."""
        start = time.perf_counter()
        for call in calls:
            self.flush()
            call()
        torch.cuda.synchronize()
        rounds = int(min(100, max(7, seconds / (time.perf_counter() - start))))
        pairs = [[[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in calls] for _ in range(rounds)]
        for i, row in enumerate(pairs):
            turns = list(zip(calls, row, strict=True))
            for call, (begin, end) in turns if i % 2 else turns[::-1]:
                self.flush()
                begin.record()
                call()
                end.record()
        torch.cuda.synchronize()
        return [quantiles([row[k][0].elapsed_time(row[k][1]) for row in pairs]) for k in range(len(calls))]

    def wall(self, calls: Sequence[Call], count: int, rounds: int = 9) -> list[Times]:
        """Host time of `count` calls and one synchronisation, per call."""
        found: list[list[float]] = [[] for _ in calls]
        for call in calls:
            for _ in range(min(count, 20)):
                call()
        for i in range(rounds):
            turns = list(enumerate(calls))
            for k, call in turns if i % 2 else turns[::-1]:
                torch.cuda.synchronize()
                start = time.perf_counter()
                for _ in range(count):
                    call()
                torch.cuda.synchronize()
                found[k].append((time.perf_counter() - start) / count * 1000)
        return [quantiles(times) for times in found]

    def replays(self, calls: Sequence[Call], inner: int, seconds: float = 0.3) -> list[Times]:
        """Time between events of replays, each of `inner` calls, per call. Their buffers exceed the cache."""
        start = time.perf_counter()
        for call in calls:
            call()
        torch.cuda.synchronize()
        rounds = int(min(100, max(7, seconds / (time.perf_counter() - start))))
        pairs = [[[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in calls] for _ in range(rounds)]
        for i, row in enumerate(pairs):
            turns = list(zip(calls, row, strict=True))
            for call, (begin, end) in turns if i % 2 else turns[::-1]:
                begin.record()
                call()
                end.record()
        torch.cuda.synchronize()
        return [quantiles([row[k][0].elapsed_time(row[k][1]) / inner for row in pairs]) for k in range(len(calls))]


def captured(function: Call) -> Call:
    """PyTorch calls as a CUDA graph: replays it. The results stay where they are."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = function()

    def replay(kept: Any = kept) -> Any:
        graph.replay()
        return kept

    return replay


def graphed(function: Call) -> Call:
    """tgrad calls as a CUDA graph.

    Raises:
        RuntimeError: it was not captured, with the reason.
    """
    import tgrad

    step = tgrad.cuda.graphed(function)
    for _ in range(5):
        step()
    if step.reason is not None or not step.graphs:
        raise RuntimeError(f"not captured: {step.reason or 'no graph after five calls'}")
    return step
