"""Activation functions of the functional interface beyond the basic ones: input and result of any shape."""

from __future__ import annotations

from typing import Any

from tgrad import docstrings, dtypes
from tgrad.arguments import Number, tensor
from tgrad.arithmetic import prelu
from tgrad.inplace import write
from tgrad.layout import wrap_dim
from tgrad.ops import activations as rows, pointwise as p
from tgrad.ops.views import narrow
from tgrad.tensor import Tensor


def _activate(row: p.Pointwise, input: Any, *settings: Number, inplace: bool = False) -> Tensor:
    tensor(row.name, input)
    return write(row, input, (input, *settings)) if inplace else row(input, *settings)


@docstrings.described(rows.hardtanh, 1)
def hardtanh(input: Tensor, min_val: Number = -1.0, max_val: Number = 1.0, inplace: bool = False) -> Tensor:
    """input limited to [min_val, max_val].

    Raises:
        ValueError: min_val is greater than max_val.
        RuntimeError: the dtype is uint8 and a limit is negative.
    """
    if min_val > max_val:
        raise ValueError("min_val cannot be greater than max_val")
    if not tensor("hardtanh", input).is_floating_point():
        min_val, max_val = int(min_val), int(max_val)
        if min_val < 0 and input.dtype is dtypes.uint8:
            raise RuntimeError("hardtanh: dtype uint8 is not supported with a negative limit; cast to a signed dtype")
    return _activate(rows.hardtanh, input, min_val, max_val, inplace=inplace)


@docstrings.described(rows.hardtanh, 1)
def relu6(input: Tensor, inplace: bool = False) -> Tensor:
    """input limited to [0, 6]."""
    return hardtanh(input, 0.0, 6.0, inplace)


@docstrings.described(rows.hardswish, 1)
def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """input * relu6(input + 3) / 6 (Howard et al., 2019)."""
    return _activate(rows.hardswish, input, inplace=inplace)


@docstrings.described(rows.hardsigmoid, 1)
def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """relu6(input + 3) / 6."""
    return _activate(rows.hardsigmoid, input, inplace=inplace)


@docstrings.described(rows.mish, 1)
def mish(input: Tensor, inplace: bool = False) -> Tensor:
    """input * tanh(softplus(input)) (Misra, 2019)."""
    return _activate(rows.mish, input, inplace=inplace)


@docstrings.described(rows.celu, 1)
def celu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """input where positive, else alpha * (exp(input / alpha) - 1) (Barron, 2017).

    Raises:
        RuntimeError: alpha is zero.
    """
    if alpha == 0:
        raise RuntimeError("ZeroDivisionError: alpha cannot be 0 for CELU")
    return _activate(rows.celu, input, float(alpha), inplace=inplace)


@docstrings.described(rows.selu, 1)
def selu(input: Tensor, inplace: bool = False) -> Tensor:
    """The scaled elu that keeps mean 0 and variance 1 (Klambauer et al., 2017)."""
    return _activate(rows.selu, input, inplace=inplace)


@docstrings.described(rows.softsign, 1)
def softsign(input: Tensor) -> Tensor:
    """input / (1 + |input|)."""
    return _activate(rows.softsign, input)


@docstrings.described(rows.logsigmoid, 1)
def logsigmoid(input: Tensor) -> Tensor:
    """log(sigmoid(input)), without overflow."""
    return _activate(rows.logsigmoid, input)


@docstrings.described(rows.threshold, 1)
def threshold(input: Tensor, threshold: Number, value: Number, inplace: bool = False) -> Tensor:
    """input where it is greater than `threshold`, else `value`."""
    if not tensor("threshold", input).is_floating_point():
        threshold, value = int(threshold), int(value)
    return _activate(rows.threshold, input, threshold, value, inplace=inplace)


def glu(input: Tensor, dim: int = -1) -> Tensor:
    """The first half of `dim` times the sigmoid of the second (Dauphin et al., 2017).

    Shape: an even size at `dim`, of which the result has half.
    Dtype: floating; the result has the input's.
    Raises:
        RuntimeError: there is no dimension, or its size is odd; the dtype is not floating.
        TypeError: the input is no Tensor.
        IndexError: `dim` is out of range.
    """
    if tensor("glu", input).ndim == 0:
        raise RuntimeError("glu does not support 0-dimensional tensors")
    at = wrap_dim(dim, input.ndim)
    size = input.shape[at]
    if size % 2:
        raise RuntimeError(f"Halving dimension must be even, but dimension {at} is size {size}")
    return rows.glu(narrow(input, at, 0, size // 2), narrow(input, at, size // 2, size // 2))


FUNCTIONS = {
    f.__name__: f
    for f in (hardtanh, relu6, hardswish, hardsigmoid, mish, celu, selu, softsign, logsigmoid, threshold, glu, prelu)
}
