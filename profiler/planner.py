"""Which policy makes a model fit into so many bytes with the least time: predicted from the ledger, then run.

Plans are tried from the fastest on: nothing recomputed, recipes, so many blocks checkpointed or offloaded, all blocks.
Bytes are live bytes of the device, parameters, gradients and the optimiser's state among them.
"""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import tgrad
from tgrad.kernels import launch
from tgrad.nn import Module
from tgrad.profiler import latency, memory, transfers
from tgrad.profiler.calls import Calls
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.predict import Base, Times, kept_elsewhere
from tgrad.profiler.units import parse_bytes, show_bytes, show_ms
from tgrad.profiler.workloads import Options, Workload, make
from tgrad.storage import OutOfMemoryError

EVENTS = 1_000_000  # of the runs that predictions are made from: all are listed
MOST = 24  # subsets of blocks that are considered
RUNS = 6  # plans that are run before the planner gives up
REPEATS, WARMUP = 3, 1


@dataclass(frozen=True)
class Plan:
    """Arguments of `tgrad.activation_memory`."""

    policy: str
    checkpoint: str | None = None
    offload: str | None = None

    def applied(self) -> AbstractContextManager[None]:
        """Inside the block the plan is in force."""
        return tgrad.activation_memory(self.policy, checkpoint=self.checkpoint, offload=self.offload)

    def __str__(self) -> str:
        given = [f'"{self.policy}"']
        given += [f'{name}="{v}"' for name in ("checkpoint", "offload") if (v := getattr(self, name)) is not None]
        return f"activation_memory({', '.join(given)})"


@dataclass(frozen=True)
class Candidate:
    """A plan, what was predicted, and what a run gave (NaN: it was not run).

    peak_bytes: as in a RunRecord. ms: of a forward and its backward. host_bytes: offloaded.
    """

    plan: Plan
    predicted_peak_bytes: float
    predicted_ms: float
    peak_bytes: float = math.nan
    ms: float = math.nan
    host_bytes: float = math.nan


@dataclass(frozen=True)
class Fit:
    """What came out. chosen: None if no plan fits; least: of those that ran, the one with the least peak."""

    workload: str
    budget_bytes: int
    chosen: Candidate | None
    least: Candidate
    candidates: list[Candidate]
    is_interpreted: bool

    def sentences(self) -> list[str]:
        """The answer in words."""
        best, budget = self.chosen or self.least, show_bytes(self.budget_bytes)
        figures = f"predicted peak {_bytes(best.predicted_peak_bytes)}, measured {_bytes(best.peak_bytes)}"
        host = f", {show_bytes(best.host_bytes)} on the host" if best.host_bytes else ""
        if self.chosen is None:
            over = int(best.peak_bytes - self.budget_bytes)
            return [
                f"{self.workload}: no plan fits into {budget}. The least is {best.plan}: {figures}{host}; that is "
                f"{over:,} bytes ({show_bytes(over)}) too much. Use a smaller batch or a narrower dtype."
            ]
        said = [f"{self.workload} fits into {budget} with tgrad.{best.plan}: {figures}{host}."]
        first = next((c for c in self.candidates if c.plan == Plan("keep")), None)
        if first is not None and not self.is_interpreted and not math.isnan(first.ms):
            more = best.ms / first.ms - 1
            said.append(f"A forward and its backward take {show_ms(best.ms)}, {100 * more:+.0f} % against keep.")
        return said

    def as_json(self) -> dict[str, Any]:
        """All of it; NaN is null."""
        found = asdict(self)
        for c in (found["chosen"], found["least"], *found["candidates"]):
            for name in ("predicted_peak_bytes", "predicted_ms", "peak_bytes", "ms", "host_bytes"):
                if c is not None and math.isnan(c[name]):
                    c[name] = None
        return found


def _bytes(n: float) -> str:
    return f"{int(n):,} bytes" if not math.isnan(n) else "n/a"


def fit(
    workload: str | Workload, budget: int | str, *, batch_size: int | None = None, dtype: str = "float32",
    width: int | None = None, depth: int | None = None, seed: int = 0, optimizer: str = "sgd",
) -> Fit:  # fmt: skip
    """The plan with the least time under which a training step of the workload stays within `budget`.

    Args:
        budget: live bytes of the device, or a text such as "24GiB".

    Raises:
        ProfilerError: the request cannot be carried out.
        tgrad.OutOfMemoryError: the step cannot be run even with recipes; use a smaller batch.
    """
    size = _size(budget)
    made = make(workload, Options(batch_size, dtype, width, depth, seed, optimizer))
    if made.model is None:
        raise ProfilerError(f"workload {made.name} is a PyTorch model, and the planner runs tgrad; give a tgrad model")
    ran: dict[Plan, Candidate] = {}
    bases: dict[str, Base] = {}
    per_byte = functools.cache(transfers.ms_per_byte)
    for policy in ("keep", "lean"):
        plan, calls = Plan(policy), Calls()
        try:
            with plan.applied():
                tgrad.manual_seed(seed)
                found = memory.measure(made, "grad", "", calls=calls, limit=EVENTS)
        except (OutOfMemoryError, MemoryError):
            if policy == "lean":
                raise
            continue
        forward, backward = _times(made, plan, seed)
        bases[policy] = Base(found, calls, Times(forward, backward, ms_per_byte=per_byte))
        peak, ms = found.figures["peak_bytes"], forward + backward
        ran[plan] = Candidate(plan, peak, ms, peak, ms, found.figures["host_bytes"])
    others = _predicted(made.model, bases["lean"])
    ordered = sorted([*ran.values(), *others], key=lambda c: c.predicted_ms)
    chosen = None
    for c in (c for c in ordered if c.predicted_peak_bytes <= size):
        if c.plan not in ran:
            if len(ran) >= RUNS + 2:
                break
            ran[c.plan] = _run(made, c, seed)
        if ran[c.plan].peak_bytes <= size:
            chosen = ran[c.plan]
            break
    if chosen is None:  # the last resort, so that it can be said by how much nothing fits
        lowest = min(ordered, key=lambda c: c.predicted_peak_bytes).plan
        for c in ordered:
            if (c.plan == lowest or c.plan.policy == "leanest") and c.plan not in ran:
                ran[c.plan] = _run(made, c, seed)
        chosen = next((ran[c.plan] for c in ordered if c.plan in ran and ran[c.plan].peak_bytes <= size), None)
    least = min(ran.values(), key=lambda c: c.peak_bytes)
    return Fit(made.name, size, chosen, least, [ran.get(c.plan, c) for c in ordered], launch.INTERPRET)


def _size(budget: int | str) -> int:
    try:
        size = parse_bytes(budget) if isinstance(budget, str) else budget
    except ValueError as error:
        raise ProfilerError(f"--fit: {error}") from None
    if not isinstance(size, int) or size < 1:
        raise ProfilerError(f"--fit: expected a size of at least 1 byte, got {budget}")
    return size


def _run(made: Workload, c: Candidate, seed: int) -> Candidate:
    """The candidate with what a run under exactly its plan gave."""
    tgrad.manual_seed(seed)
    try:
        with c.plan.applied():
            figures = memory.measure(made, "grad", "").figures
    except (OutOfMemoryError, MemoryError):
        return replace(c, peak_bytes=math.inf)
    return replace(
        c, peak_bytes=figures["peak_bytes"], host_bytes=figures["host_bytes"], ms=sum(_times(made, c.plan, seed))
    )


def _times(made: Workload, plan: Plan, seed: int) -> tuple[float, float]:
    """Medians of forward and of backward, in ms."""
    tgrad.manual_seed(seed)
    taken: dict[str, list[float]] = {"forward": [], "backward": []}
    with memory.gradients_put_back(made.model), plan.applied():
        for repeat in range(-WARMUP, REPEATS):
            for phase, t in latency.step(made, "grad"):
                if repeat >= 0:
                    taken[phase].append(t.wall_ms)
    return median(taken["forward"]), median(taken["backward"] or [0.0])


def blocks(model: Any) -> dict[str, Module]:
    """What plans choose among, by path: blocks as of "leanest"; without any, the model's children."""
    if not isinstance(model, Module):
        return {}
    found: dict[str, Module] = {}
    for path, m in model.named_modules():
        inside = any(path.startswith(f"{p}.") for p in found)
        if path and m.is_block and m._modules and not inside:
            found[path] = m
    return found or dict(model.named_children())


def pattern(model: Module, chosen: list[str], units: dict[str, Module]) -> str:
    """The pattern that means these blocks: "layers.*" where it is all of a container, else their paths."""
    parents = {path.rpartition(".")[0] for path in chosen}
    if len(chosen) == len(units) and len(parents) == 1:
        parent = parents.pop()
        if parent and len(list(model.get_submodule(parent).children())) == len(chosen):
            return f"{parent}.*"
    return ",".join(chosen)


def _predicted(model: Any, lean: Base) -> list[Candidate]:
    """Plans beyond keep and lean, and what they are expected to give."""
    units = blocks(model)
    if not units:
        return []
    paths = list(units)
    counts = sorted({max(1, round(len(paths) * k / MOST)) for k in range(1, MOST + 1)} | {len(paths)})
    nested = any(m._modules for m in units.values())
    found: list[Candidate] = []
    for count in counts:
        first = paths[:count]
        modules, text = [units[p] for p in first], pattern(model, first, units)
        if nested:
            p = kept_elsewhere(lean, modules, [])
            # All blocks: that is what "leanest" means.
            plan = Plan("leanest") if count == len(paths) else Plan("lean", checkpoint=text)
            found.append(Candidate(plan, p.peak_bytes, p.ms))
        p = kept_elsewhere(lean, [], modules)
        found.append(Candidate(Plan("lean", offload=text), p.peak_bytes, p.ms))
    if nested:
        modules = list(units.values())
        p = kept_elsewhere(lean, modules, modules)
        found.append(Candidate(Plan("leanest", offload=pattern(model, paths, units)), p.peak_bytes, p.ms))
    return found
