"""Blocks keep their inputs alone, and backward runs them again: the policy "leanest", and checkpoints by pattern.

Of "leanest" a block is a direct child of a ModuleList or Sequential that has submodules of its own; of blocks within
blocks the outermost counts. It is run as `utils.checkpoint` runs a function, with what may not happen twice kept from
it: running statistics move once, and a block that called a custom Function, or drew from a generator that the user
holds, keeps what it saved. So does one with hooks. What is offloaded by pattern runs in a region of offload.py.
"""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any

from tgrad import graph, modes, once
from tgrad.nn import calls
from tgrad.nn.calls import Calls
from tgrad.offload import Region
from tgrad.policy import matches
from tgrad.recompute import Recomputed, readers
from tgrad.saved_hooks import copy_aside, saved_tensors_hooks
from tgrad.tensor import Tensor
from tgrad.utils.checkpoint import Frame, Slot


class _Kept(Slot):
    """A slot that has the tensor after all."""

    __slots__ = ("value",)

    value: Tensor | None


class _Block(Frame):
    """One call of a block."""

    def __init__(self, module: Calls, args: tuple, kwargs: dict) -> None:
        super().__init__(module.forward, args, kwargs, True, once.again())
        self.only_once = False
        self.held: list[tuple[_Kept, Tensor]] = []
        me = weakref.ref(self)
        for a in args:
            if isinstance(a, Tensor):
                readers(a.storage).append(me)

    def settle(self) -> None:
        """An input is about to be written, as plain recording would allow: keep its old value."""
        for a in self.args:
            if not isinstance(a, graph.Saved) or a.version.value != a.expected:
                continue
            if isinstance(a, Recomputed):
                a.set_aside()
            elif a.storage is not None:
                copy_aside(a)

    def new_slot(self, t: Tensor) -> Slot:
        slot = _Kept(len(self.slots))
        slot.value = None
        self.held.append((slot, t))
        return slot

    def finish(self) -> None:
        """The forward is over: drop what it saved, unless it cannot be run again."""
        self.complete = True
        if self.only_once:
            for slot, t in self.held:
                slot.value = t
        self.held = []

    def unpack(self, slot: Slot) -> Tensor:
        if isinstance(slot, _Kept) and slot.value is not None:
            return slot.value
        return super().unpack(slot)


def _run(module: Calls, args: tuple, kwargs: dict) -> Any:
    chosen = graph.patterns.get()
    if chosen is not None and chosen.unmatched and modes.current().record:
        chosen.look(calls.current_path(), module)
    if not modes.current().record or graph.pack_hooks.get():
        return module.forward(*args, **kwargs)
    block = module.is_block and graph.policy.get() == "leanest" and bool(module._modules)  # type: ignore[attr-defined]
    if chosen is None:
        return _run_block(module, args, kwargs) if block else module.forward(*args, **kwargs)
    path = calls.current_path()
    block = block or matches(chosen.checkpoint, path, module)
    region = graph.offloading.get() is None and matches(chosen.offload, path, module)
    with Region() if region else nullcontext():
        return _run_block(module, args, kwargs) if block else module.forward(*args, **kwargs)


def _run_block(module: Calls, args: tuple, kwargs: dict) -> Any:
    if _hooked(module):
        return module.forward(*args, **kwargs)
    block = _Block(module, args, kwargs)
    try:
        with saved_tensors_hooks(block.pack, block.unpack), once.watch(block):
            return module.forward(*args, **kwargs)
    finally:
        block.finish()


def _hooked(module: Any) -> bool:
    return any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in module.modules()
    )


calls.run_block = _run
