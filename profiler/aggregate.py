"""From records to tidy pandas frames. Pure functions: no engine, no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from tgrad.profiler.records import CATEGORIES, EventRow, RunRecord, SampleRecord, SavedRow, columns, row


def frame(records: Sequence[Any], record: type) -> pd.DataFrame:
    """One row a record, one column a field, in order; with no records, a frame that has the columns."""
    return pd.DataFrame([row(r) for r in records], columns=list(columns(record)))


def runs_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row a (workload, mode)."""
    return frame(records, RunRecord)


def samples_frame(records: Sequence[SampleRecord]) -> pd.DataFrame:
    """One row a timed call."""
    return frame(records, SampleRecord)


def saved_frame(records: Sequence[SavedRow]) -> pd.DataFrame:
    """One row a saved tensor."""
    return frame(records, SavedRow)


def events_frame(records: Sequence[EventRow]) -> pd.DataFrame:
    """One row an allocation or free."""
    return frame(records, EventRow)


SUMMARY = (
    "workload", "mode", "intermediates_bytes", "inputs_held_bytes", "outputs_held_bytes", "graph_bytes",
    "parameters_bytes", "peak_bytes", "forward_wall_median_ms", "forward_wall_q1_ms", "forward_wall_q3_ms",
    "backward_wall_median_ms", "backward_wall_q1_ms", "backward_wall_q3_ms", "kernels", "host_us_per_op",
    "residual_bytes",
)  # fmt: skip


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """The columns people ask for first, a row for each workload and mode; `kernels` is of forward and backward."""
    wide = runs.assign(kernels=runs["forward_kernels"] + runs["backward_kernels"])
    return wide[list(SUMMARY)].reset_index(drop=True)


def saved_by_source(saved: pd.DataFrame) -> pd.DataFrame:
    """Bytes by where they come from: (workload, mode, module, op, argument, category, shape, file, line), most first.

    Storages count once, at the tensor that saved them first, so rows that repeat one have 0; `tensors` counts tensors.
    """
    keys = ["workload", "mode", "module", "op", "argument", "category", "shape", "file", "line"]
    grouped = saved.groupby(keys, sort=False, dropna=False)
    found = grouped.agg(tensors=("seq", "size"), bytes=("charged_bytes", "sum"), first=("seq", "min")).reset_index()
    order = found.sort_values(
        ["workload", "mode", "bytes", "first"], ascending=[True, True, False, True], kind="stable"
    )
    return order.drop(columns="first").reset_index(drop=True)


def saved_by_module(saved: pd.DataFrame, workload: str, mode: str = "grad") -> pd.DataFrame:
    """Bytes that the graph keeps by module and op (rows, in the order of the forward) and category (columns).

    Parameters and constants are left out: they are live with or without a graph.
    """
    mine = saved[(saved["workload"] == workload) & (saved["mode"] == mode)]
    mine = mine[~mine["category"].isin(("parameter", "constant"))]
    if mine.empty:
        return pd.DataFrame()
    label = mine["module"].where(mine["module"] != "", "(top level)") + " · " + mine["op"]
    table = (
        mine.assign(label=label).groupby(["label", "category"], sort=False)["charged_bytes"].sum().unstack(fill_value=0)
    )
    table = table.loc[list(dict.fromkeys(label)), [c for c in CATEGORIES if c in table.columns]]
    table = table[table.sum(axis=1) > 0]
    table.columns.name = None
    return table


def live_by_category(events: pd.DataFrame, before: dict[str, int]) -> pd.DataFrame:
    """Live bytes by category over time, for the events of one run.

    Args:
        before: bytes of each category that were live before the first event.

    Returns:
        Columns t_ns, phase, and one for each of CATEGORIES; a first row at t_ns 0 before anything happened. The sum of
        the categories is the ledger's live bytes, those of others apart.
    """
    size = events["bytes"].where(events["action"] == "alloc", -events["bytes"])
    table = pd.DataFrame({"t_ns": events["t_ns"], "phase": events["phase"]}).reset_index(drop=True)
    for category in CATEGORIES:
        change = size.where(events["category"] == category, 0).reset_index(drop=True)
        table[category] = change.cumsum() + before.get(category, 0)
    first = {"t_ns": 0, "phase": "forward", **{c: before.get(c, 0) for c in CATEGORIES}}
    return pd.concat([pd.DataFrame([first]), table], ignore_index=True)


def live_before(run: Any) -> dict[str, int]:
    """What a run's model had live before its forward, by category."""
    return {"parameter": int(run["live_before_bytes"] - run["other_live_bytes"])}


def at_peak(table: pd.DataFrame) -> dict[str, int]:
    """Bytes by category at the moment when most was live, from `live_by_category`."""
    found = table.loc[table[list(CATEGORIES)].sum(axis=1).idxmax()]
    return {c: int(found[c]) for c in CATEGORIES}
