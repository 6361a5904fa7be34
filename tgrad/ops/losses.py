"""What losses are made of: pointwise formulas that run as one kernel, and picking one class of each row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dtypes import TENSOR
from tgrad.expression import Expression, promoting
from tgrad.kernels.launch import Launch
from tgrad.layout import Layout, layout
from tgrad.op import Kernel, Pointwise
from tgrad.ops import pointwise as p
from tgrad.ops.creation import arange
from tgrad.ops.reduce import reduce_launch
from tgrad.tensor import Tensor


def formula(name: str, function: Callable, grad: dict[str, Callable], grad_name: str) -> Pointwise:
    """An op over broadcast operands that computes `function`, in symbols, in one kernel; with its own derivatives."""
    row = Pointwise(name, function, promoting, grad, grad_name=grad_name)
    row.__dict__["expression"] = Expression.of(function, len(row.inputs))
    return row


def _with_sign(g: Any, x: Any) -> Any:
    return p.where(x > 0, g, p.where(x < 0, -g, 0))


absolute_error = formula(
    "absolute_error", lambda a, b: p.abs(a - b),
    {"a": lambda g, a, b: _with_sign(g, a - b), "b": lambda g, a, b: _with_sign(g, b - a)}, "L1Loss",
)  # fmt: skip


def _smooth_l1(a: Any, b: Any, beta: Any) -> Any:
    d = a - b
    return p.where(p.abs(d) < beta, 0.5 * d * d / beta, p.abs(d) - 0.5 * beta)


def _smooth_l1_grad(g: Any, d: Any, beta: Any) -> Any:
    return p.where(p.abs(d) < beta, g * (d / beta), _with_sign(g, d))


smooth_l1 = formula(
    "smooth_l1", _smooth_l1,
    {"a": lambda g, a, b, beta: _smooth_l1_grad(g, a - b, beta),
     "b": lambda g, a, b, beta: _smooth_l1_grad(g, b - a, beta)}, "SmoothL1Loss",
)  # fmt: skip


def _huber(a: Any, b: Any, delta: Any) -> Any:
    d = a - b
    return p.where(p.abs(d) <= delta, 0.5 * d * d, delta * (p.abs(d) - 0.5 * delta))


def _huber_grad(g: Any, d: Any, delta: Any) -> Any:
    return p.where(p.abs(d) <= delta, g * d, _with_sign(g * delta, d))


huber = formula(
    "huber", _huber,
    {"a": lambda g, a, b, delta: _huber_grad(g, a - b, delta),
     "b": lambda g, a, b, delta: _huber_grad(g, b - a, delta)}, "HuberLoss",
)  # fmt: skip


def _log(x: Any) -> Any:
    return p.maximum(p.log(x), -100)


bce = formula(
    "binary_cross_entropy", lambda x, target: (target - 1) * _log(1 - x) - target * _log(x),
    {"x": lambda g, x, target: g * (x - target) / p.maximum((1 - x) * x, 1e-12),
     "target": lambda g, x: g * (p.log(1 - x) - p.log(x))}, "BinaryCrossEntropy",
)  # fmt: skip


def _log_sigmoid(x: Any) -> Any:
    return -p.softplus(-x, 1.0, 40.0)  # beyond 40 exp(-x) is below the last bit in float64 too


bce_logits = formula(
    "binary_cross_entropy_with_logits", lambda x, target: (1 - target) * x - _log_sigmoid(x),
    {"x": lambda g, x, target: g * (p.sigmoid(x) - target), "target": lambda g, x: -(g * x)},
    "BinaryCrossEntropyWithLogits",
)  # fmt: skip
bce_logits_weighted = formula(
    "binary_cross_entropy_with_logits",
    lambda x, target, w: (1 - target) * x - ((w - 1) * target + 1) * _log_sigmoid(x),
    {"x": lambda g, x, target, w: g * ((1 - target) - ((w - 1) * target + 1) * p.sigmoid(-x)),
     "target": lambda g, x, w: -(g * (x + (w - 1) * _log_sigmoid(x))),
     "w": lambda g, x, target: -(g * (target * _log_sigmoid(x)))},
    "BinaryCrossEntropyWithLogits",
)  # fmt: skip
kl = formula(
    "kl_div", lambda x, target: p.where(p.eq(target, 0), 0, target * p.log(target)) - target * x,
    {"x": lambda g, target: -(g * target), "target": lambda g, x, target: g * (p.log(target) + 1 - x)}, "KlDiv",
)  # fmt: skip
kl_log = formula(
    "kl_div", lambda x, target: p.exp(target) * (target - x),
    {"x": lambda g, target: -(g * p.exp(target)),
     "target": lambda g, x, target: g * (p.exp(target) * (target - x + 1))}, "KlDiv",
)  # fmt: skip


# --- one class of each row -------------------------------------------------------------------------------------
def _build_pick(x: Tensor, target: Tensor, classes: Tensor) -> tuple[list[Layout], Launch]:
    rows = tuple(target.shape)
    at = target.layout
    wide = layout(at.dtype, (*rows, 1), (*at.strides, 0), compute, at.aligned)
    expression = Expression.of(lambda v, t, c: p.where(p.eq(t, c), v, 0), 3)
    operands = tuple((t.dtype, TENSOR) for t in (x, target, classes))
    out = layout(x.dtype, rows, None, compute)
    ins = [x.layout, wide, classes.layout]
    return [out], reduce_launch("pick", "sum", expression, operands, ins, tuple(x.shape), (len(rows),), out)


def _pick_grad(g: Tensor, target: Tensor, *, x_shape: tuple[int, ...]) -> Tensor:
    last, classes = (*target.shape, 1), arange(x_shape[-1], dtype=target.dtype)
    return p.where(p.eq(target.reshape(last), classes), g.reshape(last), 0)


_pick = Kernel("pick", ("x", "target", "classes"), _build_pick, {"x": _pick_grad}, grad_name="NllLoss")


def pick(x: Tensor, target: Tensor) -> Tensor:
    """x[..., target[...]]: (*, C) and class indices (*,) give (*,); 0 where the index is no class. Keeps indices."""
    return _pick(x, target, arange(x.shape[-1], dtype=dtypes.int64))
