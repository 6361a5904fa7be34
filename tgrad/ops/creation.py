"""Factories: tensors made from data, numbers, ranges and random draws."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from tgrad import dtypes, modes
from tgrad.device import compute as compute_device, cpu, resolve
from tgrad.dtypes import dtype
from tgrad.kernels.creation import prepare_creation, seed_type
from tgrad.layout import Layout, is_gapless, layout
from tgrad.op import Kernel
from tgrad.ops.views import _sizes, contiguous, fill_launch
from tgrad.random import Generator, default_generator
from tgrad.storage import adopt_array
from tgrad.tensor import Tensor, Version, empty as empty_tensor, make


def _new(shape: Sequence[int], kind: dtype | None, where: Any, requires_grad: bool) -> Tensor:
    shape = tuple(shape)
    if any(s < 0 for s in shape):
        raise RuntimeError(f"Trying to create tensor with negative dimension {min(shape)}: {list(shape)}")
    kind = dtypes.get_default_dtype() if kind is None else _checked_dtype(kind)
    t = empty_tensor(layout(kind, shape, None, resolve(where)), modes.current().inference)
    return _tracked(t) if requires_grad else t


def _tracked(t: Tensor) -> Tensor:
    if not t.dtype.is_floating_point:
        raise RuntimeError("Only Tensors of floating point and complex dtype can require gradients")
    return t.requires_grad_()


def _checked_dtype(kind: Any) -> dtype:
    if not isinstance(kind, dtype):
        raise TypeError(f"dtype must be a tgrad dtype such as tgrad.float32, got {kind!r}")
    return kind


def _fill(t: Tensor, value: float) -> Tensor:
    if t.layout.device is not compute_device:
        t.storage.write(encode(np.full(t.layout.shape, value), t.dtype))
    elif t.layout.numel:
        fill_launch("fill", t.layout)(t.ptr, value)
    return t


def empty(*size: Any, dtype: dtype | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Uninitialised values.

    Shape: `size`, given as integers or as one sequence.
    Dtype: `dtype`, by default the default dtype.
    Raises:
        RuntimeError: a size is negative; there is no such device; `requires_grad` with a dtype that is not floating.
        TypeError: a size is no integer; `dtype` is none of tgrad's.
    """
    return _new(_sizes(size), dtype, device, requires_grad)


def zeros(*size: Any, dtype: dtype | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros of a shape.

    Shape: `size`, given as integers or as one sequence.
    Dtype: `dtype`, by default the default dtype.
    Raises:
        RuntimeError: a size is negative; there is no such device; `requires_grad` with a dtype that is not floating.
        TypeError: a size is no integer; `dtype` is none of tgrad's.
    """
    return _fill(_new(_sizes(size), dtype, device, requires_grad), 0)


def ones(*size: Any, dtype: dtype | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones of a shape.

    Shape: `size`, given as integers or as one sequence.
    Dtype: `dtype`, by default the default dtype.
    Raises:
        RuntimeError: a size is negative; there is no such device; `requires_grad` with a dtype that is not floating.
        TypeError: a size is no integer; `dtype` is none of tgrad's.
    """
    return _fill(_new(_sizes(size), dtype, device, requires_grad), 1)


def full(size: Sequence[int], fill_value: float, *, dtype: dtype | None = None, device: Any = None,
         requires_grad: bool = False) -> Tensor:  # fmt: skip
    """One value everywhere.

    Shape: `size`, a sequence of integers.
    Dtype: `dtype`; by default that of the value: bool, int64 or the default dtype.
    Raises:
        RuntimeError: a size is negative; there is no such device; `requires_grad` with a dtype that is not floating.
        TypeError: a size is no integer; `dtype` is none of tgrad's.
    """
    kind = dtypes.of_number(fill_value) if dtype is None else dtype
    return _fill(_new(_sizes((size,)), kind, device, requires_grad), fill_value)


def arange(start: float, end: float | None = None, step: float = 1, *, dtype: dtype | None = None, device: Any = None,
           requires_grad: bool = False) -> Tensor:  # fmt: skip
    """start, start + step, ... below end; of one number, from 0 to it.

    Shape: a vector of ceil((end - start) / step) elements.
    Dtype: `dtype`; by default int64 if all three are integers, else the default dtype.
    Raises:
        RuntimeError: `step` is 0 or leads away from `end`; a number is not finite; there is no such device.
    """
    if end is None:
        start, end = 0, start
    for name, value in (("start", start), ("end", end), ("step", step)):
        if isinstance(value, float) and not math.isfinite(value):
            raise RuntimeError(f"unsupported range: {name} is {value}")
    if step == 0:
        raise RuntimeError("step must be nonzero")
    if (end - start) * step < 0:
        raise RuntimeError("upper bound and lower bound inconsistent with step sign")
    whole = all(isinstance(v, int) for v in (start, end, step))
    kind = dtype or (dtypes.int64 if whole else dtypes.get_default_dtype())
    count = -((start - end) // step) if whole else math.ceil((end - start) / step)
    if not whole and not kind.is_floating_point:  # as PyTorch: integers throughout, but for int32's and uint8's count
        start, end, step = int(start), int(end), int(step)
        if step == 0:
            raise RuntimeError(f"arange: step is 0 as {kind.name}; give a dtype that holds it")
        count, whole = max(0, -((start - end) // step)) if kind is dtypes.int64 else count, True
    t = _new((int(count),), kind, device, requires_grad)
    if t.layout.device is not compute_device:
        t.storage.write(encode(start + np.arange(int(count)) * step, t.dtype))
    elif count:
        run = "i64" if whole else "fp64"
        prepare_creation("arange", kind.triton, (), (run, run), int(count))(t.ptr, start, step)
    return t


def eye(
    n: int, m: int | None = None, *, dtype: dtype | None = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """Ones on the diagonal of a matrix, zeros elsewhere.

    Shape: (n, m), or (n, n) if `m` is None.
    Dtype: `dtype`, by default the default dtype.
    Raises:
        RuntimeError: a size is negative; there is no such device; `requires_grad` with a dtype that is not floating.
        TypeError: a size is no integer; `dtype` is none of tgrad's.
    """
    t = _new((n, n if m is None else m), dtype, device, requires_grad)
    if t.layout.device is not compute_device:
        t.storage.write(encode(np.eye(*t.shape), t.dtype))
    elif t.layout.numel:
        prepare_creation("eye", t.dtype.triton, (), (), t.layout.numel, t.shape[1])(t.ptr)
    return t


# --- random
# ------------------------------------------------------------------------------------------------------------
def draw_into(t: Tensor, kind: str, a: float, b: float, generator: Generator | None = None) -> Tensor:
    """Fill t, which has no gaps, with draws: "uniform" in [a, a + b), or "normal" of mean a and deviation b."""
    if not t.dtype.is_floating_point:
        raise RuntimeError(f"{kind} random numbers need a floating dtype, got {t.dtype!r}")
    if t.layout.device is not compute_device:
        raise RuntimeError(f"random numbers are drawn on {compute_device} only: draw there, then use .cpu()")
    if t.layout.numel:
        seed, offset = (generator or default_generator).take(t.layout.numel)
        run = "fp64" if t.dtype is dtypes.float64 else "fp32"
        launch = prepare_creation(kind, t.dtype.triton, (), (seed_type(seed), "i64", run, run), t.layout.numel)
        launch(t.ptr, seed, offset, float(a), float(b))
    return t


def rand(*size: Any, generator: Generator | None = None, dtype: dtype | None = None, device: Any = None,
         requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Uniform numbers in [0, 1), by Philox (Salmon et al., 2011); the same on a CPU and a GPU.

    Shape: `size`, given as integers or as one sequence.
    Dtype: `dtype`, floating, by default the default dtype.
    Raises:
        RuntimeError: the dtype is not floating; a size is negative; the device is not the one that computes.
    """
    return draw_into(_new(_sizes(size), dtype, device, requires_grad), "uniform", 0, 1, generator)


def randn(*size: Any, generator: Generator | None = None, dtype: dtype | None = None, device: Any = None,
          requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Normal numbers of mean 0 and variance 1, by Philox and the Box-Muller transform.

    Shape: `size`, given as integers or as one sequence.
    Dtype: `dtype`, floating, by default the default dtype.
    Raises:
        RuntimeError: the dtype is not floating; a size is negative; the device is not the one that computes.
    """
    return draw_into(_new(_sizes(size), dtype, device, requires_grad), "normal", 0, 1, generator)


def _build_dropout(x: Tensor, seed: int, offset: int, p: float, scale: float) -> tuple[list[Layout], Any]:
    out = layout(x.dtype, tuple(x.shape), None, compute_device)
    run = "fp64" if x.dtype is dtypes.float64 else "fp32"
    return [out], prepare_creation(
        "dropout", x.dtype.triton, (x.dtype.triton,), (seed_type(seed), "i64", "fp32", run), x.numel(),
        aligned=x.layout.aligned,
    ) if x.numel() else None


dropout_op: Kernel = Kernel(
    "dropout", ("x", "seed", "offset", "p", "scale"), _build_dropout,
    {"x": lambda g, seed, offset, p, scale: dropout_op(contiguous(g), seed, offset, p, scale)},
    grad_name="NativeDropout", again=True,
)  # fmt: skip


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability p, scale the others by 1 / (1 - p). Saves two integers, no mask."""
    seed, offset = default_generator.take(x.numel())
    return dropout_op(contiguous(x), seed, offset, float(p), 0.0 if p == 1 else 1 / (1 - p))


# --- like another tensor
# -----------------------------------------------------------------------------------------------
def _like(x: Tensor, kind: dtype | None, where: Any, requires_grad: bool) -> Tensor:
    strides = x.layout.strides if is_gapless(x.layout) and not x.layout.contiguous else None
    to = layout(kind or x.dtype, tuple(x.shape), strides, x.device if where is None else resolve(where))
    t = empty_tensor(to, modes.current().inference)
    return _tracked(t) if requires_grad else t


def empty_like(x: Tensor, *, dtype: dtype | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Uninitialised values.

    Shape: that of `x`, with its strides.
    Dtype: `dtype`, by default that of `x`.
    Raises:
        RuntimeError: there is no such device; `requires_grad` with a dtype that is not floating.
    """
    return _like(x, dtype, device, requires_grad)


def zeros_like(x: Tensor, *, dtype: dtype | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros.

    Shape: that of `x`, with its strides.
    Dtype: `dtype`, by default that of `x`.
    Raises:
        RuntimeError: there is no such device; `requires_grad` with a dtype that is not floating.
    """
    return _fill(_like(x, dtype, device, requires_grad), 0)


def ones_like(x: Tensor, *, dtype: dtype | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones.

    Shape: that of `x`, with its strides.
    Dtype: `dtype`, by default that of `x`.
    Raises:
        RuntimeError: there is no such device; `requires_grad` with a dtype that is not floating.
    """
    return _fill(_like(x, dtype, device, requires_grad), 1)


def full_like(
    x: Tensor, fill_value: float, *, dtype: dtype | None = None, device: Any = None, requires_grad: bool = False
) -> Tensor:
    """One value everywhere, in x's shape, strides and dtype.

    Shape: that of `x`, with its strides.
    Dtype: `dtype`, by default that of `x`.
    Raises:
        RuntimeError: there is no such device; `requires_grad` with a dtype that is not floating.
    """
    return _fill(_like(x, dtype, device, requires_grad), fill_value)


def rand_like(x: Tensor, *, generator: Generator | None = None, dtype: dtype | None = None, device: Any = None,
              requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Uniform numbers in [0, 1).

    Shape: that of `x`, with its strides.
    Dtype: `dtype`, floating, by default that of `x`.
    Raises:
        RuntimeError: the dtype is not floating; the device is not the one that computes.
    """
    return draw_into(_like(x, dtype, device, requires_grad), "uniform", 0, 1, generator)


def randn_like(x: Tensor, *, generator: Generator | None = None, dtype: dtype | None = None, device: Any = None,
              requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Normal numbers of mean 0 and variance 1.

    Shape: that of `x`, with its strides.
    Dtype: `dtype`, floating, by default that of `x`.
    Raises:
        RuntimeError: the dtype is not floating; the device is not the one that computes.
    """
    return draw_into(_like(x, dtype, device, requires_grad), "normal", 0, 1, generator)


# --- from data
# ---------------------------------------------------------------------------------------------------------
def encode(array: Any, kind: dtype) -> np.ndarray:
    """A C-contiguous array with the bytes of `kind`."""
    if kind is not dtypes.bfloat16:
        with np.errstate(all="ignore"):
            return np.ascontiguousarray(array, dtype=kind.numpy)
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    rounded = (bits + ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)) >> np.uint32(16)  # to nearest even
    return np.where(np.isnan(np.asarray(array, dtype=np.float32)), 0x7FC0, rounded).astype(np.uint16)


def _array(data: Any) -> np.ndarray:
    """Nested sequences of numbers (or of one-element tensors) as an array.

    Raises:
        ValueError: they are not all of one length; TypeError: they hold something that is no number.
    """
    if isinstance(data, np.ndarray):
        return data
    if isinstance(data, (list, tuple)):
        data = _plain(data)
    try:
        array = np.array(data)
    except ValueError as error:
        raise ValueError(f"tensor: expected nested sequences of equal lengths ({error})") from None
    if array.dtype == object or array.dtype.kind in "USO":
        raise TypeError(f"tensor: expected numbers, got {type(_first(data)).__name__}")
    if array.size == 0:
        return array.astype(np.float64)
    return array


def _plain(data: Any) -> Any:
    if isinstance(data, (list, tuple)):
        return [_plain(v) for v in data]
    return data.tolist() if isinstance(data, Tensor) else data


def _first(data: Any) -> Any:
    while isinstance(data, (list, tuple)) and data:
        data = data[0]
    return data


def tensor(data: Any, *, dtype: dtype | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:
    """A new tensor with the values of `data`: a number, nested sequences, a numpy array, another library's tensor.

    Shape: that of the nesting.
    Dtype: `dtype`; by default that of an array or tensor, the default dtype of floats, int64 of integers, bool of
    bools.
    Raises:
        TypeError: `data` holds something that is no number, or of a dtype that tgrad lacks.
        ValueError: nested sequences differ in length.
        RuntimeError: there is no such device; `requires_grad` with a dtype that is not floating.
    """
    if isinstance(data, Tensor):
        warnings.warn(
            "To copy construct from a tensor, it is recommended to use sourceTensor.detach().clone() or "
            "sourceTensor.detach().clone().requires_grad_(True), rather than torch.tensor(sourceTensor).",
            UserWarning,
            stacklevel=2,
        )
        copied = data.detach().to(device=device, dtype=dtype, copy=True)
        return _tracked(copied) if requires_grad else copied
    if _foreign(data):
        copied = _shared(data).to(device=resolve(device), dtype=dtype, copy=True)
        return _tracked(copied) if requires_grad else copied
    array = _array(data)
    if dtype is not None:
        kind = _checked_dtype(dtype)
    elif isinstance(data, (np.ndarray, np.generic)):
        kind = _of_numpy(array)
    else:
        kind = {"b": dtypes.bool_, "i": dtypes.int64, "u": dtypes.int64, "f": dtypes.get_default_dtype()}[
            array.dtype.kind
        ]
    t = _new(array.shape, kind, device, False)
    if array.size:
        t.storage.write(encode(array, kind))
    return _tracked(t) if requires_grad else t


def _of_numpy(array: np.ndarray) -> dtype:
    kind = dtypes.BY_NUMPY.get(array.dtype.newbyteorder("=") if array.dtype.byteorder == ">" else array.dtype)
    if kind is None:
        names = ", ".join(str(d) for d in dtypes.BY_NUMPY)
        raise TypeError(f"can't convert np.ndarray of type {array.dtype}: the supported types are {names}")
    return kind


def _foreign(data: Any) -> bool:
    """Whether data is a tensor of another library."""
    return hasattr(data, "__dlpack__") and not isinstance(data, (np.ndarray, np.generic))


def _shared(data: Any) -> Tensor:
    """A tensor over the memory of another library's."""
    from tgrad.interop import from_dlpack

    return from_dlpack(data)


def from_numpy(array: np.ndarray) -> Tensor:
    """A CPU tensor that shares the array's memory; of a read-only or non-contiguous one, a copy.

    Shape: the array's.
    Dtype: the array's: one of the eight but bfloat16.
    Raises:
        TypeError: not an array, or of a dtype tgrad lacks.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"expected np.ndarray (got {type(array).__name__})")
    kind = _of_numpy(array)
    shared = array.flags.c_contiguous and array.flags.writeable and array.dtype.isnative and array.size > 0
    storage = adopt_array(array if shared else encode(array.copy(), kind).reshape(-1))
    to = layout(kind, array.shape, None, cpu, storage.ptr % 16 == 0)
    return make(to, storage, storage.ptr, None if modes.current().inference else Version.zero())


def as_tensor(data: Any, dtype: dtype | None = None, device: Any = None) -> Tensor:
    """`data` itself where it is a fitting tensor; shares the memory of a numpy array on the CPU, or of a tensor
    of another library (through DLPack); else a new tensor.

    Shape: that of `data`.
    Dtype: `dtype`; by default as `tgrad.tensor`.
    Raises:
        TypeError: `data` holds something that is no number, or of a dtype that tgrad lacks.
        ValueError: nested sequences differ in length.
        RuntimeError: there is no such device.
    """
    if isinstance(data, Tensor):
        return data.to(device=device, dtype=dtype)
    if isinstance(data, np.ndarray):
        return from_numpy(data).to(device=resolve(device), dtype=dtype)
    if _foreign(data):
        return _shared(data).to(device=resolve(device), dtype=dtype)
    return tensor(data, dtype=dtype, device=device)
