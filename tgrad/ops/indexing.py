"""Indexing by name: gather and scatter, index_select and its writes.

An index out of range raises on the CPU. On a GPU, where looking would stop the queue, it touches no memory: what is
read there is 0, what is written is dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tgrad import dtypes
from tgrad.inplace import write
from tgrad.layout import broadcast_shapes, wrap_dim
from tgrad.ops import pointwise as p
from tgrad.ops.bounds import outside
from tgrad.ops.creation import zeros
from tgrad.ops.places import accumulate_op, get_op, number, put_op, region, write_places
from tgrad.ops.reduce import expand
from tgrad.ops.views import contiguous, reshape, slice_op, view_op
from tgrad.tensor import Tensor

INDEX = (dtypes.int64, dtypes.int32)


def _index(name: str, index: Any) -> Tensor:
    if not isinstance(index, Tensor):
        raise TypeError(f"{name}(): argument 'index' must be Tensor, not {type(index).__name__}")
    if index.dtype not in INDEX:
        raise RuntimeError(f"{name}(): Expected dtype int32/int64 for index, got {index.dtype!r}")
    return index


def _refuse(name: str, index: Tensor, d: int, size: int, negative: bool = False) -> None:
    bad = outside(name, index, size, negative)
    if bad is not None:
        raise RuntimeError(f"index {bad} is out of bounds for dimension {d} with size {size}")


# --- along a dimension -----------------------------------------------------------------------------------------------
def _along(name: str, x: Tensor, dim: int, index: Tensor, other: tuple[int, ...] | None) -> int:
    d = wrap_dim(dim, x.ndim)
    if isinstance(index, Tensor) and index.numel() == 0:
        return d
    _index(name, index)
    if max(index.ndim, 1) != max(x.ndim, 1):
        raise RuntimeError("Index tensor must have the same number of dimensions as input tensor")
    for k, n in enumerate(index.shape):
        if k != d and n > x.shape[k] or other is not None and n > other[k]:
            to = "apart from dimension " + str(d) if other is None else f"apart from dimension {d} and src"
            raise RuntimeError(
                f"Size does not match at dimension {k} expected index {list(index.shape)} to be no larger than self "
                f"{list(x.shape)} {to}"
            )
    _refuse(name, index, d, x.shape[d] if x.ndim else 1)
    return d


def _flat(x: Tensor, index: Tensor) -> bool:
    """Whether a 0-dim tensor is indexed by a vector, or the other way round: both are then taken for vectors."""
    return x.ndim == 0 or index.ndim == 0


def gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """out[i][j] = input[index[i][j]][j] for dim 0, and so on.

    Shape: input and index have as many dimensions, and index is no larger beside `dim`; the result has index's.
    Dtype: input and result: any, alike; index: int32 or int64.
    Raises:
        RuntimeError: index has another number of dimensions, is larger than input beside `dim`, or out of range (CPU).
        TypeError: index is no Tensor.
        IndexError: `dim` is out of range.
    """
    d = _along("gather", input, dim, index, None)
    if input.ndim != index.ndim or not input.ndim:
        return reshape(get_op(reshape(input, (-1,)), reshape(index, (-1,)), dims=(0,), at=None), tuple(index.shape))
    return get_op(input, index, dims=(d,), at=None)


def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """As `tgrad.gather`, with input and indices broadcast beside `dim`; negative indices count from the end.

    Shape: input and indices broadcast beside `dim`; without `dim` both are flattened.
    Dtype: input and result: any, alike; index: int32 or int64.
    Raises:
        RuntimeError: another number of dimensions, or an index out of range (CPU).
        TypeError: indices is no Tensor.
        IndexError: `dim` is out of range; without `dim`, an index is (CPU).
    """
    if dim is None:
        return take(reshape(input, (-1,)), reshape(indices, (-1,)))
    if input.ndim != indices.ndim:
        raise RuntimeError(
            "torch.take_along_dim(): input and indices should have the same number of dimensions, but got "
            f"{input.ndim} dimensions for input, and {indices.ndim} dimensions for indices"
        )
    d = wrap_dim(dim, input.ndim)
    _index("take_along_dim", indices)
    _refuse("take_along_dim", indices, d, input.shape[d] if input.ndim else 1, negative=True)
    if not input.ndim:
        return reshape(get_op(reshape(input, (1,)), reshape(indices, (1,)), dims=(0,), at=None), ())
    rest = list(broadcast_shapes(tuple(_with(input, d, 1)), tuple(_with(indices, d, 1))))
    input, indices = (expand(t, *rest[:d], t.shape[d], *rest[d + 1 :]) for t in (input, indices))
    return get_op(input, indices, dims=(d,), at=None)


def _with(x: Tensor, d: int, n: int) -> list[int]:
    return [*x.shape[:d], n, *x.shape[d + 1 :]]


def _scatter_value(name: str, x: Tensor, index: Tensor, src: Any) -> Tensor:
    """What is scattered: a number repeated, or the part of src that index covers."""
    if not isinstance(src, Tensor):
        return number(src, x, tuple(index.shape))
    if src.dtype is not x.dtype:
        raise RuntimeError(f"{name}(): Expected self.dtype to be equal to src.dtype")
    for d, n in enumerate(index.shape):
        if src.ndim and n != src.shape[d]:
            src = slice_op(src, dim=d, start=0, stop=n, step=1)
    return src


def _scatter(name: str, op: Any) -> tuple[Callable, Callable]:
    """The function and its form in place."""

    def prepared(x: Tensor, dim: int, index: Tensor, src: Any) -> tuple[int, Tensor]:
        other = tuple(src.shape) if isinstance(src, Tensor) and src.ndim else None
        d = _along(name, x, dim, index, other)
        return d, _scatter_value(name, x, index, src)

    def function(input: Tensor, dim: int, index: Tensor, src: Any) -> Tensor:
        d, value = prepared(input, dim, index, src)
        if not index.numel():
            return p.clone(input)
        if _flat(input, index):
            return reshape(
                op(*(reshape(t, (-1,)) for t in (input, index, value)), dims=(0,), at=None), tuple(input.shape)
            )
        return op(contiguous(input), index, value, dims=(d,), at=None)

    def in_place(self: Tensor, dim: int, index: Tensor, src: Any) -> Tensor:
        d, value = prepared(self, dim, index, src)
        if not index.numel():
            return self
        if _flat(self, index):
            write_places(
                op, view_op(self, shape=(self.numel(),)), reshape(index, (-1,)), reshape(value, (-1,)), (0,), None
            )
            return self
        return write_places(op, self, index, value, (d,), None)

    return function, in_place


_put, _put_ = _scatter("scatter", put_op)
_add, _add_ = _scatter("scatter_add", accumulate_op)


def _scatter_kind(src: Any, value: Any, reduce: str | None) -> tuple[Any, bool]:
    if reduce not in (None, "add"):
        raise RuntimeError(f"scatter: reduce {reduce!r} is not supported, only 'add'")
    return value if src is None else src, reduce == "add"


def scatter(input: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None,
            reduce: str | None = None) -> Tensor:  # fmt: skip
    """input with src (a tensor, or a number) at [index[i][j]][j] for dim 0, and so on; reduce "add": added there.

    Shape: index no larger than src, nor than input beside `dim`; the result has input's.
    Dtype: input and src: any, alike; index: int32 or int64.
    Raises:
        RuntimeError: index has another number of dimensions than input, is larger than it beside `dim` or than src, or
            out of range (CPU); `reduce` is neither None nor "add"; src has another dtype.
        TypeError: index is no Tensor.
        IndexError: `dim` is out of range.
    """
    src, add = _scatter_kind(src, value, reduce)
    return (_add if add else _put)(input, dim, index, src)


def scatter_(self: Tensor, dim: int, index: Tensor, src: Any = None, *, value: Any = None,
             reduce: str | None = None) -> Tensor:  # fmt: skip
    """`tgrad.scatter` in place.

    Shape: kept; as of `tgrad.scatter`.
    Dtype: kept; src has it too, index is int32 or int64.
    Raises:
        RuntimeError: index has another number of dimensions than input, is larger than it beside `dim` or than src, or
            out of range (CPU); `reduce` is neither None nor "add"; src has another dtype.
        TypeError: index is no Tensor.
        IndexError: `dim` is out of range.
    """
    src, add = _scatter_kind(src, value, reduce)
    return (_add_ if add else _put_)(self, dim, index, src)


def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """input plus src at [index[i][j]][j] for dim 0, and so on.

    The order of additions to one place is fixed on the CPU; on a GPU floats are added by atomics, in any order.

    Shape: index no larger than src, nor than input beside `dim`; the result has input's.
    Dtype: input and src: any, alike; index: int32 or int64.
    Raises:
        RuntimeError: index has another number of dimensions than input, is larger than it beside `dim` or than src, or
            out of range (CPU); src has another dtype.
        TypeError: index is no Tensor.
        IndexError: `dim` is out of range.
    """
    return _add(input, dim, index, src)


def scatter_add_(self: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """`tgrad.scatter_add` in place.

    Shape: kept; as of `tgrad.scatter_add`.
    Dtype: kept; src has it too, index is int32 or int64.
    Raises:
        RuntimeError: index has another number of dimensions than input, is larger than it beside `dim` or than src, or
            out of range (CPU); src has another dtype.
        TypeError: index is no Tensor.
        IndexError: `dim` is out of range.
    """
    return _add_(self, dim, index, src)


# --- whole slices of a dimension -------------------------------------------------------------------------------------
def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The slices of a dimension that a vector of indices names.

    Shape: index: a vector (N,), or 0-dim for N = 1; the result has N at `dim`.
    Dtype: input and result: any, alike; index: int32 or int64.
    Raises:
        IndexError: `dim` is out of range, index is no vector, or one of it is out of range (CPU).
        RuntimeError: index is of another dtype.
        TypeError: index is no Tensor.
    """
    d = wrap_dim(dim, input.ndim)
    _index("index_select", index)
    if index.ndim > 1:
        raise IndexError("index_select(): Index is supposed to be a vector")
    if outside("index_select", index, input.shape[d] if input.ndim else 1, negative=False) is not None:
        raise IndexError("index out of range in self")
    if not input.ndim:
        return reshape(get_op(reshape(input, (1,)), reshape(index, (-1,)), dims=(0,), at=0), ())
    return get_op(input, reshape(index, (-1,)), dims=(d,), at=d)


def _slices(name: str, op: Any, fit: Callable, kind: type[Exception], negative: bool) -> tuple[Callable, Callable]:
    """A write of slices of a dimension, and its form in place. fit(x, value, shape of the slices) gives the values."""

    def prepared(x: Tensor, dim: int, index: Tensor, value: Any) -> tuple[int, Tensor, Tensor]:
        d = wrap_dim(dim, x.ndim)
        if _index(name, index).ndim > 1:
            raise IndexError(f"{name}(): Index is supposed to be a vector")
        bad = outside(name, index, x.shape[d] if x.ndim else 1, negative)
        if bad is not None:
            where = f"{name}_(): " if name == "index_copy" else ""
            raise kind(f"{where}index {bad} is out of bounds for dimension {d} with size {x.shape[d] if x.ndim else 1}")
        index = reshape(index, (-1,))
        shape = region(tuple(x.shape) or (1,), tuple(index.shape), (d,), d)
        return d, index, fit(x, value, shape if x.ndim else tuple(index.shape))

    def function(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
        d, index, value = prepared(input, dim, index, value)
        if not input.ndim:
            return reshape(op(reshape(input, (1,)), index, value, dims=(0,), at=0), ())
        return op(input, index, value, dims=(d,), at=d)

    def in_place(self: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
        d, index, value = prepared(self, dim, index, value)
        if not self.ndim:
            write_places(op, view_op(self, shape=(1,)), index, value, (0,), 0)
            return self
        return write_places(op, self, index, value, (d,), d)

    return function, in_place


def _fit_source(x: Tensor, source: Any, shape: tuple[int, ...]) -> Tensor:
    if not isinstance(source, Tensor):
        raise TypeError(f"argument 'source' must be Tensor, not {type(source).__name__}")
    if source.dtype is not x.dtype:
        raise RuntimeError(f"self and source expected to have the same dtype, but got {x.dtype!r} and {source.dtype!r}")
    if not source.ndim:
        source = reshape(source, (1,))
    if tuple(source.shape) != shape:
        raise RuntimeError(f"source of shape {list(source.shape)} does not match the indexed slices, {list(shape)}")
    return source


def _fit_number(x: Tensor, value: Any, shape: tuple[int, ...]) -> Tensor:
    if isinstance(value, Tensor):
        if value.ndim:
            raise RuntimeError(
                "index_fill_ only supports a 0-dimensional value tensor, but got tensor with "
                f"{value.ndim} dimension(s)."
            )
        return expand(_cast(value, x), *shape)
    return number(value, x, shape)


_index_add, _index_add_ = _slices("index_add", accumulate_op, _fit_source, RuntimeError, False)
_index_copy, _index_copy_ = _slices("index_copy", put_op, _fit_source, IndexError, False)
_index_fill, _index_fill_ = _slices("index_fill", put_op, _fit_number, IndexError, True)


def _times(source: Tensor, alpha: float) -> Tensor:
    if alpha == 1:
        return source
    product = p.mul(source, alpha)
    return product if product.dtype is source.dtype else p.cast(source.dtype)(product)


def index_add(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """input with alpha * source[i] added to its slice index[i] of `dim`; see `scatter_add` for the order.

    Shape: index: a vector (N,); source: input's with N at `dim`; the result: input's.
    Dtype: input and source: any, alike; index: int32 or int64.
    Raises:
        IndexError: `dim` or an index is out of range (indices: on the CPU); index is no vector.
        RuntimeError: source has another dtype or shape.
        TypeError: index or source is no Tensor.
    """
    return _index_add(input, dim, index, _times(source, alpha))


def index_add_(self: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """`tgrad.index_add` in place.

    Shape: kept; as of `tgrad.index_add`.
    Dtype: kept; source has it too, index is int32 or int64.
    Raises:
        IndexError: `dim` or an index is out of range (indices: on the CPU); index is no vector.
        RuntimeError: source has another dtype or shape; the write is refused.
        TypeError: index or source is no Tensor.
    """
    return _index_add_(self, dim, index, _times(source, alpha))


def index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """input with source[i] in place of its slice index[i] of `dim`.

    Shape: index: a vector (N,); source: input's with N at `dim`; the result: input's.
    Dtype: input and source: any, alike; index: int32 or int64.
    Raises:
        IndexError: `dim` or an index is out of range (indices: on the CPU); index is no vector.
        RuntimeError: source has another dtype or shape.
        TypeError: index or source is no Tensor.
    """
    return _index_copy(input, dim, index, source)


def index_copy_(self: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """`tgrad.index_copy` in place.

    Shape: kept; as of `tgrad.index_copy`.
    Dtype: kept; source has it too, index is int32 or int64.
    Raises:
        IndexError: `dim` or an index is out of range (indices: on the CPU); index is no vector.
        RuntimeError: source has another dtype or shape; the write is refused.
        TypeError: index or source is no Tensor.
    """
    return _index_copy_(self, dim, index, source)


def _cast(value: Tensor, like: Tensor) -> Tensor:
    return value if value.dtype is like.dtype else p.cast(like.dtype)(value)


def _filled(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """True in the slices that index names, to be broadcast: a slice named twice holds the value once."""
    d, n = wrap_dim(dim, x.ndim), x.shape[dim] if x.ndim else 1
    mask = _index_fill(zeros((n,), dtype=dtypes.bool_), 0, index, True)
    return reshape(mask, (n, *(1,) * (x.ndim - 1 - d)) if x.ndim else ())


def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """input with one value in the slices of `dim` that index names.

    Shape: index: a vector; the result has input's.
    Dtype: input and result: any, alike; index: int32 or int64; value is converted.
    Raises:
        IndexError: `dim` or an index is out of range (indices: on the CPU); index is no vector.
        RuntimeError: value is a tensor that is not 0-dimensional.
        TypeError: index is no Tensor.
    """
    if isinstance(value, Tensor) and value.requires_grad and not value.ndim:
        return p.where(_filled(input, dim, index), _cast(value, input), input)
    return _index_fill(input, dim, index, value)


def index_fill_(self: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """`tgrad.index_fill` in place.

    Shape: kept; as of `tgrad.index_fill`.
    Dtype: kept; value is converted, index is int32 or int64.
    Raises:
        IndexError: `dim` or an index is out of range (indices: on the CPU); index is no vector.
        RuntimeError: value is a tensor that is not 0-dimensional; the write is refused.
        TypeError: index is no Tensor.
    """
    if isinstance(value, Tensor) and value.requires_grad and not value.ndim:
        return write(p.where, self, (_filled(self, dim, index), _cast(value, self), self))
    return _index_fill_(self, dim, index, value)


def take(input: Tensor, index: Tensor) -> Tensor:
    """The elements of input, counted in row-major order, that index names.

    Shape: the result has index's.
    Dtype: input and result: any, alike; index: int32 or int64.
    Raises:
        IndexError: an index is out of range (CPU).
        RuntimeError: index is of another dtype.
        TypeError: index is no Tensor.
    """
    bad = outside("take", _index("take", index), input.numel())
    if bad is not None:
        raise IndexError(f"out of range: tried to access index {bad} on a tensor of {input.numel()} elements.")
    if not input.ndim:
        input = reshape(input, (1,))
    return get_op(input, index, dims=tuple(range(input.ndim)), at=0)


BOTH = (gather, take_along_dim, scatter, scatter_add, index_select, index_add, index_copy, index_fill, take)
IN_PLACE = (scatter_, scatter_add_, index_add_, index_copy_, index_fill_)
