"""What a run of the database came to: a table for the terminal, a CSV, and a page in Markdown."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

import tgrad
from tests.opdb.runner import Outcome

COLUMNS = ("op", "forms", "samples", "agreed", "out of scope", "failed", "errors raised", "why out of scope")


def row(o: Outcome) -> tuple[str, ...]:
    """One op: counts, the forms compared, and the reasons."""
    checks = f"{o.checks[0]} of {o.checks[1]}" if o.checks[1] else ""
    reasons = "; ".join(f"{why} ({n})" for why, n in sorted(o.out.items()))
    return (o.full_name, ", ".join(o.forms), str(o.samples), str(o.agreed), str(sum(o.out.values())),
            str(len(o.failed)), checks, reasons)  # fmt: skip


def closing(outcomes: list[Outcome]) -> str:
    """The closing line: distinct ops, and the samples of all of them."""
    ops = len({o.name for o in outcomes})
    samples, agreed = sum(o.samples for o in outcomes), sum(o.agreed for o in outcomes)
    out, failed = sum(sum(o.out.values()) for o in outcomes), sum(len(o.failed) for o in outcomes)
    return (f"{ops} ops, {len(outcomes)} entries, {samples} samples: {agreed} agreed, {out} out of scope, "
            f"{failed} failed")  # fmt: skip


def errors(outcomes: list[Outcome]) -> str:
    """How many of the database's calls that torch refuses are refused here, too."""
    both, all_ = (sum(o.checks[i] for o in outcomes) for i in (0, 1))
    return f"Of {all_} calls that torch refuses, tgrad refuses {both}."


def show(outcomes: list[Outcome]) -> None:
    """The table, the failures, the closing line."""
    table = Table(*COLUMNS, box=None)
    for o in outcomes:
        table.add_row(*row(o), style="red" if o.failed else "")
    wide = Console(width=None if sys.stdout.isatty() else 200)
    wide.print(table)
    for o in outcomes:
        for text in o.failed:
            wide.print(f"FAILED {o.full_name} {text}", markup=False, highlight=False)
    wide.print(closing(outcomes), highlight=False)
    if any(o.checks[1] for o in outcomes):
        wide.print(errors(outcomes), highlight=False)


def write_csv(outcomes: list[Outcome], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(row(o) for o in outcomes)


def write_markdown(outcomes: list[Outcome], lacking: list[str], command: str, path: Path) -> None:
    """A page: versions, the command, the totals, the reasons, one row per op, and what tgrad does not have."""
    reasons: Counter = sum((o.out for o in outcomes), Counter())
    versions = f"tgrad {tgrad.__version__}, torch {version('torch')}, Triton {version('triton')}"
    lines = [
        "# torch's op database", "",
        "Every op that tgrad has under a torch name, on the samples of `torch.testing._internal`'s `op_db` in tgrad's "
        "dtypes: results, gradients from random cotangents, methods and in-place forms beside torch's. What agreement "
        "means is in `tests/opdb/agreement.py`, what is out of scope in "
        "`tests/opdb/scope.py`. "
        "In half types attention and linear_cross_entropy are held to the error of torch's own composition in that "
        "dtype (`tests/opdb/composed.py`), which is more than that of torch's CPU kernels, which compute them in "
        "float32.", "",
        f"`{command}`: {versions}.", "", f"**{closing(outcomes)}.** {errors(outcomes)}", "",
        "| out of scope | samples |", "| --- | ---: |", *(f"| {why} | {n} |" for why, n in reasons.most_common()), "",
        "| " + " | ".join(COLUMNS) + " |", "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
        *("| " + " | ".join(row(o)) + " |" for o in outcomes), "",
        f"Not in tgrad, {len(lacking)} names: " + ", ".join(lacking) + ".", "",
    ]  # fmt: skip
    path.write_text("\n".join(lines))
