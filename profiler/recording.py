"""`record`: what any block or function takes, as a context manager or a decorator."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from html import escape
from typing import Any, TypeVar

from tgrad import graph
from tgrad.graph import Saved
from tgrad.profiler.units import show_bytes, show_ms
from tgrad.storage import ledger, next_id
from tgrad.tensor import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def _listen(before: Callable[[Saved], None] | None) -> tuple[Callable[[], tuple[int, int]], Callable[[Saved], None]]:
    """(tells how many tensors were saved and their distinct bytes, what `graph.on_save` is to be meanwhile).

    It runs for every saved tensor: a closure, with as little in it as can be (tests/benchmarks/profiler.py).
    """
    sizes: dict[int, int] = {}
    count = 0

    def on_save(saved: Saved) -> None:
        nonlocal count
        if isinstance(saved.edge, Tensor):
            return
        count += 1
        storage = saved.storage or saved.pinned()
        if storage is not None:
            i = getattr(storage, "_id", 0)  # as storage.id, without the exception that most would raise
            if not i:
                i = storage._id = next_id()
            sizes[i] = storage.nbytes

    def both(saved: Saved) -> None:
        before(saved)  # type: ignore[misc]
        on_save(saved)

    return lambda: (count, sum(sizes.values())), on_save if before is None else both


class record:
    """What a block takes; as a decorator, what the last call of a function took, in its attribute `recorded`.

        with record() as r:
            loss = model(x).mean()
        print(r)                # peak +1.2 MiB, kept +812 KiB, saved for backward 790 KiB in 14 tensors

    The figures are there when the block is left.

    Attributes:
        before_bytes, after_bytes: the ledger at the beginning and at the end.
        peak_bytes: the most that was live in the block, beyond before_bytes.
        saved_bytes: distinct memory that ops in the block saved for backward; parameters and other leaves left out.
        saved_tensors: how many tensors that were.
        wall_ms: how long it took, the host's time on a GPU.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.before_bytes = self.after_bytes = self.peak_bytes = self.saved_bytes = self.saved_tensors = 0
        self.wall_ms = 0.0

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def recording(*args: Any, **kwargs: Any) -> Any:
            with record(self.name or function.__name__) as found:
                recording.recorded = found  # type: ignore[attr-defined]
                return function(*args, **kwargs)

        return recording  # type: ignore[return-value]

    def __enter__(self) -> record:
        gc.collect()
        self.__init__(self.name)  # type: ignore[misc]
        self._on_save = graph.on_save
        self._tell, graph.on_save = _listen(self._on_save)
        self._outer_peak, self.before_bytes = ledger.peak_bytes, ledger.live_bytes
        ledger.reset_peak()  # the ledger keeps the peak anyway: nothing is told of each allocation
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.wall_ms = (time.perf_counter() - self._start) * 1e3
        self.after_bytes = ledger.live_bytes
        self.peak_bytes = ledger.peak_bytes - self.before_bytes
        ledger.peak_bytes = max(ledger.peak_bytes, self._outer_peak)
        graph.on_save = self._on_save
        self.saved_tensors, self.saved_bytes = self._tell()

    @property
    def kept_bytes(self) -> int:
        """What is live after the block that was not before."""
        return self.after_bytes - self.before_bytes

    def __str__(self) -> str:
        name = f"{self.name}: " if self.name else ""
        kept = f"{'+' if self.kept_bytes >= 0 else '-'}{show_bytes(abs(self.kept_bytes))}"
        return (
            f"{name}peak +{show_bytes(self.peak_bytes)}, kept {kept}, saved for backward "
            f"{show_bytes(self.saved_bytes)} in {self.saved_tensors} tensors, {show_ms(self.wall_ms)}"
        )

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """A notebook shows the words."""
        return f"<p>{escape(str(self))}</p>"
