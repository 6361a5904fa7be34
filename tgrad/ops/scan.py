"""Running sums and products, and the product, whose gradient is made of them."""

from __future__ import annotations

from typing import Any

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dtypes import dtype
from tgrad.kernels.launch import Launch
from tgrad.kernels.scan import prepare_scan
from tgrad.layout import Layout, collapse, layout, wrap_dim, wrap_dims
from tgrad.op import Kernel
from tgrad.ops import pointwise as p
from tgrad.ops.creation import arange
from tgrad.ops.reduce import COPY, _back, _sum_dtype, reduce_launch, reduced_shape, sum_op
from tgrad.ops.truth import any as any_true
from tgrad.ops.views import reshape, unsqueeze_op
from tgrad.tensor import Tensor


def build_scan(kind: str) -> Any:
    def build(x: Tensor, dim: int, reverse: bool, out_dtype: dtype) -> tuple[list[Layout], Launch | None]:
        shape = tuple(x.shape)
        out = layout(out_dtype, shape, None, compute)
        if not out.numel:
            return [out], None
        others = [d for d in range(len(shape)) if d != dim]
        rows = collapse([shape[d] for d in others], [[s[d] for d in others] for s in (out.strides, x.layout.strides)])
        n, steps = (shape[dim], (out.strides[dim], x.layout.strides[dim])) if shape else (1, (1, 1))
        types = (out_dtype, x.dtype, out_dtype, dtypes.accumulator(out_dtype))
        return [out], prepare_scan(
            kind, reverse, tuple(t.triton for t in types), rows, n, steps,  # type: ignore[arg-type]
            aligned=x.layout.aligned, wide=max(x.layout.extent, out.numel) >= 2**31, name=f"cum{kind}",
        )  # fmt: skip

    return build


def _cumsum(x: Tensor, dim: int, reverse: bool) -> Tensor:
    return cumsum_op(x, dim=dim, reverse=reverse, out_dtype=x.dtype)


def _cumprod(x: Tensor, dim: int) -> Tensor:
    return cumprod_op(x, dim=dim, reverse=False, out_dtype=x.dtype)


def _convert(x: Tensor, kind: dtype) -> Tensor:
    return x if x.dtype is kind else p.cast(kind)(x)


def _cumprod_grad(g: Tensor, x: Tensor, *, dim: int, x_dtype: dtype) -> Tensor:
    """To be differentiated again: through the quotient where no x is zero, else through all products without one."""
    g = _convert(g, x_dtype)
    if not x.ndim:
        return g
    if not bool(any_true(p.eq(x.detach(), 0))):
        return _cumsum(g * _cumprod(x, dim), dim, True) / x
    rows = without_one(x, dim)  # [..., k, ..., i, ...]: x[i], and 1 at k, which stands in front of i
    n = x.shape[dim]
    later = _along(arange(n), dim + 1, x.ndim + 1) >= _along(arange(n), dim, x.ndim + 1)
    parts = p.where(later, _cumprod(rows, dim + 1) * unsqueeze_op(g, dim=dim), 0)
    return sum_op(parts, dims=(dim + 1,), keepdim=False, out_dtype=x_dtype)


def _fast_cumprod_grad(g: Tensor, x: Tensor, *, dim: int, x_dtype: dtype) -> Tensor:
    """Before the first zero the quotient, at it the products without it, and zero after it."""
    g = _convert(g, x_dtype)
    if not x.ndim:
        return g
    zero = p.eq(x, 0)
    zeros = cumsum_op(zero, dim=dim, reverse=False, out_dtype=dtypes.int64)
    first = p.logical_and(zero, p.eq(zeros, 1))
    before = _cumsum(g * _cumprod(x, dim), dim, True) / x
    at = _cumsum(p.where(p.ge(zeros, 1), g, 0) * _cumprod(p.where(first, 1, x), dim), dim, True)
    return p.where(p.eq(zeros, 0), before, p.where(first, at, 0))


def _along(line: Tensor, dim: int, ndim: int) -> Tensor:
    """A vector as a tensor of `ndim` dimensions that lies along `dim`."""
    return reshape(line, tuple(line.shape[0] if d == dim else 1 for d in range(ndim)))


def without_one(x: Tensor, dim: int) -> Tensor:
    """(..., n, ...) -> (..., n, n, ...): x along the second, with 1 in place of element k in row k of the first."""
    n = x.shape[dim]
    same = p.eq(_along(arange(n), dim, x.ndim + 1), _along(arange(n), dim + 1, x.ndim + 1))
    return p.where(same, 1, unsqueeze_op(x, dim=dim))


def _cumsum_grad(g: Tensor, *, dim: int, reverse: bool, x_dtype: dtype) -> Tensor:
    return _cumsum(_convert(g, x_dtype), dim, not reverse)


cumsum_op = Kernel(
    "cumsum", ("x",), build_scan("sum"), {"x": _cumsum_grad}, settings=("dim", "reverse", "out_dtype")
)
cumprod_op = Kernel(
    "cumprod", ("x",), build_scan("prod"), {"x": _cumprod_grad}, settings=("dim", "reverse", "out_dtype"),
    fast={"x": _fast_cumprod_grad},
)  # fmt: skip


def cumsum(x: Tensor, dim: int, *, dtype: dtype | None = None) -> Tensor:
    """Running sums along `dim`; integers and bools sum to int64, half types accumulate in float32.

    Shape: any; the result has the input's.
    Dtype: `dtype`; by default the input's, of integers and bool int64.
    Raises:
        IndexError: `dim` is out of range.
    """
    return cumsum_op(x, dim=wrap_dim(dim, x.ndim), reverse=False, out_dtype=_sum_dtype(x.dtype, dtype))


def cumprod(x: Tensor, dim: int, *, dtype: dtype | None = None) -> Tensor:
    """Running products along `dim`; integers and bools multiply to int64.

    The gradient is right at zeros too; a second derivative there takes memory for n products of n elements.

    Shape: any; the result has the input's.
    Dtype: `dtype`; by default the input's, of integers and bool int64.
    Raises:
        IndexError: `dim` is out of range.
    """
    return cumprod_op(x, dim=wrap_dim(dim, x.ndim), reverse=False, out_dtype=_sum_dtype(x.dtype, dtype))


# --- the product -----------------------------------------------------------------------------------------------------
def _build_prod(x: Tensor, dims: tuple[int, ...], keepdim: bool, out_dtype: dtype) -> tuple[list[Layout], Launch]:
    shape = tuple(x.shape)
    out = layout(out_dtype, reduced_shape(shape, dims, keepdim), None, compute)
    return [out], reduce_launch("prod", "prod", COPY, ((x.dtype, dtypes.TENSOR),), [x.layout], shape, dims, out)


def _prod(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return prod_op(x, dims=dims, keepdim=True, out_dtype=x.dtype)


def _prod_grad(
    g: Tensor, x: Tensor, *, dims: tuple[int, ...], keepdim: bool, x_shape: tuple[int, ...], x_dtype: dtype
) -> Tensor:
    """To be differentiated again: the product over x where no x is zero, else all products without one element."""
    g = _back(_convert(g, x_dtype), x_shape, dims, keepdim)
    if not x.ndim:
        return g
    if not bool(any_true(p.eq(x.detach(), 0))):
        return g * _prod(x, dims) / x
    if len(dims) > 1:  # all dimensions: the only case of several
        flat = reshape(x, (x.numel(),))
        return g * reshape(_others(flat, 0), x_shape)
    return g * _others(x, dims[0])


def _others(x: Tensor, dim: int) -> Tensor:
    return prod_op(without_one(x, dim), dims=(dim + 1,), keepdim=False, out_dtype=x.dtype)


def _fast_prod_grad(
    g: Tensor, x: Tensor, *, dims: tuple[int, ...], keepdim: bool, x_shape: tuple[int, ...], x_dtype: dtype
) -> Tensor:
    """With no zero the quotient, with one the product of the others at it, with more nothing."""
    g = _back(_convert(g, x_dtype), x_shape, dims, keepdim)
    zero = p.eq(x, 0)
    zeros = sum_op(zero, dims=dims, keepdim=True, out_dtype=dtypes.int64)
    others = g * _prod(p.where(zero, 1, x), dims)
    alone = p.where(p.logical_and(zero, p.eq(zeros, 1)), others, 0)
    return p.where(p.eq(zeros, 0), others / x, alone)


prod_op = Kernel(
    "prod", ("x",), _build_prod, {"x": _prod_grad}, settings=("dims", "keepdim", "out_dtype"),
    fast={"x": _fast_prod_grad},
)  # fmt: skip


def prod(x: Tensor, dim: int | None = None, keepdim: bool = False, *, dtype: dtype | None = None
         ) -> Tensor:  # fmt: skip
    """Product over `dim` (all if None). The gradient is right at zeros too.

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: `dtype`; by default the input's, of integers and bool int64.
    Raises:
        IndexError: there is no such dimension.
        TypeError: `dim` is not one dimension.
    """
    if dim is not None and not isinstance(dim, int):
        raise TypeError(f"prod(): argument 'dim' must be int, not {type(dim).__name__}")
    return prod_op(x, dims=wrap_dims(dim, x.ndim), keepdim=bool(keepdim), out_dtype=_sum_dtype(x.dtype, dtype))
