"""The pointwise rows that the others are built of: one scalar function, one type rule and one derivative each.

A formula's first parameter is the incoming gradient; naming an input, or `out`, is what saves it. Subgradients at kinks
are PyTorch's: relu(0) 0, abs(0) 0, bounds of clamp 1, ties of maximum one half.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from tgrad import dtypes, host_copies
from tgrad.dtypes import dtype
from tgrad.expression import Symbol, casting, comparing, counting, floating, logical, promoting, selecting
from tgrad.kernels import scalar
from tgrad.op import Composed, Pointwise

SQRT_HALF = math.sqrt(0.5)
SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


def _no_bool(name: str, instead: str) -> Any:
    def check(operands: list[dtype]) -> None:
        if all(d is dtypes.bool_ for d in operands):
            raise RuntimeError(
                f"{name}: bool tensors have no {name}: use {instead}, or convert them first, as in x.int()"
            )

    return check


def _no_bool_difference(operands: list[dtype]) -> None:
    if dtypes.bool_ in operands:
        raise RuntimeError(
            "Subtraction, the `-` operator, with a bool tensor is not supported. If you are trying to invert a mask, "
            "use the "
            "`~` or `logical_not()` operator instead."
        )


def _no_negative_integer_power(operands: list[dtype]) -> None:
    if all(d is dtypes.bool_ for d in operands):
        raise RuntimeError("pow: not implemented for bool tensors: convert them first, as in x.int()")


def _floats_only(name: str) -> Any:
    def check(operands: list[dtype]) -> None:
        if not operands[0].is_floating_point:
            raise RuntimeError(f"{name}: not implemented for {operands[0]!r}: convert the input first, as in x.float()")

    return check


# --- arithmetic
# --------------------------------------------------------------------------------------------------------
neg: Pointwise = Pointwise("neg", scalar.neg, promoting, lambda g: -g, check=_no_bool("neg", "logical_not"))
add: Pointwise = Pointwise("add", scalar.add, promoting, {"a": lambda g: g, "b": lambda g: g})
sub: Pointwise = Pointwise(
    "sub", scalar.sub, promoting, {"a": lambda g: g, "b": lambda g: -g}, check=_no_bool_difference
)
mul: Pointwise = Pointwise("mul", scalar.mul, promoting, {"a": lambda g, b: g * b, "b": lambda g, a: g * a})
div: Pointwise = Pointwise(
    "div", scalar.div, floating, {"a": lambda g, b: g / b, "b": lambda g, a, b: -g * ((a / b) / b)}
)
pow: Pointwise = Pointwise("pow", scalar.pow, promoting, {
    "a": lambda g, a, b: where(eq(b, 0), 0, g * (b * pow(a, b - 1))),
    "b": lambda g, a, b, out: where(logical_and(eq(a, 0), b >= 0), 0, g * (out * log(a))),
}, check=_no_negative_integer_power)  # fmt: skip
maximum: Pointwise = Pointwise("maximum", scalar.maximum, promoting, {
    "a": lambda g, a, b: where(eq(a, b), g / 2, where(a < b, 0, g)),
    "b": lambda g, a, b: where(eq(a, b), g / 2, where(b < a, 0, g)),
})  # fmt: skip
minimum: Pointwise = Pointwise("minimum", scalar.minimum, promoting, {
    "a": lambda g, a, b: where(eq(a, b), g / 2, where(a > b, 0, g)),
    "b": lambda g, a, b: where(eq(a, b), g / 2, where(b > a, 0, g)),
})  # fmt: skip
clamp: Pointwise = Pointwise("clamp", scalar.clamp, promoting, {
    "x": lambda g, x, low, high: where(logical_and(x >= low, x <= high), g, 0),
    "low": lambda g, x, low, high: where(logical_and(low < high, x < low), g, 0),
    "high": lambda g, x, low, high: where(logical_or(x > high, high < low), g, 0),
}, check=_no_bool("clamp", "logical_and or logical_or"))  # fmt: skip
clamp_min: Pointwise = Pointwise("clamp_min", scalar.maximum, promoting, {
    "a": lambda g, a, b: where(a >= b, g, 0), "b": lambda g, a, b: where(a < b, g, 0),
}, grad_name="Clamp")  # fmt: skip
clamp_max: Pointwise = Pointwise("clamp_max", scalar.minimum, promoting, {
    "a": lambda g, a, b: where(a <= b, g, 0), "b": lambda g, a, b: where(a > b, g, 0),
}, grad_name="Clamp")  # fmt: skip
where: Pointwise = Pointwise("where", scalar.where, selecting, {
    "a": lambda g, condition: where(condition, g, 0), "b": lambda g, condition: where(condition, 0, g),
})  # fmt: skip

# --- functions of one variable
# -----------------------------------------------------------------------------------------
abs: Pointwise = Pointwise(
    "abs", scalar.abs, promoting, lambda g, x: where(x > 0, g, where(x < 0, -g, 0)), check=_no_bool("abs", "x")
)
exp: Pointwise = Pointwise("exp", scalar.exp, floating, lambda g, out: g * out)
log: Pointwise = Pointwise("log", scalar.log, floating, lambda g, x: g / x)
sqrt: Pointwise = Pointwise("sqrt", scalar.sqrt, floating, lambda g, out: g / (2 * out))
rsqrt: Pointwise = Pointwise("rsqrt", scalar.rsqrt, floating, lambda g, out: -0.5 * g * (out * out * out))
reciprocal: Pointwise = Pointwise("reciprocal", scalar.reciprocal, floating, lambda g, out: -g * (out * out))
square: Pointwise = Pointwise("square", scalar.square, counting, lambda g, x: g * (2 * x), grad_name="Pow")
sin: Pointwise = Pointwise("sin", scalar.sin, floating, lambda g, x: g * cos(x))
cos: Pointwise = Pointwise("cos", scalar.cos, floating, lambda g, x: -(g * sin(x)))
tanh: Pointwise = Pointwise("tanh", scalar.tanh, floating, lambda g, out: g * (1 - out * out))
erf: Pointwise = Pointwise(
    "erf", scalar.erf, floating, lambda g, x: g * (2 * math.sqrt(2) * normal_density(x * math.sqrt(2)))
)
normal_density: Pointwise = Pointwise(
    "normal_density", scalar.normal_density, floating, lambda g, x, out: -(g * (x * out))
)

# --- activations
# -------------------------------------------------------------------------------------------------------
sigmoid: Pointwise = Pointwise("sigmoid", scalar.sigmoid, floating, lambda g, out: g * ((1 - out) * out))
relu: Pointwise = Pointwise(
    "relu", scalar.relu, promoting, lambda g, out: where(out <= 0, 0, g), check=_no_bool("relu", "x.int()"),
    sign=True,
)
leaky_relu: Pointwise = Pointwise(
    "leaky_relu",
    scalar.leaky_relu,
    floating,
    lambda g, x, slope: where(x > 0, g, g * slope),
    check=_floats_only("leaky_relu"),
)
gelu: Pointwise = Pointwise(
    "gelu",
    scalar.gelu,
    floating,
    lambda g, x: g * (0.5 * (1 + erf(x * SQRT_HALF)) + x * normal_density(x)),
    check=_floats_only("gelu"),
)


def _gelu_tanh_grad(g: Any, x: Any) -> Any:
    t = tanh(SQRT_2_OVER_PI * (x + 0.044715 * (x * x * x)))
    slope = SQRT_2_OVER_PI * (1 + 3 * 0.044715 * (x * x))
    return g * (0.5 * (1 + t) + 0.5 * x * ((1 - t * t) * slope))


gelu_tanh: Pointwise = Pointwise(
    "gelu_tanh", scalar.gelu_tanh, floating, _gelu_tanh_grad, grad_name="Gelu", check=_floats_only("gelu")
)


def _silu_grad(g: Any, x: Any) -> Any:
    s = sigmoid(x)
    return g * (s * (1 + x * (1 - s)))


silu: Pointwise = Pointwise("silu", scalar.silu, floating, _silu_grad, check=_floats_only("silu"))
softplus: Pointwise = Pointwise(
    "softplus", scalar.softplus, floating,
    lambda g, x, beta, threshold: where(x * beta > threshold, g, g * sigmoid(x * beta)), check=_floats_only("softplus"),
)  # fmt: skip
elu: Pointwise = Pointwise(
    "elu", scalar.elu, floating, lambda g, x, alpha: where(x <= 0, g * (alpha * exp(x)), g), check=_floats_only("elu")
)
squared_error: Pointwise = Pointwise("squared_error", scalar.squared_error, promoting, {
    "a": lambda g, a, b: g * (2 * (a - b)), "b": lambda g, a, b: g * (2 * (b - a)),
}, grad_name="MseLoss", check=_floats_only("mse_loss"))  # fmt: skip

# --- conditions
# --------------------------------------------------------------------------------------------------------
eq: Pointwise = Pointwise("eq", scalar.eq, comparing)
ne: Pointwise = Pointwise("ne", scalar.ne, comparing)
lt: Pointwise = Pointwise("lt", scalar.lt, comparing)
le: Pointwise = Pointwise("le", scalar.le, comparing)
gt: Pointwise = Pointwise("gt", scalar.gt, comparing)
ge: Pointwise = Pointwise("ge", scalar.ge, comparing)
logical_and: Pointwise = Pointwise("logical_and", scalar.logical_and, logical)
logical_or: Pointwise = Pointwise("logical_or", scalar.logical_or, logical)
logical_xor: Pointwise = Pointwise("logical_xor", scalar.logical_xor, logical)
logical_not: Pointwise = Pointwise("logical_not", scalar.logical_not, logical)

# --- copies
# ------------------------------------------------------------------------------------------------------------
clone: Pointwise = Pointwise("clone", scalar.identity, promoting, lambda g: g)
copy: Pointwise = Pointwise("copy", scalar.identity, promoting, lambda g: g)
clone.on_host = copy.on_host = host_copies.clone


@functools.cache
def cast(target: dtype) -> Pointwise:
    """The op that converts to `target`: floats truncate toward zero to integers; not zero is True."""
    return Pointwise("to_copy", scalar.identity, casting(target), lambda g: g, grad_name="ToCopy")


def rows(namespace: dict[str, Any]) -> dict[str, Pointwise]:
    """The rows among a module's globals, by name."""
    found = [v for v in namespace.values() if isinstance(v, Pointwise) and not isinstance(v, Composed)]
    return {row.name: row for row in found}


# All rows by name, for the tests' completeness check; the modules of further rows (arithmetic, math, activations) add
# theirs.
TABLE: dict[str, Pointwise] = rows(globals())


def _install_operators() -> None:
    def forward(row: Pointwise) -> Any:
        return lambda a, b: row(a, b)  # noqa: PLW0108  a plain function, which binds

    def reflected(row: Pointwise) -> Any:
        return lambda a, b: row(b, a)

    for name, row in {"add": add, "sub": sub, "mul": mul, "truediv": div, "pow": pow}.items():
        setattr(Symbol, f"__{name}__", forward(row))
        setattr(Symbol, f"__r{name}__", reflected(row))
    for name, row in {"lt": lt, "le": le, "gt": gt, "ge": ge}.items():
        setattr(Symbol, f"__{name}__", forward(row))
    setattr(Symbol, "__neg__", lambda a: neg(a))  # noqa: B010, PLW0108


_install_operators()
