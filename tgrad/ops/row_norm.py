"""Layer, group and root-mean-square normalisation: one kernel forward; see row_norm_backward.py for the gradients.

All take an input as batch * groups rows of channels * elements (`rows_of`). Kept are the input and two numbers a row,
one where there is no mean.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NoReturn

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dispatch import dispatch
from tgrad.kernels.launch import Launch
from tgrad.kernels.row_norm import prepare_norm
from tgrad.layout import Layout, layout, numel
from tgrad.op import Kernel
from tgrad.ops.row_norm_backward import Over, bias_grad, input_grad, pointer, rows_of, together, weight_grad
from tgrad.ops.views import contiguous
from tgrad.tensor import Tensor


def _build(
    name: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, over: Over
) -> tuple[list[Layout], Launch]:
    """Results: the normalised input, and per row its mean (not of RMS norm) and 1 / sqrt(variance + eps)."""
    (_check_groups if isinstance(over, int) else _check_dims)(x, weight, bias, over)  # type: ignore[arg-type]
    if not x.dtype.is_floating_point:
        raise RuntimeError(f"{name}: not implemented for {x.dtype!r}: convert the input first, as in x.float()")
    rows, rms, acc = rows_of(x.shape, over), name == "rms_norm", dtypes.accumulator(x.dtype)
    m = rows.batch * rows.groups
    out, stat = layout(x.dtype, tuple(x.shape), None, compute), layout(acc, (m,), None, compute)
    outs = [out, stat] if rms else [out, stat, stat]
    if not out.numel:
        return outs, lambda *values: None
    affine = [t for t in (weight, bias) if t is not None]
    types = (
        pointer(x), ("*" + acc.triton,) * (len(outs) - 1), pointer(x), tuple(map(pointer, affine)),
        "fp64" if acc is dtypes.float64 else "fp32",
    )  # fmt: skip
    return outs, prepare_norm(
        "norm", types, m, rows[1:], {"RMS": rms, "WEIGHT": weight is not None, "BIAS": bias is not None},
        accumulator=acc.triton, aligned=all(t.layout.aligned for t in (x, *affine)),
    )  # fmt: skip


def _op(name: str, grad_name: str) -> Kernel:
    return Kernel(
        name, ("x", "weight", "bias", "eps"), functools.partial(_build, name),
        {"x": input_grad, "weight": weight_grad, "bias": bias_grad}, settings=("over",),
        results=("out", "mean", "rstd"), joint=(("x", "weight", "bias"), together), grad_name=grad_name, again=True,
    )  # fmt: skip


layer_norm_op = _op("layer_norm", "NativeLayerNorm")
group_norm_op = _op("group_norm", "NativeGroupNorm")
rms_norm_op = Kernel(
    "rms_norm", ("x", "weight", "bias", "eps"), functools.partial(_build, "rms_norm"),
    {
        "x": lambda g, x, rstd, weight, eps, *, over: input_grad(g, x, None, rstd, weight, eps, over=over),
        "weight": lambda g, x, rstd, eps, *, over, weight_dtype: weight_grad(
            g, x, None, rstd, eps, over=over, weight_dtype=weight_dtype
        ),
    },
    settings=("over",), results=("out", "rstd"), joint=(("x", "weight", "bias"), together), grad_name="FusedRmsNorm",
    again=True,
)  # fmt: skip


# --- checks, once for each signature
# -------------------------------------------------------------------------------------
def _check_dims(x: Tensor, weight: Tensor | None, bias: Tensor | None, dims: tuple[int, ...]) -> None:
    if not dims:
        raise RuntimeError(
            "Expected normalized_shape to be at least 1-dimensional, i.e., containing at least one element, but got "
            "normalized_shape = []"
        )
    for what, t in (("weight", weight), ("bias", bias)):
        if t is not None and tuple(t.shape) != dims:
            raise RuntimeError(
                f"Expected {what} to be of same shape as normalized_shape, but got {what} of shape {list(t.shape)} "
                f"and normalized_shape = {list(dims)}"
            )
    if x.ndim < len(dims) or tuple(x.shape[x.ndim - len(dims) :]) != dims:
        wanted = ", ".join(["*", *map(str, dims)])
        raise RuntimeError(
            f"Given normalized_shape={list(dims)}, expected input with shape [{wanted}], but got input of "
            f"size{list(x.shape)}"
        )


def _check_groups(x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int) -> None:
    if x.ndim < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {x.ndim}")
    batch, channels = x.shape[:2]
    if groups <= 0:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {groups}")
    if channels % groups:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(x.shape)} and num_groups={groups}"
        )
    for what, t in (("weight", weight), ("bias", bias)):
        if t is not None and tuple(t.shape) != (channels,):
            raise RuntimeError(
                f"Expected {what} to be a vector of size equal to the number of channels in input, but got {what} of "
                f"shape {list(t.shape)} and input of shape {list(x.shape)}"
            )
    if batch * (channels // groups) * numel(x.shape[2:]) == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(x.shape)}")


# --- what users call
# -----------------------------------------------------------------------------------------------------
def _dense(op: Kernel, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, over: Over) -> Tensor:
    """The op on dense tensors."""
    try:
        if not (
            x.layout.contiguous and (weight is None or weight.layout.contiguous)
            and (bias is None or bias.layout.contiguous)
        ):  # fmt: skip
            x, weight, bias = (t if t is None else contiguous(t) for t in (x, weight, bias))  # type: ignore[assignment]
    except AttributeError:
        _no_tensor(op.name, x, weight, bias)
    return dispatch(op, (x, weight, bias, float(eps)), (over,))[0]


def _no_tensor(name: str, *given: Any) -> NoReturn:
    for k, (what, t) in enumerate(zip(("input", "weight", "bias"), given, strict=True)):
        if not isinstance(t, Tensor) and (t is not None or not k):
            raise TypeError(
                f"{name}(): argument '{what}' (position {k + 1 + (k > 0)}) must be Tensor, not {type(t).__name__}"
            )
    raise AssertionError


def _dims(shape: int | Sequence[int]) -> tuple[int, ...]:
    return (shape,) if isinstance(shape, int) else tuple(shape)


# The distance from 1 to the next number.
_LEAST = {dtypes.float16: 2.0**-10, dtypes.bfloat16: 2.0**-7, dtypes.float32: 2.0**-23}


def layer_norm(
    input: Tensor, normalized_shape: int | Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """(input - mean) / sqrt(variance + eps) over trailing dimensions, times weight plus bias (Ba et al., 2016).

    Shape: (..., *normalized_shape); the result has the input's. weight, bias: `normalized_shape`.
    Dtype: floating; the result has the input's.
    Raises:
        RuntimeError: shapes do not fit, or the dtype is not floating.
    """
    dims = normalized_shape if normalized_shape.__class__ is tuple else _dims(normalized_shape)
    return _dense(layer_norm_op, input, weight, bias, eps, dims)


def rms_norm(
    input: Tensor, normalized_shape: int | Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """input / sqrt(mean of squares + eps) over trailing dimensions, times weight (Zhang and Sennrich, 2019).

    Args:
        eps: None: the distance from 1 to the next number of the input's dtype.

    Shape: (..., *normalized_shape); the result has the input's. weight: `normalized_shape`.
    Dtype: floating; the result has the input's.
    Raises:
        RuntimeError: shapes do not fit, or the dtype is not floating.
    """
    dims = normalized_shape if normalized_shape.__class__ is tuple else _dims(normalized_shape)
    if eps is None and isinstance(input, Tensor):
        eps = _LEAST.get(input.dtype, 2.0**-52)
    return _dense(rms_norm_op, input, weight, None, eps, dims)


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Normalise over each of `num_groups` groups of channels, times weight plus bias (Wu and He, 2018).

    Shape: (N, C, ...); the result has the input's. weight, bias: (C,).
    Dtype: floating; the result has the input's.
    Raises:
        RuntimeError: sizes do not fit, or the dtype is not floating.
        ValueError: one value per group.
    """
    return _dense(group_norm_op, input, weight, bias, eps, num_groups)
