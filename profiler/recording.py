"""`record`: what any block or function takes, as a context manager or a decorator."""

from __future__ import annotations

import functools
import gc
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tgrad import graph
from tgrad.graph import Saved
from tgrad.profiler.units import show_bytes, show_ms
from tgrad.storage import Allocation, ledger
from tgrad.tensor import Tensor

F = TypeVar("F", bound=Callable[..., Any])


class record:
    """What a block takes; as a decorator, what the last call of a function took, in its attribute `recorded`.

        with record() as r:
            loss = model(x).mean()
        print(r)                # peak +1.2 MiB, kept +812 KiB, saved for backward 790 KiB in 14 tensors

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
        self._seen: set[int] = set()

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
        graph.on_save = self._saved
        ledger.listeners = (*ledger.listeners, self)
        self.before_bytes, self._start = ledger.live_bytes, time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self.wall_ms = (time.perf_counter() - self._start) * 1e3
        self.after_bytes = ledger.live_bytes
        ledger.listeners = tuple(x for x in ledger.listeners if x is not self)
        graph.on_save = self._on_save

    def allocated(self, storage: Allocation) -> None:
        """Told by the ledger."""
        self.peak_bytes = max(self.peak_bytes, ledger.live_bytes - self.before_bytes)

    def freed(self, storage: Allocation) -> None:
        """Told by the ledger."""

    def _saved(self, saved: Saved) -> None:
        if self._on_save is not None:
            self._on_save(saved)
        if isinstance(saved.edge, Tensor):
            return
        self.saved_tensors += 1
        storage = saved.pinned()
        if storage is not None and storage.id not in self._seen:
            self._seen.add(storage.id)
            self.saved_bytes += storage.nbytes

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
