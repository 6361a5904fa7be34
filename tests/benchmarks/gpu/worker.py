"""One section, in a process of its own: waits for a line on standard input, then runs, and appends to the journal."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

from tests.benchmarks.gpu.rows import Journal


def run(name: str, journal: Journal, seconds: float, smoke: bool = False) -> None:
    """The cases of a section, in this process."""
    import torch

    from tests.benchmarks.gpu.bench import Bench

    torch.manual_seed(0)
    importlib.import_module(f"tests.benchmarks.gpu.{name}_cases").run(Bench(name, journal, seconds, smoke))


def facts() -> dict[str, str]:
    """The device, the versions and the commit that the numbers belong to."""
    import numpy
    import torch
    import triton

    import tgrad
    from tgrad.device import describe

    found = {
        "tgrad": tgrad.__version__,
        "python": sys.version.split()[0],
        "triton": triton.__version__,
        "numpy": numpy.__version__,
        "commit": os.environ.get("TGRAD_COMMIT") or _said("git", "rev-parse", "HEAD"),  # a copy may lack the repository
        "changed": str(bool(_said("git", "status", "--porcelain"))),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "float32": f"tgrad {tgrad.get_float32_matmul_precision()}, torch {torch.get_float32_matmul_precision()}",
        "launcher": _launcher(),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }
    return describe() | found | state("before")


def state(when: str) -> dict[str, str]:
    """Clocks, power and temperature, where nvidia-smi is there. Nothing is changed."""
    fields = "clocks.sm,clocks.mem,power.draw,temperature.gpu"
    said = _said("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader")
    return {f"state {when} ({fields})": said} if said else {}


def _launcher() -> str:
    from tgrad.device import compute
    from tgrad.kernels import native

    if compute.type != "cuda":
        return ""
    return "Python" if native.module() is None else "C"


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.benchmarks.gpu.worker")
    parser.add_argument("section")
    parser.add_argument("journal", type=Path)
    options = parser.parse_args(arguments)
    # Imported while the section before still runs; the device is not touched before the line comes.
    import torch  # noqa: F401

    import tests.benchmarks.gpu.bench  # noqa: F401
    import tgrad.nn  # noqa: F401

    line = sys.stdin.readline()
    if not line.strip():
        return 0  # the parent ended
    journal = Journal(options.journal)
    warnings.simplefilter("ignore")
    if options.section == "ceilings" and not list(journal.read("facts")):
        journal.write(facts=facts())
    run(options.section, journal, float(line))
    journal.write(facts=state(f"after {options.section}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
