"""The one path of every op: find its plan, allocate, launch and, if gradients are on and an input needs one, record.

This alone reads the grad mode; all modes run the same kernels and give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from tgrad import graph
from tgrad.device import compute
from tgrad.eager import install_dispatch
from tgrad.fusion.tracing import TRACE
from tgrad.layout import Layout
from tgrad.modes import current
from tgrad.tensor import DEFAULT, INFERENCE, NO_GRAD, Alias, Tensor, empty, make

if TYPE_CHECKING:
    from tgrad.op import Op
    from tgrad.rules import Plan

# The most plans of one op: each new shape adds one.
MAX_PLANS = 4096


class Observer(Protocol):
    """What a profiler is told of each op; `listener` is None while nobody listens."""

    def begin(self, op: str) -> None: ...

    def end(self, op: str) -> None: ...


observer: Observer | None = None


def _no_refresh(t: Tensor) -> None:
    pass


# Brings a view's history up to date before it is used; aliasing.py, which stands above this module, sets it.
refresh: Callable[[Tensor], None] = _no_refresh


def dispatch(op: Op, args: Sequence[Any], settings: tuple = ()) -> list[Tensor]:
    """Run `op` on `args` (tensors, Python numbers or None); returns all its results.

    Raises:
        What the op's checks raise, before anything is allocated.
    """
    if observer is not None:
        observer.begin(op.name)
    key = (*[a.layout if isinstance(a, Tensor) else a.__class__ for a in args], *settings)
    plan = op.plans.get(key)
    if plan is None:
        near = brought_near(args)
        if near is not args:  # without keeping a plan: it would be found for CPU addresses
            if observer is not None:
                observer.end(op.name)
            return dispatch(op, near, settings)
        plan = keep_plan(op, key, op.build(args, settings))
    mode = current()
    inference = mode.inference
    outs = [empty(layout, inference) for layout in plan.outs]
    plan.launch(*[t.ptr for t in outs], *[a.ptr for a in args if isinstance(a, Tensor)], *numbers(args))  # type: ignore[misc]
    if observer is not None:
        observer.end(op.name)
    if mode.record:
        record(plan, args, outs)  # may raise, or run ops of its own (pack hooks)
    return outs


class Plans(dict[tuple, "Plan"]):
    """The plans of an op by signature.

    Attributes:
        singles, pairs: those of one layout, and of a layout and another or the class of a number, once more: by the
            layout, and by the one and then the other. A lookup there makes no tuple and costs half.
    """

    __slots__ = ("singles", "pairs")

    def __init__(self) -> None:
        self.singles: dict[Layout, Plan] = {}
        self.pairs: dict[Layout, dict[Any, Plan]] = {}

    def __setitem__(self, key: tuple, plan: Plan) -> None:
        super().__setitem__(key, plan)
        if len(key) == 1:
            self.singles[key[0]] = plan
        elif len(key) == 2:
            self.pairs.setdefault(key[0], {})[key[1]] = plan

    def clear(self) -> None:
        super().clear()
        self.singles.clear()
        self.pairs.clear()


# In what follows a slot is read into a variable before it is called: Python 3.11 and later make a plain read cheap, but
# not that of a method, which a slot might be.
def unary(op: Op, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """`dispatch` for a pointwise op of one tensor, written out: the same path for what its plans know already.

    Args:
        otherwise: called with the arguments where there is no plan yet, or something listens.
    """
    plans = op.plans.singles

    def call(input: Any) -> Any:
        try:
            plan = plans[input.layout]
        except (KeyError, AttributeError):
            return otherwise(input)
        if observer is not None:
            return otherwise(input)
        mode = current()
        out = empty(plan.out, mode.inference)
        launch = plan.launch
        launch(out.ptr, input.ptr)  # type: ignore[misc]
        if mode.record:
            if input.alias is not None:
                refresh(input)
            if input._requires_grad:
                rule = plan.rules[1]
                if rule is not None:
                    graph.record(out, rule, (input,), (out,))
        return out

    return call


def binary(op: Op, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """`dispatch` for a pointwise op of two tensors, or of a tensor and a number, written out. See `unary`."""
    plans = op.plans.pairs

    def call(input: Any, other: Any) -> Any:
        if other.__class__ is not Tensor and (other.__class__ is float or other.__class__ is int):
            return with_number(input, other)
        try:
            plan = plans[input.layout][other.layout]
        except (KeyError, AttributeError):
            return otherwise(input, other)
        if observer is not None:
            return otherwise(input, other)
        mode = current()
        out = empty(plan.out, mode.inference)
        launch = plan.launch
        launch(out.ptr, input.ptr, other.ptr)  # type: ignore[misc]
        if mode.record:
            if input.alias is not None:
                refresh(input)
            if other.alias is not None:
                refresh(other)
            if input._requires_grad:
                rule = plan.rules[3 if other._requires_grad else 1]
            elif other._requires_grad:
                rule = plan.rules[2]
            else:
                return out
            if rule is not None:
                graph.record(out, rule, (input, other), (out,))
        return out

    def with_number(a: Any, b: float) -> Any:
        try:
            plan = plans[a.layout][b.__class__]
        except (KeyError, AttributeError):
            return otherwise(a, b)
        if observer is not None:
            return otherwise(a, b)
        mode = current()
        out = empty(plan.out, mode.inference)
        launch = plan.launch
        launch(out.ptr, a.ptr, b)  # type: ignore[misc]
        if mode.record:
            if a.alias is not None:
                refresh(a)
            if a._requires_grad:
                rule = plan.rules[1]
                if rule is not None:
                    graph.record(out, rule, (a, b), (out,))
        return out

    return call


def ternary(op: Op, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """`dispatch` for an op of three tensors and no settings, with one result, written out. See `unary`."""
    plans = op.plans

    def call(a: Any, b: Any, c: Any) -> Any:
        try:
            plan = plans[a.layout, b.layout, c.layout]
        except (KeyError, AttributeError):
            return otherwise(a, b, c)
        if observer is not None or len(plan.outs) != 1:
            return otherwise(a, b, c)
        mode = current()
        out = empty(plan.out, mode.inference)
        launch = plan.launch
        launch(out.ptr, a.ptr, b.ptr, c.ptr)  # type: ignore[misc]
        if mode.record:
            if a.alias is not None:
                refresh(a)
            if b.alias is not None:
                refresh(b)
            if c.alias is not None:
                refresh(c)
            mask = 1 if a._requires_grad else 0
            if b._requires_grad:
                mask += 2
            if c._requires_grad:
                mask += 4
            if mask:
                rule = plan.rules[mask]
                if rule is not None:
                    graph.record(out, rule, (a, b, c), (out,))
        return out

    return call


def brought_near(args: Sequence[Any]) -> Sequence[Any]:
    """`args` with 0-dim CPU tensors copied to the compute device, where the other tensors are; else `args` itself."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    astray = [a for a in tensors if a.layout.device is not compute]
    if not astray or len(astray) == len(tensors) or any(a.layout.shape or a.layout.device is TRACE for a in astray):
        return args
    from tgrad.ops.transfer import convert

    return [convert(a, None, compute) if isinstance(a, Tensor) else a for a in args]


def numbers(args: Sequence[Any]) -> list[int | float]:
    return [a for a in args if a is not None and not isinstance(a, Tensor)]


def keep_plan(op: Op, key: tuple, plan: Plan) -> Plan:
    """Remember a plan; all of an op's are dropped together when they are MAX_PLANS."""
    if len(op.plans) >= MAX_PLANS:
        op.plans.clear()
    op.plans[key] = plan
    return plan


def record(plan: Plan, args: Sequence[Any], outs: Sequence[Tensor]) -> None:
    mask, bit = 0, 1
    for a in args:
        if isinstance(a, Tensor):
            if a.alias is not None:
                refresh(a)
            if a._requires_grad:
                mask |= bit
        bit += bit
    if mask:
        rule = plan.rules[mask]
        if rule is not None:
            graph.record(outs[0], rule, args, outs)


def view(op: Op, x: Tensor, settings: tuple) -> Tensor:
    """Run a view op: another layout over the same memory, sharing the version counter."""
    key = (x.layout, *settings)
    plan = op.plans.get(key)
    if plan is None:
        plan = keep_plan(op, key, op.build((x,), settings))
    out = make(plan.outs[0], x.storage, x.ptr + plan.offset, x.version)
    mode = current()
    if x.version is not None:  # a view of an inference tensor has no history to follow
        parent = x.alias
        creation = INFERENCE if mode.inference else DEFAULT if mode.grad else NO_GRAD
        if parent is not None and creation == DEFAULT:
            creation = parent.creation
        out.alias = Alias(x if parent is None else parent.base, creation, x.version.value)
    if mode.record:
        record(plan, (x,), (out,))
    return out


dispatch = install_dispatch(dispatch, globals())
