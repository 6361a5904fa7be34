"""The end of the graph: adding a gradient to a leaf's `.grad`."""

from __future__ import annotations

import threading

from tgrad.hooks import run_posthooks, run_prehooks
from tgrad.inplace import write
from tgrad.layout import is_gapless
from tgrad.ops import pointwise as p
from tgrad.tensor import Tensor, empty

accumulating = threading.RLock()  # concurrent walks may end in one leaf


def finish(leaf: Tensor, g: Tensor, own: bool, create_graph: bool) -> None:
    """Accumulate g, after the leaf's tensor hooks, and run the hooks around it.

    Raises:
        RuntimeError: the tensor is no leaf any more: it was written in place while it did not require grad.
    """
    if leaf.node is not None:
        raise RuntimeError("leaf variable has been moved into the graph interior")
    hooks = leaf.hooks
    if hooks is not None and hooks.before:
        replaced = run_prehooks(hooks.before, (g,))[0]
        if replaced is None:
            return
        own = own and replaced is g
        g = replaced
    with accumulating:
        accumulate(leaf, g, own and (hooks is None or not hooks.after), create_graph)
    if hooks is not None:
        for hook in list(hooks.accumulated.values()):
            if hook(leaf) is not None:
                raise TypeError(f"post accumulate grad hook '{getattr(hook, '__name__', hook)}' should return None.")
        if hooks.after:
            run_posthooks(hooks.after, (), (g,))


def accumulate(leaf: Tensor, g: Tensor, own: bool, create_graph: bool) -> None:
    """Add g to `leaf.grad`: in place into an existing one, unless the gradient shall have a graph of its own.

    Args:
        own: nobody else holds g's memory, so that it may become `leaf.grad`.
    """
    have = leaf._grad
    if create_graph:
        leaf._grad = (g if own else p.clone(g)) if have is None else p.add(have, g)
    elif have is None:
        leaf._grad = g if own and g.layout.strides == leaf.layout.strides else _like(leaf, g)
    elif have.version is None:  # an inference tensor: it cannot be written here
        leaf._grad = p.add(have, g)
    else:
        write(p.add, have, (have, g))


def _like(leaf: Tensor, g: Tensor) -> Tensor:
    """A copy of g with the leaf's strides, where those leave no gaps."""
    if not is_gapless(leaf.layout):
        return p.clone(g)
    return write(p.copy, empty(leaf.layout, inference=False), (g,))
