"""More factories: evenly spaced numbers, strided memory, coordinates of triangles, and `new_*` of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tgrad import dtypes, modes
from tgrad.device import compute, resolve
from tgrad.dtypes import dtype
from tgrad.kernels.creation import prepare_creation
from tgrad.layout import layout
from tgrad.ops import creation, pointwise as p
from tgrad.ops.creation import _new, _tracked, encode
from tgrad.ops.views import _sizes
from tgrad.tensor import Tensor, empty as empty_tensor


def linspace(start: Any, end: Any, steps: int, *, dtype: dtype | None = None, device: Any = None,
             requires_grad: bool = False) -> Tensor:  # fmt: skip
    """`steps` numbers from start to end, both included, at equal distances.

    Shape: a vector of `steps`.
    Dtype: `dtype`, by default the default dtype.
    Raises:
        RuntimeError: `steps` is negative; there is no such device.
    """
    start, end = (v.item() if isinstance(v, Tensor) else v for v in (start, end))
    if steps < 0:
        raise RuntimeError("number of steps must be non-negative")
    t = _new((steps,), dtype, device, False)
    if not t.dtype.is_floating_point:
        start, end = int(start), int(end)
    step = (end - start) / (steps - 1) if steps > 1 else 0.0
    if t.layout.device is not compute:
        t.storage.write(encode(np.linspace(start, end, steps), t.dtype))
    elif steps:
        launch = prepare_creation("linspace", t.dtype.triton, (), ("fp64",) * 3, steps)
        launch(t.ptr, float(start), float(end), float(step))
    return _tracked(t) if requires_grad else t


def logspace(start: Any, end: Any, steps: int, base: float = 10.0, *, dtype: dtype | None = None, device: Any = None,
             requires_grad: bool = False) -> Tensor:  # fmt: skip
    """base to the powers of `steps` numbers from start to end.

    Shape: a vector of `steps`.
    Dtype: `dtype`, by default the default dtype.
    Raises:
        RuntimeError: `steps` is negative; there is no such device.
    """
    kind = dtype or dtypes.get_default_dtype()
    if not kind.is_floating_point:  # as PyTorch
        start, end = (int(v.item() if isinstance(v, Tensor) else v) for v in (start, end))
    with modes.no_grad():
        t = p.cast(kind)(p.pow(float(base), linspace(start, end, steps, dtype=dtypes.float64)))
        t = t.to(device=device)
    return _tracked(t) if requires_grad else t


def empty_strided(size: Sequence[int], stride: Sequence[int], *, dtype: dtype | None = None, device: Any = None,
                  requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Uninitialised values of any sizes and strides.

    Shape: `size`.
    Dtype: `dtype`, by default the default dtype.
    Raises:
        RuntimeError: not as many strides as sizes, or one is negative.
    """
    size, stride = _sizes((size,)), _sizes((stride,))
    if len(size) != len(stride):
        raise RuntimeError(
            f"dimensionality of sizes ({len(size)}) must match dimensionality of strides ({len(stride)})"
        )
    if any(n < 0 for n in (*size, *stride)):
        raise RuntimeError(f"empty_strided: sizes and strides must not be negative, got {size} and {stride}")
    kind = dtypes.get_default_dtype() if dtype is None else dtype
    t = empty_tensor(layout(kind, size, stride, resolve(device)), modes.current().inference)
    return _tracked(t) if requires_grad else t


def _triangle_indices(row: int, col: int, offset: int, upper: bool, kind: dtype | None, device: Any) -> Tensor:
    if row < 0 or col < 0:
        raise RuntimeError(f"{'row' if row < 0 else 'col'} must be non-negative, got{min(row, col)}")
    kind = kind or dtypes.int64
    if kind.category != dtypes.INTEGER:
        raise RuntimeError(f"tril_indices: not implemented for {kind!r}")
    from tgrad.ops.masks import nonzero

    a, b = creation.arange(row), creation.arange(col)
    distance = p.sub(b.reshape(1, -1), a.reshape(-1, 1))
    inside = p.ge(distance, offset) if upper else p.le(distance, offset)
    found = nonzero(inside).t()
    return found.contiguous().to(dtype=kind, device=device)


def tril_indices(row: int, col: int, offset: int = 0, *, dtype: dtype | None = None, device: Any = None) -> Tensor:
    """The coordinates of the elements on and below a diagonal of a (row, col) matrix.

    Shape: (2, N) for N such elements.
    Dtype: `dtype`, int32, int64 or uint8; by default int64.
    Raises:
        RuntimeError: a size is negative; the dtype is not integer.
    """
    return _triangle_indices(row, col, offset, False, dtype, device)


def triu_indices(row: int, col: int, offset: int = 0, *, dtype: dtype | None = None, device: Any = None) -> Tensor:
    """The coordinates of the elements on and above a diagonal of a (row, col) matrix.

    Shape: (2, N) for N such elements.
    Dtype: `dtype`, int32, int64 or uint8; by default int64.
    Raises:
        RuntimeError: a size is negative; the dtype is not integer.
    """
    return _triangle_indices(row, col, offset, True, dtype, device)


# --- of another tensor's dtype and device ----------------------------------------------------------------------------
def _as(self: Tensor, dtype: dtype | None, device: Any, requires_grad: bool) -> dict[str, Any]:
    return {"dtype": dtype or self.dtype, "device": self.device if device is None else device,
            "requires_grad": requires_grad}  # fmt: skip


def new_empty(self: Tensor, *size: Any, dtype: dtype | None = None, device: Any = None,
              requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Uninitialised values, on this tensor's device unless told.

    Shape: `size`, given as integers or as one sequence.
    Dtype: `dtype`, by default this tensor's.
    Raises:
        RuntimeError: a size is negative; there is no such device; `requires_grad` with a dtype that is not floating.
    """
    return creation.empty(*size, **_as(self, dtype, device, requires_grad))


def new_zeros(self: Tensor, *size: Any, dtype: dtype | None = None, device: Any = None,
              requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Zeros, on this tensor's device unless told.

    Shape: `size`, given as integers or as one sequence.
    Dtype: `dtype`, by default this tensor's.
    Raises:
        RuntimeError: a size is negative; there is no such device; `requires_grad` with a dtype that is not floating.
    """
    return creation.zeros(*size, **_as(self, dtype, device, requires_grad))


def new_ones(self: Tensor, *size: Any, dtype: dtype | None = None, device: Any = None,
             requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Ones, on this tensor's device unless told.

    Shape: `size`, given as integers or as one sequence.
    Dtype: `dtype`, by default this tensor's.
    Raises:
        RuntimeError: a size is negative; there is no such device; `requires_grad` with a dtype that is not floating.
    """
    return creation.ones(*size, **_as(self, dtype, device, requires_grad))


def new_full(self: Tensor, size: Sequence[int], fill_value: float, *, dtype: dtype | None = None, device: Any = None,
             requires_grad: bool = False) -> Tensor:  # fmt: skip
    """One value everywhere, on this tensor's device unless told.

    Shape: `size`, a sequence of integers.
    Dtype: `dtype`, by default this tensor's.
    Raises:
        RuntimeError: a size is negative; there is no such device; `requires_grad` with a dtype that is not floating.
    """
    return creation.full(size, fill_value, **_as(self, dtype, device, requires_grad))


def new_tensor(self: Tensor, data: Any, *, dtype: dtype | None = None, device: Any = None,
               requires_grad: bool = False) -> Tensor:  # fmt: skip
    """The values of `data`, on this tensor's device unless told. See `tgrad.tensor`.

    Shape: that of `data`.
    Dtype: `dtype`, by default this tensor's.
    Raises:
        TypeError: `data` holds something that is no number.
        ValueError: nested sequences differ in length.
    """
    return creation.tensor(data, **_as(self, dtype, device, requires_grad))


FREE: dict[str, Any] = {f.__name__: f for f in (linspace, logspace, empty_strided, tril_indices, triu_indices)}
METHODS: dict[str, Any] = {f.__name__: f for f in (new_empty, new_zeros, new_ones, new_full, new_tensor)}
