"""Writing in place: refusals, the version counter, and the history of what was written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tgrad import dispatch as path, dtypes, graph, host_copies
from tgrad.aliasing import rebase, record_over, refresh, refuse_tracked_write, wants_grad
from tgrad.dtypes import can_cast
from tgrad.host_copies import only_host
from tgrad.layout import broadcast_shapes, may_overlap_itself
from tgrad.modes import Mode, current
from tgrad.op import Kernel, Op, Pointwise, check_devices, operand, pointwise_launch
from tgrad.ops import pointwise as p
from tgrad.rules import FormulaRule, Plan, Rule
from tgrad.tensor import Tensor, empty


def write(op: Pointwise, target: Tensor, args: Sequence[Any]) -> Tensor:
    """Run a pointwise `op` on `args` and store the result in `target`: a new version and, if recorded, a node.

    `target` may be among `args`.

    Raises:
        RuntimeError: the write is refused, before anything is written.
    """
    mode = current()
    recording = mode.record and (wants_grad(target) or any(map(wants_grad, args)))
    refuse(target, mode, recording)
    key = (target.layout, *[a.layout if isinstance(a, Tensor) else a.__class__ for a in args], "in place")
    plan = op.plans.get(key)
    if plan is None:
        near = path.brought_near(args)
        if near is not args:
            return write(op, target, near)
        plan = path.keep_plan(op, key, _build(op, target, args))
    if path.observer is not None:
        path.observer.begin(op.name + "_")
    args = [_apart(a, target) for a in args]
    rule = _rule(op, plan, args) if recording else None
    graph.announce_write(target)
    before = args if rule is None else [_as_it_was(i, a, target, rule) for i, a in enumerate(args)]
    plan.launch(target.ptr, *[a.ptr for a in args if isinstance(a, Tensor)], *path.numbers(args))  # type: ignore[misc]
    graph.count_write(target.version, f"{op.name}_")
    if recording:
        _record(op, rule, before, target)
    if path.observer is not None:
        path.observer.end(op.name + "_")
    return target


def _rule(op: Pointwise, plan: Plan, args: Sequence[Any]) -> Rule | None:
    """How the write will go backward (a copy's is found after it).

    Raises:
        RuntimeError: an operand to be saved is an inference tensor, or a view that cannot be used any more.
    """
    for a in args:
        if isinstance(a, Tensor):
            refresh(a)
    mask = sum(1 << i for i, a in enumerate(args) if isinstance(a, Tensor) and a._requires_grad)
    if op is p.copy or not mask:
        return None
    rule = plan.rule(mask)
    if rule is not None and any(i < len(args) and args[i].version is None for i, _ in rule.saves):
        raise graph.unsaveable()
    return rule


def _record(op: Pointwise, rule: Rule | None, args: Sequence[Any], target: Tensor) -> None:
    """Give the target its new history, and with it the base that it is a view of."""
    if op is p.copy:
        rule, args = _overwrite(target, args)
    if rule is not None and target.layout.dtype.is_floating_point:
        record_over(target, rule, tuple(args))
        if target.alias is not None:
            rebase(target)


_OVERWRITE = Op(
    "copy_", ("old", "new"), {"old": lambda g: g, "new": lambda g: g}, node_name="torch::autograd::CopyBackwards"
)


def _overwrite(target: Tensor, args: Sequence[Any]) -> tuple[Rule | None, tuple]:
    """The rule of a write that leaves nothing of the old value: its gradient is zero."""
    inputs = (target, *[a for a in args if isinstance(a, Tensor)])
    wanted = tuple(i for i, t in enumerate(inputs) if t._requires_grad)
    rule = FormulaRule(_OVERWRITE, wanted, (), ())
    rule.names = ()
    formulas = (_zeros, lambda g: g)
    rule.calls = [(inputs[i].layout, formulas[i], None, (), {}) for i in wanted]
    return (rule if wanted else None), inputs


def _zeros(g: Tensor) -> Tensor:
    return p.where(False, g, 0)


def refuse(target: Tensor, mode: Mode, recording: bool) -> None:
    """Refuse what PyTorch refuses.

    Raises:
        RuntimeError: a leaf that requires grad, or a view of one, in grad mode; an inference tensor outside inference
            mode.
    """
    if recording:
        refuse_tracked_write(target)
    if target.version is None and not mode.inference:
        raise RuntimeError(
            "Inplace update to inference tensor outside InferenceMode is not allowed. You can make a clone to get a "
            "normal tensor before doing inplace update. See https://github.com/pytorch/rfcs/pull/17 for more "
            "details."
        )


def _apart(a: Any, target: Tensor) -> Any:
    """`a`, or a copy of it where it overlaps the target in another layout: a kernel would read what it has written."""
    if not isinstance(a, Tensor) or a.storage is not target.storage:
        return a
    if a.ptr == target.ptr and a.layout.shape == target.layout.shape and a.layout.strides == target.layout.strides:
        return a
    end = lambda t: t.ptr + t.layout.extent * t.layout.dtype.itemsize
    if end(a) <= target.ptr or end(target) <= a.ptr:
        return a
    raise RuntimeError(
        "unsupported operation: some elements of the input tensor and the written-to tensor refer to a single "
        "memory location. Please clone() the tensor before performing the operation."
    )


def _as_it_was(i: int, a: Any, target: Tensor, rule: Rule) -> Any:
    """Operand i as the graph shall know it: a copy, if it is the target and a gradient needs its old value."""
    if not isinstance(a, Tensor) or a.ptr != target.ptr or a.layout is not target.layout:
        return a
    if not any(k == i for k, _ in rule.saves):
        return a
    old = empty(target.layout, inference=False)
    if target.layout.extent:
        old.storage.copy_range(target.storage, target.ptr - target.storage.ptr, old.storage.nbytes)
    old.node, old._requires_grad = a.node, a._requires_grad
    return old


def _build(op: Pointwise, target: Tensor, args: Sequence[Any]) -> Plan:
    """The plan of an op whose result goes into `target`."""
    name = op.name + "_"
    tensors = [a for a in args if isinstance(a, Tensor)]
    on_host = op.on_host is not None and only_host([target, *tensors])
    if not on_host:
        check_devices(name, [target, *tensors])
    if op.check is not None:
        op.check([a.layout.dtype if isinstance(a, Tensor) else dtypes.of_number(a) for a in args])
    into = target.layout
    if may_overlap_itself(into.shape, into.strides) and tensors:
        raise RuntimeError(
            "unsupported operation: more than one element of the written-to tensor refers to a single memory "
            "location. Please clone() the tensor before performing the operation."
        )
    shape = broadcast_shapes(tuple(into.shape), *(tuple(t.shape) for t in tensors))
    if shape != into.shape:
        raise RuntimeError(f"output with shape {list(into.shape)} doesn't match the broadcast shape {list(shape)}")
    operands = tuple(operand(a) for a in args)
    natural = op.expression.lower(operands, [None]).results[0]
    if op.name != "copy" and not can_cast(natural, into.dtype):
        raise RuntimeError(
            f"result type {natural.legacy} can't be cast to the desired output type {into.dtype.legacy}"
        )
    if on_host:
        launch = host_copies.copied_into(into, [t.layout for t in tensors])
    else:
        lowered = op.expression.lower(operands, [into.dtype])
        launch = pointwise_launch(name, lowered, (into,), [t.layout for t in tensors])
    kinds = [isinstance(a, Tensor) for a in args]
    layouts = [a.layout if isinstance(a, Tensor) else None for a in args]
    return Plan((into,), launch, lambda mask: _once(op.rule(mask, kinds, layouts, into)))


def _once(rule: Rule | None) -> Rule | None:
    """The rule, of a result that cannot be made again: what it was made from is overwritten."""
    if rule is not None:
        rule.source, rule.edged = None, False
    return rule


def overwrite(
    op: Kernel, target: Tensor, args: Sequence[Any], settings: tuple, prepare: Callable[..., Any]
) -> Tensor:
    """Run an op that changes parts of its first input, `op(target, *args)`, in that input's memory.

    Args:
        op: no formula of it may need the old values of its first input.
        prepare: of the layouts of target and args, the launch; takes their addresses.

    Raises:
        RuntimeError: the write is refused, before anything is written.
    """
    mode = current()
    recording = mode.record and (wants_grad(target) or any(map(wants_grad, args)))
    refuse(target, mode, recording)
    key = (target.layout, *[a.layout for a in args], *settings, "in place")
    plan = op.plans.get(key)
    if plan is None:
        near = path.brought_near((target, *args))
        if near[1:] != tuple(args):
            return overwrite(op, target, near[1:], settings, prepare)
        if op.on_host is None or not only_host((target, *args)):
            check_devices(op.name + "_", [target, *args])
        if may_overlap_itself(target.shape, target.layout.strides):
            raise RuntimeError(
                "unsupported operation: more than one element of the written-to tensor refers to a single memory "
                "location. Please clone() the tensor before performing the operation."
            )
        launch = prepare(target.layout, *[a.layout for a in args])
        plan = path.keep_plan(op, key, Plan((target.layout,), launch, op.rule_of((target, *args), settings)))
    if path.observer is not None:
        path.observer.begin(op.name + "_")
    args = [p.clone(a) if a.ptr == target.ptr and a.storage is target.storage else _apart(a, target) for a in args]
    for a in (target, *args):
        refresh(a)
    mask = sum(1 << i for i, a in enumerate((target, *args)) if a._requires_grad)
    rule = plan.rule(mask) if recording and mask else None
    if rule is not None and any(i and (target, *args)[i].version is None for i, _ in rule.saves):
        raise graph.unsaveable()
    graph.announce_write(target)
    plan.launch(target.ptr, *[a.ptr for a in args])  # type: ignore[misc]
    graph.count_write(target.version, f"{op.name}_")
    if rule is not None and target.layout.dtype.is_floating_point:
        record_over(target, rule, (target, *args))
        if target.alias is not None:
            rebase(target)
    if path.observer is not None:
        path.observer.end(op.name + "_")
    return target
