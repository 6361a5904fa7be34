"""A fused function that ends with a reduction: its operations are the prologue of the reduction's kernel."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from tgrad.dispatch import dispatch
from tgrad.fusion.fused import Flow, Fused, step_layouts, wanted
from tgrad.layout import Layout, numel
from tgrad.modes import current
from tgrad.op import operand
from tgrad.ops.reduce import amax_op, amin_op, mean_op
from tgrad.ops.reduced import Reduced
from tgrad.tensor import Tensor


class FusedReduction(Reduced):
    """A reduction of the one result of a fused function.

    Attributes:
        known: by the inputs that want a gradient and the signature, whether it takes two kernels, and the divisor.
    """

    pointwise: Fused

    def __init__(self, reduction: Any, pointwise: Fused) -> None:
        super().__init__(reduction, pointwise)
        self.known: dict[tuple, tuple[bool, tuple[float, ...]]] = {}

    def value(self, args: Sequence[Any]) -> Layout:
        e = self.pointwise.expression
        return step_layouts(e, tuple(map(operand, args)), args)[e.results[0][1]]

    def run(self, args: Sequence[Any], settings: tuple) -> Tensor:
        """The result, recorded in the graph if the mode and the arguments say so.

        A maximum or minimum that is recorded takes two kernels, since its gradient needs to know where it is; so does
        a sum of what would keep more inputs for backward than the operations one by one would keep.
        """
        mask = wanted(args) if current().record else 0
        if not mask and self.reduction is not mean_op:
            return dispatch(self, args, settings)[0]
        key = (mask, settings[0], *[a.layout if isinstance(a, Tensor) else a.__class__ for a in args])
        known = self.known.get(key)
        if known is None:
            if len(self.known) >= 4096:
                self.known.clear()
            known = self.known[key] = bool(mask) and self._separate(args, mask), self._divisor(args, settings[0])
        separate, divisor = known
        if separate:
            return dispatch(self.reduction, self.pointwise.run(args), settings)[0]
        return dispatch(self, (*args, *divisor), settings)[0]

    def _separate(self, args: Sequence[Any], mask: int) -> bool:
        if self.reduction in (amax_op, amin_op):
            return True
        flow = Flow(self.pointwise.expression, args, mask)
        return flow.cost(with_out=False) > sum(map(flow.nbytes, flow.named))

    def _divisor(self, args: Sequence[Any], dims: tuple[int, ...]) -> tuple[float, ...]:
        if self.reduction is not mean_op:
            return ()
        shape = self.value(args).shape
        return (float(numel(shape[d] for d in dims)),)


@functools.lru_cache(4096)
def fused_reduction(reduction: Any, pointwise: Fused) -> FusedReduction:
    """The op for a reduction of an op's result: one for all equal ones."""
    return FusedReduction(reduction, pointwise)
