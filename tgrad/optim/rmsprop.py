"""RMSprop."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tgrad.ops import creation, pointwise as p_
from tgrad.optim.optimizer import Optimizer, check_lr, count_step, new_step_count
from tgrad.tensor import Tensor
from tgrad.updates import Row, update


class RMSprop(Optimizer):
    """Steps along gradient / (sqrt(running mean square) + eps) (Hinton, 2012; centered: Graves, 2013).

    Args:
        alpha: how much of the running mean square a step keeps.
        weight_decay: adds weight_decay * p to the gradient.
        momentum: steps along a buffer, momentum * buffer + the step above.
        centered: subtracts the square of the running mean: the root is of an estimate of the variance.
        maximize: steps uphill.
        foreach: False: one kernel for each parameter; else one for many, which gives the same bits.

    Shape: of a parameter: any; what is kept for it has the same.
    Dtype: floating; what is kept for a parameter has its dtype.
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

    def update_group(self, params: list[Tensor], group: dict[str, Any]) -> None:
        momentum, centered = float(group["momentum"]), bool(group["centered"])
        kept = ["square_avg", *(["momentum_buffer"] if momentum > 0 else []), *(["grad_avg"] if centered else [])]
        rows: list[Row] = []
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = new_step_count()
                for name in kept:
                    state[name] = creation.zeros_like(p)
            count_step(state["step"])
            rows.append((p, p._grad, *[state[name] for name in kept]))  # type: ignore[arg-type]
        alpha, decay = float(group["alpha"]), float(group["weight_decay"])
        numbers = (decay, alpha, 1 - alpha, float(group["eps"]), float(group["lr"]), momentum)
        function = _step(bool(group["maximize"]), decay != 0, momentum > 0, centered)
        update("rmsprop", function, (0, *range(2, 2 + len(kept))), rows, numbers)


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
