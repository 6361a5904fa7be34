"""The report's figures. Each takes frames and returns a matplotlib Figure; nothing here runs the engine."""

from __future__ import annotations

import io
import itertools
import re
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tgrad.profiler import aggregate
from tgrad.profiler.environment import INTERPRETED
from tgrad.profiler.records import CATEGORIES
from tgrad.profiler.units import show_bytes, unit_of

# Okabe and Ito's colours, told apart by the colour-blind; modes and categories share none that meet in one figure.
MODE_COLOURS = {
    "grad": "#B0124A",
    "no_grad": "#00639C",
    "inference_mode": "#00785A",
    "set_grad_enabled_false": "#5B4FA0",
    "grad+checkpoint": "#8A5A00",
    "grad+save_on_cpu": "#4A5560",
    "keep": "#6B7075",
    "lean": "#C2410C",
    "leanest": "#6D28D9",
}
CATEGORY_COLOURS = {
    "parameter": "#9AA0A6",
    "optimizer": "#5F8A6B",
    "output": "#56B4E9",
    "input": "#E69F00",
    "intermediate": "#D55E00",
    "gradient": "#8F5BB5",
    "temporary": "#CFD4D9",
    "constant": "#6B7075",
    "other": "#E8EAED",
}
CATEGORY_NAMES = {
    "parameter": "parameters and buffers",
    "optimizer": "optimiser state",
    "output": "outputs held",
    "input": "inputs",
    "intermediate": "intermediates kept for backward",
    "gradient": "gradients",
    "temporary": "temporary",
    "constant": "constants",
    "other": "other",
}
# Paper in light and in dark surroundings: figures keep their own background.
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E3E5E8",
    "grid.linewidth": 0.8,
    "axes.edgecolor": "#8A9097",
    "text.color": "#1F2328",
    "axes.labelcolor": "#1F2328",
    "xtick.color": "#3C4248",
    "ytick.color": "#3C4248",
    "figure.facecolor": "#FFFFFF",
    "svg.fonttype": "path",
    "svg.hashsalt": "tgrad",
}


def _bytes_axis(axis: Any, most: float) -> str:
    """Let an axis in bytes show one unit; returns its name."""
    name, scale = unit_of(max(most, 1))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / scale:g}" if scale > 1 else f"{int(v)}"))
    # Ticks at round numbers of the unit: the locator sees them divided by it.
    axis.set_major_locator(_Scaled(scale))
    return name


class _Scaled(MaxNLocator):
    """Round ticks in another unit."""

    def __init__(self, scale: int) -> None:
        super().__init__(nbins=6, steps=[1, 2, 2.5, 5, 10])
        self.scale = scale

    def tick_values(self, vmin: float, vmax: float) -> Any:
        ticks: Any = super().tick_values(vmin / self.scale, vmax / self.scale)
        return ticks * self.scale


def _time_axis(ax: Any, longest: float, interpreted: bool) -> None:
    """An axis in ms, shown in the unit that suits; says so if an interpreter took that time."""
    name, scale = ("s", 1000.0) if longest >= 2000 else ("ms", 1.0) if longest >= 2 else ("us", 0.001)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / scale:g}"))
    ax.set_xlabel(f"time, {name}" + (f" ({INTERPRETED})" if interpreted else ""))


def _legend(fig: Figure, categories: list[str]) -> None:
    patches = [
        Patch(facecolor=CATEGORY_COLOURS[c], edgecolor="#6B7075", linewidth=0.4, label=CATEGORY_NAMES[c])
        for c in categories
    ]
    fig.legend(
        handles=patches, loc="outside lower left", ncols=min(3, len(patches)), frameon=False, fontsize=9,
        handlelength=1.2,
    )  # fmt: skip


def _panel(fig: Figure, title: str) -> None:
    fig.suptitle(title, x=0.01, ha="left", fontsize=11.5, fontweight="bold")


def peak_by_mode(live: dict[str, pd.DataFrame], workload: str) -> Figure:
    """Bars of the peak, stacked by what was live then.

    Args:
        live: mode -> `aggregate.live_by_category`.
    """
    peaks = {mode: aggregate.at_peak(table) for mode, table in live.items()}
    used = [c for c in CATEGORIES if any(p[c] for p in peaks.values())]
    most = max(sum(p.values()) for p in peaks.values())
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(7.2, 1.55 + 0.52 * len(peaks) + 0.2 * -(-len(used) // 3)), layout="constrained")
        ax = fig.subplots()
        for y, peak in enumerate(peaks.values()):
            left = 0
            for c in used:
                ax.barh(y, peak[c], left=left, height=0.62, color=CATEGORY_COLOURS[c], edgecolor="white", linewidth=0.6)
                left += peak[c]
            ax.text(left + most * 0.012, y, show_bytes(left), va="center", fontsize=10, fontweight="bold")
        ax.set_yticks(range(len(peaks)), list(peaks))
        for label, mode in zip(ax.get_yticklabels(), peaks, strict=True):
            label.set_color(MODE_COLOURS.get(mode, "#1F2328"))
            label.set_fontweight("bold")
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, most * 1.15 or 1)
        ax.set_xlabel(f"live memory at the peak, {_bytes_axis(ax.xaxis, most)}")
        _panel(fig, f"{workload}: the most memory that each mode needs at once")
        _legend(fig, used)
    return fig


BANDS = {"forward": "#F3F7FB", "backward": "#FDF1EA", "step": "#EFF6F0"}


def memory_over_time(live: dict[str, pd.DataFrame], workload: str, interpreted: bool) -> Figure:
    """Live memory over time, a panel a mode, stacked by category, with bands behind the forward and the backward."""
    used = [c for c in CATEGORIES if any(table[c].any() for table in live.values())]
    most = max(table[list(CATEGORIES)].sum(axis=1).max() for table in live.values())
    longest = max(table["t_ns"].max() for table in live.values()) / 1e6
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(7.2, 1.2 + 1.6 * len(live) + 0.2 * -(-len(used) // 3)), layout="constrained")
        axes = fig.subplots(len(live), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for ax, (mode, table) in zip(axes, live.items(), strict=True):
            _timeline(ax, table, used, most, longest)
            ax.set_title(mode, loc="left", color=MODE_COLOURS.get(mode, "#1F2328"), fontweight="bold", fontsize=10)
        axes[0].set_ylim(0, most * 1.32 or 1)
        axes[0].set_xlim(0, longest or 1)
        unit = _bytes_axis(axes[0].yaxis, most)
        _time_axis(axes[-1], longest, interpreted)
        fig.supylabel(f"live memory, {unit}", fontsize=10)
        _panel(fig, f"{workload}: what is live while the forward and the backward run")
        _legend(fig, used)
    return fig


def _timeline(ax: Any, table: pd.DataFrame, used: list[str], most: float, longest: float) -> None:
    t = table["t_ns"].to_numpy() / 1e6
    layers = table[used].to_numpy().T
    shown = _outline(layers.sum(axis=0))
    some = layers.any(axis=1)
    colours = [CATEGORY_COLOURS[c] for c, any_ in zip(used, some) if any_]
    if colours:  # a script may have no tensors
        ax.stackplot(t[shown], layers[some][:, shown], step="post", colors=colours, linewidth=0)
    for phase, colour in BANDS.items():
        is_mine = (table["phase"] == phase).to_numpy()
        mine = t[is_mine]
        if not len(mine) or (is_mine[1:] > is_mine[:-1]).sum() + is_mine[0] > 1:  # phases that recur, as in a script
            continue
        ax.axvspan(mine[0], mine[-1], color=colour, zorder=-1, linewidth=0)
        wide = mine[-1] - mine[0] > 0.1 * longest
        ax.text(
            (mine[0] + mine[-1]) / 2 if wide else mine[-1], most * 1.3, phase if wide else f" {phase}",
            ha="center" if wide else "left", va="top", fontsize=8.5, color="#5A6067",
        )  # fmt: skip
    total = layers.sum(axis=0)
    top = int(total.argmax())
    ax.plot(t[top], total[top], "v", color="#1F2328", markersize=5, clip_on=False, zorder=5)
    right = t[top] > 0.7 * longest
    ax.annotate(
        f"peak {show_bytes(total[top])}", (t[top], total[top]), xytext=(-6 if right else 6, 1),
        textcoords="offset points", fontsize=8.5, ha="right" if right else "left", va="bottom", fontweight="bold",
    )  # fmt: skip


MOMENTS = 240  # of a timeline with more, the highest and the lowest of each stretch are drawn


def _outline(total: Any) -> Any:
    """Which moments to draw, as ascending indices: all of few; of many, those that keep the outline and the peak."""
    if len(total) <= MOMENTS:
        return np.arange(len(total))
    kept = {0, len(total) - 1}
    for stretch in np.array_split(np.arange(len(total)), MOMENTS // 2):
        kept |= {int(stretch[total[stretch].argmax()]), int(stretch[total[stretch].argmin()])}
    return np.array(sorted(kept))


LONGEST = 14  # bars; of deeper models the smallest are added up


def saved_by_module(table: pd.DataFrame, workload: str) -> Figure | None:
    """Bytes that the graph keeps, a bar a module and op. None if it keeps nothing.

    Args:
        table: `aggregate.saved_by_module`.
    """
    if table.empty:
        return None
    if len(table) > LONGEST:
        order = table.sum(axis=1).sort_values(ascending=False, kind="stable").index
        kept = set(order[: LONGEST - 1])
        rest = table[[label not in kept for label in table.index]]
        table = pd.concat(
            [table[[label in kept for label in table.index]], rest.sum().to_frame(f"{len(rest)} others").T]
        )
    most = table.sum(axis=1).max()
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(7.2, 1.45 + 0.3 * len(table)), layout="constrained")
        ax = fig.subplots()
        for y, (_, values) in enumerate(table.iterrows()):
            left = 0
            for c in table.columns:
                ax.barh(
                    y, values[c], left=left, height=0.66, color=CATEGORY_COLOURS[c], edgecolor="white", linewidth=0.6
                )
                left += values[c]
            ax.text(left + most * 0.012, y, show_bytes(left), va="center", fontsize=9)
        ax.set_yticks(range(len(table)), list(table.index))
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, most * 1.17)
        ax.set_xlabel(f"kept by the graph for backward, {_bytes_axis(ax.xaxis, most)}")
        _panel(fig, f"{workload}: which module and op kept the bytes, in the order of the forward")
        _legend(fig, list(table.columns))
    return fig


def png(fig: Figure) -> bytes:
    """The figure as a PNG file, at 160 dots an inch."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


_figures = itertools.count(1)


def _rounded(path: re.Match) -> str:
    """A path's coordinates to a tenth of a point: a third of the size, and the same picture."""
    return re.sub(r"(\.\d)\d+", r"\1", path[0])


NAMESPACES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
# What takes a page's colours, so that a figure is dark in dark surroundings: paper, ink, grid, bands.
THEME = {
    "#ffffff": "--paper", "#1f2328": "--ink", "#3c4248": "--ink", "#5a6067": "--soft", "#8a9097": "--soft",
    "#e3e5e8": "--line", "#f3f7fb": "--band-forward", "#fdf1ea": "--band-backward", "#eff6f0": "--band-step",
    "#b0124a": "--grad", "#00639c": "--no_grad", "#00785a": "--inference_mode",
    "#5b4fa0": "--mode-4", "#8a5a00": "--mode-5", "#4a5560": "--mode-6",
}  # fmt: skip


def for_page(svg_text: str) -> str:
    """An `svg` in the colours of the page that it is put into."""
    return re.sub(
        r"(fill|stroke): (#[0-9a-f]{6})\b",
        lambda m: f"{m[1]}: var({THEME[m[2]]})" if m[2] in THEME else m[0],
        svg_text,
    )


def for_file(svg_text: str) -> str:
    """An `svg` as a file of its own: a page needs no namespaces, a file does."""
    return svg_text.replace("<svg ", f"<svg {NAMESPACES} ", 1) + "\n"


def svg(fig: Figure, title: str) -> str:
    """The figure as an <svg> element: ids of its own, no declaration, scalable."""
    prefix = f"f{next(_figures)}-"
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', text)
    text = re.sub(r'(xlink:href="#|href="#|url\(#)', rf"\g<1>{prefix}", text)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)  # a page needs none
    text = re.sub(r'\bd="[^"]*"', _rounded, text)
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    label = title.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
