"""Reading and writing where an index tensor says: the four ops that all indexing is made of.

A place is (dims, at): the index counts through the dimensions `dims` of a tensor, in row-major order, and its own
dimensions stand in the result from position `at` on; with `at` None it has the tensor's number of dimensions and walks
along the one in `dims`, as in `gather`. Each op is linear in its tensors, and each is the gradient of another:

    get     the elements at the places            its gradient: spread
    spread  zeros, with values added at places    get
    put     x with values put at places           put of zeros, and get
    accumulate  x with values added at places     the gradient itself, and get
"""

from __future__ import annotations

from typing import Any

from tgrad import host_copies
from tgrad.device import compute
from tgrad.dtypes import accumulator, float32, int32, int64
from tgrad.expression import Expression
from tgrad.inplace import overwrite
from tgrad.kernels.indexing import ATOMIC, Walk, prepare_get, prepare_put
from tgrad.kernels.launch import Launch
from tgrad.layout import Layout, broadcast_shapes, collapse, layout, numel
from tgrad.op import Kernel, operand, pointwise_launch, result_layout
from tgrad.ops import pointwise as p
from tgrad.ops.creation import full
from tgrad.ops.reduce import expand_op
from tgrad.ops.views import COPY, fill_launch
from tgrad.storage import workspace
from tgrad.tensor import Tensor

Dims = tuple[int, ...]


# --- where an index leads --------------------------------------------------------------------------------------------
def region(shape: tuple[int, ...], index: tuple[int, ...], dims: Dims, at: int | None) -> tuple[int, ...]:
    """The shape of the elements at the places."""
    if at is None:
        return index
    rest = [n for d, n in enumerate(shape) if d not in dims]
    return (*rest[:at], *index, *rest[at:])


def _walk(x: Layout, index: Layout, value: Layout | None, dims: Dims, at: int | None) -> tuple[Walk, Walk]:
    """Region and indexed dimensions, collapsed: x, index (and value) over the one, x over the other."""
    ndim = len(index.shape)
    shape = region(tuple(x.shape), tuple(index.shape), dims, at)
    if at is None:
        by_x = tuple(0 if d in dims else s for d, s in enumerate(x.strides)) if ndim == len(x.shape) else (0,) * ndim
        by_index = index.strides
    else:
        rest = [s for d, s in enumerate(x.strides) if d not in dims]
        by_x = (*rest[:at], *(0,) * ndim, *rest[at:])
        by_index = (*(0,) * at, *index.strides, *(0,) * (len(rest) - at))
    rows = [by_x, by_index] if value is None else [by_x, by_index, value.strides]
    where = _at_least_one(*collapse(shape, rows))
    counted = _at_least_one(*collapse([x.shape[d] for d in dims], [[x.strides[d] for d in dims]]))
    return where, counted


def _at_least_one(shape: tuple[int, ...], rows: list[tuple[int, ...]]) -> Walk:
    return (shape, rows) if shape else ((1,), [(0,) for _ in rows])


def _total(x: Layout, dims: Dims) -> int:
    return numel(x.shape[d] for d in dims)


def _wide(*layouts: Layout) -> bool:
    return any(max(t.extent, t.numel) >= 2**31 for t in layouts)


def get_launch(x: Layout, index: Layout, dims: Dims, at: int | None, out: Layout) -> Launch | None:
    if not out.numel:
        return None
    where, counted = _walk(x, index, None, dims, at)
    return prepare_get(
        (x.dtype.triton, index.dtype.triton), where, counted, _total(x, dims), wide=_wide(x, index, out), name="get"
    )


def _put_launch(out: Layout, index: Layout, value: Layout, dims: Dims, at: int | None, add: bool) -> Launch:
    """Takes the target, the index, the values. Types without atomic addition are added up in a wider copy."""
    if not value.numel:
        return lambda *addresses: None
    wide = _wider(out) if add and out.dtype.triton not in ATOMIC else None
    into = out if wide is None else wide
    where, counted = _walk(into, index, value, dims, at)
    types = into.dtype.triton, index.dtype.triton, value.dtype.triton
    write = prepare_put(
        types,
        where,
        counted,
        _total(out, dims),
        add=add,
        wide=_wide(into, index, value),
        name="accumulate" if add else "put",
    )
    if wide is None:
        return write
    widen, narrow = _cast_launch(out, wide), _cast_launch(wide, out)

    def launch(to: int, places: int, values: int) -> None:
        scratch = workspace(wide.nbytes)
        widen(scratch.ptr, to)
        write(scratch.ptr, places, values)
        narrow(to, scratch.ptr)

    return launch


def _wider(out: Layout) -> Layout:
    """Where sums into `out` are formed: float32 for half types, int32 for bytes and bools."""
    kind = accumulator(out.dtype)
    return layout(float32 if kind is float32 else int32, tuple(out.shape), None, compute)


def _cast_launch(source: Layout, to: Layout) -> Launch:
    return pointwise_launch("cast", COPY.lower(((source.dtype, 2),), [to.dtype]), [to], [source])


# --- the ops ---------------------------------------------------------------------------------------------------------
def _build_get(x: Tensor, index: Tensor, dims: Dims, at: int | None) -> tuple[list[Layout], Any]:
    out = layout(x.dtype, region(tuple(x.shape), tuple(index.shape), dims, at), None, compute)
    return [out], get_launch(x.layout, index.layout, dims, at, out)


def _build_spread(
    g: Tensor, index: Tensor, dims: Dims, at: int | None, shape: tuple[int, ...]
) -> tuple[list[Layout], Launch]:
    out = layout(g.dtype, shape, None, compute)
    if not out.numel:
        return [out], lambda *addresses: None
    zeros, add = fill_launch("zeros", out), _put_launch(out, index.layout, g.layout, dims, at, True)

    def launch(to: int, source: int, places: int) -> None:
        zeros(to, 0)
        add(to, places, source)

    return [out], launch


def _copying(add: bool) -> Any:
    def build(x: Tensor, index: Tensor, value: Tensor, dims: Dims, at: int | None) -> tuple[list[Layout], Launch]:
        out = result_layout([x.layout], x.dtype)
        if not out.numel:
            return [out], lambda *addresses: None
        copy, write = _cast_launch(x.layout, out), _put_launch(out, index.layout, value.layout, dims, at, add)

        def launch(to: int, source: int, places: int, values: int) -> None:
            copy(to, source)
            write(to, places, values)

        return [out], launch

    return build


def _at_places(g: Tensor, index: Tensor, *, dims: Dims, at: int | None) -> Tensor:
    return get_op(g, index, dims=dims, at=at)


def _spread(g: Tensor, index: Tensor, *, dims: Dims, at: int | None, x_shape: tuple[int, ...]) -> Tensor:
    return spread_op(g, index, dims=dims, at=at, shape=x_shape)


def _without(g: Tensor, index: Tensor, *, dims: Dims, at: int | None) -> Tensor:
    zeros = number(0, g, region(tuple(g.shape), tuple(index.shape), dims, at))
    return put_op(g, index, zeros, dims=dims, at=at)


get_op: Kernel = Kernel(
    "get", ("x", "index"), _build_get, {"x": _spread}, settings=("dims", "at"), grad_name="Index",
)  # fmt: skip
get_op.on_host = host_copies.get
spread_op: Kernel = Kernel(
    "spread", ("g", "index"), _build_spread, {"g": _at_places}, settings=("dims", "at", "shape"),
    grad_name="IndexPut",
)  # fmt: skip
put_op: Kernel = Kernel(
    "put", ("x", "index", "value"), _copying(False), {"x": _without, "value": _at_places}, settings=("dims", "at"),
    grad_name="IndexPut",
)  # fmt: skip
put_op.on_host = host_copies.put
accumulate_op: Kernel = Kernel(
    "accumulate", ("x", "index", "value"), _copying(True), {"x": lambda g: g, "value": _at_places},
    settings=("dims", "at"), grad_name="IndexPut",
)  # fmt: skip


def number(value: float, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """One number of like's dtype, on its device, repeated to `shape`."""
    return expand_op(full((), value, dtype=like.dtype, device=like.device), shape=shape)


def write_places(op: Kernel, target: Tensor, index: Tensor, value: Tensor, dims: Dims, at: int | None) -> Tensor:
    """`put_op` or `accumulate_op` in place.

    Raises:
        RuntimeError: the write is refused, before anything is written.
    """

    def launch(out: Layout, places: Layout, values: Layout) -> Launch:
        if out.device is not compute:
            return host_copies.put_into(out, places, values, dims, at)
        return _put_launch(out, places, values, dims, at, op is accumulate_op)

    return overwrite(op, target, (index, value), (dims, at), launch)


# --- several indices as one ------------------------------------------------------------------------------------------
def _build_join(a: Any, b: Tensor, size: int, total: int) -> tuple[list[Layout], Launch]:
    """a * size + b, or total where b is no index into `size` elements."""
    tensors = [t.layout for t in (a, b) if isinstance(t, Tensor)]
    out = layout(b.dtype, broadcast_shapes(*(tuple(t.shape) for t in tensors)), None, compute)
    lowered = Expression.of(_joined, 4).lower(tuple(operand(v) for v in (a, b, size, total)), [out.dtype])
    return [out], pointwise_launch("join_index", lowered, [out], tensors)


def _joined(a: Any, b: Any, size: Any, total: Any) -> Any:
    wrapped = p.where(p.lt(b, 0), p.add(b, size), b)
    outside = p.logical_or(p.lt(wrapped, 0), p.ge(wrapped, size))
    return p.where(outside, total, p.add(p.mul(a, size), wrapped))


join_op: Kernel = Kernel("join_index", ("a", "b", "size", "total"), _build_join, {})
join_op.on_host = host_copies.join


def joined(indices: list[Tensor], sizes: list[int]) -> Tensor:
    """One index that counts through dimensions of `sizes`, of an index into each; broadcast together."""
    if len(indices) == 1:
        return indices[0]
    whole: Any = 0
    total = 1
    for index, size in zip(indices, sizes, strict=True):
        total *= size
        whole = join_op(whole, as_int64(index), size, total)
    return whole


def as_int64(index: Tensor) -> Tensor:
    return index if index.dtype is int64 else p.cast(int64)(index)
