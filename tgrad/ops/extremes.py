"""The greatest and least elements with their places: max, min, argmax, argmin."""

from __future__ import annotations

import builtins
from typing import Any, NamedTuple

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dispatch import dispatch
from tgrad.kernels import reduce
from tgrad.kernels.extreme import prepare_extreme
from tgrad.kernels.launch import NARROW, Launch
from tgrad.layout import Layout, collapse, layout, numel, wrap_dim
from tgrad.op import Kernel
from tgrad.ops import pointwise as p
from tgrad.ops.creation import arange
from tgrad.ops.reduce import _back, amax_op, amin_op, reduced_shape
from tgrad.ops.views import reshape
from tgrad.storage import workspace
from tgrad.tensor import Tensor


class max_result(NamedTuple):
    """What `max` with a dimension returns."""

    values: Tensor
    indices: Tensor


class min_result(NamedTuple):
    """What `min` with a dimension returns."""

    values: Tensor
    indices: Tensor


def _build(kind: str) -> Any:
    def build(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> tuple[list[Layout], Launch]:
        shape, strides = tuple(x.shape), x.layout.strides
        to = reduced_shape(shape, dims, keepdim)
        values, indices = layout(x.dtype, to, None, compute), layout(dtypes.int64, to, None, compute)
        kept = [d for d in range(len(shape)) if d not in dims]
        if not values.numel:
            return [values, indices], _nothing
        stay = collapse([shape[d] for d in kept], [[strides[d] for d in kept]])
        go = collapse([shape[d] for d in dims], [[strides[d] for d in dims]])
        if not go[0]:
            go = (1,), [(0,)]
        m, n = numel(stay[0]), numel(go[0])
        block = reduce.tile(m, n, across=bool(stay[1][0]) and stay[1][0][-1] == 1)
        pieces = reduce.chunks(m, n, *block)
        types = (x.dtype.triton, dtypes.accumulator(x.dtype).triton)
        wide = builtins.max(x.layout.extent, x.numel()) >= NARROW
        first = prepare_extreme(
            kind, types, (stay[0], tuple(stay[1][0])), (go[0], tuple(go[1][0])), pieces=pieces, block=block,
            placed=False, aligned=x.layout.aligned, wide=wide, name=kind,
        )  # fmt: skip
        if pieces == 1:
            return [values, indices], first
        second = prepare_extreme(
            kind, types, ((m,), (1,)), ((pieces,), (m,)), pieces=1, block=reduce.tile(m, pieces, across=True),
            placed=True, aligned=True, wide=wide, name=kind,
        )  # fmt: skip

        def launch(to: int, at: int, source: int) -> None:
            partial, places = (workspace(pieces * m * size) for size in (x_itemsize, 8))
            first(partial.ptr, places.ptr, source)
            second(to, at, partial.ptr, places.ptr)

        x_itemsize = x.dtype.itemsize
        return [values, indices], launch

    return build


def _nothing(*addresses: int | float) -> None:
    pass


def _grad(g: Tensor, indices: Tensor, *, dims: tuple[int, ...], keepdim: bool, x_shape: tuple[int, ...]) -> Tensor:
    """g where the extreme was found."""
    if not x_shape:
        return g
    (dim,) = dims
    places = reshape(arange(x_shape[dim]), tuple(n if d == dim else 1 for d, n in enumerate(x_shape)))
    return p.where(p.eq(places, _back(indices, x_shape, dims, keepdim)), _back(g, x_shape, dims, keepdim), 0)


def _op(kind: str) -> Kernel:
    return Kernel(
        kind, ("x",), _build(kind), {"x": _grad}, settings=("dims", "keepdim"), results=("out", "indices")
    )  # fmt: skip


max_op, min_op = _op("max"), _op("min")


def _check(x: Tensor, name: str, dims: tuple[int, ...]) -> None:
    for d in dims:
        if x.shape[d] == 0:
            raise IndexError(f"{name}(): Expected reduction dim {d} to have non-zero size.")


def _along(op: Kernel, x: Tensor, dim: int, keepdim: bool) -> list[Tensor]:
    dims = (wrap_dim(dim, x.ndim),) if x.ndim else _scalar(dim)
    _check(x, op.name, dims)
    return dispatch(op, (x,), (dims, bool(keepdim)))


def _scalar(dim: int) -> tuple[int, ...]:
    wrap_dim(dim, 0)
    return ()


def _either(op: Kernel, whole: Kernel, pairs: p.Pointwise, result: Any, x: Tensor, dim: Any, keepdim: bool) -> Any:
    if isinstance(dim, Tensor):
        return pairs(x, dim)
    if dim is not None:
        return result(*_along(op, x, dim, keepdim))
    if not x.numel():
        raise RuntimeError(
            f"{op.name}(): Expected reduction dim to be specified for input.numel() == 0. Specify the reduction dim "
            "with the 'dim' argument."
        )
    return whole(x, dims=tuple(range(x.ndim)), keepdim=False)


def max(input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Tensor | None = None) -> Any:
    """The greatest element; along `dim`, (values, indices), the first of those that tie; nan is the greatest.

    With a second tensor, the elementwise maximum. Of all elements, ties share the gradient.

    Shape: without `dim`, or with size 1 there under `keepdim`. With `other`, the operands broadcast.
    Dtype: the input's, and int64 of indices.
    Raises:
        RuntimeError: there are no elements, and no `dim`.
        IndexError: `dim` is out of range or has size 0.
    """
    return _either(max_op, amax_op, p.maximum, max_result, input, dim if other is None else other, keepdim)


def min(input: Tensor, dim: Any = None, keepdim: bool = False, *, other: Tensor | None = None) -> Any:
    """The least element; along `dim`, (values, indices), the first of those that tie; nan is the least.

    With a second tensor, the elementwise minimum. Of all elements, ties share the gradient.

    Shape: without `dim`, or with size 1 there under `keepdim`. With `other`, the operands broadcast.
    Dtype: the input's, and int64 of indices.
    Raises:
        RuntimeError: there are no elements, and no `dim`.
        IndexError: `dim` is out of range or has size 0.
    """
    return _either(min_op, amin_op, p.minimum, min_result, input, dim if other is None else other, keepdim)


def _place(op: Kernel, x: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    name = f"arg{op.name}"
    if x.dtype is dtypes.bool_:
        raise RuntimeError(f"{name}: dtype bool is not supported; cast to uint8")
    x = x.detach()
    if dim is not None:
        dims = (wrap_dim(dim, x.ndim),) if x.ndim else _scalar(dim)
        _check(x, name, dims)
    elif x.numel():
        dims = tuple(range(x.ndim))
    else:
        raise IndexError(f"{name}(): Expected reduction dim to be specified for input.numel() == 0.")
    return dispatch(op, (x,), (dims, bool(keepdim)))[1]


def argmax(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the greatest element along `dim` is, or in the flattened tensor if None; the first of those that tie.

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: any but bool; the result is int64.
    Raises:
        RuntimeError: the dtype is bool.
        IndexError: there are no elements, or `dim` is out of range.
    """
    return _place(max_op, input, dim, keepdim)


def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Where the least element along `dim` is, or in the flattened tensor if None; the first of those that tie.

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: any but bool; the result is int64.
    Raises:
        RuntimeError: the dtype is bool.
        IndexError: there are no elements, or `dim` is out of range.
    """
    return _place(min_op, input, dim, keepdim)
