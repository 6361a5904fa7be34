"""The plot of a comparison: bytes kept before, what each group adds or takes away, bytes kept after."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from tgrad.profiler.plots import STYLE, _bytes_axis, _panel
from tgrad.profiler.plots_kept import _short
from tgrad.profiler.units import show_bytes, signed

STEPS = 12  # groups; of more, the smallest changes are added up
MORE, LESS, TOTAL = "#B0124A", "#00785A", "#8A9097"


def steps(saved: pd.DataFrame, workload: str, mode: str) -> list[tuple[str, int]]:
    """(group, change in bytes) of one run, the largest first; the smallest added up as the last.

    Args:
        saved: `Comparison.saved`.
    """
    mine = saved[(saved["workload"] == workload) & (saved["mode"] == mode) & (saved["bytes_change"] != 0)]
    keys = [c for c in mine.columns if c not in ("workload", "mode") and not c.startswith(("bytes_", "tensors_"))]
    found = []
    for _, row in mine.iterrows():
        words = [str(row[k]) if row[k] != "" else "(top level)" if k == "module" else "" for k in keys]
        found.append((" · ".join(w for w in words if w), int(row["bytes_change"])))
    if len(found) > STEPS:
        rest = found[STEPS - 1 :]
        found = [*found[: STEPS - 1], (f"{len(rest)} others", sum(n for _, n in rest))]
    return found


def waterfall(before: int, changes: list[tuple[str, int]], after: int, title: str) -> Figure:
    """Bars from `before`, by each of `changes`, to `after`. What the changes do not explain is a bar of its own."""
    left = after - before - sum(n for _, n in changes)
    rows = [*changes, ("not by saved tensor", left)] if left else changes
    labels = ["before", *(name for name, _ in rows), "after"]
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(7.2, 1.2 + 0.3 * len(labels)), layout="constrained")
        ax = fig.subplots()
        at, most = before, max(before, after, 1)
        for _, change in rows:
            at += change
            most = max(most, at)
        _bar(ax, 0, 0, before, TOTAL, show_bytes(before), most)
        at = before
        for y, (_, change) in enumerate(rows, 1):
            _bar(ax, y, min(at, at + change), abs(change), MORE if change > 0 else LESS, signed(change), most)
            at += change
        _bar(ax, len(rows) + 1, 0, after, TOTAL, show_bytes(after), most)
        ax.set_yticks(range(len(labels)), [_short(name, 44) for name in labels])
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, most * 1.2)
        ax.set_xlabel(f"kept for backward, {_bytes_axis(ax.xaxis, most)}")
        _panel(fig, title)
    return fig


def _bar(ax: object, y: int, left: float, size: float, colour: str, text: str, most: float) -> None:
    ax.barh(y, size, left=left, height=0.66, color=colour, linewidth=0)  # type: ignore[attr-defined]
    ax.text(left + size + 0.012 * most, y, text, va="center", fontsize=9)  # type: ignore[attr-defined]
