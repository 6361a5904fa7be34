"""The plot of a leak: live bytes after each iteration, and the line through them with its 95 % band."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tgrad.profiler import datafiles, fit, output, plots
from tgrad.profiler.plots import STYLE, _bytes_axis, _panel
from tgrad.profiler.units import show_bytes

if TYPE_CHECKING:
    from tgrad.profiler.leaks import Leaks

GROWS, STAYS = "#B0124A", "#00785A"


def draw(found: Leaks) -> Figure:
    """One panel: dots that are measured, the line and its band, red where memory grows."""
    x = list(range(len(found.live_bytes)))
    line = fit.line(x, found.live_bytes)
    colour = GROWS if found.found else STAYS
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(7.2, 3.4), layout="constrained")
        ax = fig.subplots()
        y, wide = [line.at(v) for v in x], [line.half_width(v) for v in x]
        ax.plot(x, y, color=colour, linewidth=1.6)
        ax.fill_between(x, [a - b for a, b in zip(y, wide)], [a + b for a, b in zip(y, wide)], color=colour, alpha=0.15,
                        linewidth=0)  # fmt: skip
        ax.plot(x, found.live_bytes, "o", color=colour, markersize=5)
        most = max(found.live_bytes)
        ax.set_ylim(0, most * 1.15 or 1)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("iteration")
        ax.set_ylabel(f"live after it, {_bytes_axis(ax.yaxis, most)}")
        slope, ci = show_bytes(round(abs(found.slope_bytes))), show_bytes(round(found.slope_ci_bytes))
        says = f"{slope} ± {ci} more after each iteration" if found.found else "memory does not grow"
        _panel(fig, f"{says} (95 % interval, {found.iterations} iterations)")
    return fig


def save(found: Leaks, out: str | os.PathLike, force: bool = False) -> Path:
    """Write the folder `out`: leaks.csv (a row an iteration) and the plot as PNG and SVG.

    Raises:
        ProfilerError: the folder cannot be written, or may not be replaced.
    """
    live = found.live_bytes
    frame = pd.DataFrame({"iteration": range(len(live)), "live_bytes": live})
    with output.folder(out, force) as folder:
        datafiles.write(folder, {"leaks": frame})
        figure = draw(found)
        (folder / "leaks.png").write_bytes(plots.png(figure))
        text = plots.svg(figure, "live bytes after each iteration")
        (folder / "leaks.svg").write_text(plots.for_file(text), encoding="utf-8")
    return Path(out).expanduser().resolve()
