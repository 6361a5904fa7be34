"""tgrad and PyTorch side by side: what both keep, aligned by module, and what only one keeps. Pure functions."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pandas as pd

from tgrad.profiler.aggregate import difference

ALIGNED = ("module", "category", "shape", "dtype")


def beside(saved: pd.DataFrame, twin_saved: pd.DataFrame) -> pd.DataFrame:
    """Bytes kept by module, tgrad's in mode grad beside PyTorch's, in the order of the forward.

    Columns: module, tgrad_bytes, tgrad_tensors, torch_bytes, torch_tensors, difference_bytes (tgrad - torch).
    """
    tables = []
    for frame, name in ((saved, "tgrad"), (twin_saved, "torch")):
        mine = frame[~frame["category"].isin(("parameter", "constant"))]
        found = mine.groupby("module", sort=False).agg(bytes=("charged_bytes", "sum"), tensors=("tensors", "sum"))
        tables.append(found.rename(columns={c: f"{name}_{c}" for c in ("bytes", "tensors")}))
    order = list(dict.fromkeys([*tables[1].index, *tables[0].index]))
    table = tables[0].join(tables[1], how="outer").reindex(order).fillna(0).astype("int64")
    table["difference_bytes"] = table["tgrad_bytes"] - table["torch_bytes"]
    return table.rename_axis("module").reset_index()


def only(saved: pd.DataFrame, twin_saved: pd.DataFrame) -> pd.DataFrame:
    """What one engine saves and the other does not, by module, category, shape and dtype; the most bytes first.

    Rows that repeat a storage are left out, so an op that saves what another saved already makes no row. The column
    recomputed says how many of the tensors that PyTorch alone saves tgrad makes again in backward.
    """
    both = [f[f["charged_bytes"] > 0] for f in (twin_saved, saved)]
    table = difference(both[0], both[1], ALIGNED)
    again = Counter(
        _alike(row) for _, row in saved[saved["kind"] == "recomputed"].drop_duplicates(["module", "shape"]).iterrows()
    )
    table["recomputed"] = [again[_alike(row)] if row["bytes_change"] < 0 else 0 for _, row in table.iterrows()]
    return table


def _alike(row: pd.Series) -> tuple[str, int, str]:
    """What a tensor of both engines has in common: shapes may differ, as where PyTorch's addmm flattens."""
    numel = math.prod(int(n) for n in row["shape"].split("x") if n.isdigit())
    return row["module"], numel, row["dtype"]


def sentences(table: pd.DataFrame) -> list[str]:
    """The rows of `only` in words."""
    found = []
    for _, row in table.iterrows():
        who, other = ("tgrad", "PyTorch does not") if row["bytes_change"] > 0 else ("PyTorch", "tgrad does not")
        other = "tgrad recomputes it" if row["recomputed"] else other
        count = abs(row["tensors_after"] - row["tensors_before"])
        what = f"{count} x {row['shape']} {row['dtype']}" if count != 1 else f"{row['shape']} {row['dtype']}"
        place = f"in module {row['module']}" if row["module"] else "at the top level"
        size = f"{row['category']}, {abs(row['bytes_change']):,} bytes"
        found.append(f"{who} saves this, {other}: {what} ({size}) {place}.")
    return found


def columns() -> tuple[tuple[str, str], ...]:
    """(heading, TwinRecord's column) of the table that stands beside tgrad's."""
    return (
        ("intermediates", "intermediates_bytes"), ("inputs held", "inputs_held_bytes"),
        ("outputs held", "outputs_held_bytes"), ("graph total", "graph_bytes"), ("parameters", "parameters_bytes"),
        ("seen by MemTracker", "mem_tracker_bytes"), ("residual", "residual_bytes"),
    )  # fmt: skip


def rows(runs: pd.DataFrame, twins: pd.DataFrame, workload: str) -> list[tuple[str, list[Any]]]:
    """(engine, a value for each of `columns`) of one workload: tgrad in mode grad, then PyTorch. None: not measured."""
    found: list[tuple[str, list[Any]]] = []
    mine = runs[(runs["workload"] == workload) & (runs["mode"] == "grad")]
    names = [c for _, c in columns()]
    for _, run in mine.iterrows():
        found.append(("tgrad", [run[c] if c in runs.columns else None for c in names]))
    for _, twin in twins[twins["workload"] == workload].iterrows():
        found.append((f"torch {twin['torch_version']}", [twin[c] for c in names]))
    return found
