"""Rates, ratios and goals of a run's rows."""

from __future__ import annotations

from collections.abc import Iterable

from tests.benchmarks.gpu.goals import GOALS
from tests.benchmarks.gpu.rows import Row


def ceilings(rows: Iterable[Row]) -> dict[str, float]:
    """The copy in GB/s and cuBLAS's rate in TFLOP/s by dtype, as measured in this run, of the largest sizes."""
    found: dict[str, float] = {}
    for row in rows:
        if row.section == "ceilings" and row.contender == "torch" and row.ms:
            if row.flops:
                found[row.dtype] = row.flops / row.ms * 1e-9
            elif row.nbytes:
                found["copy"] = max(found.get("copy", 0.0), row.nbytes / row.ms * 1e-6)
    return found


def finish(rows: list[Row]) -> None:
    """Fill in rates, ratios and goals."""
    tops = ceilings(rows)
    by_contender = {(*row.key, row.contender): row for row in rows}

    def over(row: Row, contender: str) -> float | None:
        other = by_contender.get((*row.key, contender))
        if other is None:
            return None
        if row.ms and other.ms:
            return row.ms / other.ms
        return row.bytes / other.bytes if row.bytes is not None and other.bytes else None

    for row in rows:
        if row.ms and row.flops:
            row.rate, row.unit, top = row.flops / row.ms * 1e-9, "TFLOP/s", tops.get(row.dtype)
        elif row.ms and row.nbytes:
            row.rate, row.unit, top = row.nbytes / row.ms * 1e-6, "GB/s", tops.get("copy")
        else:
            top = None
        row.percent = 100 * row.rate / top if top and row.rate and row.kind != "wall" else None
        row.ratio = over(row, "torch")
        for goal in GOALS.get(row.goal, ()):
            if (goal.contender, goal.kind) == (row.contender, row.kind):
                row.wanted = goal.text
                row.measured = {
                    "ratio": row.ratio, "percent": row.percent, "to compile": over(row, "torch.compile"),
                    "to keep": over(row, "tgrad keep"),
                }[goal.quantity]  # fmt: skip
                row.met = None if row.measured is None else goal.met(row.measured)
