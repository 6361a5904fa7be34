"""What a row of the op table says of the functions made of it: the lines of their docstrings on shapes, dtypes, errors.

Every public docstring says these with lines that begin "Shape:", "Dtype:" and "Raises:"; docs/ makes pages of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from tgrad import dtypes
from tgrad.expression import comparing, counting, floating, logical, promoting, selecting
from tgrad.op import Pointwise

F = TypeVar("F", bound=Callable[..., Any])

# The dtype of the result by type rule: of one operand, of several.
RESULTS = {
    promoting: ("the input's", "the operands' common dtype"),
    counting: ("the input's, of bool int64", "the operands' common dtype, of bool int64"),
    floating: ("the input's, of integers and bool the default dtype",
               "the operands' common dtype, of integers and bool the default dtype"),
    comparing: ("bool", "bool; operands are compared in their common dtype"),
    logical: ("bool; what is not zero is true", "bool; what is not zero is true"),
    selecting: ("the input's", "the common dtype of `input` and `other`; the condition is bool"),
}  # fmt: skip

SUMMARIES = {
    "neg": "-input", "abs": "|input|", "exp": "e to the power of input", "log": "The natural logarithm",
    "sqrt": "The square root; nan of negative numbers", "rsqrt": "1 / sqrt(input)", "reciprocal": "1 / input",
    "square": "input * input", "sin": "The sine of an angle in radians", "cos": "The cosine of an angle in radians",
    "tan": "The tangent of an angle in radians", "tanh": "The hyperbolic tangent",
    "erf": "The error function, 2 / sqrt(pi) times the integral of exp(-t * t) from 0 to input",
    "erfc": "1 - erf(input), accurate where that is small", "sigmoid": "1 / (1 + exp(-input))",
    "relu": "max(input, 0); the gradient at 0 is 0", "logical_not": "Whether input is zero",
    "exp2": "2 to the power of input", "expm1": "exp(input) - 1, accurate near 0", "log2": "The logarithm of base 2",
    "log10": "The logarithm of base 10", "log1p": "log(1 + input), accurate near 0",
    "asin": "The arc sine, in radians; nan outside [-1, 1]", "acos": "The arc cosine, in radians; nan outside [-1, 1]",
    "atan": "The arc tangent, in radians", "sinh": "The hyperbolic sine", "cosh": "The hyperbolic cosine",
    "asinh": "The inverse hyperbolic sine", "acosh": "The inverse hyperbolic cosine; nan below 1",
    "atanh": "The inverse hyperbolic tangent; nan outside [-1, 1]",
    "sinc": "sin(pi * input) / (pi * input); 1 at 0", "rad2deg": "Radians in degrees", "deg2rad": "Degrees in radians",
    "floor": "The greatest integer that is not above input; the gradient is 0",
    "ceil": "The least integer that is not below input; the gradient is 0",
    "trunc": "The integer part, rounded toward zero; the gradient is 0", "frac": "input - trunc(input)",
    "sign": "-1, 0 or 1 by sign; the gradient is 0", "sgn": "-1, 0 or 1 by sign; the gradient is 0",
    "isnan": "Whether input is nan", "isinf": "Whether input is infinite, of either sign",
    "isfinite": "Whether input is neither infinite nor nan", "signbit": "Whether the sign bit is set: of -0.0 too",
    "maximum": "The greater; nan if either is; where equal, half the gradient goes to each",
    "minimum": "The lesser; nan if either is; where equal, half the gradient goes to each",
    "eq": "Whether input == other", "ne": "Whether input != other", "lt": "Whether input < other",
    "le": "Whether input <= other", "gt": "Whether input > other", "ge": "Whether input >= other",
    "logical_and": "Whether both are not zero", "logical_or": "Whether at least one is not zero",
    "logical_xor": "Whether exactly one is not zero",
    "atan2": "The angle in radians, in [-pi, pi], of the point (other, input): of y, then x",
    "hypot": "sqrt(input ** 2 + other ** 2), without overflow",
    "logaddexp": "log(exp(input) + exp(other)), without overflow", "copysign": "input with the sign of other",
    "mul": "input * other", "bitwise_and": "The bits set in both; `and`, of bool",
    "bitwise_or": "The bits set in either; `or`, of bool", "bitwise_xor": "The bits set in one; not equal, of bool",
    "bitwise_left_shift": "input * 2 ** other", "bitwise_right_shift": "input / 2 ** other, rounded down",
}  # fmt: skip


def _refused(row: Pointwise) -> list[str]:
    """The names of the dtypes that the row's check refuses."""
    refused = []
    for d in dtypes.ALL if row.check is not None else ():
        try:
            row.check([d] * len(row.inputs))  # type: ignore[misc]
        except RuntimeError:
            refused.append(d.name)
    return refused


# What is left when the dtypes on the left are refused.
KINDS = {
    ("float16", "bfloat16", "float32", "float64"): "integers and bool; ",
    ("float16", "bfloat16", "float32", "float64", "bool"): "integers; ",
    ("int32", "int64", "uint8", "bool"): "floating; ",
}


def lines(row: Pointwise, operands: int = 0, checked: bool = True) -> tuple[str, str, str]:
    """What a row says of shapes, dtypes and errors, without the words before the colons.

    Args:
        operands: how many of its inputs may be tensors; 0: all of them.
        checked: whether the row's check decides which dtypes are refused; False: the function treats them itself.
    """
    several = (operands or len(row.inputs)) > 1
    refused = _refused(row) if checked else []
    kinds, result = KINDS.get(tuple(refused), ""), RESULTS.get(row.types, ("bool", "bool"))[several]
    if "floating" in kinds:
        result = result.partition(",")[0]
    elif refused:
        result = result.replace("integers and bool", "integers")
    wrong = f"the dtype is {', '.join(refused)}".replace("int32, int64, uint8, bool", "not floating")
    wrong = wrong.replace("float16, bfloat16, float32, float64", "floating").replace(", bool", " or bool")
    errors = [*(["the shapes do not broadcast"] if several else []), *([wrong] if refused else [])]
    types = "an operand is neither a Tensor nor a number" if several else "the input is no Tensor"
    return (
        "the operands broadcast" if several else "any; the result has the input's", kinds + result,
        f"TypeError: {types}." + (f"\nRuntimeError: {'; '.join(errors)}." if errors else ""),
    )  # fmt: skip


def assemble(text: str, shape: str, dtype: str, errors: str) -> str:
    """A docstring `text` with the lines on shapes and dtypes before its errors, and further errors added to them."""
    head, _, own = inspect.cleandoc(text).partition("\nRaises:")
    return f"{head.rstrip()}\n\nShape: {shape}.\nDtype: {dtype}.\nRaises:\n{_joined(own, errors)}"


def _joined(*errors: str) -> str:
    """Lines "Error: why", one for each error."""
    known: dict[str, list[str]] = {}
    for line in "\n".join(inspect.cleandoc(e).replace("\n    ", " ") for e in errors).splitlines():
        name, _, why = line.partition(": ")
        known.setdefault(name, []).append(why.rstrip("."))
    return "\n".join(f"    {name}: {'; '.join(whys)}." for name, whys in known.items() if name)


def of_row(row: Pointwise, name: str | None = None) -> str:
    """The docstring of a function that runs a row and nothing else."""
    name = name or row.name
    return assemble(f"{SUMMARIES.get(name, f'`torch.{name}`')}, elementwise.", *lines(row))


def described(row: Pointwise, operands: int = 0, checked: bool = True) -> Callable[[F], F]:
    """Complete the docstring of a function around a row by what the row says. See `lines`."""

    def complete(function: F) -> F:
        function.__doc__ = assemble(function.__doc__ or "", *lines(row, operands, checked))
        return function

    return complete


def in_place(text: str) -> str:
    """The docstring of a method that writes a function's result into its tensor."""
    head, _, errors = inspect.cleandoc(text).partition("\nRaises:\n")
    head, _, dtype = head.partition("\nDtype: ")
    head, _, shape = head.partition("\nShape: ")
    summary, _, rest = head.strip().partition("\n\n")
    errors = inspect.cleandoc(errors).replace("TypeError: the input is no Tensor.", "")
    return assemble(
        f"{summary} In place.\n\n{rest}",
        "any; kept" if shape.startswith("any;") else "kept; the operands must broadcast to it",
        f"kept; it must be able to hold the result's: {dtype.rstrip('.')}",
        _joined(errors, "RuntimeError: a leaf that requires grad or an inference tensor would be written to"),
    )
