"""Cases: what is compared, checked against float64 and timed."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

import tgrad
from tests.benchmarks.gpu import peers, timing
from tests.benchmarks.gpu.data import error, results, share
from tests.benchmarks.gpu.rows import Journal, Row
from tests.benchmarks.gpu.timing import Call, Times

CACHE = 60 << 20  # bytes of L2: what rotates in a graph is twice as large
COMPILE = 12.0  # seconds that torch.compile may take
SMALL = 8  # no size is larger in a smoke run


class LeftOut(Exception):
    """A contender does not take part."""


@dataclass
class Contest:
    """The contenders of one case, over one set of buffers.

    Attributes:
        calls: by name: "tgrad", "torch" and others. A call may compile the first time.
        exact: makes what they should return, in float64; None: nothing is compared.
        part: which part of each result is compared.
    """

    calls: dict[str, Call]
    exact: Callable[[], Sequence[torch.Tensor]] | None = None
    part: Callable[[torch.Tensor], torch.Tensor] = field(default=lambda t: t)


class Bench:
    """What the sections run on: data, time limits and the journal. `smoke`: tiny, on the CPU, checked and not timed."""

    def __init__(self, section: str, journal: Journal, seconds: float, smoke: bool = False) -> None:
        self.section, self.journal, self.smoke = section, journal, smoke
        self.deadline = time.monotonic() + seconds
        self.device = torch.device("cpu" if smoke else "cuda")
        self.timer = timing.Timer()
        self._begun = set(journal.read("begin"))

    # --- data ------------------------------------------------------------------------------------
    def size(self, *sizes: int) -> tuple[int, ...]:
        return tuple(min(n, SMALL) for n in sizes) if self.smoke else sizes

    def pick(self, given: Any, smoke: Any) -> Any:
        return smoke if self.smoke else given

    def random(self, shape: Sequence[int], dtype: torch.dtype, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(tuple(shape), device=self.device) * scale).to(dtype)

    def pair(self, shape: Sequence[int], dtype: torch.dtype) -> tuple[Any, torch.Tensor]:
        """(tgrad tensor, torch tensor) over one memory."""
        t = self.random(shape, dtype)
        return share(t), t

    def integers(self, high: int, shape: Sequence[int]) -> tuple[Any, torch.Tensor]:
        t = torch.randint(0, high, tuple(shape), device=self.device)
        return share(t), t

    def left(self) -> float:
        return self.deadline - time.monotonic()

    # --- cases -----------------------------------------------------------------------------------
    def case(
        self,
        name: str,
        dtype: torch.dtype | None,
        shape: Sequence[int],
        build: Callable[[], Contest],
        *,
        flops: float | None = None,
        nbytes: float | None = None,
        grad: bool = False,
        device: bool = True,
        wall: int = 0,
        graph: bool = False,
        goal: str = "",
        seconds: float = 0.4,
    ) -> None:
        """Build, check and time one case.

        Args:
            flops, nbytes: the least to do, or to move.
            grad: whether the calls run with grad mode on.
            device, wall, graph: which kinds of time; `wall` is the number of calls.
            goal: a name in goals.py.
            seconds: of timing, about, for the device kind.
        """
        base = Row(self.section, name, _dtype(dtype), _shape(shape), flops=flops, nbytes=nbytes, goal=goal)

        def measure() -> None:
            with ExitStack() as modes:
                if not grad:
                    modes.enter_context(tgrad.no_grad())
                    modes.enter_context(torch.no_grad())
                self._contest(base, build, device, wall, graph, seconds)

        self._once(base, measure)

    def alone(self, name: str, dtype: torch.dtype, shape: Sequence[int], measure: Callable[[], None]) -> None:
        """A case that measures by itself, and adds its rows."""
        self._once(Row(self.section, name, _dtype(dtype), _shape(shape)), measure)

    def _once(self, base: Row, measure: Callable[[], None]) -> None:
        """Measure, unless an earlier process of this section began with it; what goes wrong becomes a row."""
        mark = "|".join(base.key)
        if mark in self._begun:
            return
        if self.left() <= 0:
            self._note(base, "", "left out: no time left")
            return
        self._begun.add(mark)
        self.journal.write(begin=mark)
        try:
            measure()
        except Exception as failure:
            self.failed(base, "", failure)
        if not self.smoke:
            gc.collect()
            torch.cuda.empty_cache()

    def _contest(
        self, base: Row, build: Callable[[], Contest], device: bool, wall: int, graph: bool, seconds: float
    ) -> None:
        contest = build()
        if not self.smoke and not torch.is_grad_enabled() and (gems := peers.flag_gems()):
            contest.calls["flaggems"] = _inside(gems, contest.calls["torch"])
        errors = self._check(base, contest)
        names, calls = list(errors), [contest.calls[name] for name in errors]
        if self.smoke:
            for name in names:
                self.add(base, name, "smoke", None, error=errors[name], note="smoke: no timings")
            if graph and "tgrad" in names:
                graphed = tgrad.cuda.graphed(contest.calls["tgrad"])
                for _ in range(5):
                    graphed()
            return
        kinds: list[tuple[str, Callable[[], list[Times]]]] = []
        if device:
            kinds.append(("device", lambda: self.timer.device(calls, seconds)))
        if wall:
            kinds.append(("wall", lambda: self.timer.wall(calls, wall)))
        for kind, measure in kinds:
            for name, times in zip(names, measure(), strict=True):
                self.add(base, name, kind, times, error=errors[name])
        if graph:
            self._replays(base, build, contest, [n for n in ("tgrad", "tgrad fused", "torch") if n in names])

    def _check(self, base: Row, contest: Contest) -> dict[str, float | None]:
        """Run each contender twice; (name: error) of those that work."""
        exact = None if contest.exact is None else [contest.part(t) for t in contest.exact()]
        errors: dict[str, float | None] = {}
        for name, call in contest.calls.items():
            try:
                call()
                found = [contest.part(t) for t in results(call())]
                if exact is None:
                    errors[name] = None
                else:
                    pairs = zip(found, exact, strict=True)
                    errors[name] = max((error(got, want) for got, want in pairs), key=lambda e: (e != e, e))
                del found
                self.wait()
            except Exception as failure:
                self.failed(base, name, failure)
        return errors

    def _replays(self, base: Row, build: Callable[[], Contest], first: Contest, names: list[str]) -> None:
        """Graphs of the call over buffers in rotation, more than the cache holds."""
        count = min(8, max(1, round(2 * CACHE / base.nbytes))) if base.nbytes else 1
        sets = [first, *(build() for _ in range(count - 1))]
        ready: dict[str, Call] = {}
        for name in names:
            every = [contest.calls[name] for contest in sets]
            try:
                capture = timing.captured if name == "torch" else timing.graphed
                ready[name] = capture(lambda every=every: [call() for call in every])
            except Exception as failure:
                self.failed(base, name, failure, "graph")
        if ready:
            found = self.timer.replays(list(ready.values()), count)
            for name, times in zip(ready, found, strict=True):
                self.add(base, name, "graph", times, note=f"{count} sets of buffers")

    # --- rows ------------------------------------------------------------------------------------
    def add(self, base: Row, contender: str, kind: str, times: Times | None, **more: Any) -> None:
        fields = {**vars(base), "contender": contender, "kind": kind, **more}
        if times is not None:
            if self.smoke:
                raise RuntimeError("a smoke run has no timings")
            fields |= times._asdict()
        self.journal.add(Row(**fields))

    def _note(self, base: Row, contender: str, note: str, kind: str = "") -> None:
        self.journal.add(Row(**{**vars(base), "contender": contender, "kind": kind, "note": note}))

    def failed(self, base: Row, contender: str, failure: Exception, kind: str = "") -> None:
        """A row with the error's first line. A device that is lost takes the process along: its parent goes on."""
        first = (str(failure).strip().splitlines() or [""])[0]
        said = f"left out: {first}" if isinstance(failure, LeftOut) else f"FAILED: {type(failure).__name__}: {first}"
        self._note(base, contender, said[:240], kind)
        self.wait()

    def wait(self) -> None:
        if not self.smoke:
            torch.cuda.synchronize()

    def compiled(self, function: Callable, **options: Any) -> Callable:
        """`torch.compile`, from its first call on; in a smoke run the function itself, which is what is checked.

        Raises:
            LeftOut: at the first call, if there is too little time to compile.
        """
        if self.smoke:
            return function
        ready: list[Callable] = []

        def call(*args: Any) -> Any:
            if not ready:
                if self.left() < COMPILE:
                    raise LeftOut(f"compiling takes too long for the {self.left():.0f} s left")
                torch._dynamo.reset()  # functions made by one line of code share a cache of few entries
                ready.append(torch.compile(function, dynamic=False, **options))
            return ready[0](*args)

        return call


def _inside(region: Callable[[], Any], call: Call) -> Call:
    def inside() -> Any:
        with region():
            return call()

    return inside


def _dtype(dtype: torch.dtype | None) -> str:
    return "" if dtype is None else str(dtype).rpartition(".")[2]


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
