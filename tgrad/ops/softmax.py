"""Softmax, log-softmax and cross-entropy: fused kernels, with composed twins that can be differentiated again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tgrad import dtypes
from tgrad.device import compute
from tgrad.expression import Expression
from tgrad.kernels.launch import Launch
from tgrad.kernels.softmax import prepare_mean_of_rows, prepare_rows
from tgrad.layout import Layout, broadcast_strides, collapse, layout, numel, wrap_dim
from tgrad.op import Kernel
from tgrad.ops import pointwise as p
from tgrad.ops.bounds import outside
from tgrad.ops.reduce import expand, reduce_launch, sum_op
from tgrad.ops.views import reshape
from tgrad.storage import workspace
from tgrad.tensor import Tensor

COPY = Expression.of(lambda x: x, 1)


def _rows(dim: int, operands: Sequence[Layout]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The dimensions other than `dim`, collapsed over all operands."""
    shape = operands[0].shape
    others = [d for d in range(len(shape)) if d != dim]
    return collapse([shape[d] for d in others], [[o.strides[d] for d in others] for o in operands])


def _row_launch(name: str, dim: int, operands: Sequence[Layout], constants: dict[str, bool]) -> Launch:
    """A row kernel over operands of one shape."""
    shape = operands[0].shape
    sizes, strides = _rows(dim, operands)
    n = shape[dim]
    return prepare_rows(
        name, tuple(o.dtype.triton for o in operands), numel(sizes), n, (), sizes, strides,
        tuple(o.strides[dim] for o in operands), constants,
        accumulator=dtypes.accumulator(operands[0].dtype).triton,
        aligned=all(o.aligned for o in operands), wide=max(o.extent for o in operands) >= 2**31,
    )  # fmt: skip


def _build(log: bool) -> object:
    def build(x: Tensor, dim: int) -> tuple[list[Layout], Launch | None]:
        name = "log_softmax" if log else "softmax"
        if not x.dtype.is_floating_point:
            raise RuntimeError(f"{name}: not implemented for {x.dtype!r}: convert the input first, as in x.float()")
        out = layout(x.dtype, tuple(x.shape), None, compute)
        flat = [_at_least_1d(t) for t in (out, x.layout)]
        return [out], _row_launch("softmax", dim, flat, {"LOG": log}) if out.numel else None

    return build


def _at_least_1d(x: Layout) -> Layout:
    return x if x.shape else layout(x.dtype, (1,), None, compute, x.aligned)


def _build_backward(log: bool) -> object:
    def build(g: Tensor, out: Tensor, dim: int) -> tuple[list[Layout], Launch | None]:
        dx = layout(out.dtype, tuple(out.shape), None, compute)
        operands = [_at_least_1d(t) for t in (dx, g.layout, out.layout)]
        return [dx], _row_launch("softmax_backward", dim, operands, {"LOG": log}) if dx.numel else None

    return build


_log_softmax_backward = Kernel("log_softmax_backward", ("g", "out"), _build_backward(True), {}, settings=("dim",))  # type: ignore[arg-type]
_softmax_backward = Kernel("softmax_backward", ("g", "out"), _build_backward(False), {}, settings=("dim",))  # type: ignore[arg-type]


def _total(x: Tensor, dim: int) -> Tensor:
    return sum_op(x, dims=(dim,) if x.ndim else (), keepdim=True, out_dtype=x.dtype)


log_softmax_op = Kernel(
    "log_softmax", ("x",), _build(True),  # type: ignore[arg-type]
    {"x": lambda g, out, *, dim: g - p.exp(out) * _total(g, dim)}, settings=("dim",),
    fast={"x": lambda g, out, *, dim: _log_softmax_backward(g, out, dim=dim)},
)  # fmt: skip
softmax_op = Kernel(
    "softmax", ("x",), _build(False),  # type: ignore[arg-type]
    {"x": lambda g, out, *, dim: (g - _total(g * out, dim)) * out}, settings=("dim",),
    fast={"x": lambda g, out, *, dim: _softmax_backward(g, out, dim=dim)},
)  # fmt: skip


def log_softmax(x: Tensor, dim: int, dtype: dtypes.dtype | None = None) -> Tensor:
    """log(softmax(x)) along `dim`, without overflow; converts to `dtype` first if given.

    Shape: any; the result has the input's.
    Dtype: floating; `dtype`, by default the input's.
    Raises:
        RuntimeError: the dtype is not floating.
        IndexError: `dim` is out of range.
    """
    x = x if dtype is None or dtype is x.dtype else p.cast(dtype)(x)
    return log_softmax_op(x, dim=wrap_dim(dim, x.ndim))


def softmax(x: Tensor, dim: int, dtype: dtypes.dtype | None = None) -> Tensor:
    """exp(x) / sum(exp(x)) along `dim`, without overflow; converts to `dtype` first if given.

    Shape: any; the result has the input's.
    Dtype: floating; `dtype`, by default the input's.
    Raises:
        RuntimeError: the dtype is not floating.
        IndexError: `dim` is out of range.
    """
    x = x if dtype is None or dtype is x.dtype else p.cast(dtype)(x)
    return softmax_op(x, dim=wrap_dim(dim, x.ndim))


# --- cross-entropy
# -------------------------------------------------------------------------------------------------------
REDUCTIONS = ("none", "mean", "sum")


def losses_launch(
    rows_shape: tuple[int, ...], accumulator: dtypes.dtype, result: dtypes.dtype, reduction: str
) -> tuple[Layout, Layout, dtypes.dtype, Callable[[int, int, int, int], None] | None]:
    """(layout of the loss, layout of what a mean is divided by, dtype of the losses of rows, launch that reduces them).

    The callable takes the addresses of the two results, of the losses and of how much each counts, of type
    `accumulator`; counts and their sum are for a mean alone. Without a reduction there is none: the losses of rows are
    the result.
    """
    count, m = layout(accumulator, (), None, compute), numel(rows_shape)
    if reduction == "none":
        return layout(result, rows_shape, None, compute), count, result, None
    out = layout(result, (), None, compute)
    if reduction == "sum":
        operand, per_row = ((accumulator, dtypes.TENSOR),), layout(accumulator, (m,), None, compute)
        total = reduce_launch("cross_entropy_sum", "sum", COPY, operand, [per_row], (m,), (0,), out)
        return out, count, accumulator, lambda to, counted, losses, counts: total(to, losses)
    divide, add, pieces = prepare_mean_of_rows(m, result.triton, accumulator.triton)

    def launch(to: int, counted: int, losses: int, counts: int) -> None:
        if add is None:
            divide(to, counted, losses, counts)
            return
        sums, counted_sums = (workspace(pieces * accumulator.itemsize) for _ in range(2))
        add(sums.ptr, counted_sums.ptr, losses, counts)
        divide(to, counted, sums.ptr, counted_sums.ptr)

    return out, count, accumulator, launch


def _options(weight: Tensor | None, smoothing: float, accumulator: dtypes.dtype) -> tuple[tuple[str, ...], tuple]:
    """Triton types of the kernels' `weights` and, as prepare_rows takes them, of `smoothing`."""
    return () if weight is None else (weight.dtype.triton,), ((accumulator.triton,) * (2 * (smoothing != 0.0)),)


def smoothing_numbers(smoothing: float, classes: int) -> tuple[float, ...]:
    """What the loss of the target, and that of each class, are multiplied by; nothing without smoothing."""
    return (1.0 - smoothing, smoothing / max(classes, 1)) if smoothing else ()


def _build_cross_entropy(
    x: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, smoothing: float
) -> tuple[list[Layout], Launch]:
    """Results: the loss, and what a mean is divided by."""
    rows_shape = tuple(target.shape)
    m, n = target.numel(), x.shape[-1]
    accumulator = dtypes.accumulator(x.dtype)
    sizes, strides = collapse(rows_shape, [x.layout.strides[:-1], target.layout.strides])
    out, count, kind, finish = losses_launch(rows_shape, accumulator, x.dtype, reduction)
    weights, types = _options(weight, smoothing, accumulator)
    mean, numbers = reduction == "mean", smoothing_numbers(smoothing, n)
    rows = prepare_rows(
        "cross_entropy",
        (kind.triton, (accumulator.triton,) * mean, (), x.dtype.triton, target.dtype.triton, weights), m, n,
        (ignore_index,), sizes, strides, (x.layout.strides[-1],), {}, accumulator=accumulator.triton,
        aligned=all(t is None or t.layout.aligned for t in (x, target, weight)),
        wide=max(x.layout.extent, target.layout.extent) >= 2**31, numbers=types,
    ) if m else None  # fmt: skip

    def launch(to: int, counted: int, *operands: int) -> None:
        if finish is None:
            if rows is not None:
                rows(to, *operands, *numbers)
            return
        losses, flags = (workspace(m * accumulator.itemsize) for _ in range(2))  # two: each must be aligned
        if rows is not None:
            rows(losses.ptr, *(flags.ptr,) * mean, *operands, *numbers)
        finish(to, counted, losses.ptr, flags.ptr)

    return [out, count], launch


def _build_cross_entropy_backward(
    g: Tensor, x: Tensor, target: Tensor, count: Tensor, weight: Tensor | None, ignore_index: int, reduction: str,
    smoothing: float,
) -> tuple[list[Layout], Launch | None]:  # fmt: skip
    dx = layout(x.dtype, tuple(x.shape), None, compute)
    rows_shape, accumulator = tuple(target.shape), dtypes.accumulator(x.dtype)
    g_strides = broadcast_strides(tuple(g.shape), g.layout.strides, rows_shape)
    sizes, strides = collapse(rows_shape, [dx.strides[:-1], g_strides, x.layout.strides[:-1], target.layout.strides])
    weights, types = _options(weight, smoothing, accumulator)
    rows = prepare_rows(
        "cross_entropy_backward", (*(t.dtype.triton for t in (x, g, x, target, count)), weights), target.numel(),
        x.shape[-1], (ignore_index,), sizes, strides, (dx.strides[-1], x.layout.strides[-1]),
        {"MEAN": reduction == "mean"}, accumulator=accumulator.triton,
        aligned=all(t is None or t.layout.aligned for t in (g, x, target, weight)), wide=x.layout.extent >= 2**31,
        numbers=types,
    ) if dx.numel else None  # fmt: skip
    if rows is None:
        return [dx], None
    numbers = smoothing_numbers(smoothing, x.shape[-1])
    return [dx], lambda *addresses: rows(*addresses, *numbers)


_SETTINGS = ("ignore_index", "reduction", "smoothing")
_cross_entropy_backward = Kernel(
    "cross_entropy_backward", ("g", "input", "target", "count", "weight"), _build_cross_entropy_backward, {},
    settings=_SETTINGS,
)  # fmt: skip


def scores_gradient(
    g: Tensor, scores: Tensor, target: Tensor, count: Tensor, weight: Tensor | None, *, ignore_index: int,
    reduction: str, smoothing: float,
) -> Tensor:  # fmt: skip
    """The gradient of the loss by the scores (*, C) in recorded maths, in their dtype; target: (*)."""
    from tgrad.ops.creation import arange
    from tgrad.ops.losses import pick

    size, rows = scores.shape[-1], (*target.shape, 1)
    column = reshape(target, rows)
    hot = p.cast(scores.dtype)(p.eq(arange(size, dtype=target.dtype), column))
    if reduction == "mean":
        g = g / count
    elif reduction == "none":
        g = reshape(g, rows)
    likely = softmax(scores, -1)
    each = None if weight is None else p.cast(scores.dtype)(weight)
    d = likely - hot
    if each is not None:
        d = d * reshape(pick(expand(each, *scores.shape), target), rows)
    if smoothing:
        spread = likely - 1.0 / size if each is None else likely * (_total(each, 0) / size) - each / size
        d = d * (1.0 - smoothing) + spread * smoothing
    return p.where(p.eq(column, ignore_index), 0, d * g)


cross_entropy_op = Kernel(
    "cross_entropy", ("input", "target", "weight"), _build_cross_entropy,
    {"input": lambda g, input, target, count, weight, *, ignore_index, reduction, smoothing: scores_gradient(
        g, input, target, count, weight, ignore_index=ignore_index, reduction=reduction, smoothing=smoothing)},
    settings=_SETTINGS, results=("out", "count"), grad_name="NllLoss",
    fast={"input": lambda g, input, target, count, weight, *, ignore_index, reduction, smoothing:
          _cross_entropy_backward(
              g, input, target, count, weight, ignore_index=ignore_index, reduction=reduction, smoothing=smoothing)},
)  # fmt: skip


def cross_entropy(
    input: Tensor, target: Tensor, ignore_index: int = -100, reduction: str = "mean", weight: Tensor | None = None,
    smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """-log(softmax(input))[target]: input (N, C), (C,) or (N, C, d1, ...), target (N,), () or (N, d1, ...) of class
    indices; weight (C,), a constant.

    Keeps input, target, weight and one number. On the CPU a class out of range raises; on a GPU its loss is nan.

    Raises:
        RuntimeError, ValueError: shapes or dtypes do not fit. IndexError: a class is out of range (CPU).
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    if not isinstance(input, Tensor) or not isinstance(target, Tensor):
        wrong = input if not isinstance(input, Tensor) else target
        raise TypeError(f"cross_entropy: expected two Tensors, got {type(wrong).__name__}")
    if not input.dtype.is_floating_point:
        raise RuntimeError(
            f"cross_entropy: not implemented for {input.dtype!r}: convert the input first, as in x.float()"
        )
    if target.dtype not in (dtypes.int64, dtypes.uint8):
        raise RuntimeError(
            f"cross_entropy: expected scalar type Long but found {target.dtype.legacy}: class indices are int64"
        )
    if input.ndim == 0:
        raise RuntimeError("cross_entropy: input must have at least one dimension, the classes")
    classes = 0 if input.ndim == 1 else 1
    expected = tuple(n for d, n in enumerate(input.shape) if d != classes)
    if tuple(target.shape) != expected:
        if input.ndim > 1 and target.ndim and input.shape[0] != target.shape[0]:
            raise ValueError(
                f"Expected input batch_size ({input.shape[0]}) to match target batch_size ({target.shape[0]})."
            )
        raise RuntimeError(
            f"cross_entropy: expected target shape {expected} for input shape {tuple(input.shape)}, got "
            f"{tuple(target.shape)}"
        )
    check_weight(weight, input.shape[classes])
    check_classes("cross_entropy", target, input.shape[classes], ignore_index)
    if classes != input.ndim - 1:
        input = input.permute(*(d for d in range(input.ndim) if d != classes), classes)
    each = None if weight is None else weight.detach().contiguous()
    return cross_entropy_op(
        input, target, each, ignore_index=int(ignore_index), reduction=reduction, smoothing=float(smoothing)
    )


def check_weight(weight: Tensor | None, classes: int) -> None:
    if weight is not None and tuple(weight.shape) != (classes,):
        raise RuntimeError(
            f"weight tensor should be defined either for all {classes} classes or no classes but got weight tensor of "
            f"shape: {list(weight.shape)}"
        )


def check_classes(op: str, target: Tensor, classes: int, ignore_index: int) -> None:
    bad = outside(op, target, classes, negative=False, ignored=ignore_index)
    if bad is not None:
        raise IndexError(f"Target {bad} is out of bounds: there are {classes} classes.")
