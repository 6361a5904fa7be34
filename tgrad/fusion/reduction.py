"""A fused function that ends with a reduction: its operations are the prologue of the reduction's kernel."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tgrad.backward import Gradient, _pointwise
from tgrad.device import compute
from tgrad.dispatch import dispatch
from tgrad.expression import Expression, Ref
from tgrad.fusion.fused import Flow, Fused, fused, step_layouts, wanted
from tgrad.graph import Node
from tgrad.kernels.launch import Launch
from tgrad.layout import layout, numel
from tgrad.modes import current
from tgrad.op import Op, check_devices, operand
from tgrad.ops import pointwise as p
from tgrad.ops.reduce import _back, amax_op, amin_op, mean_op, reduce_launch, reduced_layout, sum_op
from tgrad.rules import Plan, PointwiseRule, Rule
from tgrad.tensor import Tensor

KINDS = {sum_op: "sum", mean_op: "sum", amax_op: "max", amin_op: "min"}


class FusedReduction(Op):
    """`reduction` of the one result of an Expression.

    Attributes:
        pointwise: the op of the Expression alone.
    """

    def __init__(self, reduction: Any, pointwise: Fused) -> None:
        super().__init__(f"{pointwise.name}_{reduction.name}", pointwise.inputs, {})
        self.reduction, self.pointwise = reduction, pointwise
        self.separate: dict[tuple, bool] = {}

    def run(self, args: Sequence[Any], settings: tuple) -> Tensor:
        """The result, recorded in the graph if the mode and the arguments say so.

        A maximum or minimum that is recorded takes two kernels, since its gradient needs to know where it is; so does
        a sum of what would keep more inputs for backward than the operations one by one would keep.
        """
        mask = wanted(args) if current().record else 0
        if mask:
            key = (mask, *[a.layout if isinstance(a, Tensor) else a.__class__ for a in args])
            separate = self.separate.get(key)
            if separate is None:
                if len(self.separate) >= 4096:
                    self.separate.clear()
                separate = self.separate[key] = self._separate(args, mask)
            if separate:
                return dispatch(self.reduction, self.pointwise.run(args), settings)[0]
        return dispatch(self, args, settings)[0]

    def _separate(self, args: Sequence[Any], mask: int) -> bool:
        if self.reduction in (amax_op, amin_op):
            return True
        flow = Flow(self.pointwise.expression, args, mask)
        return flow.cost(with_out=False) > sum(map(flow.nbytes, flow.named))

    def build(self, args: Sequence[Any], settings: tuple) -> Plan:
        tensors = [a for a in args if isinstance(a, Tensor)]
        check_devices(self.name, tensors)
        e = self.pointwise.expression
        operands = tuple(map(operand, args))
        value = step_layouts(e, operands, args)[e.results[0][1]]
        out = reduced_layout(self.reduction, value, settings)
        shape, dims, keepdim = tuple(value.shape), *settings[:2]
        e = e if out.dtype is value.dtype else _followed(e, p.cast(out.dtype))
        mean = self.reduction is mean_op
        launch: Launch = reduce_launch(
            self.name, KINDS[self.reduction], e, operands, [t.layout for t in tensors], shape, dims, out, divide=mean
        )
        count = numel(shape[d] for d in dims)
        if out.numel == 0:
            launch = lambda *values: None
        run = (lambda *values: launch(*values, float(count))) if mean else launch
        back = fused(self.pointwise.name, _followed(e, p.div, float(max(1, count))) if mean else e)
        kinds = [isinstance(a, Tensor) for a in args]
        layouts = [a.layout if isinstance(a, Tensor) else None for a in args]
        full = layout(out.dtype, shape, None, compute)

        def rule(mask: int) -> Rule | None:
            inner = back.rule(mask, kinds, layouts, full)
            return ReducedRule(self, inner, shape, dims, keepdim) if isinstance(inner, PointwiseRule) else None

        return Plan((out,), run, rule)


class ReducedRule(Rule):
    """The gradient of the result, repeated along what was reduced, goes through the pointwise formulas."""

    __slots__ = ("inner", "shape", "dims", "keepdim")

    def __init__(
        self, op: Op, inner: PointwiseRule, shape: tuple[int, ...], dims: tuple[int, ...], keepdim: bool
    ) -> None:
        super().__init__(op, inner.wanted, inner.saves, inner.numbers)
        self.inner, self.shape, self.dims, self.keepdim = inner, shape, dims, keepdim
        self.big, self.large = inner.big, inner.large

    def run(self, node: Node, g: Tensor) -> list[Gradient]:
        return _pointwise(node, self.inner, _back(g, self.shape, self.dims, self.keepdim))


def _followed(e: Expression, row: Any, number: float | None = None) -> Expression:
    """The Expression with a further row applied to its one result."""
    args: tuple[Ref, ...] = e.results if number is None else (*e.results, ("number", number))
    return Expression(e.n_inputs, (*e.steps, (row, args)), (("step", len(e.steps)),))


@functools.lru_cache(4096)
def fused_reduction(reduction: Any, pointwise: Fused) -> FusedReduction:
    """The op for a reduction of an op's result: one for all equal ones."""
    return FusedReduction(reduction, pointwise)
