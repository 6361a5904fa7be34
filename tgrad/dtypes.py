"""Data types and PyTorch's type promotion.

Promotion follows `torch.result_type`: an operand with dimensions outranks a 0-dim one, which outranks a Python
number; a lower rank changes the result only when its category (bool < integer < float) is higher.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class dtype:
    """A data type. `repr` reads as PyTorch's (`torch.float32`), so that printed output of a script does not change."""

    __slots__ = ("name", "itemsize", "category", "triton", "numpy", "legacy")

    def __init__(self, name: str, itemsize: int, category: int, triton: str, numpy: type, legacy: str) -> None:
        self.name = name
        self.itemsize = itemsize  # bytes per element
        self.category = category
        self.triton = triton  # Triton's name of it, as in a kernel signature
        self.numpy = np.dtype(numpy)  # bfloat16 has no numpy type: its bits, as uint16
        self.legacy = legacy  # as in "torch.FloatTensor", which PyTorch's messages quote

    @property
    def is_floating_point(self) -> bool:
        """Whether it is float16, bfloat16, float32 or float64."""
        return self.category == FLOAT

    @property
    def is_complex(self) -> bool:
        """False: there are no complex dtypes."""
        return False

    def __repr__(self) -> str:
        return f"torch.{self.name}"

    def __reduce__(self) -> tuple:
        return _named, (self.name,)


def _named(name: str) -> dtype:
    return BY_NAME[name]


BOOL, INTEGER, FLOAT = 0, 1, 2

float16 = half = dtype("float16", 2, FLOAT, "fp16", np.float16, "Half")
bfloat16 = dtype("bfloat16", 2, FLOAT, "bf16", np.uint16, "BFloat16")
float32 = dtype("float32", 4, FLOAT, "fp32", np.float32, "Float")
float64 = double = dtype("float64", 8, FLOAT, "fp64", np.float64, "Double")
int32 = dtype("int32", 4, INTEGER, "i32", np.int32, "Int")
int64 = long = dtype("int64", 8, INTEGER, "i64", np.int64, "Long")
uint8 = dtype("uint8", 1, INTEGER, "u8", np.uint8, "Byte")
bool_ = dtype("bool", 1, BOOL, "i1", np.bool_, "Bool")

ALL = (float16, bfloat16, float32, float64, int32, int64, uint8, bool_)
FLOATS = (float16, bfloat16, float32, float64)
BY_NAME = {d.name: d for d in ALL}
BY_NUMPY = {d.numpy: d for d in ALL if d is not bfloat16}

_default = float32
# Called when the default changes: whoever keeps a decision that depended on it.
default_changed: list[Callable[[], None]] = []


def get_default_dtype() -> dtype:
    """The floating dtype of factories and of Python floats: float32 unless set otherwise."""
    return _default


def set_default_dtype(d: dtype) -> None:
    """Make `d` (a floating dtype) the default.

    Raises:
        TypeError: `d` is not a floating dtype.
    """
    global _default
    if not isinstance(d, dtype) or not d.is_floating_point:
        raise TypeError(f"only floating-point types are supported as the default type, but got {d!r}")
    _default = d
    for forget in default_changed:
        forget()


def of_number(value: bool | int | float) -> dtype:
    """The dtype PyTorch gives a tensor made of this Python number."""
    if isinstance(value, bool):
        return bool_
    return int64 if isinstance(value, int) else _default


_RANK = {bool_: 0, uint8: 1, int32: 2, int64: 3, float16: 4, bfloat16: 4, float32: 5, float64: 6}


def promote(a: dtype, b: dtype) -> dtype:
    """`torch.promote_types(a, b)` over the eight dtypes."""
    if a is b:
        return a
    if {a, b} == {float16, bfloat16}:
        return float32
    return a if _RANK[a] > _RANK[b] else b


# The ranks of operands in promotion.
NUMBER, SCALAR_TENSOR, TENSOR = 0, 1, 2


def result(operands: list[tuple[dtype, int]]) -> tuple[dtype, int]:
    """The common dtype of operands given as (dtype, rank), and the highest rank among them.

    A number's dtype is that of `of_number`. PyTorch: ATen/native/TypeProperties.cpp, `result_type`.
    """
    by_rank: list[dtype | None] = [None, None, None]
    for d, rank in operands:
        have = by_rank[rank]
        by_rank[rank] = d if have is None else promote(have, d)
    common: dtype | None = None
    for have in reversed(by_rank):
        if have is not None and (common is None or have.category > common.category):
            common = have
    assert common is not None, "result: no operands"
    return common, max(rank for _, rank in operands)


def accumulator(d: dtype) -> dtype:
    """The type arithmetic on `d` is done in: float32 for half types, int32 for bool, else `d` itself."""
    if d is float16 or d is bfloat16:
        return float32
    return int32 if d is bool_ else d


def can_cast(source: dtype, target: dtype) -> bool:
    """Whether an in-place op may write a result of type `source` into `target`: `torch.can_cast`."""
    return source.category <= target.category
