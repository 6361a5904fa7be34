"""Hooks on gradients: where they are kept, the handles that remove them, and what they may return."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from tgrad.tensor import Tensor

Hooks = dict[int, Callable]

_ids = itertools.count()


class RemovableHandle:
    """Removes a hook from the dictionaries it was put into; removing twice does nothing. Also a context manager."""

    def __init__(
        self, hook: Callable, hooks: dict[int, Callable], *flags: dict[int, bool], prepend: bool = False
    ) -> None:
        self.id = next(_ids)
        self._tables: tuple[dict, ...] = (hooks, *flags)
        hooks[self.id] = hook
        for table in flags:
            table[self.id] = True
        if prepend:
            others = [(k, h) for k, h in hooks.items() if k != self.id]
            hooks.clear()
            hooks[self.id] = hook
            hooks.update(others)

    def remove(self) -> None:
        """Unregister the hook."""
        for table in self._tables:
            table.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class LeafHooks:
    """The hooks of a leaf: on its gradient, around its accumulation, and after it."""

    __slots__ = ("tensor", "before", "after", "accumulated")

    def __init__(self) -> None:
        self.tensor: Hooks = {}
        self.before: Hooks = {}
        self.after: Hooks = {}
        self.accumulated: Hooks = {}


def leaf_hooks(leaf: Tensor) -> LeafHooks:
    """The hooks of a leaf, made at first use."""
    if leaf.hooks is None:
        leaf.hooks = LeafHooks()
    return leaf.hooks


def run_tensor_hooks(hooks: Hooks, g: Any) -> Any:
    """Each hook sees what the one before returned; the first sees None where no gradient arrived.

    Raises:
        TypeError, RuntimeError: a hook returned no tensor, or one of another shape or dtype.
    """
    for hook in list(hooks.values()):
        new = hook(g)
        if new is None:
            continue
        if not isinstance(new, Tensor):
            raise TypeError(f"expected Variable, but hook returned '{type(new).__name__}'")
        if g is None:
            g = new
            continue
        if new.layout.shape != g.layout.shape:
            raise RuntimeError(f"hook '{_name(hook)}' has changed the size of value")
        if new.layout.dtype is not g.layout.dtype:
            was, got = (f"torch.{t.layout.dtype.legacy}Tensor" for t in (g, new))
            raise RuntimeError(f"hook '{_name(hook)}' has changed the type of value (was {was} got {got})")
        g = new
    return g


def run_prehooks(hooks: Hooks, outputs: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Node hooks that see, and may replace, the gradients that arrive."""
    grads = tuple(outputs)
    for hook in list(hooks.values()):
        new = hook(grads)
        if new is not None:
            grads = _replaced(hook, new, grads)
    return grads


def run_posthooks(
    hooks: Hooks, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Node hooks that see what arrived, and may replace what the node computed."""
    grads = tuple(inputs)
    for hook in list(hooks.values()):
        new = hook(grads, tuple(outputs))
        if new is not None:
            grads = _replaced(hook, new, grads)
    return grads


def _replaced(hook: Callable, new: Any, old: tuple) -> tuple[Tensor | None, ...]:
    values = (new,) if isinstance(new, Tensor) else tuple(new)
    if len(values) != len(old):
        raise RuntimeError(
            f"hook '{_name(hook)}' has returned an incorrect number of values (got {len(values)}, but expected "
            f"{len(old)})"
        )
    for value, before in zip(values, old, strict=True):
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"expected Variable, but hook returned '{type(value).__name__}'")
        if before is None:
            raise RuntimeError("can't replace a None gradient with a non-None value")
        if value.layout.dtype is not before.layout.dtype:
            raise RuntimeError(f"hook '{_name(hook)}' has changed the type of value")
        if value.layout.shape != before.layout.shape:
            raise RuntimeError(f"hook '{_name(hook)}' has changed the size of value")
    return values


def _name(hook: Callable) -> str:
    return getattr(hook, "__name__", repr(hook))
