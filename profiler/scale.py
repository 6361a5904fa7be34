"""The scale law: bytes against batch size in each mode, a line through them, and the largest batch that fits."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import tgrad
from tgrad.profiler import fit, isolated, memory, output
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.records import ALL_MODES, MODES
from tgrad.profiler.units import parse_bytes
from tgrad.profiler.workloads import Options, Workload, make

if TYPE_CHECKING:
    import pandas as pd

FIGURES = ("graph_bytes", "peak_bytes")


@dataclass(frozen=True)
class Point:
    """What one batch size took in one mode. is_held_out: it has no part in the fit, and checks it."""

    workload: str
    mode: str
    batch_size: int
    graph_bytes: int
    peak_bytes: int
    is_held_out: bool


@dataclass(frozen=True)
class Law:
    """bytes = fixed_bytes + per_row_bytes * batch_size, for one figure in one mode.

    per_row_ci_bytes: half the 95 % interval. checked_*: the held-out batch, what the line says and what was measured.
    largest_batch: the most rows whose upper bound fits `memory_bytes`; -1 if not asked for, or without bound.
    """

    workload: str
    mode: str
    figure: str
    fixed_bytes: float
    per_row_bytes: float
    per_row_ci_bytes: float
    checked_batch: int
    checked_predicted_bytes: float
    checked_measured_bytes: int
    memory_bytes: int
    largest_batch: int

    @property
    def error(self) -> float:
        """How far the line is from the held-out measurement, as a share of it."""
        measured = self.checked_measured_bytes
        return abs(self.checked_predicted_bytes - measured) / measured if measured else 0.0


@dataclass(frozen=True)
class Scale:
    """All points, and a law for each mode and figure."""

    workload: str
    points: list[Point]
    laws: list[Law]

    def law(self, mode: str, figure: str = "peak_bytes") -> Law:
        """The law of one mode."""
        return next(x for x in self.laws if (x.mode, x.figure) == (mode, figure))

    @property
    def frame(self) -> pd.DataFrame:
        """A row a point."""
        import pandas as pd

        return pd.DataFrame([asdict(p) for p in self.points])

    @property
    def law_frame(self) -> pd.DataFrame:
        """A row a law."""
        import pandas as pd

        return pd.DataFrame([asdict(x) for x in self.laws])

    def _repr_html_(self) -> str:
        """A notebook shows the laws."""
        return self.law_frame.to_html(index=False)

    def save(self, out: str | os.PathLike, force: bool = False) -> Path:
        """Write the folder `out`: scale.csv, laws.csv and the plot as PNG and SVG.

        Raises:
            ProfilerError: the folder cannot be written, or may not be replaced.
        """
        from tgrad.profiler import datafiles, plots, scale_plot

        with output.folder(out, force) as folder:
            datafiles.write(folder, {"scale": self.frame, "laws": self.law_frame})
            figure = scale_plot.draw(self)
            (folder / "scale.png").write_bytes(plots.png(figure))
            text = plots.svg(figure, f"{self.workload}: peak memory against batch size")
            (folder / "scale.svg").write_text(plots.for_file(text), encoding="utf-8")
        return Path(out).expanduser().resolve()


def scale(
    workload: str,
    batch_sizes: Sequence[int],
    modes: Sequence[str] = MODES,
    *,
    memory_bytes: int | None = None,
    dtype: str = "float32",
    width: int | None = None,
    depth: int | None = None,
    seed: int = 0,
    optimizer: str = "sgd",
    isolate: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Scale:
    """Measure a workload at several batch sizes and fit a line in each mode.

    With four sizes or more, the largest has no part in the fit: the line's value there is checked against it.

    Args:
        workload: a name, or `file.py:factory` whose factory takes batch_size.
        memory_bytes: what must fit; gives `largest_batch`.
        optimizer: whose step the peak includes, for a workload with a loss; `none`: no step.
        isolate: measure each batch size in each mode in a process of its own.

    Raises:
        ProfilerError: the request cannot be carried out.
    """
    sizes = check_sizes(batch_sizes)
    for mode in modes:
        if mode not in ALL_MODES:
            raise ProfilerError(f"--modes: unknown mode '{mode}'; choose from {', '.join(ALL_MODES)}")
    points, name = [], ""
    for i, rows in enumerate(sizes):
        options = Options(rows, dtype, width, depth, seed, optimizer)
        made = make(workload, options)
        if made.model is None:
            raise ProfilerError(f"workload {made.name} is a PyTorch model, and scale runs tgrad; give a tgrad model")
        name = made.name
        for j, mode in enumerate(modes):
            if progress is not None:
                progress(f"{name}, batch {rows}", i * len(modes) + j, len(sizes) * len(modes))
            held_out = len(sizes) > 3 and rows == sizes[-1]
            points.append(
                isolated.call("point", workload=workload, mode=mode, held_out=held_out, options=asdict(options))
                if isolate else point(made, mode, rows, seed, held_out)
            )  # fmt: skip
    laws = [law([p for p in points if p.mode == m], f, memory_bytes) for m in modes for f in FIGURES]
    return Scale(name, points, laws)


def check_sizes(batch_sizes: Sequence[int]) -> list[int]:
    """The sizes, ascending, each once.

    Raises:
        ProfilerError: there are fewer than three.
    """
    sizes = sorted(set(batch_sizes))
    if len(sizes) < 3:
        raise ProfilerError("--batch-sizes: a line and its interval take at least three sizes, such as 32,64,128,256")
    return sizes


def parse_sizes(batch_sizes: str | None, memory: str | None) -> tuple[list[int] | None, int | None]:
    """What --batch-sizes and --memory say; None of what is not given.

    Raises:
        ProfilerError: they are no numbers.
    """
    try:
        sizes = None if batch_sizes is None else [int(n) for n in batch_sizes.split(",") if n.strip()]
        return sizes, None if memory is None else parse_bytes(memory)
    except ValueError as error:
        raise ProfilerError(f"--batch-sizes and --memory: {error}; give 32,64,128 and 24GiB") from None


def point(workload: Workload, mode: str, rows: int, seed: int, held_out: bool) -> Point:
    """One batch size in one mode, measured."""
    tgrad.manual_seed(seed)
    found = memory.measure(workload, mode, "").figures
    return Point(workload.name, mode, rows, found["graph_bytes"], found["peak_bytes"], held_out)


def law(points: Sequence[Point], figure: str, memory_bytes: int | None = None) -> Law:
    """The line through the points of one mode."""
    fitted = [p for p in points if not p.is_held_out]
    check = next((p for p in points if p.is_held_out), points[-1])
    found = fit.line([p.batch_size for p in fitted], [getattr(p, figure) for p in fitted])
    largest = -1
    if memory_bytes is not None and found.slope > 0:
        largest = _largest(found, memory_bytes)
    return Law(
        points[0].workload, points[0].mode, figure, found.intercept, found.slope, found.slope_ci, check.batch_size,
        found.at(check.batch_size), getattr(check, figure), -1 if memory_bytes is None else memory_bytes, largest,
    )  # fmt: skip


def _largest(found: fit.Line, memory_bytes: int) -> int:
    """The most rows whose upper bound is within `memory_bytes`."""

    def fits(rows: int) -> bool:
        wide = found.half_width(rows)
        return found.at(rows) + (0 if math.isnan(wide) else wide) <= memory_bytes

    if not fits(1):
        return 0
    low, high = 1, 2
    while fits(high) and high < 2**62:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
