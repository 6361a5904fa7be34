"""Elements moved, repeated, padded, and cut along diagonals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

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
    fill_launch,
    flatten,
    narrow,
    permute,
    reshape,
    slice_op,
    transpose,
    unsqueeze,
)
from tgrad.tensor import Tensor


# --- views -----------------------------------------------------------------------------------------------------------
def unflatten(input: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
    """One dimension cut into several; one size may be -1.

    Raises:
        RuntimeError: the sizes do not multiply to the dimension's.
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
    """All elements as a vector; a view where that is possible."""
    return contiguous(reshape(input, (-1,)))


def movedim(input: Tensor, source: Any, destination: Any) -> Tensor:
    """Dimensions moved to other positions, the others kept in order.

    Raises:
        RuntimeError: not as many sources as destinations, or one is named twice.
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
    """Two dimensions swapped."""
    return transpose(input, axis0, axis1)


def broadcast_to(input: Tensor, size: Sequence[int]) -> Tensor:
    """A view expanded to a shape."""
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
    """A view of a diagonal of two dimensions, as the last one.

    Raises:
        RuntimeError: the two dimensions are one.
    """
    a, b = wrap_dim(dim1, input.ndim), wrap_dim(dim2, input.ndim)
    if a == b:
        raise RuntimeError(f"diagonal dimensions cannot be identical {dim1}, {dim2}")
    return diagonal_op(input, offset=offset, dim1=a, dim2=b)


def diag(input: Tensor, diagonal: int = 0) -> Tensor:
    """A copy of a matrix's diagonal, or a matrix with a vector on its diagonal and zeros elsewhere.

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

    Gradients flow through parts of input that no two elements of the view share, strides of 0 apart.

    Raises:
        RuntimeError: it reaches outside the storage, or a gradient could not flow.
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
    offset = first - own
    if input.requires_grad and current().record:
        moving = [(n, s) for n, s in zip(size, stride, strict=True) if s]
        overlap = may_overlap_itself([n for n, _ in moving], [s for _, s in moving])
        if offset < 0 or offset + reach > input.layout.extent or overlap:
            raise RuntimeError("as_strided: a gradient needs a view inside input whose elements do not overlap")
    return as_strided_op(input, shape=size, strides=stride, offset=offset)


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


def flip(input: Tensor, *dims: Any) -> Tensor:
    """A copy with dimensions read backwards.

    Raises:
        RuntimeError: a dimension is named twice.
    """
    named = [wrap_dim(d, input.ndim) for d in _sizes(dims)]
    if len(set(named)) != len(named):
        raise RuntimeError("dim appears multiple times in the list of dims")
    return flip_op(input, dims=tuple(sorted(d for d in named if input.ndim)))


# --- repetition ------------------------------------------------------------------------------------------------------
def repeat(input: Tensor, *repeats: Any) -> Tensor:
    """Copies of input side by side, as many along each dimension as said.

    Raises:
        RuntimeError: fewer numbers than dimensions.
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
    """As `repeat`; missing numbers are 1."""
    times = _sizes(dims)
    return repeat(input, *(1,) * (input.ndim - len(times)), *times)


def repeat_interleave(input: Tensor, repeats: Any, dim: int | None = None, *, output_size: int | None = None) -> Tensor:
    """Each element (each slice of `dim`) several times in a row; repeats is a number or a vector of them.

    Raises:
        RuntimeError: repeats is negative or of another length.
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


# --- padding ---------------------------------------------------------------------------------------------------------
def _build_pad(x: Tensor, value: float, pads: tuple[tuple[int, int], ...]) -> tuple[list[Layout], Launch]:
    shape = tuple(before + n + after for n, (before, after) in zip(x.shape, pads, strict=True))
    out = layout(x.dtype, shape, None, compute)
    skip = sum(before * s for (before, _), s in zip(pads, out.strides, strict=True)) * x.dtype.itemsize
    part = layout(x.dtype, tuple(x.shape), out.strides, compute, skip % 16 == 0)
    fill = fill_launch("pad", out) if out.numel else None
    copy = pointwise_launch("pad", COPY.lower(((x.dtype, 2),), [None]), [part], [x.layout])

    def launch(to: int, source: int, number: float) -> None:
        if fill is not None:
            fill(to, number)
            copy(to + skip, source)

    return [out], launch


def _unpad(g: Tensor, *, pads: tuple[tuple[int, int], ...]) -> Tensor:
    for d, (before, after) in enumerate(pads):
        if before or after:
            g = slice_op(g, dim=d, start=before, stop=g.shape[d] - after, step=1)
    return g


pad_op = Kernel("constant_pad_nd", ("x", "value"), _build_pad, {"x": _unpad}, settings=("pads",))


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Elements of one value put around the last dimensions: (before, after) of the last one, of the one before it, ...

    A negative number cuts elements off.

    Raises:
        RuntimeError: an odd count of numbers, or more than dimensions. NotImplementedError: another mode.
    """
    pad = list(pad)
    if mode != "constant":
        raise NotImplementedError(f"pad: mode {mode!r} is not supported, only 'constant'")
    if len(pad) % 2:
        raise RuntimeError("Padding length must be divisible by 2")
    if len(pad) > 2 * input.ndim:
        raise RuntimeError(
            f"Padding length should be less than or equal to two times the input dimension. Padding length {len(pad)}, "
            f"input of dimension {input.ndim}"
        )
    out = input
    pairs = [(0, 0)] * (input.ndim - len(pad) // 2) + list(zip(pad[-2::-2], pad[-1::-2], strict=True))
    for d, (before, after) in enumerate(pairs):
        if input.shape[d] + before + after < 0:
            raise RuntimeError(
                f"The input size {input.shape[d]}, plus negative padding {before} and {after}, resulted in a negative "
                f"output size, which is invalid. Check dimension {d} of your input."
            )
        if before < 0 or after < 0:
            out = narrow(out, d, max(0, -before), out.shape[d] - max(0, -before) - max(0, -after))
    number: Any = 0 if value is None else value
    if input.dtype.category < 2:
        number = int(number)
    return pad_op(out, number, pads=tuple((max(0, a), max(0, b)) for a, b in pairs))


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

    Raises:
        RuntimeError: fewer than two dimensions.
    """
    return _triangle("tril", input, diagonal, False)


def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """Zeros below a diagonal of each matrix.

    Raises:
        RuntimeError: fewer than two dimensions.
    """
    return _triangle("triu", input, diagonal, True)


BOTH = (unflatten, ravel, movedim, swapaxes, broadcast_to, diagonal, diag, as_strided, flip, tile, repeat_interleave,
        tril, triu)  # fmt: skip
ALIASES: dict[str, Any] = {"moveaxis": movedim, "swapdims": swapaxes}
METHODS: dict[str, Any] = {"repeat": repeat}
