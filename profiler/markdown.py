"""The report as Markdown: summary.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tgrad.profiler import aggregate, datafiles, sections, tables, words
from tgrad.profiler.environment import INTERPRETED

if TYPE_CHECKING:
    from tgrad.profiler.html import Figures
    from tgrad.profiler.report import Report


def page(report: Report, figures: Figures) -> str:
    """summary.md: words, tables and the plots of each workload."""
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
        twin = sections.twin(report, name)
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
        changes = sections.changes(report, name)
        if changes:
            headings = tables.CHANGE_HEADINGS
            lines += ["| " + " | ".join(headings) + " |", "|---|---|" + "---:|" * (len(headings) - 2)]
            lines += ["| " + " | ".join(tables.change_cells(row)) + " |" for _, row in changes]
            lines += ["", *(f"- {text}" for text in sections.change_sentences(report, name)), ""]
        most = words.keepers(aggregate.saved_by_module(report.saved, name))
        lines += [most, ""] if most else []
        law = sections.scale(report, name)
        if law is not None:
            lines += ["| " + " | ".join(law["headings"]) + " |", "|---|---|" + "---:|" * (len(law["headings"]) - 2)]
            lines += ["| " + " | ".join(cells) + " |" for cells in law["rows"]]
            lines += ["", *(f"- {text}" for text in law["sentences"]), ""]
        for stem, says, _ in figures.get(name, []):
            lines += [f"![{says}](plots/{stem}.png)", ""]
    if not datafiles.has_parquet():
        lines += [datafiles.NO_PARQUET, ""]
    lines += ["## The columns", "", *(f"- {c.heading}: {c.meaning}." for c in columns), ""]
    return "\n".join(lines)
