"""Indexing with brackets: x[...] and x[...] = v, by integers, slices, None, Ellipsis, tensors, lists, arrays, masks.

Integers, slices, None and Ellipsis make a view. What is left, indices by tensors, is one read (`places.get_op`) or one
write of that view. Where the tensors stand next to each other their common shape takes their place in the result, else
it comes first, as in PyTorch and numpy.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from tgrad import dtypes, modes
from tgrad.aliasing import wants_grad
from tgrad.device import compute
from tgrad.layout import broadcast_shapes, may_overlap_itself
from tgrad.ops import creation
from tgrad.ops.basic_indexing import _slice, index as basic
from tgrad.ops.bounds import outside
from tgrad.ops.indexing import INDEX
from tgrad.ops.masks import _found
from tgrad.ops.places import accumulate_op, get_op, joined, put_op, region, write_places
from tgrad.ops.reduce import expand
from tgrad.ops.transfer import convert, copy_into
from tgrad.ops.views import alias_op, reshape, select, squeeze, unbind, unsqueeze_op
from tgrad.tensor import Tensor

_BASIC = (int, slice, type(None), type(Ellipsis))


def getitem(x: Tensor, key: Any) -> Tensor:
    """x[key]: a view for integers, slices, None and Ellipsis; a copy where a tensor, list, array or bool is among them.

    Shape: integers drop a dimension, slices keep it, None adds one; tensors broadcast to theirs, in the place of the
    first (in front, if they stand apart); a bool tensor counts as its `nonzero`.
    Dtype: any; the result has the tensor's. Indices: int32, int64, uint8 or bool.
    Raises:
        IndexError: out of range (of tensors: on the CPU), too many, of another kind, or shapes that do not broadcast.
        ValueError: a slice's step is not positive.
    """
    if type(key) in _BASIC:
        return basic(x, key)
    parts = _parts(key)
    if all(type(k) in _BASIC for k in parts):
        return basic(x, parts)
    view, indices = _split(x, parts)
    if not indices:
        return alias_op(x) if view is x else view
    dims, at, index, _ = _places(view, indices)
    return get_op(view, index, dims=dims, at=at)


def setitem(x: Tensor, key: Any, value: Any) -> None:
    """x[key] = value, broadcast.

    Shape: value broadcasts to that of x[key].
    Dtype: kept; numbers are converted, and tensors too where key holds no tensor.
    Raises:
        IndexError: as of x[key].
        RuntimeError: shapes do not fit; with tensor indices, value has another dtype; the write is refused.
        TypeError: value is neither a Tensor nor a number.
    """
    parts = _parts(key)
    view, indices = _split(x, parts)
    value = _value(value, x.device)
    if not indices:
        _write_view(x, view, value)
        return
    if not isinstance(value, Tensor):
        value = creation.full((), value, dtype=x.dtype, device=x.device)
    _write(x if _same(x, view) else view, indices, value, False)


def index_put_(self: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """self[indices] = values, or += with `accumulate`, where all of several values for one place count.

    On a GPU, floats are added by atomics, in any order.

    Shape: kept; values broadcasts to that of self[indices].
    Dtype: kept; values has it too; indices: int32, int64, uint8 or bool.
    Raises:
        IndexError: as of x[key].
        RuntimeError: values has another dtype or does not fit; the write is refused.
        TypeError: an index, or values, is no Tensor.
    """
    _write(self, _listed(self, indices), values, accumulate)
    return self


def index_put(input: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """A copy of input with values at, or with `accumulate` added at, input[indices].

    Shape: values broadcasts to that of input[indices]; the result has input's.
    Dtype: values has input's; indices: int32, int64, uint8 or bool.
    Raises:
        IndexError: as of x[key].
        RuntimeError: values has another dtype or does not fit.
        TypeError: an index is no Tensor.
    """
    dims, at, index, shape = _places(input, _listed(input, indices))
    value = _fit(input, values, shape)
    return (accumulate_op if accumulate else put_op)(input, index, value, dims=dims, at=at)


# --- what a key says -------------------------------------------------------------------------------------------------
def _parts(key: Any) -> tuple:
    """The key as a tuple; a short list that holds more than numbers is one, as PyTorch still has it."""
    if isinstance(key, tuple):
        return key
    if isinstance(key, list) and len(key) < 32 and any(isinstance(k, (Tensor, list, tuple, slice, np.ndarray)) or
                                                       k is None or k is Ellipsis for k in key):  # fmt: skip
        return tuple(key)
    return (key,)


def _index_tensor(k: Any, where: Any) -> Any:
    """An index that is no integer, slice, None or Ellipsis as a tensor, new ones on device `where`, or as a Python bool
    or int.
    """
    if isinstance(k, (bool, np.bool_)):
        return bool(k)
    if isinstance(k, np.integer):
        return int(k)
    if isinstance(k, (list, tuple, np.ndarray, range)):
        if not isinstance(k, np.ndarray) and not len(k):
            return creation.empty(0, dtype=dtypes.int64, device=where)
        try:
            k = creation.tensor(k, device=where)
        except (TypeError, ValueError):
            raise IndexError("tensors used as indices must be long, int, byte or bool tensors") from None
    if isinstance(k, Tensor):
        if not k.ndim and k.dtype in INDEX:
            return int(k.item())
        if k.dtype not in (*INDEX, dtypes.uint8, dtypes.bool_):
            raise IndexError("tensors used as indices must be long, int, byte or bool tensors")
        return k
    if isinstance(k, str):
        raise TypeError("new(): invalid data type 'str'")
    if hasattr(k, "__index__"):
        return k.__index__()
    raise IndexError(
        "only integers, slices (`:`), ellipsis (`...`), None and long or byte Variables are valid indices (got "
        f"{type(k).__name__})"
    )


def _split(x: Tensor, parts: tuple) -> tuple[Tensor, dict[int, Tensor]]:
    """The view that the basic part of a key makes, and the index tensors by the view's dimension they begin at."""
    plain = lambda k: type(k) in _BASIC and not isinstance(k, bool)
    items: list[Any] = [k if plain(k) else _index_tensor(k, x.device) for k in parts]
    used = sum(_width(k) for k in items)
    if used > x.ndim:
        raise IndexError(f"too many indices for tensor of dimension {x.ndim}")
    if sum(1 for k in items if k is Ellipsis) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    view, dim = x, 0
    indices: dict[int, Tensor] = {}
    for k in items:
        if k is None:
            view = unsqueeze_op(view, dim=dim)
            dim += 1
        elif k is Ellipsis:
            dim += x.ndim - used
        elif isinstance(k, slice):
            view = _slice(view, dim, k)
            dim += 1
        elif isinstance(k, bool) or isinstance(k, Tensor) and not k.ndim:
            view = unsqueeze_op(view, dim=dim)
            indices[dim] = creation.tensor([0] if k else [], dtype=dtypes.int64, device=x.device)
            dim += 1
        elif isinstance(k, Tensor):
            indices[dim] = k
            dim += _width(k)
        else:
            view = select(view, dim, k)
    return view, indices


def _width(k: Any) -> int:
    """How many dimensions of the tensor an index uses up."""
    if isinstance(k, Tensor):
        return k.ndim if k.dtype in (dtypes.bool_, dtypes.uint8) else 1
    return 0 if k is None or k is Ellipsis or isinstance(k, bool) else 1


def _listed(x: Tensor, indices: Sequence[Any]) -> dict[int, Tensor]:
    """The indices of index_put by dimension."""
    found: dict[int, Tensor] = {}
    dim = 0
    for k in indices:
        if k is None:
            dim += 1
            continue
        if not isinstance(k, Tensor):
            raise TypeError(f"index_put(): indices must be tensors or None, got {type(k).__name__}")
        if k.dtype not in (*INDEX, dtypes.uint8, dtypes.bool_):
            raise IndexError("tensors used as indices must be long, int, byte or bool tensors")
        found[dim] = k
        dim += _width(k)
    if dim > x.ndim:
        raise IndexError(f"too many indices for tensor of dimension {x.ndim} (got {len(indices)})")
    return found


# --- indices as places -----------------------------------------------------------------------------------------------
def _places(x: Tensor, indices: dict[int, Tensor]) -> tuple[tuple[int, ...], int, Tensor, tuple[int, ...]]:
    """Dims, position and index of `places`, and the shape of the elements there."""
    flat: dict[int, Tensor] = {}
    for dim, k in indices.items():
        if k.device is not x.device:
            if x.device is not compute:
                raise RuntimeError(
                    f"indices should be either on cpu or on the same device as the indexed tensor ({x.device})"
                )
            k = convert(k, None, compute)
        if k.dtype in INDEX:
            flat[dim] = k
            continue
        if k.dtype is dtypes.uint8:
            warnings.warn(
                "indexing with dtype torch.uint8 is now deprecated, please use a dtype torch.bool instead.",
                UserWarning, stacklevel=4,
            )  # fmt: skip
        for d, n in enumerate(k.shape):
            if n != x.shape[dim + d]:
                raise IndexError(
                    f"The shape of the mask {list(k.shape)} at index {d} does not match the shape of the indexed "
                    f"tensor {list(x.shape)} at index {dim + d}"
                )
        mask = k if k.dtype is dtypes.bool_ else convert(k, dtypes.bool_)
        for d, one in enumerate(unbind(_found(mask, tuple(k.shape)), 1)):
            flat[dim + d] = one
    dims = tuple(sorted(flat))
    try:
        broadcast_shapes(*(tuple(flat[d].shape) for d in dims))
    except RuntimeError:
        shapes = ", ".join(str(list(flat[d].shape)) for d in dims)
        raise IndexError(
            f"shape mismatch: indexing tensors could not be broadcast together with shapes {shapes}"
        ) from None
    for position, d in enumerate(dims):
        bad = outside(f"x[...], index tensor {position}", flat[d], x.shape[d])
        if bad is not None:  # PyTorch names the position among the indices
            raise IndexError(f"index {bad} is out of bounds for dimension {position} with size {x.shape[d]}")
    adjacent = dims[-1] - dims[0] == len(dims) - 1
    at = dims[0] if adjacent else 0
    index = joined([flat[d] for d in dims], [x.shape[d] for d in dims])
    return dims, at, index, region(tuple(x.shape), tuple(index.shape), dims, at)


# --- writes ----------------------------------------------------------------------------------------------------------
def _value(value: Any, where: Any) -> Any:
    if isinstance(value, (list, tuple, np.ndarray)):
        return creation.tensor(value, device=where)
    if isinstance(value, (Tensor, bool, int, float)):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    raise TypeError(f"setitem: expected a Tensor or a number, got {type(value).__name__}")


def _same(x: Tensor, view: Tensor) -> bool:
    return view is x or view.layout is x.layout and view.ptr == x.ptr


def _write_view(x: Tensor, part: Tensor, value: Any) -> None:
    if _same(x, part):
        part = x  # x[...] = value and the like write x itself
    if not isinstance(value, Tensor) and part.numel() > 1 and may_overlap_itself(part.shape, part.layout.strides):
        value = creation.tensor(value, dtype=part.dtype, device=part.device)  # written as a tensor is: refused
    copy_into(part, _fewer_dims(value, part.ndim))


def _fewer_dims(value: Any, ndim: int) -> Any:
    """Without dimensions of size 1 in front of more than `ndim`."""
    if isinstance(value, Tensor) and value.ndim > ndim:
        extra = range(value.ndim - ndim)
        value = squeeze(value, [d for d in extra if all(n == 1 for n in value.shape[: d + 1])])
    return value


def _fit(x: Tensor, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    if value.dtype is not x.dtype:
        raise RuntimeError(
            f"Index put requires the source and destination dtypes match, got {x.dtype.legacy} for the destination and "
            f"{value.dtype.legacy} for the source."
        )
    value = _fewer_dims(value, len(shape))
    try:
        fits = broadcast_shapes(tuple(value.shape), shape) == shape
    except RuntimeError:
        fits = False
    if not fits:
        raise RuntimeError(
            f"shape mismatch: value tensor of shape {list(value.shape)} cannot be broadcast to indexing result of "
            f"shape {list(shape)}"
        )
    return value if tuple(value.shape) == shape else expand(value, *shape) if shape else reshape(value, ())


def _write(x: Tensor, indices: dict[int, Tensor], value: Tensor, accumulate: bool) -> None:
    dims, at, index, shape = _places(x, indices)
    if not isinstance(value, Tensor):
        raise TypeError(f"index_put_(): argument 'values' must be Tensor, not {type(value).__name__}")
    value = _fit(x, value, shape)
    if not value.numel() and not (modes.current().record and wants_grad(x)):
        return
    write_places(accumulate_op if accumulate else put_op, x, index, value, dims, at)
