"""Batch normalisation: nothing but the input and two numbers a channel is kept. Gradients: batch_norm_backward.py."""

from __future__ import annotations

import functools
from typing import Any

from tgrad import dispatch as path, dtypes, graph, once
from tgrad.device import compute
from tgrad.expression import Expression
from tgrad.kernels.batch_norm import prepare_batch_norm, prepare_batch_norm_statistics
from tgrad.kernels.launch import Launch
from tgrad.layout import Layout, layout, numel
from tgrad.modes import current
from tgrad.op import Kernel, pointwise_launch
from tgrad.ops import pointwise as p
from tgrad.ops.batch_norm_backward import (
    T2,
    bias_grad,
    dense_steps,
    input_grad,
    planes_of,
    together,
    walkable,
    weight_grad,
    wide_layout,
)
from tgrad.ops.batch_norm_evaluation import evaluate
from tgrad.ops.row_norm_backward import pointer
from tgrad.ops.views import contiguous, reshape
from tgrad.storage import workspace
from tgrad.tensor import Tensor


# --- in training
# ---------------------------------------------------------------------------------------------------------
def _outs(x: Layout) -> tuple[Layout, Layout]:
    """Layouts of the result and of one number a channel."""
    stat = layout(dtypes.accumulator(x.dtype), (x.shape[1],), None, compute)
    return layout(x.dtype, tuple(x.shape), None, compute), stat


def _build(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None, running_var: Tensor | None,
    counter: Tensor | None, eps: float, momentum: float,
) -> tuple[list[Layout], Launch]:  # fmt: skip
    """Results: the normalised input, and per channel its mean and 1 / sqrt(variance + eps). The running statistics
    move, and the counter counts.
    """
    out, stat = _outs(x.layout)
    if not out.numel:
        return [out, stat, stat], lambda *values: None
    acc = stat.dtype
    affine = [t for t in (weight, bias) if t is not None]
    running = [t for t in (running_mean, running_var) if t is not None]
    counted = [] if counter is None else [counter]
    planes = planes_of(x.layout)
    steps = tuple(t.layout.strides[0] for t in running)
    number = "fp64" if acc is dtypes.float64 else "fp32"
    moved = (tuple(map(pointer, running)), tuple(map(pointer, counted)), *(number,) * 4)
    common: dict[str, Any] = {
        "accumulator": acc.triton, "aligned": all(t.layout.aligned for t in (x, *affine, *running, *counted))
    }  # fmt: skip
    single = prepare_batch_norm(
        ("*" + out.dtype.triton, *("*" + acc.triton,) * 2, pointer(x), tuple(map(pointer, affine)), *moved),
        planes, dense_steps(x.shape), steps, {"WEIGHT": weight is not None, "BIAS": bias is not None}, **common,
    )  # fmt: skip
    unbiased = planes.k / max(1, planes.k - 1)

    if single is not None:

        def in_one(*values: float) -> None:
            *addresses, eps, momentum = values
            single(*addresses, eps, 1 - momentum, momentum, momentum * unbiased)

        return [out, stat, stat], in_one

    pieces, first, second = prepare_batch_norm_statistics(pointer(x), moved, planes, steps, **common)
    normalise = _normalise_launch(x.layout, _layout_of(weight), _layout_of(bias))
    nbytes, n = pieces * stat.nbytes, len(affine)

    def launch(to: int, mean: int, rstd: int, source: int, *values: float) -> None:
        *addresses, eps, momentum = values
        means, spreads = workspace(nbytes), workspace(nbytes)
        first(means.ptr, spreads.ptr, source)
        second(
            mean, rstd, source, means.ptr, spreads.ptr, *addresses[n:], eps, 1 - momentum, momentum,
            momentum * unbiased,
        )  # fmt: skip
        normalise(to, source, *addresses[:n], mean, rstd)

    return [out, stat, stat], launch


def _layout_of(t: Tensor | None) -> Layout | None:
    return None if t is None else t.layout


def _normalise_launch(x: Layout, weight: Layout | None, bias: Layout | None) -> Launch:
    """(x - mean) * rstd * weight + bias, of x, weight and bias, as far as given, mean and rstd."""

    def normalise(x, *rest):
        *affine, mean, rstd = rest
        y = (x - mean) * rstd
        y = y * affine[0] if weight is not None else y
        return y + affine[-1] if bias is not None else y

    (out, stat), affine = _outs(x), [l for l in (weight, bias) if l is not None]
    layouts = [x, *[wide_layout(l, len(x.shape)) for l in (*affine, stat, stat)]]
    lowered = Expression.of(normalise, len(layouts)).lower(tuple((l.dtype, T2) for l in layouts), [out.dtype])
    return pointwise_launch("batch_norm", lowered, [out], layouts)


def _build_again(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor, eps: float
) -> tuple[list[Layout], Launch]:
    """The normalised input by known statistics: what a recipe runs, and is compiled as the first one runs it."""
    layouts = x.layout, _layout_of(weight), _layout_of(bias)
    prepared = functools.cache(lambda: _normalise_launch(*layouts))

    def launch(*values: float) -> None:
        prepared()(*values)

    return [_outs(x.layout)[0]], launch


training_op = Kernel(
    "batch_norm", ("input", "weight", "bias", "running_mean", "running_var", "counter", "eps", "momentum"), _build, {},
    results=("out", "mean", "rstd"),
)  # fmt: skip
batch_norm_op = Kernel(
    "batch_norm", ("input", "weight", "bias", "mean", "rstd"), _build_again,
    {"input": input_grad, "weight": weight_grad, "bias": bias_grad}, settings=("eps",),
    joint=(("input", "weight", "bias"), together), grad_name="NativeBatchNorm", again=True,
)  # fmt: skip


def _train(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    counter: Tensor | None, momentum: float, eps: float,
) -> Tensor:  # fmt: skip
    """Normalise by the batch's statistics, move the running ones, and record that as one op of x, weight and bias."""
    x = walkable(x)
    weight, bias = (t if t is None or t.layout.contiguous else contiguous(t) for t in (weight, bias))
    for t in (running_mean, running_var):
        if t is not None:
            graph.about_to_write(t.storage)
    if counter is not None:
        graph.announce_write(counter)
    given = (x, weight, bias, running_mean, running_var, counter, eps, momentum)
    out, mean, rstd = path.dispatch(training_op, given)
    if counter is not None:
        graph.count_write(counter.version, "add_")
    if current().record:
        args = (x, weight, bias, mean, rstd)
        key = (*[None if a is None else a.layout for a in args], eps)
        plan = batch_norm_op.plans.get(key)
        if plan is None:
            plan = path.keep_plan(batch_norm_op, key, batch_norm_op.build(args, (eps,)))
        path.record(plan, args, [out])
    return out


# --- what users call
# -----------------------------------------------------------------------------------------------------
def batch_norm(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    counter: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Normalise each channel, dimension 1 of x: (N, C) or (N, C, L, ...).

    In training by the batch's mean and biased variance; the running statistics then move by `momentum` towards the
    mean and the unbiased variance, without a new version, as in PyTorch. Otherwise by the running statistics.

    Args:
        counter: how many batches the running statistics have seen, a 0-dim integer: incremented in training.

    Raises:
        ValueError: one value per channel in training.
        RuntimeError: a per-channel operand of another size; the dtype is not floating.
    """
    if x.ndim < 2:
        if not x.numel():
            return p.clone(x)
        raise RuntimeError(f"batch_norm: expected an input of at least 2 dimensions, got shape {tuple(x.shape)}")
    if not x.dtype.is_floating_point:
        raise RuntimeError(f"batch_norm: not implemented for {x.dtype!r}: convert the input first, as in x.float()")
    channels = x.shape[1]
    for name, t in (("running_mean", running_mean), ("running_var", running_var), ("weight", weight), ("bias", bias)):
        if t is not None and t.numel() != channels:
            raise RuntimeError(f"{name} should contain {channels} elements not {t.numel()}")
    one = lambda t: t if t is None or t.ndim == 1 else reshape(t, (channels,))
    running_mean, running_var, weight, bias = one(running_mean), one(running_var), one(weight), one(bias)
    if training or running_mean is None or running_var is None:
        if x.shape[0] * numel(x.shape[2:]) == 1:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        if running_mean is None or running_var is None:
            running_mean = running_var = None
        if once.is_again():
            running_mean = running_var = counter = None
        if counter is not None and not _countable(counter, x):
            counter.add_(1)
            counter = None
        return _train(x, running_mean, running_var, weight, bias, counter, float(momentum), float(eps))
    return evaluate(x, running_mean, running_var, weight, bias, float(eps))


def _countable(counter: Tensor, x: Tensor) -> bool:
    """Whether the forward's kernel can count."""
    l = counter.layout
    known = l.dtype is dtypes.int64 and not l.shape and l.device is compute
    return known and counter.version is not None and x.numel() > 0
