"""Figures of what the graph keeps: by module, op and line; from save to use; and beside PyTorch."""

from __future__ import annotations

from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from tgrad.profiler.plots import CATEGORY_COLOURS, LONGEST, STYLE, _bytes_axis, _legend, _panel, _time_axis
from tgrad.profiler.records import CATEGORIES
from tgrad.profiler.units import show_bytes, signed

# One hue a level, from the outermost module to the line.
LEVELS = ("#4F6D8F", "#6C8BAF", "#8AA7C7", "#A9C2DC", "#C6D8EA", "#E0EAF4")
TOP = "(top level)"


def saved_paths(saved: pd.DataFrame, workload: str, mode: str = "grad") -> dict[tuple[str, ...], int]:
    """Bytes kept by path: the module's names from outside in (at most three), op and argument, line; in the order of
    the forward. Parameters and constants are left out."""
    mine = saved[(saved["workload"] == workload) & (saved["mode"] == mode) & (saved["charged_bytes"] > 0)]
    mine = mine[~mine["category"].isin(("parameter", "constant"))]
    found: dict[tuple[str, ...], int] = {}
    names = ("module", "op", "argument", "file", "line", "charged_bytes")
    for module, op, argument, file, line, size in zip(*(mine[c].tolist() for c in names)):
        parts = module.split(".") if module else [TOP]
        parts = parts if len(parts) <= 3 else [*parts[:2], ".".join(parts[2:])]
        parts += [""] * (3 - len(parts))
        path = (*parts, f"{op} {argument}".strip(), f"{file.rpartition('/')[2]}:{line}" if file else "")
        found[path] = found.get(path, 0) + int(size)
    return found


LEAST = 0.034  # of all bytes: the height that has room for a label


def _grouped(paths: dict[tuple[str, ...], int]) -> dict[tuple[str, ...], int]:
    """Paths with neighbouring outermost modules put together until each group has room for a label."""
    total, sizes = sum(paths.values()), dict[str, int]()
    for path, size in paths.items():
        sizes[path[0]] = sizes.get(path[0], 0) + size
    groups: list[list[str]] = [[]]
    for name in sizes:
        if groups[-1] and sum(sizes[n] for n in groups[-1]) >= LEAST * total:
            groups.append([])
        groups[-1].append(name)
    label = {n: n if len(g) == 1 else f"{g[0]} … {g[-1]}" for g in groups for n in g}
    many = {n for g in groups if len(g) > 1 for n in g}
    found: dict[tuple[str, ...], int] = {}
    for path, size in sorted(paths.items(), key=lambda item: list(label.values()).index(label[item[0][0]])):
        inner = ("", "") if path[0] in many else path[1:3]
        key = (label[path[0]], *inner, *path[3:])
        found[key] = found.get(key, 0) + size
    return found


def icicle(paths: dict[tuple[str, ...], int], workload: str) -> Figure | None:
    """Nested bars from left to right: module, the modules in it, op, line; as high as the bytes kept. None without any.

    Args:
        paths: `saved_paths`.
    """
    total = sum(paths.values())
    if not total:
        return None
    paths = _grouped(paths)
    used = [level for level in range(5) if any(p[level] for p in paths)]
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(7.2, 4.6), layout="constrained")
        ax = fig.subplots()
        for column, level in enumerate(used):
            for first, size, name in _runs(paths, level):
                if size < 0.002 * total:
                    continue
                ax.add_patch(Rectangle(
                    (column, first), 1, size, facecolor=LEVELS[min(level, 5)], edgecolor="white", linewidth=0.5
                ))  # fmt: skip
                if name and size >= LEAST * total:
                    ax.text(
                        column + 0.03, first + size / 2, _fit(f"{name}  {show_bytes(size)}", len(used)),
                        va="center", fontsize=8, color="#FDFDFD" if level < 2 else "#101418",
                        clip_on=True,
                    )  # fmt: skip
        ax.set_xlim(0, len(used))
        ax.set_ylim(total, 0)
        ax.grid(visible=False)
        ax.spines[["left", "bottom"]].set_visible(False)
        heads = ("module", "in it", "in that", "op and argument", "line")
        ax.set_xticks([i + 0.5 for i in range(len(used))], [heads[level] for level in used])
        ax.tick_params(length=0, labelbottom=False, labeltop=True)
        ax.set_ylabel(f"kept for backward, {_bytes_axis(ax.yaxis, total)}, in the order of the forward")
        _panel(fig, f"{workload}: from module to op to line")
    return fig


def _fit(text: str, columns: int) -> str:
    room = 96 // columns
    return text if len(text) <= room else text[: room - 1] + "…"


def _runs(paths: dict[tuple[str, ...], int], level: int) -> list[tuple[int, int, str]]:
    """(where it begins, bytes, name) of each stretch of neighbours that share everything up to this level."""
    found: list[tuple[int, int, str]] = []
    last: tuple[str, ...] | None = None
    at = 0
    for path, size in paths.items():
        head = path[: level + 1]
        if head == last:
            first, so_far, name = found[-1]
            found[-1] = first, so_far + size, name
        else:
            found.append((at, size, path[level]))
        last, at = head, at + size
    return found


LINES = 20  # storages in the figure of lifetimes


def lifetimes(idle: pd.DataFrame, workload: str, interpreted: bool) -> Figure | None:
    """A bar a storage from its save to its use, the most byte-milliseconds first. None if none is used in a backward.

    Args:
        idle: `lifetimes.idle`.
    """
    mine = idle[idle["idle_ms"].notna()].head(LINES).sort_values("saved_at_ns", kind="stable")
    if mine.empty:
        return None
    longest = float(mine["used_at_ns"].max()) / 1e6
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(7.2, 1.35 + 0.26 * len(mine)), layout="constrained")
        ax = fig.subplots()
        labels = []
        for y, (_, s) in enumerate(mine.iterrows()):
            start, wait = s["saved_at_ns"] / 1e6, s["idle_ms"]
            ax.barh(y, wait, left=start, height=0.66, color=CATEGORY_COLOURS[s["category"]], linewidth=0)
            ax.text(start + wait + 0.008 * longest, y, show_bytes(s["bytes"]), va="center", fontsize=8)
            labels.append(_short(f"{s['module'] or TOP} · {s['op']}"))
        ax.set_yticks(range(len(mine)), labels, fontsize=8.5)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set_xlim(0, longest * 1.14 or 1)
        _time_axis(ax, longest, interpreted)
        _panel(fig, f"{workload}: from save to use")
        _legend(fig, [c for c in CATEGORIES if (mine["category"] == c).any()])
    return fig


def _short(label: str, room: int = 38) -> str:
    """A label of at most `room` characters, cut in the middle."""
    half = room // 2
    return label if len(label) <= room else f"{label[: half - 1]}…{label[-half:]}"


def dumbbell(beside: pd.DataFrame, workload: str) -> Figure | None:
    """Two dots a module, tgrad's bytes and PyTorch's, joined where they differ. None where neither keeps anything.

    Args:
        beside: `twins.beside`.
    """
    table = beside[(beside["tgrad_bytes"] > 0) | (beside["torch_bytes"] > 0)]
    if table.empty:
        return None
    rows: list[tuple[str, int, int]] = [
        (m or TOP, int(a), int(b)) for m, a, b in zip(table["module"], table["tgrad_bytes"], table["torch_bytes"])
    ]
    if len(rows) > LONGEST:
        rank = sorted(range(len(rows)), key=lambda i: (-abs(rows[i][1] - rows[i][2]), -max(rows[i][1:]), i))
        kept = set(rank[: LONGEST - 1])
        left = [r for i, r in enumerate(rows) if i not in kept]
        rows = [r for i, r in enumerate(rows) if i in kept]
        rows.append((f"{len(left)} others", sum(r[1] for r in left), sum(r[2] for r in left)))
    most = max(max(r[1:]) for r in rows)
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(7.2, 1.45 + 0.28 * len(rows)), layout="constrained")
        ax = fig.subplots()
        for y, (_, ours, theirs) in enumerate(rows):
            ax.plot([ours, theirs], [y, y], color="#8A9097", linewidth=2, zorder=1)
            ax.plot(theirs, y, "o", color=ENGINES["PyTorch"], markersize=9, zorder=2)
            ax.plot(ours, y, "o", color=ENGINES["tgrad"], markersize=5, zorder=3)
            text = "same" if ours == theirs else f"tgrad {signed(ours - theirs)}"
            ax.text(max(ours, theirs) + most * 0.025, y, text, va="center", fontsize=8.5)
        ax.set_yticks(range(len(rows)), [_short(r[0]) for r in rows])
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        ax.set_xlim(-most * 0.03, most * 1.2 or 1)
        ax.set_xlabel(f"kept for backward, {_bytes_axis(ax.xaxis, most)}")
        handles: list[Any] = [
            Line2D([], [], marker="o", linestyle="", color=c, markersize=s, label=n)
            for (n, c), s in zip(ENGINES.items(), (5, 9))
        ]
        fig.legend(handles=handles, loc="outside lower left", ncols=2, frameon=False, fontsize=9)
        _panel(fig, f"{workload}: what tgrad and PyTorch keep, module by module")
    return fig


ENGINES = {"tgrad": "#B0124A", "PyTorch": "#E69F00"}
