"""Three plots: ratios to PyTorch, percent of the ceilings, and activation memory under each policy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu.rows import Row

MOST = 60  # bars in one plot


def draw(rows: Sequence[Row], title: str, out: Path) -> list[str]:
    """Write those plots for which there are numbers; their names. `title` says which machine they are of."""
    import matplotlib

    matplotlib.use("Agg")
    written = []
    for name, plot in (("ratios.svg", _ratios), ("ceilings.svg", _percents), ("memory.svg", _memory)):
        figure = plot(rows)
        if figure is None:
            continue
        figure.suptitle(title, fontsize=9)
        figure.savefig(out / name, bbox_inches="tight")
        written.append(name)
    return written


def _label(row: Row) -> str:
    return f"{row.case} {row.dtype} {row.shape}, {row.contender}, {row.kind}"


def _ratios(rows: Sequence[Row]) -> Any:
    shown = [r for r in rows if r.contender.startswith("tgrad") and r.ratio and r.ms][:MOST]
    if not shown:
        return None
    figure, axis = _bars(shown, [r.ratio or 0 for r in shown], "time over PyTorch eager's: below 1 is faster")
    axis.axvline(1, color="0.3", linewidth=1)
    axis.set_xscale("log")
    return figure


def _percents(rows: Sequence[Row]) -> Any:
    shown = [r for r in rows if r.contender in ("tgrad", "tgrad fused") and r.percent and r.kind == "device"][:MOST]
    if not shown:
        return None
    figure, axis = _bars(shown, [r.percent or 0 for r in shown], "percent of the same run's copy or cuBLAS rate")
    axis.axvline(100, color="0.3", linewidth=1)
    return figure


def _memory(rows: Sequence[Row]) -> Any:
    shown = [r for r in rows if r.kind in ("saved", "peak") and r.bytes]
    if not shown:
        return None
    figure, axis = _bars(shown, [(r.bytes or 0) / 2**20 for r in shown], "MiB by the CUDA allocator")
    return figure


def _bars(rows: Sequence[Row], values: Sequence[float], about: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1 + 0.2 * len(rows)))
    axis = figure.subplots()
    colours = ["#0072B2" if r.contender.startswith("tgrad") else "#999999" for r in rows]
    axis.barh(range(len(rows)), values, color=colours)
    axis.set_yticks(range(len(rows)), [_label(r) for r in rows], fontsize=6)
    axis.invert_yaxis()
    axis.set_xlabel(about)
    return figure, axis
