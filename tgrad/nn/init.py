"""Initialisation of parameters in place, unseen by autograd. The formulas are PyTorch's."""

from __future__ import annotations

import math
import warnings

from tgrad import modes
from tgrad.ops import creation
from tgrad.random import Generator
from tgrad.tensor import Tensor

_LINEAR = (
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "sigmoid",
)  # fmt: skip


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance through an activation; `param` is the slope of leaky_relu.

    Raises:
        ValueError: an unknown activation, or a slope that is no number.
    """
    if nonlinearity in _LINEAR:
        return 1
    if nonlinearity == "tanh":
        return 5.0 / 3
    if nonlinearity == "relu":
        return math.sqrt(2.0)
    if nonlinearity == "leaky_relu":
        if param is None:
            slope = 0.01
        elif isinstance(param, (int, float)) and not isinstance(param, bool):
            slope = param
        else:
            raise ValueError(f"negative_slope {param} not a valid number")
        return math.sqrt(2.0 / (1 + slope**2))
    if nonlinearity == "selu":
        return 3.0 / 4
    raise ValueError(f"Unsupported nonlinearity {nonlinearity}")


def _fans(tensor: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out): sizes of dimensions 1 and 0, times what is beyond."""
    if tensor.ndim < 2:
        raise ValueError("Fan in and fan out can not be computed for tensor with fewer than 2 dimensions")
    field = math.prod(tensor.shape[2:])
    return tensor.shape[1] * field, tensor.shape[0] * field


def _draw(tensor: Tensor, kind: str, a: float, b: float, generator: Generator | None) -> Tensor:
    with modes.no_grad():
        tensor.copy_(creation.draw_into(creation.empty(*tensor.shape, dtype=tensor.dtype), kind, a, b, generator))
    return tensor


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Draw from [a, b).

    Shape: any; kept.
    Dtype: floating; kept.
    Raises:
        RuntimeError: the dtype is not floating.
    """
    return _draw(tensor, "uniform", a, b - a, generator)


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Draw from the normal distribution.

    Shape: any; kept.
    Dtype: floating; kept.
    Raises:
        RuntimeError: the dtype is not floating.
    """
    return _draw(tensor, "normal", mean, std, generator)


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with one value.

    Shape: any; kept.
    Dtype: any; kept.
    Raises: nothing.
    """
    with modes.no_grad():
        tensor.copy_(creation.full(tuple(tensor.shape), val, dtype=tensor.dtype))
    return tensor


def ones_(tensor: Tensor) -> Tensor:
    """Fill with ones.

    Shape: any; kept.
    Dtype: any; kept.
    Raises: nothing.
    """
    return constant_(tensor, 1.0)


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with zeros.

    Shape: any; kept.
    Dtype: any; kept.
    Raises: nothing.
    """
    return constant_(tensor, 0.0)


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Draw from [-a, a), a = gain * sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio, 2010).

    Shape: (out, in, ...); kept.
    Dtype: floating; kept.
    Raises:
        ValueError: fewer than two dimensions.
        RuntimeError: the dtype is not floating.
    """
    fan_in, fan_out = _fans(tensor)
    bound = gain * math.sqrt(6.0 / (fan_in + fan_out))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Draw normal numbers of deviation gain * sqrt(2 / (fan_in + fan_out)) (Glorot and Bengio, 2010).

    Shape: (out, in, ...); kept.
    Dtype: floating; kept.
    Raises:
        ValueError: fewer than two dimensions.
        RuntimeError: the dtype is not floating.
    """
    fan_in, fan_out = _fans(tensor)
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / (fan_in + fan_out)), generator)


def kaiming_uniform_(
    tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """Draw from [-b, b), b = gain * sqrt(3 / fan) (He et al., 2015).

    Args:
        a: slope of the leaky_relu that follows.
        mode: the fan that counts, "fan_in" or "fan_out".

    Shape: (out, in, ...); kept.
    Dtype: floating; kept.
    Raises:
        ValueError: fewer than two dimensions; another mode; an unknown activation.
        RuntimeError: the dtype is not floating.
    """
    std = _kaiming_std(tensor, a, mode, nonlinearity)
    return tensor if std is None else uniform_(tensor, -math.sqrt(3.0) * std, math.sqrt(3.0) * std, generator)


def kaiming_normal_(
    tensor: Tensor, a: float = 0, mode: str = "fan_in", nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:  # fmt: skip
    """Draw normal numbers of deviation gain / sqrt(fan) (He et al., 2015). Arguments as of `kaiming_uniform_`.

    Shape: (out, in, ...); kept.
    Dtype: floating; kept.
    Raises:
        ValueError: fewer than two dimensions; another mode; an unknown activation.
        RuntimeError: the dtype is not floating.
    """
    std = _kaiming_std(tensor, a, mode, nonlinearity)
    return tensor if std is None else normal_(tensor, 0.0, std, generator)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float | None:
    if 0 in tensor.shape:
        warnings.warn("Initializing zero-element tensors is a no-op", stacklevel=3)
        return None
    modes_ = ("fan_in", "fan_out")
    if mode.lower() not in modes_:
        raise ValueError(f"Mode {mode.lower()} not supported, please use one of {list(modes_)}")
    fan = _fans(tensor)[modes_.index(mode.lower())]
    return calculate_gain(nonlinearity, a) / math.sqrt(fan)
