"""Masks, and where elements are not zero."""

from __future__ import annotations

from typing import Any

from tgrad import dtypes
from tgrad.device import compute
from tgrad.inplace import write
from tgrad.kernels.indexing import prepare_compact, prepare_count
from tgrad.kernels.launch import INTERPRET
from tgrad.layout import broadcast_shapes, numel
from tgrad.ops import creation, pointwise as p
from tgrad.ops.places import get_op
from tgrad.ops.reduce import expand
from tgrad.ops.views import contiguous, reshape, unbind
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
    """input with a value (a number or a 0-dim tensor) where mask is true; broadcast."""
    return p.where(mask, _fill_value(input, mask, value), input)


def masked_fill_(self: Tensor, mask: Tensor, value: Any) -> Tensor:
    """`masked_fill` in place."""
    value = _fill_value(self, mask, value)
    return write(p.where, self, (mask, value, self))


def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements of input where mask is true, broadcast, in row-major order."""
    if not isinstance(mask, Tensor) or mask.dtype is not dtypes.bool_:
        raise RuntimeError("masked_select: expected BoolTensor for mask")
    shape = broadcast_shapes(tuple(input.shape), tuple(mask.shape))
    places = positions(expand(mask, *shape) if shape else mask)
    if not shape:
        input = reshape(input, (1,))
    return get_op(expand(input, *shape) if shape else input, places, dims=tuple(range(max(1, len(shape)))), at=0)


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
    """
    mask = input.detach()
    mask = mask if mask.dtype is dtypes.bool_ else p.ne(mask, 0)
    if as_tuple:
        found = _found(mask, tuple(mask.shape)) if mask.ndim else _found(reshape(mask, (1,)), (1,))
        return unbind(found, 1)
    return _found(mask, tuple(mask.shape))


def argwhere(input: Tensor) -> Tensor:
    """As `nonzero`."""
    return nonzero(input)


BOTH = (masked_fill, masked_select, nonzero, argwhere)
IN_PLACE = (masked_fill_,)
