"""Arithmetic of interpreted kernels where Triton's interpreter differs from a GPU, or is slow.

bfloat16 is held as its bits: casts round to nearest even, products are those of the values, and arithmetic on it raises
(Triton's interpreter truncates, and computes on the bits). `maximum`, `minimum`, `tl.max` and `tl.min` drop NaN as on a
GPU. Reductions are numpy's for every combine function that has one registered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter


def _no_bfloat16(*handles: Any) -> None:
    if any(h.dtype.scalar is tl.bfloat16 for h in handles):
        raise TypeError("arithmetic on bfloat16: convert to float32 first, the interpreter has its bits only")


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16, ties to even, of an array of floats or integers."""
    if x.dtype.itemsize >= 4 and x.dtype != np.float32:
        x = _round_to_odd(x)
    x = np.ascontiguousarray(x, np.float32)
    bits = x.view(np.uint32)
    out = ((bits + ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)) >> np.uint32(16)).astype(np.uint16)
    nan = np.isnan(x)
    if nan.any():
        out[nan] = 0x7FC0
    return out


def _round_to_odd(x: np.ndarray) -> np.ndarray:
    """As float32, such that rounding on is right: to nearest twice can miss. (A GPU rounds once, PyTorch twice.)"""
    near = x.astype(np.float32)
    back, exact = near.astype(np.float64), x.astype(np.float64)
    settled = (back == exact) | (near.view(np.uint32) & np.uint32(1) == 1) | ~np.isfinite(near)
    return np.where(settled, near, np.nextafter(near, np.where(exact > back, np.inf, -np.inf).astype(np.float32)))


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
    to, x = dst_type.scalar, src.data
    if src.dtype.scalar is tl.bfloat16 and x.dtype == np.uint16:
        x = from_bfloat16(x)
    data = to_bfloat16(x) if to is tl.bfloat16 else x.astype(triton_interpreter._get_np_dtype(to))
    return triton_interpreter.TensorHandle(data, to)


def get_bf16(self: Any, value: float) -> Any:
    return triton_interpreter.TensorHandle(to_bfloat16(np.array([value], np.float64)), tl.bfloat16)


def binary_op(self: Any, lhs: Any, rhs: Any, op: Callable) -> Any:
    ty = lhs.dtype.scalar
    if ty is tl.bfloat16 or rhs.dtype.scalar is tl.bfloat16:
        _no_bfloat16(lhs, rhs)
    out = op(lhs.data, rhs.data)
    if out.dtype == bool:
        ty = tl.int1  # of a comparison, whose operands' type Triton would keep
    elif out.dtype != lhs.data.dtype:
        out = out.astype(triton_interpreter._get_np_dtype(ty))
    return triton_interpreter.TensorHandle(out, ty)


def create_idiv(self: Any, lhs: Any, rhs: Any) -> Any:
    """Rounds to zero, as C does. numpy divides by one positive number several times faster, but rounds down."""
    a, b = lhs.data, rhs.data
    if a.size and not any(b.strides) and b.flat[0] > 0 and a.min() >= 0:
        return triton_interpreter.TensorHandle(a // b, lhs.dtype.scalar)
    return triton_interpreter.InterpreterBuilder.create_idiv(self, lhs, rhs)


def create_rem(self: Any, lhs: Any, rhs: Any) -> Any:
    """The sign of the dividend, as in C; as fast as the division where that is fast."""
    a, b = lhs.data, rhs.data
    if a.size and not any(b.strides) and b.flat[0] > 0 and a.min() >= 0:
        out = a // b
        out *= b
        return triton_interpreter.TensorHandle(np.subtract(a, out, out=out), lhs.dtype.scalar)
    return self.binary_op(lhs, rhs, np.fmod)


def create_maxnumf(self: Any, lhs: Any, rhs: Any) -> Any:
    return self.binary_op(lhs, rhs, np.fmax)


def create_minnumf(self: Any, lhs: Any, rhs: Any) -> Any:
    return self.binary_op(lhs, rhs, np.fmin)


def create_clampf(self: Any, arg: Any, lo: Any, hi: Any, propagate_nans: Any) -> Any:
    _no_bfloat16(arg, lo, hi)
    if propagate_nans == tl.PropagateNan.ALL:
        return self.ternary_op(arg, lo, hi, np.clip)
    return self.ternary_op(arg, lo, hi, lambda x, a, b: np.fmin(np.fmax(x, a), b))


def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    _no_bfloat16(x, y, z)
    return triton_interpreter.InterpreterBuilder.create_fma(self, x, y, z)


def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
    if a.dtype.scalar is tl.bfloat16:
        a = self.cast_impl(a, tl.float32)
    if b.dtype.scalar is tl.bfloat16:
        b = self.cast_impl(b, tl.float32)
    x, y, to = a.data, b.data, d.data.dtype
    if x.dtype.kind != "f" or y.dtype.kind != "f":  # integers, and float8, which is held as integers
        return triton_interpreter.InterpreterBuilder.create_dot(self, a, b, d, *rest)
    out = np.matmul(x.astype(to, copy=False), y.astype(to, copy=False))
    out += d.data
    return triton_interpreter.TensorHandle(out, d.dtype.scalar)


METHODS = (
    cast_impl, binary_op, create_idiv, create_maxnumf, create_minnumf, create_clampf, create_fma, create_dot,
)  # fmt: skip


def overflow_check(self: Any, lhs: Any, rhs: Any, operation: Callable) -> None:
    """Raises where integer addition, subtraction or multiplication wraps: for tests.

    Triton's own check leaves out 64-bit integers.
    """
    ty = lhs.type.scalar
    a, b, name = lhs.handle.data, rhs.handle.data, operation.__name__
    if not ty.is_int() or ty.int_bitwidth == 1:
        return
    exact = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[name]
    wrapped = exact(a, b)
    if ty.int_bitwidth < 64:
        bad = exact(a.astype(np.int64), b.astype(np.int64)) != wrapped.astype(np.int64)
        if ty.int_bitwidth == 32 and name == "mul" and ty.is_int_unsigned():  # below 2^64, and maybe above 2^63
            bad = np.multiply(a.astype(np.uint64), b.astype(np.uint64)) > np.uint64(2**32 - 1)
    elif name == "mul":
        lowest = a.dtype.type(np.iinfo(a.dtype).min)
        negated = ty.is_int_signed() and ((a == -1) & (b == lowest) | (b == -1) & (a == lowest))
        bad = (a != 0) & (wrapped // np.where(a == 0, a.dtype.type(1), a) != b) | negated
    elif ty.is_int_unsigned():
        bad = wrapped < a if name == "add" else b > a
    elif name == "add":
        bad = ((a ^ wrapped) & (b ^ wrapped)) < 0
    else:
        bad = ((a ^ b) & (a ^ wrapped)) < 0
    if np.any(bad):
        x, y = (np.broadcast_to(v, bad.shape)[bad].flat[0] for v in (a, b))
        raise OverflowError(f"{ty} overflow: {name} of {x} and {y}")


# --- reductions ----------------------------------------------------------------------------------------------------

_reducers: dict[Any, Callable] = {}


def register_reduce(combine: Any, numpy_reduce: Callable) -> None:
    """Reductions with the jitted function `combine` are computed by `numpy_reduce(block, axis)`.

    `numpy_reduce` takes an array, or a tuple of them where several blocks are reduced together, and `axis` (None: all
    of them); it returns an array (or a tuple) without the axis.
    """
    _reducers[combine] = numpy_reduce


def _sum(x: np.ndarray, axis: int | None) -> np.ndarray:
    # numpy adds one by one along all axes but the last: in float64 that error vanishes
    wide = np.float64 if x.dtype.kind == "f" else None
    return np.add.reduce(x, axis=axis, dtype=wide)


def _with_index(find: Callable) -> Callable:
    def reduce(blocks: tuple[np.ndarray, np.ndarray], axis: int) -> tuple[np.ndarray, ...]:
        at = np.expand_dims(find(blocks[0], axis=axis), axis)
        return tuple(np.take_along_axis(x, at, axis).squeeze(axis) for x in blocks)

    return reduce


def register_library() -> None:
    """Triton's own combine functions."""
    library = tl.standard
    register_reduce(library._sum_combine, _sum)
    register_reduce(library._elementwise_max, np.fmax.reduce)
    register_reduce(library._elementwise_min, np.fmin.reduce)
    register_reduce(library._xor_combine, np.bitwise_xor.reduce)
    for way in ("left", "fast"):  # where the index of a tie is open, the first will do
        register_reduce(getattr(library, f"_argmax_combine_tie_break_{way}"), _with_index(np.argmax))
        register_reduce(getattr(library, f"_argmin_combine_tie_break_{way}"), _with_index(np.argmin))


def make_reduce(generic: Callable) -> Callable:
    """`tl.reduce`, with `generic` for what is not registered."""

    def reduce(input: Any, axis: Any, combine_fn: Any, keep_dims: Any = False, **kwargs: Any) -> Any:
        blocks = input if isinstance(input, tuple) else (input,)
        for block in blocks:
            _no_bfloat16(block.handle)
        axis = getattr(axis, "value", axis)
        keep_dims = getattr(keep_dims, "value", keep_dims)
        rank = blocks[0].handle.data.ndim
        if axis is not None and not -rank <= axis < rank:
            raise ValueError(f"reduction over axis {axis} of a block of rank {rank}")
        axis = axis if axis is None else axis % rank
        numpy_reduce = _reducers.get(combine_fn)
        if numpy_reduce is None:
            return generic(input, axis, combine_fn, keep_dims)
        data = tuple(block.handle.data for block in blocks)
        found = numpy_reduce(data if isinstance(input, tuple) else data[0], axis=axis)
        results = []
        for x, block in zip(found if isinstance(found, tuple) else (found,), blocks, strict=True):
            x = np.asarray(x, triton_interpreter._get_np_dtype(block.dtype))
            if keep_dims:
                x = x.reshape((1,) * rank) if axis is None else np.expand_dims(x, axis)
            ty = tl.block_type(block.dtype, list(x.shape)) if x.ndim else block.dtype
            results.append(tl.tensor(triton_interpreter.TensorHandle(x.reshape(x.shape or (1,)), block.dtype), ty))
        return tuple(results) if isinstance(input, tuple) else results[0]

    return reduce


# --- functions -----------------------------------------------------------------------------------------------------


def elementwise(np_function: Callable[..., np.ndarray], integers: bool = False) -> Callable[..., Any]:
    """`np_function` as a function for kernels: of floating-point blocks or scalars and Python numbers.

    `integers`: of integers too.

    Operands are broadcast and promoted as Triton's operators do; the result has their common shape and type.
    """

    def function(*args: Any) -> Any:
        semantic = triton_interpreter.interpreter_semantic
        tensors = list(args)
        if len(args) == 1:
            tensors[0] = semantic.to_tensor(args[0])
        for _ in range(2 if len(args) > 2 else 1):  # twice: the first operand may widen on meeting the last
            for i in range(1, len(args)):
                tensors[0], tensors[i] = semantic.binary_op_type_checking_impl(tensors[0], tensors[i])
        ty = tensors[0].type
        if ty.scalar not in (tl.float32, tl.float64, tl.float16) and not (integers and ty.scalar.is_int()):
            raise TypeError(f"{function.__name__} of {ty.scalar}: float16, float32 or float64 expected")
        data = np_function(*(t.handle.data for t in tensors))
        data = np.asarray(data, triton_interpreter._get_np_dtype(ty.scalar))
        return tl.tensor(triton_interpreter.TensorHandle(data, ty.scalar), ty)

    function.__name__ = getattr(np_function, "__name__", "function")
    return function
