"""Where gradients go, as users see it: the accumulator of a leaf, and a place in the graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

from tgrad.hooks import RemovableHandle, leaf_hooks
from tgrad.tensor import Tensor


class AccumulateGrad:
    """The end of the graph at a leaf, as users see it. The engine's edge is the leaf itself."""

    __slots__ = ("variable", "__weakref__")

    next_functions = ()

    def __init__(self, variable: Tensor) -> None:
        self.variable = variable

    def name(self) -> str:
        return "torch::autograd::AccumulateGrad"

    def register_prehook(self, hook: Callable) -> RemovableHandle:
        """Call hook((grad,)) before the gradient is accumulated; it may return another."""
        return RemovableHandle(hook, leaf_hooks(self.variable).before)

    def register_hook(self, hook: Callable) -> RemovableHandle:
        """Call hook((), (grad,)) after the gradient was accumulated."""
        return RemovableHandle(hook, leaf_hooks(self.variable).after)

    def __repr__(self) -> str:
        return f"<AccumulateGrad object at {id(self):#x}>"


class GradientEdge(NamedTuple):
    """A place in the graph where a gradient arrives: a node (or accumulator), and which of its results."""

    node: Any
    output_nr: int


_accumulators: weakref.WeakValueDictionary[int, AccumulateGrad] = weakref.WeakValueDictionary()


def accumulator(leaf: Tensor) -> AccumulateGrad:
    """The accumulator of a leaf: one object while anybody holds it."""
    found = _accumulators.get(id(leaf))
    if found is None:
        found = _accumulators[id(leaf)] = AccumulateGrad(leaf)
    return found
