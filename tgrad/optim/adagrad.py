"""Adagrad."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tgrad.ops import creation, pointwise as p_
from tgrad.optim.optimizer import Optimizer, check_lr, count_step, new_step_count
from tgrad.tensor import Tensor
from tgrad.updates import Row, update


class Adagrad(Optimizer):
    """Steps along gradient / (sqrt(sum of all squares) + eps) (Duchi et al., 2011).

    Args:
        lr_decay: the n-th step's rate is lr / (1 + (n - 1) * lr_decay).
        weight_decay: adds weight_decay * p to the gradient.
        initial_accumulator_value: what the sum of squares begins with.
        maximize: steps uphill.
        foreach: False: one kernel for each parameter, unless fused; else one for many, which gives the same bits.

    Shape: of a parameter: any; what is kept for it has the same.
    Dtype: floating; what is kept for a parameter has its dtype.
    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-2, lr_decay: float = 0, weight_decay: float = 0,
        initial_accumulator_value: float = 0, eps: float = 1e-10, foreach: bool | None = None, *,
        maximize: bool = False, differentiable: bool = False, fused: bool | None = None,
    ) -> None:  # fmt: skip
        check_lr(lr)
        for name, value in (
            ("lr_decay", lr_decay), ("weight_decay", weight_decay),
            ("initial_accumulator_value", initial_accumulator_value), ("epsilon", eps),
        ):  # fmt: skip
            if not value >= 0.0:
                raise ValueError(f"Invalid {name} value: {value}")
        defaults = {
            "lr": lr, "lr_decay": lr_decay, "eps": eps, "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value, "foreach": foreach, "maximize": maximize,
            "differentiable": differentiable, "fused": fused,
        }  # fmt: skip
        super().__init__(params, defaults)
        for group in self.param_groups:
            for p in group["params"]:
                self._begin(p, group)

    def _begin(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = self.state[p]
        state["step"] = new_step_count()
        state["sum"] = creation.full_like(p, group["initial_accumulator_value"])
        return state

    def update_group(self, params: list[Tensor], group: dict[str, Any]) -> None:
        rows: dict[float, list[Row]] = {}  # by the count of steps, on which the rate depends
        for p in params:
            state = self.state[p] or self._begin(p, group)
            rows.setdefault(count_step(state["step"]), []).append((p, p._grad, state["sum"]))  # type: ignore[arg-type]
        decay, eps = float(group["weight_decay"]), float(group["eps"])
        function = _step(bool(group["maximize"]), decay != 0)
        for count, alike in rows.items():
            rate = float(group["lr"]) / (1 + (count - 1) * float(group["lr_decay"]))
            update("adagrad", function, (0, 2), alike, (decay, eps, rate))


@functools.cache
def _step(uphill: bool, decays: bool) -> Callable:
    """One function per variant, the same object at each call: it is the key of the kernel."""

    def step(p: Any, g: Any, total: Any, decay: Any, eps: Any, rate: Any) -> tuple:
        g = -g if uphill else g
        if decays:
            g = g + decay * p
        total = total + g * g
        return p - rate * (g / (p_.sqrt(total) + eps)), total

    return step
