"""The report as one HTML file that needs no network, and as Markdown."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import jinja2
import pandas as pd

from tgrad.profiler import aggregate, lifetimes, tables, twins
from tgrad.profiler.environment import INTERPRETED
from tgrad.profiler.units import show_bytes

if TYPE_CHECKING:
    from tgrad.profiler.report import Report

Figures = dict[str, list[tuple[str, str, str]]]  # workload -> (file stem, what to see, svg)

SOURCES = 40  # rows of a workload's table of sources; the rest is in saved.csv


@cache
def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("tgrad.profiler")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(
        "report.html"
    )


def page(report: Report, figures: Figures) -> str:
    """The whole page, figures and style inside."""
    return _render(report, figures, whole=True)


def fragment(report: Report) -> str:
    """Tables and words, to put into another page."""
    return _render(report, {}, whole=False)


def _render(report: Report, figures: Figures, whole: bool) -> str:
    return _template().render(
        whole=whole,
        workloads=[_workload(report, name, figures.get(name, [])) for name in report.workloads],
        columns=tables.columns(report.runs),
        change_headings=tables.CHANGE_HEADINGS,
        facts=_facts(report.environment),
        interpreted=INTERPRETED if report.environment.get("is_interpreted") else None,
        created=report.records.runs[0].created_at.replace("T", " ").replace("+00:00", " UTC")
        if report.records.runs
        else "",
        modes=list(dict.fromkeys(r.mode for r in report.records.runs)) or ["PyTorch"],
    )


def _workload(report: Report, name: str, figures: list[tuple[str, str, str]]) -> dict[str, Any]:
    runs = report.runs[report.runs["workload"] == name]
    parts = [("Memory", tables.BYTES), ("Time and kernels of one batch", tables.times(report.runs))]
    return {
        "name": name,
        "about": report.about.get(name, ""),
        "sentence": report.sentences()[name],
        "twin": _twin(report, name),
        "tables": []
        if runs.empty
        else [
            (caption, columns, [(run["mode"], [c.cell(run) for c in columns]) for _, run in runs.iterrows()])
            for caption, columns in parts
        ],
        "changes": [tables.change_cells(row) for _, row in _changes(report, name)],
        "explained": _explained(report, name),
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
    return {"rows": rows[:SOURCES], "more": max(0, len(rows) - SOURCES)}


def _twin(report: Report, workload: str) -> dict[str, Any] | None:
    """tgrad and PyTorch side by side; None without a twin."""
    if not len(report.twins) or workload not in set(report.twins["workload"]):
        return None
    ours = report.saved[(report.saved["workload"] == workload) & (report.saved["mode"] == "grad")]
    theirs = report.twin_saved[report.twin_saved["workload"] == workload]
    rows = twins.rows(report.runs, report.twins, workload)
    return {
        "headings": [heading for heading, _ in twins.columns()],
        "rows": [(engine, ["—" if v is None else show_bytes(v) for v in values]) for engine, values in rows],
        "modules": [(tables.location(row), list(row)[1:]) for _, row in twins.beside(ours, theirs).iterrows()],
        "sentences": twins.sentences(twins.only(ours, theirs)) if len(ours) else [],
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


def _changes(report: Report, workload: str) -> list[tuple[Any, pd.Series]]:
    changes = report.mode_changes
    return list(changes[changes["workload"] == workload].iterrows())


EXPLAINED = 30  # rows of the table that explains a mode; the rest is in saved.csv


def _explained(report: Report, workload: str) -> list[dict[str, Any]]:
    """The tensors that each mode has more or less of. Modes without differences are left out."""
    found = []
    for _, change in _changes(report, workload):
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


def _facts(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """What env.json says, flat, as (name, text)."""
    facts: list[tuple[str, str]] = []
    for key, value in environment.items():
        if isinstance(value, dict):
            facts += [(f"{key}: {k}", str(v)) for k, v in value.items() if v not in (None, "")]
        elif isinstance(value, list):
            facts.append((key, " ".join(map(str, value))))
        elif value is not None:
            facts.append((key, str(value)))
    return facts


def markdown(report: Report, figures: Figures) -> str:
    """summary.md: words, a table and the plots of each workload."""
    lines = ["# What each grad mode costs", ""]
    environment = report.environment
    if environment.get("is_interpreted"):
        lines += [f"Timings: **{INTERPRETED}**. The bytes that are kept do not depend on the machine.", ""]
    packages = environment.get("packages", {})
    lines += [
        f"tgrad {environment.get('tgrad')} on {environment.get('device')}, Python {environment.get('python')}, "
        f"torch {packages.get('torch')}, triton {packages.get('triton')}, seed {environment.get('seed')}.",
        "",
    ]
    columns = tables.columns(report.runs)
    sentences = report.sentences()
    for name in report.workloads:
        runs = report.runs[report.runs["workload"] == name]
        lines += [f"## {name}", "", *([report.about[name], ""] if report.about.get(name) else []), sentences[name], ""]
        twin = _twin(report, name)
        if twin is not None:
            lines += ["| engine | " + " | ".join(twin["headings"]) + " |", "|---|" + "---:|" * len(twin["headings"])]
            lines += [f"| {engine} | " + " | ".join(cells) + " |" for engine, cells in twin["rows"]]
            lines += ["", *(f"- {text}" for text in twin["sentences"]), ""]
        if runs.empty:
            continue
        lines += ["| mode | " + " | ".join(c.heading for c in columns) + " |", "|---|" + "---:|" * len(columns)]
        for _, run in runs.iterrows():
            lines.append(f"| {run['mode']} | " + " | ".join(c.cell(run)[0] for c in columns) + " |")
        lines.append("")
        if environment.get("is_interpreted"):
            lines += [f"forward, backward and host us/op: {INTERPRETED}.", ""]
        changes = _changes(report, name)
        if changes:
            lines += ["| " + " | ".join(tables.CHANGE_HEADINGS) + " |", "|---|---|" + "---:|" * 6]
            lines += ["| " + " | ".join(tables.change_cells(row)) + " |" for _, row in changes]
            lines.append("")
        for stem, says, _ in figures.get(name, []):
            lines += [f"![{says}](plots/{stem}.png)", ""]
    lines += ["## The columns", "", *(f"- {c.heading}: {c.meaning}." for c in columns), ""]
    return "\n".join(lines)
