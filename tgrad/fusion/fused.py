"""The op that a fused function becomes: one kernel, and for backward no more memory than its operations one by one."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from tgrad import dispatch as path
from tgrad.dispatch import dispatch
from tgrad.expression import Expression, Operand, Ref
from tgrad.fusion.mincut import cheapest_cut
from tgrad.layout import Layout
from tgrad.modes import current
from tgrad.op import Composed, check_devices, operand, pointwise_launch, result_layout
from tgrad.rules import Plan, Rule
from tgrad.tensor import Tensor


class Fused(Composed):
    """An Expression with any number of results of one shape, as one kernel.

    Attributes:
        with_out: whether the derivative is written in terms of the result where that can be; only of one result.
        splits: how it is recorded, by the inputs that want a gradient and the signature; None: as one node.
    """

    def __init__(self, name: str, expression: Expression, with_out: bool = False) -> None:
        super().__init__(name, expression, [f"x{i}" for i in range(expression.n_inputs)])
        self.with_out, self.sign = with_out, False
        self.splits: dict[tuple, Split] = {}

    @functools.cache  # noqa: B019
    def derivative(self, i: int) -> tuple[Expression, tuple[int, ...]] | None:
        whole = self.expression.derivative(i, self.with_out)
        if whole is None:
            return None
        pruned, inputs = whole.pruned(keep=(0,))
        return pruned, tuple(k - 1 for k in inputs[1:])

    def build(self, args: Sequence[Any], settings: tuple) -> Plan:
        tensors = [a for a in args if isinstance(a, Tensor)]
        check_devices(self.name, tensors)
        operands = tuple(operand(a) for a in args)
        known = step_layouts(self.expression, operands, args)
        outs = tuple(known[i] for _, i in self.expression.results)
        lowered = self.expression.lower(operands, [None] * len(outs))
        launch = pointwise_launch(self.name, lowered, outs, [t.layout for t in tensors])
        return Plan(outs, launch, self.rules(args, outs))

    def rules(self, args: Sequence[Any], outs: tuple[Layout, ...]) -> Any:
        """The rule of one signature by mask; None of several results, whose nodes are recorded by `run`."""
        kinds = [isinstance(a, Tensor) for a in args]
        layouts = [a.layout if isinstance(a, Tensor) else None for a in args]
        return lambda mask: self.rule(mask, kinds, layouts, outs[0]) if len(outs) == 1 else None

    def run(self, args: Sequence[Any]) -> list[Tensor]:
        """The results, recorded in the graph if the mode and the arguments say so."""
        mask = wanted(args) if current().record else 0
        if not mask:
            return dispatch(self, args)
        key = (mask, *[a.layout if isinstance(a, Tensor) else a.__class__ for a in args])
        split = self.splits.get(key)
        if split is None:
            near = path.brought_near(args)
            if near is not args:
                return self.run(near)
            if len(self.splits) >= path.MAX_PLANS:
                self.splits.clear()
            split = self.splits[key] = self.split(args, mask)
        outs = dispatch(split.kernel, args)
        for stage in split.stages:
            given = [args[i] if kind == "input" else outs[i] for kind, i in stage.args]
            path.record(stage.plan(given), given, [outs[stage.out]])
        return outs[: len(self.expression.results)]

    def split(self, args: Sequence[Any], mask: int) -> Split:
        """Decide what is kept for backward, and what becomes a node.

        One node, which keeps inputs and perhaps the result, if that is no more than what the operations one by one
        would keep. Else the cheapest set of values from which what the formulas name can be computed; each of them
        that is no input is a further result of the kernel and has a node of its own.
        """
        e = self.expression
        flow = Flow(e, args, mask)
        if len(e.results) == 1:
            total, with_out = min((flow.cost(with_out), not with_out) for with_out in (True, False))
            if total <= sum(map(flow.nbytes, flow.named)):
                return Split(fused(self.name, e, with_out=not with_out), [])
        cut = flow.cut()
        results = [i for _, i in e.results]
        targets = results + sorted({i for kind, i in cut if kind == "step"} - set(results))
        at = {("step", i): k for k, i in enumerate(targets)}
        kernel = fused(self.name, Expression(e.n_inputs, e.steps, tuple(at)))
        stages = []
        for target in sorted(targets):
            ref = ("step", target)
            part, leaves = extract(e, ref, cut - {ref})
            op = fused(self.name, part, with_out=ref in cut)
            stages.append(Stage(op, tuple(("out", at[r]) if r[0] == "step" else r for r in leaves), at[ref]))
        return Split(kernel, stages)


class Stage(NamedTuple):
    """A node of a fused call: its op, which launches nothing, its arguments, and which result it makes."""

    op: Fused
    args: tuple[Ref, ...]
    out: int

    def plan(self, given: Sequence[Any]) -> Plan:
        key = (*[a.layout if isinstance(a, Tensor) else a.__class__ for a in given], "node alone")
        plan = self.op.plans.get(key)
        if plan is None:
            known = step_layouts(self.op.expression, tuple(map(operand, given)), given)
            outs = (known[self.op.expression.results[0][1]],)
            rules = self.op.rules(given, outs)
            plan = path.keep_plan(self.op, key, Plan(outs, None, lambda mask: _kept(rules(mask))))
        return plan


def _kept(rule: Rule | None) -> Rule | None:
    """The rule, of a result that is not made again: it was computed from unrounded values."""
    if rule is not None:
        rule.source, rule.edged = None, False
    return rule


class Split(NamedTuple):
    """How a fused call is recorded: the op that runs, and the nodes. Without nodes, running the op makes the one."""

    kernel: Fused
    stages: list[Stage]


@functools.lru_cache(4096)
def _interned(name: str, n_inputs: int, steps: tuple, results: tuple[Ref, ...], with_out: bool) -> Fused:
    return Fused(name, Expression(n_inputs, steps, results), with_out)


def fused(name: str, expression: Expression, with_out: bool = False) -> Fused:
    """The op for an Expression: one for all equal ones."""
    return _interned(name, expression.n_inputs, expression.steps, expression.results, with_out)


def wanted(args: Sequence[Any]) -> int:
    """A bit for each argument that requires grad."""
    mask = 0
    for i, a in enumerate(args):
        if isinstance(a, Tensor):
            if a.alias is not None:
                path.refresh(a)
            if a._requires_grad:
                mask |= 1 << i
    return mask


def step_layouts(e: Expression, operands: Sequence[Operand], args: Sequence[Any]) -> list[Layout]:
    """The layouts that the steps' results would have one by one."""
    types, _ = e.infer(operands)
    done: list[Layout] = []
    for (_, refs), (kind, _) in zip(e.steps, types, strict=True):
        values = [args[i].layout if k == "input" else done[i] for k, i in refs if k == "step" or _is_tensor(args[i])]
        done.append(result_layout(values, kind))
    return done


def _is_tensor(a: Any) -> bool:
    return isinstance(a, Tensor)


def extract(e: Expression, result: Ref, stops: set[Ref] | frozenset[Ref] = frozenset()) -> tuple[Expression, list[Ref]]:
    """The part of an Expression that computes `result` from inputs and `stops`, and what its inputs are."""
    seen: set[Ref] = set()
    pending = [result]
    while pending:
        ref = pending.pop()
        if ref not in seen:
            seen.add(ref)
            if ref[0] == "step" and ref not in stops:
                pending += e.steps[ref[1]][1]
    leaves = sorted(r for r in seen if r[0] == "input" or r in stops)
    at: dict[Ref, Ref] = {r: ("input", k) for k, r in enumerate(leaves)}
    steps: list[tuple] = []
    for i, (row, refs) in enumerate(e.steps):
        if ("step", i) in seen and ("step", i) not in stops:
            at["step", i] = "step", len(steps)
            steps.append((row, tuple(at[r] for r in refs)))
    return Expression(len(leaves), tuple(steps), (at[result],)), leaves


class Flow:
    """What flows backward through an Expression.

    Attributes:
        named: the values that the formulas of its steps name: what would be kept if they ran one by one.
    """

    def __init__(self, e: Expression, args: Sequence[Any], mask: int) -> None:
        self.e, self.args = e, args
        operands = tuple(map(operand, args))
        self.layouts = step_layouts(e, operands, args)
        depends: set[Ref] = {("input", i) for i in range(len(args)) if mask >> i & 1}
        for i, (row, refs) in enumerate(e.steps):
            names = zip(row.inputs, refs, strict=True)
            if any(r in depends and name in row.formulas for name, r in names):
                depends.add(("step", i))
        live, self.named = set(e.results) & depends, set()
        for i in reversed(range(len(e.steps))):
            if ("step", i) not in live:
                continue
            row, refs = e.steps[i]
            values: dict[str, Ref] = {**dict(zip(row.inputs, refs, strict=True)), "out": ("step", i)}
            for name, r in zip(row.inputs, refs, strict=True):
                if r in depends and name in row.formulas:
                    live.add(r)
                    self.named |= {values[n] for n in row.needs[name] if self.nbytes(values[n]) is not None}

    def nbytes(self, ref: Ref) -> Any:
        """Bytes of a value; None of a number."""
        if ref[0] == "step":
            return self.layouts[ref[1]].nbytes
        a = self.args[ref[1]]
        return a.layout.nbytes if isinstance(a, Tensor) else None

    def cost(self, with_out: bool) -> int:
        """Bytes kept by one node: the inputs, and perhaps the result, that compute what the formulas name."""
        (out,) = self.e.results
        seen: set[Ref] = set()
        pending = list(self.named)
        while pending:
            ref = pending.pop()
            if ref not in seen:
                seen.add(ref)
                if ref[0] == "step" and not (with_out and ref == out):
                    pending += self.e.steps[ref[1]][1]
        return sum(self.nbytes(r) or 0 for r in seen if r[0] == "input" or (with_out and r == out))

    def cut(self) -> frozenset[Ref]:
        """The inputs, results and further values of the results' shape that cost least to keep."""
        shape = self.layouts[self.e.results[0][1]].shape
        costs: dict[Ref, int | None] = {}
        for i, a in enumerate(self.args):
            costs["input", i] = 4 * a.layout.nbytes if isinstance(a, Tensor) else 0
        for i, l in enumerate(self.layouts):
            ref = ("step", i)
            extra = -1 if ref in self.e.results else 1  # of equals, results come first and further values last
            costs[ref] = max(4 * l.nbytes + extra, 0) if l.shape == shape else None
        before = {("step", i): refs for i, (_, refs) in enumerate(self.e.steps)}
        cut = cheapest_cut(costs, before, self.named)
        return frozenset(r for r in cut if self.nbytes(r) is not None)


