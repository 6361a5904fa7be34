"""Adam and AdamW."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from tgrad.inplace import update
from tgrad.ops import creation, pointwise as p_
from tgrad.optim.optimizer import Optimizer, check_lr, count_step, new_step_count
from tgrad.tensor import Tensor


class Adam(Optimizer):
    """Steps along mean / (sqrt(mean square) + eps) of past gradients, each with its bias corrected.

    Args:
        betas: how much of the running mean, and of the mean square, a step keeps.
        weight_decay: adds weight_decay * p to the gradient; if decoupled_weight_decay, shrinks p by lr * weight_decay.
        amsgrad: divides by the largest mean square so far.
        maximize: steps uphill.
        foreach, fused: accepted for PyTorch's sake: each parameter's step is one kernel in any case.

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

    def update_one(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state, amsgrad = self.state[p], bool(group["amsgrad"])
        if not state:
            state["step"] = new_step_count()
            for name in ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if amsgrad else ())):
                state[name] = creation.zeros_like(p)
        count = count_step(state["step"])
        beta1, beta2 = map(float, group["betas"])
        lr, decay = float(group["lr"]), float(group["weight_decay"])
        decoupled = bool(group["decoupled_weight_decay"])
        kept = [state["exp_avg"], state["exp_avg_sq"], *([state["max_exp_avg_sq"]] if amsgrad else [])]
        numbers = (
            1 - lr * decay if decoupled else decay,
            1 - beta1,
            beta2,
            1 - beta2,
            math.sqrt(1 - beta2**count),
            float(group["eps"]),
            -lr / (1 - beta1**count),
        )
        kind = "decoupled" if decoupled and decay else "added" if decay else "none"
        function = _step(bool(group["maximize"]), kind, amsgrad)
        update("adam", function, [p, *kept], [p, grad, *kept, *numbers])


class AdamW(Adam):
    """Adam whose weight decay does not pass through the running means: p shrinks by lr * weight_decay at each step."""

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
