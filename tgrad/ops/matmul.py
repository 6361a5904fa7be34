"""Matrix products: matmul in all its forms, linear, and the precision of float32."""

from __future__ import annotations

from collections.abc import Sequence

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dispatch import ternary
from tgrad.dtypes import TENSOR
from tgrad.expression import Expression
from tgrad.kernels.launch import Launch
from tgrad.kernels.matmul import prepare_matmul
from tgrad.kernels.program import Program, program
from tgrad.kernels.scalar import add as scalar_add
from tgrad.layout import Layout, broadcast_shapes, broadcast_strides, collapse, layout, numel
from tgrad.op import Kernel, Op
from tgrad.ops import pointwise as p
from tgrad.ops.reduce import reduce_launch, sum_op
from tgrad.ops.views import fill_launch, owned, reshape, squeeze_op, t_op, transpose_op, unsqueeze_op, view_op
from tgrad.tensor import Tensor

# How float32 products are formed. Three tf32 products ("tf32x3") are as accurate as PyTorch's default, plain float32
# arithmetic, and run on tensor cores; Triton's own default, one tf32 product, is about 800 times less accurate.
PRECISIONS = {"highest": "tf32x3", "high": "tf32x3", "medium": "tf32"}
_precision = "highest"
_matmuls: list[Op] = []


def set_float32_matmul_precision(precision: str) -> None:
    """ "highest" (default) and "high": as accurate as float32 arithmetic; "medium": tf32 products.

    Raises:
        RuntimeError: another name.
    """
    global _precision
    if precision not in PRECISIONS:
        raise RuntimeError(f"set_float32_matmul_precision: expected one of {list(PRECISIONS)}, got {precision!r}")
    _precision = precision
    for op in _matmuls:
        op.plans.clear()


def get_float32_matmul_precision() -> str:
    """What `set_float32_matmul_precision` set."""
    return _precision


def product_launch(
    name: str, a: Layout, b: Layout, out: Layout, batch: tuple[int, ...], extras: Sequence[Layout] = (),
    epilogue: Program | None = None,
) -> Launch:  # fmt: skip
    """out[..., m, n] = epilogue(sum over k of a[..., m, k] * b[..., k, n], extras[m, n]) with `batch` leading
    dimensions.

    Integers are multiplied and summed by the reduction kernel: tensor cores have no 32- or 64-bit integers.
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
    return prepare_matmul(
        epilogue,
        ((out.dtype.triton,), a.dtype.triton, b.dtype.triton, tuple(e.dtype.triton for e in extras)),
        (m, n, k),
        (a.strides[-2], a.strides[-1]), (b.strides[-2], b.strides[-1]), extra_strides, (sizes, rows),
        precision="ieee" if a.dtype is dtypes.float64 else PRECISIONS[_precision],
        aligned=all(t.aligned for t in (a, b, out, *extras)),
        wide=max(t.extent for t in (a, b, out)) >= 2**31,
        name=name,
    )  # fmt: skip


_MULTIPLY = Expression.of(p.mul, 2)


def _check_types(name: str, a: Tensor, b: Tensor) -> None:
    if a.dtype is not b.dtype:
        raise RuntimeError(f"{name}: expected m1 and m2 to have the same dtype, but got: {a.dtype!r} != {b.dtype!r}")
    if a.dtype is dtypes.bool_:
        raise RuntimeError(f"{name}: not implemented for bool tensors: convert them first, as in x.int()")


def _by(x: Tensor) -> str:
    return "x".join(map(str, x.shape))


def _build_matmul(a: Tensor, b: Tensor) -> tuple[list[Layout], Launch]:
    _check_types("matmul", a, b)
    if a.shape[-1] != b.shape[-2]:
        raise RuntimeError(
            f"mat1 and mat2 shapes cannot be multiplied ({_by(a)} and {_by(b)}): {a.shape[-1]} columns meet "
            f"{b.shape[-2]} rows"
        )
    batch = broadcast_shapes(tuple(a.shape[:-2]), tuple(b.shape[:-2]))
    out = layout(a.dtype, (*batch, a.shape[-2], b.shape[-1]), None, compute)
    return [out], product_launch("matmul", a.layout, b.layout, out, batch)


def _mT(x: Tensor) -> Tensor:
    n = x.ndim
    return transpose_op(x, dims=(*range(n - 2), n - 1, n - 2))


def _matmul_op(name: str, grad_name: str) -> Kernel:
    op = Kernel(
        name, ("a", "b"), _build_matmul,
        {"a": lambda g, b: op(g, _mT(b)), "b": lambda g, a: op(_mT(a), g)}, grad_name=grad_name,
    )  # fmt: skip
    _matmuls.append(op)
    return op


mm_op, bmm_op = _matmul_op("mm", "Mm"), _matmul_op("bmm", "Bmm")


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """The matrix product, with PyTorch's rules: vectors are rows (left) or columns (right), leading dimensions
    broadcast.

    Raises:
        RuntimeError: the inner sizes or the dtypes differ; an operand is 0-dimensional.
    """
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        wrong = b if isinstance(a, Tensor) else a
        raise TypeError(f"matmul: expected two Tensors, got {type(wrong).__name__}")
    if a.ndim == 0 or b.ndim == 0:
        raise RuntimeError(f"both arguments to matmul need to be at least 1D, but they are {a.ndim}D and {b.ndim}D")
    left, right = a.ndim == 1, b.ndim == 1
    if left and right and a.shape != b.shape:
        raise RuntimeError(
            f"inconsistent tensor size, expected tensor {list(a.shape)} and src {list(b.shape)} to have the same "
            "number of elements"
        )
    x = unsqueeze_op(a, dim=0) if left else a
    y = unsqueeze_op(b, dim=1) if right else b
    if y.ndim == 2 and x.ndim > 2:  # one product of tall matrices, not many small ones
        flat = reshape(x, (numel(x.shape[:-1]), x.shape[-1]))
        out = owned(view_op(mm_op(flat, y), shape=(*x.shape[:-1], y.shape[1])))
    else:
        out = mm_op(x, y) if x.ndim == y.ndim == 2 else bmm_op(x, y)
    if left:
        out = owned(squeeze_op(out, dims=(out.ndim - 2,)))
    return owned(squeeze_op(out, dims=(out.ndim - 1,))) if right else out


def mm(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices, (M, K) and (K, N)."""
    if a.ndim != 2 or b.ndim != 2:
        raise RuntimeError(f"mm: expected two matrices, got {a.ndim}D and {b.ndim}D tensors")
    return mm_op(a, b)


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """Products of two batches of matrices, (B, M, K) and (B, K, N)."""
    if a.ndim != 3 or b.ndim != 3:
        raise RuntimeError(f"batch1 must be a 3D tensor: bmm: expected two 3D tensors, got {a.ndim}D and {b.ndim}D")
    if a.shape[0] != b.shape[0]:
        raise RuntimeError(f"bmm: expected equal batch sizes, got {a.shape[0]} and {b.shape[0]}")
    return bmm_op(a, b)


# --- linear
# ------------------------------------------------------------------------------------------------------------
def _bias_program(accumulator: str, bias: str, out: str) -> Program:
    return program(2, (), ((scalar_add, ((0, None), (1, None if bias == accumulator else accumulator))),), ((2, out),))


def _build_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[list[Layout], Launch]:
    if weight.ndim != 2:
        raise RuntimeError(
            f"linear: weight must be 2-dimensional (out_features, in_features), got shape {tuple(weight.shape)}"
        )
    if input.shape[-1] != weight.shape[1]:
        raise RuntimeError(
            f"linear: input has {input.shape[-1]} features, weight expects {weight.shape[1]} (input shape "
            f"{tuple(input.shape)}, weight shape {tuple(weight.shape)})"
        )
    _check_types("linear", input, weight)
    if bias is not None:
        if tuple(bias.shape) != (weight.shape[0],):
            raise RuntimeError(
                f"linear: bias must have shape ({weight.shape[0]},) for weight shape {tuple(weight.shape)}, got "
                f"{tuple(bias.shape)}"
            )
        _check_types("linear", input, bias)
    out = layout(input.dtype, (input.shape[0], weight.shape[0]), None, compute)
    w = weight.layout
    transposed = layout(w.dtype, (w.shape[1], w.shape[0]), (w.strides[1], w.strides[0]), compute, w.aligned)
    extras, epilogue = [], None
    if bias is not None:
        extras = [bias.layout]
        epilogue = _bias_program(
            "fp64" if input.dtype is dtypes.float64 else "fp32", bias.dtype.triton, out.dtype.triton
        )
    return [out], product_launch("linear", input.layout, transposed, out, (), extras, epilogue)


linear_op = Kernel(
    "linear", ("input", "weight", "bias"), _build_linear,
    {
        "input": lambda g, weight: mm_op(g, weight),  # noqa: PLW0108  the parameters name what is saved
        "weight": lambda g, input: mm_op(t_op(g, dims=(1, 0)), input),
        "bias": lambda g, *, input_dtype: sum_op(g, dims=(0,), keepdim=False, out_dtype=input_dtype),
    },
    grad_name="Addmm",
)  # fmt: skip
_matmuls.append(linear_op)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias: (*, K), (N, K), (N,) -> (*, N), in one kernel.

    Keeps `input` for the weight's gradient and `weight` for the input's, each only if that gradient is wanted.

    Raises:
        RuntimeError: sizes or dtypes do not match.
    """
    return _known_linear(input, weight, bias)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    for name, x in (("input", input), ("weight", weight), *((("bias", bias),) if bias is not None else ())):
        if not isinstance(x, Tensor):
            raise TypeError(f"linear: {name} must be a Tensor, got {type(x).__name__}")
    if input.ndim == 2:
        return linear_op(input, weight, bias)
    if input.ndim == 0:
        raise RuntimeError("linear: input must have at least one dimension, got a 0-dimensional tensor")
    rows = numel(input.shape[:-1])
    out = linear_op(reshape(input, (rows, input.shape[-1])), weight, bias)
    return owned(view_op(out, shape=(*input.shape[:-1], weight.shape[0])))


_known_linear = ternary(linear_op, _linear)
