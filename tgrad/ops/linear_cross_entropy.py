"""A linear layer and the cross-entropy of its result, a part at a time: the whole logits are never stored.

Forward goes through chunks of rows and keeps the log-sum-exp of each row. With it, backward can go through blocks of
classes: it makes the logits of a block again, for all rows, writes their gradient over them, and has the whole gradient
of that block of the weight and the bias from one product. The input's is summed over the blocks, in float32 where the
operands are of a half type, and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dispatch import dispatch
from tgrad.dtypes import TENSOR, dtype
from tgrad.kernels.launch import Launch
from tgrad.kernels.linear_cross_entropy import prepare_gradients, prepare_losses
from tgrad.layout import Layout, layout
from tgrad.op import Kernel, pointwise_launch
from tgrad.ops import pointwise as p
from tgrad.ops.linear import bias_program, linear_op
from tgrad.ops.matmul import mm_op, product_launch
from tgrad.ops.reduce import COPY, reduce_launch, sum_op
from tgrad.ops.softmax import losses_launch, scores_gradient, smoothing_numbers
from tgrad.ops.views import t_op
from tgrad.storage import workspace
from tgrad.tensor import Tensor

# The fewest rows, or classes, of a part: fewer would read the other operand for little arithmetic.
LEAST = 64
BACKWARD = "linear_cross_entropy_backward"


def chunk_rows(rows: int, features: int, classes: int) -> int:
    """How many rows of logits take about as much memory as the input: a multiple of 16, and at least `LEAST`."""
    return min(rows, max(LEAST, _sixteens(rows * features, classes)))


def block_classes(rows: int, classes: int, size: int) -> int:
    """How many columns of logits take about as much memory as `size` rows of them: likewise."""
    return min(classes, max(LEAST, _sixteens(size * classes, rows)))


def _sixteens(total: int, by: int) -> int:
    return -(-total // (16 * by)) * 16


class Parts:
    """A range cut into parts of `size`, the last of which may be smaller."""

    def __init__(self, total: int, size: int) -> None:
        self.starts = range(0, total, size)
        self.sizes = [min(size, total - start) for start in self.starts]
        self.aligned = size % 16 == 0 or size >= total

    def each(self, make: Callable[[int], Launch]) -> list[Launch]:
        """A launch for each part, of those that `make` prepares for a size."""
        made = {size: make(size) for size in set(self.sizes)}
        return [made[size] for size in self.sizes]


def _part(x: Layout, size: int, aligned: bool) -> Layout:
    """The layout of `size` of x along the first dimension."""
    return layout(x.dtype, (size, *x.shape[1:]), x.strides, compute, x.aligned and aligned)


def _step(x: Layout) -> int:
    """Bytes from one to the next along the first dimension; 0 where there is none."""
    return x.strides[0] * x.dtype.itemsize if x.shape else 0


def _plain(kind: dtype, *shape: int) -> Layout:
    return layout(kind, shape, None, compute)


def _logits_launch(x: Layout, w: Layout, b: Layout | None) -> Launch:
    """Takes the addresses of the logits, of x (M, K), w (N, K) and, if there is one, b (N,)."""
    turned = layout(w.dtype, w.shape[::-1], w.strides[::-1], compute, w.aligned)
    extras, epilogue = [], None
    if b is not None:
        extras = [b]
        epilogue = bias_program(dtypes.accumulator(x.dtype).triton, b.dtype.triton, x.dtype.triton)
    return product_launch("linear", x, turned, _plain(x.dtype, x.shape[0], w.shape[0]), (), extras, epilogue)


def _given(rest: Sequence[int], flags: Sequence[bool]) -> list[tuple[int, ...]]:
    """The addresses `rest` of the operands that are there, as one tuple per flag, empty where it is False."""
    left = iter(rest)
    return [(next(left),) if flag else () for flag in flags]


def _build(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, classes: Tensor | None, result: dtype,
    ignore_index: int, reduction: str, smoothing: float, size: int,
) -> tuple[list[Layout], Launch]:  # fmt: skip
    """Results: the loss, the log-sum-exp of each row, and what a mean is divided by."""
    x, w, t = input.layout, weight.layout, target.layout
    rows, count, acc = x.shape[0], w.shape[0], dtypes.accumulator(x.dtype)
    chunks, numbers, b = Parts(rows, size), smoothing_numbers(smoothing, count), None if bias is None else bias.layout
    out, total, per_row, finish = losses_launch((rows,), acc, result, reduction)
    mean = reduction == "mean"
    projections = chunks.each(lambda n: _logits_launch(_part(x, n, chunks.aligned), w, b))
    aligned = chunks.aligned and t.aligned and (classes is None or classes.layout.aligned)
    losses_of = chunks.each(lambda n: prepare_losses(
        per_row.triton, x.dtype.triton, t.dtype.triton, None if classes is None else classes.dtype.triton, (n, count),
        ignore_index, t.strides[0], counted=mean, smooth=smoothing != 0.0, accumulator=acc.triton, aligned=aligned,
    ))  # fmt: skip
    flags = b is not None, True, classes is not None

    def launch(to: int, lse: int, counted: int, xs: int, ws: int, *rest: int) -> None:
        bs, (ts,), each = _given(rest, flags)
        losses, counts = (workspace(rows * acc.itemsize) for _ in range(2)) if finish is not None else (None, None)
        into, flags_at = to if losses is None else losses.ptr, 0 if counts is None else counts.ptr
        logits = workspace(size * count * x.dtype.itemsize)
        for start, project, lose in zip(chunks.starts, projections, losses_of, strict=True):
            at, shares = start * acc.itemsize, (flags_at + start * acc.itemsize,) * mean
            project(logits.ptr, xs + start * _step(x), ws, *bs)
            loss = into + start * per_row.itemsize
            lose(loss, *shares, lse + at, logits.ptr, ts + start * _step(t), *each, *numbers)
        del logits
        if finish is not None:
            finish(to, counted, into, flags_at)

    return [out, _plain(acc, rows), total], launch


def _build_backward(
    g: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, classes: Tensor | None, lse: Tensor,
    count: Tensor, ignore_index: int, reduction: str, smoothing: float, size: int, wanted: tuple[str, ...],
) -> tuple[list[Layout], Launch]:  # fmt: skip
    """Results: the gradients of `wanted`."""
    x, w, t, kind = input.layout, weight.layout, target.layout, input.dtype
    rows, acc, numbers = x.shape[0], dtypes.accumulator(kind), smoothing_numbers(smoothing, w.shape[0])
    blocks = Parts(w.shape[0], block_classes(rows, w.shape[0], size))
    b = None if bias is None else bias.layout
    outs = {name: _plain(kind, *l.shape) for name, l in (("input", x), ("weight", w), ("bias", b)) if l is not None}
    b_step = 0 if b is None else _step(b)
    part = lambda n: _part(w, n, blocks.aligned)
    projections = blocks.each(lambda n: _logits_launch(x, part(n), None if b is None else _part(b, n, blocks.aligned)))
    differentiate = blocks.each(lambda n: prepare_gradients(
        kind.triton, g.dtype.triton, t.dtype.triton, None if classes is None else classes.dtype.triton, (rows, n),
        w.shape[0], ignore_index, (g.layout.strides[0] if g.shape else 0, t.strides[0]), mean=reduction == "mean",
        smooth=smoothing != 0.0, accumulator=acc.triton,
        aligned=all(a is None or a.layout.aligned for a in (g, target, classes)),
    ))  # fmt: skip
    total = _plain(acc if len(blocks.sizes) > 1 else kind, *x.shape)  # of the input's gradient
    add = bias_program(acc.triton, total.dtype.triton, total.dtype.triton)
    by_input = lambda n, *onto: product_launch(BACKWARD, _plain(kind, rows, n), part(n), total, (), *onto)
    first, further = blocks.each(by_input), blocks.each(lambda n: by_input(n, [total], add))
    rounded = pointwise_launch(BACKWARD, COPY.lower(((total.dtype, TENSOR),), [kind]), [outs["input"]], [total])
    by_weight = blocks.each(lambda n: product_launch(
        BACKWARD, layout(kind, (n, rows), (1, n), compute), x, _plain(kind, n, x.shape[1]), ()
    ))  # fmt: skip
    by_bias = blocks.each(lambda n: reduce_launch(
        BACKWARD, "sum", COPY, ((kind, TENSOR),), [_plain(kind, rows, n)], (rows, n), (0,), _plain(kind, n)
    ))  # fmt: skip
    flags = bias is not None, True, classes is not None, True, True

    def launch(*addresses: int) -> None:
        to = dict(zip(wanted, addresses, strict=False))
        given, xs, ws, *rest = addresses[len(wanted) :]
        bs, (ts,), each, (lses,), (counted,) = _given(rest, flags)
        logits = workspace(rows * blocks.sizes[0] * kind.itemsize)
        sums = workspace(total.nbytes) if "input" in to and total.dtype is not kind else None
        dx = to.get("input", 0) if sums is None else sums.ptr
        for i, start in enumerate(blocks.starts):
            ws_here = ws + start * _step(w)
            projections[i](logits.ptr, xs, ws_here, *[a + start * b_step for a in bs])
            differentiate[i](logits.ptr, given, ts, lses, counted, *each, *numbers, start)
            if "input" in to:
                (further[i](dx, logits.ptr, ws_here, dx) if i else first[i](dx, logits.ptr, ws_here))
            if "weight" in to:
                by_weight[i](to["weight"] + start * _step(outs["weight"]), logits.ptr, xs)
            if "bias" in to:
                by_bias[i](to["bias"] + start * kind.itemsize, logits.ptr)
        del logits
        if sums is not None:
            rounded(to["input"], dx)

    return [outs[name] for name in wanted], launch


_SETTINGS = ("ignore_index", "reduction", "smoothing", "size")
_backward = Kernel(
    "linear_cross_entropy_backward", ("g", "input", "weight", "bias", "target", "classes", "lse", "count"),
    _build_backward, {}, settings=(*_SETTINGS, "wanted"),
)  # fmt: skip


def _together(
    g: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, classes: Tensor | None, lse: Tensor,
    count: Tensor, *, ignore_index: int, reduction: str, smoothing: float, size: int, wanted: tuple[str, ...],
) -> Sequence[Tensor]:  # fmt: skip
    args = g, input, weight, bias, target, classes, lse, count
    return dispatch(_backward, args, (ignore_index, reduction, smoothing, size, wanted))


def _formula(last: Callable) -> Callable:
    """A formula of `linear_cross_entropy_op` from that of linear, last(gradient of the logits, input, weight)."""

    def formula(
        g: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, classes: Tensor | None,
        lse: Tensor, count: Tensor, *, ignore_index: int, reduction: str, smoothing: float,
    ) -> Tensor:  # fmt: skip
        scores = p.cast(count.dtype)(linear_op(input, weight, bias))
        d = scores_gradient(
            p.cast(count.dtype)(g), scores, target, count, classes, ignore_index=ignore_index, reduction=reduction,
            smoothing=smoothing,
        )  # fmt: skip
        return last(p.cast(input.dtype)(d), input, weight)

    return formula


linear_cross_entropy_op = Kernel(
    "linear_cross_entropy", ("input", "weight", "bias", "target", "classes"), _build,
    {
        "input": _formula(lambda d, input, weight: mm_op(d, weight)),
        "weight": _formula(lambda d, input, weight: mm_op(t_op(d, dims=(1, 0)), input)),
        "bias": _formula(lambda d, input, weight: sum_op(d, dims=(0,), keepdim=False, out_dtype=d.dtype)),
    },
    settings=("result", *_SETTINGS), results=("out", "lse", "count"),
    joint=(("input", "weight", "bias"), _together), grad_name="LinearCrossEntropy",
)  # fmt: skip
