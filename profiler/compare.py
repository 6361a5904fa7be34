"""Two reports, one against the other: bytes exactly, times by a rank test and a threshold that matters.

Pure functions on the frames of `reading.load`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from tgrad.profiler.aggregate import difference
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.ranks import mann_whitney, median
from tgrad.profiler.reading import Loaded
from tgrad.profiler.records import RunRecord, columns
from tgrad.profiler.units import parse_bytes

ALPHA = 0.05
NAMES = {"saved_bytes": "graph_bytes"}
BYTES = (
    "graph_bytes", "intermediates_bytes", "inputs_held_bytes", "outputs_held_bytes", "parameters_bytes",
    "peak_forward_bytes", "peak_bytes",
)  # fmt: skip
TIMES = {
    "forward_ms": ("forward", "wall_ms"), "backward_ms": ("backward", "wall_ms"), "step_ms": ("step", "wall_ms"),
    "forward_host_ms": ("forward", "host_ms"), "backward_host_ms": ("backward", "host_ms"),
    "forward_gpu_ms": ("forward", "gpu_ms"), "backward_gpu_ms": ("backward", "gpu_ms"),
    "step_gpu_ms": ("step", "gpu_ms"),
}  # fmt: skip
GROUPS = {
    "module": ("module", "op", "argument"),
    "op": ("op", "argument"),
    "line": ("file", "line", "op", "argument"),
}
KEYS = ["workload", "mode"]


@dataclass(frozen=True)
class Limit:
    """How far a figure may grow: by `absolute` (bytes or ms), or by the share `relative` of what it was."""

    metric: str
    text: str
    absolute: float | None = None
    relative: float | None = None

    def allowed(self, before: float) -> float:
        """The most it may grow by."""
        return self.absolute if self.absolute is not None else before * (self.relative or 0)


@dataclass(frozen=True)
class Change:
    """One figure in both reports. p: of the rank test, for times; NaN for bytes."""

    workload: str
    mode: str
    metric: str
    before: float
    after: float
    p: float = math.nan

    @property
    def grown(self) -> float:
        """after - before."""
        return self.after - self.before


@dataclass(frozen=True)
class Comparison:
    """What differs.

    Attributes:
        bytes, times: every figure of the runs that both have.
        saved: bytes kept by group in both reports, and their difference; only rows that differ.
        failed: (change, limit) of each regression.
        notes: what could not be compared, and why.
    """

    bytes: list[Change]
    times: list[Change]
    saved: pd.DataFrame
    failed: list[tuple[Change, Limit]]
    notes: list[str]


def parse_limit(text: str) -> Limit:
    """`saved_bytes:0`, `peak_bytes:1MiB`, `forward_ms:5%`.

    Raises:
        ProfilerError: says what is expected.
    """
    metric, colon, amount = text.partition(":")
    name = NAMES.get(metric, metric)
    known = [*NAMES, *(c for c in columns(RunRecord) if c.endswith("_bytes")), *TIMES]
    if name not in known:
        raise ProfilerError(f"--fail-on {text}: unknown figure '{metric}'; choose from {', '.join(known)}")
    amount = amount.strip()
    problem = f"--fail-on {text}: expected FIGURE:LIMIT such as saved_bytes:0, peak_bytes:1MiB or forward_ms:5%"
    try:
        if amount.endswith("%"):
            limit = Limit(name, text, relative=float(amount[:-1]) / 100)
        elif name in TIMES:
            limit = Limit(name, text, absolute=float(amount.removesuffix("ms")))
        else:
            limit = Limit(name, text, absolute=float(parse_bytes(amount)))
    except ValueError:
        raise ProfilerError(problem) from None
    given = limit.absolute if limit.absolute is not None else limit.relative
    if not colon or given is None or not math.isfinite(given) or given < 0:
        raise ProfilerError(problem)
    return limit


def compare(a: Loaded, b: Loaded, limits: Sequence[Limit] = (), by: str = "module") -> Comparison:
    """Report `b` against report `a`.

    Args:
        by: what saved bytes are grouped by: `module`, `op` or `line`.

    Raises:
        ProfilerError: nothing in them can be compared, or not what a limit is for.
    """
    notes = _check(a, b)
    pairs = [k for k in _keys(a.runs) if k in set(_keys(b.runs))]
    left, right = a.runs.set_index(KEYS), b.runs.set_index(KEYS)
    wanted = [*BYTES, *(x.metric for x in limits if x.metric not in TIMES and x.metric not in BYTES)]
    sizes = [Change(*k, m, left.loc[k, m], right.loc[k, m]) for k in pairs for m in dict.fromkeys(wanted)]
    reason = _times_differ(a, b)
    asked = [x.text for x in limits if x.metric in TIMES]
    if reason and asked:
        raise ProfilerError(f"--fail-on {asked[0]}: the times cannot be compared: {reason}; profile both alike")
    if reason:
        notes.append(f"times are not compared: {reason}")
    times = [] if reason else [c for k in pairs for m in TIMES if (c := _time(a, b, k, m)) is not None]
    _answerable(limits, [*sizes, *times], a, b)
    failed = [(c, x) for x in limits for c in (*sizes, *times) if c.metric == x.metric and _fails(c, x)]
    return Comparison(sizes, times, _saved(a, b, pairs, by), failed, notes)


def _keys(runs: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(runs["workload"], runs["mode"]))


def _fails(change: Change, limit: Limit) -> bool:
    if not change.grown > limit.allowed(change.before):
        return False
    return change.metric not in TIMES or change.p < ALPHA


def _answerable(limits: Sequence[Limit], found: Sequence[Change], a: Loaded, b: Loaded) -> None:
    """Raises ProfilerError if a limit is on a figure that was not measured: a gate that never closes."""
    for limit in limits:
        if not any(c.metric == limit.metric for c in found):
            raise ProfilerError(
                f"--fail-on {limit.text}: {limit.metric} was not measured in both {a.path} and {b.path}"
            )
        if limit.metric in TIMES:
            few = min(
                (c for c in found if c.metric == limit.metric),
                key=lambda c: min(len(_samples(x, (c.workload, c.mode), c.metric)) for x in (a, b)),
            )
            m, n = (len(_samples(x, (few.workload, few.mode), few.metric)) for x in (a, b))
            if 1 / math.comb(m + n, n) >= ALPHA:
                raise ProfilerError(
                    f"--fail-on {limit.text}: {m} and {n} timed runs of {few.workload} in mode {few.mode} are too few "
                    "for any difference to show; profile with --repeats 10"
                )


def _check(a: Loaded, b: Loaded) -> list[str]:
    """Notes on what only one has. Raises ProfilerError if nothing can be compared."""
    left, right = _keys(a.runs), _keys(b.runs)
    both = [k for k in left if k in set(right)]
    if not both:
        had = [", ".join(f"{w} in {m}" for w, m in keys) or "nothing" for keys in (left, right)]
        raise ProfilerError(
            f"{a.path} and {b.path} have no run in common: the first has {had[0]}; the second {had[1]}; "
            "profile the same workloads in both"
        )
    for report, keys in ((a, left), (b, right)):
        if len(set(keys)) < len(keys):
            raise ProfilerError(f"{report.path / 'runs.csv'} has a run twice; write the report again")
    for key in both:
        one, other = (x.runs.set_index(KEYS).loc[key] for x in (a, b))
        for column in ("engine", "dtype", "optimizer", "batch_size", "held"):
            if one[column] != other[column]:
                name = column.replace("_", " ")
                raise ProfilerError(
                    f"{a.path} and {b.path} cannot be compared: {key[0]} in mode {key[1]} has {name} {one[column]} in "
                    f"the first and {other[column]} in the second; profile both alike"
                )
    notes = [f"{w} in mode {m} is only in {a.path}" for w, m in left if (w, m) not in right]
    notes += [f"{w} in mode {m} is only in {b.path}" for w, m in right if (w, m) not in left]
    return notes + _others(a, b, both)


def _others(a: Loaded, b: Loaded, both: list[tuple[str, str]]) -> list[str]:
    """Notes on what lets bytes differ although nothing got worse: another model, other versions, another seed."""
    notes = []
    one, other = (x.runs.set_index(KEYS) for x in (a, b))
    for w in dict.fromkeys(w for w, _ in both):
        key = next(k for k in both if k[0] == w)
        m, n = int(one.loc[key, "parameters"]), int(other.loc[key, "parameters"])
        if m != n:
            notes.append(
                f"{w} is another model: {m:,} parameters in the first and {n:,} in the second, so its bytes differ for "
                "that reason as well"
            )
    versions = [{"tgrad": x.environment.get("tgrad"), **(x.environment.get("packages") or {})} for x in (a, b)]
    for name in ("tgrad", "torch", "triton"):
        before, after = (v.get(name) for v in versions)
        if before != after:
            notes.append(f"other versions: {name} {before} in the first and {after} in the second")
    return notes


def _times_differ(a: Loaded, b: Loaded) -> str:
    """Why times of the two cannot be compared; "" if they can."""
    for name in ("is_interpreted", "device", "gpu", "machine", "cpu_count"):
        one, other = ({**(x.environment.get("device_facts") or {}), **x.environment}.get(name) for x in (a, b))
        if one != other:
            return f"{name.replace('_', ' ')} is {one} in the first and {other} in the second"
    return ""


def _samples(report: Loaded, key: tuple[str, str], metric: str) -> list[float]:
    phase, column = TIMES[metric]
    s = report.samples
    warm = s["is_warmup"].astype(str).str.lower() == "true"
    mine = s[(s["workload"] == key[0]) & (s["mode"] == key[1]) & (s["phase"] == phase) & ~warm]
    return [float(v) for v in mine[column] if not math.isnan(v)]


def _time(a: Loaded, b: Loaded, key: tuple[str, str], metric: str) -> Change | None:
    one, other = _samples(a, key, metric), _samples(b, key, metric)
    if not one or not other:
        return None
    up = mann_whitney(one, other)
    # The table shows changes either way; a regression is one upwards.
    p = up if median(other) >= median(one) else mann_whitney(other, one)
    return Change(*key, metric, median(one), median(other), p)


def _saved(a: Loaded, b: Loaded, pairs: list[tuple[str, str]], by: str) -> pd.DataFrame:
    """Bytes by workload, mode and group in both, where they differ, the largest difference first."""
    wanted = set(pairs)
    before, after = (x.saved[[k in wanted for k in zip(x.saved["workload"], x.saved["mode"])]] for x in (a, b))
    return difference(before, after, [*KEYS, *GROUPS[by]])
