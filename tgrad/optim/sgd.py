"""Stochastic gradient descent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tgrad.inplace import update
from tgrad.ops import creation
from tgrad.optim.optimizer import Optimizer, check_lr
from tgrad.tensor import Tensor


class SGD(Optimizer):
    """p -= lr * gradient, or with momentum p -= lr * buffer, buffer = momentum * buffer + (1 - dampening) * gradient.

    Args:
        weight_decay: adds weight_decay * p to the gradient.
        nesterov: steps along gradient + momentum * buffer.
        maximize: steps uphill.
        foreach, fused: accepted for PyTorch's sake: each parameter's step is one kernel in any case.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-3, momentum: float = 0, dampening: float = 0,
        weight_decay: float = 0, nesterov: bool = False, *, maximize: bool = False, foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:  # fmt: skip
        check_lr(lr)
        if momentum < 0.0:
            raise ValueError(f"Invalid momentum value: {momentum}")
        if weight_decay < 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        defaults = {
            "lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov,
            "maximize": maximize, "foreach": foreach, "differentiable": False, "fused": fused,
        }  # fmt: skip
        super().__init__(params, defaults)

    def update_one(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        momentum, decay = float(group["momentum"]), float(group["weight_decay"])
        state = self.state[p] if momentum else {}
        buffer = state.get("momentum_buffer")
        begins = momentum != 0 and buffer is None
        if begins:
            state["momentum_buffer"] = buffer = creation.empty_like(p)
        nesterov = momentum != 0 and bool(group["nesterov"])
        function = _step(bool(group["maximize"]), decay != 0, momentum != 0, begins, nesterov)
        targets, args = [p], [p, grad, float(group["lr"])]
        if decay:
            args.append(decay)
        if nesterov or (momentum and not begins):
            args.append(momentum)
        if buffer is not None:
            targets.append(buffer)
        if buffer is not None and not begins:
            args += [buffer, 1 - float(group["dampening"])]
        update("sgd", function, targets, args)


@functools.cache
def _step(uphill: bool, decays: bool, has_momentum: bool, begins: bool, nesterov: bool) -> Callable:
    """One function per variant, the same object at each call: it is the key of the kernel.

    Args:
        begins: the buffer has no value yet; it takes the gradient.
    """

    def step(p: Any, g: Any, lr: Any, *rest: Any) -> tuple:
        options = list(rest)
        g = -g if uphill else g
        if decays:
            g = g + options.pop(0) * p
        if not has_momentum:
            return (p - lr * g,)
        momentum = options.pop(0) if options else None
        if begins:
            buffer = g
        else:
            old, take = options
            buffer = momentum * old + take * g
        return p - lr * (g + momentum * buffer if nesterov else buffer), buffer

    return step
