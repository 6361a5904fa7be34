"""Sums over all elements of many tensors, in one kernel for many of them: the norm of all gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tgrad import dispatch as path, dtypes
from tgrad.device import compute
from tgrad.expression import Expression, Lowered
from tgrad.kernels.launch import Launch, holders
from tgrad.kernels.multi_tensor import MOST_ELEMENTS, MOST_ROWS, prepare_multi_tensor_sum, slots
from tgrad.layout import Layout, layout
from tgrad.op import check_devices, operand
from tgrad.ops import reduce as r_
from tgrad.tensor import Tensor, empty
from tgrad.updates import dense


def total(name: str, function: Callable, tensors: Sequence[Tensor], numbers: tuple[float, ...] = ()) -> Tensor:
    """The sum of function(t, *numbers) over all elements of all `tensors`.

    Nothing is recorded. The result is 0-dim: float64 if a tensor is, else float32, in which the function is computed.

    Args:
        function: takes symbols and returns one; its identity keys the plans.

    Raises:
        RuntimeError: a tensor is on another device.
    """
    key = (function, *[t.layout for t in tensors], *map(type, numbers))
    plan = _plans.get(key)
    if plan is None:
        if not all(dense(t.layout) for t in tensors):
            return total(name, function, [piece for t in tensors for piece in _pieces(t)], numbers)
        check_devices(name, tensors)
        plan = _build(name, function, tensors, numbers)
        if len(_plans) >= path.MAX_PLANS:
            _plans.clear()
        _plans[key] = plan
    into, launches = plan
    if path.observer is not None:
        path.observer.begin(name)
    sums = empty(into, inference=False)
    for launch, chosen in launches:
        launch(sums.ptr, *[tensors[i].ptr for i in chosen], *numbers)
    result = r_.sum(sums)
    if path.observer is not None:
        path.observer.end(name)
    return result


_plans: dict[tuple, tuple[Layout, list[tuple[Launch, list[int]]]]] = {}
holders.append(_plans.clear)


def _pieces(t: Tensor) -> list[Tensor]:
    """Dense tensors, of at most MOST_ELEMENTS elements, that together have the elements of t."""
    if dense(t.layout) or not t.layout.numel:
        return [t] * (t.layout.numel > 0)
    flat, step = t.detach().contiguous().reshape(-1), MOST_ELEMENTS // 2
    return [flat[at : at + step] for at in range(0, t.layout.numel, step)]


def _build(
    name: str, function: Callable, tensors: Sequence[Tensor], numbers: tuple[float, ...]
) -> tuple[Layout, list[tuple[Launch, list[int]]]]:
    """The layout of the sums, and the launches with the tensors that each takes."""
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
            launch, sums = prepare_multi_tensor_sum(
                lowered.program, lowered.tensors[0], lowered.scalars, kind.triton, sizes, count, aligned=aligned,
                name=name,
            )  # fmt: skip
            launches.append((launch, several + several[-1:] * (slots(len(several)) - len(several))))
            count += sums
    return layout(kind, (count,), None, compute), launches
