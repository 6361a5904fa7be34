"""The report as one HTML file that needs no network."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import jinja2

from tgrad.profiler import datafiles, sections, tables
from tgrad.profiler.environment import INTERPRETED

if TYPE_CHECKING:
    from tgrad.profiler.report import Report

Figures = dict[str, list[tuple[str, str, str]]]  # workload -> (file stem, what to see, svg)


@cache
def template(name: str = "report.html") -> jinja2.Template:
    """One of templates/."""
    loader = jinja2.PackageLoader("tgrad.profiler")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)


def page(report: Report, figures: Figures) -> str:
    """The whole page, figures and style inside."""
    return _render(report, figures, whole=True)


def fragment(report: Report) -> str:
    """Tables and words, to put into another page."""
    return _render(report, {}, whole=False)


def _render(report: Report, figures: Figures, whole: bool) -> str:
    return template().render(
        whole=whole,
        workloads=[sections.workload(report, name, figures.get(name, [])) for name in report.workloads],
        columns=tables.columns(report.runs),
        change_headings=tables.CHANGE_HEADINGS,
        facts=facts(report.environment),
        interpreted=INTERPRETED if report.environment.get("is_interpreted") else None,
        created=report.records.runs[0].created_at.replace("T", " ").replace("+00:00", " UTC")
        if report.records.runs
        else "",
        files=[f"{name}.csv" for name in report.frames()],
        no_parquet="" if datafiles.has_parquet() else datafiles.NO_PARQUET,
        modes=list(dict.fromkeys(r.mode for r in report.records.runs)) or ["PyTorch"],
    )


def facts(environment: dict[str, Any]) -> list[tuple[str, str]]:
    """What env.json says, flat, as (name, text)."""
    found: list[tuple[str, str]] = []
    for key, value in environment.items():
        if isinstance(value, dict):
            found += [(f"{key}: {k}", str(v)) for k, v in value.items() if v not in (None, "")]
        elif isinstance(value, list):
            found.append((key, " ".join(map(str, value))))
        elif value is not None:
            found.append((key, str(value)))
    return found
