"""An optimiser's step: tensors updated in place by one formula, those of many parameters in one kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter

from tgrad import dispatch as path, graph
from tgrad.expression import Expression, Lowered
from tgrad.inplace import refuse
from tgrad.kernels.launch import Launch, holders
from tgrad.kernels.multi_tensor import MOST_ELEMENTS, MOST_ROWS, prepare_multi_tensor, slots
from tgrad.layout import Layout, collapse, order_by_stride
from tgrad.modes import current
from tgrad.op import check_devices, operand, pointwise_launch
from tgrad.tensor import Tensor

Row = tuple[Tensor, ...]
Addresses = Callable[[Sequence[int]], tuple[int, ...]]


def update(
    name: str, function: Callable, targets: tuple[int, ...], rows: Sequence[Row], numbers: tuple[float, ...] = (),
    shared: Row = (),
) -> None:  # fmt: skip
    """Update the tensors of each row by the others: a parameter by its gradient and state, in one kernel for many rows.

    Nothing is recorded and no leaf refused; versions count the write.

    Args:
        function: takes a symbol for each tensor of a row, all of one shape, each tensor in `shared` and each of
            `numbers`; returns a tuple. Its identity keys the plans.
        targets: which tensor of a row takes each result.
        rows: all have as many tensors.
        shared: 0-dim tensors, none of which is written.

    Raises:
        RuntimeError: the shapes in a row differ, a tensor is on another device, or an inference tensor would be written
            outside inference mode. Nothing has been written then.
    """
    if in_memory is not None and numbers and in_memory(name, function, targets, rows, numbers, shared):
        return
    tensors = [t for row in rows for t in row]
    tensors += shared
    written = [row[k] for row in rows for k in targets]
    versions = [t.version for t in written]
    if None in versions:
        for t in written:
            refuse(t, current(), recording=False)
    key = (function, targets, *[t.layout for t in tensors], *map(type, numbers))
    plan = _plans.get(key)
    if plan is None:
        plan = _build(name, function, targets, rows, numbers, shared)
        if len(_plans) >= path.MAX_PLANS:
            _plans.clear()
        _plans[key] = plan
    if len(rows) > 1 and len({t.storage for t in tensors}) < len(tensors) and not _apart(rows, targets):
        for row in rows:
            update(name, function, targets, [row], numbers, shared)
        return
    if path.observer is not None:
        path.observer.begin(name)
    addresses = [t.ptr for t in tensors]
    graph.announce_writes(written)
    for launch, chosen in plan:
        launch(*chosen(addresses), *numbers)
    listening = graph.find_origin is not None
    for version in versions:
        if listening:
            graph.count_write(version, name)
        elif version is not None:
            version.value += 1
    if path.observer is not None:
        path.observer.end(name)


# Makes an optimiser's update with its numbers in device memory, while a CUDA graph is captured; False: leaves it.
in_memory: Callable[[str, Callable, tuple[int, ...], Sequence[Row], tuple[float, ...], Row], bool] | None = None

_plans: dict[tuple, list[tuple[Launch, Addresses]]] = {}
holders.append(_plans.clear)


def _apart(rows: Sequence[Row], targets: tuple[int, ...]) -> bool:
    """Whether no row touches memory that another one writes, so that their order does not matter."""
    spans = sorted(
        (t.ptr, t.ptr + t.layout.extent * t.layout.dtype.itemsize, i, k in targets)
        for i, row in enumerate(rows)
        for k, t in enumerate(row)
    )
    reaching: list[tuple[int, int, bool]] = []
    for start, end, i, written in spans:
        reaching = [span for span in reaching if span[0] > start]
        if end > start and any(j != i and (written or other) for _, j, other in reaching):
            return False
        reaching.append((end, i, written))
    return True


def _build(
    name: str, function: Callable, targets: tuple[int, ...], rows: Sequence[Row], numbers: tuple[float, ...],
    shared: Row,
) -> list[tuple[Launch, Addresses]]:  # fmt: skip
    """The launches, each with what picks its addresses out of those of all rows.

    Dense rows share one; a row whose tensors are strided, or differ in their strides, has its own.
    """
    for row in rows:
        check_devices(name, (*row, *shared))
        for t in row:
            if t.layout.shape != row[0].layout.shape:
                raise RuntimeError(
                    f"{name}: expected tensors of shape {tuple(row[0].layout.shape)}, got one of "
                    f"{tuple(t.layout.shape)}"
                )
    width, inputs = len(rows[0]), len(rows[0]) + len(shared)
    expression = Expression.of(function, inputs + len(numbers))
    common = tuple(range(len(rows) * width, len(rows) * width + len(shared)))
    groups: dict[tuple, list[int]] = {}
    plan: list[tuple[Launch, Addresses]] = []

    def alone(i: int, lowered: Lowered) -> None:
        layouts = [t.layout for t in (*rows[i], *shared)]
        launch = pointwise_launch(name, lowered, [layouts[k] for k in targets], layouts)
        plan.append((launch, itemgetter(*[i * width + k for k in (*targets, *range(width))], *common)))

    for i, row in enumerate(rows):
        layouts = [t.layout for t in row]
        if not layouts[0].numel:
            continue
        lowered = expression.lower(tuple(map(operand, (*row, *shared, *numbers))), [layouts[k].dtype for k in targets])
        if dense(*layouts):
            aligned = all(t.layout.aligned for t in (*row, *shared))
            groups.setdefault((lowered, aligned), []).append(i)
        else:
            alone(i, lowered)
    for (lowered, aligned), members in groups.items():
        for at in range(0, len(members), MOST_ROWS):
            several = members[at : at + MOST_ROWS]
            if len(several) == 1:
                alone(several[0], lowered)
                continue
            launch = prepare_multi_tensor(
                lowered.program, lowered.tensors[:width], lowered.tensors[width:], lowered.scalars, targets,
                [rows[i][0].layout.numel for i in several], aligned=aligned, name=name,
            )  # fmt: skip
            several += several[-1:] * (slots(len(several)) - len(several))
            plan.append((launch, itemgetter(*[i * width + k for i in several for k in range(width)], *common)))
    return plan


def dense(*layouts: Layout) -> bool:
    """Whether tensors of one shape lie in memory element by element alike, without gaps, and not too many elements."""
    shape, strides = tuple(layouts[0].shape), [x.strides for x in layouts]
    order = order_by_stride(shape, strides)
    _, collapsed = collapse([shape[d] for d in order], [[s[d] for d in order] for s in strides])
    return layouts[0].numel < MOST_ELEMENTS and all(s in ((), (1,)) for s in collapsed)
