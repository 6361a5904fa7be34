"""Masks, and where elements are not zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from tgrad import dtypes
from tgrad.device import compute
from tgrad.inplace import write
from tgrad.kernels.indexing import prepare_compact, prepare_count
from tgrad.kernels.launch import INTERPRET
from tgrad.layout import broadcast_shapes, numel
from tgrad.ops import creation, pointwise as p
from tgrad.ops.places import get_op, put_op, write_places
from tgrad.ops.reduce import expand
from tgrad.ops.views import contiguous, reshape, slice_op, unbind, view_op
from tgrad.tensor import Tensor


def _fill_value(x: Tensor, mask: Any, value: Any) -> Any:
    if not isinstance(mask, Tensor) or mask.dtype is not dtypes.bool_:
        raise RuntimeError("masked_fill only supports boolean masks, but got mask with dtype "
                           f"{getattr(mask, 'dtype', type(mask).__name__)}")  # fmt: skip
    if isinstance(value, Tensor):
        if value.ndim:
            raise RuntimeError("masked_fill only supports a 0-dimensional value tensor, but got tensor with "
                               f"{value.ndim} dimension(s).")  # fmt: skip
        return p.cast(x.dtype)(value) if value.dtype is not x.dtype else value
    if x.dtype is dtypes.bool_:
        return bool(value)
    return value if x.dtype.is_floating_point else int(value)


def masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """input with a value (a number or a 0-dim tensor) where mask is true.

    Shape: input and mask broadcast.
    Dtype: the input's, to which value is converted; mask: bool.
    Raises:
        RuntimeError: mask is not bool; value is a tensor that is not 0-dimensional; the shapes do not broadcast.
    """
    return p.where(mask, _fill_value(input, mask, value), input)


def masked_fill_(self: Tensor, mask: Tensor, value: Any) -> Tensor:
    """`tgrad.masked_fill` in place.

    Shape: kept; mask broadcasts to it.
    Dtype: kept; value is converted; mask: bool.
    Raises:
        RuntimeError: mask is not bool; value is a tensor that is not 0-dimensional; the shapes do not fit; the write is
            refused.
    """
    value = _fill_value(self, mask, value)
    return write(p.where, self, (mask, value, self))


def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements of input where mask is true, in row-major order.

    Shape: input and mask broadcast; the result is a vector.
    Dtype: the input's; mask: bool.
    Raises:
        RuntimeError: mask is not bool; the shapes do not broadcast.
    """
    if not isinstance(mask, Tensor) or mask.dtype is not dtypes.bool_:
        raise RuntimeError("masked_select: expected BoolTensor for mask")
    shape = broadcast_shapes(tuple(input.shape), tuple(mask.shape))
    places = positions(expand(mask, *shape) if shape else mask)
    if not shape:
        input = reshape(input, (1,))
    return get_op(expand(input, *shape) if shape else input, places, dims=tuple(range(max(1, len(shape)))), at=0)


def _scattered(x: Tensor, mask: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Where `source` goes in x, which has mask's shape, and the part of it that does."""
    places = positions(mask)
    if places.numel() > source.numel():
        raise RuntimeError(
            "masked_scatter: Number of elements of source < number of ones in mask: "
            f"{source.numel()} elements for {places.numel()} places"
        )
    return places, slice_op(reshape(source, (-1,)), dim=0, start=0, stop=places.numel(), step=1)


def _check_scatter(x: Tensor, mask: Any, source: Any) -> None:
    if not isinstance(mask, Tensor) or mask.dtype is not dtypes.bool_:
        raise RuntimeError("masked_scatter_ only supports boolean masks, but got mask with dtype "
                           f"{getattr(mask, 'dtype', type(mask).__name__)}")  # fmt: skip
    if not isinstance(source, Tensor):
        raise TypeError(f"masked_scatter(): argument 'source' must be Tensor, not {type(source).__name__}")
    if source.dtype is not x.dtype:
        raise RuntimeError(
            f"masked_scatter: expected self and source to have same dtypes but got {x.dtype!r} and {source.dtype!r}"
        )


def masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """input with the first elements of source, in row-major order, one after the other where mask is true.

    On a GPU it waits for the number of places.

    Shape: input and mask broadcast; source: any, with at least as many elements as mask has true ones.
    Dtype: input and source: the same; mask: bool.
    Raises:
        RuntimeError: dtypes or shapes do not fit; source has too few elements.
    """
    _check_scatter(input, mask, source)
    shape = broadcast_shapes(tuple(input.shape), tuple(mask.shape))
    x = expand(input, *shape) if tuple(input.shape) != shape else input
    if not shape:
        x, mask = reshape(x, (1,)), reshape(mask, (1,))
    mask = mask if tuple(mask.shape) == tuple(x.shape) else expand(mask, *shape)
    places, values = _scattered(x, mask, source)
    return reshape(put_op(contiguous(x), places, values, dims=tuple(range(x.ndim)), at=0), shape)


def masked_scatter_(self: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """`tgrad.masked_scatter` in place.

    Shape: kept; mask broadcasts to it.
    Dtype: kept; source: the same; mask: bool.
    Raises:
        RuntimeError: dtypes or shapes do not fit; source has too few elements; the write is refused.
    """
    _check_scatter(self, mask, source)
    mask = expand(mask, *self.shape) if tuple(mask.shape) != tuple(self.shape) else mask
    x = self if self.ndim else view_op(self, shape=(1,))
    places, values = _scattered(x, mask if self.ndim else reshape(mask, (1,)), source)
    write_places(put_op, x, places, values, tuple(range(x.ndim)), 0)
    return self


def positions(mask: Tensor) -> Tensor:
    """Where a bool tensor is true, counted in row-major order."""
    return reshape(_found(mask, (mask.numel(),)), (-1,)) if mask.numel() else creation.empty(0, dtype=dtypes.int64)


def _found(mask: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The coordinates of the true elements of `mask`, taken to be of `shape`, a row for each."""
    n = numel(shape)
    if not n or not shape:
        rows = 0 if not n or not mask.item() else 1
        return creation.empty(rows, len(shape), dtype=dtypes.int64)
    mask = contiguous(mask.detach())
    if mask.device is not compute:
        return creation.tensor(np.argwhere(mask._array().reshape(shape)), dtype=dtypes.int64, device=mask.device)
    launch, blocks = prepare_count(n)
    counts = creation.empty(blocks, dtype=dtypes.int64)
    launch(counts.ptr, mask.ptr)
    computed = INTERPRET or compute.type != "cpu"  # else kernels are only compiled, or launched on a stub
    each = counts.tolist() if computed else [0] * (blocks - 1) + [n]
    starts = [0]
    for found in each:
        starts.append(starts[-1] + found)
    room = starts[-1]
    out = creation.empty(room, len(shape), dtype=dtypes.int64)
    if room:
        first = creation.tensor(starts[:-1], dtype=dtypes.int64, device=compute)
        prepare_compact(n, room, shape)(out.ptr, mask.ptr, first.ptr)
    return out


def nonzero(input: Tensor, *, out: Any = None, as_tuple: bool = False) -> Any:
    """The coordinates of the elements that are not zero, a row of int64 for each; as_tuple: a vector per dimension.

    The number of rows depends on the values: on a GPU this waits for them.

    Shape: (N, D) for N such elements of D dimensions; as_tuple: D vectors of N.
    Dtype: any; the result is int64.
    Raises: nothing.
    """
    mask = input.detach()
    mask = mask if mask.dtype is dtypes.bool_ else p.ne(mask, 0)
    if as_tuple:
        found = _found(mask, tuple(mask.shape)) if mask.ndim else _found(reshape(mask, (1,)), (1,))
        return unbind(found, 1)
    return _found(mask, tuple(mask.shape))


def argwhere(input: Tensor) -> Tensor:
    """The coordinates of the elements that are not zero. See `tgrad.nonzero`.

    Shape: (N, D) for N such elements of D dimensions.
    Dtype: any; the result is int64.
    Raises: nothing.
    """
    return nonzero(input)


BOTH = (masked_fill, masked_select, masked_scatter, nonzero, argwhere)
IN_PLACE = (masked_fill_, masked_scatter_)
