"""Host time of eager ops, beside torch's CPU dispatch of the same calls: `make bench-host`.

tgrad runs its whole GPU path, but for the driver, which is a stub (tests/stub): nothing is computed. torch's time
contains its CPU kernel for a few elements (about 0.25 us). So this is host code only, not GPU performance; ratios hold,
times depend on the machine and its load. Blocks of the two alternate; times are of the thread's own CPU.

`--launcher python` measures what serves where the C helpers cannot be built, `--launcher both` one after the other.
"""

from __future__ import annotations

import argparse
import cProfile
import csv
import gc
import os
import pstats
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

os.environ["TGRAD_LAUNCH"] = "driver"
os.environ.pop("TRITON_INTERPRET", None)  # set by a parent that imported tgrad

BLOCK_NS = 400_000
COLUMNS = ("launcher", "mode", "call", "tgrad_us", "torch_us", "ratio", "low", "high")  # the last two are quartiles
Call = Callable[[], Any]


def cases(xp: Any, F: Any) -> Iterator[tuple[str, Call]]:
    """The same calls on tgrad or torch, given as `xp`. What they record is as the mode has it."""
    a, b = xp.ones(4, requires_grad=True), xp.ones(4)
    x, w, bias = xp.ones(4, 8), xp.ones(8, 8, requires_grad=True), xp.ones(8, requires_grad=True)
    row = xp.ones(2, 4)
    yield "a + b", lambda: a + b
    yield "a + 2.0", lambda: a + 2.0
    yield "relu(a)", lambda: xp.relu(a)
    yield "row + a, broadcast", lambda: row + a
    yield "linear", lambda: F.linear(x, w, bias)

    def chain() -> Any:
        y = a
        for _ in range(5):
            y = xp.relu(y * b)
        return y

    yield "chain of 10", chain


def training(xp: Any, F: Any, nn: Any, optim: Any) -> Iterator[tuple[str, Call]]:
    """Calls that need the graph."""
    a, b, g = xp.ones(4, requires_grad=True), xp.ones(4), xp.ones(4)

    def both() -> None:
        y = a
        for _ in range(5):
            y = xp.relu(y * b)
        y.backward(g)
        a.grad = None

    yield "chain of 10, forward and backward", both

    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    x, target = xp.ones(4, 8), xp.ones(4, 4)

    def step() -> None:
        optimizer.zero_grad()
        F.mse_loss(model(x), target).backward()
        optimizer.step()

    yield "MLP training step", step

    for count in (4, 64):
        params = [nn.Parameter(xp.ones(16)) for _ in range(count)]
        for p in params:
            p.grad = xp.ones(16)
        # torch's other ways, foreach and one by one, take 3 and 5 times as long on its CPU
        yield f"AdamW step of {count} parameters", optim.AdamW(params, lr=0.0, fused=True).step


def block(call: Call, count: int) -> float:
    """Microseconds per call, of this thread's CPU time."""
    start = time.thread_time_ns()
    for _ in range(count):
        call()
    return (time.thread_time_ns() - start) / count / 1000


def compare(ours: Call, theirs: Call, rounds: int) -> tuple[float, float, float, float, float]:
    """Median microseconds of ours and of theirs; median and quartiles of the ratio over alternating blocks."""
    counts = []
    for call in (ours, theirs):
        for _ in range(3):
            call()
        counts.append(max(1, int(BLOCK_NS / 1000 / max(block(call, 5), 0.01))))
    pairs = []
    for i in range(rounds):
        order = ((ours, 0), (theirs, 1)) if i % 2 else ((theirs, 1), (ours, 0))
        times = {side: block(call, counts[side]) for call, side in order}
        pairs.append((times[0], times[1]))
    ratios = [o / t for o, t in pairs]
    low, middle, high = quantiles(ratios, n=4)
    return median(o for o, _ in pairs), median(t for _, t in pairs), low, middle, high


def profile(call: Call, top: int) -> None:
    """Print where `call` spends its time."""
    profiler = cProfile.Profile()
    profiler.enable()
    for _ in range(20_000):
        call()
    profiler.disable()
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(top)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=200, help="alternating blocks per case")
    parser.add_argument(
        "--profile", type=int, default=0, metavar="N", help="print the N functions `a + b` spends most in"
    )
    parser.add_argument("--launcher", choices=("native", "python", "both"), default="native", help="C, Python or both")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="add the rows of the tables to a file")
    options = parser.parse_args(arguments)
    if options.launcher == "both":
        command = [sys.executable, "-m", "tests.benchmarks.host", "--rounds", str(options.rounds)]
        command += ["--csv", str(options.csv)] if options.csv else []
        command += ["--profile", str(options.profile), "--launcher"]
        return max(subprocess.run([*command, launcher], check=False).returncode for launcher in ("native", "python"))
    if options.launcher == "python":
        os.environ["TGRAD_NATIVE"] = "0"

    from tests.stub import driver

    if why := driver.why_not():
        print(f"bench-host: {why}", file=sys.stderr)
        return 3
    driver.install()
    import torch
    import torch.nn.functional as TF
    import triton

    import tgrad
    import tgrad.nn.functional as GF

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    versions = f"Python {sys.version.split()[0]}, torch {torch.__version__}, Triton {triton.__version__}"
    without = ", without the C helpers" if os.environ.get("TGRAD_NATIVE") == "0" else ""
    print(f"host code only, stub driver{without}: not GPU performance ({versions})")
    print(f"{'mode':10} {'call':34} {'tgrad us':>9} {'torch us':>9} {'ratio':>6} {'quartiles':>13}")
    modes: dict[str, Callable[[Any], AbstractContextManager]] = {
        "grad": lambda xp: xp.enable_grad(),
        "no_grad": lambda xp: xp.no_grad(),
        "inference": lambda xp: xp.inference_mode(),
    }

    rows: list[tuple[str, ...]] = []

    def show(mode: str, name: str, ours: Call, theirs: Call) -> None:
        # The mode is entered outside the block, so that only the calls are timed.
        with modes[mode](tgrad), modes[mode](torch):
            o, t, low, middle, high = compare(ours, theirs, options.rounds)
        print(f"{mode:10} {name:34} {o:9.2f} {t:9.2f} {middle:6.2f} {low:6.2f}-{high:.2f}")
        rows.append((options.launcher, mode, name, *(f"{v:.3f}" for v in (o, t, middle, low, high))))

    gc.collect()
    gc.freeze()
    for mode in modes:
        for (name, ours), (_, theirs) in zip(cases(tgrad, GF), cases(torch, TF), strict=True):
            show(mode, name, ours, theirs)
    pairs = zip(training(tgrad, GF, tgrad.nn, tgrad.optim), training(torch, TF, torch.nn, torch.optim), strict=True)
    for (name, ours), (_, theirs) in pairs:
        show("grad", name, ours, theirs)
    if options.csv:
        with options.csv.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([COLUMNS, *rows] if not file.tell() else rows)
    for mode in modes if options.profile else ():
        print(f"\n{mode}: a + b")
        with modes[mode](tgrad):
            profile(next(iter(cases(tgrad, GF)))[1], options.profile)
    return 0


if __name__ == "__main__":
    sys.exit(main())
