"""Matrix products: matmul in all its forms, and the precision of float32."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dispatch import dispatch
from tgrad.dtypes import TENSOR
from tgrad.expression import Expression
from tgrad.kernels.launch import Launch
from tgrad.kernels.matmul import Operands, prepare_matmul
from tgrad.kernels.program import Program, program
from tgrad.kernels.scalar import identity
from tgrad.layout import Layout, broadcast_shapes, broadcast_strides, collapse, layout, numel, view_strides
from tgrad.op import Kernel, forget_plans
from tgrad.ops import pointwise as p
from tgrad.ops.reduce import reduce_launch
from tgrad.ops.views import contiguous_op, fill_launch, owned, reshape, squeeze_op, transpose_op, unsqueeze_op
from tgrad.storage import workspace
from tgrad.tensor import Tensor

# How float32 products are formed on a GPU. Three tf32 products ("tf32x3") run on tensor cores and are as accurate as
# PyTorch's default, plain float32 arithmetic: each step along K is summed by itself there, and added in float32. One
# tf32 product, Triton's own default, has about 800 times the error.
PRECISIONS = {"highest": "tf32x3", "high": "tf32x3", "medium": "tf32"}
_precision = "highest"


def set_float32_matmul_precision(precision: str) -> None:
    """How products of float32 matrices are formed on a GPU. On the CPU all of these are plain float32 arithmetic.

    "highest" (the default) and "high": three tf32 products, with the error of float32 arithmetic or less; PyTorch's
    "high" is one tf32 product. "medium": one tf32 product, relative error about 3e-4; PyTorch's is one in bfloat16,
    3e-3.

    Raises:
        RuntimeError: another name.
    """
    global _precision
    if precision not in PRECISIONS:
        raise RuntimeError(f"set_float32_matmul_precision: expected one of {list(PRECISIONS)}, got {precision!r}")
    _precision = precision
    forget_plans()


def get_float32_matmul_precision() -> str:
    """What `set_float32_matmul_precision` set."""
    return _precision


def product_launch(
    name: str, a: Layout, b: Layout, out: Layout, batch: tuple[int, ...], extras: Sequence[Layout] = (),
    epilogue: Program | None = None, sums: Layout | None = None,
) -> Launch:  # fmt: skip
    """out[..., m, n] = epilogue(sum over k of a[..., m, k] * b[..., k, n], extras[m, n]) with `batch` leading
    dimensions.

    The callable takes the addresses of out, of the sums of a's rows if there is a layout `sums` for them (of floating
    matrices that are not empty), of a, b and the extras. Integers are multiplied and summed by the reduction kernel:
    tensor cores have no 32- or 64-bit integers.
    """
    m, n, k = a.shape[-2], b.shape[-1], a.shape[-1]
    if out.numel == 0:
        return lambda *addresses: None
    if k == 0 and epilogue is None:
        fill = fill_launch("zeros", out)
        return lambda to, *_: fill(to, 0)
    a_batch = broadcast_strides(tuple(a.shape[:-2]), a.strides[:-2], batch)
    b_batch = broadcast_strides(tuple(b.shape[:-2]), b.strides[:-2], batch)
    if not a.dtype.is_floating_point:
        shape = (*batch, m, n, k)
        wide_a = layout(a.dtype, shape, (*a_batch, a.strides[-2], 0, a.strides[-1]), compute, a.aligned)
        wide_b = layout(b.dtype, shape, (*b_batch, 0, b.strides[-1], b.strides[-2]), compute, b.aligned)
        operands = ((a.dtype, TENSOR), (b.dtype, TENSOR))
        return reduce_launch(name, "sum", _MULTIPLY, operands, [wide_a, wide_b], shape, (len(shape) - 1,), out)
    epilogue = epilogue or program(1, (), (), ((0, out.dtype.triton),))
    sizes, rows = collapse(batch, [a_batch, b_batch])
    extra_strides = tuple(((0, 0) + tuple(e.strides))[-2:] for e in extras)
    tensors = (a, b, out, *extras) if sums is None else (a, b, out, *extras, sums)
    product = Operands(
        (out.dtype.triton, a.dtype.triton, tuple(e.dtype.triton for e in extras)), (m, n, k),
        (a.strides[-2], a.strides[-1]), (b.strides[-2], b.strides[-1]), extra_strides, (sizes, rows),
        aligned=all(t.aligned for t in tensors),
        wide=max(t.extent for t in (a, b, out, *extras)) >= 2**31,
    )  # fmt: skip
    precision = "ieee" if a.dtype is dtypes.float64 else PRECISIONS[_precision]
    launch, nbytes = prepare_matmul(epilogue, product, precision=precision, sums=sums is not None, name=name)
    if not nbytes:
        return launch

    def with_workspace(*addresses: int | float) -> None:
        room = workspace(nbytes)
        launch(room.ptr, *addresses)

    return with_workspace


_MULTIPLY = Expression.of(p.mul, 2)


def check_types(name: str, a: Tensor, b: Tensor) -> None:
    if a.dtype is not b.dtype:
        raise RuntimeError(f"{name}: expected m1 and m2 to have the same dtype, but got: {a.dtype!r} != {b.dtype!r}")
    if a.dtype is dtypes.bool_:
        raise RuntimeError(f"{name}: not implemented for bool tensors: convert them first, as in x.int()")


# --- rows: of dimensions (..., K), all but the last are the rows of one matrix
# ------------------------------------------------------------------------------------------------------------
def _matrix(x: Layout) -> Layout | None:
    """The layout of x's rows as one matrix; None where only a copy could have it."""
    if len(x.shape) == 2:
        return x
    shape = numel(x.shape[:-1]), x.shape[-1]
    strides = view_strides(tuple(x.shape), x.strides, shape)
    return None if strides is None else layout(x.dtype, shape, strides, x.device, x.aligned)


def by_rows(x: Tensor) -> Tensor:
    """x as `rows_launch` takes it: a copy where x would give many products of few rows each."""
    if len(x.shape) == 2 or x.layout.contiguous or _matrix(x.layout) is not None:
        return x
    return x if len(x.shape) > 2 and x.shape[-2] >= MANY_ROWS else contiguous_op(x)


MANY_ROWS = 64


def flat(x: Tensor) -> Tensor:
    """The rows of x as one matrix: a view where strides allow it."""
    shape = x.shape
    return x if len(shape) == 2 else reshape(x, (numel(shape[:-1]), shape[-1]))


def rows_launch(
    name: str, x: Layout, w: Layout, out: Layout, extras: Sequence[Layout] = (), epilogue: Program | None = None
) -> Launch:
    """`product_launch` of x's rows, (..., K), and a matrix w (K, N): one product where they are one matrix, else one
    for each matrix of x. Extras are one row, (N,), or have the result's shape; then x's rows are to be one matrix.
    """
    one = _matrix(x)
    if one is None:
        return product_launch(name, x, w, out, tuple(x.shape[:-2]), extras, epilogue)
    shape = numel(out.shape[:-1]), out.shape[-1]
    extras = [e if len(e.shape) < 2 else layout(e.dtype, shape, None, compute, e.aligned) for e in extras]
    return product_launch(name, one, w, layout(out.dtype, shape, None, compute), (), extras, epilogue)


def rounded_first(expression: Expression, result: dtypes.dtype, others: Sequence[dtypes.dtype]) -> Program:
    """`expression` of an accumulator, rounded to `result` as where it is stored between, and of tensors of the dtypes
    `others`, as the epilogue of a product.
    """
    operands = ((result, TENSOR), *((d, TENSOR) for d in others))
    whole = expression.lower(operands, [result]).program
    if dtypes.accumulator(result) is result:
        return whole
    first = whole.n_inputs + len(whole.constants)

    def moved(slot: int) -> int:
        return first if slot == 0 else slot if slot < first else slot + 1

    steps = [(f, tuple((moved(slot), kind) for slot, kind in args)) for f, args in whole.steps]
    rounded = (identity, ((0, result.triton),))
    results = tuple((moved(slot), kind) for slot, kind in whole.results)
    return program(whole.n_inputs, whole.constants, (rounded, *steps), results)


@functools.cache
def _rows_op(name: str, expression: Expression, count: int) -> Kernel:
    """The product of rows and a matrix, with `expression` of it, and of `count` tensors, in place of itself."""

    def build(g: Tensor, weight: Tensor, *values: Tensor) -> tuple[list[Layout], Launch]:
        out = layout(g.dtype, (*g.shape[:-1], weight.shape[1]), None, compute)
        epilogue = rounded_first(expression, g.dtype, [v.dtype for v in values])
        return [out], rows_launch(name, g.layout, weight.layout, out, [v.layout for v in values], epilogue)

    return Kernel(name, ("g", "weight", *(f"x{i}" for i in range(count))), build, {})


def folded_rows(name: str, g: Tensor, weight: Tensor, expression: Expression, values: Sequence[Tensor]) -> Tensor:
    g = g if len(g.shape) == 2 or _matrix(g.layout) is not None else contiguous_op(g)
    return dispatch(_rows_op(name, expression, len(values)), (g, weight, *values))[0]


# --- matmul
# ------------------------------------------------------------------------------------------------------------
def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _build_matmul(a: Tensor, b: Tensor) -> tuple[list[Layout], Launch]:
    check_types("matmul", a, b)
    rows = b.ndim == 2
    if a.shape[-1] != b.shape[-2]:
        left = (numel(a.shape[:-1]), a.shape[-1]) if rows else a.shape
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({_by(left)} and {_by(b.shape)}): {a.shape[-1]} columns meet "
            f"{b.shape[-2]} rows"
        )
    if rows:
        out = layout(a.dtype, (*a.shape[:-1], b.shape[1]), None, compute)
        return [out], rows_launch("matmul", a.layout, b.layout, out)
    batch = broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
    out = layout(a.dtype, (*batch, a.shape[-2], b.shape[-1]), None, compute)
    return [out], product_launch("matmul", a.layout, b.layout, out, batch)


def _mT(x: Tensor) -> Tensor:
    n = x.ndim
    return transpose_op(x, dims=(*range(n - 2), n - 1, n - 2))


# Of rows (..., K) and a matrix (K, N). The gradient of b is one product over all rows.
mm_op: Kernel = Kernel(
    "mm", ("a", "b"), _build_matmul,
    {"a": lambda g, b: mm_op(by_rows(g), _mT(b)), "b": lambda g, a: mm_op(_mT(flat(a)), flat(g))},
    fold=("a", lambda g, b, expression, values: folded_rows("matmul", g, _mT(b), expression, values)), grad_name="Mm",
)  # fmt: skip
bmm_op: Kernel = Kernel(
    "bmm", ("a", "b"), _build_matmul,
    {"a": lambda g, b: bmm_op(g, _mT(b)), "b": lambda g, a: bmm_op(_mT(a), g)}, grad_name="Bmm",
)  # fmt: skip


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product, with PyTorch's rules: vectors are rows (left) or columns (right), leading dimensions
    broadcast.

    Shape: (..., M, K) and (..., K, N) give (..., M, N); (K,) counts as (1, K) on the left, (K, 1) on the right, and
    that size is dropped from the result.
    Dtype: the same of both, any but bool; the result has it. Half types accumulate in float32.
    Raises:
        TypeError: an operand is no Tensor.
        RuntimeError: the inner sizes or the dtypes differ; an operand is 0-dimensional; the dtype is bool; leading
            dimensions do not broadcast.
    """
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        wrong = b if isinstance(a, Tensor) else a
        raise TypeError(f"matmul: expected two Tensors, got {type(wrong).__name__}")
    if a.ndim == 0 or b.ndim == 0:
        raise RuntimeError(f"both arguments to matmul need to be at least 1D, but they are {a.ndim}D and {b.ndim}D")
    right = b.ndim == 1
    if a.ndim == 1 and right and a.shape != b.shape:
        raise RuntimeError(
            f"inconsistent tensor size, expected tensor {list(a.shape)} and src {list(b.shape)} to have the same "
            "number of elements"
        )
    y = unsqueeze_op(b, dim=1) if right else b
    if 2 < y.ndim <= a.ndim and y.shape[0] == 1 and numel(y.shape[:-2]) == 1:
        y = reshape(y, y.shape[-2:])
    if y.ndim == 2:
        out = mm_op(by_rows(a), y)
        return owned(squeeze_op(out, dims=(out.ndim - 1,))) if right else out
    if a.ndim > 1:
        return bmm_op(a, y)
    out = bmm_op(unsqueeze_op(a, dim=0), y)
    return owned(squeeze_op(out, dims=(out.ndim - 2,)))


def mm(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices.

    Shape: (M, K) and (K, N) give (M, N).
    Dtype: the same of both, any but bool; the result has it. Half types accumulate in float32.
    Raises:
        RuntimeError: an operand is no matrix; the inner sizes or the dtypes differ; the dtype is bool.
    """
    if a.ndim != 2 or b.ndim != 2:
        raise RuntimeError(f"mm: expected two matrices, got {a.ndim}D and {b.ndim}D tensors")
    return mm_op(a, b)


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """The products of two batches of matrices.

    Shape: (B, M, K) and (B, K, N) give (B, M, N).
    Dtype: the same of both, any but bool; the result has it. Half types accumulate in float32.
    Raises:
        RuntimeError: an operand is not 3-dimensional; sizes or dtypes differ; the dtype is bool.
    """
    if a.ndim != 3 or b.ndim != 3:
        raise RuntimeError(f"batch1 must be a 3D tensor: bmm: expected two 3D tensors, got {a.ndim}D and {b.ndim}D")
    if a.shape[0] != b.shape[0]:
        raise RuntimeError(f"bmm: expected equal batch sizes, got {a.shape[0]} and {b.shape[0]}")
    return bmm_op(a, b)
