"""Batch normalisation by given statistics, as in evaluation: one kernel forward, and one backward.

The statistics are constants, as in PyTorch: they get no gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dispatch import dispatch
from tgrad.expression import Expression
from tgrad.fusion.tracing import Tracer
from tgrad.kernels.batch_norm_backward import prepare_batch_norm_sums
from tgrad.kernels.launch import Launch
from tgrad.kernels.row_norm_sums import prepare_norm_sums
from tgrad.layout import Layout, layout
from tgrad.op import Composed, Kernel, pointwise_launch
from tgrad.ops import pointwise as p
from tgrad.ops.batch_norm_backward import (
    T2,
    aligned,
    bias_grad,
    channel_sum,
    dense_steps,
    per_channel,
    types,
    walkable,
    walked,
    wide_layout,
    zeros,
)
from tgrad.ops.row_norm_backward import pointer
from tgrad.ops.views import contiguous, reshape
from tgrad.storage import workspace
from tgrad.tensor import Tensor


@functools.cache
def _normalisation(kind: dtypes.dtype, weighted: bool, biased: bool) -> Composed:
    """The formula, as an op that can be fused with others; the result is of dtype `kind`."""
    names = ["input", *["weight"] * weighted, *["bias"] * biased, "running_mean", "running_var", "eps"]

    def normalise(x, *rest):
        *affine, mean, var, eps = rest
        y = (x - mean) * p.rsqrt(var + eps)
        y = y * affine[0] if weighted else y
        return p.cast(kind)(y + affine[-1] if biased else y)

    return Composed("native_batch_norm", Expression.of(normalise, len(names)), names)


def _build(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[list[Layout], Launch]:
    out = layout(x.dtype, tuple(x.shape), None, compute)
    channels = [t.layout for t in (weight, bias, mean, var) if t is not None]
    layouts = [x.layout, *[wide_layout(l, x.ndim) for l in channels]]
    operands = (*((l.dtype, T2) for l in layouts), (dtypes.float32, dtypes.NUMBER))
    lowered = _normalisation(x.dtype, weight is not None, bias is not None).expression.lower(operands, [out.dtype])
    return [out], pointwise_launch("native_batch_norm", lowered, [out], layouts)


# --- gradients
# -----------------------------------------------------------------------------------------------------------
def _build_backward(
    g: Tensor, x: Tensor | None, mean: Tensor | None, var: Tensor | None, weight: Tensor | None, eps: float,
    wanted: tuple[str, ...], kinds: tuple[dtypes.dtype, ...],
) -> tuple[list[Layout], Launch]:  # fmt: skip
    """Results: the gradients of `wanted`, in the order input, weight, bias; `kinds`: their dtypes."""
    shape, acc = tuple(g.shape), dtypes.accumulator(g.dtype)
    known = dict(zip(wanted, kinds, strict=True))
    outs = [layout(kind, shape if name == "input" else shape[1:2], None, compute) for name, kind in known.items()]
    if not g.numel():
        return outs, zeros(outs)
    found = {name: ("*" + kind.triton,) for name, kind in known.items()}
    sums = found.get("weight", ()), found.get("bias", ())
    lead, count = len(found.get("input", ())), len(wanted)
    planes, steps = walked(g, x)
    common: dict[str, Any] = {"accumulator": acc.triton, "aligned": aligned(g, x, mean, var, weight)}
    number = "fp64" if acc is dtypes.float64 else "fp32"
    operands = pointer(g), types(x), types(mean, var), types(weight), (number,)
    pieces, kernel = prepare_batch_norm_sums(
        found.get("input", ()), sums, operands, planes, dense_steps(shape), steps, **common
    )
    if pieces == 1 or lead == count:
        return outs, kernel
    add = prepare_norm_sums((*sums[0], *sums[1]), pieces, planes.c, **common)
    nbytes = pieces * planes.c * acc.itemsize

    def launch(*values: float) -> None:
        parts = [workspace(nbytes) for _ in values[lead:count]]
        addresses = [part.ptr for part in parts]
        kernel(*values[:lead], *addresses, *values[count:])
        add(*values[lead:count], *addresses)

    return outs, launch


evaluation_backward_op = Kernel(
    "native_batch_norm_backward", ("g", "input", "mean", "var", "weight", "eps"), _build_backward, {},
    settings=("wanted", "kinds"),
)  # fmt: skip


def _together(
    g: Tensor, input: Tensor | None, mean: Tensor | None, var: Tensor | None, weight: Tensor | None,
    eps: float = 0.0, *, wanted: tuple[str, ...], input_dtype: dtypes.dtype, weight_dtype: dtypes.dtype | None,
    bias_dtype: dtypes.dtype | None,
) -> Sequence[Tensor]:  # fmt: skip
    """What a plain backward does for all inputs that want a gradient."""
    dtype_of = {"input": input_dtype, "weight": weight_dtype, "bias": bias_dtype}
    kinds = tuple(dtype_of[name] for name in wanted)
    given = (walkable(g), input, mean, var, weight, 0.0 if eps is None else eps)
    return dispatch(evaluation_backward_op, given, (wanted, kinds))


def _input_grad(
    g: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, eps: float, *, input_dtype: dtypes.dtype
) -> Tensor:
    scale = p.rsqrt(per_channel(var, g.ndim).to(dtypes.accumulator(input_dtype)) + eps)
    return (g * (scale if weight is None else scale * per_channel(weight, g.ndim))).to(input_dtype)


def _weight_grad(
    g: Tensor, input: Tensor, mean: Tensor, var: Tensor, eps: float, *, weight_shape: tuple[int, ...]
) -> Tensor:
    kind = dtypes.accumulator(input.dtype)
    scale = p.rsqrt(per_channel(var, g.ndim).to(kind) + eps)
    return reshape(channel_sum(g.to(kind) * (input - per_channel(mean, g.ndim)) * scale), weight_shape)


evaluation_op = Kernel(
    "native_batch_norm", ("input", "weight", "bias", "mean", "var", "eps"), _build,
    {"input": _input_grad, "weight": _weight_grad, "bias": bias_grad},
    joint=(("input", "weight", "bias"), _together), again=True,
)  # fmt: skip


def evaluate(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, for each channel of x, dimension 1."""
    channels = [t for t in (weight, bias) if t is not None]
    if any(t.__class__ is Tracer for t in (x, mean, var, *channels)):
        row = _normalisation(x.dtype, weight is not None, bias is not None)
        return row(x, *[per_channel(t, x.ndim) for t in (*channels, mean, var)], eps)
    given = [t if t is None or t.layout.contiguous else contiguous(t) for t in (weight, bias, mean, var)]
    return evaluation_op(walkable(x), *given, eps)
