"""Reductions in two passes or with a root: var, std, vector norms, logsumexp."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dtypes import dtype
from tgrad.expression import Expression
from tgrad.kernels import scalar
from tgrad.kernels.launch import Launch
from tgrad.layout import Layout, layout, numel, wrap_dims
from tgrad.op import Kernel, pointwise_launch
from tgrad.ops import math as m, pointwise as p
from tgrad.ops.reduce import COPY, _back, mean_op, reduce_launch, reduced_shape, sum_op
from tgrad.storage import workspace
from tgrad.tensor import Tensor

# --- variance: the mean first, then the squares of what is left ------------------------------------------------------
SQUARES = Expression.of(p.squared_error, 2)


def _build_var(root: bool) -> Any:
    name = "std" if root else "var"

    def build(
        x: Tensor, dims: tuple[int, ...], keepdim: bool, correction: float
    ) -> tuple[list[Layout], Launch]:
        shape = tuple(x.shape)
        wide = dtypes.accumulator(x.dtype)
        out = layout(x.dtype, reduced_shape(shape, dims, keepdim), None, compute)
        mean = layout(wide, reduced_shape(shape, dims, True), None, compute)
        one, two = (x.dtype, dtypes.TENSOR), (wide, dtypes.TENSOR)
        cast = Expression.of(p.cast(wide), 1)
        first = reduce_launch(name, "sum", cast, (one,), [x.layout], shape, dims, mean, divide=True)
        then = [(scalar.sqrt, None)] if root else []
        second = reduce_launch(
            name, "sum", SQUARES, (one, two), [x.layout, mean], shape, dims, out, divide=True, then=then
        )
        count = float(numel(shape[d] for d in dims))
        freedom = max(0.0, count - correction)

        def launch(to: int, source: int) -> None:
            held = workspace(mean.numel * wide.itemsize)
            first(held.ptr, source, count)
            second(to, source, held.ptr, freedom)

        return [out], launch if out.numel else _nothing

    return build


def _nothing(*addresses: int | float) -> None:
    pass


def _var_grad(
    g: Tensor, x: Tensor, *, dims: tuple[int, ...], keepdim: bool, correction: float, x_shape: tuple[int, ...]
) -> Tensor:
    freedom = numel(x_shape[d] for d in dims) - correction
    scale = 2.0 / freedom if freedom else math.inf
    return _back(g, x_shape, dims, keepdim) * scale * (x - mean_op(x, dims=dims, keepdim=True, out_dtype=x.dtype))


def _std_grad(
    g: Tensor, x: Tensor, out: Tensor, *, dims: tuple[int, ...], keepdim: bool, correction: float,
    x_shape: tuple[int, ...],
) -> Tensor:  # fmt: skip
    halved = p.where(p.eq(out, 0), 0, g / (out * 2))
    return _var_grad(halved, x, dims=dims, keepdim=keepdim, correction=correction, x_shape=x_shape)


var_op = Kernel("var", ("x",), _build_var(False), {"x": _var_grad}, settings=("dims", "keepdim", "correction"))
std_op = Kernel("std", ("x",), _build_var(True), {"x": _std_grad}, settings=("dims", "keepdim", "correction"))


def _spread(op: Kernel, x: Tensor, dim: Any, unbiased: Any, correction: Any, keepdim: bool) -> Tensor:
    if isinstance(dim, bool):  # var(x, unbiased)
        dim, unbiased = None, dim
    if not x.dtype.is_floating_point:
        raise RuntimeError(f"{op.name}: dtype {x.dtype.name} is not supported; cast to a floating dtype")
    if unbiased is not None and correction is not None:
        raise TypeError(f"{op.name}(): give unbiased or correction, not both")
    amount = (1.0 if unbiased is None else float(unbiased)) if correction is None else float(correction)
    dims = wrap_dims(dim, x.ndim)
    if numel(x.shape[d] for d in dims) <= amount:
        warnings.warn(
            f"{op.name}(): degrees of freedom is <= 0. Correction should be strictly less than the reduction factor "
            "(input numel divided by output numel).",
            stacklevel=3,
        )
    return op(x, dims=dims, keepdim=bool(keepdim), correction=amount)


def var(x: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *,
        correction: float | None = None) -> Tensor:  # fmt: skip
    """Variance over `dim` (all if None): squares of the distances from the mean, over their number less `correction`.

    Args:
        correction: 1 if not given; `unbiased` True and False mean 1 and 0.

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: floating; the result has the input's.
    Raises:
        RuntimeError: the dtype is not floating; a dimension is named twice.
        IndexError: a dimension is out of range.
        TypeError: both `unbiased` and `correction` are given.
    """
    return _spread(var_op, x, dim, unbiased, correction, keepdim)


def std(x: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *,
        correction: float | None = None) -> Tensor:  # fmt: skip
    """The standard deviation over `dim` (all if None), the square root of `tgrad.var`, whose arguments it has.

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: floating; the result has the input's.
    Raises:
        RuntimeError: the dtype is not floating; a dimension is named twice.
        IndexError: a dimension is out of range.
        TypeError: both `unbiased` and `correction` are given.
    """
    return _spread(std_op, x, dim, unbiased, correction, keepdim)


def _mean(x: Tensor, dim: Any, keepdim: bool) -> Tensor:
    dims = wrap_dims(None if isinstance(dim, bool) else dim, x.ndim)
    return mean_op(x, dims=dims, keepdim=bool(keepdim), out_dtype=x.dtype)


def var_mean(x: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *,
             correction: float | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(var, mean) over `dim` (all if None). See `tgrad.var`.

    Shape: two tensors, each without `dim`, or with size 1 there under `keepdim`.
    Dtype: floating; the results have the input's.
    Raises:
        RuntimeError: the dtype is not floating; a dimension is named twice.
        IndexError: a dimension is out of range.
        TypeError: both `unbiased` and `correction` are given.
    """
    return var(x, dim, unbiased, keepdim, correction=correction), _mean(x, dim, keepdim)


def std_mean(x: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *,
             correction: float | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(std, mean) over `dim` (all if None). See `tgrad.var`.

    Shape: two tensors, each without `dim`, or with size 1 there under `keepdim`.
    Dtype: floating; the results have the input's.
    Raises:
        RuntimeError: the dtype is not floating; a dimension is named twice.
        IndexError: a dimension is out of range.
        TypeError: both `unbiased` and `correction` are given.
    """
    return std(x, dim, unbiased, keepdim, correction=correction), _mean(x, dim, keepdim)


# --- vector norms ----------------------------------------------------------------------------------------------------
def _norm_parts(order: float) -> tuple[str, Expression, list]:
    """(kind of reduction, of what, what becomes of the total)."""
    if order == 0:
        return "sum", Expression.of(lambda x: p.ne(x, 0), 1), []
    if order == 1:
        return "sum", Expression.of(p.abs, 1), []
    if order == 2:
        return "sum", Expression.of(p.square, 1), [(scalar.sqrt, None)]
    if math.isinf(order):
        return ("max" if order > 0 else "min"), Expression.of(p.abs, 1), []
    return "sum", Expression.of(lambda x: p.pow(p.abs(x), order), 1), [(scalar.pow, 1 / order)]


def _build_norm(
    x: Tensor, order: float, dims: tuple[int, ...], keepdim: bool
) -> tuple[list[Layout], Launch]:
    shape = tuple(x.shape)
    out = layout(x.dtype, reduced_shape(shape, dims, keepdim), None, compute)
    wide = dtypes.accumulator(x.dtype)
    kind, what, then = _norm_parts(order)
    trace = Expression.of(lambda x: what_of(what, p.cast(wide)(x)), 1) if wide is not x.dtype else what
    operands = ((x.dtype, dtypes.TENSOR),)
    if not numel(shape[d] for d in dims):
        kind, then = "sum", []
    return [out], reduce_launch("norm", kind, trace, operands, [x.layout], shape, dims, out, then=then)


def what_of(expression: Expression, symbol: Any) -> Any:
    """An expression of one input, applied to a symbol."""
    done = expression.replay(symbol.trace, [symbol])
    return done[-1]


def _norm_grad(
    g: Tensor, x: Tensor, out: Tensor, *, order: float, dims: tuple[int, ...], keepdim: bool, x_shape: tuple[int, ...]
) -> Tensor:
    g, whole = _back(g, x_shape, dims, keepdim), _back(out, x_shape, dims, keepdim)
    if order == 0:
        return p.where(False, g, 0)
    if order == 1:
        return g * m.sign(x)
    if order == 2:
        return x * p.where(p.eq(whole, 0), 0, g / whole)
    if math.isinf(order):
        found = p.eq(p.abs(x), whole)
        count = sum_op(found, dims=dims, keepdim=True, out_dtype=x.dtype)
        return m.sign(x) * p.where(found, g / count, 0)
    if order < 1:
        powers = m.sign(x) * p.pow(p.abs(x), order - 1)
        return p.where(p.eq(x, 0), 0, powers) * g * p.pow(whole, 1 - order)
    if order < 2:
        return m.sign(x) * p.pow(p.abs(x), order - 1) * p.where(p.eq(whole, 0), 0, g / p.pow(whole, order - 1))
    return x * p.pow(p.abs(x), order - 2) * p.where(p.eq(whole, 0), 0, g / p.pow(whole, order - 1))


norm_op = Kernel(
    "norm", ("x",), _build_norm, {"x": _norm_grad}, settings=("order", "dims", "keepdim"), grad_name="LinalgVectorNorm"
)


def vector_norm(x: Tensor, ord: float = 2, dim: int | Sequence[int] | None = None, keepdim: bool = False, *,
                dtype: dtype | None = None) -> Tensor:  # fmt: skip
    """(sum |x| ** ord) ** (1 / ord) over `dim` (all if None); 0 counts what is not zero, inf is the greatest |x|.

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: floating; `dtype`, by default the input's.
    Raises:
        RuntimeError: the dtype is not floating; a dimension is named twice; there are no elements and `ord` is infinite
            or negative.
        IndexError: a dimension is out of range.
    """
    x = x if dtype is None or dtype is x.dtype else p.cast(dtype)(x)
    if not x.dtype.is_floating_point:
        raise RuntimeError(f"norm: dtype {x.dtype.name} is not supported; cast to a floating dtype")
    dims = wrap_dims(dim, x.ndim)
    if (ord < 0 or math.isinf(ord)) and not numel(x.shape[d] for d in dims):
        raise RuntimeError(
            f"linalg.vector_norm cannot compute the {ord} norm on an empty tensor because the operation does not have "
            "an identity"
        )
    return norm_op(x, order=float(ord), dims=dims, keepdim=bool(keepdim))


def norm(x: Tensor, p: float | str | None = "fro", dim: int | Sequence[int] | None = None, keepdim: bool = False,
         dtype: dtype | None = None) -> Tensor:  # fmt: skip
    """The vector norm of order `p` over `dim` (all if None); "fro" is 2.

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: floating; `dtype`, by default the input's.
    Raises:
        RuntimeError: `p` is another name; the dtype is not floating; a dimension is named twice; there are no elements
            and `p` is infinite or negative.
        IndexError: a dimension is out of range.
    """
    if p is None or p == "fro":
        p = 2.0
    if isinstance(p, str):
        raise RuntimeError(f"norm: order {p!r} is not supported: give 'fro' or a number")
    return vector_norm(x, p, dim, keepdim, dtype=dtype)


# --- logsumexp -------------------------------------------------------------------------------------------------------
SHIFTED = Expression.of(lambda x, high: p.exp(x - p.where(m.isfinite(high), high, 0)), 2)
SHIFTED_BACK = Expression.of(lambda total, high: p.log(total) + p.where(m.isfinite(high), high, 0), 2)


def _build_logsumexp(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> tuple[list[Layout], Launch]:
    shape = tuple(x.shape)
    out = layout(x.dtype, reduced_shape(shape, dims, keepdim), None, compute)
    wide = dtypes.accumulator(x.dtype)
    high = layout(wide, reduced_shape(shape, dims, True), None, compute)
    one, two = (x.dtype, dtypes.TENSOR), (wide, dtypes.TENSOR)
    flat = layout(wide, tuple(out.shape), None, compute)
    first = reduce_launch("logsumexp", "max", COPY, (one,), [x.layout], shape, dims, high)
    second = reduce_launch("logsumexp", "sum", SHIFTED, (one, two), [x.layout, high], shape, dims, high)
    third = pointwise_launch("logsumexp", SHIFTED_BACK.lower((two, two), [x.dtype]), [out], [flat, flat])

    def launch(to: int, source: int) -> None:
        highest, total = (workspace(high.numel * wide.itemsize) for _ in range(2))
        first(highest.ptr, source)
        second(total.ptr, source, highest.ptr)
        third(to, total.ptr, highest.ptr)

    return [out], launch


logsumexp_op = Kernel(
    "logsumexp", ("x",), _build_logsumexp,
    {"x": lambda g, x, out, *, dims, keepdim, x_shape: _back(g, x_shape, dims, keepdim) * p.exp(
        x - _back(out, x_shape, dims, keepdim))},
    settings=("dims", "keepdim"),
)  # fmt: skip


def logsumexp(x: Tensor, dim: int | Sequence[int], keepdim: bool = False) -> Tensor:
    """log(sum(exp(x))) over `dim`, without overflow.

    Shape: without `dim`, or with size 1 there under `keepdim`.
    Dtype: the input's, of integers and bool the default dtype.
    Raises:
        IndexError: a dimension is out of range.
        RuntimeError: one is named twice.
    """
    x = x if x.dtype.is_floating_point else p.cast(dtypes.get_default_dtype())(x)
    return logsumexp_op(x, dims=wrap_dims(dim, x.ndim), keepdim=bool(keepdim))
