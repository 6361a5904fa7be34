"""Sums over all elements of many tensors, in one kernel for many of them: the norm of all gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tgrad import dispatch as path, dtypes
from tgrad.device import compute
from tgrad.expression import Expression, Lowered
from tgrad.kernels.launch import Launch, holders
from tgrad.kernels.multi_tensor import MOST_ELEMENTS, MOST_ROWS, prepare_multi_tensor_sum, slots
from tgrad.layout import Layout, layout
from tgrad.modes import current
from tgrad.op import check_devices, operand
from tgrad.ops.reduce import COPY, reduce_launch
from tgrad.tensor import Tensor, empty
from tgrad.updates import dense


class _Plan(NamedTuple):
    """Launches over some of the tensors each, which fill one buffer with sums, and the launch that adds those up."""

    sums: Layout
    launches: list[tuple[Launch, list[int]]]
    out: Layout
    finish: Launch


def total(
    name: str, function: Callable, tensors: Sequence[Tensor], numbers: tuple[float, ...] = (),
    then: tuple[tuple[Any, float | None], ...] = (), kind: dtypes.dtype | None = None,
) -> Tensor:  # fmt: skip
    """The sum of function(t, *numbers) over all elements of all `tensors`.

    Nothing is recorded. The result is 0-dim. The function is computed, and its results are summed, in float64 if a
    tensor is of it, else in float32.

    Args:
        function: takes symbols and returns one; its identity keys the plans.
        then: scalar functions that the sum goes through, as of `reduce_launch`.
        kind: of the result; None: as it is computed.

    Raises:
        RuntimeError: a tensor is on another device.
    """
    key = (function, then, kind, *[t.layout for t in tensors], *map(type, numbers))
    plan = _plans.get(key)
    if plan is None:
        if not all(dense(t.layout) for t in tensors):
            return total(name, function, [piece for t in tensors for piece in _pieces(t)], numbers, then, kind)
        check_devices(name, tensors)
        plan = _build(name, function, tensors, numbers, then, kind)
        if len(_plans) >= path.MAX_PLANS:
            _plans.clear()
        _plans[key] = plan
    if path.observer is not None:
        path.observer.begin(name)
    sums = empty(plan.sums, inference=False)
    for launch, chosen in plan.launches:
        launch(sums.ptr, *[tensors[i].ptr for i in chosen], *numbers)
    result = empty(plan.out, inference=current().inference)
    plan.finish(result.ptr, sums.ptr)
    if path.observer is not None:
        path.observer.end(name)
    return result


_plans: dict[tuple, _Plan] = {}
holders.append(_plans.clear)


def _pieces(t: Tensor) -> list[Tensor]:
    """Dense tensors, of at most MOST_ELEMENTS elements, that together have the elements of t."""
    if dense(t.layout) or not t.layout.numel:
        return [t] * (t.layout.numel > 0)
    flat, step = t.detach().contiguous().reshape(-1), MOST_ELEMENTS // 2
    return [flat[at : at + step] for at in range(0, t.layout.numel, step)]


def _build(
    name: str, function: Callable, tensors: Sequence[Tensor], numbers: tuple[float, ...],
    then: tuple[tuple[Any, float | None], ...], result: dtypes.dtype | None,
) -> _Plan:  # fmt: skip
    kind = dtypes.float64 if any(t.layout.dtype is dtypes.float64 for t in tensors) else dtypes.float32
    expression = Expression.of(function, 1 + len(numbers))
    groups: dict[tuple[Lowered, bool], list[int]] = {}
    for i, t in enumerate(tensors):
        if t.layout.numel:
            lowered = expression.lower(tuple(map(operand, (t, *numbers))), [kind])
            groups.setdefault((lowered, t.layout.aligned), []).append(i)
    launches, count = [], 0
    for (lowered, aligned), members in groups.items():
        for at in range(0, len(members), MOST_ROWS):
            several = members[at : at + MOST_ROWS]
            sizes = [tensors[i].layout.numel for i in several]
            launch, made = prepare_multi_tensor_sum(
                lowered.program, lowered.tensors[0], lowered.scalars, kind.triton, sizes, count, aligned=aligned,
                name=name,
            )  # fmt: skip
            launches.append((launch, several + several[-1:] * (slots(len(several)) - len(several))))
            count += made
    sums, out = layout(kind, (count,), None, compute), layout(result or kind, (), None, compute)
    finish = reduce_launch(name, "sum", COPY, ((kind, dtypes.TENSOR),), [sums], (count,), (0,), out, then=then)
    return _Plan(sums, launches, out, finish)
