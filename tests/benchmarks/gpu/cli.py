"""The command: runs the sections, writes after each, prints the table last.

Exit codes: 0 all sections ran, 1 one did not end well (the rest is there), 2 bad arguments, 3 no CUDA device.
"""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.gpu import output, results, runner, worker
from tests.benchmarks.gpu.rows import Journal, Row
from tests.benchmarks.gpu.sections import BUDGET, SECTIONS, Section


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.benchmarks.gpu", description="tgrad beside PyTorch")
    names = [section.name for section in SECTIONS]
    parser.add_argument("--out", type=Path, required=True, help="folder for benchmarks.csv, NOTES.md and plots")
    parser.add_argument("--sections", default=",".join(names), help=f"some of {','.join(names)}, run in that order")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help=f"in all ({BUDGET:.0f})")
    parser.add_argument("--smoke", action="store_true", help="every case once, tiny, on the CPU: checked, not timed")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections.split(",")) - set(names):
        parser.error(f"--sections: unknown {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if not options.budget > 0:
        parser.error(f"--budget: expected seconds above 0, got {options.budget:g}")
    chosen = [section for section in SECTIONS if section.name in options.sections.split(",")]

    import torch

    if options.smoke == torch.cuda.is_available():
        print("benchmarks: " + ("a smoke run is for machines without a CUDA device" if options.smoke else
                                "no CUDA device (--smoke runs every case without one)"), file=sys.stderr)  # fmt: skip
        return 3
    options.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(options.out / "benchmarks.jsonl")
    journal.path.unlink(missing_ok=True)
    command = "python3 -m tests.benchmarks.gpu " + " ".join(sys.argv[1:] if arguments is None else arguments)
    journal.write(facts={"command": command})

    def said(text: str) -> None:
        print(text, file=sys.stderr, flush=True)
        write(journal, [], options.out)

    if options.smoke:
        failures = smoke(chosen, journal)
    else:
        failures = runner.run(chosen, journal, options.budget, said)
    rows = write(journal, failures, options.out, plots=True)
    print(output.table(rows, facts_of(journal), failures))
    return 1 if failures else 0


def smoke(sections: Sequence[Section], journal: Journal) -> list[str]:
    """The sections in this process, tiny and on the CPU."""
    journal.write(facts=worker.facts())
    failures = []
    for section in sections:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                worker.run(section.name, journal, 3600, smoke=True)
        except Exception:
            failures.append(f"{section.name}: {traceback.format_exc()}")
    return failures


def facts_of(journal: Journal) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in journal.read("facts"):
        found |= part
    return found


def write(journal: Journal, failures: Sequence[str], out: Path, plots: bool = False) -> list[Row]:
    """All files, from what the journal has by now."""
    rows, facts, drawn = journal.rows(), facts_of(journal), []
    results.finish(rows)
    output.write_csv(rows, facts, out / "benchmarks.csv")
    if plots:
        try:
            from tests.benchmarks.gpu.plots import draw

            title = f"{facts.get('gpu', '')}, torch {facts.get('torch', '')}, Triton {facts.get('triton', '')}"
            drawn = draw(rows, title, out)
        except Exception as error:  # the numbers are there all the same
            print(f"benchmarks: no plots: {type(error).__name__}: {error}", file=sys.stderr)
    output.write_notes(rows, facts, failures, drawn, out / "NOTES.md")
    return rows
