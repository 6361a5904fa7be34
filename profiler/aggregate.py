"""From records to tidy pandas frames. Pure functions: no engine, no files."""

from __future__ import annotations

import math
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
    "backward_wall_median_ms", "backward_wall_q1_ms", "backward_wall_q3_ms", "step_wall_median_ms", "kernels",
    "host_us_per_op",
    "residual_bytes",
)  # fmt: skip


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """The columns people ask for first, a row for each (workload, mode); `kernels`: of forward, backward and step."""
    wide = runs.assign(kernels=runs["forward_kernels"] + runs["backward_kernels"] + runs["step_kernels"])
    return wide[list(SUMMARY)].reset_index(drop=True)


def saved_by_source(saved: pd.DataFrame) -> pd.DataFrame:
    """Bytes by where they come from: (workload, mode, module, op, argument, category, shape, file, line), most first.

    Storages count once, at the tensor that saved them first, so rows that repeat one have 0; `tensors` counts tensors.
    """
    keys = ["workload", "mode", "module", "op", "argument", "category", "shape", "file", "line"]
    grouped = saved.groupby(keys, sort=False, dropna=False)
    found = grouped.agg(tensors=("tensors", "sum"), bytes=("charged_bytes", "sum"), first=("seq", "min")).reset_index()
    order = found.sort_values(
        ["workload", "mode", "bytes", "first"], ascending=[True, True, False, True], kind="stable"
    )
    return order.drop(columns="first").reset_index(drop=True)


def difference(before: pd.DataFrame, after: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Saved bytes and tensors by `keys` in two frames of saved tensors, where they differ, the largest change first.

    Parameters and constants are left out: they are live with or without a graph; so is what is recomputed, which takes
    no bytes. The changes add up to that of graph_bytes, since a storage counts once, at the tensor that saved it first.

    Returns:
        Columns `keys`, then bytes_before, tensors_before, bytes_after, tensors_after and bytes_change.
    """
    sums = []
    for given, when in ((before, "before"), (after, "after")):
        live_anyway = given["category"].isin(("parameter", "constant"))
        mine = given[~live_anyway & ~given["kind"].isin(("recomputed", "offloaded"))]
        grouped = mine.groupby(list(keys), sort=False, dropna=False)
        found = grouped.agg(bytes=("charged_bytes", "sum"), tensors=("tensors", "sum"))
        sums.append(found.rename(columns={c: f"{c}_{when}" for c in ("bytes", "tensors")}))
    table = sums[0].join(sums[1], how="outer").fillna(0).astype("int64")
    table["bytes_change"] = table["bytes_after"] - table["bytes_before"]
    table = table[(table["bytes_change"] != 0) | (table["tensors_before"] != table["tensors_after"])]
    order = table["bytes_change"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order].reset_index()


# Each mode is explained as a difference from this one; if that was not measured, from the one measured before it.
AGAINST = {
    "no_grad": "grad", "inference_mode": "no_grad", "set_grad_enabled_false": "inference_mode",
    "grad+checkpoint": "grad", "grad+save_on_cpu": "grad", "keep": "grad", "lean": "keep", "leanest": "lean",
}  # fmt: skip
SOURCE = ("module", "op", "argument", "category", "shape", "dtype")


def mode_changes(runs: pd.DataFrame, saved: pd.DataFrame) -> pd.DataFrame:
    """How each mode differs from another: bytes and objects, a row for each (workload, mode) but the first.

    Columns: workload, mode, against; graph_bytes, peak_bytes and nodes, each as the change; tensors_gone and
    tensors_new, how many saved tensors one has and the other has not, with their bytes_gone and bytes_new; and
    host_us_per_op in both, NaN where it was not measured; recomputed_kernels, as the change; and ms of a forward and
    its backward in both.
    """
    rows = []
    for workload, mine in runs.groupby("workload", sort=False):
        by_mode = {r["mode"]: r for _, r in mine.iterrows()}
        modes = list(by_mode)
        for i, mode in enumerate(modes[1:], 1):
            against = AGAINST.get(mode, modes[i - 1])
            against = against if against in modes[:i] else modes[i - 1]
            old, new = by_mode[against], by_mode[mode]
            d = explain(saved, str(workload), against, mode)
            gone, come = (d["bytes_change"] * sign for sign in (-1, 1))
            tensors = d["tensors_after"] - d["tensors_before"]
            rows.append({
                "workload": workload, "mode": mode, "against": against,
                **{f"{c}_change": int(new[c] - old[c]) for c in CHANGING},
                "tensors_gone": int(-tensors[tensors < 0].sum()), "bytes_gone": int(gone[gone > 0].sum()),
                "tensors_new": int(tensors[tensors > 0].sum()), "bytes_new": int(come[come > 0].sum()),
                "host_us_per_op_before": old["host_us_per_op"], "host_us_per_op_after": new["host_us_per_op"],
                "ms_before": _ms(old), "ms_after": _ms(new),
            })  # fmt: skip
    return pd.DataFrame(rows, columns=list(CHANGES))


CHANGING = ("graph_bytes", "peak_bytes", "nodes", "recomputed_kernels")
CHANGES = (
    "workload", "mode", "against", "graph_bytes_change", "peak_bytes_change", "nodes_change", "tensors_gone",
    "bytes_gone", "tensors_new", "bytes_new", "host_us_per_op_before", "host_us_per_op_after",
    "recomputed_kernels_change", "ms_before", "ms_after",
)  # fmt: skip


def _ms(run: Any) -> float:
    """Median of a forward, and of its backward if it has one."""
    backward = run["backward_wall_median_ms"]
    return float(run["forward_wall_median_ms"] + (0.0 if math.isnan(backward) else backward))


def explain(saved: pd.DataFrame, workload: str, against: str, mode: str) -> pd.DataFrame:
    """Which saved tensors `mode` has and `against` has not, or the reverse: `difference` by SOURCE."""
    mine = saved[saved["workload"] == workload]
    return difference(mine[mine["mode"] == against], mine[mine["mode"] == mode], SOURCE)


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
        the categories is the ledger's live bytes, those of others apart; what events that are too many to list change
        is in `other`.
    """
    sign = events["action"].map({"alloc": 1, "free": -1}).fillna(0).astype("int64")
    size = events["bytes"] * sign
    table = pd.DataFrame({"t_ns": events["t_ns"], "phase": events["phase"]}).reset_index(drop=True)
    for category in CATEGORIES:
        change = size.where(events["category"] == category, 0).reset_index(drop=True)
        table[category] = change.cumsum() + before.get(category, 0)
    if len(table) and not sign.all():  # some events are not listed one by one: what the ledger has beyond the others
        unlisted = (events["live_bytes"] - size.cumsum()).reset_index(drop=True)
        table["other"] += unlisted - unlisted.iloc[0]
    first = {"t_ns": 0, "phase": "forward", **{c: before.get(c, 0) for c in CATEGORIES}}
    return pd.concat([pd.DataFrame([first]), table], ignore_index=True)


def live_before(run: Any) -> dict[str, int]:
    """What a run's model had live before its forward, by category."""
    own, state = int(run["live_before_bytes"] - run["other_live_bytes"]), int(run["optimizer_bytes"])
    return {"parameter": own - state, "optimizer": state}


def at_peak(table: pd.DataFrame) -> dict[str, int]:
    """Bytes by category at the moment when most was live, from `live_by_category`."""
    found = table.loc[table[list(CATEGORIES)].sum(axis=1).idxmax()]
    return {c: int(found[c]) for c in CATEGORIES}
