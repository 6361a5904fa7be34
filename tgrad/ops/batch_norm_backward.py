"""Gradients of batch normalisation in training: in fused kernels, and in recorded maths, to be differentiated again.

Fused: one kernel where the elements of some channels fit into registers; else the two sums of each channel first, and
the input's gradient from those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dispatch import dispatch
from tgrad.expression import Expression
from tgrad.kernels.batch_norm_backward import prepare_batch_norm_backward, prepare_batch_norm_sums
from tgrad.kernels.batch_norm_tiles import Planes, Steps
from tgrad.kernels.launch import Launch
from tgrad.kernels.row_norm_sums import prepare_norm_sums
from tgrad.layout import Layout, collapse, layout, numel
from tgrad.modes import current
from tgrad.op import Kernel, pointwise_launch
from tgrad.ops import pointwise as p
from tgrad.ops.reduce import sum_op
from tgrad.ops.row_norm_backward import pointer
from tgrad.ops.views import contiguous, fill_launch, reshape
from tgrad.storage import workspace
from tgrad.tensor import Tensor

T2 = dtypes.TENSOR


# --- layouts
# -------------------------------------------------------------------------------------------------------------
def steps_of(l: Layout) -> Steps | None:
    """The strides along samples, channels, and the elements of a channel in a sample; None where those have several."""
    _, ((*inner,),) = collapse(l.shape[2:], [l.strides[2:]])
    return None if len(inner) > 1 else (l.strides[0], l.strides[1], inner[0] if inner else 0)


def walkable(t: Tensor) -> Tensor:
    """t, or a dense copy where `steps_of` has none."""
    return t if t.layout.contiguous or steps_of(t.layout) is not None else contiguous(t)


def dense_steps(shape: Sequence[int]) -> Steps:
    within = numel(shape[2:])
    return shape[1] * within, within, 0 if within == 1 else 1


def planes_of(x: Layout, others: Sequence[Layout] = ()) -> Planes:
    shape, steps = x.shape, steps_of(x)
    assert steps is not None
    within = numel(shape[2:])
    wide = max(x.numel, x.extent, *[l.extent for l in others]) >= 2**30  # a block may end far behind the last element
    return Planes(shape[1], shape[0] * within, within, x.dtype.itemsize, steps, wide)


def wide_layout(channel: Layout, ndim: int) -> Layout:
    """(C,) as (1, C, 1, ...)."""
    (n,), (step,) = channel.shape, channel.strides
    return layout(channel.dtype, (1, n, *(1,) * (ndim - 2)), (0, step, *(0,) * (ndim - 2)), compute, channel.aligned)


def per_channel(t: Tensor, ndim: int) -> Tensor:
    """(C,) as (1, C, 1, ...)."""
    return reshape(t, (1, t.shape[0], *(1,) * (ndim - 2)))


# --- fused
# ---------------------------------------------------------------------------------------------------------------
def _build(
    g: Tensor, x: Tensor | None, mean: Tensor | None, rstd: Tensor | None, weight: Tensor | None,
    wanted: tuple[str, ...], kinds: tuple[dtypes.dtype, ...],
) -> tuple[list[Layout], Launch]:  # fmt: skip
    """Results: the gradients of `wanted`, in the order input, weight, bias; `kinds`: their dtypes. The weight is an
    operand of the input's alone; for the bias's, the input and its statistics are not read.
    """
    shape = tuple(g.shape)
    outs = [
        layout(kind, shape if name == "input" else shape[1:2], None, compute)
        for name, kind in zip(wanted, kinds, strict=True)
    ]
    if not g.numel():
        return outs, zeros(outs)
    return outs, _in_one(g, x, mean, rstd, weight, wanted, outs) or _by_sums(g, x, mean, rstd, weight, wanted, outs)


def zeros(outs: Sequence[Layout]) -> Launch:
    """Of no elements the sums are 0."""
    launches = [fill_launch("fill", out) if out.numel else None for out in outs]

    def launch(*values: int) -> None:
        for fill, to in zip(launches, values, strict=False):
            if fill is not None:
                fill(to, 0.0)

    return launch


def types(*given: Tensor | None) -> tuple[str, ...]:
    return tuple(pointer(t) for t in given if t is not None)


def walked(g: Tensor, x: Tensor | None) -> tuple[Planes, Steps]:
    """Of the input, if it is read, or of g; and g's steps."""
    steps = steps_of(g.layout)
    assert steps is not None
    return planes_of((g if x is None else x).layout, [g.layout]), steps


def _in_one(
    g: Tensor, x: Tensor | None, mean: Tensor | None, rstd: Tensor | None, weight: Tensor | None,
    wanted: tuple[str, ...], outs: Sequence[Layout],
) -> Launch | None:  # fmt: skip
    found = {name: ("*" + out.dtype.triton,) for name, out in zip(wanted, outs, strict=True)}
    planes, steps = walked(g, x)
    runtime = (
        *(found.get(name, ()) for name in ("input", "weight", "bias")), pointer(g), types(x), types(mean, rstd),
        types(weight),
    )  # fmt: skip
    return prepare_batch_norm_backward(
        runtime, planes, dense_steps(g.shape), steps, accumulator=_accumulator(rstd, g).triton,
        aligned=aligned(g, x, weight),
    )  # fmt: skip


def _accumulator(rstd: Tensor | None, g: Tensor) -> dtypes.dtype:
    return dtypes.accumulator(g.dtype) if rstd is None else rstd.dtype


def aligned(*given: Tensor | None) -> bool:
    return all(t.layout.aligned for t in given if t is not None)


def _by_sums(
    g: Tensor, x: Tensor | None, mean: Tensor | None, rstd: Tensor | None, weight: Tensor | None,
    wanted: tuple[str, ...], outs: Sequence[Layout],
) -> Launch:  # fmt: skip
    """The sums, and the input's gradient from those in the accumulator's dtype: they have memory of their own where
    they are no result, or one of another dtype."""
    acc = _accumulator(rstd, g)
    kinds = {name: out.dtype for name, out in zip(wanted, outs, strict=True)}
    whole_input = "input" in wanted
    summed = [name for name in ("weight", "bias") if name in wanted or whole_input]
    targets: list[tuple[str, dtypes.dtype, int | None]] = []  # and which result each is
    for name in summed:
        if name in wanted:
            targets.append((name, kinds[name], wanted.index(name)))
        if whole_input and kinds.get(name) is not acc:
            targets.append((name, acc, None))
    total = {name: max(k for k, t in enumerate(targets) if t[:2] == (name, acc)) for name in summed if whole_input}
    common: dict[str, Any] = {"accumulator": acc.triton, "aligned": aligned(g, x, weight)}
    planes, steps = walked(g, x)
    of = lambda name: tuple("*" + kind.triton for n, kind, _ in targets if n == name)
    by_weight, by_bias = of("weight"), of("bias")
    reads = "weight" in summed
    operands = pointer(g), types(x) if reads else (), types(mean, rstd) if reads else (), (), ()
    pieces, sums = prepare_batch_norm_sums(
        (), (by_weight, by_bias), operands, planes, dense_steps(g.shape), steps, **common
    )
    if pieces > 1:
        add = prepare_norm_sums((*by_weight, *by_bias), pieces, planes.c, **common)
    finish = None
    if whole_input:
        assert x is not None and mean is not None and rstd is not None
        finish = _finish_launch(g, x, mean, rstd, weight, outs[0])
    count, read = len(wanted), 4 if reads else 1
    nbytes, share = planes.c * acc.itemsize, 1.0 / planes.k

    def launch(*values: int) -> None:
        spare = {k: workspace(nbytes) for k, (_, _, at) in enumerate(targets) if at is None}
        to = [spare[k].ptr if at is None else values[at] for k, (_, _, at) in enumerate(targets)]
        given = values[count:]
        if pieces == 1:
            sums(*to, *given[:read])
        else:
            parts = {name: workspace(pieces * nbytes) for name in summed}
            sums(*[parts[name].ptr for name in summed], *given[:read])
            add(*to, *[parts[name].ptr for name, _, _ in targets])
        if finish is not None:
            finish(values[0], *given, to[total["bias"]], to[total["weight"]], share)

    return launch


def _finish_launch(g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, out: Layout) -> Launch:
    """The input's gradient: of g, the input, mean, rstd, the weight, the sums of g and of g * normalised, and 1 / K."""

    def formula(g, x, mean, rstd, *rest):
        *affine, total, by_hat, share = rest
        y = (g - (total * share + (x - mean) * rstd * (by_hat * share))) * rstd
        return y * affine[0] if affine else y

    stat = wide_layout(rstd.layout, g.ndim)
    affine = [] if weight is None else [wide_layout(weight.layout, g.ndim)]
    layouts = [g.layout, x.layout, stat, stat, *affine, stat, stat]
    operands = (*((l.dtype, T2) for l in layouts), (dtypes.float32, dtypes.NUMBER))
    lowered = Expression.of(formula, len(operands)).lower(operands, [out.dtype])
    return pointwise_launch("batch_norm_backward", lowered, [out], layouts)


backward_op = Kernel(
    "batch_norm_backward", ("g", "input", "mean", "rstd", "weight"), _build, {}, settings=("wanted", "kinds")
)


def together(
    g: Tensor, input: Tensor | None, mean: Tensor | None, rstd: Tensor | None, weight: Tensor | None, *,
    wanted: tuple[str, ...], input_dtype: dtypes.dtype, weight_dtype: dtypes.dtype | None,
    bias_dtype: dtypes.dtype | None,
) -> Sequence[Tensor]:  # fmt: skip
    """What a plain backward does for all inputs that want a gradient."""
    known = {"input": input_dtype, "weight": weight_dtype, "bias": bias_dtype}
    kinds = tuple(known[name] for name in wanted)
    return dispatch(backward_op, (walkable(g), input, mean, rstd, weight), (wanted, kinds))


# --- in recorded maths
# ---------------------------------------------------------------------------------------------------
def channel_sum(t: Tensor) -> Tensor:
    return sum_op(t, dims=tuple(d for d in range(t.ndim) if d != 1), keepdim=True, out_dtype=t.dtype)


def _normalised(input: Tensor, mean: Tensor, rstd: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(normalised, rstd): functions of the input where that is recorded; mean and rstd are saved as plain numbers."""
    input = input.to(rstd.dtype)
    if not current().record:
        wide = per_channel(rstd, input.ndim)
        return (input - per_channel(mean, input.ndim)) * wide, wide
    count = input.numel() // input.shape[1]
    centred = input - channel_sum(input) / count
    rstd = p.rsqrt(channel_sum(centred * centred) / count + eps)
    return centred * rstd, rstd


def input_grad(
    g: Tensor, input: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, *, eps: float
) -> Tensor:
    hat, wide = _normalised(input, mean, rstd, eps)
    d = g.to(wide.dtype)
    d = d if weight is None else d * per_channel(weight, g.ndim)
    count = input.numel() // input.shape[1]
    return ((d - (channel_sum(d) + hat * channel_sum(d * hat)) / count) * wide).to(input.dtype)


def weight_grad(
    g: Tensor, input: Tensor, mean: Tensor, rstd: Tensor, *, eps: float, weight_shape: tuple[int, ...]
) -> Tensor:
    hat, _ = _normalised(input, mean, rstd, eps)
    return reshape(channel_sum(g.to(hat.dtype) * hat), weight_shape)


def bias_grad(g: Tensor, *, bias_shape: tuple[int, ...]) -> Tensor:
    return reshape(channel_sum(g), bias_shape)
