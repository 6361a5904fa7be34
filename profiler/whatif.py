"""What if: bytes and time that a change to the model would give, predicted from the ledger, then run and compared."""

from __future__ import annotations

import functools
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import tgrad
from tgrad.kernels import launch
from tgrad.nn import Module
from tgrad.profiler import latency, memory, output, transfers
from tgrad.profiler.calls import Calls
from tgrad.profiler.changes import LOWER, NONE, Change, applied, in_place, matching
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.predict import GRAPH, Base, Prediction, Times, predict
from tgrad.profiler.units import show_bytes, show_ms
from tgrad.profiler.workloads import Options, Workload, make

if TYPE_CHECKING:
    import pandas as pd

EVENTS = 1_000_000  # of the run that predictions are made from: all are listed
EXPLAINED = 3  # tensors that a note names


@dataclass(frozen=True)
class Outcome:
    """One change: what was expected, and what a run gave.

    graph_bytes, peak_bytes, host_bytes: as in a RunRecord. ms: of a forward and its backward, the median. measured
    values are NaN where the run failed. gradient_change: the largest difference of results or gradients from those of
    the model as it is, as a share of the largest. note: what explains a difference, or what was left out.
    """

    change: str
    predicted_graph_bytes: int
    measured_graph_bytes: float
    predicted_peak_bytes: int
    measured_peak_bytes: float
    predicted_ms: float
    measured_ms: float
    gradient_change: float
    note: str
    predicted_host_bytes: int = 0
    measured_host_bytes: float = 0

    @property
    def is_exact(self) -> bool:
        """Whether the kept bytes, on the device and on the host, came out as predicted."""
        on_host = self.predicted_host_bytes == self.measured_host_bytes
        return on_host and self.predicted_graph_bytes == self.measured_graph_bytes

    def error(self, figure: str) -> float:
        """How far the prediction of `graph_bytes`, `peak_bytes`, `host_bytes` or `ms` is off, as a share of what was
        measured.
        """
        measured, predicted = getattr(self, f"measured_{figure}"), getattr(self, f"predicted_{figure}")
        if math.isnan(measured):
            return math.nan
        return abs(predicted - measured) / measured if measured else 0.0 if predicted == measured else math.inf


@dataclass(frozen=True)
class WhatIf:
    """All outcomes, the first for the model as it is."""

    workload: str
    is_interpreted: bool
    outcomes: list[Outcome]

    @property
    def frame(self) -> pd.DataFrame:
        """A row a change."""
        import pandas as pd

        rows = [{"workload": self.workload, **asdict(o), "is_on_front": o in self.front} for o in self.outcomes]
        return pd.DataFrame(rows)

    @property
    def front(self) -> list[Outcome]:
        """The changes that no other beats in both kept bytes and time (Pareto): the ones to choose among."""
        ran = [o for o in self.outcomes if not math.isnan(o.measured_graph_bytes) and not math.isnan(o.measured_ms)]
        return [o for o in ran if not any(_beats(x, o) for x in ran)]

    def save(self, out: str | os.PathLike, force: bool = False) -> Path:
        """Write the folder `out`: whatif.csv (and Parquet), and the plot of bytes against time as PNG and SVG.

        Raises:
            ProfilerError: the folder cannot be written, or may not be replaced.
        """
        from tgrad.profiler import datafiles, pareto_plot, plots

        with output.folder(out, force) as folder:
            datafiles.write(folder, {"whatif": self.frame})
            figure = pareto_plot.draw(self)
            (folder / "whatif.png").write_bytes(plots.png(figure))
            text = plots.svg(figure, f"{self.workload}: bytes kept against time")
            (folder / "whatif.svg").write_text(plots.for_file(text), encoding="utf-8")
        return Path(out).expanduser().resolve()

    def sentences(self) -> list[str]:
        """What to choose, in words."""
        base, found = self.outcomes[0], []
        for o in self.outcomes[1:]:
            if math.isnan(o.measured_graph_bytes):
                found.append(f"{o.change}: {o.note}.")
                continue
            less, more = base.measured_graph_bytes - o.measured_graph_bytes, o.measured_ms - base.measured_ms
            exact = "as predicted to the byte" if o.is_exact else f"predicted {show_bytes(o.predicted_graph_bytes)}"
            kept = f"{show_bytes(abs(less))} {'less' if less > 0 else 'more'}" if less else "the same"
            time = f"{show_ms(abs(more))} {'more' if more >= 0 else 'less'}"
            if o.measured_host_bytes:
                kept += f", and {show_bytes(o.measured_host_bytes)} on the host,"
            text = f"{o.change}: keeps {kept} for backward ({exact}), and a forward with its backward takes {time}"
            found.append(f"{text}. {o.note}".strip())
        return found

    def _repr_html_(self) -> str:
        """A notebook shows the table."""
        return self.frame.to_html(index=False)


def _beats(a: Outcome, b: Outcome) -> bool:
    ours, theirs = (a.measured_graph_bytes, a.measured_ms), (b.measured_graph_bytes, b.measured_ms)
    return ours != theirs and all(x <= y for x, y in zip(ours, theirs))


def whatif(
    workload: str | Workload,
    changes: Sequence[Change] = (),
    *,
    batch_size: int | None = None,
    dtype: str = "float32",
    width: int | None = None,
    depth: int | None = None,
    seed: int = 0,
    repeats: int = 5,
    warmup: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> WhatIf:
    """Predict what changes to a workload's model would give, then run each to see.

    Args:
        changes: what to try; without any, `candidates` of the model.
        repeats: timed runs of each, after `warmup`; they take turns.

    Raises:
        ProfilerError: the request cannot be carried out, or the model fails as it is.
    """
    made = make(workload, Options(batch_size, dtype, width, depth, seed))
    if made.model is None:
        raise ProfilerError(f"workload {made.name} is a PyTorch model, and whatif runs tgrad; give a tgrad model")
    if repeats < 1 or warmup < 0:
        raise ProfilerError(f"--repeats: expected a whole number of at least 1, got {repeats}")
    tried = [NONE, *(changes or candidates(made.model, dtype))]
    for change in tried:
        check(change, dtype)
    modules = {c: _modules(c, made.model) for c in tried}
    tgrad.manual_seed(seed)
    calls = Calls()
    found = memory.measure(made, "grad", "", calls=calls, limit=EVENTS)
    base = Base(found, calls, Times(math.nan, math.nan))
    predictions = {c: predict(base, c, modules[c]) for c in tried}
    runs: dict[Change, memory.Memory | str] = {}
    for i, change in enumerate(tried):
        if progress is not None:
            progress(f"{made.name}, {change}", i, len(tried))
        runs[change] = _run(made, change, _concerned(change, modules[change], predictions[change]), seed)
    works = {c: _concerned(c, modules[c], predictions[c]) for c in tried if not isinstance(runs[c], str)}
    times = _times(made, works, repeats, warmup, seed)
    # Predictions of time stand on the same medians as what they are compared with.
    conversion = functools.partial(_conversion_ms, target=_target(tried))
    base.times = Times(*times[NONE], conversion, functools.cache(transfers.ms_per_byte))
    differ = _differences(made, works, seed)
    outcomes = []
    for c in tried:
        p, ran = predictions[c], runs[c]
        ms = predict(base, c, modules[c]).ms
        if isinstance(ran, str):
            nan = math.nan
            o = Outcome(str(c), p.graph_bytes, nan, p.peak_bytes, nan, ms, nan, nan, ran, p.host_bytes, nan)
            outcomes.append(o)
            continue
        figures, t = ran.figures, times[c]
        outcomes.append(Outcome(
            str(c), p.graph_bytes, figures["graph_bytes"], p.peak_bytes, figures["peak_bytes"], ms,
            sum(t), differ[c], " ".join(_notes(c, p, ran, differ[c])), p.host_bytes, figures["host_bytes"],
        ))  # fmt: skip

    return WhatIf(made.name, launch.INTERPRET, outcomes)


def _target(changes: Sequence[Change]) -> str:
    return next((c.argument for c in _flat(changes) if c.kind == "lower"), LOWER[0])


def _flat(changes: Sequence[Change]) -> list[Change]:
    return [part for c in changes for part in (c.parts or (c,))]


@functools.cache
def _conversion_ms(numel: int, dtype: str, target: str) -> float:
    """Time to convert a tensor of so many elements to `target` and back, the fastest of four: nothing of the model."""
    t = tgrad.zeros(numel, dtype=getattr(tgrad, dtype))
    narrow, wide = getattr(tgrad, target), t.dtype
    with tgrad.no_grad():
        return min(latency.timed(lambda: t.to(narrow).to(wide))[1].wall_ms for _ in range(4))


def check(change: Change, dtype: str) -> None:
    """Raises ProfilerError for a change that cannot be."""
    if change.kind == "lower":
        if change.argument not in LOWER:
            raise ProfilerError(f"--lower: unknown dtype '{change.argument}'; choose {' or '.join(LOWER)}")
        if getattr(tgrad, dtype).itemsize <= 2:
            raise ProfilerError(f"--lower {change.argument}: {dtype} is no wider: there is nothing to lower")
    elif change.kind == "together":
        kinds = [part.kind for part in change.parts]
        for part in change.parts:
            check(part, dtype)
        if len(kinds) < 2 or kinds.count("lower") > 1 or not {*kinds} <= {"checkpoint", "offload", "lower"}:
            raise ProfilerError(
                f"{change}: these cannot be done at once; put together checkpoints with offloads, or with one dtype"
            )
        if {"lower", "offload"} <= {*kinds}:
            raise ProfilerError(
                f"{change}: saving in a lower dtype goes through hooks on saved tensors, and inside these nothing is "
                "offloaded; put a checkpoint together with one of the two"
            )
    elif change.kind not in ("none", "checkpoint", "offload", "inplace"):
        raise ProfilerError(f"unknown change '{change.kind}'; choose checkpoint, offload, lower, inplace or together")


def candidates(model: Any, dtype: str = "float32") -> list[Change]:
    """What is worth a try: checkpoints of the whole model and of each class of block, saves as bfloat16, in place."""
    found: list[Change] = []
    if isinstance(model, Module):
        found.append(Change("checkpoint"))
        blocks = Counter(
            type(m).__name__ for path, m in model.named_modules()
            if path and any(True for _ in m.parameters()) and any(True for _ in m.children())
        )  # fmt: skip
        found += [Change("checkpoint", name) for name, _ in blocks.most_common(3)]
    if getattr(tgrad, dtype).itemsize > 2:
        found.append(Change("lower", "bfloat16"))
    if in_place(model):
        found.append(Change("inplace"))
    return found


def _modules(change: Change, model: Any) -> list[Any]:
    if change.parts:
        return [_modules(part, model) for part in change.parts]
    if change.kind in ("checkpoint", "offload"):
        return matching(model, change.argument, f"--{change.kind}")
    return in_place(model) if change.kind == "inplace" else []


def _concerned(change: Change, modules: list[Any], p: Prediction) -> list[Any]:
    """The modules to which the change is applied; of several changes, a list for each."""
    return modules if change.parts else p.modules


def _run(workload: Workload, change: Change, modules: list[Any], seed: int) -> memory.Memory | str:
    """The memory pass under a change; why, if it fails."""
    tgrad.manual_seed(seed)
    try:
        with applied(change, workload.model, modules):
            return memory.measure(workload, "grad", "")
    except ProfilerError as error:
        if change == NONE:
            raise
        return f"cannot be run: {error}"


def _times(
    workload: Workload, changes: dict[Change, list[Any]], repeats: int, warmup: int, seed: int
) -> dict[Change, tuple[float, float]]:
    """Medians of each change's forward and of its backward, in ms; the changes take turns."""
    tgrad.manual_seed(seed)
    taken: dict[Change, dict[str, list[float]]] = {c: {"forward": [], "backward": []} for c in changes}
    order = list(changes)
    with memory.gradients_put_back(workload.model):
        for rep in range(-warmup, repeats):
            shift = rep % len(order)
            for change in order[shift:] + order[:shift]:
                with applied(change, workload.model, changes[change]):
                    for phase, t in latency.step(workload, "grad"):
                        if rep >= 0:
                            taken[change][phase].append(t.wall_ms)

    def median(change: Change, phase: str) -> float:
        return latency.quartiles(taken[change][phase])[1] if taken[change][phase] else 0.0

    return {c: (median(c, "forward"), median(c, "backward")) for c in changes}


def _differences(workload: Workload, changes: dict[Change, list[Any]], seed: int) -> dict[Change, float]:
    """The largest difference of results and gradients from those of the model as it is, as a share of the largest."""
    values: dict[Change, list[np.ndarray]] = {}
    buffers = memory.buffers(workload.model)
    from tgrad.profiler.optimizers import values_put_back

    for change, modules in changes.items():
        tgrad.manual_seed(seed)
        with (
            memory.gradients_put_back(workload.model),
            values_put_back(buffers),
            applied(change, workload.model, modules),
        ):
            batch = memory.make_batch(workload, "grad")
            results = memory.run_forward(workload, "grad", batch)
            roots = memory.roots_of(results, workload)
            if roots:
                memory.run_backward(workload, roots, memory.cotangents(roots))
            grads = [p.grad for p in memory.parameters(workload.model) if p.grad is not None]
            values[change] = [t.detach().double().cpu().numpy() for t in (*results, *grads)]
    count = len(results)
    return {
        c: max(_apart(values[NONE][:count], found[:count]), _apart(values[NONE][count:], found[count:]))
        for c, found in values.items()
    }


def _apart(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """The largest difference, as a share of the largest of all values: some gradients are 0 but for rounding."""
    most = scale = 0.0
    for x, y in zip(a, b):
        if x.size:
            same = (x == y) | (np.isnan(x) & np.isnan(y))
            with np.errstate(invalid="ignore"):
                most = max(most, float(np.abs(np.where(same, 0.0, x - y)).max()))
            scale = max(scale, float(np.abs(np.where(np.isfinite(x), x, 0.0)).max()))
    return most / scale if scale else most


def _notes(change: Change, p: Prediction, ran: memory.Memory, apart: float) -> list[str]:
    notes = []
    if p.graph_bytes != ran.figures["graph_bytes"]:
        notes.append(_explanation(p, ran))
    if p.left_out:
        more = f" and {len(p.left_out) - 2} more" if len(p.left_out) > 2 else ""
        notes.append(f"Left out: {'; '.join(p.left_out[:2])}{more}.")
    if change.kind == "inplace" and not p.modules:
        notes.append("No module can work in place here.")
    if any(part.kind == "lower" for part in _flat([change])):
        notes.append(f"Gradients change by up to {100 * apart:.2g} % of the largest.")
    elif apart:
        notes.append(f"Beware: results or gradients change, by up to {100 * apart:.2g} % of the largest.")
    return notes


def _explanation(p: Prediction, ran: memory.Memory) -> str:
    """Which storages were kept beside, or not, those that were predicted."""
    expected = Counter(p.sizes)
    beside, seen = [], set()
    for row in ran.saved:
        if row.category not in GRAPH or row.kind in ("recomputed", "offloaded") or row.storage_id in seen:
            continue
        seen.add(row.storage_id)
        if expected[row.storage_bytes]:
            expected[row.storage_bytes] -= 1
        else:
            place = f" in {row.module}" if row.module else ""
            beside.append(f"{row.op}'s {row.argument} {row.shape}{place} ({row.storage_bytes:,} bytes)")
    missing = [n for size, n in expected.items() for _ in range(n) if size]
    parts = []
    if beside:
        more = f" and {len(beside) - EXPLAINED} more" if len(beside) > EXPLAINED else ""
        parts.append(f"the run also keeps {', '.join(beside[:EXPLAINED])}{more}")
    if missing:
        parts.append(f"{len(missing)} storages of those predicted are not kept")
    return f"Bytes differ from the prediction: {'; '.join(parts) or 'storages of other sizes'}."
