"""Matrix products: matmul in all its forms, linear, and the precision of float32."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dispatch import dispatch, ternary
from tgrad.dtypes import TENSOR
from tgrad.expression import Expression
from tgrad.kernels.launch import Launch
from tgrad.kernels.matmul import Operands, prepare_matmul
from tgrad.kernels.program import Program, program
from tgrad.kernels.scalar import add as scalar_add, identity
from tgrad.layout import Layout, broadcast_shapes, broadcast_strides, collapse, layout, numel
from tgrad.op import Kernel, forget_plans, pointwise_launch
from tgrad.ops import pointwise as p
from tgrad.ops.reduce import reduce_launch, sum_op
from tgrad.ops.views import fill_launch, owned, reshape, squeeze_op, t_op, transpose_op, unsqueeze_op, view_op
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


_MULTIPLY, _ADD = Expression.of(p.mul, 2), Expression.of(p.add, 2)


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
    return op


mm_op, bmm_op = _matmul_op("mm", "Mm"), _matmul_op("bmm", "Bmm")


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


# --- linear
# ------------------------------------------------------------------------------------------------------------
def bias_program(accumulator: str, bias: str, out: str) -> Program:
    """accumulator + bias, as the epilogue of a product; Triton types."""
    return program(2, (), ((scalar_add, ((0, None), (1, None if bias == accumulator else accumulator))),), ((2, out),))


def _build_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: Expression | None = None
) -> tuple[list[Layout], Launch]:
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
    if bias is not None and not input.dtype.is_floating_point:
        product = product_launch("linear", input.layout, transposed, out, ())
        add = pointwise_launch("linear", _ADD.lower(((out.dtype, TENSOR),) * 2, [None]), [out], [out, bias.layout])

        def launch(to: int, x: int, w: int, b: int) -> None:
            product(to, x, w)
            add(to, to, b)

        return [out], launch
    if bias is not None:
        extras = [bias.layout]
        epilogue = bias_program(
            "fp64" if input.dtype is dtypes.float64 else "fp32", bias.dtype.triton, out.dtype.triton
        )
    if activation is not None:
        epilogue = _activated(epilogue, activation, out.dtype)
    return [out], product_launch("linear", input.layout, transposed, out, (), extras, epilogue)


def _activated(epilogue: Program | None, activation: Expression, result: dtypes.dtype) -> Program:
    """An epilogue, rounding to `result` as where it is stored between, and an activation."""
    then = activation.lower(((result, TENSOR),), [result]).program
    inputs = epilogue.n_inputs if epilogue is not None else 1
    steps = list(epilogue.steps) if epilogue is not None else []
    shift = len(then.constants)
    first = inputs + shift
    done = first + len(steps) - 1 if steps else 0
    steps = [(f, tuple((s + shift if s >= inputs else s, kind) for s, kind in args)) for f, args in steps]
    steps.append((identity, ((done, result.triton),)))
    start = first + len(steps)

    def moved(slot: int) -> int:
        return start - 1 if slot == 0 else slot - 1 + (inputs if slot <= shift else start - shift)

    steps += [(f, tuple((moved(s), kind) for s, kind in args)) for f, args in then.steps]
    return program(inputs, then.constants, tuple(steps), tuple((moved(s), kind) for s, kind in then.results))


@functools.cache
def activated_op(row: p.Pointwise, numbers: tuple[float, ...]) -> Kernel:
    """linear and an activation, a row that takes `numbers` after its input, as one kernel; without a gradient."""
    activation = Expression.of(lambda x: row(x, *numbers), 1)
    build = lambda input, weight, bias: _build_linear(input, weight, bias, activation)
    return Kernel(f"linear_{row.name}", ("input", "weight", "bias"), build, {})


def _build_weight_bias(g: Tensor, input: Tensor) -> tuple[list[Layout], Launch]:
    (rows, n), k = g.shape, input.shape[1]
    weight, bias = layout(g.dtype, (n, k), None, compute), layout(g.dtype, (n,), None, compute)
    transposed = layout(g.dtype, (n, rows), g.layout.strides[::-1], compute, g.layout.aligned)
    return [weight, bias], product_launch("linear_backward", transposed, input.layout, weight, (), sums=bias)


_weight_bias_op = Kernel("linear_backward", ("g", "input"), _build_weight_bias, {}, results=("weight", "bias"))


def _weight_bias(g: Tensor, input: Tensor) -> Sequence[Tensor] | None:
    """The gradients of weight and bias by one kernel, which reads g once for both."""
    if g.numel() == 0 or input.numel() == 0 or g.dtype is not input.dtype or not g.dtype.is_floating_point:
        return None
    return dispatch(_weight_bias_op, (g, input))


def _rounded_first(expression: Expression, result: dtypes.dtype, values: Sequence[Tensor]) -> Program:
    """`expression` of an accumulator, rounded to `result` as where it is stored between, and of `values`."""
    operands = ((result, TENSOR), *((v.layout.dtype, TENSOR) for v in values))
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
def _input_op(expression: Expression, count: int) -> Kernel:
    """The gradient of linear's input with `expression` of it, and of `count` tensors, in place of itself."""

    def build(g: Tensor, weight: Tensor, *values: Tensor) -> tuple[list[Layout], Launch]:
        out = layout(g.dtype, (g.shape[0], weight.shape[1]), None, compute)
        layouts = [v.layout for v in values]
        epilogue = _rounded_first(expression, g.dtype, values)
        return [out], product_launch("linear_backward", g.layout, weight.layout, out, (), layouts, epilogue)

    return Kernel("linear_backward", ("g", "weight", *(f"x{i}" for i in range(count))), build, {})


def _folded_input(g: Tensor, weight: Tensor, expression: Expression, values: Sequence[Tensor]) -> Tensor:
    return dispatch(_input_op(expression, len(values)), (g, weight, *values))[0]


linear_op = Kernel(
    "linear", ("input", "weight", "bias"), _build_linear,
    {
        "input": lambda g, weight: mm_op(g, weight),  # noqa: PLW0108  the parameters name what is saved
        "weight": lambda g, input: mm_op(t_op(g, dims=(1, 0)), input),
        "bias": lambda g, *, input_dtype: sum_op(g, dims=(0,), keepdim=False, out_dtype=input_dtype),
    },
    joint=(("weight", "bias"), _weight_bias), fold=("input", _folded_input), grad_name="Addmm",
)  # fmt: skip


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """input @ weight.T + bias: (*, K), (N, K), (N,) -> (*, N), in one kernel.

    Keeps `input` for the weight's gradient and `weight` for the input's, each only if that gradient is wanted.

    Shape: (..., in), (out, in) and (out,) give (..., out).
    Dtype: the same of all, any but bool; the result has it. Half types accumulate in float32.
    Raises:
        TypeError: an argument is no Tensor.
        RuntimeError: sizes or dtypes do not match, the dtype is bool, or input is 0-dimensional.
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
