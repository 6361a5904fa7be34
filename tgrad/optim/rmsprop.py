"""RMSprop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tgrad.inplace import update
from tgrad.ops import creation, pointwise as p_
from tgrad.optim.optimizer import Optimizer, check_lr, count_step, new_step_count
from tgrad.tensor import Tensor


class RMSprop(Optimizer):
    """Steps along gradient / (sqrt(running mean square) + eps).

    Args:
        alpha: how much of the running mean square a step keeps.
        weight_decay: adds weight_decay * p to the gradient.
        momentum: steps along a buffer, momentum * buffer + the step above.
        centered: subtracts the square of the running mean: the root is of an estimate of the variance.
        maximize: steps uphill.
        foreach: accepted for PyTorch's sake: each parameter's step is one kernel in any case.

    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0,
        momentum: float = 0, centered: bool = False, capturable: bool = False, foreach: bool | None = None,
        maximize: bool = False, differentiable: bool = False,
    ) -> None:  # fmt: skip
        check_lr(lr)
        for name, value in (("epsilon", eps), ("momentum", momentum), ("weight_decay", weight_decay), ("alpha", alpha)):
            if not value >= 0.0:
                raise ValueError(f"Invalid {name} value: {value}")
        defaults = {
            "lr": lr, "momentum": momentum, "alpha": alpha, "eps": eps, "centered": centered,
            "weight_decay": weight_decay, "capturable": capturable, "foreach": foreach, "maximize": maximize,
            "differentiable": differentiable,
        }  # fmt: skip
        super().__init__(params, defaults)

    def update_one(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, momentum, centered = self.state[p], float(group["momentum"]), bool(group["centered"])
        names = ["square_avg", *(["momentum_buffer"] if momentum > 0 else []), *(["grad_avg"] if centered else [])]
        if not state:
            state["step"] = new_step_count()
            for name in names:
                state[name] = creation.zeros_like(p)
        count_step(state["step"])
        kept = [state[name] for name in names]
        alpha, decay = float(group["alpha"]), float(group["weight_decay"])
        numbers = (decay, alpha, 1 - alpha, float(group["eps"]), float(group["lr"]), momentum)
        function = _step(bool(group["maximize"]), decay != 0, momentum > 0, centered)
        update("rmsprop", function, [p, *kept], [p, grad, *kept, *numbers])


@functools.cache
def _step(uphill: bool, decays: bool, has_momentum: bool, centered: bool) -> Callable:
    """One function per variant, the same object at each call: it is the key of the kernel."""

    def step(p: Any, g: Any, square: Any, *rest: Any) -> tuple:
        others = list(rest[:-6])
        decay, alpha, take, eps, lr, momentum = rest[-6:]
        g = -g if uphill else g
        if decays:
            g = g + decay * p
        square = alpha * square + take * g * g
        spread, mean = square, None
        if centered:
            mean = others[-1]
            mean = mean + take * (g - mean)
            spread = square - mean * mean
        move = g / (p_.sqrt(spread) + eps)
        new = [square]
        if has_momentum:
            move = momentum * others[0] + move
            new.append(move)
        if mean is not None:
            new.append(mean)
        return p - lr * move, *new

    return step
