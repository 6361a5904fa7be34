"""What functions share: checks of their arguments, and functions made of a row of the op table."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tgrad import dispatch, docstrings
from tgrad.op import Pointwise
from tgrad.tensor import Tensor

Number = bool | int | float


def operand(name: str, value: Any) -> Any:
    """`value`, a tensor or a number; a numpy scalar becomes a number.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, (Tensor, bool, int, float)):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a numpy scalar
        return value.item()
    raise TypeError(f"{name}: expected a Tensor or a number, got {type(value).__name__}")


def tensor(name: str, x: Any) -> Tensor:
    """`x`, a tensor.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}(): argument 'input' must be Tensor, not {type(x).__name__}")
    return x


def unary(row: Pointwise) -> Callable[[Tensor], Tensor]:
    """A row of one input as a function."""

    def function(input: Tensor) -> Tensor:
        return row(tensor(row.name, input))

    return named(dispatch.unary(row, function), row.name, docstrings.of_row(row))


def binary(row: Pointwise) -> Callable[[Tensor, Any], Tensor]:
    """A row of two inputs as a function of a tensor and an operand."""

    def function(input: Tensor, other: Any) -> Tensor:
        return row(tensor(row.name, input), operand(row.name, other))

    return named(dispatch.binary(row, function), row.name, docstrings.of_row(row))


def named(function: Callable, name: str, doc: str) -> Callable:
    """`function` under the name it has in torch, with a docstring."""
    function.__name__ = function.__qualname__ = name
    function.__doc__ = inspect.cleandoc(doc)
    return function
