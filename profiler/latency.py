"""The latency pass: forward, backward and step of one batch, timed with recording off; counts of ops and kernels."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from tgrad import dispatch, once
from tgrad.device import compute, synchronize
from tgrad.kernels import launch
from tgrad.profiler.contexts import entered, has_graph
from tgrad.profiler.memory import (
    clear_gradients,
    cotangents,
    gradients_put_back,
    make_batch,
    roots_of,
    run_backward,
    run_forward,
    run_step,
    training,
)
from tgrad.profiler.records import SampleRecord
from tgrad.profiler.workloads import Workload
from tgrad.torch_streams import Timer

NAN = math.nan


@dataclass(frozen=True)
class Time:
    """One timed call, in ms: until it returned, until its last kernel ended, between device events (NaN on a CPU)."""

    host_ms: float
    wall_ms: float
    gpu_ms: float


def timed(call: Callable[[], object]) -> tuple[object, Time]:
    """Run `call` between two waits for the device, with the garbage collector off."""
    timer = Timer() if compute.type == "cuda" else None
    enabled = gc.isenabled()
    gc.disable()
    try:
        synchronize()
        start = time.perf_counter()
        if timer is not None:
            timer.start()
        result = call()
        if timer is not None:
            timer.stop()
        returned = time.perf_counter()
        synchronize()
        end = time.perf_counter()
    finally:
        if enabled:
            gc.enable()
    gpu_ms = NAN if timer is None else timer.milliseconds()
    return result, Time((returned - start) * 1e3, (end - start) * 1e3, gpu_ms)


def step(workload: Workload, mode: str, optimizer: Any = None) -> Iterator[tuple[str, Time]]:
    """("forward", its time) of one fresh batch; in modes that have a graph, ("backward", ...) and ("step", ...) too."""
    with entered(mode, workload.model):
        batch = make_batch(workload, mode)
        results, forward = timed(lambda: run_forward(workload, mode, batch))
    yield "forward", forward
    roots = roots_of(results, workload) if has_graph(mode) else []  # type: ignore[arg-type]
    if roots:
        gradients = cotangents(roots)
        yield "backward", timed(lambda: run_backward(workload, roots, gradients, mode))[1]
        if optimizer is not None:
            yield "step", timed(lambda: run_step(workload, optimizer, mode))[1]
    clear_gradients(workload.model)


def measure(
    workload: Workload,
    run_ids: dict[str, str],
    repeats: int,
    warmup: int,
    on_step: Callable[[], None] = lambda: None,
) -> list[SampleRecord]:
    """Time every mode in `run_ids` (mode -> run id), `repeats` times after `warmup` runs that are recorded as such.

    Modes take turns, each round beginning with another, so that a machine that slows down slows all of them.
    """
    samples: list[SampleRecord] = []
    modes = list(run_ids)
    graphs = [m for m in modes if has_graph(m)]
    with gradients_put_back(workload.model), training(workload, (graphs or modes)[0]) as optimizer:
        for rep in range(-warmup, repeats):
            shift = rep % len(modes)
            for mode in modes[shift:] + modes[:shift]:
                for phase, t in step(workload, mode, optimizer):
                    samples.append(
                        SampleRecord(
                            run_ids[mode], workload.name, mode, phase, rep, rep < 0, t.wall_ms, t.host_ms, t.gpu_ms
                        )
                    )
                on_step()
    return samples


AGAIN = " (recomputed)"  # how recipes call what they run


class _Ops:
    """Counts the outermost ops."""

    def __init__(self) -> None:
        self.count = 0
        self.depth = 0
        self.recomputed = 0  # how many recipes are being run

    def begin(self, op: str) -> None:
        self.count += not self.depth
        self.depth += 1
        self.recomputed += op.endswith(AGAIN)

    def end(self, op: str) -> None:
        self.depth -= 1
        self.recomputed -= op.endswith(AGAIN)


@contextmanager
def counting() -> Iterator[Callable[[], tuple[int, int, int]]]:
    """Yields a function that gives (ops dispatched, kernels launched, those of them that make again what was not kept)
    since it was last asked.
    """
    before = dispatch.observer
    ops, kernels, seen = _Ops(), [0, 0], [0, 0, 0]

    def count(label: str) -> None:
        kernels[0] += 1
        kernels[1] += bool(ops.recomputed) or once.is_second_run()

    def ask() -> tuple[int, int, int]:
        now = [ops.count, *kernels]
        new = now[0] - seen[0], now[1] - seen[1], now[2] - seen[2]
        seen[:] = now
        return new

    dispatch.observer = ops
    try:
        with launch.listen(count):
            yield ask
    finally:
        dispatch.observer = before


def counts(workload: Workload, mode: str) -> dict[str, int]:
    """Ops dispatched and kernels launched by forward, backward and step of one batch: columns of a RunRecord."""
    with gradients_put_back(workload.model), training(workload, mode) as optimizer:
        with entered(mode, workload.model):
            batch = make_batch(workload, mode)
            with counting() as ask:
                results = run_forward(workload, mode, batch)
                forward = ask()
        roots = roots_of(results, workload) if has_graph(mode) else []
        backward = stepped = (0, 0, 0)
        if roots:
            gradients = cotangents(roots)
            with counting() as ask:
                run_backward(workload, roots, gradients, mode)
                backward = ask()
                if optimizer is not None:
                    run_step(workload, optimizer, mode)
                    stepped = ask()
    return {
        "forward_ops": forward[0], "forward_kernels": forward[1],
        "backward_ops": backward[0], "backward_kernels": backward[1],
        "step_ops": stepped[0], "step_kernels": stepped[1], "recomputed_kernels": backward[2],
    }  # fmt: skip


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(first quartile, median, third quartile), interpolated linearly; NaN of no values, or of one that is NaN."""
    if not values or any(math.isnan(v) for v in values):
        return NAN, NAN, NAN
    ordered = sorted(values)

    def at(q: float) -> float:
        position = q * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    return at(0.25), at(0.5), at(0.75)


RESAMPLES = 1000


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median, by the percentile bootstrap (Efron 1979); NaN of no values, or one that is NaN.

    The draws are always the same, so that one file of samples gives one interval.
    """
    if not values or any(math.isnan(v) for v in values):
        return NAN, NAN
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(np.median(np.asarray(values, dtype=float)[drawn], axis=1), (0.025, 0.975))
    return float(low), float(high)


LAUNCH_BOUND = 0.9  # of the wall time spent before the call returned: the device then waits for Python


def is_launch_bound(host_share: float) -> bool:
    """Whether a forward's time is that of launching its kernels rather than of running them; never of NaN."""
    return host_share >= LAUNCH_BOUND


NOISY, VERY_NOISY = 0.10, 0.25  # quartile distance over median, as in PyTorch's benchmark utilities


def noise(q1: float, median: float, q3: float) -> float:
    """How far times scatter: the quartile distance as a share of the median; NaN where there are none."""
    return (q3 - q1) / median if median else NAN
