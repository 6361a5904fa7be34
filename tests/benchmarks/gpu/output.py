"""What a run leaves: benchmarks.csv, NOTES.md and the table."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.benchmarks.gpu.goals import PREDICTED
from tests.benchmarks.gpu.results import ceilings
from tests.benchmarks.gpu.rows import Row

Facts = dict[str, str]


def write_csv(rows: Sequence[Row], facts: Facts, path: Path) -> None:
    """One line per row; machine, versions, commit and command are in lines before them that begin with #."""
    with open(path, "w", newline="") as file:
        for name, value in facts.items():
            file.write(f"# {name}: {' '.join(value.split())}\n")
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def write_notes(rows: Sequence[Row], facts: Facts, failures: Sequence[str], plots: Sequence[str], path: Path) -> None:
    """A draft: what was predicted beside what was measured, each goal, where PyTorch is faster, what failed."""
    smoke = any(row.kind == "smoke" for row in rows)
    parts = ["# " + ("A smoke run: no timings" if smoke else "Measured beside PyTorch"), ""]
    parts += [_table(("what", "value"), [(k, v) for k, v in facts.items() if v]), ""]
    tops = ceilings(rows)
    if tops:
        said = [(k, f"{v:.0f} {'GB/s' if k == 'copy' else 'TFLOP/s'}") for k, v in tops.items()]
        parts += ["## Ceilings in this run", "", _table(("ceiling", "rate"), said), ""]
    held = [row for row in rows if row.wanted]
    if held:
        met = sum(row.met is True for row in held)
        said = f"{met} of {len(held)} met. Ratios are to PyTorch eager unless it says otherwise."
        header = ("case", "dtype", "shape", "contender", "kind", "wanted", "measured", "met")
        lines = [(*_place(r), r.wanted, _number(r.measured), _met(r)) for r in held]
        parts += ["## Goals", "", said, "", _table(header, lines), ""]
    parts += ["## Predicted and measured", "", _table(("what", "predicted", "measured"), _predictions(rows)), ""]
    slow = [r for r in rows if r.contender.startswith("tgrad") and r.ratio and r.ratio > 1.02 and r.ms]
    if slow:
        slow.sort(key=lambda r: -(r.ratio or 0))
        lines = [(*_place(r), _number(r.ratio)) for r in slow[:40]]
        header = ("case", "dtype", "shape", "contender", "kind", "ratio")
        parts += ["## Where PyTorch is faster", "", _table(header, lines), ""]
    wrong = [*failures, *(f"{r.section}, {r.case} {r.dtype} {r.shape} {r.contender}: {r.note}" for r in _lost(rows))]
    if wrong:
        parts += ["## Failed or left out", "", *[f"- {line}" for line in wrong], ""]
    parts += [f"![{name}]({name})" for name in plots]
    path.write_text("\n".join(parts).rstrip() + "\n")


def _predictions(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    lines = []
    for goal, predicted in PREDICTED.items():
        found: dict[str, list[float]] = {}
        for r in rows:
            if r.goal == goal and r.contender.startswith("tgrad") and r.ratio is not None:
                found.setdefault(f"{r.contender}, {r.kind}", []).append(r.ratio)
                if r.percent is not None and r.unit == "GB/s":
                    found.setdefault(f"{r.contender}, % of copy", []).append(r.percent)
        text = "; ".join(f"{name}: {_number(min(v))} to {_number(max(v))}" for name, v in found.items())
        lines.append((goal, predicted, text or "not measured"))
    return lines


def _lost(rows: Iterable[Row]) -> list[Row]:
    return [r for r in rows if r.note.startswith(("FAILED", "left out")) or "NOT EQUAL" in r.note]


def table(rows: Sequence[Row], facts: Facts, failures: Sequence[str]) -> str:
    """For a terminal: the goals and host times, and what failed; the rest is in the files."""
    lines = [", ".join(f"{k} {facts[k]}" for k in ("gpu", "torch", "triton", "commit") if facts.get(k))]
    lines.append(", ".join(f"{k} {v:.0f}" for k, v in ceilings(rows).items()))
    columns = "{:26.26} {:4.4} {:17.17} {:13.13} {:6} {:>8} {:>8} {:>5} {:>3} {:>5} {}"
    titles = ("case", "type", "shape", "contender", "kind", "ms", "torch ms", "ratio", "%", "error", "goal")
    lines.append(columns.format(*titles))
    theirs = {row.key: row for row in rows if row.contender == "torch"}
    for r in rows:
        if not r.contender.startswith("tgrad") or r.note.startswith(("FAILED", "left out")):
            continue
        if r.goal and not r.wanted and r.kind != "smoke" and r.goal not in ("host", "linear forward fp32"):
            continue
        other = theirs.get(r.key)
        amount = lambda row: _number(row.ms) if row.ms else f"{row.bytes / 2**20:.0f}MiB" if row.bytes else ""
        goal = "" if r.met is None else "met: " if r.met else "MISSED: "
        goal += f"{r.wanted}, is {_number(r.measured)}" if goal else ""
        error = "" if r.error is None else f"{r.error:.0e}"
        percent = "" if r.percent is None else f"{r.percent:.0f}"
        kind = r.dtype.replace("bfloat", "bf").replace("float", "fp")
        cells = (r.case, kind, r.shape, r.contender, r.kind, amount(r), amount(other) if other else "")
        more = goal or (r.note if "NOT EQUAL" in r.note else "")
        lines.append(columns.format(*cells, _number(r.ratio), percent, error, more).rstrip())
    for r in _lost(rows):
        lines.append(f"{r.section}, {r.case} {r.dtype} {r.shape} {r.contender}: {r.note}"[:160])
    lines += list(failures)
    held = [r for r in rows if r.met is not None]
    smoke = any(row.kind == "smoke" for row in rows)
    lines.append("smoke: no timings" if smoke else f"{sum(bool(r.met) for r in held)} of {len(held)} goals met")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def _place(row: Row) -> tuple[str, ...]:
    return row.case, row.dtype, row.shape, row.contender, row.kind


def _met(row: Row) -> str:
    return "" if row.met is None else "yes" if row.met else "no"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    clean = lambda cell: str(cell).replace("|", "\\|").replace("\n", " ")
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(clean(cell) for cell in row) + " |" for row in rows)
