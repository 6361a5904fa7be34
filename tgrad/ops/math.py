"""The pointwise rows of mathematics: functions of one and two variables, rounding, special values.

Subgradients at kinks are PyTorch's: sign, floor, round and the like have the gradient zero everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tgrad import dtypes
from tgrad.dtypes import dtype
from tgrad.expression import Operand, comparing, floating, promoting
from tgrad.kernels import scalar_math as scalar
from tgrad.op import Pointwise
from tgrad.ops.pointwise import (
    TABLE,
    _floats_only,
    abs,
    cos,
    eq,
    exp,
    log,
    logical_and,
    logical_or,
    normal_density,
    rows,
    rsqrt,
    sin,
    where,
)  # fmt: skip

LN_2, LN_10 = math.log(2), math.log(10)


def flat(g: Any) -> Any:
    """The gradient of what is constant almost everywhere: zero, also where g is not finite."""
    return where(False, g, 0)


def testing(operands: Sequence[Operand]) -> tuple[list[dtype], Operand]:
    """As `floating`; the result is bool."""
    wants, (_, rank) = floating(operands)
    return wants, (dtypes.bool_, rank)


def _no_bool(name: str) -> Any:
    def check(operands: list[dtype]) -> None:
        if operands[0] is dtypes.bool_:
            raise RuntimeError(f"{name}: not implemented for bool tensors: convert them first, as in x.int()")

    return check


# --- exponentials and logarithms -------------------------------------------------------------------------------------
exp2: Pointwise = Pointwise("exp2", scalar.exp2, floating, lambda g, out: g * out * LN_2)
expm1: Pointwise = Pointwise("expm1", scalar.expm1, floating, lambda g, out: g * (out + 1))
log2: Pointwise = Pointwise("log2", scalar.log2, floating, lambda g, x: g / (x * LN_2))
log10: Pointwise = Pointwise("log10", scalar.log10, floating, lambda g, x: g / (x * LN_10))
log1p: Pointwise = Pointwise("log1p", scalar.log1p, floating, lambda g, x: g / (x + 1))
logaddexp: Pointwise = Pointwise("logaddexp", scalar.logaddexp, floating, {
    "a": lambda g, a, b: g / (1 + exp(b - a)), "b": lambda g, a, b: g / (1 + exp(a - b)),
})  # fmt: skip
xlogy: Pointwise = Pointwise("xlogy", scalar.xlogy, floating, {
    "a": lambda g, a, b: where(logical_and(eq(a, 0), b <= 0), 0, g * log(b)), "b": lambda g, a, b: g * (a / b),
})  # fmt: skip


def _logit_grad(g: Any, x: Any, low: Any, high: Any) -> Any:
    bounded, lowest, highest = low <= high, where(low <= high, low, 0.0), where(low <= high, high, 1.0)
    outside = where(bounded, 0.0, math.nan)
    return where(logical_or(x < lowest, x > highest), outside, g / abs(x * (1 - x)))


logit: Pointwise = Pointwise("logit", scalar.logit, floating, _logit_grad)

# --- trigonometry ----------------------------------------------------------------------------------------------------
tan: Pointwise = Pointwise("tan", scalar.tan, floating, lambda g, out: g * (1 + out * out))
asin: Pointwise = Pointwise("asin", scalar.asin, floating, lambda g, x: g * rsqrt(1 - x * x))
acos: Pointwise = Pointwise("acos", scalar.acos, floating, lambda g, x: g * -rsqrt(1 - x * x))
atan: Pointwise = Pointwise("atan", scalar.atan, floating, lambda g, x: g / (x * x + 1))


def _inverse_square(a: Any, b: Any) -> Any:
    square = a * a + b * b
    return where(eq(square, 0), 0, 1 / square)


atan2: Pointwise = Pointwise("atan2", scalar.atan2, floating, {
    "a": lambda g, a, b: g * (b * _inverse_square(a, b)), "b": lambda g, a, b: g * (-a * _inverse_square(a, b)),
})  # fmt: skip
sinh: Pointwise = Pointwise("sinh", scalar.sinh, floating, lambda g, x: g * cosh(x))
cosh: Pointwise = Pointwise("cosh", scalar.cosh, floating, lambda g, x: g * sinh(x))
asinh: Pointwise = Pointwise("asinh", scalar.asinh, floating, lambda g, x: g * rsqrt(x * x + 1))
acosh: Pointwise = Pointwise("acosh", scalar.acosh, floating, lambda g, x: g * rsqrt(x * x - 1))
atanh: Pointwise = Pointwise("atanh", scalar.atanh, floating, lambda g, x: g * (1 / (1 - x * x)))
hypot: Pointwise = Pointwise("hypot", scalar.hypot, promoting, {
    "a": lambda g, a, out: g * (a / out), "b": lambda g, b, out: g * (b / out),
}, check=_floats_only("hypot"))  # fmt: skip
rad2deg: Pointwise = Pointwise("rad2deg", scalar.rad2deg, floating, lambda g: g * (180 / math.pi))
deg2rad: Pointwise = Pointwise("deg2rad", scalar.deg2rad, floating, lambda g: g * (math.pi / 180))


def _sinc_grad(g: Any, x: Any) -> Any:
    scaled, square = x * math.pi, x * x * math.pi
    return where(eq(square, 0), 0, g * ((scaled * cos(scaled) - sin(scaled)) / square))


sinc: Pointwise = Pointwise("sinc", scalar.sinc, floating, _sinc_grad)
erfc: Pointwise = Pointwise(
    "erfc", scalar.erfc, floating, lambda g, x: g * (-2 * math.sqrt(2) * normal_density(x * math.sqrt(2)))
)

# --- rounding --------------------------------------------------------------------------------------------------------
floor: Pointwise = Pointwise("floor", scalar.floor, promoting, flat, check=_no_bool("floor"))
ceil: Pointwise = Pointwise("ceil", scalar.ceil, promoting, flat, check=_no_bool("ceil"))
trunc: Pointwise = Pointwise("trunc", scalar.trunc, promoting, flat, check=_no_bool("trunc"))
round: Pointwise = Pointwise("round", scalar.round, promoting, flat, check=_no_bool("round"))
round_decimals: Pointwise = Pointwise(
    "round_decimals", scalar.round_decimals, promoting, flat, grad_name="Round", check=_floats_only("round")
)
frac: Pointwise = Pointwise("frac", scalar.frac, promoting, lambda g: g, check=_floats_only("frac"))

# --- signs and special values ----------------------------------------------------------------------------------------
sign: Pointwise = Pointwise("sign", scalar.sign, promoting, flat)
sgn: Pointwise = Pointwise("sgn", scalar.sign, promoting, flat)
copysign: Pointwise = Pointwise("copysign", scalar.copysign, floating, {
    "a": lambda g, a, out: where(eq(a, 0), 0, g * (out / a)), "b": flat,
})  # fmt: skip
heaviside: Pointwise = Pointwise("heaviside", scalar.heaviside, promoting)
nan_to_num: Pointwise = Pointwise(
    "nan_to_num", scalar.nan_to_num, promoting, lambda g, x: where(isfinite(x), g, 0), check=_floats_only("nan_to_num")
)
signbit: Pointwise = Pointwise("signbit", scalar.signbit, comparing)
isnan: Pointwise = Pointwise("isnan", scalar.isnan, comparing)
isinf: Pointwise = Pointwise("isinf", scalar.isinf, comparing)
isfinite: Pointwise = Pointwise("isfinite", scalar.isfinite, comparing)
isclose: Pointwise = Pointwise("isclose", scalar.isclose, testing)

TABLE.update(rows(globals()))
