"""A whole program watched from outside, in bounded memory: what it saves and where, its peak, its iterations."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tgrad import dispatch, graph, modes
from tgrad.engine import Walk
from tgrad.graph import Origin, Saved
from tgrad.kernels import launch
from tgrad.nn import Parameter
from tgrad.optim import Optimizer
from tgrad.profiler import fit, optimizers
from tgrad.profiler.origins import recorded
from tgrad.profiler.timeline import Timeline
from tgrad.storage import Allocation, ledger
from tgrad.tensor import Tensor

GRADIENTS = 100_000  # storages that are known to be one
ITERATIONS = 1_000  # kept one by one; of more, every second is dropped, again and again


@dataclass
class Source:
    """What one line saved for backward under one name: how often, how many of those were used, and their bytes."""

    saved: int = 0
    used: int = 0
    logical_bytes: int = 0


@dataclass(frozen=True)
class Key:
    """Where something was saved: op, the argument's name, and the rest as in a SavedRow."""

    op: str
    argument: str
    module: str
    file: str
    line: int
    function: str
    shape: str
    dtype: str


@dataclass
class Iterations:
    """The ledger after each iteration: a step of an optimiser or, without one, a backward."""

    numbers: list[int] = field(default_factory=list)
    live_bytes: list[int] = field(default_factory=list)
    stride: int = 1
    count: int = 0

    def add(self, live: int) -> None:
        """Note one more."""
        if self.count % self.stride == 0:
            self.numbers.append(self.count)
            self.live_bytes.append(live)
            if len(self.numbers) > ITERATIONS:
                self.stride *= 2
                self.numbers, self.live_bytes = self.numbers[::2], self.live_bytes[::2]
        self.count += 1

    def slope(self) -> tuple[float, float]:
        """Bytes an iteration, and half the 95 % interval, over all but the first two; NaN of too few."""
        x, y = self.numbers[2:], self.live_bytes[2:]
        if len(x) < 3:
            return math.nan, math.nan
        found = fit.line(x, y)
        return found.slope, found.slope_ci


class Watcher:
    """Listens to the engine while a program runs.

    Attributes:
        timeline: allocations and frees, the largest of them one by one.
        sources: by Key, all that was saved.
        at_peak: what was saved and live when that was most, at the beginning of a backward: (Key, bytes) by storage.
        ops: how many ran, by grad mode. kernels, nodes, walks, steps: how many.
    """

    def __init__(self) -> None:
        self.timeline = Timeline()
        self.before_bytes = ledger.live_bytes
        self.sources: dict[Key, Source] = {}
        self.live: dict[int, tuple[Key, int]] = {}
        self.live_bytes = 0
        self.at_peak: dict[int, tuple[Key, int]] = {}
        self.at_peak_bytes = 0
        self.iterations = Iterations()
        self.ops = {"grad": 0, "no_grad": 0, "inference_mode": 0}
        self.kernels = {"forward": 0, "backward": 0, "step": 0}
        self.ran = {"forward": 0, "backward": 0, "step": 0}
        self.nodes = self.walks = self.steps = 0
        self.parameters: dict[int, int] = {}
        self.elements = 0  # of all parameters
        self.gradients: set[int] = set()  # storages
        self.gradients_bytes = 0  # of one iteration, the most
        self.states: dict[int, int] = {}
        self.optimizer = ""
        self._op = ""
        self._depth = 0
        self._keys: dict[int, Key] = {}  # of saved objects that live, by id: an id is taken again only after a death

    # --- what the engine tells ---------------------------------------------------------------------------------------
    def begin(self, op: str) -> None:
        """Told by dispatch."""
        self._op = op
        if not self._depth:
            mode = modes.current()
            self.ops["inference_mode" if mode.inference else "grad" if mode.grad else "no_grad"] += 1
            self.ran[self.timeline.phase] += 1
        self._depth += 1

    def end(self, op: str) -> None:
        """Told by dispatch."""
        self._depth -= 1

    def allocated(self, storage: Allocation) -> None:
        """Told by the ledger."""
        self.timeline.allocated(storage)

    def freed(self, storage: Allocation) -> None:
        """Told by the ledger."""
        self.timeline.freed(storage)
        gone = self.live.pop(storage.id, None)
        if gone is not None:
            self.live_bytes -= gone[1]

    def saved(self, s: Saved, origin: Origin) -> None:
        """Told of each saved tensor."""
        if isinstance(s.edge, Tensor):  # a leaf: live without a graph
            return
        layout = s.layout
        shape = "x".join(map(str, layout.shape)) or "()"
        key = Key(
            self._op, s.name, origin.module, origin.file, origin.line, origin.function, shape, layout.dtype.name
        )
        source = self.sources.setdefault(key, Source())
        source.saved += 1
        source.logical_bytes += layout.nbytes
        self._keys[id(s)] = key
        storage = s.pinned()
        if storage is not None and storage.id not in self.live and storage.id not in self.parameters:
            self.live[storage.id] = key, storage.nbytes
            self.live_bytes += storage.nbytes

    def used(self, s: Saved) -> None:
        """Told of each saved tensor that backward takes."""
        key = self._keys.get(id(s))
        if key is not None:
            self.sources[key].used += 1

    def snapshot(self) -> None:
        """At a moment when much is saved: keep what that is, if it is the most so far."""
        if self.live_bytes > self.at_peak_bytes:
            self.at_peak, self.at_peak_bytes = dict(self.live), self.live_bytes

    def walked(self) -> None:
        """A backward has ended."""
        self.walks += 1
        if not self.optimizer:
            self.iterations.add(ledger.live_bytes)
        if not self.parameters:
            self.look()

    def stepped(self, optimizer: Optimizer) -> None:
        """An optimiser's step has ended."""
        if not self.optimizer:  # the backwards so far were counted in its place
            self.iterations = Iterations()
            self.optimizer = type(optimizer).__name__
        self.steps += 1
        self.iterations.add(ledger.live_bytes)
        self.states = self.states or optimizers.state_of(optimizer)

    def look(self) -> None:
        """Find the parameters that the program made, and their gradients."""
        born = self.timeline.born
        mine = [p for p in gc.get_objects() if issubclass(type(p), Parameter) and p.storage.id in born]
        self.parameters = {p.storage.id: p.storage.nbytes for p in mine}
        self.elements = sum(p.numel() for p in mine)
        self.graded(mine)

    def graded(self, parameters: list[Tensor]) -> None:
        """Note the gradients that these have now."""
        sizes = {p.grad.storage.id: p.grad.storage.nbytes for p in parameters if p.grad is not None}
        self.gradients_bytes = max(self.gradients_bytes, sum(sizes.values()))
        if len(self.gradients) < GRADIENTS:
            self.gradients |= set(sizes)

    def category(self, storage: int) -> str:
        """What a storage was for, one of records.CATEGORIES."""
        if storage in self.parameters:
            return "parameter"
        if storage in self.states:
            return "optimizer"
        if storage in self.at_peak or storage in self.live:
            return "intermediate"
        return "gradient" if storage in self.gradients else "temporary"

    def unused(self) -> list[tuple[Key, Source]]:
        """What was saved and never used, the most bytes first."""
        found = [(k, s) for k, s in self.sources.items() if s.saved and not s.used]
        return sorted(found, key=lambda pair: -pair[1].logical_bytes)

    # --- listening ---------------------------------------------------------------------------------------------------
    @contextmanager
    def on(self) -> Iterator[Watcher]:
        """Listen inside the block, in every thread."""
        with recorded():
            before, find, _ = had = graph.on_save, graph.find_origin, dispatch.observer
            run, step = Walk.run, Optimizer.step
            kinds: list[Any] = [Saved, *Saved.__subclasses__()]
            unpacks = {kind: vars(kind)["unpack"] for kind in kinds if "unpack" in vars(kind)}
            assert find is not None
            watcher, timeline = self, self.timeline

            def on_save(s: Saved) -> None:
                watcher.saved(s, find())
                if before is not None:
                    before(s)

            def noted() -> Origin:
                watcher.nodes += 1
                return find()

            def noting(unpack: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
                def wrapped(s: Any, node: Any) -> Tensor:
                    watcher.used(s)
                    return unpack(s, node)

                return wrapped

            def walked(walk: Walk, roots: Any) -> None:
                watcher.snapshot()
                phase, timeline.phase = timeline.phase, "backward"
                try:
                    run(walk, roots)
                finally:
                    timeline.phase = phase
                watcher.walked()

            def stepped(optimizer: Optimizer, closure: Any = None) -> Any:
                watcher.graded([p for group in optimizer.param_groups for p in group["params"]])
                phase, timeline.phase = timeline.phase, "step"
                try:
                    result = step(optimizer, closure)
                finally:
                    timeline.phase = phase
                watcher.stepped(optimizer)
                return result

            def launched(label: str) -> None:
                watcher.kernels[timeline.phase] += 1

            graph.on_save, graph.find_origin, dispatch.observer = on_save, noted, self
            for kind, unpack in unpacks.items():
                kind.unpack = noting(unpack)
            Walk.run, Optimizer.step = walked, stepped  # type: ignore[method-assign, assignment]
            try:
                with ledger.subscribe(self), launch.listen(launched):
                    yield self
            finally:
                graph.on_save, graph.find_origin, dispatch.observer = had
                for kind, unpack in unpacks.items():
                    kind.unpack = unpack
                Walk.run, Optimizer.step = run, step  # type: ignore[method-assign]
                self.snapshot()
