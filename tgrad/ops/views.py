"""Views: other layouts over the same memory, and the copies made where a view will not do."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

from tgrad import host_copies
from tgrad.device import compute
from tgrad.dtypes import BOOL, NUMBER
from tgrad.expression import Expression
from tgrad.kernels.launch import Launch, holders
from tgrad.layout import Layout, infer_size, layout, view_strides, wrap_dim
from tgrad.op import Kernel, PartView, View, pointwise_launch
from tgrad.ops import pointwise as p
from tgrad.tensor import DEFAULT, MULTI_OUTPUT, Tensor

COPY = Expression.of(p.copy, 1)


# --- reshape
# -----------------------------------------------------------------------------------------------------------
def _build_view(x: Layout, shape: tuple[int, ...]) -> tuple:
    strides = view_strides(tuple(x.shape), x.strides, shape)
    if strides is None:
        raise RuntimeError(
            "view size is not compatible with input tensor's size and stride (at least one dimension spans across "
            "two contiguous subspaces). Use .reshape(...) instead."
        )
    return shape, strides, 0


alias_op = View("alias", lambda x: (tuple(x.shape), x.strides, 0), lambda g: g)
view_op = View("view", _build_view, lambda g, *, x_shape: reshape(g, x_shape), settings=("shape",))


def _build_contiguous(x: Tensor) -> tuple[list[Layout], Launch]:
    out = layout(x.dtype, tuple(x.shape), None, compute)
    lowered = COPY.lower(((x.dtype, 2),), [None])
    return [out], pointwise_launch("clone", lowered, [out], [x.layout])


contiguous_op = Kernel("contiguous", ("x",), _build_contiguous, {"x": lambda g: g}, grad_name="Clone", again=True)
contiguous_op.on_host = host_copies.contiguous


def view(x: Tensor, *shape: Any) -> Tensor:
    """The same elements in another shape, without a copy; one size may be -1.

    Shape: `shape`: given as integers or as one sequence; one may be -1.
    Dtype: the input's.
    Raises:
        RuntimeError: the sizes do not fit, or only a copy could have this shape.
    """
    return view_op(x, shape=infer_size(_sizes(shape), x.numel()))


def reshape(x: Tensor, *shape: Any) -> Tensor:
    """The elements, in row-major order, in another shape: a view where strides allow it, else a copy.

    Shape: `shape`: given as integers or as one sequence; one may be -1.
    Dtype: the input's.
    Raises:
        RuntimeError: the shape has another number of elements, two -1, or -1 beside 0.
        TypeError: a size is no integer.
    """
    to = infer_size(_sizes(shape), x.numel())
    if view_strides(tuple(x.shape), x.stride(), to) is None:
        return owned(view_op(contiguous_op(x), shape=to))
    return view_op(x, shape=to)


def owned(x: Tensor) -> Tensor:
    """x, a view of memory that nobody else holds, as a tensor that is no view: it may then be written in place."""
    x.alias = None
    return x


def contiguous(x: Tensor) -> Tensor:
    """x itself if its elements lie in row-major order, else a copy in which they do.

    Shape: any; the result has the input's.
    Dtype: the input's.
    Raises: nothing.
    """
    return x if x.layout.contiguous else contiguous_op(x)


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Join the dimensions from `start_dim` to `end_dim` into one.

    Shape: sizes from `start_dim` to `end_dim` become their product; a 0-dim tensor becomes (1,).
    Dtype: the input's.
    Raises:
        RuntimeError: `start_dim` comes after `end_dim`.
        IndexError: a dimension is out of range.
    """
    first, last = wrap_dim(start_dim, x.ndim), wrap_dim(end_dim, x.ndim)
    if first > last:
        raise RuntimeError("flatten() has invalid args: start_dim cannot come after end_dim")
    if x.ndim and first == last:
        return x
    joined = 1
    for size in x.shape[first : last + 1]:
        joined *= size
    return reshape(x, (*x.shape[:first], joined, *x.shape[last + 1 :]))


def _sizes(shape: tuple) -> tuple[int, ...]:
    sizes = tuple(shape[0]) if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    for size in sizes:
        if isinstance(size, bool) or not hasattr(size, "__index__"):
            raise TypeError(f"expected a shape of integers, got {sizes!r}")
    return tuple(int(s) for s in sizes)


# --- order of dimensions
# -----------------------------------------------------------------------------------------------
def _build_permute(x: Layout, dims: tuple[int, ...]) -> tuple:
    return tuple(x.shape[d] for d in dims), tuple(x.strides[d] for d in dims), 0


def _inverse(dims: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted(range(len(dims)), key=dims.__getitem__))


def _permute_op(name: str) -> View:
    return View(name, _build_permute, lambda g, *, dims: permute_op(g, dims=_inverse(dims)), settings=("dims",))


permute_op, transpose_op, t_op = _permute_op("permute"), _permute_op("transpose"), _permute_op("t")


def permute(x: Tensor, *dims: Any) -> Tensor:
    """The dimensions in another order. A view.

    Shape: the sizes in the order of `dims`.
    Dtype: the input's.
    Raises:
        RuntimeError: not every dimension is named once.
        IndexError: one is out of range.
    """
    order = [wrap_dim(d, x.ndim) for d in _sizes(dims)]
    if len(order) != x.ndim:
        raise RuntimeError(
            "permute(sparse_coo): number of dimensions in the tensor input does not match the length of the desired "
            "ordering "
            f"of dimensions i.e. input.dim() = {x.ndim} is not equal to len(dims) = {len(order)}".replace(
                "(sparse_coo)", ""
            )
        )
    if len(set(order)) != len(order):
        raise RuntimeError("permute(): duplicate dims are not allowed.")
    return permute_op(x, dims=tuple(order))


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two dimensions swapped. A view.

    Shape: the two sizes swapped.
    Dtype: the input's.
    Raises:
        IndexError: a dimension is out of range.
    """
    a, b = wrap_dim(dim0, x.ndim), wrap_dim(dim1, x.ndim)
    order = list(range(x.ndim))
    if x.ndim:
        order[a], order[b] = order[b], order[a]
    return transpose_op(x, dims=tuple(order))


def t(x: Tensor) -> Tensor:
    """The transpose of a matrix; vectors and scalars as they are. A view.

    Shape: (M, N) gives (N, M).
    Dtype: the input's.
    Raises:
        RuntimeError: more than two dimensions.
    """
    if x.ndim > 2:
        raise RuntimeError(f"t() expects a tensor with <= 2 dimensions, but self is {x.ndim}D")
    return t_op(x, dims=tuple(reversed(range(x.ndim))))


# --- dimensions of size 1
# ----------------------------------------------------------------------------------------------
def _build_squeeze(x: Layout, dims: tuple[int, ...]) -> tuple:
    keep = [d for d in range(len(x.shape)) if d not in dims]
    return tuple(x.shape[d] for d in keep), tuple(x.strides[d] for d in keep), 0


def _build_unsqueeze(x: Layout, dim: int) -> tuple:
    stride = x.shape[dim] * x.strides[dim] if dim < len(x.shape) else 1
    return (*x.shape[:dim], 1, *x.shape[dim:]), (*x.strides[:dim], stride, *x.strides[dim:]), 0


squeeze_op = View(
    "squeeze",
    _build_squeeze,
    lambda g, *, x_shape: view_op(g, shape=x_shape) if g.layout.contiguous else reshape(g, x_shape),
    settings=("dims",),
)
unsqueeze_op = View("unsqueeze", _build_unsqueeze, lambda g, *, dim: squeeze_op(g, dims=(dim,)), settings=("dim",))


def squeeze(x: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """Without the dimensions of size 1, or those of them that `dim` names. A view.

    Shape: without the sizes of 1, or those of them that `dim` names.
    Dtype: the input's.
    Raises:
        IndexError: a dimension is out of range.
    """
    named = range(x.ndim) if dim is None else [wrap_dim(d, x.ndim) for d in ([dim] if isinstance(dim, int) else dim)]
    return squeeze_op(x, dims=tuple(d for d in named if d < x.ndim and x.shape[d] == 1))


def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """With a dimension of size 1 at `dim`. A view.

    Shape: with a size of 1 at `dim`.
    Dtype: the input's.
    Raises:
        IndexError: `dim` is out of range.
    """
    return unsqueeze_op(x, dim=wrap_dim(dim, x.ndim + 1))


# --- parts
# -------------------------------------------------------------------------------------------------------------
def _build_slice(x: Layout, dim: int, start: int, stop: int, step: int) -> tuple:
    size = max(0, -(-(stop - start) // step))
    shape = (*x.shape[:dim], size, *x.shape[dim + 1 :])
    strides = (*x.strides[:dim], x.strides[dim] * step, *x.strides[dim + 1 :])
    return shape, strides, start * x.strides[dim] if size else 0


def _build_select(x: Layout, dim: int, index: int) -> tuple:
    return (*x.shape[:dim], *x.shape[dim + 1 :]), (*x.strides[:dim], *x.strides[dim + 1 :]), index * x.strides[dim]


slice_op = PartView(
    "slice", _build_slice,
    lambda g, *, dim, start, step, x_shape: embed_op(g, dim=dim, start=start, step=step, shape=x_shape),
    settings=("dim", "start", "stop", "step"),
)  # fmt: skip
select_op = PartView(
    "select", _build_select,
    lambda g, *, dim, index, x_shape: embed_op(unsqueeze_op(g, dim=dim), dim=dim, start=index, step=1, shape=x_shape),
    settings=("dim", "index"),
)  # fmt: skip


def _build_embed(g: Tensor, dim: int, start: int, step: int, shape: tuple[int, ...]) -> tuple[list[Layout], Launch]:
    """Zeros of `shape` with g in a slice of one dimension: the transpose of `slice`."""
    out = layout(g.dtype, shape, None, compute)
    zeros = fill_launch("zeros", out)
    part_shape, part_strides, offset = _build_slice(out, dim, start, start + g.shape[dim] * step, step)
    part = layout(g.dtype, part_shape, part_strides, compute, aligned=(offset * g.dtype.itemsize) % 16 == 0)
    copy = pointwise_launch("slice_backward", COPY.lower(((g.dtype, 2),), [None]), [part], [g.layout])
    skip = offset * g.dtype.itemsize

    def launch(to: int, source: int) -> None:
        zeros(to, 0)
        copy(to + skip, source)

    return [out], launch


def _embed_grad(g: Tensor, *, dim: int, start: int, step: int, g_shape: tuple[int, ...]) -> Tensor:
    return slice_op(g, dim=dim, start=start, stop=start + g_shape[dim] * step, step=step)


embed_op: Kernel = Kernel(
    "slice_backward", ("g",), _build_embed, {"g": _embed_grad}, settings=("dim", "start", "step", "shape")
)


@functools.lru_cache(maxsize=1024)
def fill_launch(name: str, out: Layout) -> Launch:
    """A launch that fills `out`; takes its address and the number."""
    number = (out.dtype, NUMBER)
    return pointwise_launch(name, COPY.lower((number,), [out.dtype]), [out], [])


holders.append(fill_launch.cache_clear)


def select(x: Tensor, dim: int, index: int) -> Tensor:
    """The part at one index of a dimension. A view.

    Shape: without `dim`.
    Dtype: the input's.
    Raises:
        IndexError: `dim` or `index` is out of range; the tensor is 0-dimensional.
    """
    if x.ndim == 0:
        raise IndexError("select() cannot be applied to a 0-dim tensor.")
    d = wrap_dim(dim, x.ndim)
    size = x.shape[d]
    if not -size <= index < size:
        raise IndexError(f"index {index} is out of bounds for dimension {d} with size {size}")
    return select_op(x, dim=d, index=index % size)


def narrow(x: Tensor, dim: int, start: Any, length: int) -> Tensor:
    """`length` elements of a dimension from `start`, a number or a 0-dimensional tensor, on. A view.

    Shape: with size `length` at `dim`.
    Dtype: the input's.
    Raises:
        IndexError: `dim` or `start` is out of range.
        RuntimeError: `length` reaches beyond the dimension or is negative; the tensor is 0-dimensional.
    """
    if x.ndim == 0:
        raise RuntimeError("narrow() cannot be applied to a 0-dim tensor.")
    d = wrap_dim(dim, x.ndim)
    if isinstance(start, Tensor):
        if start.ndim or start.is_floating_point() or start.dtype.category == BOOL:
            raise RuntimeError("start must be an 0-dim integral Tensor.")
        start = int(start.item())
    size = x.shape[d]
    if not -size <= start <= size:
        raise IndexError(f"start out of range (expected to be in range of [{-size}, {size}], but got {start})")
    start = start + size if start < 0 else start
    if length < 0 or start < 0 or start + length > size:
        raise RuntimeError(f"start ({start}) + length ({length}) exceeds dimension size ({size}).")
    return slice_op(x, dim=d, start=start, stop=start + length, step=1)


unbind_op = PartView("unbind", _build_select, select_op.formulas["x"], settings=("dim", "index"))
split_op = PartView("split", _build_slice, slice_op.formulas["x"], settings=("dim", "start", "stop", "step"))


def _as_outputs(name: str, views: list[Tensor]) -> tuple[Tensor, ...]:
    """Views that one function returns together: a recorded write to one could not be told to the others."""
    for i, v in enumerate(views):
        if v.alias is not None and v.alias.creation == DEFAULT:
            v.alias.creation, v.alias.output = MULTI_OUTPUT, (name, i)
    return tuple(views)


def unbind(x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """The parts at each index of a dimension. Views.

    Shape: as many tensors as `dim` is long, each without it.
    Dtype: the input's.
    Raises:
        IndexError: `dim` is out of range.
    """
    d = wrap_dim(dim, x.ndim)
    return _as_outputs("Unbind", [unbind_op(x, dim=d, index=i) for i in range(x.shape[d])])


def split(x: Tensor, size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Pieces of `size` along a dimension (the last may be smaller), or of the sizes given. Views.

    Shape: the input's, except at `dim`.
    Dtype: the input's.
    Raises:
        RuntimeError: `size` is not positive; sizes do not add up to the dimension; the tensor is 0-dimensional.
        IndexError: `dim` is out of range.
    """
    if x.ndim == 0:
        raise RuntimeError("split expects at least a 1-dimensional tensor")
    d = wrap_dim(dim, x.ndim)
    total = x.shape[d]
    if isinstance(size, int):
        if size <= 0:
            raise RuntimeError(f"split expects split_size be positive, but got split_size={size}")
        sizes = [min(size, total - at) for at in range(0, total, size)] or [0]
    else:
        sizes = list(size)
        if sum(sizes) != total:
            raise RuntimeError(
                f"split_with_sizes expects split_sizes to sum exactly to {total}, but got split_sizes={sizes}"
            )
    ends = list(itertools.accumulate(sizes, initial=0))
    return _as_outputs(
        "Split", [split_op(x, dim=d, start=a, stop=b, step=1) for a, b in zip(ends, ends[1:], strict=False)]
    )


def chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most `chunks` pieces of equal size along a dimension (the last may be smaller). Views.

    Shape: the input's, except at `dim`.
    Dtype: the input's.
    Raises:
        RuntimeError: `chunks` is not positive; the tensor is 0-dimensional.
        IndexError: `dim` is out of range.
    """
    if x.ndim == 0:
        raise RuntimeError("chunk expects at least a 1-dimensional tensor")
    if chunks <= 0:
        raise RuntimeError(f"chunk expects `chunks` to be greater than 0, got: {chunks}")
    if x.shape[wrap_dim(dim, x.ndim)] == 0:
        return split(x, [0] * chunks, dim)
    return split(x, max(1, -(-x.shape[wrap_dim(dim, x.ndim)] // chunks)), dim)
