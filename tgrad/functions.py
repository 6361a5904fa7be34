"""The functions that are methods too, `tgrad.exp(x)` and `x.exp()`: they check their arguments, then call the op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tgrad import activations, arithmetic, docstrings, dtypes
from tgrad.arguments import Number, binary, operand, unary
from tgrad.ops import extremes, library, matmul, pointwise as p, products, reduce, scan, statistics, truth, views
from tgrad.ops.softmax import log_softmax, softmax
from tgrad.tensor import Tensor


def power(base: Any, exponent: Any) -> Any:
    if isinstance(base, Tensor) and isinstance(exponent, int) and not base.is_floating_point() and exponent < 0:
        raise RuntimeError("Integers to negative integer powers are not allowed.")
    return p.pow(base, exponent)


def scaled(row: p.Pointwise, input: Any, other: Any, alpha: Number) -> tuple:
    other = operand(row.name, other)
    return input, other if alpha == 1 else other * alpha


@docstrings.described(p.add)
def add(input: Tensor, other: Any, *, alpha: Number = 1) -> Tensor:
    """input + alpha * other."""
    return p.add(*scaled(p.add, input, other, alpha))


@docstrings.described(p.sub)
def sub(input: Tensor, other: Any, *, alpha: Number = 1) -> Tensor:
    """input - alpha * other."""
    return p.sub(*scaled(p.sub, input, other, alpha))


@docstrings.described(p.mul)
def mul(input: Tensor, other: Any) -> Tensor:
    """input * other."""
    return p.mul(input, operand("mul", other))


@docstrings.described(p.pow)
def pow(input: Any, exponent: Any) -> Tensor:
    """input ** exponent.

    Raises:
        RuntimeError: an integer tensor to a negative integer power.
    """
    return power(operand("pow", input), operand("pow", exponent))


@docstrings.described(p.clamp)
def clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """input limited to [min, max]; either may be None, a number or a tensor.

    Raises:
        RuntimeError: both are None.
    """
    if min is None and max is None:
        raise RuntimeError("torch.clamp: At least one of 'min' or 'max' must not be None")
    if min is None:
        return p.clamp_max(input, operand("clamp", max))
    if max is None:
        return p.clamp_min(input, operand("clamp", min))
    return p.clamp(input, operand("clamp", min), operand("clamp", max))


@docstrings.described(p.clamp_min)
def clamp_min(input: Tensor, min: Any) -> Tensor:
    """input where it is greater than `min`, else `min`, a number or a tensor."""
    return clamp(input, min=min)


@docstrings.described(p.clamp_max)
def clamp_max(input: Tensor, max: Any) -> Tensor:
    """input where it is less than `max`, else `max`, a number or a tensor."""
    return clamp(input, max=max)


@docstrings.described(p.where)
def where(condition: Tensor, input: Any = None, other: Any = None) -> Any:
    """input where condition, else other. Of a condition alone: the coordinates of what is not zero, as `nonzero`.

    Raises:
        RuntimeError: the condition is not bool.
    """
    if input is None and other is None and isinstance(condition, Tensor):
        return library.BOTH["nonzero"](condition, as_tuple=True)
    if not isinstance(condition, Tensor) or condition.dtype is not dtypes.bool_:
        got = repr(condition.dtype) if isinstance(condition, Tensor) else type(condition).__name__
        raise RuntimeError(f"where expected condition to be a boolean tensor, but got {got}")
    return p.where(condition, operand("where", input), operand("where", other))


UNARY = (
    "neg", "abs", "exp", "log", "sqrt", "rsqrt", "reciprocal", "square", "sin", "cos", "tanh", "erf", "sigmoid", "relu",
    "logical_not", "exp2", "expm1", "log2", "log10", "log1p", "tan", "asin", "acos", "atan", "sinh", "cosh", "asinh",
    "acosh", "atanh", "erfc", "sinc", "rad2deg", "deg2rad", "floor", "ceil", "trunc", "frac", "sign", "sgn",
)  # fmt: skip
TESTS = ("isnan", "isinf", "isfinite", "signbit")  # no in-place form: the result is bool
BINARY = (
    "maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor", "atan2",
    "hypot", "logaddexp", "copysign",
)  # fmt: skip
FUNCTIONS: dict[str, Callable] = {name: unary(p.TABLE[name]) for name in (*UNARY, *TESTS)}
FUNCTIONS |= {name: binary(p.TABLE[name]) for name in BINARY}
FUNCTIONS |= arithmetic.FUNCTIONS
FUNCTIONS |= {f.__name__: f for f in (add, sub, mul, pow, clamp, clamp_min, clamp_max, where)}
FUNCTIONS |= {
    "negative": FUNCTIONS["neg"], "subtract": sub, "multiply": mul, "clip": clamp, "absolute": FUNCTIONS["abs"],
    "arctan2": FUNCTIONS["atan2"], "fix": FUNCTIONS["trunc"], "greater": FUNCTIONS["gt"], "less": FUNCTIONS["lt"],
    "greater_equal": FUNCTIONS["ge"], "less_equal": FUNCTIONS["le"], "not_equal": FUNCTIONS["ne"],
}  # fmt: skip
FUNCTIONS |= {"arc" + name[1:]: FUNCTIONS[name] for name in ("asin", "acos", "atan", "asinh", "acosh", "atanh")}
FUNCTIONS |= {
    f.__name__: f for f in (reduce.sum, reduce.mean, reduce.amax, reduce.amin, matmul.matmul, matmul.mm, matmul.bmm)
}
VIEWS = (
    "reshape",
    "flatten",
    "permute",
    "transpose",
    "t",
    "squeeze",
    "unsqueeze",
    "select",
    "narrow",
    "unbind",
    "split",
    "chunk",
)
FUNCTIONS |= {name: getattr(views, name) for name in VIEWS}
FUNCTIONS |= {"softmax": softmax, "log_softmax": log_softmax}
FUNCTIONS |= {name: activations.FUNCTIONS[name] for name in ("celu", "selu", "threshold")}
FUNCTIONS |= {f.__name__: f for f in (truth.any, truth.all, truth.count_nonzero, truth.nansum)}
FUNCTIONS |= {f.__name__: f for f in (extremes.max, extremes.min, extremes.argmax, extremes.argmin)}
FUNCTIONS |= {f.__name__: f for f in (scan.cumsum, scan.cumprod, scan.prod, statistics.norm, statistics.logsumexp)}
FUNCTIONS |= {f.__name__: f for f in (statistics.var, statistics.std, statistics.var_mean, statistics.std_mean)}
FUNCTIONS |= products.FUNCTIONS
FUNCTIONS |= library.BOTH
NO_METHODS = ("where", "einsum", "celu", "selu", "threshold")
