"""Loads and stores of interpreted kernels, vectorised: methods for Triton's `InterpreterBuilder`.

Triton keeps a block of pointers as a block of addresses and visits them one at a time. Here a block of pointers made in
a kernel is one address and a block of element offsets (`Pointers`): consecutive elements are copied as a slice, others
gathered or scattered by numpy, and address arithmetic is mostly left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter

_ORIGIN = 4096  # numpy takes address 0 for "no memory"; any other that is a multiple of every item size serves


class _Everywhere:
    """To numpy, an array over all memory. A slice of it is the cheapest view of an address."""

    def __init__(self, dtype: np.dtype) -> None:
        size = 2**60 // dtype.itemsize
        self.__array_interface__ = {"data": (_ORIGIN, False), "shape": (size,), "typestr": dtype.str, "version": 3}


_everywhere: dict[np.dtype, np.ndarray] = {}


def view(address: int, count: int, dtype: np.dtype) -> np.ndarray:
    """`count` elements of memory at `address`. Keeps nothing alive."""
    first, rest = divmod(address - _ORIGIN, dtype.itemsize)
    if rest:
        return view(address, count * dtype.itemsize, np.dtype(np.uint8)).view(dtype)
    if dtype not in _everywhere:
        _everywhere[dtype] = np.asarray(_Everywhere(dtype))
    return _everywhere[dtype][first : first + count]


class Pointers:
    """The handle of pointers to `base` plus `index` elements (None: zero everywhere), `index` being a handle too."""

    def __init__(self, base: int, index: Any, shape: tuple[int, ...], dtype: tl.pointer_type) -> None:
        self.base = base
        self.index = index
        self.shape = shape
        self.dtype = dtype
        self.attr: dict[str, Any] = {}

    @property
    def data(self) -> np.ndarray:
        """The addresses, for what of Triton's asks for them."""
        base = np.uint64(self.base % 2**64)
        if self.index is None:
            return np.full(self.shape, base)
        return base + self.index.data.astype(np.uint64) * np.uint64(itemsize(self.dtype))

    def get_element_ty(self) -> tl.dtype:
        return self.dtype.element_ty

    def set_attr(self, key: str, value: Any) -> None:
        self.attr[key] = value

    def clone(self) -> Pointers:
        return Pointers(self.base, self.index, self.shape, self.dtype)


def itemsize(pointer: tl.pointer_type) -> int:
    return max(1, pointer.element_ty.primitive_bitwidth // 8)  # a bool takes a byte


# --- bounds, for tests ---------------------------------------------------------------------------------------------


class Bounds:
    """The buffers that one launch may touch: the live ones that its pointer arguments point into."""

    def __init__(self, kernel: str, live: Iterable[tuple[int, int]], arguments: Iterable[int]) -> None:
        addresses = sorted(set(arguments))
        self.kernel = kernel
        self.spans = [(a, b) for a, b in live if any(a <= at < b for at in addresses)]

    def check(self, what: str, addresses: Any, size: int) -> None:
        """Raises IndexError unless `size` bytes at each of `addresses` lie inside one of the buffers."""
        addresses = np.asarray(addresses, np.uint64).reshape(-1)
        inside = np.zeros(addresses.shape, bool)
        for a, b in self.spans:
            inside |= (addresses >= np.uint64(a)) & (addresses + np.uint64(size) <= np.uint64(b))
        if not inside.all():
            at = int(addresses[~inside][0])
            where = ", ".join(f"{a:#x}..{b:#x}" for a, b in self.spans) or "no live buffer"
            program = triton_interpreter.interpreter_builder.grid_idx
            raise IndexError(
                f"{self.kernel}, program {program}: {what} of {at:#x}..{at + size:#x} ({np.count_nonzero(~inside)} of "
                f"{inside.size} elements) is out of range: its arguments point into {where}"
            )


bounds: Bounds | None = None  # of the launch that is running


# --- methods of the builder ----------------------------------------------------------------------------------------


def create_addptr(self: Any, ptr: Any, offset: Any) -> Any:
    if type(ptr) is not Pointers:  # a pointer that was loaded or selected
        return triton_interpreter.InterpreterBuilder.create_addptr(self, ptr, offset)
    by = offset.data
    if by.size == 1 or not any(by.strides):  # the same everywhere
        base = ptr.base + int(by.flat[0].astype(np.int64)) * itemsize(ptr.dtype)
        return Pointers(base, ptr.index, ptr.shape if by.size == 1 else by.shape, ptr.dtype)
    if ptr.index is not None:
        # int64 whatever the operands: the sum of two int32 offsets may not fit
        total = np.add(ptr.index.data, by, dtype=np.int64, casting="same_kind")
        offset = triton_interpreter.TensorHandle(total, tl.int64)
    return Pointers(ptr.base, offset, by.shape, ptr.dtype)


def create_splat(self: Any, ret_ty: tl.block_type, arg: Any) -> Any:
    shape = tuple(ret_ty.shape)
    if type(arg) is Pointers:
        return Pointers(arg.base, None, shape, arg.dtype)
    x = arg.data
    if x.size != 1 or not x.flags.c_contiguous:
        return triton_interpreter.InterpreterBuilder.create_splat(self, ret_ty, arg)
    # All strides zero: no memory is filled, and numpy has faster loops for such operands.
    splat = np.ndarray(shape, x.dtype, x, 0, (0,) * len(shape))
    return triton_interpreter.TensorHandle(splat, arg.dtype.scalar)


def create_broadcast(self: Any, arg: Any, shape: Any) -> Any:
    shape = tuple(shape)
    if type(arg) is Pointers:
        index = arg.index
        if index is not None:
            index = triton_interpreter.TensorHandle(np.broadcast_to(index.data, shape), index.dtype)
        return Pointers(arg.base, index, shape, arg.dtype)
    return triton_interpreter.TensorHandle(np.broadcast_to(arg.data, shape), arg.dtype.scalar)


def create_expand_dims(self: Any, arg: Any, axis: int) -> Any:
    if type(arg) is Pointers and arg.index is not None:
        data = np.expand_dims(arg.index.data, axis)
        return Pointers(arg.base, triton_interpreter.TensorHandle(data, arg.index.dtype), data.shape, arg.dtype)
    return triton_interpreter.InterpreterBuilder.create_expand_dims(self, arg, axis)


def create_bitcast(self: Any, src: Any, dst_type: Any) -> Any:
    to = dst_type.scalar
    if type(src) is Pointers and to.is_ptr() and itemsize(to) == itemsize(src.dtype):  # bool as int8
        return Pointers(src.base, src.index, src.shape, to)
    data = src.data
    if data.itemsize * 8 != to.primitive_bitwidth and not data.flags.c_contiguous:
        data = np.ascontiguousarray(data)
    return triton_interpreter.TensorHandle(data.view(triton_interpreter._get_np_dtype(dst_type)), to)


def create_masked_load(
    self: Any, ptrs: Any, mask: Any, other: Any, cache_modifier: Any, eviction_policy: Any, is_volatile: Any
) -> Any:
    ty = ptrs.get_element_ty()
    dtype = triton_interpreter._get_np_dtype(ty)
    m = np.asarray(mask.data)
    count = int(np.count_nonzero(m))
    if count == m.size:
        return triton_interpreter.TensorHandle(_read(ptrs, None, count, dtype), ty)
    if other is not None:
        out = np.array(np.broadcast_to(other.data, m.shape), dtype)
    elif bounds is not None and ty.is_floating() and not ty.is_fp8():  # undefined on a GPU: show its use
        out = np.full(m.shape, 0x7FC0 if ty.is_bf16() else np.nan, dtype)
    else:
        out = np.zeros(m.shape, dtype)
    if count:
        if _leading(m, count) and _first(ptrs) is not None:
            out[:count] = _read(ptrs, None, count, dtype)
        else:
            out[m] = _read(ptrs, m, count, dtype)
    return triton_interpreter.TensorHandle(out, ty)


def create_load(self: Any, ptr: Any, cache_modifier: Any, eviction_policy: Any, is_volatile: Any) -> Any:
    ty = ptr.get_element_ty()
    data = _read(ptr, None, math.prod(_shape(ptr)), triton_interpreter._get_np_dtype(ty))
    return triton_interpreter.TensorHandle(data, ty)


def create_masked_store(self: Any, ptrs: Any, value: Any, mask: Any, cache_modifier: Any, eviction_policy: Any) -> None:
    dtype = triton_interpreter._get_np_dtype(ptrs.get_element_ty())
    m = np.asarray(mask.data)
    count = int(np.count_nonzero(m))
    if count == m.size:
        _write(ptrs, None, count, value.data, dtype)
    elif count:
        if _leading(m, count) and _first(ptrs) is not None:
            _write(ptrs, None, count, value.data[:count], dtype)
        else:
            _write(ptrs, m, count, value.data[m], dtype)


def create_store(self: Any, ptr: Any, val: Any, cache_modifier: Any, eviction_policy: Any) -> None:
    dtype = triton_interpreter._get_np_dtype(ptr.get_element_ty())
    _write(ptr, None, math.prod(_shape(ptr)), val.data, dtype)


def create_atomic_rmw(self: Any, rmw_op: Any, ptr: Any, val: Any, mask: Any, sem: Any, scope: Any) -> Any:
    if bounds is not None:
        bounds.check("atomic access", ptr.data[np.asarray(mask.data)], itemsize(ptr.dtype.scalar))
    return triton_interpreter.InterpreterBuilder.create_atomic_rmw(self, rmw_op, ptr, val, mask, sem, scope)


def create_atomic_cas(self: Any, ptr: Any, cmp: Any, val: Any, sem: Any, scope: Any) -> Any:
    if bounds is not None:
        bounds.check("atomic access", ptr.data, itemsize(ptr.dtype.scalar))
    return triton_interpreter.InterpreterBuilder.create_atomic_cas(self, ptr, cmp, val, sem, scope)


METHODS = (
    create_addptr, create_splat, create_broadcast, create_expand_dims, create_bitcast, create_masked_load, create_load,
    create_masked_store, create_store, create_atomic_rmw, create_atomic_cas,
)  # fmt: skip


# --- accesses ------------------------------------------------------------------------------------------------------


def _shape(ptrs: Any) -> tuple[int, ...]:
    return ptrs.shape if type(ptrs) is Pointers else ptrs.data.shape


def _leading(mask: np.ndarray, count: int) -> bool:
    """Whether the true elements of a 1-D mask are its first ones, as those of `index < n` are."""
    return mask.ndim == 1 and np.count_nonzero(mask[:count]) == count


def _first(ptrs: Any) -> int | None:
    """The first offset if the offsets are consecutive, else None. Kept with the index: loads and stores share it."""
    if type(ptrs) is not Pointers:
        return None
    if ptrs.index is None:
        return 0 if math.prod(ptrs.shape) == 1 else None
    attr = ptrs.index.attr
    if "consecutive" not in attr:
        at = ptrs.index.data
        consecutive = (
            at.ndim == 1
            and int(at[-1]) - int(at[0]) == at.size - 1  # cheap, and enough to rule most others out
            and (at.size < 3 or np.count_nonzero(at[1:] - at[:-1] != 1) == 0)
        )
        attr["consecutive"] = int(at[0]) if consecutive else None
    return attr["consecutive"]


def _window(ptrs: Any, mask: np.ndarray | None, dtype: np.dtype, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The memory between the lowest and the highest of the pointers, and the position of each of them there."""
    if type(ptrs) is not Pointers:
        addresses = ptrs.data if mask is None else ptrs.data[mask]
        base = int(addresses.min())
        at = ((addresses - np.uint64(base)) // np.uint64(dtype.itemsize)).astype(np.int64)
    elif ptrs.index is None:
        base = ptrs.base
        at = np.zeros(ptrs.shape if mask is None else np.count_nonzero(mask), np.int64)
    else:
        base = ptrs.base
        at = ptrs.index.data.astype(np.int64, copy=False)
        if mask is not None:
            at = at[mask]
    low, high = int(at.min()), int(at.max())
    if bounds is not None:
        bounds.check(what, base + at * dtype.itemsize, dtype.itemsize)
    memory = view(base + low * dtype.itemsize, high - low + 1, dtype)
    return memory, at - low if low else at


def _read(ptrs: Any, mask: np.ndarray | None, count: int, dtype: np.dtype) -> np.ndarray:
    """The `count` first elements if the pointers are consecutive and there is no mask, else the masked ones."""
    first = _first(ptrs) if mask is None else None
    if first is None:
        memory, at = _window(ptrs, mask, dtype, "load")
        return memory.take(at)
    address = ptrs.base + first * dtype.itemsize
    if bounds is not None:
        bounds.check("load", address + np.arange(count) * dtype.itemsize, dtype.itemsize)
    return view(address, count, dtype).copy()


def _write(ptrs: Any, mask: np.ndarray | None, count: int, value: np.ndarray, dtype: np.dtype) -> None:
    first = _first(ptrs) if mask is None else None
    if first is None:
        memory, at = _window(ptrs, mask, dtype, "store")
        memory[at] = value
        return
    address = ptrs.base + first * dtype.itemsize
    if bounds is not None:
        bounds.check("store", address + np.arange(count) * dtype.itemsize, dtype.itemsize)
    view(address, count, dtype)[:] = value
