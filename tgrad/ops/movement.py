"""Elements moved, repeated, and cut along diagonals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tgrad import host_copies
from tgrad.aliasing import _embed_op, as_strided_op
from tgrad.device import compute
from tgrad.kernels.indexing import prepare_triangle
from tgrad.kernels.launch import Launch
from tgrad.layout import Layout, infer_size, layout, may_overlap_itself, numel, wrap_dim
from tgrad.modes import current
from tgrad.op import Kernel, View, pointwise_launch, result_layout
from tgrad.ops import creation, pointwise as p
from tgrad.ops.indexing import index_select
from tgrad.ops.reduce import expand
from tgrad.ops.views import (
    COPY,
    _sizes,
    contiguous,
    flatten,
    permute,
    reshape,
    transpose,
    unsqueeze,
)
from tgrad.tensor import Tensor


# --- views -----------------------------------------------------------------------------------------------------------
def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """One dimension cut into several. A view where strides allow it.

    Shape: the dimension becomes `sizes`, of which one may be -1.
    Dtype: the input's.
    Raises:
        RuntimeError: `sizes` is empty, or does not multiply to the dimension.
        IndexError: `dim` is out of range.
    """
    d = wrap_dim(dim, input.ndim)
    if not sizes:
        raise RuntimeError("unflatten: sizes must be non-empty")
    try:
        inner = infer_size(tuple(sizes), input.shape[d])
    except RuntimeError:
        raise RuntimeError(
            f"unflatten: Provided sizes {list(sizes)} don't multiply up to the size of dim {d} ({input.shape[d]}) in "
            "the input tensor"
        ) from None
    return reshape(input, (*input.shape[:d], *inner, *input.shape[d + 1 :]))


def ravel(input: Tensor) -> Tensor:
    """All elements in row-major order; a view where that is possible.

    Shape: a vector of all elements.
    Dtype: the input's.
    Raises: nothing.
    """
    return contiguous(reshape(input, (-1,)))


def movedim(input: Tensor, source: Any, destination: Any) -> Tensor:
    """Dimensions moved to other positions, the others kept in order. A view.

    Shape: the sizes in their new order.
    Dtype: the input's.
    Raises:
        RuntimeError: not as many sources as destinations, or one is named twice.
        TypeError: one of them is an int, the other a sequence.
        IndexError: a dimension is out of range.
    """
    if isinstance(source, int) is not isinstance(destination, int):
        raise TypeError("movedim(): source and destination must both be ints, or both sequences of them")
    a = [wrap_dim(d, input.ndim) for d in ([source] if isinstance(source, int) else source)]
    b = [wrap_dim(d, input.ndim) for d in ([destination] if isinstance(destination, int) else destination)]
    if len(a) != len(b):
        raise RuntimeError(
            f"movedim: Invalid source or destination dims: source ({a} dims) should contain the same number of dims as "
            f"destination ({b} dims)"
        )
    for name, dims in (("source", a), ("destination", b)):
        if len(set(dims)) != len(dims):
            raise RuntimeError(f"movedim: repeated dim in `{name}` ({dims})")
    rest = iter(d for d in range(input.ndim) if d not in a)
    at = dict(zip(b, a, strict=True))
    return permute(input, [at[d] if d in at else next(rest) for d in range(input.ndim)])


def swapaxes(input: Tensor, axis0: int, axis1: int) -> Tensor:
    """Two dimensions swapped. A view.

    Shape: the two sizes swapped.
    Dtype: the input's.
    Raises:
        IndexError: a dimension is out of range.
    """
    return transpose(input, axis0, axis1)


def broadcast_to(input: Tensor, size: Sequence[int]) -> Tensor:
    """A view expanded to a shape; -1 keeps a size.

    Shape: `size`.
    Dtype: the input's.
    Raises:
        RuntimeError: another size than 1 would have to change.
    """
    return expand(input, *size)


def _build_diagonal(x: Layout, offset: int, dim1: int, dim2: int) -> tuple:
    rows, columns = x.shape[dim1], x.shape[dim2]
    first, second = x.strides[dim1], x.strides[dim2]
    size = max(0, min(rows, columns - offset) if offset >= 0 else min(rows + offset, columns))
    rest = [d for d in range(len(x.shape)) if d not in (dim1, dim2)]
    skip = (offset * second if offset >= 0 else -offset * first) if size else 0
    return (*(x.shape[d] for d in rest), size), (*(x.strides[d] for d in rest), first + second), skip


def _diagonal_grad(g: Tensor, *, offset: int, dim1: int, dim2: int, x_shape: tuple[int, ...]) -> Tensor:
    whole = layout(g.dtype, x_shape, None, compute)
    part = _build_diagonal(whole, offset, dim1, dim2)
    return _embed_op(g, shape=x_shape, strides=whole.strides, part=part)


diagonal_op = View("diagonal", _build_diagonal, _diagonal_grad, settings=("offset", "dim1", "dim2"))


def diagonal(input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """A view of a diagonal of two dimensions, as the last one; `offset` counts from the main one, upwards.

    Shape: without `dim1` and `dim2`, and with the diagonal's length at the end.
    Dtype: the input's.
    Raises:
        RuntimeError: the two dimensions are one.
        IndexError: a dimension is out of range.
    """
    a, b = wrap_dim(dim1, input.ndim), wrap_dim(dim2, input.ndim)
    if a == b:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    return diagonal_op(input, offset=offset, dim1=a, dim2=b)


def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """A copy of a matrix's diagonal, or a matrix with a vector on its diagonal and zeros elsewhere.

    Shape: (M, N) gives the diagonal's length; (N,) gives (N + |diagonal|, N + |diagonal|).
    Dtype: the input's.
    Raises:
        RuntimeError: neither a vector nor a matrix.
    """
    if input.ndim == 2:
        return p.clone(diagonal_op(input, offset=diagonal, dim1=0, dim2=1))
    if input.ndim != 1:
        raise RuntimeError(f"diag(): Supports 1D or 2D tensors. Got {input.ndim}D")
    n = input.shape[0] + abs(diagonal)
    return _diagonal_grad(input, offset=diagonal, dim1=0, dim2=1, x_shape=(n, n))


def as_strided(input: Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int | None = None) -> Tensor:
    """A view of input's memory with any sizes and strides, from `storage_offset` elements of the storage on.

    Gradients of elements that share a place are added up; of elements outside input they are dropped.

    Shape: `size`.
    Dtype: the input's.
    Raises:
        RuntimeError: it reaches outside the storage; sizes and strides differ in number or are negative; input requires
            grad and its elements overlap.
    """
    size, stride = tuple(size), tuple(stride)
    if len(size) != len(stride):
        raise RuntimeError("mismatch in length of strides and shape")
    if any(s < 0 for s in (*size, *stride)):
        raise RuntimeError("as_strided: sizes and strides must not be negative")
    itemsize = input.dtype.itemsize
    own = (input.ptr - input.storage.ptr) // itemsize
    first = own if storage_offset is None else storage_offset
    reach = 1 + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) if numel(size) else 0
    room = input.storage.nbytes // itemsize
    if first < 0 or first + reach > room:
        raise RuntimeError(
            f"setStorage: sizes {list(size)}, strides {list(stride)}, storage offset {first}, and itemsize {itemsize} "
            f"requiring a storage size of {(first + reach) * itemsize} are out of bounds for storage of size "
            f"{input.storage.nbytes}"
        )
    if input.requires_grad and current().record and may_overlap_itself(tuple(input.shape), input.stride()):
        raise RuntimeError("as_strided: a gradient needs an input whose elements do not overlap: clone() it first")
    return as_strided_op(input, shape=size, strides=stride, offset=first - own)


# --- order -----------------------------------------------------------------------------------------------------------
def _build_flip(x: Tensor, dims: tuple[int, ...]) -> tuple[list[Layout], Launch]:
    out = result_layout([x.layout], x.dtype)
    backwards = tuple(-s if d in dims else s for d, s in enumerate(x.stride()))
    source = layout(x.dtype, tuple(x.shape), backwards, compute, False)
    skip = sum((x.shape[d] - 1) * x.stride(d) for d in dims) * x.dtype.itemsize
    copy = pointwise_launch("flip", COPY.lower(((x.dtype, 2),), [None]), [out], [source])
    return [out], lambda to, at: copy(to, at + skip)


flip_op: Kernel = Kernel(
    "flip", ("x",), _build_flip, {"x": lambda g, *, dims: flip_op(g, dims=dims)}, settings=("dims",)
)
flip_op.on_host = host_copies.flip


def flip(input: Tensor, *axes: Any, dims: Any = None) -> Tensor:
    """A copy with dimensions read backwards.

    Shape: any; the result has the input's.
    Dtype: the input's.
    Raises:
        RuntimeError: a dimension is named twice.
        IndexError: one is out of range.
    """
    named = [wrap_dim(d, input.ndim) for d in _sizes(axes if dims is None else (dims,))]
    if len(set(named)) != len(named):
        raise RuntimeError("dim appears multiple times in the list of dims")
    return flip_op(input, dims=tuple(sorted(d for d in named if input.ndim)))


# --- repetition ------------------------------------------------------------------------------------------------------
def repeat(input: Tensor, *repeats: Any) -> Tensor:
    """Copies of input side by side, as many along each dimension as said.

    Shape: each size times its number; missing leading sizes are 1.
    Dtype: the input's.
    Raises:
        RuntimeError: fewer numbers than dimensions, or a negative one.
    """
    times = _sizes(repeats)
    if len(times) < input.ndim:
        raise RuntimeError("Number of dimensions of repeat dims can not be smaller than number of dimensions of tensor")
    if any(n < 0 for n in times):
        raise RuntimeError(f"Trying to create tensor with negative dimension: repeat {list(times)}")
    shape = (*(1,) * (len(times) - input.ndim), *input.shape)
    pairs = [n for t, s in zip(times, shape, strict=True) for n in (t, s)]
    apart = reshape(input, [n for s in shape for n in (1, s)])
    out = reshape(expand(apart, *pairs) if pairs else apart, [t * s for t, s in zip(times, shape, strict=True)])
    return p.clone(out) if out.storage is input.storage else out


def tile(input: Tensor, *dims: Any) -> Tensor:
    """Copies of input side by side, as many along each dimension as said; missing leading numbers are 1.

    Shape: each size times its number.
    Dtype: the input's.
    Raises:
        RuntimeError: a number is negative.
    """
    times = _sizes(dims)
    return repeat(input, *(1,) * (input.ndim - len(times)), *times)


def repeat_interleave(input: Tensor, repeats: Any, dim: int | None = None, *, output_size: int | None = None) -> Tensor:
    """Each element (each slice of `dim`) several times in a row; repeats is a number or a vector of them.

    Shape: the dimension's size times `repeats`, or their sum; without `dim`, of the flattened input.
    Dtype: the input's.
    Raises:
        RuntimeError: `repeats` is negative or of another length.
        IndexError: `dim` is out of range.
    """
    if dim is None:
        input, dim = flatten(input), 0
        input = reshape(input, (-1,))
    d = wrap_dim(dim, input.ndim)
    if isinstance(repeats, Tensor) and repeats.numel() == 1:
        repeats = int(repeats.item())
    if isinstance(repeats, int):
        if repeats < 0:
            raise RuntimeError("Repeats must be non-negative")
        spread = unsqueeze(input, d + 1)
        wide = expand(spread, *input.shape[: d + 1], repeats, *input.shape[d + 1 :])
        out = reshape(wide, (*input.shape[:d], input.shape[d] * repeats, *input.shape[d + 1 :]))
        return p.clone(out) if out.storage is input.storage else out
    times = repeats.tolist()
    if len(times) != input.shape[d]:
        raise RuntimeError(
            f"repeats must have the same size as input along dim, but got repeats.size(0) = {len(times)} and "
            f"input.size({d}) = {input.shape[d]}"
        )
    if any(n < 0 for n in times):
        raise RuntimeError("repeats can not be negative")
    return index_select(input, d, creation.tensor(np.repeat(np.arange(len(times)), times), device=compute))


# --- triangles -------------------------------------------------------------------------------------------------------
def _build_triangle(x: Tensor, diagonal: int, upper: bool) -> tuple[list[Layout], Launch | None]:
    if not x.layout.contiguous:
        raise RuntimeError("triangle: expected contiguous matrices")
    out = layout(x.dtype, tuple(x.shape), None, compute)
    if not out.numel:
        return [out], None
    return [out], prepare_triangle(x.dtype.triton, out.numel, x.shape[-2], x.shape[-1], diagonal, upper)


triangle_op: Kernel = Kernel(
    "triangle", ("x",), _build_triangle,
    {"x": lambda g, *, diagonal, upper: triangle_op(contiguous(g), diagonal=diagonal, upper=upper)},
    settings=("diagonal", "upper"),
)  # fmt: skip


def _triangle(name: str, x: Tensor, diagonal: int, upper: bool) -> Tensor:
    if x.ndim < 2:
        raise RuntimeError(f"{name}: input tensor must have at least 2 dimensions")
    return triangle_op(contiguous(x), diagonal=int(diagonal), upper=upper)


def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """Zeros above a diagonal of each matrix.

    Shape: (..., M, N); the result has the input's.
    Dtype: the input's.
    Raises:
        RuntimeError: fewer than two dimensions.
    """
    return _triangle("tril", input, diagonal, False)


def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """Zeros below a diagonal of each matrix.

    Shape: (..., M, N); the result has the input's.
    Dtype: the input's.
    Raises:
        RuntimeError: fewer than two dimensions.
    """
    return _triangle("triu", input, diagonal, True)


BOTH = (unflatten, ravel, movedim, swapaxes, broadcast_to, diagonal, diag, as_strided, flip, tile, repeat_interleave,
        tril, triu)  # fmt: skip
ALIASES: dict[str, Any] = {"moveaxis": movedim, "swapdims": swapaxes}
METHODS: dict[str, Any] = {"repeat": repeat}
