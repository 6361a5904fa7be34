"""The functions behind the modules: linear, activations, normalisation, dropout and losses."""

from __future__ import annotations

import warnings
from typing import Any

from tgrad import docstrings
from tgrad.activations import (
    celu,
    glu,
    hardsigmoid,
    hardswish,
    hardtanh,
    logsigmoid,
    mish,
    prelu,
    relu6,
    selu,
    softsign,
    threshold,
)
from tgrad.dtypes import dtype
from tgrad.inplace import write
from tgrad.nn.linear_cross_entropy import linear_cross_entropy
from tgrad.nn.losses import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    kl_div,
    l1_loss,
    legacy_reduction,
    mse_loss,
    nll_loss,
    smooth_l1_loss,
)
from tgrad.nn.similarity import cosine_embedding_loss, cosine_similarity
from tgrad.ops import creation, norm, pointwise as p, softmax as rows
from tgrad.ops.attention import scaled_dot_product_attention
from tgrad.ops.classes import embedding, one_hot
from tgrad.ops.linear import linear
from tgrad.ops.padding import pad
from tgrad.ops.pointwise import clamp_min
from tgrad.ops.row_norm import group_norm, layer_norm, rms_norm
from tgrad.ops.statistics import vector_norm
from tgrad.tensor import Tensor


def _activate(row: p.Pointwise, input: Any, *settings: float, inplace: bool = False) -> Tensor:
    if not isinstance(input, Tensor):
        raise TypeError(f"{row.name}(): argument 'input' (position 1) must be Tensor, not {type(input).__name__}")
    return write(row, input, (input, *settings)) if inplace else row(input, *settings)


# --- activations: input and result of any shape ------------------------------------------------------------
@docstrings.described(p.relu, 1)
def relu(input: Tensor, inplace: bool = False) -> Tensor:
    """max(input, 0)."""
    return _activate(p.relu, input, inplace=inplace)


@docstrings.described(p.leaky_relu, 1)
def leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """input where positive, else negative_slope * input."""
    return _activate(p.leaky_relu, input, float(negative_slope), inplace=inplace)


@docstrings.described(p.elu, 1)
def elu(input: Tensor, alpha: float = 1.0, inplace: bool = False) -> Tensor:
    """input where positive, else alpha * (exp(input) - 1) (Clevert et al., 2015)."""
    return _activate(p.elu, input, float(alpha), inplace=inplace)


@docstrings.described(p.silu, 1)
def silu(input: Tensor, inplace: bool = False) -> Tensor:
    """input * sigmoid(input) (Elfwing et al., 2017)."""
    return _activate(p.silu, input, inplace=inplace)


@docstrings.described(p.gelu, 1)
def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """input * Phi(input) (Hendrycks and Gimpel, 2016), with the normal distribution function or ("tanh") an
    approximation of it.

    Raises:
        RuntimeError: approximate is neither.
    """
    if approximate not in ("none", "tanh"):
        raise RuntimeError("approximate argument must be either none or tanh.")
    return _activate(p.gelu if approximate == "none" else p.gelu_tanh, input)


@docstrings.described(p.softplus, 1)
def softplus(input: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    """log(1 + exp(beta * input)) / beta; input itself where beta * input > threshold."""
    return _activate(p.softplus, input, float(beta), float(threshold))


@docstrings.described(p.tanh, 1)
def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return _activate(p.tanh, input)


@docstrings.described(p.sigmoid, 1)
def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + exp(-input))."""
    return _activate(p.sigmoid, input)


@docstrings.described(p.tanh, 1)
def tanhshrink(input: Tensor) -> Tensor:
    """input - tanh(input).

    Raises:
        RuntimeError: the dtype is bool.
    """
    return input - tanh(input)


def softmin(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: dtype | None = None) -> Tensor:
    """softmax(-input) along `dim`.

    Shape: any; the result has the input's.
    Dtype: floating; `dtype`, by default the input's.
    Raises:
        RuntimeError: the dtype is not floating.
        IndexError: `dim` is out of range.
    """
    return rows.softmax(-input, _dim("softmin", input, dim, _stacklevel), dtype)


def softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: dtype | None = None) -> Tensor:
    """exp(input) / sum(exp(input)) along `dim`, without overflow; converts to `dtype` first if given.

    Shape: any; the result has the input's.
    Dtype: floating; `dtype`, by default the input's.
    Raises:
        RuntimeError: the dtype is not floating.
        IndexError: `dim` is out of range.
    """
    return rows.softmax(input, _dim("softmax", input, dim, _stacklevel), dtype)


def log_softmax(input: Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: dtype | None = None) -> Tensor:
    """log(softmax(input)) along `dim`, without overflow; converts to `dtype` first if given.

    Shape: any; the result has the input's.
    Dtype: floating; `dtype`, by default the input's.
    Raises:
        RuntimeError: the dtype is not floating.
        IndexError: `dim` is out of range.
    """
    return rows.log_softmax(input, _dim("log_softmax", input, dim, _stacklevel), dtype)


def _dim(name: str, input: Tensor, dim: int | None, stacklevel: int) -> int:
    if dim is not None:
        return dim
    warnings.warn(
        f"Implicit dimension choice for {name} has been deprecated. Change the call to include dim=X as an argument.",
        stacklevel=stacklevel,
    )
    return 0 if input.ndim in (0, 1, 3) else 1


def normalize(input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Tensor:
    """input / max(its p-norm along `dim`, eps).

    Shape: any; the result has the input's.
    Dtype: the input's, of integers the default dtype.
    Raises:
        RuntimeError: the dtype is bool.
        IndexError: `dim` is out of range.
    """
    return input / clamp_min(vector_norm(input, p, dim, keepdim=True), float(eps))


# --- layers --------------------------------------------------------------------------------------------------
def dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero each element with probability p and scale the others by 1 / (1 - p) (Srivastava et al.,
    2014); input itself if not training.

    Shape: any; the result has the input's.
    Dtype: floating; the result has the input's.
    Raises:
        ValueError: `p` is not in [0, 1].
        RuntimeError: the dtype is not floating.
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
    """Normalise each channel, then scale by weight and add bias (Ioffe and Szegedy, 2015).

    In training by the batch's mean and biased variance, and the running statistics move towards its mean and unbiased
    variance; otherwise by the running statistics.

    Shape: (N, C) or (N, C, ...); the result has the input's. All other tensors: (C,).
    Dtype: floating; the result has the input's.
    Raises:
        ValueError: one value per channel in training.
        RuntimeError: sizes do not match, or statistics are missing.
    """
    if not training:
        for name, running in (("running_mean", running_mean), ("running_var", running_var)):
            if running is None:
                raise RuntimeError(f"{name} must be defined in evaluation mode")
    return norm.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


__all__ = [
    "batch_norm", "binary_cross_entropy", "binary_cross_entropy_with_logits", "celu", "cosine_embedding_loss",
    "cosine_similarity", "cross_entropy", "dropout", "elu", "embedding", "gelu", "glu", "group_norm", "hardsigmoid",
    "hardswish", "hardtanh", "huber_loss", "kl_div", "l1_loss", "layer_norm", "leaky_relu", "legacy_reduction",
    "linear", "linear_cross_entropy", "log_softmax", "logsigmoid", "mish", "mse_loss", "nll_loss", "normalize",
    "one_hot", "pad", "prelu", "relu", "relu6", "rms_norm", "scaled_dot_product_attention", "selu", "sigmoid", "silu",
    "smooth_l1_loss", "softmax", "softmin", "softplus", "softsign", "tanh", "tanhshrink", "threshold",
]  # fmt: skip
