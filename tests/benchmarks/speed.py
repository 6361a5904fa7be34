"""Where the speed comes from, and where PyTorch is ahead: `python -m tests.benchmarks.speed --out reports/speed`.

Measures the host time of calls (tests/benchmarks/host.py) and the work they give a GPU (tests/benchmarks/work.py), and
writes both as CSV, a plot of each, and a page about them. No GPU is needed, and none is measured.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from tgrad.profiler.environment import git_state
from tgrad.profiler.plots import STYLE

HERE = Path(__file__).parent
OURS, FUSED, PYTHON, THEIRS = "#0072B2", "#56B4E9", "#E69F00", "#1F2328"
LAUNCHERS = {"native": ("with the C launcher", OURS), "python": ("pure Python", PYTHON)}


def run(module: str, *arguments: str) -> None:
    """`python -m module`, in a process of its own: one needs the stub driver, the other the interpreter."""
    subprocess.run([sys.executable, "-m", module, *arguments], check=True, stdout=sys.stderr)


def work_table(work: pd.DataFrame) -> pd.DataFrame:
    """A row for each call and engine but torch: kernels, bytes and their ratios to torch's."""
    theirs = work[work["engine"] == "torch"].set_index("case")
    table = work[work["engine"] != "torch"].copy()
    for what in ("kernels", "bytes"):
        table[f"torch_{what}"] = theirs.loc[table["case"], what].to_numpy()
        table[f"{what}_ratio"] = table[what] / table[f"torch_{what}"]
    return table.reset_index(drop=True)


def draw_work(table: pd.DataFrame) -> Figure:
    """Bars of the ratios of kernels and of bytes."""
    labels = [c + ", @tgrad.fuse" * (e != "tgrad") for c, e in zip(table["case"], table["engine"], strict=True)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.36 * len(table) + 1.4), layout="constrained")
        for axis, what in zip(figure.subplots(1, 2, sharey=True), ("kernels", "bytes"), strict=True):
            ratios = table[f"{what}_ratio"]
            colours = [OURS if e == "tgrad" else FUSED for e in table["engine"]]
            axis.barh(range(len(table)), ratios, color=colours, height=0.7)
            for y, ratio in enumerate(ratios):
                axis.text(1.02 if 0.85 < ratio < 1 else ratio + 0.02, y, f"{ratio:.2f}", va="center", fontsize=7.5)
            axis.axvline(1.0, color=THEIRS, linewidth=1.2)
            axis.set_xlim(0, max(1.3, 1.15 * ratios.max()))
            axis.set_yticks(range(len(table)), labels)
            axis.set_ylim(len(table) - 0.4, -0.6)
            axis.grid(axis="y", visible=False)
            axis.set_xlabel({"kernels": "kernels launched", "bytes": "bytes read and written"}[what] + ", PyTorch = 1")
        figure.suptitle("The work given to the GPU, exact")
    return figure


def draw_host(host: pd.DataFrame) -> Figure:
    """Bars of the ratios of host time, with their quartiles, by mode and launcher."""
    rows = host[["mode", "call"]].drop_duplicates()
    launchers = [n for n in LAUNCHERS if n in set(host["launcher"])]
    height = 0.8 / len(launchers)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.36 * len(rows) + 1.4), layout="constrained")
        axis = figure.subplots()
        for k, name in enumerate(launchers):
            mine = rows.merge(host[host["launcher"] == name], on=["mode", "call"])
            places = [i + (k - (len(launchers) - 1) / 2) * height for i in range(len(mine))]
            spread = [mine["ratio"] - mine["low"], mine["high"] - mine["ratio"]]
            label, colour = LAUNCHERS[name]
            axis.barh(places, mine["ratio"], height * 0.92, color=colour, label=label)
            axis.errorbar(mine["ratio"], places, xerr=spread, fmt="none", ecolor="#8A9099", elinewidth=1)
        axis.axvline(1.0, color=THEIRS, linewidth=1.2)
        axis.set_yticks(range(len(rows)), [f"{r.call}, {r.mode}" for r in rows.itertuples()])
        axis.set_ylim(len(rows) - 0.4, -0.6)
        axis.grid(axis="y", visible=False)
        axis.set_xlabel("host time, PyTorch's CPU dispatch = 1 (below 1 is faster); lines are quartiles")
        axis.legend(loc="lower right", frameon=False)
        figure.suptitle("Host time of a call, without a driver")
    return figure


def page(work: pd.DataFrame, host: pd.DataFrame, versions: str) -> str:
    """The page, in Markdown."""
    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    rows = list(work_table(work).itertuples())
    return environment.get_template("speed.md.j2").render(
        versions=versions, work=rows, host=_by_call(host), slower=_slower(host),
        behind=[r for r in rows if max(r.kernels_ratio, r.bytes_ratio) > 1.005],
    )  # fmt: skip


def _slower(host: pd.DataFrame) -> list[str]:
    """Where PyTorch's host time is less: a sentence for each launcher."""
    found = []
    for name, (label, _) in LAUNCHERS.items():
        mine = host[(host["launcher"] == name) & (host["ratio"] > 1.0)]
        calls = [
            f"{call} ({', '.join(f'{r.mode} {r.ratio:.2f}' for r in of_call.itertuples())})"
            for call, of_call in mine.groupby("call", sort=False)
        ]
        found.append(f"{label}: {'; '.join(calls) or 'nowhere'}.")
    return found


def _by_call(host: pd.DataFrame) -> list[dict[str, Any]]:
    """For each call the ratio by launcher and mode, None where it was not measured."""
    table = []
    for call, of_call in host.groupby("call", sort=False):
        found = {(r.launcher, r.mode): r.ratio for r in of_call.itertuples()}
        table.append({"call": call, "ratio": lambda launcher, mode, found=found: found.get((launcher, mode))})
    return table


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("reports/speed"), help="folder to write to")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    run("tests.benchmarks.work", "--out", str(out))
    (out / "host.csv").unlink(missing_ok=True)
    run("tests.benchmarks.host", "--launcher", "both", "--csv", str(out / "host.csv"))
    work, host = pd.read_csv(out / "work.csv"), pd.read_csv(out / "host.csv")
    import torch
    import triton

    versions = f"Python {platform.python_version()}, torch {torch.__version__}, Triton {triton.__version__}, "
    versions += f"{os.cpu_count()} cores"
    if git := git_state():
        versions += f", commit {git['sha'][:7]}{' with changes' * bool(git['dirty'])}"
    for name, figure in (("work", draw_work(work_table(work))), ("host", draw_host(host))):
        figure.savefig(out / f"{name}.png", dpi=130)
    (out / "README.md").write_text(page(work, host, versions), encoding="utf-8")
    print(f"written to {out}: README.md, work.csv, work.png, host.csv, host.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
