"""What an op is: a forward plan per signature, and a derivative written once.

A derivative is a formula per input, in ordinary tgrad maths. Its first parameter is the incoming gradient `g`; every
other positional parameter names an input, `out` or an auxiliary result, and naming it is what saves it. Keyword-only
parameters name the op's settings, or `<input>_shape`, `<input>_strides` or `<input>_dtype`,
and save nothing.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from tgrad import dtypes, graph
from tgrad.device import compute
from tgrad.dispatch import Plans, dispatch, view
from tgrad.dtypes import dtype
from tgrad.eager import install_record
from tgrad.expression import Expression, Operand, Symbol
from tgrad.fusion.tracing import TRACE, Tracer, intercept, refusal
from tgrad.host_copies import only_host
from tgrad.kernels.launch import Launch, holders
from tgrad.kernels.pointwise import prepare_pointwise
from tgrad.layout import (
    Layout,
    broadcast_shapes,
    broadcast_strides,
    collapse,
    is_gapless,
    layout,
    order_by_stride,
    strides_in_order,
)
from tgrad.rules import Formula, FormulaRule, PartRule, Plan, PointwiseRule, Rule
from tgrad.tensor import Tensor

install_record(graph, Rule)

_ops: weakref.WeakSet[Op] = weakref.WeakSet()


def forget_plans() -> None:
    """Drop the plans of every op: something that they depend on has changed, such as the default dtype."""
    for op in list(_ops):
        op.plans.clear()


dtypes.default_changed.append(forget_plans)
holders.append(forget_plans)


class Op:
    """A differentiable operation.

    Attributes:
        inputs: names of its tensors and numbers, in order.
        formulas: derivative by input name.
        needs: what each formula names after g.
        plans: by signature.
        on_host: builds results for CPU tensors where the CPU does not compute (host_copies.py); None: they are refused.
    """

    on_host: Callable[..., tuple] | None = None

    def __init__(
        self, name: str, inputs: Sequence[str], formulas: dict[str, Formula], grad_name: str | None = None,
        node_name: str | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.inputs = tuple(inputs)
        self.formulas = formulas
        self.needs = {n: tuple(p.name for p in _positional(f)[1:]) for n, f in formulas.items()}
        self.settings = {n: tuple(p.name for p in _keyword_only(f)) for n, f in formulas.items()}
        self.plans = Plans()
        _ops.add(self)
        self.grad_name = grad_name or "".join(part.capitalize() for part in name.split("_"))
        self.node_name = node_name or f"{self.grad_name}Backward0"
        unknown = set(formulas) - set(self.inputs)
        if unknown:
            raise TypeError(f"{name}: formulas for {sorted(unknown)}, which are not among its inputs {self.inputs}")

    def build(self, args: Sequence[Any], settings: tuple) -> Plan:
        """The plan for a new signature. Raises what is wrong with the arguments."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def _positional(f: Formula) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(f).parameters.values() if p.kind is not p.KEYWORD_ONLY]


def _keyword_only(f: Formula) -> list[inspect.Parameter]:
    return [p for p in inspect.signature(f).parameters.values() if p.kind is p.KEYWORD_ONLY]


def check_devices(name: str, tensors: Sequence[Tensor]) -> None:
    """Refuse tensors that are not on the compute device."""
    for t in tensors:
        if t.layout.device is TRACE:
            raise refusal(name)
        if t.layout.device is not compute:
            raise RuntimeError(
                f"{name}: expected all tensors on {compute}, found one of shape {tuple(t.shape)} on "
                f"{t.layout.device}: CPU tensors store, copy and convert only here, move it with .to('{compute}')"
            )


class Pointwise(Op):
    """A row of the op table: one scalar function over broadcast operands.

    Args:
        fn: the scalar `@triton.jit` function; its parameters name the inputs.
        types: a type rule of expression.py.
        grad: the formula, or one per differentiable input by name.
        check: called with the operands' dtypes for a new signature; raises.
        sign: of the result its formula asks only whether it is above 0 (nan is).
    """

    def __init__(
        self, name: str, fn: Any, types: Callable, grad: Formula | dict[str, Formula] | None = None, *,
        grad_name: str | None = None, check: Callable[[list[dtype]], None] | None = None, sign: bool = False,
    ) -> None:  # fmt: skip
        inputs = fn.arg_names if hasattr(fn, "arg_names") else list(inspect.signature(fn).parameters)
        formulas = {inputs[0]: grad} if callable(grad) else dict(grad or {})
        super().__init__(name, inputs, formulas, grad_name)
        self.fn, self.types, self.check, self.sign = fn, types, check, sign

    @functools.cached_property
    def expression(self) -> Expression:
        return Expression.of(self, len(self.inputs))

    def __call__(self, *args: Any) -> Any:
        for a in args:
            if a.__class__ is Symbol:
                return a.trace.call(self, args)
            if a.__class__ is Tracer:
                return intercept(self, args)
        return dispatch(self, args)[0]

    @functools.cache  # noqa: B019  rows live as long as the process
    def derivative(self, i: int) -> tuple[Expression, tuple[int, ...]] | None:
        """The gradient of input i over (g, *what it needs), and the indices of those: inputs, or len(inputs) for
        `out`.
        """
        name = self.inputs[i]
        if name not in self.formulas:
            return None
        formula, n = self.formulas[name], len(self.inputs)
        needs = tuple(n if p == "out" else self.inputs.index(p) for p in self.needs[name])
        return Expression.of(formula, 1 + len(needs)), needs

    def build(self, args: Sequence[Any], settings: tuple) -> Plan:
        kinds = [isinstance(a, Tensor) for a in args]
        layouts = [a.layout if isinstance(a, Tensor) else None for a in args]
        if self.on_host is not None and only_host([a for a in args if isinstance(a, Tensor)]):
            (out,), launch = self.on_host(*args)
            return Plan((out,), launch, lambda mask: self.rule(mask, kinds, layouts, out))
        check_devices(self.name, [a for a in args if isinstance(a, Tensor)])
        if self.check is not None:
            self.check([a.layout.dtype if isinstance(a, Tensor) else dtypes.of_number(a) for a in args])
        operands = tuple(operand(a) for a in args)
        lowered = self.expression.lower(operands, [None])
        tensors = [a.layout for a in args if isinstance(a, Tensor)]
        out = result_layout(tensors, lowered.results[0])
        launch = pointwise_launch(self.name, lowered, (out,), tensors)
        return Plan((out,), launch, lambda mask: self.rule(mask, kinds, layouts, out))

    def rule(self, mask: int, kinds: list[bool], layouts: list[Layout | None], out: Layout) -> Rule | None:
        """The Rule for the inputs in `mask`, or None where none of them has a derivative."""
        n = len(kinds)
        parts = [(i, self.derivative(i)) for i in range(n) if mask >> i & 1]
        wanted = [(i, d) for i, d in parts if d is not None and out.dtype.is_floating_point]
        if not wanted:
            return None
        needed = sorted({k for _, (_, needs) in wanted for k in needs})
        tensors = [k for k in needed if k == n or kinds[k]]
        again = out.nbytes >= graph.SMALLEST_RECIPE
        numbers = [k for k in range(n) if not kinds[k] and (again or k in needed)]
        names = (*self.inputs, "out")
        rule = PointwiseRule(self, tuple(i for i, _ in wanted), tuple((k, names[k]) for k in tensors), tuple(numbers))
        at = {k: position for position, k in enumerate([*tensors, *numbers])}
        rule.parts = [(layouts[i], e, tuple(at[k] for k in needs)) for i, (e, needs) in wanted]  # type: ignore[misc]
        rule.big = any(l is not None and l.nbytes >= graph.SMALLEST_RECIPE for l in (out, *layouts))
        rule.large = any((out if k == n else layouts[k]).nbytes >= graph.SMALLEST_RECIPE for k in tensors)  # type: ignore
        if again and sum(kinds[i] and i not in tensors for i in range(n)) <= 1:  # of two, one would hardly be at hand
            rule.find_source([False] * n)
        return rule


class Composed(Pointwise):
    """A pointwise op that is an Expression of rows, not a row itself: a traced formula, or a user's fused function."""

    def __init__(self, name: str, expression: Expression, inputs: Sequence[str]) -> None:
        Op.__init__(self, name, inputs, {}, None)
        self.__dict__["expression"] = expression
        self.check = None

    @functools.cache  # noqa: B019
    def derivative(self, i: int) -> tuple[Expression, tuple[int, ...]] | None:
        whole = self.expression.derivative(i)
        if whole is None:
            return None
        pruned, inputs = whole.pruned(keep=(0,))
        return pruned, tuple(k - 1 for k in inputs[1:])


def operand(a: Any) -> Operand:
    """(dtype, rank) of a tensor or Python number in type promotion."""
    if isinstance(a, Tensor):
        return a.layout.dtype, dtypes.TENSOR if a.layout.shape else dtypes.SCALAR_TENSOR
    if isinstance(a, (bool, int, float)):
        return dtypes.of_number(a), dtypes.NUMBER
    raise TypeError(f"expected a Tensor or a number, got {type(a).__name__}")


def result_layout(tensors: Sequence[Layout], result: dtype) -> Layout:
    """The layout of a new pointwise result: broadcast shape, PyTorch's strides."""
    shape = broadcast_shapes(*(tuple(t.shape) for t in tensors)) if tensors else ()
    if all(t.contiguous and t.shape == shape for t in tensors):
        return layout(result, shape, None, compute)
    first = tensors[0]
    if is_gapless(first) and all(t.shape == shape and t.strides == first.strides for t in tensors):
        return layout(result, shape, first.strides, compute)
    strides = [broadcast_strides(tuple(t.shape), t.strides, shape) for t in tensors]
    return layout(result, shape, strides_in_order(shape, order_by_stride(shape, strides)), compute)


def pointwise_launch(name: str, lowered: Any, outs: Sequence[Layout], ins: Sequence[Layout]) -> Launch:
    """The launch of a lowered Expression; inputs broadcast to the shape of `outs`."""
    shape = tuple(outs[0].shape)
    if outs[0].numel == 0:
        return _nothing
    rows = [o.strides for o in outs] + [broadcast_strides(tuple(i.shape), i.strides, shape) for i in ins]
    order = order_by_stride(shape, rows)
    sizes, collapsed = collapse([shape[d] for d in order], [[row[d] for d in order] for row in rows])
    return prepare_pointwise(
        lowered.program,
        (tuple(o.dtype.triton for o in outs), lowered.tensors, lowered.scalars),
        sizes, collapsed[: len(outs)], collapsed[len(outs) :],
        aligned=all(t.aligned for t in (*outs, *ins)),
        wide=max(t.extent for t in (*outs, *ins)) >= 2**31 or outs[0].numel >= 2**31,
        name=name,
    )  # fmt: skip


def _nothing(*values: int | float) -> None:
    pass


class Kernel(Op):
    """An op that is not pointwise: a forward of its own, and formulas in tgrad maths.

    Args:
        build: (args, *settings) -> (layouts of the results, launch). Checks the arguments.
        settings: names of the settings, which formulas may ask for.
        again: whether running it again for backward is cheaper than keeping its result: it takes about the time of
            reading its operands, and depends on them alone. May be a function (args, settings) -> bool.
        results: names of the results; those after the first are auxiliary (`out` is the first).
        fast: formulas that a plain backward uses in place of `grad`, fused kernels that cannot be differentiated again.
        joint: inputs, and a function that a plain backward calls for their gradients together where all are wanted; it
            saves no more than their formulas, and returns None to have those called. One with a keyword `wanted` is
            called with the names of those that are, if any is.
        fold: an input, and a function (g, *what its formula names, Expression, tensors) for its gradient with a
            further formula applied to it.

    Attributes:
        kind: of its rules.
    """

    kind: type[FormulaRule] = FormulaRule

    def __init__(
        self, name: str, inputs: Sequence[str], build: Callable, grad: dict[str, Formula], *,
        settings: Sequence[str] = (), results: Sequence[str] = ("out",), fast: dict[str, Formula] | None = None,
        joint: tuple[tuple[str, ...], Callable] | None = None, fold: tuple[str, Callable] | None = None,
        grad_name: str | None = None, again: bool | Callable[..., bool] = False,
    ) -> None:  # fmt: skip
        super().__init__(name, inputs, grad, grad_name)
        self.again = again
        self.joint, self.fold = joint, fold
        self.forward, self.setting_names, self.results, self.fast = build, tuple(settings), tuple(results), fast or {}
        for n, f in self.fast.items():
            if tuple(p.name for p in _positional(f)[1:]) != self.needs[n]:
                raise TypeError(
                    f"{name}: the fast formula of '{n}' must save what the other one saves, {self.needs[n]}"
                )

    def __call__(self, *args: Any, **settings: Any) -> Any:
        given = tuple(settings[n] for n in self.setting_names)
        if args and args[0].__class__ is Tracer:
            return intercept(self, args, given)
        return dispatch(self, args, given)[0]

    def build(self, args: Sequence[Any], settings: tuple) -> Plan:
        tensors = [a for a in args if isinstance(a, Tensor)]
        if self.on_host is not None and only_host(tensors):
            outs, launch = self.on_host(*args, *settings)
            return Plan(tuple(outs), launch, self.rule_of(args, settings))
        check_devices(self.name, tensors)
        outs, launch = self.forward(*args, *settings)
        launch = launch if outs[0].numel or len(outs) > 1 else _nothing
        again = outs[0].nbytes >= graph.SMALLEST_RECIPE and bool(
            self.again(args, settings) if callable(self.again) else self.again
        )
        return Plan(tuple(outs), launch, self.rule_of(args, settings, again))

    def rule_of(self, args: Sequence[Any], settings: tuple, again: bool = False) -> Callable[[int], Rule | None]:
        """The rules of one signature, by mask; `again`: a recipe may run it again."""
        n = len(args)
        kinds = [isinstance(a, Tensor) for a in args]
        layouts: list[Any] = [a.layout if isinstance(a, Tensor) else None for a in args]
        known: dict[str, Any] = dict(zip(self.setting_names, settings, strict=True))
        for name, a in zip(self.inputs, args, strict=True):
            if isinstance(a, Tensor):
                known[f"{name}_shape"], known[f"{name}_strides"] = tuple(a.layout.shape), a.layout.strides
                known[f"{name}_dtype"] = a.layout.dtype
        names = (*self.inputs, *self.results)
        absent = [a is None for a in args]  # the plan outlives the arguments: it must not hold them

        def rule(mask: int) -> Rule | None:
            wanted = [i for i in range(n) if mask >> i & 1 and self.inputs[i] in self.formulas]
            if not wanted:
                return None
            needed = sorted({names.index(p) for i in wanted for p in self.needs[self.inputs[i]]})
            tensors = [k for k in needed if k >= n or kinds[k]]
            numbers = [k for k in range(n) if not kinds[k] and not absent[k] and (again or k in needed)]
            rule = self.kind(self, tuple(wanted), tuple((k, names[k]) for k in tensors), tuple(numbers))
            rule.names = tuple(names[k] for k in [*tensors, *numbers])
            rule.big = rule.large = again or any(
                l is not None and l.nbytes >= graph.SMALLEST_RECIPE for l in layouts
            )
            rule.calls = []
            for i in wanted:
                name = self.inputs[i]
                given = {s: known[s] for s in self.settings[name]}
                rule.calls.append((layouts[i], self.formulas[name], self.fast.get(name), self.needs[name], given))
            if again:
                rule.find_source(absent)
            if self.joint is not None:
                inputs, function = self.joint
                asked = [p.name for p in _keyword_only(function)]
                together = [i for i in wanted if self.inputs[i] in inputs]
                if len(together) == len(inputs) or (together and "wanted" in asked):
                    together.sort(key=lambda i: inputs.index(self.inputs[i]))
                    named = {**known, "wanted": tuple(self.inputs[i] for i in together)}
                    needs = tuple(p.name for p in _positional(function)[1:])
                    function = functools.partial(function, **{s: named.get(s) for s in asked}) if asked else function
                    rule.joint = tuple(wanted.index(i) for i in together), function, needs
            if self.fold is not None and (i := self.inputs.index(self.fold[0])) in wanted:
                rule.fold = wanted.index(i), self.fold[1]
            return rule

        return rule


class View(Kernel):
    """An op that makes another layout over the same memory.

    Args:
        build: (layout, *settings) -> (shape, strides, offset in elements).
    """

    def __init__(
        self, name: str, build: Callable, grad: Formula, *, settings: Sequence[str] = (), grad_name: str | None = None
    ) -> None:
        super().__init__(name, ("x",), build, {"x": grad}, settings=settings, grad_name=grad_name, again=True)

    def __call__(self, x: Tensor, **settings: Any) -> Tensor:
        return view(self, x, tuple(settings[n] for n in self.setting_names))

    def build(self, args: Sequence[Any], settings: tuple) -> Plan:
        x = args[0].layout
        if x.device is TRACE:
            raise refusal(self.name)
        shape, strides, offset = self.forward(x, *settings)
        nbytes = offset * x.dtype.itemsize
        aligned = x.aligned and nbytes % 16 == 0
        return Plan(
            (layout(x.dtype, tuple(shape), tuple(strides), x.device, aligned),),
            None,
            self.rule_of(args, settings, again=True),
            nbytes,
        )


class PartView(View):
    """A view of a part of a tensor along one dimension: an index, or a slice."""

    kind = PartRule
