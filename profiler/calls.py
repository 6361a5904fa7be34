"""Which modules ran, when, on which memory: what a saved tensor's time is held against to find the call it fell in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tgrad.nn import Module
from tgrad.profiler.workloads import tensors_in


@dataclass
class Call:
    """One call of a module.

    path, module: which; depth: how many calls it lies in. begin_ns, end_ns: time.perf_counter_ns. inputs, outputs:
    bytes of each storage of its arguments and results, by id.
    """

    path: str
    module: Module
    depth: int
    begin_ns: int = 0
    end_ns: int = 0
    inputs: dict[int, int] = field(default_factory=dict)
    outputs: dict[int, int] = field(default_factory=dict)

    def covers(self, ns: int) -> bool:
        """Whether a moment falls into the call."""
        return self.begin_ns <= ns <= self.end_ns


class Calls:
    """Every call of the modules of a model, in the order in which they began."""

    def __init__(self) -> None:
        self.all: list[Call] = []
        self._open: list[Call] = []

    @contextmanager
    def on(self, model: Any) -> Iterator[Calls]:
        """Listen inside the block. A callable that is no module has no calls."""
        handles = []
        for path, module in model.named_modules() if isinstance(model, Module) else ():

            def enter(module: Module, args: tuple, kwargs: dict, path: str = path) -> None:
                call = Call(path, module, len(self._open), inputs=_sizes([args, kwargs]))
                self.all.append(call)
                self._open.append(call)
                call.begin_ns = time.perf_counter_ns()

            def leave(module: Module, args: tuple, output: Any) -> None:
                call = self._open.pop()
                call.end_ns, call.outputs = time.perf_counter_ns(), _sizes(output)

            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
            self._open.clear()

    def outermost(self, modules: list[Module]) -> list[Call]:
        """The calls of these modules that lie in no other such call."""
        wanted, found = set(map(id, modules)), []
        end = -1
        for call in self.all:
            if id(call.module) in wanted and call.begin_ns > end:
                found.append(call)
                end = call.end_ns
        return found


def _sizes(value: Any) -> dict[int, int]:
    return {t.storage.id: t.storage.nbytes for t in tensors_in(value)}
