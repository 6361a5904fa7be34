"""Hooks on what the graph saves: packing it in another form, offloading it, and copying it before it is overwritten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tgrad import graph, modes
from tgrad.device import cpu
from tgrad.graph import Saved, pack_hooks
from tgrad.ops.transfer import convert
from tgrad.recompute import Recomputed
from tgrad.storage import Storage
from tgrad.tensor import Tensor, Version

_disabled: ContextVar[str | None] = ContextVar("tgrad_pack_hooks_disabled", default=None)


class saved_tensors_hooks:
    """Inside the block, every tensor an op saves goes through `pack`, and comes back through `unpack` at each use.

    Only the innermost pair is in force; threads have their own. pack runs with grad off and may return anything; unpack
    must return a tensor. The version of what was saved is checked all the same.

    Raises:
        RuntimeError: entered inside `disable_saved_tensors_hooks`.
    """

    def __init__(self, pack_hook: Callable[[Tensor], Any], unpack_hook: Callable[[Any], Tensor]) -> None:
        self.pack_hook, self.unpack_hook = pack_hook, unpack_hook

    def __enter__(self) -> None:
        message = _disabled.get()
        if message is not None:
            raise RuntimeError(message)
        pack_hooks.set((*pack_hooks.get(), (self.pack_hook, self.unpack_hook)))
        graph.choose_saver()

    def __exit__(self, *exception: object) -> None:
        pack_hooks.set(pack_hooks.get()[:-1])
        graph.choose_saver()


class save_on_cpu(saved_tensors_hooks):
    """Keep what is saved in host memory, and bring it back when it is used. On the CPU it is a copy too."""

    def __init__(self, pin_memory: bool = False, device_type: str = "cuda") -> None:
        def pack(t: Tensor) -> tuple[Any, Tensor]:
            with modes.no_grad():
                return t.device, convert(t.detach(), where=cpu, copy=True)

        def unpack(packed: tuple[Any, Tensor]) -> Tensor:
            device, t = packed
            return convert(t, where=device)

        super().__init__(pack, unpack)


@contextmanager
def disable_saved_tensors_hooks(error_message: str) -> Iterator[None]:
    """Inside the block, entering saved-tensor hooks raises RuntimeError(error_message).

    Raises:
        RuntimeError: hooks are active already; later, at each attempt to enter some: `error_message`.
    """
    if pack_hooks.get():
        raise RuntimeError(error_message)
    before = _disabled.get()
    _disabled.set(error_message)
    try:
        yield
    finally:
        _disabled.set(before)


@contextmanager
def allow_mutation_on_saved_tensors() -> Iterator[None]:
    """Inside the block, a write in place to a tensor that the graph saved leaves the graph a copy of the old value."""
    kept: dict[int, list[Saved]] = {}

    def remember(saved: Saved) -> None:
        kept.setdefault(id(saved.version), []).append(saved)

    def before_write(target: Tensor) -> None:
        for saved in kept.pop(id(target.version), ()):
            if saved.version is not target.version:
                continue
            if isinstance(saved, Recomputed):
                saved.set_aside()
            elif saved.storage is not None:
                copy_aside(saved)

    outer = graph.on_save, graph.before_write
    graph.on_save, graph.before_write = remember, before_write
    try:
        yield
    finally:
        graph.on_save, graph.before_write = outer
        kept.clear()


def copy_aside(saved: Saved) -> None:
    """Give a saved tensor memory of its own, in its strides."""
    assert saved.storage is not None
    nbytes = saved.layout.extent * saved.layout.dtype.itemsize
    own = Storage(nbytes, saved.storage.device)
    if nbytes:
        own.copy_range(saved.storage, saved.ptr - saved.storage.ptr, nbytes)
    edge = saved.edge
    if isinstance(edge, Tensor):  # the leaf itself is about to change: its history stays, its old values move here
        saved.edge = graph.through(edge, saved.layout)
    saved.storage, saved.ptr, saved.version, saved.expected = own, own.ptr, Version.zero(), 0
