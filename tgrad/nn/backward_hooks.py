"""A module's backward hooks: identity nodes around its forward, whose gradients are the module's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tgrad import modes
from tgrad.aliasing import wants_grad
from tgrad.function import Function
from tgrad.layout import Layout
from tgrad.ops.creation import zeros
from tgrad.tensor import Tensor

if TYPE_CHECKING:
    from tgrad.nn.module import Module


class BackwardHookFunction(Function):
    """Returns its inputs; one that does not require grad stays so."""

    @staticmethod
    def forward(ctx: Any, *args: Tensor) -> tuple[Tensor, ...]:
        ctx.mark_non_differentiable(*[a for a in args if not wants_grad(a)])
        return args

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return grads


class BackwardHooks:
    """The backward hooks of one call of a module.

    A node around the inputs tells of the gradients that leave the module, one around the outputs of those that enter.
    Positions without a tensor count too, and get None.
    """

    def __init__(self, module: Module, hooks: Sequence[Callable], pre_hooks: Sequence[Callable]) -> None:
        self.module, self.hooks, self.pre_hooks = module, hooks, pre_hooks
        self.grad_outputs: tuple | None = None
        self.inputs: list[int] | None = None  # positions of the inputs that have a node; None: no node
        self.n_inputs = 0
        self.plain: dict[int, Layout] = {}  # inputs that need no gradient: hooks see zeros, as PyTorch's do

    def around_inputs(self, args: tuple) -> tuple:
        """The arguments for forward."""
        self.n_inputs = len(args)
        wrapped, self.inputs, node = _wrap(args)
        if node is not None:
            self.plain = {i: a.layout for i, a in enumerate(args) if isinstance(a, Tensor) and not wants_grad(a)}
            node.register_hook(self._leave)
        return wrapped

    def around_outputs(self, result: Any) -> Any:
        """The module's result."""
        if not isinstance(result, (Tensor, tuple)):
            warnings.warn(
                "For backward hooks to be called, module output should be a Tensor or a tuple of Tensors but received "
                f"{type(result)}",
                stacklevel=4,
            )
        outputs = result if isinstance(result, tuple) else (result,)
        wrapped, places, node = _wrap(outputs)
        if node is not None:
            node.register_hook(lambda _, grads: self._enter(grads, places, len(outputs)))
        return wrapped if isinstance(result, tuple) else wrapped[0]

    def _enter(self, grads: Sequence[Tensor | None], places: list[int], count: int) -> tuple:
        """The gradients of the outputs have arrived."""
        entering = _spread(grads, places, count)
        for hook in self.pre_hooks:
            new = hook(self.module, entering)
            if new is None:
                continue
            if len(new) != count:
                raise RuntimeError(
                    f"Backward pre hook returned an invalid number of grad_output, got {len(new)}, but expected {count}"
                )
            entering = tuple(new)
        self.grad_outputs = entering
        if self.inputs is None:
            self._without_inputs(entering)
        return tuple(entering[i] for i in places)

    def _without_inputs(self, entering: tuple) -> None:
        warnings.warn(
            "Full backward hook is firing when gradients are computed with respect to module outputs since no inputs "
            "require gradients: grad_input is None for all of them.",
            stacklevel=2,
        )
        for hook in self.hooks:
            new = hook(self.module, (None,) * self.n_inputs, entering)
            if new is not None and not (isinstance(new, tuple) and all(g is None for g in new)):
                raise RuntimeError(
                    "Backward hook for Modules where no input requires gradient should always return None or None for "
                    "all gradients."
                )
        self.grad_outputs = None

    def _leave(self, grads: Sequence[Tensor | None], _: Any) -> tuple | None:
        """The gradients of the inputs have been computed."""
        if self.grad_outputs is None:  # they did not come through the outputs, as in a double backward
            return None
        assert self.inputs is not None
        leaving = _spread(grads, self.inputs, self.n_inputs)
        if self.plain:
            leaving = tuple(
                zeros(*self.plain[i].shape, dtype=self.plain[i].dtype) if i in self.plain else g
                for i, g in enumerate(leaving)
            )
        for hook in self.hooks:
            new = hook(self.module, leaving, self.grad_outputs)
            if new is None:
                continue
            if len(new) != self.n_inputs:
                raise RuntimeError(
                    f"Backward hook returned an invalid number of grad_input, got {len(new)}, but expected "
                    f"{self.n_inputs}"
                )
            leaving = tuple(new)
        self.grad_outputs = None
        return tuple(None if i in self.plain else leaving[i] for i in self.inputs)


def _spread(values: Sequence[Tensor | None], places: list[int], count: int) -> tuple:
    spread: list[Tensor | None] = [None] * count
    for i, value in zip(places, values, strict=True):
        spread[i] = value
    return tuple(spread)


def _wrap(args: tuple) -> tuple[tuple, Any, Any]:
    """(arguments with the floating tensors replaced by identities, their positions, their node).

    Without a tensor that requires grad, or with grad off: (args, None, None).
    """
    places = [i for i, a in enumerate(args) if isinstance(a, Tensor) and a.is_floating_point()]
    if not modes.current().record or not any(wants_grad(args[i]) for i in places):
        return args, None, None
    made = BackwardHookFunction.apply(*[args[i] for i in places])
    wrapped = list(args)
    for i, t in zip(places, made, strict=True):
        wrapped[i] = t
    node = next(t for t in made if t.node is not None).node.target()[0]
    return (tuple(wrapped) if type(args) is tuple else type(args)(*wrapped)), places, node
