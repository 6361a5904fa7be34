"""Linear layers: a product, the bias and perhaps an activation in one kernel."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from tgrad import dtypes, once
from tgrad.device import compute
from tgrad.dispatch import dispatch, ternary
from tgrad.dtypes import TENSOR
from tgrad.expression import Expression
from tgrad.kernels.launch import Launch
from tgrad.kernels.program import Program, program
from tgrad.kernels.scalar import add as scalar_add, identity
from tgrad.layout import Layout, layout
from tgrad.op import Kernel, pointwise_launch
from tgrad.ops import pointwise as p
from tgrad.ops.matmul import by_rows, check_types, flat, folded_rows, mm_op, product_launch, rows_launch
from tgrad.ops.reduce import sum_op
from tgrad.ops.views import t_op
from tgrad.tensor import Tensor

_ADD = Expression.of(p.add, 2)


def bias_program(accumulator: str, bias: str, out: str) -> Program:
    """accumulator + bias, as the epilogue of a product; Triton types."""
    return program(2, (), ((scalar_add, ((0, None), (1, None if bias == accumulator else accumulator))),), ((2, out),))


def _build_linear(
    input: Tensor, weight: Tensor, bias: Tensor | None, activation: Expression | None = None, both: bool = False
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
    check_types("linear", input, weight)
    if bias is not None:
        if tuple(bias.shape) != (weight.shape[0],):
            raise RuntimeError(
                f"linear: bias must have shape ({weight.shape[0]},) for weight shape {tuple(weight.shape)}, got "
                f"{tuple(bias.shape)}"
            )
        check_types("linear", input, bias)
    out = layout(input.dtype, (*input.shape[:-1], weight.shape[0]), None, compute)
    w = weight.layout
    transposed = layout(w.dtype, (w.shape[1], w.shape[0]), (w.strides[1], w.strides[0]), compute, w.aligned)
    extras, epilogue = [], None
    if bias is not None and not input.dtype.is_floating_point:
        product = rows_launch("linear", input.layout, transposed, out)
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
        epilogue = activated(epilogue, activation, out.dtype, both)
    return [out] * (1 + both), rows_launch("linear", input.layout, transposed, out, extras, epilogue)


def activated(epilogue: Program | None, activation: Expression, result: dtypes.dtype, both: bool) -> Program:
    """An epilogue, rounding to `result` as where it is stored between, and an activation. `both`: the results are what
    was rounded, and the activation's.
    """
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
    results = [(start - 1, result.triton)] * both + [(moved(s), kind) for s, kind in then.results]
    return program(inputs, then.constants, tuple(steps), tuple(results))


@functools.cache
def activated_op(row: p.Pointwise, numbers: tuple[float, ...], both: bool = False) -> Kernel:
    """linear and an activation, a row that takes `numbers` after its input, as one kernel; without a gradient. `both`:
    its results are linear's, and the activation's.
    """
    activation = Expression.of(lambda x: row(x, *numbers), 1)
    build = lambda input, weight, bias: _build_linear(input, weight, bias, activation, both)
    results = ("out", "activated") if both else ("out",)
    return Kernel(f"linear_{row.name}", ("input", "weight", "bias"), build, {}, results=results)


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
    return dispatch(_weight_bias_op, (flat(g), flat(input)))


linear_op = Kernel(
    "linear", ("input", "weight", "bias"), _build_linear,
    {
        "input": lambda g, weight: mm_op(by_rows(g), weight),
        "weight": lambda g, input: mm_op(t_op(flat(g), dims=(1, 0)), flat(input)),
        "bias": lambda g, *, input_dtype: sum_op(flat(g), dims=(0,), keepdim=False, out_dtype=input_dtype),
    },
    joint=(("weight", "bias"), _weight_bias), fold=("input", functools.partial(folded_rows, "linear_backward")),
    grad_name="Addmm",
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
    end_before = once.ending.get()
    if end_before is not None:
        end_before(linear_op, (input, weight, bias))
    return _known_linear(input, weight, bias)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    for name, x in (("input", input), ("weight", weight), *((("bias", bias),) if bias is not None else ())):
        if not isinstance(x, Tensor):
            raise TypeError(f"linear: {name} must be a Tensor, got {type(x).__name__}")
    if input.ndim == 0:
        raise RuntimeError("linear: input must have at least one dimension, got a 0-dimensional tensor")
    return linear_op(by_rows(input), weight, bias)


_known_linear = ternary(linear_op, _linear)
