"""A comparison as the terminal, JSON, Markdown and an HTML page show it; the tables are the same in all."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tgrad.profiler import output
from tgrad.profiler.compare import ALPHA, Change, Comparison
from tgrad.profiler.environment import INTERPRETED
from tgrad.profiler.reading import Loaded
from tgrad.profiler.units import show_bytes, show_ms, signed

if TYPE_CHECKING:
    from rich.console import Console

TEST = f"p: of the one-sided rank test (Mann-Whitney); below {ALPHA} the difference is more than chance."


@dataclass(frozen=True)
class Table:
    """Headings, rows of (text, value) cells, and which way each row goes: 1 more, -1 less, 0 neither.

    left: how many first columns hold words.
    """

    title: str
    headings: tuple[str, ...]
    rows: list[tuple[tuple[str, float | str], ...]]
    ways: list[int]
    left: int


def tables(found: Comparison) -> list[Table]:
    """The tables of a comparison, those that have rows: figures in bytes that differ, saved bytes by group, times."""
    return [t for t in (_figures(found), _groups(found), _times(found)) if t.rows]


def _way(n: float) -> int:
    return int(n > 0) - int(n < 0)


def _figures(found: Comparison) -> Table:
    differ = [c for c in found.bytes if c.grown]
    rows: list[tuple[tuple[str, float | str], ...]] = [
        (
            (c.workload, c.workload), (c.mode, c.mode), (c.metric, c.metric), (show_bytes(c.before), c.before),
            (show_bytes(c.after), c.after), (f"{signed(c.grown)} ({c.grown:+,.0f} B)", c.grown),
            (percent(c), c.grown / c.before if c.before else math.inf),
        )
        for c in differ
    ]  # fmt: skip
    headings = ("workload", "mode", "figure", "before", "after", "change", "in %")
    return Table("Bytes that differ", headings, rows, [_way(c.grown) for c in differ], 3)


def _groups(found: Comparison) -> Table:
    saved = found.saved
    keys = [c for c in saved.columns if not c.endswith(("_before", "_after", "_change"))]
    rows: list[tuple[tuple[str, float | str], ...]] = []
    for _, row in saved.iterrows():
        words = [str(row[k]) if row[k] != "" else "(top level)" if k == "module" else "" for k in keys]
        rows.append((
            *((w, w) for w in words), (show_bytes(row["bytes_before"]), row["bytes_before"]),
            (show_bytes(row["bytes_after"]), row["bytes_after"]), (signed(row["bytes_change"]), row["bytes_change"]),
            (f"{row['tensors_before']} -> {row['tensors_after']}", row["tensors_after"] - row["tensors_before"]),
        ))  # fmt: skip
    ways = [_way(n) for n in saved["bytes_change"]] if len(saved) else []
    return Table("Saved tensors that differ", (*keys, "saved before", "after", "change", "tensors"), rows, ways,
                 len(keys))  # fmt: skip


def _times(found: Comparison) -> Table:
    shown = [c for c in found.times if "host" not in c.metric]
    rows: list[tuple[tuple[str, float | str], ...]] = [
        (
            (c.workload, c.workload), (c.mode, c.mode), (c.metric, c.metric), (show_ms(c.before), c.before),
            (show_ms(c.after), c.after), (percent(c), c.grown / c.before if c.before else 0.0), (chance(c.p), c.p),
        )
        for c in shown
    ]  # fmt: skip
    ways = [_way(c.grown) if c.p < ALPHA else 0 for c in shown]
    return Table("Times", ("workload", "mode", "time", "before", "after", "change", "p"), rows, ways, 3)


def chance(p: float, equals: str = "") -> str:
    """A probability to three places: 0.012, and <0.001 of what is smaller."""
    return "<0.001" if p < 0.0005 else f"{equals}{p:.3f}"


def percent(change: Change) -> str:
    """By how much a figure grew, as a share of what it was."""
    return "" if not change.grown else f"{100 * change.grown / change.before:+.1f} %" if change.before else "new"


def verdict(found: Comparison, gated: bool) -> list[str]:
    """A line a regression; else one that there is none, if limits were given."""
    lines = []
    for c, limit in found.failed:
        grown = f"{percent(c)}, p {chance(c.p, '= ')}" if c.metric.endswith("_ms") else f"{c.grown:+,.0f} bytes"
        lines.append(f"REGRESSION {c.workload} in mode {c.mode}: {c.metric} {grown} (--fail-on {limit.text})")
    return lines or (["No regression."] if gated else [])


def same(found: Comparison) -> str:
    """That all bytes are the same; "" if they are not."""
    differ = any(c.grown for c in found.bytes)
    return "" if differ else f"Bytes: all {len(found.bytes)} figures are the same, to the byte."


def as_json(found: Comparison) -> dict[str, Any]:
    """All figures, unrounded; what is NaN is null."""

    def plain(c: Change) -> dict[str, Any]:
        return {
            "workload": c.workload, "mode": c.mode, "metric": c.metric, "before": float(c.before),
            "after": float(c.after), "p": None if math.isnan(c.p) else c.p,
        }  # fmt: skip

    return {
        "bytes": [plain(c) for c in found.bytes], "times": [plain(c) for c in found.times],
        "saved": json.loads(found.saved.to_json(orient="records")), "notes": found.notes,
        "regressions": [{**plain(c), "limit": x.text} for c, x in found.failed],
    }  # fmt: skip


def show(out: Console, found: Comparison, interpreted: bool, gated: bool) -> None:
    """Print a comparison."""
    from rich.table import Table as Rich
    from rich.text import Text

    if same(found):
        out.print(same(found))
    colours = {1: "red", -1: "green", 0: ""}
    for t in tables(found):
        shown = Rich(show_edge=False, pad_edge=False, header_style="bold")
        for i, heading in enumerate(t.headings):
            shown.add_column(heading, justify="left" if i < t.left else "right", no_wrap=i >= t.left)
        change = t.headings.index("change")
        for cells, way in zip(t.rows, t.ways):
            shown.add_row(*(Text(text, style=colours[way] if i == change else "") for i, (text, _) in enumerate(cells)))
        out.print()
        out.print(shown)
    if found.times:
        out.print(TEST)
        if interpreted:
            out.print(Text(f"times: {INTERPRETED}", style="yellow"))
    for note in found.notes:
        out.print(Text(f"note: {note}", style="dim"))
    out.print()
    for line in verdict(found, gated):
        out.print(Text(line, style="bold red" if found.failed else "green"))


# --- files ------------------------------------------------------------------------------------------------------------
LONGEST = 60  # rows of a table on the page; the rest is in compare.json


def save(found: Comparison, a: Loaded, b: Loaded, gated: bool, out: str | os.PathLike, force: bool = False) -> Path:
    """Write the folder `out`: compare.html, compare.md, compare.json, and a plot a run whose saved bytes changed.

    Raises:
        ProfilerError: the folder cannot be written, or may not be replaced.
    """
    from tgrad.profiler import html, plots

    with output.folder(out, force) as folder:
        (folder / "plots").mkdir()
        drawn = []
        for stem, says, figure in _figures_of(found):
            text = plots.svg(figure, says)
            (folder / "plots" / f"{stem}.png").write_bytes(plots.png(figure))
            (folder / "plots" / f"{stem}.svg").write_text(plots.for_file(text), encoding="utf-8")
            drawn.append((stem, says, plots.for_page(text)))
        interpreted = INTERPRETED if found.times and a.environment.get("is_interpreted") else ""
        shown: dict[str, Any] = {
            "before": a.path, "after": b.path, "tables": tables(found), "verdict": verdict(found, gated),
            "failed": bool(found.failed), "same": same(found), "notes": found.notes, "figures": drawn,
            "test": TEST if found.times else "", "interpreted": interpreted, "longest": LONGEST,
        }  # fmt: skip
        facts = [(x.path, html.facts(x.environment)) for x in (a, b)]
        page = html.template("compare.html").render(**shown, facts=facts)
        (folder / "compare.html").write_text(page, encoding="utf-8")
        (folder / "compare.md").write_text(_markdown(shown), encoding="utf-8")
        (folder / "compare.json").write_text(json.dumps(as_json(found), indent=2) + "\n", encoding="utf-8")
    return Path(out).expanduser().resolve()


def _figures_of(found: Comparison) -> list[tuple[str, str, Any]]:
    """(file stem, what to see, figure) of each run whose saved bytes changed."""
    from tgrad.profiler import change_plot, figures

    drawn = []
    for c in found.bytes:
        if c.metric != "graph_bytes" or not c.grown:
            continue
        changes = change_plot.steps(found.saved, c.workload, c.mode)
        title = f"{c.workload} in mode {c.mode}: what changed"
        figure = change_plot.waterfall(int(c.before), changes, int(c.after), title)
        run = f"{c.workload} in mode {c.mode}"
        says = f"{run}: read downwards; each bar is what one group adds to the bytes kept, or takes away."
        drawn.append((figures.stem(f"{c.workload}-{c.mode}-change"), says, figure))
    return drawn


def _markdown(shown: dict[str, Any]) -> str:
    lines = [f"# {shown['after']} against {shown['before']}", "", *(f"**{line}**" for line in shown["verdict"]), ""]
    if shown["same"]:
        lines += [shown["same"], ""]
    for t in shown["tables"]:
        lines += [f"## {t.title}", "", "| " + " | ".join(t.headings) + " |"]
        lines.append("|" + "---|" * t.left + "---:|" * (len(t.headings) - t.left))
        lines += ["| " + " | ".join(text.replace("|", "\\|") for text, _ in cells) + " |" for cells in t.rows[:LONGEST]]
        more = len(t.rows) - LONGEST
        lines += ["", *([f"{more} more rows in compare.json.", ""] if more > 0 else [])]
    if shown["test"]:
        lines += [shown["test"], ""]
    if shown["interpreted"]:
        lines += [f"Times: **{shown['interpreted']}**.", ""]
    lines += [f"- note: {note}" for note in shown["notes"]] + [""] * bool(shown["notes"])
    for stem, says, _ in shown["figures"]:
        lines += [f"![{says}](plots/{stem}.png)", ""]
    return "\n".join(lines)
