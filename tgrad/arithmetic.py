"""Pointwise functions that take more than their operands: divisions with a rule for rounding, tolerances, decimals."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tgrad import docstrings, dtypes
from tgrad.arguments import Number, operand, tensor
from tgrad.device import compute
from tgrad.inplace import write
from tgrad.kernels.launch import COMPILE_ONLY
from tgrad.ops import activations, arithmetic as a, math as m, pointwise as p, truth
from tgrad.ops.views import reshape
from tgrad.tensor import Tensor

# How a function runs its row: as an op, or into the tensor given first.
Run = Callable[[p.Pointwise, tuple], Tensor]


def _op(row: p.Pointwise, args: tuple) -> Tensor:
    return row(*args)


def _into(target: Tensor) -> Run:
    return lambda row, args: write(row, target, args)


def in_place(function: Callable) -> Callable:
    """`function(run, input, ...)` as a method that writes into `input`."""

    def method(self: Tensor, *args: Any, **settings: Any) -> Tensor:
        return function(_into(self), self, *args, **settings)

    method.__name__ = method.__qualname__ = function.__name__[1:] + "_"
    method.__doc__ = docstrings.in_place(function.__doc__ or "")
    method.__signature__ = _without_run(function)  # type: ignore[attr-defined]
    return method


def _without_run(function: Callable) -> inspect.Signature:
    return inspect.Signature(list(inspect.signature(function).parameters.values())[1:])


def _rows_of(input: Any, other: Any, name: str) -> tuple:
    """Operands of an integer division.

    Raises:
        RuntimeError: integers would be divided by zero. On a GPU this is found for numbers only: a tensor's values are
            not read, and the result is undefined, as in PyTorch.
    """
    input, other = operand(name, input), operand(name, other)
    if not any(x.is_floating_point() if isinstance(x, Tensor) else isinstance(x, float) for x in (input, other)):
        if isinstance(other, Tensor):
            known = compute.type == "cpu" and COMPILE_ONLY is None and other.numel() > 0
            zero = known and not bool(truth.all(other.detach()))
        else:
            zero = other == 0
        if zero:
            raise RuntimeError(f"ZeroDivisionError: {name}: an integer is divided by zero")
    return input, other


ROUNDING = {"trunc": a.div_trunc, "floor": a.div_floor}


@docstrings.described(p.div)
def _div(run: Run, input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """input / other; integers are divided as floats.

    Args:
        rounding_mode: None, "trunc" (toward zero, as C) or "floor" (as Python's //); integers then stay integers.

    Raises:
        RuntimeError: another rounding mode; integers divided by zero.
    """
    if rounding_mode is None:
        return run(p.div, (input, operand("div", other)))
    if rounding_mode not in ROUNDING:
        raise RuntimeError(
            f"div expected rounding_mode to be one of None, 'trunc', or 'floor' but found '{rounding_mode}'"
        )
    return run(ROUNDING[rounding_mode], _rows_of(input, other, "div"))


@docstrings.described(a.floor_divide)
def _floor_divide(run: Run, input: Any, other: Any) -> Tensor:
    """The quotient rounded down, as Python's //; no gradient flows.

    Raises:
        RuntimeError: integers divided by zero.
    """
    return run(a.floor_divide, _rows_of(input, other, "floor_divide"))


@docstrings.described(a.remainder)
def _remainder(run: Run, input: Any, other: Any) -> Tensor:
    """The remainder with the sign of `other`, as Python's %.

    Raises:
        RuntimeError: integers divided by zero.
    """
    return run(a.remainder, _rows_of(input, other, "remainder"))


@docstrings.described(a.fmod)
def _fmod(run: Run, input: Any, other: Any) -> Tensor:
    """The remainder with the sign of `input`, as C's fmod.

    Raises:
        RuntimeError: integers divided by zero.
    """
    return run(a.fmod, _rows_of(input, other, "fmod"))


@docstrings.described(m.round, 1)
def _round(run: Run, input: Tensor, *, decimals: int = 0) -> Tensor:
    """The nearest number of `decimals` places, halves to even; negative: of powers of ten. The gradient is 0.

    Raises:
        RuntimeError: `decimals` is given and the dtype is not floating.
    """
    if decimals == 0:
        return run(m.round, (tensor("round", input),))
    return run(m.round_decimals, (tensor("round", input), 10.0 ** min(abs(decimals), 300), decimals < 0))


LIMITS = {dtypes.float16: 65504.0, dtypes.bfloat16: 3.3895313892515355e38, dtypes.float32: 3.4028234663852886e38,
          dtypes.float64: 1.7976931348623157e308}  # fmt: skip


@docstrings.described(m.nan_to_num, 1, checked=False)
def _nan_to_num(run: Run, input: Tensor, nan: float | None = None, posinf: float | None = None,
                neginf: float | None = None) -> Tensor:  # fmt: skip
    """nan, infinity and minus infinity replaced: by 0 and the greatest and least numbers, unless given."""
    if not tensor("nan_to_num", input).is_floating_point():
        return run(p.clone, (input,))
    limit = LIMITS[input.dtype]
    values = (0.0 if nan is None else nan, limit if posinf is None else posinf, -limit if neginf is None else neginf)
    return run(m.nan_to_num, (input, *map(float, values)))


@docstrings.described(m.logit, 1)
def _logit(run: Run, input: Tensor, eps: float | None = None) -> Tensor:
    """log(input / (1 - input)), of input limited to [eps, 1 - eps] if eps is given."""
    low, high = (1.0, -1.0) if eps is None or eps < 0 else (float(eps), 1.0 - eps)
    return run(m.logit, (tensor("logit", input), low, high))


@docstrings.described(a.lerp)
def _lerp(run: Run, input: Tensor, end: Tensor, weight: Any) -> Tensor:
    """input + weight * (end - input).

    Raises:
        RuntimeError: input and end have two dtypes.
    """
    return run(a.lerp, (tensor("lerp", input), tensor("lerp", end), operand("lerp", weight)))


@docstrings.described(a.addcmul)
def _addcmul(run: Run, input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Number = 1) -> Tensor:
    """input + value * tensor1 * tensor2."""
    return run(a.addcmul, (input, tensor1, tensor2, value))


@docstrings.described(a.addcdiv)
def _addcdiv(run: Run, input: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: Number = 1) -> Tensor:
    """input + value * tensor1 / tensor2.

    Raises:
        RuntimeError: all tensors are integers.
    """
    return run(a.addcdiv, (input, tensor1, tensor2, value))


@docstrings.described(a.bitwise_not, checked=False)
def _bitwise_not(run: Run, input: Tensor) -> Tensor:
    """All bits flipped; not, of bool.

    Raises:
        RuntimeError: the dtype is floating.
    """
    flips = tensor("bitwise_not", input).dtype is dtypes.bool_
    return run(p.logical_not if flips else a.bitwise_not, (input,))


BOTH = (
    _div, _floor_divide, _remainder, _fmod, _round, _nan_to_num, _logit, _lerp, _addcmul, _addcdiv, _bitwise_not,
)  # fmt: skip


def _as_op(function: Callable) -> Callable:
    def op(*args: Any, **settings: Any) -> Tensor:
        return function(_op, *args, **settings)

    op.__name__ = op.__qualname__ = function.__name__[1:]
    op.__doc__ = function.__doc__
    op.__signature__ = _without_run(function)  # type: ignore[attr-defined]
    return op


def bitwise(name: str) -> Callable[[Any, Any], Tensor]:
    """`bitwise_and`, `bitwise_or`, `bitwise_xor` or a shift as a function of two operands, one of them a tensor."""
    row = p.TABLE[name]

    def function(input: Any, other: Any) -> Tensor:
        return row(operand(name, input), operand(name, other))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = docstrings.of_row(row)
    return function


@docstrings.described(p.sub)
def rsub(input: Tensor, other: Any, *, alpha: Number = 1) -> Tensor:
    """other - alpha * input."""
    return p.sub(operand("rsub", other), input if alpha == 1 else input * alpha)


@docstrings.described(m.heaviside)
def heaviside(input: Tensor, values: Tensor) -> Tensor:
    """0 where input is negative, 1 where positive, `values` where zero; no gradient flows.

    Raises:
        RuntimeError: the dtypes differ.
    """
    if tensor("heaviside", input).dtype is not tensor("heaviside", values).dtype:
        raise RuntimeError("heaviside is not yet implemented for tensors with different dtypes.")
    return m.heaviside(input, values)


def float_power(input: Any, exponent: Any) -> Tensor:
    """input ** exponent in float64, elementwise.

    Shape: the operands broadcast.
    Dtype: any; the result is float64.
    Raises:
        RuntimeError: the shapes do not broadcast.
        TypeError: an operand is neither a Tensor nor a number.
    """
    wide = [p.cast(dtypes.float64)(x) if isinstance(x, Tensor) else float(x) for x in (input, exponent)]
    return p.pow(*wide)


@docstrings.described(m.xlogy)
def xlogy(input: Any, other: Any) -> Tensor:
    """input * log(other); 0 where input is 0 and other is not nan."""
    return m.xlogy(operand("xlogy", input), operand("xlogy", other))


@docstrings.described(m.isclose)
def isclose(input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Tensor:
    """Whether |input - other| <= atol + rtol * |other|, elementwise.

    Raises:
        RuntimeError: the dtypes differ, or a tolerance is negative.
    """
    if tensor("isclose", input).dtype is not tensor("isclose", other).dtype:
        raise RuntimeError(f"isclose: expected one dtype, got {input.dtype!r} and {other.dtype!r}")
    if rtol < 0 or atol < 0:
        raise RuntimeError(f"isclose: tolerances must not be negative, got rtol {rtol} and atol {atol}")
    return m.isclose(input, other, float(rtol), float(atol), bool(equal_nan))


def allclose(input: Tensor, other: Tensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> bool:
    """Whether all elements are close. See `tgrad.isclose`.

    Shape: the operands broadcast; the result is a bool.
    Dtype: the same of both.
    Raises:
        RuntimeError: the dtypes differ; a tolerance is negative; the shapes do not broadcast.
        TypeError: an operand is no Tensor.
    """
    return bool(truth.all(isclose(input, other, rtol, atol, equal_nan)))


def equal(input: Tensor, other: Tensor) -> bool:
    """Whether shapes and all elements are equal.

    Shape: any of both; the result is a bool.
    Dtype: the same of both.
    Raises:
        RuntimeError: the dtypes differ.
    """
    if input.dtype is not other.dtype:
        raise RuntimeError(f"equal: expected one dtype, got {input.dtype!r} and {other.dtype!r}")
    return input.shape == other.shape and bool(truth.all(p.eq(input, other)))


def prelu(input: Tensor, weight: Tensor) -> Tensor:
    """input where positive, else weight * input (He et al., 2015): one weight, or one for each channel (dimension 1).

    Shape: any; the result has the input's. weight: one element, or (C,) for C channels.
    Dtype: floating, the same of both.
    Raises:
        RuntimeError: weight has neither one element nor one for each channel, or more than one dimension; the dtype is
            not floating.
    """
    channels = input.shape[1] if input.ndim > 1 else 1
    if weight.ndim > 1:
        raise RuntimeError(f"prelu: Expected `weight` to be a scalar or 1D tensor, but got: ndim = {weight.ndim}")
    if weight.numel() not in (1, channels):
        raise RuntimeError(
            f"Mismatch of parameter numbers and input channel size. Found parameter numbers = {weight.numel()} and "
            f"channel size = {channels}."
        )
    if weight.ndim and input.ndim:
        weight = reshape(weight, tuple(weight.numel() if d == min(1, input.ndim - 1) else 1 for d in range(input.ndim)))
    return activations.prelu(input, reshape(weight, ()) if input.ndim == 0 else weight)


FUNCTIONS: dict[str, Callable] = {f.__name__[1:]: _as_op(f) for f in BOTH}
IN_PLACE: dict[str, Callable] = {f.__name__[1:] + "_": in_place(f) for f in BOTH}
BITWISE = ("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_left_shift", "bitwise_right_shift")
FUNCTIONS |= {name: bitwise(name) for name in BITWISE}
FUNCTIONS |= {
    f.__name__: f for f in (rsub, heaviside, float_power, xlogy, isclose, allclose, equal, prelu)
}  # fmt: skip
FUNCTIONS |= {"divide": FUNCTIONS["div"], "true_divide": FUNCTIONS["div"]}
