"""Shortcuts through `triton.language`'s bookkeeping, which costs more than numpy does where blocks are small.

Types and shapes are immutable in use, so what is derived from them is kept; operands of one type and shape need no
promotion and no broadcasting. Whatever a shortcut does not cover takes Triton's way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter


def make_unwrap(slow: Callable) -> Callable:
    """`core._unwrap_if_constexpr`; for most of what it is asked about there is nothing to unwrap."""
    plain = (int, tl.tensor, tl.dtype, tl.block_type, tl.pointer_type, str, bool, float, type(None))

    def unwrap(o: Any) -> Any:
        return o if type(o) in plain else slow(o)

    return unwrap


def make_equal(slow: Callable) -> Callable:
    """`dtype.__eq__`; scalar types are singletons."""

    def equal(self: Any, other: Any) -> bool:
        return self is other or slow(self, other)

    return equal


_known: dict[tuple, dict[str, Any]] = {}  # fields of the block types met so far
_shapes: dict[tuple, Any] = {}
_of_scalar = tl.tuple([]), tl.constexpr(1)


def make_block_type(slow: Callable) -> Callable:
    """`block_type.__init__`, whose checks and names are kept. Types of one shape share the shape object."""

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        values = shape.values if type(shape) is tl.tuple else shape
        key = (element_ty.name, *[v.value if type(v) is tl.constexpr else v for v in values])
        fields = _known.get(key)
        if fields is None:
            slow(self, element_ty, shape)
            if key[1:] not in _shapes:
                self.shape.of_tensor = (tl.tuple([tl.constexpr(n) for n in self.shape]), tl.constexpr(self.numel))
                _shapes[key[1:]] = self.shape
            self.shape = _shapes[key[1:]]
            _known[key] = dict(vars(self))
        else:
            self.__dict__.update(fields)
            self.element_ty = element_ty

    return init


def make_tensor(slow: Callable) -> Callable:
    """`tensor.__init__`, with the shape that it derives from the type."""

    def init(self: Any, handle: Any, type: Any) -> None:
        shape = getattr(type, "shape", None)
        try:
            self.shape, self.numel = _of_scalar if shape is None else shape.of_tensor
        except AttributeError:  # a type from before the patch
            slow(self, handle, type)
            return
        self.handle = handle
        self.type = type
        self.dtype = type.scalar

    return init


def make_type_checking(slow: Callable) -> Callable:
    """`binary_op_type_checking_impl`: both operands in the type and shape that an operation on them has."""
    tensor, handle = tl.tensor, triton_interpreter.TensorHandle
    exact = {"fp32": np.float32, "fp64": np.float64}

    def number(like: Any, value: float) -> Any:
        shape, dtype = like.handle.data.shape, exact[like.dtype.name]
        data = np.ndarray(shape, dtype, np.array([value], dtype), 0, (0,) * len(shape))
        return tensor(handle(data, like.dtype), like.type)

    def check(
        lhs: Any, rhs: Any, allow_lhs_ptr: bool = False, allow_rhs_ptr: bool = False,
        arithmetic_check: bool = True, div_or_mod: bool = False,
    ) -> Any:  # fmt: skip
        left, right = type(lhs), type(rhs)
        if left is tensor and right is tensor:
            dtype = lhs.dtype
            if dtype is rhs.dtype and lhs.shape is rhs.shape and not dtype.is_ptr():
                if not div_or_mod or dtype.primitive_bitwidth > 16:
                    return lhs, rhs
        elif arithmetic_check:
            if left is tensor and (right is float or right is int) and lhs.dtype.name in exact:
                return lhs, number(lhs, rhs)
            if right is tensor and (left is float or left is int) and rhs.dtype.name in exact:
                return number(rhs, lhs), rhs
        return slow(lhs, rhs, allow_lhs_ptr, allow_rhs_ptr, arithmetic_check, div_or_mod)

    return check


def make_broadcast(slow: Callable) -> Callable:
    """`broadcast_impl_value`: both operands in one shape."""

    def broadcast(lhs: Any, rhs: Any) -> Any:
        return (lhs, rhs) if lhs.shape is rhs.shape else slow(lhs, rhs)

    return broadcast
