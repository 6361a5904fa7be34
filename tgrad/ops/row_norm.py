"""Layer, group and root-mean-square normalisation: fused row kernels, with composed twins to differentiate again.

All work on x as (B, G, P, S): B * G rows of P channels with S elements each. Kept are the input and two numbers a
row, one where there is no mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dispatch import dispatch
from tgrad.dtypes import TENSOR
from tgrad.expression import Expression
from tgrad.kernels.launch import Launch
from tgrad.kernels.norm import prepare_norm
from tgrad.layout import Layout, layout, numel
from tgrad.modes import current
from tgrad.op import Kernel
from tgrad.ops import pointwise as p
from tgrad.ops.reduce import reduce_launch, sum_op
from tgrad.ops.views import contiguous, reshape
from tgrad.tensor import Tensor


def _build(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, rms: bool
) -> tuple[list[Layout], Launch]:
    """Results: the normalised input, and per row its mean (rms: none) and 1 / sqrt(variance + eps)."""
    b, g, channels, elements = x.shape
    acc = dtypes.accumulator(x.dtype)
    out, stat = layout(x.dtype, tuple(x.shape), None, compute), layout(acc, (b, g, 1, 1), None, compute)
    affine = [x if t is None else t for t in (weight, bias)]
    pointers = (x.dtype.triton, acc.triton, acc.triton, x.dtype.triton, *(t.dtype.triton for t in affine))
    outs = [out, stat] if rms else [out, stat, stat]
    if not out.numel:
        return outs, lambda *values: None
    run = prepare_norm(
        "norm", pointers, ("fp64" if acc is dtypes.float64 else "fp32",), b * g, (g, channels, elements),
        {"RMS": rms, "WEIGHT": weight is not None, "BIAS": bias is not None}, accumulator=acc.triton,
        aligned=all(t.layout.aligned for t in (x, *affine)),
    )  # fmt: skip

    def launch(to: int, *rest: float) -> None:
        stats, (source, *affine, e) = rest[: len(outs) - 1], rest[len(outs) - 1 :]
        w = affine[0] if weight_given else source
        run(to, stats[0], stats[-1], source, w, affine[-1] if bias_given else source, e)

    weight_given, bias_given = weight is not None, bias is not None
    return outs, launch


def _build_backward(
    g: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, weight: Tensor | None, rms: bool
) -> tuple[list[Layout], Launch]:
    b, groups, channels, elements = x.shape
    acc = dtypes.accumulator(x.dtype)
    dx = layout(x.dtype, tuple(x.shape), None, compute)
    if not dx.numel:
        return [dx], lambda *values: None
    tensors = [x, g, x, rstd if mean is None else mean, rstd, x if weight is None else weight]
    run = prepare_norm(
        "norm_backward", tuple(t.dtype.triton for t in tensors), (), b * groups, (groups, channels, elements),
        {"RMS": rms, "WEIGHT": weight is not None}, accumulator=acc.triton,
        aligned=all(t.layout.aligned for t in tensors),
    )  # fmt: skip
    mean_given, weight_given = mean is not None, weight is not None

    def launch(to: int, g: int, source: int, *rest: int) -> None:
        stats = rest[:2] if mean_given else (rest[0], rest[0])
        run(to, g, source, *stats, rest[-1] if weight_given else source)

    return [dx], launch


_backward = Kernel("norm_backward", ("g", "x", "mean", "rstd", "weight"), _build_backward, {}, settings=("rms",))

_WEIGHTED = Expression.of(lambda g, x, mean, rstd: g * ((x - mean) * rstd), 4)
_WEIGHTED_RMS = Expression.of(lambda g, x, rstd: g * (x * rstd), 3)


def _build_weight(
    g: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, kind: dtypes.dtype
) -> tuple[list[Layout], Launch]:
    """sum(g * normalised) over all but the channels: never stored at the input's size."""
    tensors = [g, x, rstd] if mean is None else [g, x, mean, rstd]
    weighted = _WEIGHTED_RMS if mean is None else _WEIGHTED
    out = layout(kind, (1, x.shape[1], x.shape[2], 1), None, compute)
    operands = tuple((t.dtype, TENSOR) for t in tensors)
    ins = [t.layout for t in tensors]
    return [out], reduce_launch("norm_weight", "sum", weighted, operands, ins, tuple(x.shape), (0, 3), out)


_weight_backward = Kernel("norm_weight", ("g", "x", "mean", "rstd"), _build_weight, {}, settings=("kind",))


def _average(t: Tensor) -> Tensor:
    return sum_op(t, dims=(2, 3), keepdim=True, out_dtype=t.dtype) / float(max(1, t.shape[2] * t.shape[3]))


def _normalised(x: Tensor, mean: Tensor | None, rstd: Tensor, eps: float, rms: bool) -> tuple[Tensor, Tensor]:
    """(normalised, rstd): functions of x where that is recorded, since mean and rstd are saved as plain numbers."""
    x = x.to(rstd.dtype)
    if not current().record:
        return (x if mean is None else x - mean) * rstd, rstd
    centred = x if rms else x - _average(x)
    rstd = p.rsqrt(_average(centred * centred) + eps)
    return centred * rstd, rstd


def _input_grad(
    g: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, weight: Tensor | None, eps: float, *, rms: bool
) -> Tensor:
    hat, rstd = _normalised(x, mean, rstd, eps, rms)
    d = g.to(rstd.dtype) if weight is None else g.to(rstd.dtype) * weight
    inner = hat * _average(d * hat)
    return ((d - (inner if rms else _average(d) + inner)) * rstd).to(x.dtype)


def _weight_grad(
    g: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, eps: float, *, rms: bool, weight_dtype: dtypes.dtype
) -> Tensor:
    hat, _ = _normalised(x, mean, rstd, eps, rms)
    return sum_op(g * hat, dims=(0, 3), keepdim=True, out_dtype=weight_dtype)


def _fast_input(
    g: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, weight: Tensor | None, eps: float, *, rms: bool
) -> Tensor:
    return _backward(contiguous(g), x, mean, rstd, weight, rms=rms)


def _fast_weight(
    g: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, eps: float, *, rms: bool, weight_dtype: dtypes.dtype
) -> Tensor:
    return _weight_backward(g, x, mean, rstd, kind=weight_dtype)


def _bias_grad(g: Tensor, *, bias_dtype: dtypes.dtype) -> Tensor:
    return sum_op(g, dims=(0, 3), keepdim=True, out_dtype=bias_dtype)


def _op(name: str, grad_name: str) -> Kernel:
    return Kernel(
        name, ("x", "weight", "bias", "eps"), _build, {"x": _input_grad, "weight": _weight_grad, "bias": _bias_grad},
        settings=("rms",), results=("out", "mean", "rstd"), grad_name=grad_name,
        fast={"x": _fast_input, "weight": _fast_weight}, again=True,
    )  # fmt: skip


_layer_norm = _op("layer_norm", "NativeLayerNorm")
_group_norm = _op("group_norm", "NativeGroupNorm")


def _without_mean(formula: Callable, weight: bool) -> Callable:
    """`formula` of a norm that has no mean: by x, or by the weight."""
    if weight:
        return lambda g, x, rstd, eps, *, rms, weight_dtype: formula(
            g, x, None, rstd, eps, rms=rms, weight_dtype=weight_dtype
        )
    return lambda g, x, rstd, weight, eps, *, rms: formula(g, x, None, rstd, weight, eps, rms=rms)


_rms_norm = Kernel(
    "rms_norm", ("x", "weight", "bias", "eps"), _build,
    {"x": _without_mean(_input_grad, False), "weight": _without_mean(_weight_grad, True)},
    settings=("rms",), results=("out", "rstd"), grad_name="FusedRmsNorm",
    fast={"x": _without_mean(_fast_input, False), "weight": _without_mean(_fast_weight, True)}, again=True,
)  # fmt: skip


def _run(
    op: Kernel, x: Tensor, shape: tuple[int, int, int, int], weight: Tensor | None, bias: Tensor | None, eps: float,
    rms: bool = False,
) -> Tensor:  # fmt: skip
    if not x.dtype.is_floating_point:
        raise RuntimeError(f"{op.name}: not implemented for {x.dtype!r}: convert the input first, as in x.float()")
    w, b = (None if t is None else reshape(contiguous(t), (1, shape[1], shape[2], 1)) for t in (weight, bias))
    rows = reshape(contiguous(x), shape)
    return reshape(dispatch(op, (rows, w, b, float(eps)), (rms,))[0], tuple(x.shape))


def _normalized(
    name: str, x: Tensor, shape: int | Sequence[int], weight: Tensor | None, bias: Tensor | None
) -> tuple[int, ...]:
    """The trailing dimensions to normalise.

    Raises:
        RuntimeError: there are none, the input or an operand does not end in them.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}(): argument 'input' (position 1) must be Tensor, not {type(x).__name__}")
    dims = (shape,) if isinstance(shape, int) else tuple(shape)
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
    return dims


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
    dims = _normalized("layer_norm", input, normalized_shape, weight, bias)
    n = numel(dims)
    return _run(_layer_norm, input, (numel(input.shape[: input.ndim - len(dims)]), 1, n, 1), weight, bias, eps)


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
    dims = _normalized("rms_norm", input, normalized_shape, weight, None)
    n = numel(dims)
    least = {dtypes.float16: 2.0**-10, dtypes.bfloat16: 2.0**-7, dtypes.float32: 2.0**-23}
    given = least.get(input.dtype, 2.0**-52) if eps is None else eps
    shape = (numel(input.shape[: input.ndim - len(dims)]), 1, n, 1)
    return _run(_rms_norm, input, shape, weight, None, given, rms=True)


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
    if input.ndim < 2:
        raise RuntimeError(f"Expected at least 2 dimensions for input tensor but received {input.ndim}")
    batch, channels = input.shape[:2]
    if num_groups <= 0:
        raise RuntimeError(f"Expected num groups to be greater than 0, got {num_groups}")
    if channels % num_groups:
        raise RuntimeError(
            "Expected number of channels in input to be divisible by num_groups, but got input of shape "
            f"{list(input.shape)} and num_groups={num_groups}"
        )
    for what, t in (("weight", weight), ("bias", bias)):
        if t is not None and tuple(t.shape) != (channels,):
            raise RuntimeError(
                f"Expected {what} to be a vector of size equal to the number of channels in input, but got {what} of "
                f"shape {list(t.shape)} and input of shape {list(input.shape)}"
            )
    elements = numel(input.shape[2:])
    if batch * (channels // num_groups) * elements == 1:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {list(input.shape)}")
    return _run(_group_norm, input, (batch, num_groups, channels // num_groups, elements), weight, bias, eps)
