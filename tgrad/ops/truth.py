"""Reductions that count: any, all, count_nonzero, nansum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dtypes import dtype
from tgrad.expression import Expression
from tgrad.kernels.launch import Launch
from tgrad.layout import Layout, layout, wrap_dims
from tgrad.op import Kernel
from tgrad.ops import pointwise as p
from tgrad.ops.reduce import _back, _sum_dtype, reduce_launch, reduced_shape
from tgrad.tensor import Tensor

TRUE = Expression.of(lambda x: p.ne(x, 0), 1)
NUMBERS = Expression.of(lambda x: p.where(p.eq(x, x), x, 0), 1)


def _build_of(name: str, kind: str, expression: Expression, out_dtype: dtype | None) -> Any:
    def build(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> tuple[list[Layout], Launch]:
        shape = tuple(x.shape)
        out = layout(out_dtype or _sum_dtype(x.dtype, None), reduced_shape(shape, dims, keepdim), None, compute)
        return [out], reduce_launch(name, kind, expression, ((x.dtype, dtypes.TENSOR),), [x.layout], shape, dims, out)

    return build


any_op = Kernel("any", ("x",), _build_of("any", "sum", TRUE, dtypes.bool_), {}, settings=("dims", "keepdim"))
all_op = Kernel("all", ("x",), _build_of("all", "min", TRUE, dtypes.bool_), {}, settings=("dims", "keepdim"))
count_op = Kernel(
    "count_nonzero", ("x",), _build_of("count_nonzero", "sum", TRUE, dtypes.int64), {}, settings=("dims", "keepdim")
)
nansum_op = Kernel(
    "nansum", ("x",), _build_of("nansum", "sum", NUMBERS, None),
    {"x": lambda g, x, *, dims, keepdim, x_shape: p.where(p.eq(x, x), _back(g, x_shape, dims, keepdim), 0)},
    settings=("dims", "keepdim"),
)  # fmt: skip


def _as_torch(truth: Tensor, x: Tensor) -> Tensor:
    return p.cast(dtypes.uint8)(truth) if x.dtype is dtypes.uint8 else truth  # PyTorch's one exception


def any(x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """Whether any element over `dim` (all if None) is not zero; nan is not.

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: any; the result is bool, of uint8 uint8.
    Raises:
        IndexError: a dimension is out of range.
        RuntimeError: one is named twice.
    """
    return _as_torch(any_op(x, dims=wrap_dims(dim, x.ndim), keepdim=bool(keepdim)), x)


def all(x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """Whether all elements over `dim` (all if None) are not zero; True where there are none.

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: any; the result is bool, of uint8 uint8.
    Raises:
        IndexError: a dimension is out of range.
        RuntimeError: one is named twice.
    """
    return _as_torch(all_op(x, dims=wrap_dims(dim, x.ndim), keepdim=bool(keepdim)), x)


def count_nonzero(x: Tensor, dim: int | Sequence[int] | None = None) -> Tensor:
    """The number of elements over `dim` (all if None) that are not zero.

    Shape: without `dim`.
    Dtype: any; the result is int64.
    Raises:
        IndexError: a dimension is out of range.
        RuntimeError: one is named twice.
    """
    return count_op(x, dims=wrap_dims(dim, x.ndim), keepdim=False)


def nansum(
    x: Tensor, dim: int | Sequence[int] | None = None, keepdim: bool = False, *, dtype: dtype | None = None
) -> Tensor:
    """Sum over `dim` (all if None) with nan as zero.

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: `dtype`; by default the input's, of integers and bool int64.
    Raises:
        IndexError: a dimension is out of range.
        RuntimeError: one is named twice.
    """
    x = x if dtype is None or dtype is x.dtype else p.cast(dtype)(x)
    return nansum_op(x, dims=wrap_dims(dim, x.ndim), keepdim=bool(keepdim))
