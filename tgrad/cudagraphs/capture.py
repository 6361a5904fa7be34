"""One run of a step with what changes from step to step in device memory, and its capture as a CUDA graph.

While a `Run` is on, draws of random numbers read the seed and the offset from memory, and tgrad's optimisers read there
what they compute on the host for a step: rates, corrections by the count of steps. Each replay computes these numbers
again by the optimisers' own code, so learning rates, schedulers and counts act as they do without a graph.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tgrad import dtypes, random, storage, updates
from tgrad.cudagraphs.memory import Place, Pool, Table
from tgrad.dtypes import dtype
from tgrad.kernels import cuda_graph
from tgrad.kernels.creation import StreamAddress
from tgrad.optim import optimizer as optimizers
from tgrad.optim.optimizer import Optimizer
from tgrad.origins import OWN, find
from tgrad.random import Generator
from tgrad.tensor import Tensor


class Refused(RuntimeError):
    """Something in a step that a replay would not do again."""


class Later(RuntimeError):
    """Something that a step does once: the next one may be captured."""


class Stream:
    """A random stream in memory.

    Attributes:
        begin: its offset when the step began.
        drawn: how far the step moves it.
    """

    def __init__(self, place: Place, seed: int, begin: int) -> None:
        self.place, self.seed, self.begin, self.drawn = place, seed, begin, 0


class Update:
    """A call of an optimiser's `update_group`, and the updates with numbers that it made.

    Attributes:
        calls: of each: the function, its targets, how many rows there were, and a list of places and their type for
            each dtype that numbers are needed in.
    """

    def __init__(self, optimizer: Optimizer, params: list[Tensor], group: dict[str, Any]) -> None:
        self.optimizer, self.params, self.group = optimizer, params, group
        self.calls: list[tuple[Callable, tuple[int, ...], int, list[tuple[list[Place], dtype]]]] = []


class Run:
    """The hooks, and what they found.

    Args:
        rehearsal: what is launched runs: numbers are sent at once, and nothing is refused.
    """

    def __init__(self, rehearsal: bool, streams: dict[Generator, tuple[int, int]] | None = None) -> None:
        self.rehearsal, self.begins = rehearsal, streams or {}
        self.thread = threading.get_ident()
        self.table = Table()
        self.streams: dict[Generator, Stream] = {}
        self.updates: list[Update] = []
        self.reason: str | None = None
        self._update: Update | None = None

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Inside the block, this thread's draws and optimisers go through here."""
        random.in_memory, updates.in_memory, optimizers.stepping = self._draw, self._number, self._stepping
        if not self.rehearsal:
            storage.refuse = self.refuse
        try:
            yield
        finally:
            random.in_memory = updates.in_memory = optimizers.stepping = storage.refuse = None

    def refuse(self, what: str) -> None:
        """Give the capture up: `what` is in this step, on the line that is being executed.

        Raises:
            Refused: says so. If it is caught, the capture fails all the same.
        """
        if threading.get_ident() != self.thread:
            return
        if self.reason is None:
            line = find()
            self.reason = f"it {what}" + (f" ({line.file}:{line.line}, in {line.function})" if line.file else "")
        raise Refused(self.reason)

    def _draw(self, generator: Generator, seed: int, at: int) -> tuple[int, int]:
        if threading.get_ident() != self.thread:
            return seed, at
        stream = self.streams.get(generator)
        begins = self.begins.get(generator)
        if stream is None and (self.rehearsal or begins == (seed, at)):
            stream = self.streams[generator] = Stream(self.table.place(), seed, at)
            stream.place.set_integers(seed, at)
            if self.rehearsal:
                self.table.put()
        if stream is None or seed != stream.seed or at < stream.begin:
            if self.rehearsal:
                return seed, at
            self.refuse("makes or restarts a random stream")
        assert stream is not None
        return StreamAddress(stream.place.address), at - stream.begin

    def _stepping(self, optimizer: Optimizer) -> Callable[[list[Tensor], dict[str, Any]], None]:
        if threading.get_ident() != self.thread or not numbered(optimizer):
            return optimizer.update_group

        def update_group(params: list[Tensor], group: dict[str, Any]) -> None:
            self._update = Update(optimizer, list(params), group)
            self.updates.append(self._update)
            try:
                optimizer.update_group(params, group)
            finally:
                self._update = None

        return update_group

    def _number(
        self, name: str, function: Callable, targets: tuple[int, ...], rows: Sequence[updates.Row],
        numbers: tuple[float, ...], shared: updates.Row,
    ) -> bool:  # fmt: skip
        update = self._update
        if update is None or threading.get_ident() != self.thread:
            return False
        self._update = None  # the updates below have no numbers left
        try:
            kinds = [_number_type(row) for row in rows]
            made: list[tuple[list[Place], dtype]] = []
            for kind in dict.fromkeys(kinds):
                places = [self.table.place() for _ in numbers]
                for place, number in zip(places, numbers, strict=True):
                    place.set_float(float(number), kind)
                made.append((places, kind))
            update.calls.append((function, targets, len(rows), made))
            if self.rehearsal:
                self.table.put()
            for places, kind in made:
                alike = [row for row, k in zip(rows, kinds, strict=True) if k is kind]
                updates.update(name, function, targets, alike, (), (*shared, *[p.tensor(kind) for p in places]))
        finally:
            self._update = update
        return True


def numbered(optimizer: Optimizer) -> bool:
    """Whether a replay may ask an optimiser for its numbers again: it does nothing else in `update_group`."""
    return type(optimizer).update_group.__module__.startswith("tgrad.optim.")


def _number_type(row: updates.Row) -> dtype:
    """What an update computes with, so that numbers are rounded as those which a launch is given."""
    return dtypes.float64 if any(t.layout.dtype is dtypes.float64 for t in row) else dtypes.float32


class Mismatch(Exception):
    """An optimiser asks for other updates than were captured."""


def renumber(done: Sequence[Update]) -> None:
    """Ask the optimisers for the numbers of one more step.

    Raises:
        Mismatch: they would do something else now; their counts are as before.
    """
    asked: Iterator[tuple] = iter(())
    thread = threading.get_ident()

    def take(
        name: str, function: Callable, targets: tuple[int, ...], rows: Sequence, numbers: tuple, shared: tuple
    ) -> bool:
        if threading.get_ident() != thread:
            return False
        have = next(asked, None)
        if have is None or have[:3] != (function, targets, len(rows)):
            raise Mismatch
        for places, kind in have[3]:
            for place, number in zip(places, numbers, strict=True):
                place.set_float(number, kind)
        return True

    outer, updates.in_memory = updates.in_memory, take
    try:
        for i, update in enumerate(done):
            asked = iter(update.calls)
            try:
                update.optimizer.update_group(update.params, update.group)
                if next(asked, None) is not None:
                    raise Mismatch
            except Mismatch:
                _uncount(done[: i + 1])
                raise
    finally:
        updates.in_memory = outer


def _uncount(done: Sequence[Update]) -> None:
    for update in done:
        for p in update.params:
            count = update.optimizer.state[p].get("step")
            if count is not None:
                optimizers.count_step(count, -1)


class Captured:
    """What a capture gives: the graph, its result and all that must stay."""

    def __init__(self, graph: Any, result: Any, addresses: list[int], run: Run, pool: Pool) -> None:
        self.graph, self.result, self.addresses, self.run, self.pool = graph, result, addresses, run, pool


def capture(run: Run, function: Callable[[], Any]) -> Captured:
    """Run a step once without its launches, which become a graph.

    Raises:
        Refused: the step does what a graph cannot; `run.reason` says what.
        DriverError: the driver cannot.
        Exception: what the step raises.
    """
    pool = Pool()

    def give(memory: storage.Allocation, nbytes: int) -> None:
        if threading.get_ident() == run.thread:
            pool.give(memory, nbytes)
        else:
            memory._buffer, memory.ptr = storage._buffer(nbytes, memory.device)

    outer = storage.allocator
    if outer is not None:
        raise Refused("memory is guarded")
    storage.allocator = give
    storage.slow(True)
    try:
        with storage.apart(), cuda_graph.capturing() as captured, run.hooked():
            result = function()
            if run.reason is not None:  # the step went on regardless
                raise Refused(run.reason)
    finally:
        storage.allocator = outer
        storage.slow(False)
    for generator, stream in run.streams.items():
        stream.drawn = generator._offset - stream.begin
    return Captured(captured.graph, result, captured.addresses, run, pool)


def blame(error: BaseException) -> str:
    """An error of a step in one line, with the user's line that it came from."""
    lines = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(OWN)]
    where = f" ({lines[-1].filename}:{lines[-1].lineno}, in {lines[-1].name})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"
