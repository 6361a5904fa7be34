"""The tables that terminal, Markdown and HTML share: headings, what they mean, cells as text and as a value."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

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
    forward, backward = run["forward_kernels"], run["backward_kernels"]
    text = f"{show_count(forward)} + {show_count(backward)}" if backward else show_count(forward)
    return text, float(forward + backward)


def _host(run: pd.Series) -> tuple[str, float]:
    value = run["host_us_per_op"]
    return ("n/a" if math.isnan(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"), value


def _gpu(run: pd.Series) -> tuple[str, float]:
    forward, backward = run["forward_gpu_median_ms"], run["backward_gpu_median_ms"]
    return show_ms(forward) + ("" if math.isnan(backward) else f" + {show_ms(backward)}"), forward


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
    Column(
        "peak",
        "the most that was live at any moment of the loop and its backward, parameters included",
        _bytes("peak_bytes"),
    ),
)  # fmt: skip
TIMES = (
    Column("forward", "wall time of the forward of one batch: median [quartiles]", _time("forward")),
    Column("backward", "wall time of its backward; without a graph there is none", _time("backward")),
    Column("kernels", "kernels launched by one batch: forward + backward", _kernels),
    Column("host us/op", "time until the forward returned, for each op", _host),
)
GPU = Column("on the GPU", "device time between events: forward + backward, median", _gpu)


def columns(runs: pd.DataFrame) -> tuple[Column, ...]:
    """The columns that these runs can fill."""
    return *BYTES, *times(runs)


def times(runs: pd.DataFrame) -> tuple[Column, ...]:
    """Those of time and kernels."""
    has_gpu = not runs["forward_gpu_median_ms"].isna().all()
    return (*TIMES[:2], GPU, *TIMES[2:]) if has_gpu else TIMES


CHANGE_HEADINGS = (
    "mode", "against", "kept by the graph", "peak", "nodes", "saved tensors gone", "saved tensors new", "host us/op",
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
    )  # fmt: skip


def source(row: pd.Series) -> str:
    """file:line of a saved tensor."""
    return f"{row['file']}:{row['line']}" if row["file"] else ""


def location(row: pd.Series) -> str:
    """The module of a saved tensor."""
    return row["module"] or "(top level)"
