"""The functions that are methods too, `tgrad.exp(x)` and `x.exp()`: they check their arguments, then call the op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tgrad import dtypes
from tgrad.ops import matmul, pointwise as p, reduce, views
from tgrad.ops.softmax import log_softmax, softmax
from tgrad.tensor import Tensor

Number = bool | int | float


def operand(name: str, value: Any) -> Any:
    if isinstance(value, (Tensor, bool, int, float)):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a numpy scalar
        return value.item()
    raise TypeError(f"{name}: expected a Tensor or a number, got {type(value).__name__}")


def power(base: Any, exponent: Any) -> Any:
    if isinstance(base, Tensor) and isinstance(exponent, int) and not base.is_floating_point() and exponent < 0:
        raise RuntimeError("Integers to negative integer powers are not allowed.")
    return p.pow(base, exponent)


def scaled(row: p.Pointwise, input: Any, other: Any, alpha: Number) -> tuple:
    other = operand(row.name, other)
    return input, other if alpha == 1 else other * alpha


def add(input: Tensor, other: Any, *, alpha: Number = 1) -> Tensor:
    """input + alpha * other."""
    return p.add(*scaled(p.add, input, other, alpha))


def sub(input: Tensor, other: Any, *, alpha: Number = 1) -> Tensor:
    """input - alpha * other."""
    return p.sub(*scaled(p.sub, input, other, alpha))


def mul(input: Tensor, other: Any) -> Tensor:
    """input * other."""
    return p.mul(input, operand("mul", other))


def div(input: Tensor, other: Any) -> Tensor:
    """input / other; integers are divided as floats."""
    return p.div(input, operand("div", other))


def pow(input: Any, exponent: Any) -> Tensor:
    """input ** exponent.

    Raises:
        RuntimeError: an integer tensor to a negative integer power.
    """
    return power(operand("pow", input), operand("pow", exponent))


def clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """input limited to [min, max]; either may be None, a number or a tensor."""
    if min is None and max is None:
        raise RuntimeError("torch.clamp: At least one of 'min' or 'max' must not be None")
    if min is None:
        return p.clamp_max(input, operand("clamp", max))
    if max is None:
        return p.clamp_min(input, operand("clamp", min))
    return p.clamp(input, operand("clamp", min), operand("clamp", max))


def where(condition: Tensor, input: Any, other: Any) -> Tensor:
    """input where condition, else other.

    Raises:
        RuntimeError: the condition is not bool.
    """
    if not isinstance(condition, Tensor) or condition.dtype is not dtypes.bool_:
        got = repr(condition.dtype) if isinstance(condition, Tensor) else type(condition).__name__
        raise RuntimeError(f"where expected condition to be a boolean tensor, but got {got}")
    return p.where(condition, operand("where", input), operand("where", other))


def _unary(row: p.Pointwise) -> Callable[[Tensor], Tensor]:
    def function(input: Tensor) -> Tensor:
        return row(_tensor(row.name, input))

    return named(function, row.name)


def _binary(row: p.Pointwise) -> Callable[[Tensor, Any], Tensor]:
    def function(input: Tensor, other: Any) -> Tensor:
        return row(_tensor(row.name, input), operand(row.name, other))

    return named(function, row.name)


def _tensor(name: str, x: Any) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}(): argument 'input' must be Tensor, not {type(x).__name__}")
    return x


def named(function: Callable, name: str) -> Callable:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"`torch.{name}`, elementwise."
    return function


UNARY = (
    "neg",
    "abs",
    "exp",
    "log",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "square",
    "sin",
    "cos",
    "tanh",
    "erf",
    "sigmoid",
    "relu",
    "logical_not",
)
BINARY = ("maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor")
FUNCTIONS: dict[str, Callable] = {name: _unary(p.TABLE[name]) for name in UNARY}
FUNCTIONS |= {name: _binary(p.TABLE[name]) for name in BINARY}
FUNCTIONS |= {f.__name__: f for f in (add, sub, mul, div, pow, clamp, where)}
FUNCTIONS |= {
    "negative": FUNCTIONS["neg"], "subtract": sub, "multiply": mul, "divide": div, "true_divide": div, "clip": clamp,
    "absolute": FUNCTIONS["abs"],
}  # fmt: skip
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
