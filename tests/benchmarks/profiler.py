"""What the profiler costs a program's host time: `python -m tests.benchmarks.profiler`.

off      a process that has used the profiler and left it, beside one that never imported it
record   inside `with record()`, beside the same process outside it
all      inside all that the memory pass listens with (every event, save, use and source line), beside it outside

tgrad runs its whole GPU path, but for the driver, which is a stub (tests/stub): host code only, the worst case, since
no kernel's time hides it. Blocks alternate, and times are of the process's own CPU: the ratio of each pair of blocks,
median and quartiles. Limits, for the median over the calls: off 2 %, record 15 %. `all` has none: it runs in the memory
pass, and times are taken in a pass of their own, with everything off.
"""

from __future__ import annotations

import argparse
import functools
import gc
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median, quantiles
from typing import Any

if __name__ == "__main__":
    os.environ["TGRAD_LAUNCH"] = "driver"

LIMITS = {"off": 1.02, "record": 1.15, "all": math.inf}
PROCESSES = 6
Call = Callable[[], Any]


def calls() -> dict[str, Call]:
    """What is timed: the forward of a chain, and a training step, with gradients."""
    import tgrad
    from tests.benchmarks.host import cases, training

    return dict([*cases(tgrad, tgrad.nn.functional), *training(tgrad, tgrad.nn.functional, tgrad.nn, tgrad.optim)])


NAMES = ("a + b", "linear", "chain of 10", "chain of 10, forward and backward", "MLP training step")


def use_and_leave() -> None:
    """Import the profiler, measure something with all of it, and leave it off."""
    import tgrad
    from tgrad import nn
    from tgrad.profiler import Workload, memory, record

    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    with record():
        model(tgrad.ones(2, 8)).sum().backward()
    workload = Workload("w", model, lambda: ((tgrad.ones(2, 8),), ()))
    assert memory.measure(workload, "grad", "r").saved


def worker(used: bool) -> None:
    """A process that times a block when it is told to: reads `name count`, writes microseconds a call."""
    from tests.benchmarks.host import block
    from tests.stub import driver

    driver.install()
    if used:
        use_and_leave()
    known = calls()
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        name, count = line.rstrip("\n").rsplit(" ", 1)
        print(block(known[name], int(count)), flush=True)


class Worker:
    """A process of `worker`."""

    def __init__(self, used: bool) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.profiler", "--worker", "used" if used else "never"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def block(self, name: str, count: int) -> float:
        """Microseconds a call of `name`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{name} {count}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextmanager
def all_on() -> Iterator[None]:
    """What the memory pass listens with."""
    from tgrad.profiler.kept import Watch
    from tgrad.profiler.origins import recorded
    from tgrad.profiler.timeline import Timeline
    from tgrad.storage import ledger

    with ExitStack() as stack:
        stack.enter_context(ledger.subscribe(Timeline()))
        stack.enter_context(recorded())
        stack.enter_context(Watch().on())
        yield


Pairs = list[tuple[float, float]]


def alternate(plain: Callable[[], float], other: Callable[[], float], rounds: int) -> Pairs:
    """Microseconds of both, in blocks that alternate."""
    pairs = []
    for i in range(rounds):
        order = ((plain, 0), (other, 1)) if i % 2 else ((other, 1), (plain, 0))
        times = {side: call() for call, side in order}
        pairs.append((times[0], times[1]))
    return pairs


def off(counts: dict[str, int], rounds: int) -> dict[str, Pairs]:
    """Pairs of processes, one that used the profiler and one that never did.

    Two processes differ by some percent for no reason but where their memory lies, so there are several pairs, and who
    of a pair starts first alternates.
    """
    found: dict[str, Pairs] = {name: [] for name in counts}
    for i in range(PROCESSES):
        workers = {used: Worker(used) for used in (bool(i % 2), not i % 2)}
        for name, n in counts.items():
            plain, other = (functools.partial(workers[used].block, name, n) for used in (False, True))
            plain(), other()
            found[name] += alternate(plain, other, max(2, rounds // PROCESSES))
        for w in workers.values():
            w.close()
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=60, help="alternating blocks per case")
    parser.add_argument("--worker", choices=("used", "never"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)

    from tests.stub import driver

    if why := driver.why_not():
        print(f"benchmarks.profiler: {why}", file=sys.stderr)
        return 3
    if options.worker:
        worker(options.worker == "used")
        return 0
    from tests.benchmarks.host import BLOCK_NS, block

    driver.install()
    known = calls()
    from tgrad.profiler import record

    print("host code only, stub driver: not GPU performance")
    print(f"{'profiler':9} {'call':34} {'us':>8} {'ratio':>7} {'quartiles':>15}")
    ratios: dict[str, list[float]] = {state: [] for state in LIMITS}

    def show(state: str, name: str, pairs: Pairs) -> None:
        us = median(p for p, _ in pairs)
        low, middle, high = quantiles([o / p for p, o in pairs], n=4)
        ratios[state].append(middle)
        print(f"{state:9} {name:34} {us:8.2f} {middle:7.3f} {low:7.3f}-{high:.3f}", flush=True)

    counts = {}
    for name in NAMES:
        for _ in range(3):
            known[name]()
        counts[name] = max(1, int(BLOCK_NS * 5 / 1000 / max(block(known[name], 20), 0.01)))
    gc.collect()
    gc.freeze()
    for name, pairs in off(counts, options.rounds).items():
        show("off", name, pairs)
    for state, on in (("record", record), ("all", all_on)):
        for name in NAMES:
            n, call = counts[name], known[name]

            def inside(n: int = n, call: Call = call, on: Any = on) -> float:
                with on():
                    return block(call, n)

            show(state, name, alternate(lambda: block(call, n), inside, options.rounds))
    late = 0
    for state, found in ratios.items():
        late += median(found) > LIMITS[state]
        limit = "no limit" if math.isinf(LIMITS[state]) else f"limit {LIMITS[state]:.2f}"
        print(f"{state}: median over the calls {median(found):.3f} ({limit}), most {max(found):.3f}")
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
