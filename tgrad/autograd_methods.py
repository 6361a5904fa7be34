"""The autograd methods of `Tensor`: whether it has history, backward, hooks and retained gradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from tgrad import differentiate
from tgrad.aliasing import refresh
from tgrad.graph import Node
from tgrad.hooks import RemovableHandle, leaf_hooks
from tgrad.ops import pointwise as p
from tgrad.tensor import INFERENCE, NO_GRAD, Tensor


class Autograd:
    """What the graph knows of a tensor; backward, hooks and retained gradients."""

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to it. A view of a tensor that requires grad does, unless it was made without grad."""
        t: Any = self
        alias = t.alias
        return t._requires_grad or (
            alias is not None and alias.creation not in (NO_GRAD, INFERENCE) and alias.base._requires_grad
        )

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)  # type: ignore[attr-defined]

    @property
    def grad_fn(self) -> Node | None:
        """The node that made it; None for a leaf.

        Raises:
            RuntimeError: it is a view made without grad, or one of several, and its base has been written since.
        """
        t: Any = self
        if t.alias is not None:
            refresh(t)
        return None if t.node is None else t.node.target()[0]

    @property
    def is_leaf(self) -> bool:
        """Whether no recorded operation made it."""
        return self.grad_fn is None

    def backward(self, gradient: Tensor | None = None, retain_graph: bool | None = None, create_graph: bool = False,
                 inputs: Tensor | Sequence[Tensor] | None = None) -> None:  # fmt: skip
        """Accumulate the gradient of this tensor into the leaves. See `tgrad.autograd.backward`.

        Shape: `gradient`: that of the tensor.
        Dtype: `gradient`: that of the tensor.
        Raises:
            RuntimeError: the tensor does not require grad; it has several elements and there is no gradient; the graph
                was freed; what it saved has been written in place since.
        """
        differentiate.backward(self, None if gradient is None else [gradient], retain_graph, create_graph, inputs)  # type: ignore[arg-type]

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call hook(grad) with the total gradient of each backward; what it returns (if not None) goes on instead.

        Shape: of the gradient: the tensor's.
        Dtype: of the gradient: the tensor's.
        Raises:
            RuntimeError: the tensor does not require grad.
        """
        t: Any = self
        if t.alias is not None:
            refresh(t)
        if not t._requires_grad:
            raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
        if t.node is None:
            return RemovableHandle(hook, leaf_hooks(t).tensor)
        if t.node.hooks is None:
            t.node.hooks = {}
        return RemovableHandle(hook, t.node.hooks)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> RemovableHandle:
        """Call hook(leaf) after each backward that changed `.grad`.

        Shape: of the gradient: the tensor's.
        Dtype: of the gradient: the tensor's.
        Raises:
            RuntimeError: the tensor does not require grad, or is no leaf.
        """
        t: Any = self
        if not t._requires_grad:
            raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
        if t.node is not None:
            raise RuntimeError("post accumulate grad hooks cannot be registered on non-leaf tensors")
        return RemovableHandle(hook, leaf_hooks(t).accumulated)

    def retain_grad(self) -> None:
        """Keep the gradient of this non-leaf in `.grad`.

        Raises:
            RuntimeError: the tensor does not require grad.
        """
        t: Any = self
        if t.alias is not None:
            refresh(t)
        if not t._requires_grad:
            raise RuntimeError("can't retain_grad on Tensor that has requires_grad=False")
        if t.node is None or t.node.retains is not None:
            return
        reference = weakref.ref(t)

        def keep(g: Tensor) -> None:
            alive = reference()
            if alive is not None:
                alive._grad = p.clone(g) if alive._grad is None else p.add(alive._grad, g)

        node: Node = t.node
        node.retains = keep
