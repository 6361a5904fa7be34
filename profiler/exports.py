"""A report in the formats of other tools: Perfetto, PyTorch's memory_viz, speedscope, pytest-benchmark.

Pure functions from a report to what is written, and `export`, which writes one.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import pickle
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from tgrad.profiler import aggregate
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.latency import quartiles
from tgrad.profiler.reading import Loaded
from tgrad.profiler.records import CATEGORIES


def _runs(report: Loaded) -> Iterator[tuple[int, Any, pd.DataFrame, pd.DataFrame]]:
    """(number from 1, run, its events, its saved tensors) of each run."""
    for i, (_, run) in enumerate(report.runs.iterrows(), 1):
        events, saved = (
            f[(f["workload"] == run["workload"]) & (f["mode"] == run["mode"])] for f in (report.events, report.saved)
        )
        yield i, run, events, saved


# --- Chrome's and Perfetto's trace ------------------------------------------------------------------------------------
def trace(report: Loaded) -> dict[str, Any]:
    """Chrome's trace: a process a run, with its phases as slices, live bytes by category as counters, and each saved
    tensor from save to use as an asynchronous slice."""
    events: list[dict[str, Any]] = []
    for pid, run, happened, saved in _runs(report):
        name = f"{run['workload']} in {run['mode']}"
        events.append({"ph": "M", "pid": pid, "tid": 0, "name": "process_name", "args": {"name": name}})
        events.append({"ph": "M", "pid": pid, "tid": 1, "name": "thread_name", "args": {"name": "phases"}})
        for phase, group in happened.groupby("phase", sort=False):
            start, end = group["t_ns"].min() / 1e3, group["t_ns"].max() / 1e3
            events.append({
                "ph": "X", "pid": pid, "tid": 1, "name": phase, "cat": "phase", "ts": start, "dur": end - start,
            })  # fmt: skip
        live = aggregate.live_by_category(happened, aggregate.live_before(run))
        used = [c for c in CATEGORIES if live[c].any()]
        for at, *values in zip(live["t_ns"], *(live[c] for c in used)):
            args = {c: int(v) for c, v in zip(used, values)}
            events.append({"ph": "C", "pid": pid, "tid": 0, "name": "live bytes", "ts": at / 1e3, "args": args})
        for _, s in saved[(saved["saved_at_ns"] >= 0) & (saved["used_at_ns"] >= 0)].iterrows():
            head = {"pid": pid, "tid": 2, "cat": "saved", "id": int(s["seq"]), "name": f"{s['op']} {s['argument']}"}
            about = {
                "module": s["module"], "source": f"{s['file']}:{s['line']}", "shape": s["shape"],
                "reason": s["reason"], "bytes": int(s["storage_bytes"]),
            }  # fmt: skip
            events.append({**head, "ph": "b", "ts": s["saved_at_ns"] / 1e3, "args": about})
            events.append({**head, "ph": "e", "ts": s["used_at_ns"] / 1e3})
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"tgrad": report.environment.get("tgrad")}}


# --- PyTorch's memory_viz ---------------------------------------------------------------------------------------------
BASE = 0x7F0000000000  # an address of 0 would read as none


def snapshot(report: Loaded) -> dict[str, Any]:
    """What `torch.cuda.memory._snapshot` gives, with a device for each run, in the order of runs.csv."""
    traces = []
    for _, run, happened, saved in _runs(report):
        known = saved.drop_duplicates("storage_id").set_index("storage_id")
        addresses: dict[int, int] = {}
        rows: list[dict[str, Any]] = []
        top = BASE
        for _, e in happened.iterrows():
            number, size = int(e["storage_id"]), int(e["bytes"])
            frames = _frames(known.loc[number] if number in known.index else None, e, run)
            head = {"size": size, "stream": 0, "time_us": int(e["t_ns"]) // 1000, "frames": frames}
            if e["action"] == "alloc":
                addresses[number], top = top, top + max(size, 1)
                rows.append({**head, "action": "alloc", "addr": addresses[number], "category": e["category"]})
            elif number in addresses:
                at = addresses.pop(number)
                rows.append({**head, "action": "free_requested", "addr": at, "category": e["category"]})
                rows.append({**head, "action": "free_completed", "addr": at, "category": e["category"]})
        if rows:  # the viewer looks at the category of a first event only if one is "unknown"
            rows[0] = {**rows[0], "category": "unknown"}
        traces.append(rows)
    return {"segments": [], "device_traces": traces, "allocator_settings": {}, "external_annotations": []}


def _frames(saved: Any, event: Any, run: Any) -> list[dict[str, Any]]:
    place = {"filename": "", "line": 0, "name": f"{event['category']} ({run['workload']}, {run['mode']})"}
    if saved is None:
        return [place]
    own = {"filename": saved["file"], "line": int(saved["line"]), "name": f"{saved['op']} {saved['argument']}"}
    return [own, {**place, "name": saved["module"] or "(top level)"}, place]


# --- speedscope -------------------------------------------------------------------------------------------------------
def speedscope(report: Loaded) -> dict[str, Any]:
    """Saved bytes as stacks: module path, op, line; a profile a run that keeps anything."""
    frames: dict[tuple[str, str, int], int] = {}

    def frame(name: str, file: str = "", line: int = 0) -> int:
        return frames.setdefault((name, file, line), len(frames))

    profiles = []
    for _, run, _, saved in _runs(report):
        mine = saved[(saved["charged_bytes"] > 0) & ~saved["category"].isin(("parameter", "constant"))]
        if mine.empty:
            continue
        samples = []
        for _, s in mine.iterrows():
            parts = s["module"].split(".") if s["module"] else []
            paths = [".".join(parts[: i + 1]) for i in range(len(parts))] or ["(top level)"]
            stack = [frame(p) for p in paths]
            stack.append(frame(f"{s['op']} {s['argument']}", s["file"], int(s["line"])))
            samples.append(stack)
        weights = [int(n) for n in mine["charged_bytes"]]
        profiles.append({
            "type": "sampled", "name": f"{run['workload']} in {run['mode']}", "unit": "bytes", "startValue": 0,
            "endValue": sum(weights), "samples": samples, "weights": weights,
        })  # fmt: skip
    if not profiles:
        raise ProfilerError(f"{report.path}: no run keeps anything for backward, so there is nothing to export")
    shared = [{"name": n, **({"file": f, "line": at} if f else {})} for n, f, at in frames]
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json", "exporter": "tgrad", "name": str(report.path),
        "activeProfileIndex": 0, "shared": {"frames": shared}, "profiles": profiles,
    }  # fmt: skip


# --- pytest-benchmark -------------------------------------------------------------------------------------------------
def benchmark(report: Loaded) -> dict[str, Any]:
    """Latency as pytest-benchmark stores it, in seconds, so that `pytest-benchmark compare` reads it."""
    env = report.environment
    found = []
    samples = report.samples[report.samples["is_warmup"].astype(str).str.lower() != "true"]
    for (workload, mode, phase), group in samples.groupby(["workload", "mode", "phase"], sort=False):
        data = [v / 1e3 for v in group["wall_ms"] if not math.isnan(v)]
        if data:
            name = f"{workload}[{mode}-{phase}]"
            found.append({
                "group": f"{workload}-{phase}", "name": name, "fullname": f"tgrad profile::{name}",
                "params": {"workload": workload, "mode": mode, "phase": phase}, "param": f"{mode}-{phase}",
                "extra_info": {"timings": env.get("timings")},
                "options": {"disable_gc": True, "timer": "perf_counter", "min_rounds": len(data), "max_time": 0.0,
                            "min_time": 0.0, "warmup": True},
                "stats": _stats(data),
            })  # fmt: skip
    git = env.get("git") or {}
    return {
        "machine_info": {
            "node": "", "processor": "", "machine": env.get("machine"), "python_version": env.get("python"),
            "python_implementation": "CPython", "release": env.get("os"), "system": env.get("os"),
            "cpu": {"brand_raw": env.get("device"), "count": env.get("cpu_count")},
        },
        "commit_info": {
            "id": git.get("sha"), "time": None, "author_time": None, "dirty": git.get("dirty"), "project": "tgrad",
            "branch": "(unknown)",
        },
        "benchmarks": found,
        "datetime": str(report.runs["created_at"].iloc[0]) if len(report.runs) else "",
        "version": "5.0.0",
    }  # fmt: skip


def _stats(data: list[float]) -> dict[str, Any]:
    q1, median, q3 = quartiles(data)
    iqr, ordered = q3 - q1, sorted(data)
    mean, deviation = statistics.fmean(data), statistics.stdev(data) if len(data) > 1 else 0.0
    far = sum(v < q1 - 1.5 * iqr or v > q3 + 1.5 * iqr for v in data)
    outliers = [sum(abs(v - mean) > deviation for v in data), far]
    return {
        "min": ordered[0], "max": ordered[-1], "mean": mean, "stddev": deviation, "rounds": len(data),
        "median": median, "iqr": iqr, "q1": q1, "q3": q3, "iqr_outliers": outliers[1],
        "stddev_outliers": outliers[0], "outliers": f"{outliers[0]};{outliers[1]}",
        "ld15iqr": next((v for v in ordered if v >= q1 - 1.5 * iqr), ordered[0]),
        "hd15iqr": next((v for v in reversed(ordered) if v <= q3 + 1.5 * iqr), ordered[-1]),
        "ops": 1 / mean if mean else 0.0, "total": sum(data), "data": data, "iterations": 1,
    }  # fmt: skip


# --- writing ----------------------------------------------------------------------------------------------------------
FORMATS = {
    "perfetto": ("trace.json.gz", trace),
    "memviz": ("snapshot.pickle", snapshot),
    "speedscope": ("saved.speedscope.json", speedscope),
    "pytest-benchmark": ("bench.json", benchmark),
}


def export(report: Loaded, to: str, file: str | os.PathLike | None = None) -> Path:
    """Write a report in the format `to`, one of FORMATS, into `file` (by default, into the report's folder).

    Raises:
        ProfilerError: there is no such format, nothing to export, or the file cannot be written.
    """
    if to not in FORMATS:
        raise ProfilerError(f"--to: unknown format '{to}'; choose from {', '.join(FORMATS)}")
    name, make = FORMATS[to]
    path = report.path / name if file is None else Path(file)
    made = make(report)
    if to == "memviz":
        data = pickle.dumps(made, protocol=4)  # the viewer reads no later one
    else:
        data = json.dumps(made, separators=(",", ":"), allow_nan=False).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ProfilerError(f"{path} cannot be written ({error.strerror or error}); name another with --file") from None
    return path
