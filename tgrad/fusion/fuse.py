"""`fuse`: a function of pointwise operations as one kernel, forward and backward.

The function is called with tensors that only record what is done with them (tracing.py), and not again while nothing
that it depends on has changed (retracing.py). What it did becomes an op (fused.py, fused_reduction.py).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tgrad.dispatch import dispatch
from tgrad.expression import Expression, Ref
from tgrad.fusion.fused import fused
from tgrad.fusion.reduction import fused_reduction
from tgrad.fusion.retracing import Remembered
from tgrad.fusion.tracing import Recorder, Tracer
from tgrad.tensor import Tensor


def fuse(function: Callable) -> Callable:
    """Run a function of pointwise operations as one kernel, and its backward as one; also a decorator.

    It may use tgrad's pointwise functions, operators, methods and activations (`F.gelu`) on tensors and numbers, call
    other fused functions, and end with a reduction: sum, mean, amax or amin. It returns a tensor or a tuple of
    tensors. Numbers are passed to the kernel as they come: a new value compiles nothing.

    The results are those of the operations one by one: to the bit in float32 and float64, apart from gradients of
    what was broadcast and sums of operands in different layouts, which are added in another order. Half types are
    rounded once, at the end, not after each operation. For backward it keeps at most what the operations one by one
    would: its inputs or its result; where those were more, values between become further results of the same kernel,
    with a node each. Each result of a tuple has a node of its own. A recorded amax or amin takes a kernel of its own.
    Under autocast, operations that autocast runs in float32 do so.

    The function is called to see what it does, so it should do nothing but compute. Its Python conditions see shapes,
    dtypes and numbers, not the values of tensors. It is called once for calls that cannot differ: of tensors of the
    same layouts, numbers and strings, and modules of parameters and such; while what else it reads, functions and
    constants, is the same. Of all others it is called each time, which takes microseconds for each operation.

    Shape: what the operations give.
    Dtype: what the operations give.
    Raises:
        TypeError: not a function, or it returns something else.
        NotImplementedError: an operation is not pointwise, works in place, or needs a tensor's values; something
            follows a reduction; the grad mode changes inside.
        RuntimeError: a tensor of one call is used in another.

    Example:
        @tgrad.fuse
        def swiglu(x, gate):
            return F.silu(gate) * x
    """
    if not callable(function) or inspect.isclass(function):
        raise TypeError(f"tgrad.fuse: expected a function, got {type(function).__name__} {function!r}")
    for what in ("isgeneratorfunction", "iscoroutinefunction", "isasyncgenfunction"):
        if getattr(inspect, what)(function):
            raise TypeError(f"tgrad.fuse: expected a function that returns tensors, {_name(function)} is suspended")
    remembered = Remembered(function)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        values = (*args, *kwargs.values()) if kwargs else args
        tensors = []
        for v in values:
            if v.__class__ is Tracer:  # inside another fused function
                return function(*args, **kwargs)
            if isinstance(v, Tensor):
                tensors.append(v)
        key = remembered.key(values, tuple(kwargs), tensors)
        traced = None if key is None else remembered.calls.get(key)
        if traced is None:
            traced, met = _trace(function, args, kwargs, tensors)
            if met:
                tensors += met
            elif key is not None:
                remembered.keep(key, traced)
        return traced.run(tensors)

    call.__tgrad_fused__ = function  # type: ignore[attr-defined]
    return call


def _name(function: Callable) -> str:
    name = getattr(function, "__name__", "")
    return name if name.isidentifier() else "fused"


# --- what was traced
# ----------------------------------------------------------------------------------------------------
def _trace(function: Callable, args: tuple, kwargs: dict[str, Any], tensors: list[Tensor]) -> tuple[_Traced, list]:
    """What a call does, and the tensors that it met and was not called with."""
    recorder = Recorder(tensors)
    given = iter(recorder.inputs)
    swap = lambda v: next(given) if isinstance(v, Tensor) else v
    try:
        result = function(*[swap(a) for a in args], **{k: swap(v) for k, v in kwargs.items()})
        return _Traced(_name(function), recorder, result), recorder.tensors[recorder.given :]
    finally:
        recorder.close()


class _Group(NamedTuple):
    """Results of one kernel: how to run it, which tensors and numbers it takes, and what they are."""

    run: Callable[[list], list[Tensor]]
    tensors: tuple[int, ...]
    numbers: tuple[bool | int | float, ...]
    results: tuple[Ref, ...]


class _Traced:
    """A call of a function as kernels: one for each shape of results, and one for each reduction.

    Attributes:
        results: what it returns, as references; `several`: in a tuple.
    """

    def __init__(self, name: str, recorder: Recorder, result: Any) -> None:
        self.several = isinstance(result, tuple)
        if self.several and type(result) is not tuple:
            raise _no_result(name, result)
        values = result if self.several else (result,)
        for v in values:
            if not isinstance(v, Tensor):
                raise _no_result(name, v)
        self.results = tuple(recorder.reference("return", v) for v in values)
        self.groups: list[_Group] = []
        alike: dict[tuple, list[Ref]] = {}
        for ref in dict.fromkeys(self.results):
            if ref[0] == "step":
                alike.setdefault(tuple(recorder.layout_of(ref).shape), []).append(ref)
            elif ref[0] == "reduced":
                self.groups.append(_reduction(name, recorder, ref))
        for refs in alike.values():
            e, tensors, numbers = _expression(recorder, refs)
            self.groups.append(_Group(fused(name, e).run, tensors, numbers, tuple(refs)))

    def run(self, tensors: Sequence[Tensor]) -> Any:
        """What it returns for other tensors of the same layouts."""
        made: dict[Ref, Tensor] = {}
        for group in self.groups:
            outs = group.run([*[tensors[i] for i in group.tensors], *group.numbers])
            if not self.several:
                return outs[0]
            made.update(zip(group.results, outs, strict=True))
        found = [tensors[ref[1]] if ref[0] == "input" else made[ref] for ref in self.results]
        return tuple(found) if self.several else found[0]


def _no_result(name: str, value: Any) -> TypeError:
    return TypeError(
        f"tgrad.fuse: {name} returned a {type(value).__name__}: expected a tensor or a plain tuple of tensors. Return "
        "what is no tensor from another function."
    )


def _reduction(name: str, recorder: Recorder, ref: Ref) -> _Group:
    reduction = recorder.reductions[ref[1]]
    settings = reduction.settings
    if reduction.ref[0] == "input":
        return _Group(lambda args: dispatch(reduction.op, args, settings), (reduction.ref[1],), (), (ref,))
    e, tensors, numbers = _expression(recorder, [reduction.ref])
    op = fused_reduction(reduction.op, fused(name, e))
    return _Group(lambda args: [op.run(args, settings)], tensors, numbers, (ref,))


def _expression(recorder: Recorder, results: list[Ref]) -> tuple[Expression, tuple[int, ...], tuple]:
    """The Expression that computes `results`, over those tensors and then those numbers that it needs."""
    needed: set[Ref] = set()
    pending = list(results)
    while pending:
        ref = pending.pop()
        if ref not in needed:
            needed.add(ref)
            if ref[0] == "step":
                pending += recorder.steps[ref[1]][1]
    tensors = tuple(sorted(i for kind, i in needed if kind == "input"))
    numbers = tuple(sorted(i for kind, i in needed if kind == "number"))
    at: dict[Ref, Ref] = {("input", i): ("input", k) for k, i in enumerate(tensors)}
    at |= {("number", i): ("input", len(tensors) + k) for k, i in enumerate(numbers)}
    steps: list[tuple] = []
    for i, (row, refs) in enumerate(recorder.steps):
        if ("step", i) in needed:
            at["step", i] = "step", len(steps)
            steps.append((row, tuple(at[r] for r in refs)))
    e = Expression(len(tensors) + len(numbers), tuple(steps), tuple(at[r] for r in results))
    return e, tensors, tuple(recorder.numbers[i] for i in numbers)
