"""The figure of times: how each mode's runs are distributed, and how sure their median is."""

from __future__ import annotations

import math

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from tgrad.profiler.latency import interval
from tgrad.profiler.plots import MODE_COLOURS, STYLE, _panel, _time_axis
from tgrad.profiler.ranks import median
from tgrad.profiler.records import ALL_MODES
from tgrad.profiler.units import show_ms


def latency(samples: pd.DataFrame, workload: str, interpreted: bool) -> Figure | None:
    """A panel a phase (forward, backward, step): a mode's share of runs within a time, and its median with its
    95 % interval. None without any times.

    Args:
        samples: of a report, wall_ms; warm-up is left out.
    """
    warm = samples["is_warmup"].astype(str).str.lower() == "true"
    mine = samples[(samples["workload"] == workload) & ~warm & samples["wall_ms"].notna()]
    phases = [p for p in ("forward", "backward", "step") if (mine["phase"] == p).any()]
    if not phases:
        return None
    modes = [m for m in ALL_MODES if (mine["mode"] == m).any()]
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(7.2, 1.3 + 1.9 * len(phases)), layout="constrained")
        axes = fig.subplots(len(phases), 1, squeeze=False)[:, 0]
        for ax, phase in zip(axes, phases):
            longest = 0.0
            for i, mode in enumerate(modes):
                values = sorted(mine[(mine["mode"] == mode) & (mine["phase"] == phase)]["wall_ms"].tolist())
                if not values:
                    continue
                colour = MODE_COLOURS.get(mode, "#1F2328")
                share = [(k + 1) / len(values) for k in range(len(values))]
                ax.step([values[0], *values], [0, *share], where="post", color=colour, linewidth=1.6)
                low, high = interval(values)
                middle, at = median(values), -0.1 - 0.13 * i
                if not math.isnan(low):
                    ax.plot([low, high], [at, at], color=colour, linewidth=2.4, solid_capstyle="butt")
                label = f"{mode}: {show_ms(middle)}"
                ax.plot(middle, at, "o", color=colour, markersize=4.5, label=label)
                longest = max(longest, values[-1])
            ax.set_ylim(-0.1 - 0.13 * len(modes), 1.05)
            ax.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
            ax.set_xlim(0, longest * 1.05 or 1)
            ax.set_title(phase, loc="left", fontweight="bold", fontsize=10)
            ax.legend(frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
            _time_axis(ax, longest, interpreted and ax is axes[-1])
        fig.supylabel("runs that took no longer", fontsize=10)
        _panel(fig, f"{workload}: how long one batch takes")
    return fig
