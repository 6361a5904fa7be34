"""The tables that terminal, Markdown and HTML share: headings, what they mean, cells as text and as a value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from tgrad.profiler.latency import is_launch_bound
from tgrad.profiler.units import show_bytes, show_count, show_ms, show_spread, signed


@dataclass(frozen=True)
class Column:
    """A heading, what it means, and a run's cell as (text, value)."""

    heading: str
    meaning: str
    cell: Callable[[pd.Series], tuple[str, float]]


def _bytes(name: str) -> Callable[[pd.Series], tuple[str, float]]:
    return lambda run: (show_bytes(run[name]), float(run[name]))


def _time(phase: str) -> Callable[[pd.Series], tuple[str, float]]:
    def cell(run: pd.Series) -> tuple[str, float]:
        median, q1, q3 = (run[f"{phase}_wall_{q}_ms"] for q in ("median", "q1", "q3"))
        return ("—" if math.isnan(median) else show_spread(median, q1, q3)), median

    return cell


def _kernels(run: pd.Series) -> tuple[str, float]:
    counts = [run[f"{phase}_kernels"] for phase in ("forward", "backward", "step")]
    return " + ".join(show_count(n) for i, n in enumerate(counts) if n or not i), float(sum(counts))


def _host(run: pd.Series) -> tuple[str, float]:
    value = run["host_us_per_op"]
    return ("n/a" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"), value


def _gpu(run: pd.Series) -> tuple[str, float]:
    found = [run[f"{phase}_gpu_median_ms"] for phase in ("forward", "backward", "step")]
    text = " + ".join(show_ms(ms) for i, ms in enumerate(found) if not i or not math.isnan(ms))
    return text + (" (launch-bound)" if is_launch_bound(run["host_share"]) else ""), found[0]


BYTES = (
    Column(
        "intermediates",
        "storages that only the graph keeps for backward: neither parameters, nor the batch, nor results",
        _bytes("intermediates_bytes"),
    ),
    Column("inputs held", "batches that the graph keeps although the caller dropped them", _bytes("inputs_held_bytes")),
    Column("outputs held", "results that the caller keeps, in every mode", _bytes("outputs_held_bytes")),
    Column(
        "graph total",
        "all that the graph keeps: intermediates, inputs held, and those outputs that backward needs as well",
        _bytes("graph_bytes"),
    ),
    Column("parameters", "the model's parameters: live before, with or without a graph", _bytes("parameters_bytes")),
    Column("gradients", "the parameters' gradients, after the backward", _bytes("gradients_bytes")),
    Column("optimiser state", "what the optimiser keeps between steps", _bytes("optimizer_bytes")),
    Column(
        "peak",
        "the most that was live at any moment of the loop, its backward and its step, parameters included",
        _bytes("peak_bytes"),
    ),
)  # fmt: skip
TIMES = (
    Column("forward", "wall time of the forward of one batch: median [quartiles]", _time("forward")),
    Column("backward", "wall time of its backward; without a graph there is none", _time("backward")),
    Column("step", "wall time of the optimiser's step that follows it", _time("step")),
    Column("kernels", "kernels launched by one batch: forward + backward + step", _kernels),
    Column("host us/op", "time until the forward returned, for each op", _host),
)
GPU = Column("on the GPU", "device time between events: forward + backward + step, median", _gpu)


def columns(runs: pd.DataFrame) -> tuple[Column, ...]:
    """The columns that these runs can fill."""
    return *BYTES, *times(runs)


def times(runs: pd.DataFrame) -> tuple[Column, ...]:
    """Those of time and kernels."""
    has_gpu = not runs["forward_gpu_median_ms"].isna().all()
    phases = TIMES[:2] if runs["step_wall_median_ms"].isna().all() else TIMES[:3]
    return (*phases, GPU, *TIMES[3:]) if has_gpu else (*phases, *TIMES[3:])


CHANGE_HEADINGS = (
    "mode", "against", "kept by the graph", "peak", "nodes", "saved tensors gone", "saved tensors new", "host us/op",
    "recomputed kernels", "forward + backward",
)  # fmt: skip


def change_cells(row: pd.Series) -> tuple[str, ...]:
    """The cells of a row of `aggregate.mode_changes`, under CHANGE_HEADINGS."""

    def tensors(which: str) -> str:
        n = row[f"tensors_{which}"]
        return f"{n:,} ({show_bytes(row[f'bytes_{which}'])})" if n or row[f"bytes_{which}"] else "none"

    host = [row[f"host_us_per_op_{when}"] for when in ("before", "after")]
    return (
        row["mode"], row["against"], signed(row["graph_bytes_change"]), signed(row["peak_bytes_change"]),
        f"{row['nodes_change']:+,}" if row["nodes_change"] else "same", tensors("gone"), tensors("new"),
        "n/a" if any(map(math.isnan, host)) else f"{host[0]:,.0f} -> {host[1]:,.0f}",
        f"{row['recomputed_kernels_change']:+,}" if row["recomputed_kernels_change"] else "same",
        f"{show_ms(row['ms_before'])} -> {show_ms(row['ms_after'])}",
    )  # fmt: skip


def source(row: pd.Series) -> str:
    """file:line of a saved tensor."""
    return f"{row['file']}:{row['line']}" if row["file"] else ""


def location(row: pd.Series) -> str:
    """The module of a saved tensor."""
    return row["module"] or "(top level)"


LAW_HEADINGS = ("mode", "figure", "fixed", "a row", "95 % interval", "batch", "line says", "measured")


def law_headings(memory_bytes: int) -> tuple[str, ...]:
    """The headings over `law_cells`; memory_bytes: what must fit, -1 if that was not asked for."""
    return LAW_HEADINGS if memory_bytes < 0 else (*LAW_HEADINGS, f"largest batch in {show_bytes(memory_bytes)}")


def law_cells(law: Any) -> tuple[str, ...]:
    """The cells of a `scale.Law`, under `law_headings`."""
    fits = "" if law.figure != "peak_bytes" else "any" if law.largest_batch < 0 else f"{law.largest_batch:,}"
    return (
        law.mode, law.figure, show_bytes(round(law.fixed_bytes)), f"{law.per_row_bytes:,.1f} B",
        f"±{law.per_row_ci_bytes:,.1f} B", f"{law.checked_batch:,}", show_bytes(law.checked_predicted_bytes),
        f"{show_bytes(law.checked_measured_bytes)} ({100 * law.error:.2f} % off)",
        *([fits] if law.memory_bytes >= 0 else []),
    )  # fmt: skip
