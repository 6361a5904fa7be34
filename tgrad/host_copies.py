"""What CPU tensors can do on a machine with CUDA, where kernels run on the GPU alone: ops that only move elements.

Each stands for the build of an op (`Op.on_host`): it takes the op's arguments and gives the layouts of its results and
a launch, which numpy serves on host memory. Whatever computes is refused (`op.check_devices`). Where the CPU computes,
all ops go through kernels and nothing here is used.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tgrad.device import compute, cpu
from tgrad.dtypes import bfloat16
from tgrad.kernels.launch import Launch
from tgrad.layout import Layout, is_gapless, layout, order_by_stride, strides_in_order
from tgrad.tensor import Tensor

Built = tuple[list[Layout], Launch]


def only_host(tensors: Sequence[Tensor]) -> bool:
    """Whether all are CPU tensors, and the CPU does not compute."""
    return compute is not cpu and bool(tensors) and all(t.layout.device is cpu for t in tensors)


def _array(address: int, of: Layout) -> np.ndarray:
    """The memory of a tensor as an array of its raw values: of bfloat16 the bits."""
    kind = of.dtype.numpy
    if not of.numel:
        return np.empty(of.shape, kind)
    memory: Any = (ctypes.c_ubyte * (of.extent * kind.itemsize)).from_address(address)
    return np.ndarray(of.shape, kind, memory, 0, tuple(s * kind.itemsize for s in of.strides))


def clone(x: Tensor) -> Built:
    """Strides as PyTorch's clone has them: those of x if its elements have no gaps, else dense in the same order."""
    source, shape = x.layout, tuple(x.shape)
    strides = source.strides
    if not is_gapless(source):
        strides = strides_in_order(shape, order_by_stride(shape, [strides]))
    return _copied(source, layout(source.dtype, shape, strides, cpu))


def contiguous(x: Tensor) -> Built:
    return _copied(x.layout, layout(x.dtype, tuple(x.shape), None, cpu))


def _copied(source: Layout, out: Layout) -> Built:
    def launch(to: int, at: int) -> None:
        _array(to, out)[...] = _array(at, source)

    return [out], launch


def copied_into(into: Layout, sources: Sequence[Layout]) -> Launch:
    """A launch that writes a tensor, or a number, into `into`, broadcast and converted: of the op copy, in place."""

    def launch(to: int, value: float) -> None:
        from tgrad.ops.creation import encode  # which stands above this module

        if not sources:
            _array(to, into)[...] = encode(value, into.dtype)
        elif sources[0].dtype is into.dtype:
            _array(to, into)[...] = _array(int(value), sources[0])
        else:
            values = _array(int(value), sources[0])
            if sources[0].dtype is bfloat16:
                values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
            _array(to, into)[...] = encode(values, into.dtype)

    return launch


def cat(*args: Any) -> Built:
    *tensors, dim = args
    shape = list(tensors[0].shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    out, pieces = layout(tensors[0].dtype, tuple(shape), None, cpu), [t.layout for t in tensors]

    def launch(to: int, *sources: int) -> None:
        arrays = [_array(at, piece) for at, piece in zip(sources, pieces, strict=True)]
        np.concatenate(arrays, axis=dim, out=_array(to, out))

    return [out], launch


def flip(x: Tensor, dims: tuple[int, ...]) -> Built:
    source, (out_layouts, _) = x.layout, clone(x)
    (out,) = out_layouts

    def launch(to: int, at: int) -> None:
        _array(to, out)[...] = np.flip(_array(at, source), dims)

    return [out], launch


def get(x: Tensor, index: Tensor, dims: tuple[int, ...], at: int | None) -> Built:
    """`ops.places.get_op`; see there what `dims` and `at` mean, here and below.

    Raises:
        IndexError: when launched, of an index that is out of range.
    """
    source, places, ndim = x.layout, index.layout, len(index.shape)
    if at is None:
        shape = tuple(index.shape)
    else:
        rest = [n for d, n in enumerate(x.shape) if d not in dims]
        shape = (*rest[:at], *index.shape, *rest[at:])
    out = layout(x.dtype, shape, None, cpu)

    def launch(to: int, address: int, where: int) -> None:
        values, found = _array(address, source), _array(where, places)
        if at is None:
            taken = np.take_along_axis(*_along(values, found, dims))
        else:
            taken = np.moveaxis(
                _apart(values, dims)[_coordinates(found, source, dims)], range(ndim), _block(at, ndim)
            )
        _array(to, out)[...] = taken.reshape(shape)

    return [out], launch


def put(x: Tensor, index: Tensor, value: Tensor, dims: tuple[int, ...], at: int | None) -> Built:
    """`ops.places.put_op`."""
    (out,), copy = contiguous(x)
    write = put_into(out, index.layout, value.layout, dims, at)

    def launch(to: int, source: int, where: int, values: int) -> None:
        copy(to, source)
        write(to, where, values)

    return [out], launch


def put_into(into: Layout, places: Layout, values: Layout, dims: tuple[int, ...], at: int | None) -> Launch:
    """A launch that writes values at places; takes the addresses of the three.

    Raises:
        IndexError: when launched, of an index that is out of range; nothing is written then.
    """
    ndim = len(places.shape)

    def launch(to: int, where: int, source: int) -> None:
        target, found, given = _array(to, into), _array(where, places), _array(source, values)
        if at is None:
            target, found, dim = _along(target, found, dims)
            np.put_along_axis(target, found, given.reshape(found.shape), dim)
        else:
            _apart(target, dims)[_coordinates(found, into, dims)] = np.moveaxis(given, _block(at, ndim), range(ndim))

    return launch


def join(a: Any, b: Tensor, size: int, total: int) -> Built:
    """`ops.places.join_op`."""
    left, right = (a.layout if isinstance(a, Tensor) else None), b.layout
    shape = right.shape if left is None else np.broadcast_shapes(left.shape, right.shape)
    out = layout(b.dtype, tuple(shape), None, cpu)

    def launch(to: int, *rest: int) -> None:
        *first, at, size, total = rest if left is not None else (rest[1], rest[0], *rest[2:])
        over = first[0] if left is None else _array(first[0], left)
        index = _array(at, right)
        wrapped = np.where(index < 0, index + size, index)
        _array(to, out)[...] = np.where((wrapped < 0) | (wrapped >= size), total, over * size + wrapped)

    return [out], launch


def _apart(values: np.ndarray, dims: tuple[int, ...]) -> np.ndarray:
    """With the dimensions that are indexed in front."""
    return np.moveaxis(values, dims, range(len(dims)))


def _block(at: int, ndim: int) -> range:
    return range(at, at + ndim)


def _coordinates(index: np.ndarray, of: Layout, dims: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """The index, which counts through `dims`, as one for each of them."""
    sizes = tuple(of.shape[d] for d in dims)
    return np.unravel_index(_inside(index, math.prod(sizes)), sizes)


def _along(values: np.ndarray, index: np.ndarray, dims: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, int]:
    """What numpy's *_along_axis take: arrays of equal sizes but along the dimension."""
    (dim,) = dims or (0,)
    values, index = np.atleast_1d(values), np.atleast_1d(index)
    cut = tuple(slice(None) if d == dim else slice(n) for d, n in enumerate(index.shape))
    return values[cut], _inside(index, values.shape[dim]), dim


def _inside(index: np.ndarray, size: int) -> np.ndarray:
    wrapped = np.where(index < 0, index + size, index)
    outside = (wrapped < 0) | (wrapped >= size)
    if outside.any():
        raise IndexError(f"index {index[outside].flat[0]} is out of bounds for a dimension of size {size}")
    return wrapped
