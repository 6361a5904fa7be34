"""Adam and AdamW."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from operator import itemgetter
from typing import Any

from tgrad.ops import creation, pointwise as p_
from tgrad.optim.optimizer import Optimizer, check_lr, count_step, new_step_count
from tgrad.tensor import Tensor
from tgrad.updates import Row, update


class Adam(Optimizer):
    """Steps along mean / (sqrt(mean square) + eps) of past gradients, each with its bias corrected (Kingma and Ba,
    2014; amsgrad: Reddi et al., 2018).

    Args:
        betas: how much of the running mean, and of the mean square, a step keeps.
        weight_decay: adds weight_decay * p to the gradient; if decoupled_weight_decay, shrinks p by lr * weight_decay.
        amsgrad: divides by the largest mean square so far.
        maximize: steps uphill.
        foreach: False: one kernel for each parameter, unless fused; else one for many, which gives the same bits.

    Shape: of a parameter: any; what is kept for it has the same.
    Dtype: floating; what is kept for a parameter has its dtype.
    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0, amsgrad: bool = False, *, foreach: bool | None = None, maximize: bool = False,
        fused: bool | None = None, decoupled_weight_decay: bool = False,
    ) -> None:  # fmt: skip
        check_lr(lr)
        if not eps >= 0.0:
            raise ValueError(f"Invalid epsilon value: {eps}")
        for i, beta in enumerate(betas):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"Invalid beta parameter at index {i}: {beta}")
        if not weight_decay >= 0.0:
            raise ValueError(f"Invalid weight_decay value: {weight_decay}")
        if not all(isinstance(beta, float) for beta in betas):
            raise ValueError("betas must be either both floats or both Tensors")
        defaults = {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad,
            "maximize": maximize, "foreach": foreach, "capturable": False, "differentiable": False, "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }  # fmt: skip
        super().__init__(params, defaults)

    def update_group(self, params: list[Tensor], group: dict[str, Any]) -> None:
        amsgrad = bool(group["amsgrad"])
        kept = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if amsgrad else ()))
        kept_in = itemgetter(*kept)
        rows: dict[float, list[Row]] = {}  # by the count of steps, on which the corrections depend
        for p in params:
            state = self.state[p]
            if not state:
                state["step"] = new_step_count()
                for name in kept:
                    state[name] = creation.zeros_like(p)
            count = count_step(state["step"])
            rows.setdefault(count, []).append((p, p._grad, *kept_in(state)))  # type: ignore[arg-type]
        beta1, beta2 = map(float, group["betas"])
        lr, decay = float(group["lr"]), float(group["weight_decay"])
        decoupled = bool(group["decoupled_weight_decay"])
        kind = "decoupled" if decoupled and decay else "added" if decay else "none"
        function, targets = _step(bool(group["maximize"]), kind, amsgrad), (0, *range(2, 2 + len(kept)))
        for count, alike in rows.items():
            numbers = (
                1 - lr * decay if decoupled else decay,
                1 - beta1,
                beta2,
                1 - beta2,
                math.sqrt(1 - beta2**count),
                float(group["eps"]),
                -lr / (1 - beta1**count),
            )
            update("adam", function, targets, alike, numbers)


class AdamW(Adam):
    """Adam whose weight decay does not pass through the running means: p shrinks by lr * weight_decay at each step
    (Loshchilov and Hutter, 2017).

    Shape: of a parameter: any; what is kept for it has the same.
    Dtype: floating; what is kept for a parameter has its dtype.
    Raises:
        ValueError: an option out of range.
    """

    def __init__(
        self, params: Any, lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2, amsgrad: bool = False, *, maximize: bool = False, foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach, maximize=maximize, fused=fused,
            decoupled_weight_decay=True,
        )  # fmt: skip

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group["decoupled_weight_decay"] = True


@functools.cache
def _step(uphill: bool, decay: str, amsgrad: bool) -> Callable:
    """One function per variant, the same object at each call: it is the key of the kernel."""

    def step(p: Any, g: Any, mean: Any, square: Any, *rest: Any) -> tuple:
        largest = rest[:-7]
        shrink, take_mean, keep_square, take_square, correction, eps, minus_lr = rest[-7:]
        g = -g if uphill else g
        if decay == "decoupled":
            p = p * shrink
        elif decay == "added":
            g = g + shrink * p
        mean = mean + take_mean * (g - mean)
        square = square * keep_square + take_square * g * g
        if amsgrad:
            largest = (p_.maximum(largest[0], square),)
        root = p_.sqrt(largest[0] if amsgrad else square)
        return p + minus_lr * mean / (root / correction + eps), mean, square, *largest

    return step
