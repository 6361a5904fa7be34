"""Order statistics: kthvalue, median, nanmedian. What is selected is read from the input, where its gradient goes."""

from __future__ import annotations

import math
from typing import Any

from tgrad import dtypes, modes
from tgrad.device import compute
from tgrad.expression import Expression
from tgrad.kernels.launch import Launch
from tgrad.layout import Layout, layout, wrap_dim
from tgrad.op import Kernel, pointwise_launch
from tgrad.ops import creation, pointwise as p
from tgrad.ops.arithmetic import floor_divide
from tgrad.ops.places import get_op
from tgrad.ops.reduce import sum_op
from tgrad.ops.sorting import Sorted, sort
from tgrad.ops.views import narrow, reshape, squeeze
from tgrad.tensor import Tensor

COPY = Expression.of(lambda x: x, 1)


def _checked(name: str, input: Tensor, dim: int) -> int:
    d = wrap_dim(dim, input.ndim)
    if input.dtype is dtypes.bool_:
        raise RuntimeError(f"{name}: not implemented for bool tensors: convert them first, as in x.int()")
    if input.ndim and not input.shape[d]:
        raise IndexError(f"{name}(): Expected reduction dim {d} to have non-zero size.")
    return d


def _read(input: Tensor, d: int, order: Tensor, rank: Any, keepdim: bool) -> Sorted:
    """Values and indices at a rank, a number or a tensor (..., 1, ...), of what `order` sorts."""
    with modes.no_grad():
        index = narrow(order, d, rank, 1) if isinstance(rank, int) else get_op(order, rank, dims=(d,), at=None)
        index = p.clone(index)
    value = get_op(input, index, dims=(d,), at=None)
    return Sorted(value, index) if keepdim else Sorted(squeeze(value, d), squeeze(index, d))


def _vector(input: Tensor, select: Any) -> Sorted:
    """What `select` does with a vector, of a 0-dim tensor."""
    return Sorted(*(reshape(t, ()) for t in select(reshape(input, (1,)))))


def kthvalue(input: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> Sorted:
    """The k-th least values along `dim`, k from 1, and where they are. nan is the greatest; of equal values the first.

    Shape: two tensors without `dim`, or with size 1 there under `keepdim`.
    Dtype: values: the input's, any but bool; indices: int64.
    Raises:
        RuntimeError: k is less than 1 or greater than the dimension; the dtype is bool.
        IndexError: there is no such dimension, or it has no elements.
    """
    d = _checked("kthvalue", input, dim)
    if not 1 <= k <= (input.shape[d] if input.ndim else 1):
        raise RuntimeError(f"kthvalue(): selected number k out of range for dimension {d}")
    if not input.ndim:
        return _vector(input, lambda x: kthvalue(x, 1, 0))
    return _read(input, d, sort(input.detach(), d).indices, k - 1, keepdim)


def _middle(name: str, input: Tensor, dim: int, keepdim: bool, skip_nan: bool) -> Sorted:
    d = _checked(name, input, dim)
    if not input.ndim:
        return _vector(input, lambda x: _middle(name, x, 0, False, skip_nan))
    x, n = input.detach(), input.shape[d]
    order = sort(x, d).indices  # nan come last, in their own order
    rank: Any = (n - 1) // 2
    if x.dtype.is_floating_point:
        with modes.no_grad():
            nans = sum_op(p.ne(x, x), dims=(d,), keepdim=True, out_dtype=dtypes.int64)
            first_nan = p.sub(n, nans)
            if skip_nan:
                rank = floor_divide(p.maximum(p.sub(first_nan, 1), 0), 2)
            else:
                rank = p.where(p.gt(nans, 0), first_nan, rank)
    return _read(input, d, order, rank, keepdim)


# --- of all elements -------------------------------------------------------------------------------------------------
_EMPTY = {dtypes.int64: -(2**63), dtypes.int32: -(2**31), dtypes.uint8: 0}  # of no elements, as PyTorch has it


def _build_shared(x: Tensor, value: Tensor, chosen: Tensor, count: Tensor) -> tuple[list[Layout], Launch]:
    """The value, whose gradient the elements of x that are `chosen`, `count` of them, share."""
    out = layout(x.dtype, (), None, compute)
    copy = pointwise_launch("median", COPY.lower(((x.dtype, dtypes.TENSOR),), [x.dtype]), [out], [value.layout])
    return [out], lambda out, x, value, chosen, count: copy(out, value)


median_op: Kernel = Kernel(
    "median", ("x", "value", "chosen", "count"), _build_shared,
    {"x": lambda g, chosen, count: p.where(chosen, p.div(g, count), 0)},
)  # fmt: skip


def _median_of_all(name: str, input: Tensor, skip_nan: bool) -> Tensor:
    if input.dtype is dtypes.bool_:
        raise RuntimeError(f"{name}: not implemented for bool tensors: convert them first, as in x.int()")
    if not input.numel():
        return creation.full((), _EMPTY.get(input.dtype, math.nan), dtype=input.dtype)
    with modes.no_grad():
        x = input.detach()
        value = _middle(name, reshape(x, (-1,)), 0, False, skip_nan).values
        if not input.dtype.is_floating_point:
            return value
        chosen = p.logical_or(p.eq(x, value), p.logical_and(p.ne(x, x), p.ne(value, value)))
        count = sum_op(chosen, dims=tuple(range(x.ndim)), keepdim=False, out_dtype=input.dtype)
    return median_op(input, value, chosen, count)


def median(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """The median, the lower one of an even number: of all elements, or along `dim` with its indices. nan if one is.

    Equal elements share the gradient of the median of all; along `dim` the one at the index has it.

    Shape: (); with `dim` two tensors without it, or with size 1 there under `keepdim`.
    Dtype: the input's, any but bool; indices: int64.
    Raises:
        RuntimeError: the dtype is bool.
        IndexError: there is no such dimension, or it has no elements.
    """
    if dim is None:
        return _median_of_all("median", input, False)
    return _middle("median", input, dim, keepdim, False)


def nanmedian(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
    """`tgrad.median` of the elements that are not nan; nan where all are.

    Shape: (); with `dim` two tensors without it, or with size 1 there under `keepdim`.
    Dtype: the input's, any but bool; indices: int64.
    Raises:
        RuntimeError: the dtype is bool.
        IndexError: there is no such dimension, or it has no elements.
    """
    if dim is None:
        return _median_of_all("nanmedian", input, True)
    return _middle("nanmedian", input, dim, keepdim, True)


BOTH = (kthvalue, median, nanmedian)
