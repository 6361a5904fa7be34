"""Which figures a report has, in order, each with the sentence that says what to see in it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from tgrad.profiler import aggregate, lifetimes, plots, plots_kept, plots_times, scale_plot, twins
from tgrad.profiler.records import ALL_MODES

if TYPE_CHECKING:
    from tgrad.profiler.report import Report

SAYS = {
    "peak": "Each bar is the moment when the most memory was live; its parts say what that memory was for.",
    "timeline": "With a graph, memory grows through the forward and the backward gives it back; without one, only what "
    "the caller holds stays.",
    "saved": "The longest bars are the modules and ops to look at first: their bytes wait for backward.",
    "icicle": "Read from left to right, a block splits into what kept its bytes, down to the line of code; the tallest "
    "block on the right is the line that keeps the most.",
    "lifetimes": "Long bars far to the left are memory that waits for the whole pass: the ones to compute again or to "
    "offload.",
    "twin": "Where the two dots of a module lie apart, one engine keeps bytes for backward that the other does not.",
    "latency": "A curve further left is faster; where the intervals below the curves overlap, the medians may be the "
    "same.",
    "scale": "The slope is what one more row of a batch costs; where a line meets the capacity is the largest batch.",
}


def draw(report: Report, workload: str) -> list[tuple[str, str, Figure]]:
    """(file stem, a sentence that says what to see, figure) of each figure of one workload."""
    found: dict[str, Figure | None] = {}
    mine = report.runs[report.runs["workload"] == workload].set_index("mode", drop=False)
    modes = [m for m in ALL_MODES if m in mine.index]
    if modes:
        events = report.events[report.events["workload"] == workload]
        live = {
            m: aggregate.live_by_category(events[events["mode"] == m], aggregate.live_before(mine.loc[m]))
            for m in modes
        }
        interpreted = bool(mine["is_interpreted"].iloc[0])
        found["peak"] = plots.peak_by_mode(live, workload)
        found["timeline"] = plots.memory_over_time(live, workload, interpreted)
        if "grad" in modes:
            found["saved"] = plots.saved_by_module(aggregate.saved_by_module(report.saved, workload), workload)
            found["icicle"] = plots_kept.icicle(plots_kept.saved_paths(report.saved, workload), workload)
            idle = lifetimes.idle(report.saved, report.events, workload)
            found["lifetimes"] = plots_kept.lifetimes(idle, workload, interpreted)
    if len(report.twins) and (report.twins["workload"] == workload).any():
        ours = report.saved[(report.saved["workload"] == workload) & (report.saved["mode"] == "grad")]
        if len(ours):
            theirs = report.twin_saved[report.twin_saved["workload"] == workload]
            found["twin"] = plots_kept.dumbbell(twins.beside(ours, theirs), workload)
    if modes:
        found["latency"] = plots_times.latency(report.samples, workload, interpreted)
    for law in report.scales:
        if law.workload == workload:
            found["scale"] = scale_plot.draw(law)
    return [(f"{stem(workload)}-{name}", SAYS[name], fig) for name, fig in found.items() if fig is not None]


def stem(workload: str) -> str:
    """A workload's name as a part of a file's."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", workload) or "workload"
