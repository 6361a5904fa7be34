"""The functions behind the modules: linear, activations, normalisation, dropout and losses."""

from __future__ import annotations

import warnings
from typing import Any

from tgrad.dtypes import dtype
from tgrad.inplace import write
from tgrad.layout import broadcast_shapes
from tgrad.ops import creation, norm, pointwise as p, reduce, softmax as rows
from tgrad.ops.matmul import linear
from tgrad.tensor import Tensor

REDUCTIONS = ("none", "mean", "sum")


def _activate(row: p.Pointwise, input: Any, *settings: float, inplace: bool = False) -> Tensor:
    if not isinstance(input, Tensor):
        raise TypeError(f"{row.name}(): argument 'input' (position 1) must be Tensor, not {type(input).__name__}")
    return write(row, input, (input, *settings)) if inplace else row(input, *settings)


# --- activations: input and result of any shape ------------------------------------------------------------
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0)."""
    return _activate(p.relu, input, inplace=inplace)


def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """input where positive, else negative_slope * input."""
    return _activate(p.leaky_relu, input, float(negative_slope), inplace=inplace)


def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """input where positive, else alpha * (exp(input) - 1)."""
    return _activate(p.elu, input, float(alpha), inplace=inplace)


def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """input * sigmoid(input)."""
    return _activate(p.silu, input, inplace=inplace)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """input * Phi(input), with the normal distribution function or ("tanh") its approximation.

    Raises:
        RuntimeError: approximate is neither.
    """
    if approximate not in ("none", "tanh"):
        raise RuntimeError("approximate argument must be either none or tanh.")
    return _activate(p.gelu if approximate == "none" else p.gelu_tanh, input)


def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """log(1 + exp(beta * input)) / beta; input itself where beta * input > threshold."""
    return _activate(p.softplus, input, float(beta), float(threshold))


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return _activate(p.tanh, input)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-input))."""
    return _activate(p.sigmoid, input)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: dtype | None = None) -> Tensor:
    """exp(input) / sum(exp(input)) along `dim`; converts to `dtype` first if given."""
    return rows.softmax(input, _dim("softmax", input, dim, _stacklevel), dtype)


def log_softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: dtype | None = None) -> Tensor:
    """log(softmax(input)) along `dim`; converts to `dtype` first if given."""
    return rows.log_softmax(input, _dim("log_softmax", input, dim, _stacklevel), dtype)


def _dim(name: str, input: Tensor, dim: int | None, stacklevel: int) -> int:
    if dim is not None:
        return dim
    warnings.warn(
        f"Implicit dimension choice for {name} has been deprecated. Change the call to include dim=X as an argument.",
        stacklevel=stacklevel,
    )
    return 0 if input.ndim in (0, 1, 3) else 1


# --- layers --------------------------------------------------------------------------------------------------
def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero each element with probability p and scale the others by 1 / (1 - p); input itself if not training.

    Raises:
        ValueError: p is not in [0, 1]. RuntimeError: the dtype is not floating.
    """
    if p < 0.0 or p > 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training or p == 0:
        return input
    if not input.is_floating_point():
        raise RuntimeError(f"result type Float can't be cast to the desired output type {input.dtype.legacy}")
    dropped = creation.dropout(input, p)
    return input.copy_(dropped) if inplace else dropped


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Normalise each channel of (N, C) or (N, C, ...), then scale by weight (C,) and add bias (C,).

    In training by the batch's mean and biased variance, and the running statistics move towards its mean and unbiased
    variance; otherwise by the running statistics.

    Raises:
        ValueError: one value per channel in training. RuntimeError: sizes do not match, or statistics are missing.
    """
    if not training:
        for name, running in (("running_mean", running_mean), ("running_var", running_var)):
            if running is None:
                raise RuntimeError(f"{name} must be defined in evaluation mode")
    return norm.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


# --- losses --------------------------------------------------------------------------------------------------
def legacy_reduction(size_average: bool | None, reduce: bool | None) -> str:
    """The reduction that the arguments of old PyTorch mean. Warns."""
    mean = "mean" if size_average is None or size_average else "sum"
    name = mean if reduce is None or reduce else "none"
    warnings.warn(
        f"size_average and reduce args will be deprecated, please use reduction='{name}' instead.", stacklevel=3
    )
    return name


def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
    ignore_index: int = -100, reduce: bool | None = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """-log(softmax(input))[target]: scores (C,), (N, C) or (N, C, ...), classes (), (N,) or (N, ...).

    Args:
        ignore_index: a class that counts for nothing, and not in the mean.

    Raises:
        ValueError, RuntimeError: shapes, dtypes or arguments do not fit. IndexError: a class is out of range (CPU).
        NotImplementedError: weight, label_smoothing or class probabilities.
    """
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    if weight is not None:
        raise NotImplementedError("cross_entropy: class weights are not implemented yet: expected weight=None")
    if label_smoothing != 0.0:
        raise NotImplementedError(
            f"cross_entropy: label smoothing is not implemented yet: expected 0.0, got {label_smoothing}"
        )
    if isinstance(target, Tensor) and target.is_floating_point():
        raise NotImplementedError(
            f"cross_entropy: class probabilities as target (here {target.dtype}, shape {tuple(target.shape)}) are not "
            "implemented yet: give class indices, of dtype int64"
        )
    return rows.cross_entropy(input, target, ignore_index, reduction)


def mse_loss(
    input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean"
) -> Tensor:
    """(input - target) ** 2, its mean or its sum: two tensors of one shape.

    Raises:
        ValueError: an unknown reduction. RuntimeError: the shapes cannot be broadcast.
    """
    for name, t in (("input", input), ("target", target)):
        if not isinstance(t, Tensor):
            raise TypeError(f"mse_loss(): argument '{name}' must be Tensor, not {type(t).__name__}")
    if target.shape != input.shape:
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). This will "
            "likely lead to incorrect results due to broadcasting. Please ensure they have the same size.",
            stacklevel=2,
        )
        broadcast_shapes(tuple(input.shape), tuple(target.shape))
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce)
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    error = p.squared_error(input, target)
    if reduction == "none":
        return error
    return reduce_mean(error) if reduction == "mean" else reduce_sum(error)


reduce_mean, reduce_sum = reduce.mean, reduce.sum  # mse_loss has an argument `reduce`

__all__ = [
    "batch_norm", "cross_entropy", "dropout", "elu", "gelu", "leaky_relu", "linear", "log_softmax", "mse_loss", "relu",
    "sigmoid", "silu", "softmax", "softplus", "tanh",
]  # fmt: skip
