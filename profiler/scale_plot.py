"""The plot of the scale law: peak memory against batch size, a line a mode with its band, and what must fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure

from tgrad.profiler import fit
from tgrad.profiler.plots import MODE_COLOURS, STYLE, _bytes_axis, _panel
from tgrad.profiler.units import show_bytes

if TYPE_CHECKING:
    from tgrad.profiler.scale import Scale


def draw(scale: Scale) -> Figure:
    """One panel; the first modes are drawn wide, so that those which coincide show at their edges."""
    modes = list(dict.fromkeys(p.mode for p in scale.points))
    most_rows = max(p.batch_size for p in scale.points)
    capacity = max((x.memory_bytes for x in scale.laws), default=-1)
    top = max(p.peak_bytes for p in scale.points)
    within = capacity > 0 and capacity <= 1.6 * top
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(7.2, 4.2), layout="constrained")
        ax = fig.subplots()
        for i, mode in enumerate(modes):
            mine = [p for p in scale.points if p.mode == mode]
            fitted = [p for p in mine if not p.is_held_out]
            line = fit.line([p.batch_size for p in fitted], [p.peak_bytes for p in fitted])
            x = [most_rows * 1.05 * k / 40 for k in range(41)]
            y, wide = [line.at(v) for v in x], [line.half_width(v) for v in x]
            colour = MODE_COLOURS.get(mode, "#1F2328")
            law = scale.law(mode)
            label = f"{mode}: {show_bytes(law.fixed_bytes)} + {show_bytes(law.per_row_bytes)} a row"
            wide_first = 1.6 + 1.4 * (len(modes) - 1 - i)
            ax.plot(x, y, color=colour, linewidth=wide_first, label=label, solid_capstyle="butt")
            low, high = ([a + sign * b for a, b in zip(y, wide)] for sign in (-1, 1))
            ax.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
            for p in mine:
                ax.plot(
                    p.batch_size, p.peak_bytes, "o", color=colour, markersize=5 + wide_first,
                    markerfacecolor="white" if p.is_held_out else colour,
                )  # fmt: skip
        if within:
            ax.axhline(capacity, color="#1F2328", linewidth=1.2, linestyle=":")
            ax.text(0, capacity, f" {show_bytes(capacity)} to fit", va="bottom", fontsize=9)
        ax.set_xlim(0, most_rows * 1.05)
        ax.set_ylim(0, max(top, capacity if within else 0) * 1.12)
        ax.set_xlabel("batch size (hollow: held out of the fit, to check it)")
        ax.set_ylabel(f"peak memory, {_bytes_axis(ax.yaxis, top)}")
        ax.legend(frameon=False, fontsize=9, loc="upper left")
        _panel(fig, f"{scale.workload}: how peak memory grows with the batch")
    return fig
