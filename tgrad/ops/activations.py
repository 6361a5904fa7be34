"""The pointwise rows of activations beyond the basic ones. Subgradients at kinks are PyTorch's."""

from __future__ import annotations

from typing import Any

from tgrad.expression import floating, promoting
from tgrad.kernels import scalar_activations as scalar
from tgrad.op import Pointwise
from tgrad.ops.math import _no_bool, log1p, sign
from tgrad.ops.pointwise import (
    TABLE,
    _floats_only,
    abs,
    exp,
    logical_and,
    rows,
    sigmoid,
    tanh,
    where,
)  # fmt: skip

SELU_ALPHA, SELU_SCALE = scalar.SELU_ALPHA.value, scalar.SELU_SCALE.value


hardtanh: Pointwise = Pointwise(
    "hardtanh", scalar.hardtanh, promoting,
    lambda g, x, low, high: where(logical_and(x > low, x < high), g, 0), check=_no_bool("hardtanh"),
)  # fmt: skip
hardswish: Pointwise = Pointwise(
    "hardswish", scalar.hardswish, floating,
    lambda g, x: where(x <= -3, 0, where(x < 3, g * (x / 3 + 0.5), g)), check=_floats_only("hardswish"),
)  # fmt: skip
hardsigmoid: Pointwise = Pointwise(
    "hardsigmoid", scalar.hardsigmoid, floating,
    lambda g, x: where(logical_and(x > -3, x < 3), g * (1 / 6), 0), check=_floats_only("hardsigmoid"),
)  # fmt: skip


def _mish_grad(g: Any, x: Any) -> Any:
    s = sigmoid(x)
    t = tanh(where(x > 20, x, log1p(exp(where(x > 20, 0, x)))))
    return g * (t + x * s * (1 - t * t))


mish: Pointwise = Pointwise("mish", scalar.mish, floating, _mish_grad, check=_floats_only("mish"))
celu: Pointwise = Pointwise(
    "celu", scalar.celu, floating, lambda g, x, alpha: where(x <= 0, g * exp(x / alpha), g), grad_name="Elu",
    check=_floats_only("celu"),
)  # fmt: skip
selu: Pointwise = Pointwise(
    "selu", scalar.selu, floating, lambda g, x: where(x <= 0, g * (SELU_SCALE * SELU_ALPHA * exp(x)), g * SELU_SCALE),
    grad_name="Elu", check=_floats_only("selu"),
)  # fmt: skip


def _softsign_grad(g: Any, x: Any) -> Any:
    size = 1 + abs(x)
    return g / size - g * ((x / size) / size) * sign(x)


softsign: Pointwise = Pointwise(
    "softsign", scalar.softsign, floating, _softsign_grad, grad_name="Div", check=_no_bool("softsign")
)


def _logsigmoid_grad(g: Any, x: Any) -> Any:
    z = exp(-abs(x))
    return g * where(x < 0, 1 - z / (1 + z), z / (1 + z))


logsigmoid: Pointwise = Pointwise(
    "logsigmoid", scalar.logsigmoid, floating, _logsigmoid_grad, grad_name="LogSigmoid",
    check=_floats_only("logsigmoid"),
)  # fmt: skip
threshold: Pointwise = Pointwise(
    "threshold", scalar.threshold, promoting, lambda g, x, bound: where(x <= bound, 0, g), check=_no_bool("threshold"),
)  # fmt: skip
prelu: Pointwise = Pointwise("prelu", scalar.prelu, floating, {
    "x": lambda g, x, weight: where(x > 0, g, weight * g), "weight": lambda g, x: where(x > 0, 0, x * g),
}, check=_floats_only("prelu"))  # fmt: skip
glu: Pointwise = Pointwise("glu", scalar.glu, floating, {
    "a": lambda g, b: g * sigmoid(b), "b": lambda g, a, b: g * (a * (sigmoid(b) * (1 - sigmoid(b)))),
}, check=_floats_only("glu"))  # fmt: skip

TABLE.update(rows(globals()))
