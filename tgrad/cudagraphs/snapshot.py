"""The state of the engine as it is now, so that what a failed capture of a step did to it can be undone.

What lives is found through the garbage collector, once for a capture: tensors, nodes of the graph, modules, optimisers,
schedulers, random streams. Device memory is not copied: nothing that is captured runs.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Any

from tgrad.amp import GradScaler
from tgrad.graph import Node, Saved
from tgrad.nn.module import Module
from tgrad.optim.lr_scheduler import LRScheduler
from tgrad.optim.optimizer import Optimizer, _count_layout
from tgrad.random import Generator
from tgrad.recompute import Recipe
from tgrad.storage import Allocation
from tgrad.tensor import Tensor, Version

SLOTTED = (Tensor, Node, Saved, Recipe)
PLAIN = (Module, Optimizer, LRScheduler, GradScaler, Generator)
DEEP = 4  # containers within containers: an optimiser's state by parameter and name


def living(kinds: tuple[type, ...]) -> list[Any]:
    """All objects of these types."""
    right: dict[type, bool] = {}
    found = []
    for thing in gc.get_objects():
        kind = type(thing)
        if kind not in right:
            right[kind] = issubclass(kind, kinds)
        if right[kind]:
            found.append(thing)
    return found


def _slots(kind: type) -> tuple[str, ...]:
    names = [s for base in kind.__mro__ for s in getattr(base, "__slots__", ())]
    return tuple(dict.fromkeys(n for n in names if n not in ("__weakref__", "__dict__")))


class Snapshot:
    """Everything as it is. It holds what it found, so that no memory is freed while it lives.

    Attributes:
        tensors: with their gradients at the time.
        storages, optimizers, modules, generators: all that there are.
        versions: all write counters and their values.
    """

    def __init__(self) -> None:
        things = living((*SLOTTED, *PLAIN, Allocation))
        self.storages = [x for x in things if isinstance(x, Allocation)]
        self.optimizers = [x for x in things if isinstance(x, Optimizer)]
        self.modules = [(x, x.training) for x in things if isinstance(x, Module)]
        self.generators = {x: (x._seed, x._offset) for x in things if isinstance(x, Generator)}
        self.tensors = [(x, x._grad) for x in things if isinstance(x, Tensor)]
        versions = {id(x.version): x.version for x, _ in self.tensors if x.version is not None}
        self.versions: list[tuple[Version, int]] = [(v, v.value) for v in versions.values()]
        names: dict[type, tuple[str, ...]] = {}
        self._slots: list[tuple[Any, list[tuple[str, Any]]]] = []
        self._containers: dict[int, tuple[Any, Any]] = {}
        for x in things:
            if isinstance(x, SLOTTED):
                kind = type(x)
                if kind not in names:
                    names[kind] = _slots(kind)
                self._slots.append((x, [(n, getattr(x, n)) for n in names[kind] if hasattr(x, n)]))
            elif isinstance(x, PLAIN):
                self._keep(x.__dict__, DEEP)
        self._counts = [
            (state["step"].ptr, ctypes.c_float.from_address(state["step"].ptr).value)
            for optimizer in self.optimizers
            for state in optimizer.state.values()
            if isinstance(state, dict) and getattr(state.get("step"), "layout", None) is _count_layout
        ]
        self.options = {id(o): options(o) for o in self.optimizers}
        self.kept_states = {id(o): (o.state, len(o.state), _sizes(o)) for o in self.optimizers}

    def _keep(self, container: Any, depth: int) -> None:
        if id(container) in self._containers:
            return
        copy: Any = dict(container) if isinstance(container, dict) else list(container)
        self._containers[id(container)] = container, copy
        if depth:
            for value in copy.values() if isinstance(copy, dict) else copy:
                if isinstance(value, (dict, list)):
                    self._keep(value, depth - 1)

    def restore(self) -> None:
        """Put everything back."""
        for thing, values in self._slots:
            for name in _slots(type(thing)):
                if hasattr(thing, name) and not any(n == name for n, _ in values):
                    delattr(thing, name)
            for name, value in values:
                if getattr(thing, name, self) is not value:
                    setattr(thing, name, value)
        for version, value in self.versions:
            version.value = value
        for container, copy in self._containers.values():
            if isinstance(container, dict):
                container.clear()
                container.update(copy)
            else:
                container[:] = copy
        for address, count in self._counts:
            ctypes.c_float.from_address(address).value = count

    def changed_option(self) -> str | None:
        """An option of an optimiser that is another now, or None."""
        for optimizer in self.optimizers:
            for before, after in zip(self.options[id(optimizer)], options(optimizer), strict=False):
                for name in {*before, *after}:
                    if not _same(before.get(name, self), after.get(name, self)):
                        return f"{type(optimizer).__name__}'s {name}"
        return None

    def began_state(self) -> bool:
        """Whether an optimiser began to keep something for a parameter since."""
        for optimizer in self.optimizers:
            state, length, sizes = self.kept_states[id(optimizer)]
            if optimizer.state is not state or len(state) != length or _sizes(optimizer) != sizes:
                return True
        return False


def options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The options of each group."""
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def _same(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)


def _sizes(optimizer: Optimizer) -> list[int]:
    return [len(state) for state in optimizer.state.values() if isinstance(state, dict)]
