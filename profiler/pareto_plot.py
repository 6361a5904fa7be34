"""The plot of what-ifs: bytes kept for backward against time, predicted and measured, and the front to choose from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure

from tgrad.profiler.plots import STYLE, _bytes_axis, _panel

if TYPE_CHECKING:
    from tgrad.profiler.whatif import WhatIf

COLOURS = ("#1F2328", "#D81B60", "#1E88E5", "#7A5C00", "#00796B", "#8E24AA", "#C75B12", "#546E7A")


def draw(found: WhatIf) -> Figure:
    """A dot a change, a hollow one where it was predicted; a line along the changes that none beats."""
    ran = [o for o in found.outcomes if not math.isnan(o.measured_graph_bytes)]
    most = max((max(o.measured_graph_bytes, o.predicted_graph_bytes) for o in ran), default=1) or 1
    slowest = max((max(o.measured_ms, o.predicted_ms) for o in ran), default=1.0) or 1.0
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(7.2, 4.6), layout="constrained")
        ax = fig.subplots()
        front = sorted(found.front, key=lambda o: o.measured_ms)
        ax.plot(
            [o.measured_ms for o in front], [o.measured_graph_bytes for o in front], color="#9AA0A6", linewidth=1.4,
            zorder=1, drawstyle="steps-post",
        )  # fmt: skip
        for i, o in enumerate(ran):
            colour = COLOURS[i % len(COLOURS)]
            ax.plot(
                [o.predicted_ms, o.measured_ms], [o.predicted_graph_bytes, o.measured_graph_bytes], color=colour,
                linewidth=0.9, linestyle=":", zorder=2,
            )  # fmt: skip
            ax.plot(o.predicted_ms, o.predicted_graph_bytes, "o", color=colour, markerfacecolor="white", zorder=3)
            ax.plot(o.measured_ms, o.measured_graph_bytes, "o", color=colour, label=o.change, zorder=4)
        ax.set_xlim(0, slowest * 1.08)
        ax.set_ylim(0, most * 1.1)
        note = " (in the interpreter: not GPU performance)" if found.is_interpreted else ""
        ax.set_xlabel(f"ms of a forward and its backward{note}")
        ax.set_ylabel(f"kept for backward, {_bytes_axis(ax.yaxis, most)}")
        fig.legend(loc="outside lower left", ncols=2, frameon=False, fontsize=9)
        _panel(fig, f"{found.workload}: bytes against time (hollow: predicted; line: none is better in both)")
    return fig
