"""Reductions over any dimensions: sum, mean, amax, amin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dtypes import dtype
from tgrad.expression import Expression, Operand
from tgrad.kernels import reduce as kernel
from tgrad.kernels.launch import NARROW, Launch
from tgrad.kernels.program import Program, program
from tgrad.kernels.scalar import div
from tgrad.layout import Layout, broadcast_strides, collapse, layout, numel, wrap_dims
from tgrad.op import Kernel, View
from tgrad.ops import pointwise as p
from tgrad.ops.views import reshape
from tgrad.storage import workspace
from tgrad.tensor import Tensor

COPY = Expression.of(lambda x: x, 1)


def reduced_shape(shape: tuple[int, ...], dims: tuple[int, ...], keepdim: bool) -> tuple[int, ...]:
    if keepdim:
        return tuple(1 if d in dims else n for d, n in enumerate(shape))
    return tuple(n for d, n in enumerate(shape) if d not in dims)


def reduce_launch(
    name: str, kind: str, expression: Expression, operands: tuple[Operand, ...], ins: Sequence[Layout],
    shape: tuple[int, ...], dims: tuple[int, ...], out: Layout, *, divide: bool = False,
    then: Sequence[tuple[Any, float | None]] = (),
) -> Launch:  # fmt: skip
    """Reduce `expression` of `operands` (those that are tensors: `ins`), broadcast to `shape`, over `dims`.

    The callable takes the result's address, those of `ins`, the expression's numbers and, if `divide`, a number that
    the total is divided by. Sums of half types accumulate in float32, of integers in int64.

    Args:
        then: scalar functions that the total goes through before it is stored, with the second argument of each, if it
            has one.
    """
    natural = expression.lower(operands, [None]).results[0]
    accumulator = dtypes.accumulator(natural)
    if kind in ("sum", "prod") and not natural.is_floating_point:
        accumulator = dtypes.int64
    lowered = expression.lower(operands, [accumulator])
    acc, result, numbers = accumulator.triton, out.dtype.triton, lowered.scalars
    rows = [broadcast_strides(tuple(i.shape), i.strides, shape) for i in ins]
    kept_dims = [d for d in range(len(shape)) if d not in dims]
    order = sorted(dims, key=lambda d: -max(row[d] for row in rows))  # any order sums the same elements: innermost last
    kept = collapse([shape[d] for d in kept_dims], [[row[d] for d in kept_dims] for row in rows])
    reduced = collapse([shape[d] for d in order], [[row[d] for d in order] for row in rows])
    if not reduced[0]:
        reduced = (1,), [(0,)] * len(ins)
    m, n = numel(kept[0]), numel(reduced[0])
    if m == 0:
        return lambda *values: None
    divisor = (acc,) if divide else ()
    finish = _finish(acc, result, divide, then)
    block = kernel.tile(m, n, across=bool(kept[1][0]) and kept[1][0][-1] == 1)
    pieces = kernel.chunks(m, n, *block)
    aligned = out.aligned and all(i.aligned for i in ins)
    wide = max(*(i.extent for i in ins), m * n) >= NARROW
    options: dict[str, Any] = {"aligned": aligned, "wide": wide, "name": name}
    if pieces == 1:
        types = (result, lowered.tensors, (*numbers, *divisor), acc)
        return kernel.prepare_reduce(
            lowered.program, finish, kind, types, kept, reduced, numbers=len(numbers), pieces=1, block=block, **options
        )
    keep = program(1, (), (), ((0, acc),))
    first = kernel.prepare_reduce(
        lowered.program, keep, kind, (acc, lowered.tensors, numbers, acc), kept, reduced, numbers=len(numbers),
        pieces=pieces, block=block, **options,
    )  # fmt: skip
    second = kernel.prepare_reduce(
        keep, finish, kind, (result, (acc,), divisor, acc), ((m,), [(1,)]), ((pieces,), [(m,)]), numbers=0, pieces=1,
        block=kernel.tile(m, pieces, across=True), **options,
    )  # fmt: skip
    cut = 1 + len(ins) + len(numbers)

    def launch(*values: int | float) -> None:
        partial = workspace(pieces * m * accumulator.itemsize)
        first(partial.ptr, *values[1:cut])
        second(values[0], partial.ptr, *values[cut:])

    return launch


def _finish(acc: str, result: str, divide: bool, then: Sequence[tuple[Any, float | None]]) -> Program:
    """total -> stored result, with a divisor as the second input if `divide`."""
    inputs = 2 if divide else 1
    constants = tuple((value, acc) for _, value in then if value is not None)
    steps: list[tuple] = [(div, ((0, None), (1, None)))] if divide else []
    first = inputs + len(constants)
    used = inputs
    for function, value in then:
        have = first + len(steps) - 1 if steps else 0
        if value is None:
            steps.append((function, ((have, None),)))
        else:
            steps.append((function, ((have, None), (used, None))))
            used += 1
    return program(inputs, constants, tuple(steps), ((first + len(steps) - 1 if steps else 0, result),))


def _build_expand(x: Layout, shape: tuple[int, ...]) -> tuple:
    return shape, broadcast_strides(tuple(x.shape), x.strides, shape), 0


expand_op = View("expand", _build_expand, lambda g, *, x_shape: sum_to(g, x_shape), settings=("shape",))


def expand(x: Tensor, *sizes: Any) -> Tensor:
    """x read as if repeated along dimensions of size 1, or new leading ones; -1 keeps a size. A view.

    Shape: `sizes`: given as integers or as one sequence.
    Dtype: the input's.
    Raises:
        RuntimeError: another size than 1 would have to change; fewer sizes than dimensions; -1 for a new dimension.
    """
    given = tuple(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
    lead = len(given) - x.ndim
    if lead < 0:
        raise RuntimeError(
            f"expand: the number of sizes provided ({len(given)}) must be greater or equal to the number of "
            f"dimensions in the tensor ({x.ndim})"
        )
    shape = []
    for d, size in enumerate(given):
        have = x.shape[d - lead] if d >= lead else None
        if size == -1 and have is None:
            raise RuntimeError(f"expand: -1 is not allowed in a leading, non-existing dimension {d}")
        if have is not None and size not in (-1, have) and have != 1:
            raise RuntimeError(
                f"The expanded size of the tensor ({size}) must match the existing size ({have}) at non-singleton "
                f"dimension {d}.  Target sizes: {list(given)}.  Tensor sizes: {list(x.shape)}"
            )
        shape.append(have if size == -1 else int(size))
    return expand_op(x, shape=tuple(shape))


def sum_to(g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Sum g over the dimensions along which `shape` was broadcast to g's: the transpose of `expand`."""
    lead = g.ndim - len(shape)
    dims = tuple(d for d in range(g.ndim) if d < lead or (shape[d - lead] == 1 and g.shape[d] != 1))
    return reshape(sum_op(g, dims=dims, keepdim=True, out_dtype=g.dtype), shape)


def _sum_dtype(x: dtype, asked: dtype | None = None) -> dtype:
    """The dtype of a sum of x's."""
    if asked is not None:
        return asked
    return x if x.is_floating_point else dtypes.int64


def _mean_dtype(x: dtype, asked: dtype | None = None) -> dtype:
    """The dtype of a mean of x's.

    Raises:
        RuntimeError: it is not floating.
    """
    kind = asked or x
    if not kind.is_floating_point:
        raise RuntimeError(
            "mean(): could not infer output dtype. Input dtype must be either a floating point or complex dtype. "
            f"Got: {kind.legacy}"
        )
    return kind


def _build_sum(x: Tensor, dims: tuple[int, ...], keepdim: bool, out_dtype: dtype) -> tuple[list[Layout], Launch]:
    shape = tuple(x.shape)
    out = layout(out_dtype, reduced_shape(shape, dims, keepdim), None, compute)
    cast = COPY if out_dtype is x.dtype else Expression.of(p.cast(out_dtype), 1)
    return [out], reduce_launch("sum", "sum", cast, ((x.dtype, dtypes.TENSOR),), [x.layout], shape, dims, out)


def _build_mean(x: Tensor, dims: tuple[int, ...], keepdim: bool, out_dtype: dtype) -> tuple[list[Layout], Launch]:
    shape = tuple(x.shape)
    out = layout(out_dtype, reduced_shape(shape, dims, keepdim), None, compute)
    count = float(numel(shape[d] for d in dims))
    cast = COPY if out_dtype is x.dtype else Expression.of(p.cast(out_dtype), 1)
    launch = reduce_launch("mean", "sum", cast, ((x.dtype, dtypes.TENSOR),), [x.layout], shape, dims, out, divide=True)
    return [out], lambda *addresses: launch(*addresses, count)


def reduced_layout(op: Kernel, x: Layout, settings: tuple) -> Layout:
    """The layout of sum, mean, amax or amin of a tensor.

    Raises:
        IndexError: a maximum or minimum over nothing.
    """
    dims, keepdim, *kind = settings
    out = layout(kind[0] if kind else x.dtype, reduced_shape(tuple(x.shape), dims, keepdim), None, compute)
    empty_dims = [d for d in dims if x.shape[d] == 0]
    if not kind and empty_dims and out.numel:
        raise IndexError(f"{op.name}(): Expected reduction dim {empty_dims[0]} to have non-zero size.")
    return out


def _build_extreme(kind: str) -> Any:
    def build(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> tuple[list[Layout], Launch]:
        shape = tuple(x.shape)
        out = reduced_layout(amax_op if kind == "max" else amin_op, x.layout, (dims, keepdim))
        return [out], reduce_launch(f"a{kind}", kind, COPY, ((x.dtype, dtypes.TENSOR),), [x.layout], shape, dims, out)

    return build


def _back(g: Tensor, shape: tuple[int, ...], dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """g as if the reduction had kept its dimensions, expanded to the input's shape: no bytes."""
    if not keepdim and g.layout.shape:
        g = reshape(g, tuple(1 if d in dims else n for d, n in enumerate(shape)))
    return expand_op(g, shape=shape)


def _extreme_grad(
    g: Tensor, x: Tensor, out: Tensor, *, dims: tuple[int, ...], keepdim: bool, x_shape: tuple[int, ...]
) -> Tensor:
    """Ties share the gradient equally."""
    ties = p.eq(x, _back(out, x_shape, dims, keepdim))
    count = sum_op(ties, dims=dims, keepdim=True, out_dtype=x.dtype)
    share = p.div(_back(g, x_shape, dims, keepdim), count)
    return p.where(ties, share, 0)


def _sum_grad(g: Tensor, *, dims: tuple[int, ...], keepdim: bool, x_shape: tuple[int, ...], x_dtype: dtype) -> Tensor:
    return _back(g if g.dtype is x_dtype else p.cast(x_dtype)(g), x_shape, dims, keepdim)


sum_op = Kernel("sum", ("x",), _build_sum, {"x": _sum_grad}, settings=("dims", "keepdim", "out_dtype"))
mean_op = Kernel(
    "mean", ("x",), _build_mean,
    {"x": lambda g, *, dims, keepdim, x_shape: _back(
        p.div(g, float(max(1, numel(x_shape[d] for d in dims)))), x_shape, dims, keepdim)},
    settings=("dims", "keepdim", "out_dtype"),
)  # fmt: skip
amax_op = Kernel("amax", ("x",), _build_extreme("max"), {"x": _extreme_grad}, settings=("dims", "keepdim"))
amin_op = Kernel("amin", ("x",), _build_extreme("min"), {"x": _extreme_grad}, settings=("dims", "keepdim"))


def sum(
    x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, dtype: dtype | None = None
) -> Tensor:
    """Sum over `dim` (all if None).

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: `dtype`; by default the input's, of integers and bool int64. Half types accumulate in float32.
    Raises:
        IndexError: a dimension is out of range.
        RuntimeError: one is named twice.
    """
    return sum_op(x, dims=wrap_dims(dim, x.ndim), keepdim=bool(keepdim), out_dtype=_sum_dtype(x.dtype, dtype))


def mean(
    x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, dtype: dtype | None = None
) -> Tensor:
    """Mean over `dim` (all if None).

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: `dtype`, floating; by default the input's.
    Raises:
        IndexError: a dimension is out of range.
        RuntimeError: one is named twice; the dtype is not floating.
    """
    kind = _mean_dtype(x.dtype, dtype)
    return mean_op(x, dims=wrap_dims(dim, x.ndim), keepdim=bool(keepdim), out_dtype=kind)


def amax(x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """Maximum over `dim` (all if None or ()); nan if any is; ties share the gradient.

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: the input's.
    Raises:
        IndexError: a dimension is out of range.
        RuntimeError: one is named twice; there are no elements, and no `dim`.
        IndexError: `dim` has size 0.
    """
    return amax_op(x, dims=_nonempty(x, dim, "amax"), keepdim=bool(keepdim))


def amin(x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """Minimum over `dim` (all if None or ()); nan if any is; ties share the gradient.

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: the input's.
    Raises:
        IndexError: a dimension is out of range.
        RuntimeError: one is named twice; there are no elements, and no `dim`.
        IndexError: `dim` has size 0.
    """
    return amin_op(x, dims=_nonempty(x, dim, "amin"), keepdim=bool(keepdim))


def _nonempty(x: Tensor, dim: int | Sequence[int] | None, name: str) -> tuple[int, ...]:
    dims = wrap_dims(dim, x.ndim)
    if x.numel() == 0 and (dim is None or dim == ()):
        raise RuntimeError(
            f"{name}(): Expected reduction dim to be specified for input.numel() == 0. Specify the reduction dim "
            "with the 'dim' argument."
        )
    return dims
