"""What the report shows of one workload, part by part, as plain values that a template or Markdown puts down."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from tgrad.profiler import aggregate, lifetimes, tables, twins, words
from tgrad.profiler.units import show_bytes

if TYPE_CHECKING:
    from tgrad.profiler.report import Report

SOURCES = 24  # rows of a workload's table of sources; the rest is in saved.csv
DIFFERENCES = 12  # sentences on what only one of tgrad and PyTorch saves


def workload(report: Report, name: str, figures: list[tuple[str, str, str]]) -> dict[str, Any]:
    """All that the page shows of one workload."""
    runs = report.runs[report.runs["workload"] == name]
    parts = [("Memory", tables.BYTES), ("Time and kernels of one batch", tables.times(report.runs))]
    return {
        "name": name,
        "about": report.about.get(name, ""),
        "sentence": report.sentences()[name],
        "twin": twin(report, name),
        "tables": []
        if runs.empty
        else [
            (caption, columns, [(run["mode"], [c.cell(run) for c in columns]) for _, run in runs.iterrows()])
            for caption, columns in parts
        ],
        "changes": [tables.change_cells(row) for _, row in changes(report, name)],
        "change_sentences": change_sentences(report, name),
        "explained": _explained(report, name),
        "ledger": _ledger(report, name),
        "at_peak": _at_peak(report, name),
        "scale": scale(report, name),
        "idle": _idle(report, name),
        "figures": figures,
        "sources": _sources(report, name),
        "residual": 0 if runs.empty else int(runs["residual_bytes"].abs().max()),
        "ran": not runs.empty,
    }


def _sources(report: Report, workload: str) -> dict[str, Any]:
    saved = report.saved
    mine = saved[(saved["workload"] == workload) & (saved["mode"] == "grad")]
    mine = mine[~mine["category"].isin(("parameter", "constant"))]
    table = aggregate.saved_by_source(mine) if len(mine) else pd.DataFrame()
    rows = [
        {
            "module": tables.location(row), "op": row["op"], "argument": row["argument"], "category": row["category"],
            "shape": row["shape"].replace("x", " x "), "tensors": int(row["tensors"]), "bytes": int(row["bytes"]),
            "shown": show_bytes(row["bytes"]), "source": tables.source(row),
        }
        for _, row in table.iterrows()
    ]  # fmt: skip
    most = words.keepers(aggregate.saved_by_module(saved, workload))
    return {"rows": rows[:SOURCES], "more": max(0, len(rows) - SOURCES), "most": most}


def twin(report: Report, workload: str) -> dict[str, Any] | None:
    """tgrad and PyTorch side by side; None without a twin."""
    if not len(report.twins) or workload not in set(report.twins["workload"]):
        return None
    ours = report.saved[(report.saved["workload"] == workload) & (report.saved["mode"] == "grad")]
    theirs = report.twin_saved[report.twin_saved["workload"] == workload]
    rows = twins.rows(report.runs, report.twins, workload)
    said = twins.sentences(twins.only(ours, theirs)) if len(ours) else []
    return {
        "headings": [heading for heading, _ in twins.columns()],
        "rows": [(engine, ["—" if v is None else show_bytes(v) for v in values]) for engine, values in rows],
        "modules": [(tables.location(row), list(row)[1:]) for _, row in twins.beside(ours, theirs).iterrows()],
        "sentences": said[:DIFFERENCES],
        "more": max(0, len(said) - DIFFERENCES),
    }


IDLE = 12  # rows of the table of idle memory


def _idle(report: Report, workload: str) -> list[dict[str, Any]]:
    """The storages that lie idle between forward and backward, the most byte-milliseconds first."""
    table = lifetimes.idle(report.saved, report.events, workload)
    return [
        {
            "module": tables.location(row), "op": row["op"], "argument": row["argument"],
            "shape": row["shape"].replace("x", " x "), "bytes": int(row["bytes"]), "idle_ms": float(row["idle_ms"]),
            "byte_ms": float(row["byte_ms"]), "lowers": int(row["lowers_peak_bytes"]),
        }
        for _, row in table[table["idle_ms"].notna()].head(IDLE).iterrows()
    ]  # fmt: skip


def changes(report: Report, workload: str) -> list[tuple[Any, pd.Series]]:
    """The rows of the mode matrix."""
    table = report.mode_changes
    return list(table[table["workload"] == workload].iterrows())


EXPLAINED = 30  # rows of the table that explains a mode; the rest is in saved.csv


def _explained(report: Report, workload: str) -> list[dict[str, Any]]:
    """The tensors that each mode has more or less of. Modes without differences are left out."""
    found = []
    for _, change in changes(report, workload):
        table = aggregate.explain(report.saved, workload, change["against"], change["mode"])
        rows = [
            {
                "module": tables.location(row), "op": row["op"], "argument": row["argument"],
                "category": row["category"], "shape": row["shape"].replace("x", " x "),
                "tensors": f"{row['tensors_before']} -> {row['tensors_after']}", "change": int(row["bytes_change"]),
            }
            for _, row in table.iterrows()
        ]  # fmt: skip
        if rows:
            found.append({
                "mode": change["mode"], "against": change["against"], "rows": rows[:EXPLAINED],
                "more": max(0, len(rows) - EXPLAINED), "sum": change["graph_bytes_change"],
            })  # fmt: skip
    return found


def change_sentences(report: Report, workload: str) -> list[str]:
    """The mode matrix in words."""
    interpreted = bool(report.environment.get("is_interpreted"))
    return [words.change_sentence(row, interpreted) for _, row in changes(report, workload)]


LEDGER = 120  # rows of the ledger: those charged the most, in the order of the forward


def _ledger(report: Report, workload: str) -> dict[str, Any] | None:
    """Each saved tensor in mode grad, with its reason and its times; None if nothing is saved."""
    saved = report.saved
    mine = saved[(saved["workload"] == workload) & (saved["mode"] == "grad")]
    if mine.empty:
        return None
    listed = mine.sort_values(["charged_bytes", "seq"], ascending=[False, True], kind="stable").head(LEDGER)
    rows = [
        {
            "seq": int(row["seq"]), "module": tables.location(row), "op": row["op"], "argument": row["argument"],
            "reason": row["reason"], "category": row["category"], "shape": row["shape"].replace("x", " x "),
            "dtype": row["dtype"], "storage": int(row["storage_id"]), "source": tables.source(row),
            "sizes": [int(row[f"{c}_bytes"]) for c in ("logical", "storage", "charged")],
            "times": [_ms(row[f"{c}_at_ns"]) for c in ("saved", "used", "freed")],
        }
        for _, row in listed.sort_values("seq").iterrows()
    ]  # fmt: skip
    runs = report.runs
    run = runs[(runs["workload"] == workload) & (runs["mode"] == "grad")].iloc[0]
    return {
        "rows": rows, "tensors": int(mine["tensors"].sum()), "closed": words.closed(run),
        "more": int(mine["tensors"].sum()) - len(rows),
    }  # fmt: skip


def _ms(ns: Any) -> float:
    return math.nan if ns < 0 else float(ns) / 1e6


PEAK = 20  # rows of what is live at the peak


def _at_peak(report: Report, workload: str) -> dict[str, Any] | None:
    """The largest storages that are live when the most is, in mode grad; None if there are none."""
    table = lifetimes.at_peak(report.saved, report.events, workload)
    if table.empty:
        return None
    runs = report.runs
    run = runs[(runs["workload"] == workload) & (runs["mode"] == "grad")].iloc[0]
    rows = [
        {
            "bytes": int(row["bytes"]), "shown": show_bytes(row["bytes"]), "category": row["category"],
            "module": row["module"], "op": row["op"], "argument": row["argument"],
            "shape": row["shape"].replace("x", " x "), "times": [_ms(row["born_ns"]), _ms(row["freed_ns"])],
        }
        for _, row in table.head(PEAK).iterrows()
    ]  # fmt: skip
    total = int(table["bytes"].sum())
    says = (
        f"{len(table):,} storages of this run, {show_bytes(total)}, with {show_bytes(run['peak_bytes'] - total)} that "
        f"were live before it make the peak of {show_bytes(run['peak_bytes'])} ({int(run['peak_bytes']):,} bytes)."
    )
    if len(table) > PEAK:
        says += f" The largest {PEAK} are below, the others ({show_bytes(table['bytes'].iloc[PEAK:].sum())}) left out."
    return {"rows": rows, "says": says}


def scale(report: Report, workload: str) -> dict[str, Any] | None:
    """The scale law that was measured beside a workload; None without one."""
    found = next((s for s in report.scales if s.workload == workload), None)
    if found is None:
        return None
    return {
        "headings": tables.law_headings(found.laws[0].memory_bytes), "rows": [tables.law_cells(x) for x in found.laws],
        "sentences": words.law_sentences(found),
    }  # fmt: skip
