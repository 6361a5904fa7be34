"""Stochastic gradient descent."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tgrad.ops import creation
from tgrad.optim.optimizer import Optimizer, check_lr
from tgrad.tensor import Tensor
from tgrad.updates import Row, update


class SGD(Optimizer):
    """p -= lr * gradient, or with momentum p -= lr * buffer, buffer = momentum * buffer + (1 - dampening) * gradient.

    Args:
        weight_decay: adds weight_decay * p to the gradient.
        nesterov: steps along gradient + momentum * buffer.
        maximize: steps uphill.
        foreach: False: one kernel for each parameter, unless fused; else one for many, which gives the same bits.

    Shape: of a parameter: any; what is kept for it has the same.
    Dtype: floating; what is kept for a parameter has its dtype.
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

    def update_group(self, params: list[Tensor], group: dict[str, Any]) -> None:
        momentum, decay = float(group["momentum"]), float(group["weight_decay"])
        uphill, nesterov = bool(group["maximize"]), bool(group["nesterov"])
        numbers = (float(group["lr"]), decay, momentum, 1 - float(group["dampening"]))
        if not momentum:
            rows: list[Row] = [(p, p._grad) for p in params]  # type: ignore[misc]
            update("sgd", _step(uphill, decay != 0, False, False, False), (0,), rows, numbers)
            return
        begun: dict[bool, list[Row]] = {}
        for p in params:
            state = self.state[p]
            buffer = state.get("momentum_buffer")
            begins = buffer is None
            if begins:
                state["momentum_buffer"] = buffer = creation.empty_like(p)
            begun.setdefault(begins, []).append((p, p._grad, buffer))  # type: ignore[arg-type]
        for begins, rows in begun.items():
            update("sgd", _step(uphill, decay != 0, True, begins, nesterov), (0, 2), rows, numbers)


@functools.cache
def _step(uphill: bool, decays: bool, has_momentum: bool, begins: bool, nesterov: bool) -> Callable:
    """One function per variant, the same object at each call: it is the key of the kernel.

    Args:
        begins: the buffer has no value yet; it takes the gradient.
    """

    def step(p: Any, g: Any, *rest: Any) -> tuple:
        lr, decay, momentum, take = rest[-4:]
        g = -g if uphill else g
        if decays:
            g = g + decay * p
        if not has_momentum:
            return (p - lr * g,)
        buffer = g if begins else momentum * rest[0] + take * g
        return p - lr * (g + momentum * buffer if nesterov else buffer), buffer

    return step
