"""Batch normalisation, from the pointwise and reduction kernels: nothing but the input and two numbers a channel is
kept.
"""

from __future__ import annotations

import functools

from tgrad import dtypes, once
from tgrad.device import compute
from tgrad.dispatch import dispatch
from tgrad.expression import Expression
from tgrad.kernels.launch import Launch
from tgrad.layout import Layout, layout, numel
from tgrad.modes import current
from tgrad.op import Composed, Kernel, pointwise_launch
from tgrad.ops import pointwise as p
from tgrad.ops.reduce import reduce_launch, sum_op
from tgrad.ops.views import reshape
from tgrad.tensor import Tensor

T2 = dtypes.TENSOR


def _per_channel(t: Tensor, ndim: int) -> Tensor:
    """(C,) as (1, C, 1, ...)."""
    return reshape(t, (1, t.shape[0], *(1,) * (ndim - 2)))


def _wide(channel: Layout, ndim: int) -> Layout:
    """(C,) as (1, C, 1, ...)."""
    (n,), (step,) = channel.shape, channel.strides
    return layout(channel.dtype, (1, n, *(1,) * (ndim - 2)), (0, step, *(0,) * (ndim - 2)), compute, channel.aligned)


def _build(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[list[Layout], Launch]:
    """Results: the normalised input, and per channel its mean, 1 / sqrt(variance + eps) and variance."""
    shape, ndim, channels = tuple(x.shape), x.ndim, x.shape[1]
    dims = tuple(d for d in range(ndim) if d != 1)
    count = float(numel(shape[d] for d in dims))
    acc = dtypes.accumulator(x.dtype)
    out = layout(x.dtype, shape, None, compute)
    stat = layout(acc, (channels,), None, compute)
    wide = _wide(stat, ndim)
    given = (x.dtype, T2)
    average = reduce_launch(
        "batch_norm_mean", "sum", Expression.of(lambda v: v, 1), (given,), [x.layout], shape, dims, stat, divide=True
    )
    deviation = Expression.of(lambda v, m: p.square(v - m), 2)
    spread = reduce_launch(
        "batch_norm_var", "sum", deviation, (given, (acc, T2)), [x.layout, wide], shape, dims, stat, divide=True
    )
    inverse = Expression.of(lambda v, e: p.rsqrt(v + e), 2)
    invert = pointwise_launch(
        "batch_norm_rstd", inverse.lower(((acc, T2), (dtypes.float32, dtypes.NUMBER)), [acc]), [stat], [stat]
    )
    finish = _normalise_launch(x.layout, out, wide, weight, bias)

    def launch(to: int, mean: int, rstd: int, var: int, source: int, *rest: float) -> None:
        *affine, e = rest
        average(mean, source, count)
        spread(var, source, mean, count)
        invert(rstd, var, e)
        finish(to, source, mean, rstd, *affine)

    return [out, stat, stat, stat], launch


def _normalise_launch(x: Layout, out: Layout, wide: Layout, weight: Tensor | None, bias: Tensor | None) -> Launch:
    affine = [t for t in (weight, bias) if t is not None]

    def normalise(x, mean, rstd, *rest):
        y = (x - mean) * rstd
        y = y * rest[0] if weight is not None else y
        return y + rest[-1] if bias is not None else y

    layouts = [x, wide, wide, *[_wide(t.layout, len(wide.shape)) for t in affine]]
    lowered = Expression.of(normalise, len(layouts)).lower(tuple((l.dtype, T2) for l in layouts), [out.dtype])
    return pointwise_launch("batch_norm", lowered, [out], layouts)


def _centred(input: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    n = input.ndim
    rstd = _per_channel(rstd, n)
    return (input - _per_channel(mean, n)) * rstd, rstd


def _channel_sum(t: Tensor) -> Tensor:
    return sum_op(t, dims=tuple(d for d in range(t.ndim) if d != 1), keepdim=True, out_dtype=t.dtype)


def _recompute(input: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(normalised, rstd) as recorded functions of the input: mean and rstd are saved as plain numbers."""
    count = input.numel() // input.shape[1]
    centred = input - _channel_sum(input) / count
    rstd = p.rsqrt(_channel_sum(centred * centred) / count + eps)
    return centred * rstd, rstd


def _input_grad(g: Tensor, input: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    hat, wide = _recompute(input, eps) if current().record else _centred(input, mean, rstd)
    g = g if weight is None else g * _per_channel(weight, g.ndim)
    count = input.numel() // input.shape[1]
    return (g - (_channel_sum(g) + hat * _channel_sum(g * hat)) / count) * wide


def _weight_grad(
    g: Tensor, input: Tensor, mean: Tensor, rstd: Tensor, eps: float, *, weight_shape: tuple[int, ...]
) -> Tensor:
    hat, _ = _recompute(input, eps) if current().record else _centred(input, mean, rstd)
    return reshape(_channel_sum(g * hat), weight_shape)


batch_norm_op = Kernel(
    "batch_norm", ("input", "weight", "bias", "eps"), _build,
    {
        "input": _input_grad,
        "weight": _weight_grad,
        "bias": lambda g, *, bias_shape: reshape(_channel_sum(g), bias_shape),
    },
    results=("out", "mean", "rstd", "var"), grad_name="NativeBatchNorm", again=True,
)  # fmt: skip


def batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """Normalise each channel, dimension 1 of x: (N, C) or (N, C, L, ...).

    In training by the batch's mean and biased variance; the running statistics then move by `momentum` towards the
    mean and the unbiased variance, without a new version, as in PyTorch. Otherwise by the running statistics.

    Raises:
        ValueError: one value per channel in training. RuntimeError: a per-channel operand of another size.
    """
    if x.ndim < 2:
        if not x.numel():
            return p.clone(x)
        raise RuntimeError(f"batch_norm: expected an input of at least 2 dimensions, got shape {tuple(x.shape)}")
    channels = x.shape[1]
    for name, t in (("running_mean", running_mean), ("running_var", running_var), ("weight", weight), ("bias", bias)):
        if t is not None and t.numel() != channels:
            raise RuntimeError(f"{name} should contain {channels} elements not {t.numel()}")
    count = x.numel() // max(channels, 1)
    if training or running_mean is None or running_var is None:
        if count == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        out, mean, _, var = dispatch(batch_norm_op, (x, weight, bias, float(eps)))
        if running_mean is not None and running_var is not None:
            _move(running_mean, mean, momentum, 1.0)
            _move(running_var, var, momentum, count / (count - 1))
        return out
    affine = [_per_channel(t, x.ndim) for t in (weight, bias) if t is not None]
    row = _evaluation(x.dtype, weight is not None, bias is not None)
    return row(x, _per_channel(running_mean, x.ndim), _per_channel(running_var, x.ndim), *affine, float(eps))


@functools.cache
def _evaluation(kind: dtypes.dtype, weighted: bool, biased: bool) -> Composed:
    """Normalisation by given statistics, in one kernel; the result is of dtype `kind`, as the input."""
    names = ["input", "running_mean", "running_var", *["weight"] * weighted, *["bias"] * biased, "eps"]

    def normalise(x, mean, var, *rest):
        *affine, eps = rest
        y = (x - mean) * p.rsqrt(var + eps)
        y = y * affine[0] if weighted else y
        return p.cast(kind)(y + affine[-1] if biased else y)

    return Composed("native_batch_norm", Expression.of(normalise, len(names)), names)


_MOVE = Expression.of(lambda old, new, keep, take: old * keep + new * take, 4)


def _move(running: Tensor, batch: Tensor, momentum: float, correction: float) -> None:
    """running = (1 - momentum) * running + momentum * correction * batch, not counted as a write."""
    if once.is_again():
        return
    operands = (
        (running.dtype, T2),
        (batch.dtype, T2),
        (dtypes.float32, dtypes.NUMBER),
        (dtypes.float32, dtypes.NUMBER),
    )
    launch = pointwise_launch(
        "batch_norm_running", _MOVE.lower(operands, [running.dtype]), [running.layout], [running.layout, batch.layout]
    )
    launch(running.ptr, running.ptr, batch.ptr, 1 - momentum, momentum * correction)
