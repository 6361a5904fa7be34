"""A pointwise op and the reduction of its result as one op: losses. What is reduced is never stored.

The formula is the prologue of the reduction's kernel. Backward makes the gradients of all inputs of the full shape in
one kernel, from the gradient of the result.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tgrad.backward import Gradient, _pointwise
from tgrad.device import compute
from tgrad.dispatch import dispatch
from tgrad.expression import Expression, Ref
from tgrad.fusion.tracing import Tracer
from tgrad.graph import Node
from tgrad.kernels.launch import Launch
from tgrad.layout import Layout, broadcast_shapes, layout, numel
from tgrad.modes import current
from tgrad.op import Composed, Kernel, Op, Pointwise, check_devices, operand, result_layout
from tgrad.ops import pointwise as p
from tgrad.ops.reduce import (
    _back,
    _mean_dtype,
    _sum_dtype,
    amax_op,
    amin_op,
    mean,
    mean_op,
    reduce_launch,
    reduced_layout,
    sum,
    sum_op,
)
from tgrad.rules import Plan, PointwiseRule, Rule
from tgrad.tensor import Tensor, make

KINDS = {sum_op: "sum", mean_op: "sum", amax_op: "max", amin_op: "min"}


class Reduced(Op):
    """`reduction` of the result of a pointwise op.

    Its arguments are those of the pointwise op and, of a mean, the number that the total is divided by. Its settings
    are those of the reduction; without any it goes over all dimensions.
    """

    def __init__(self, reduction: Kernel, pointwise: Pointwise, grad_name: str | None = None) -> None:
        if any("out" in needs for needs in pointwise.needs.values()):
            raise TypeError(f"{pointwise.name}: a derivative names the result, which is not stored by {reduction.name}")
        divisor = ("divisor",) if reduction is mean_op else ()
        super().__init__(f"{pointwise.name}_{reduction.name}", (*pointwise.inputs, *divisor), {}, grad_name)
        self.reduction, self.pointwise = reduction, pointwise

    def value(self, args: Sequence[Any]) -> Layout:
        """The layout that the pointwise op's result would have."""
        expression, tensors = self.pointwise.expression, [a.layout for a in args if isinstance(a, Tensor)]
        return result_layout(tensors, expression.lower(tuple(map(operand, args)), [None]).results[0])

    def build(self, args: Sequence[Any], settings: tuple) -> Plan:
        mean, given = self.reduction is mean_op, args[: len(self.pointwise.inputs)]
        tensors = [a for a in given if isinstance(a, Tensor)]
        check_devices(self.name, tensors)
        operands = tuple(map(operand, given))
        if self.pointwise.check is not None:
            self.pointwise.check([kind for kind, _ in operands])
        value = self.value(given)
        if not settings:
            kind = _mean_dtype(value.dtype) if mean else _sum_dtype(value.dtype)
            settings = tuple(range(len(value.shape))), False, kind
        out = reduced_layout(self.reduction, value, settings)
        shape, dims, keepdim = tuple(value.shape), *settings[:2]
        back, e = self.pointwise, self.pointwise.expression
        if out.dtype is not value.dtype:
            e = _cast(e, p.cast(out.dtype))
            back = Composed(back.name, e, back.inputs)
        launch: Launch = reduce_launch(
            self.name, KINDS[self.reduction], e, operands, [t.layout for t in tensors], shape, dims, out, divide=mean
        )
        kinds = [isinstance(a, Tensor) for a in given]
        layouts = [a.layout if isinstance(a, Tensor) else None for a in given]
        full = layout(out.dtype, shape, None, compute)

        def rule(mask: int) -> Rule | None:
            inner = back.rule(mask, kinds, layouts, full)
            if not isinstance(inner, PointwiseRule):
                return None
            if mean:
                _divide(inner, len(given))
            return ReducedRule(self, inner, shape, dims, keepdim)

        return Plan((out,), launch if out.numel else _nothing, rule)


def _nothing(*values: int | float) -> None:
    pass


def _cast(e: Expression, row: Pointwise) -> Expression:
    """The Expression with a further row of one operand applied to its one result."""
    args: tuple[Ref, ...] = e.results
    return Expression(e.n_inputs, (*e.steps, (row, args)), (("step", len(e.steps)),))


def _divide(rule: PointwiseRule, divisor: int) -> None:
    """Have the formulas divide the gradient that arrives by a number, the op's argument `divisor`, first."""
    at = len(rule.saves) + len(rule.numbers)
    rule.numbers = (*rule.numbers, divisor)
    rule.parts = [(like, _of_quotient(e), (*needs, at)) for like, e, needs in rule.parts]


def _of_quotient(e: Expression) -> Expression:
    """e(g / n, *values) over (g, *values, n)."""

    def formula(g: Any, *values: Any) -> Any:
        inputs = [g / values[-1], *values[:-1]]
        done = e.replay(g.trace, inputs)
        kind, i = e.results[0]
        return inputs[i] if kind == "input" else done[i]

    return Expression.of(formula, e.n_inputs + 1)


class ReducedRule(Rule):
    """The gradient of the result, repeated along what was reduced, goes through the pointwise formulas."""

    __slots__ = ("inner", "shape", "dims", "keepdim", "wide")

    def __init__(
        self, op: Op, inner: PointwiseRule, shape: tuple[int, ...], dims: tuple[int, ...], keepdim: bool
    ) -> None:
        super().__init__(op, inner.wanted, inner.saves, inner.numbers)
        self.inner, self.shape, self.dims, self.keepdim = inner, shape, dims, keepdim
        passed = any(e.is_input(0) for _, e, _ in inner.parts)  # what leaves the node is a view that knows its base
        self.wide: dict[Layout, Layout] | None = None if passed else {}
        self.big, self.large = inner.big, inner.large

    def run(self, node: Node, g: Tensor) -> list[Gradient]:
        if self.wide is None or g.layout.shape or current().record:
            return _pointwise(node, self.inner, _back(g, self.shape, self.dims, self.keepdim))
        wide = self.wide.get(g.layout)
        if wide is None:
            strides = (0,) * len(self.shape)
            wide = self.wide[g.layout] = layout(g.layout.dtype, self.shape, strides, compute, g.layout.aligned)
        return _pointwise(node, self.inner, make(wide, g.storage, g.ptr, g.version))


@functools.cache
def _reduced(reduction: Kernel, row: Pointwise) -> Reduced:
    return Reduced(reduction, row, row.grad_name)


def sum_of(row: Pointwise, *args: Any) -> Tensor:
    """The sum of all elements of row(*args), which is recorded as one node."""
    if _shape(args) is None:
        return sum(row(*args))
    return dispatch(_reduced(sum_op, row), args)[0]


def mean_of(row: Pointwise, *args: Any, count: int | None = None) -> Tensor:
    """The sum of all elements of row(*args), divided by their number or by `count`; recorded as one node."""
    shape = _shape(args)
    if shape is None:
        return mean(row(*args)) if count is None else sum(row(*args)) / count
    return dispatch(_reduced(mean_op, row), (*args, float(numel(shape) if count is None else count)))[0]


def _shape(args: Sequence[Any]) -> tuple[int, ...] | None:
    """The shape that the arguments broadcast to; None while a function is traced."""
    shape: Any = None
    for a in args:
        if a.__class__ is Tracer:
            return None
        if isinstance(a, Tensor):
            other = a.layout.shape
            shape = other if shape is None or shape == other else broadcast_shapes(tuple(shape), tuple(other))
    return shape
