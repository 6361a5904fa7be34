"""One workload in several modes: the memory pass, then the latency pass, into records."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import tgrad
from tgrad.device import compute
from tgrad.kernels import launch
from tgrad.profiler import latency, memory
from tgrad.profiler.errors import ProfilerError, one_line
from tgrad.profiler.garbage import collected_apart
from tgrad.profiler.records import EventRow, RunRecord, SampleRecord, SavedRow
from tgrad.profiler.workloads import Workload, where


@dataclass
class Records:
    """All that was recorded, over any number of workloads and modes."""

    runs: list[RunRecord] = field(default_factory=list)
    samples: list[SampleRecord] = field(default_factory=list)
    saved: list[SavedRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    twins: list[Any] = field(default_factory=list)  # of torch_twin.TwinRecord
    twin_saved: list[SavedRow] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)  # workload -> what to beware of, in words

    def note(self, workload: str, text: str) -> None:
        """Add what to beware of."""
        self.notes.setdefault(workload, []).append(text)

    def extend(self, other: Records) -> None:
        """Append the records of `other`."""
        self.runs += other.runs
        self.samples += other.samples
        self.saved += other.saved
        self.events += other.events
        self.twins += other.twins
        self.twin_saved += other.twin_saved
        for workload, notes in other.notes.items():
            self.notes.setdefault(workload, []).extend(notes)


NOT_FINITE = (
    "The loss in mode {mode} is {loss}: bytes and kernels do not depend on it, but check the model, its inputs and its "
    "dtype before you trust what it learns."
)


def steps(held: int, modes: Sequence[str], repeats: int, warmup: int) -> int:
    """How many times `profile` calls `on_step` for a workload that holds `held` outputs."""
    return len(modes) * (held + repeats + warmup)


@collected_apart()
def profile(
    workload: Workload,
    modes: Sequence[str],
    *,
    dtype: str,
    seed: int,
    repeats: int,
    warmup: int,
    on_step: Callable[[], None] = lambda: None,
) -> Records:
    """Measure `workload` in each of `modes`.

    Raises:
        ProfilerError: the workload's own code failed.
        tgrad.OutOfMemoryError: memory ran out.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    run_ids = {mode: f"{now}/{workload.name}/{mode}" for mode in modes}
    records, passes, stepped = Records(), {}, {}
    for mode in modes:
        tgrad.manual_seed(seed)  # every mode draws the same batches
        found = memory.measure(workload, mode, run_ids[mode], on_step)
        passes[mode] = {**found.figures, **latency.counts(workload, mode)}
        records.saved += found.saved
        records.events += found.events
        stepped[mode] = found.optimizer
        if found.loss is not None and not math.isfinite(found.loss):
            records.note(workload.name, NOT_FINITE.format(mode=mode, loss=found.loss))
    tgrad.manual_seed(seed)
    records.samples = latency.measure(workload, run_ids, repeats, warmup, on_step)
    count = sum(p.numel() for p in memory.parameters(workload.model))
    for mode in modes:
        figures = passes[mode]
        records.runs.append(
            RunRecord(
                run_id=run_ids[mode],
                created_at=now,
                workload=workload.name,
                mode=mode,
                engine="tgrad",
                engine_version=tgrad.__version__,
                device=str(compute),
                is_interpreted=launch.INTERPRET,
                dtype=dtype,
                optimizer=stepped[mode],
                batch_size=workload.batch_size,
                held=workload.held,
                seed=seed,
                repeats=repeats,
                parameters=count,
                **figures,
                **times(records.samples, mode, figures["forward_ops"]),  # type: ignore[arg-type]
            )  # fmt: skip
        )
    for run in records.runs:
        if not run.is_interpreted:
            for text in _beware(run):
                records.note(workload.name, text)
    return records


def _beware(run: RunRecord) -> list[str]:
    """What to know about the times of a run on a device."""
    found = []
    if latency.is_launch_bound(run.host_share):
        found.append(
            f"The forward in mode {run.mode} is launch-bound: the device waits for Python for most of the time, so "
            "larger batches cost little more."
        )
    for phase in ("forward", "backward", "step"):
        spread = latency.noise(*(getattr(run, f"{phase}_wall_{q}_ms") for q in ("q1", "median", "q3")))
        if spread > latency.NOISY:
            found.append(
                f"{'Beware: the' if spread > latency.VERY_NOISY else 'The'} times of the {phase} in mode {run.mode} "
                f"scatter: the quartiles lie {100 * spread:.0f} % of the median apart; repeat more often (--repeats)."
            )
    return found


def times(samples: Sequence[SampleRecord], mode: str, forward_ops: int) -> dict[str, float]:
    """The time columns of a RunRecord from the samples of its mode."""
    found: dict[str, float] = {}
    for phase in ("forward", "backward", "step"):
        mine = [s for s in samples if s.mode == mode and s.phase == phase and not s.is_warmup]
        q1, median, q3 = latency.quartiles([s.wall_ms for s in mine])
        found |= {f"{phase}_wall_q1_ms": q1, f"{phase}_wall_median_ms": median, f"{phase}_wall_q3_ms": q3}
        low, high = latency.interval([s.wall_ms for s in mine])
        found |= {f"{phase}_wall_low_ms": low, f"{phase}_wall_high_ms": high}
        found[f"{phase}_gpu_median_ms"] = latency.quartiles([s.gpu_ms for s in mine])[1]
        if phase == "forward":
            host = latency.quartiles([s.host_ms for s in mine])[1]
            found["host_us_per_op"] = host * 1e3 / forward_ops if forward_ops else math.nan
            found["host_share"] = math.nan if math.isnan(found["forward_gpu_median_ms"]) else host / median
    return found


def twin(workload: Workload) -> Records:
    """The twin of a workload, measured; seeds do not matter: bytes depend on shapes alone.

    Raises:
        ProfilerError: it has none, or the twin's own code failed.
    """
    from tgrad.profiler import torch_twin

    if workload.twin is None:
        raise ProfilerError(
            f"--vs torch: workload {workload.name} has no twin in PyTorch; write a function torch_twin() beside its "
            "factory that returns (model, example_input) or (model, example_input, loss_fn), or leave --vs out"
        )
    try:
        made = workload.twin()
        record, rows = torch_twin.profile(made, workload.name, f"torch/{workload.name}")
    except (ProfilerError, MemoryError):
        raise
    except Exception as error:
        raise ProfilerError(f"the twin of workload {workload.name} failed: {one_line(error)}{where(error)}") from error
    records = Records()
    records.twins, records.twin_saved = [record], rows
    return records


def is_torch_only(workload: Workload) -> bool:
    """Whether it is a PyTorch model that tgrad is not asked to run."""
    return workload.model is None
