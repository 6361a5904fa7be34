"""How one node goes backward: its formulas, run as one kernel or, under `create_graph`, recorded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from tgrad.device import compute
from tgrad.dispatch import dispatch
from tgrad.eager import install_backward
from tgrad.expression import Expression
from tgrad.graph import Node, Saved
from tgrad.kernels.launch import Launch
from tgrad.layout import Layout, layout
from tgrad.modes import current
from tgrad.op import Composed, operand, pointwise_launch, result_layout
from tgrad.ops import pointwise as p
from tgrad.ops.reduce import reduce_launch, sum_to
from tgrad.rules import FormulaRule, PointwiseRule
from tgrad.tensor import Tensor, empty

# A gradient, and whether nobody but the receiver holds its memory.
Gradient = tuple[Tensor | None, bool]


def gradients(node: Node, g: Any, further: tuple[Expression, list[Tensor]] | None = None) -> list[Gradient]:
    """The gradient for each of the node's edges, in the shape and dtype of the input.

    Args:
        g: the gradient of the node's result; of a node with several results, a list of them, None where none came.
        further: what is applied to the gradient that the rule can fold a formula into (folding.py).

    Raises:
        RuntimeError: what it saved was freed, or modified in place.
    """
    if node.saved is None:
        raise RuntimeError(
            "Trying to backward through the graph a second time (or directly access saved tensors after they have "
            "already been freed). Saved intermediate values of the graph are freed when you call .backward() or "
            "autograd.grad(). Specify retain_graph=True if you need to backward through the graph a second time or "
            "if you need to access saved tensors after calling backward."
        )
    rule: Any = node.rule
    if rule.__class__ is PointwiseRule:
        return _pointwise(node, rule, g)
    if isinstance(rule, FormulaRule):
        return _formulas(node, rule, g, further)
    return rule.run(node, g)


# --- pointwise
# ---------------------------------------------------------------------------------------------------------
_unpack = Saved.unpack  # unless somebody listens


def _pointwise(node: Node, rule: PointwiseRule, g: Tensor) -> list[Gradient]:
    values: list[Any] = []
    if current().record:
        values += [s.unpack(node) for s in node.saved or ()]
        values += node.numbers
        return [_recorded(rule, i, g, values) for i in range(len(rule.parts))]
    for s in node.saved or ():  # of most, the address and the layout are all it takes
        simple = s.__class__ is Saved and s.version.value == s.expected and Saved.unpack is _unpack
        values.append(s if simple else s.unpack(node))
    key = (g.layout, *[v.layout for v in values])
    values += node.numbers
    steps = rule.plans.get(key)
    if steps is None:
        steps = _plan(node, rule, g, values, key)
    results: list[Gradient] = [(g, False)] * len(rule.parts)
    for places, layouts, launch, tensors, numbers in steps:
        made = [empty(l, False) for l in layouts]
        launch(*[t.ptr for t in made], g.ptr, *[values[k].ptr for k in tensors], *[values[k] for k in numbers])
        for i, t in zip(places, made):
            results[i] = (t, True)
    return results


def _recorded(rule: PointwiseRule, i: int, g: Tensor, values: list[Any]) -> Gradient:
    like, expression, needs = rule.parts[i]
    if expression.is_input(0):
        out, own = g, False
    else:
        out, own = dispatch(_composed(rule.op.name, expression), (g, *[values[k] for k in needs]))[0], True
    return _fit(out, like, own)


@functools.cache
def _composed(name: str, expression: Expression) -> Composed:
    return Composed(f"{name}_backward", expression, [f"x{i}" for i in range(expression.n_inputs)])


def _fit(out: Tensor, like: Layout, own: bool) -> tuple[Tensor, bool]:
    """Summed to the shape and cast to the dtype of the input."""
    if out.layout.shape != like.shape:
        out, own = sum_to(out, tuple(like.shape)), True
    if out.layout.dtype is not like.dtype:
        out, own = p.cast(like.dtype)(out), True
    return out, own


class Step(NamedTuple):
    """One launch: it makes the gradients at `places`, of these layouts, from g and some of the values."""

    places: tuple[int, ...]
    layouts: tuple[Layout, ...]
    launch: Launch
    tensors: tuple[int, ...]
    numbers: tuple[int, ...]


def _plan(node: Node, rule: PointwiseRule, g: Tensor, saved: list[Any], key: tuple) -> tuple[Step, ...]:
    """Decide the launches: one for all inputs of the full shape, and a reduction for each that was broadcast.

    An input of which there is nothing to compute gets g itself.
    """
    values = [v.unpack(node) if isinstance(v, Saved) else v for v in saved]
    together, alone = [], []
    for i, (like, expression, _) in enumerate(rule.parts):
        if like.shape != g.layout.shape:
            alone.append(i)
        elif not expression.is_input(0) or like.dtype is not g.layout.dtype:
            together.append(i)
    steps = []

    def add(places: Sequence[int], layouts: Sequence[Layout], launch: Launch, needs: Sequence[int]) -> None:
        tensors = tuple(k for k in needs if isinstance(values[k], Tensor))
        numbers = tuple(k for k in needs if not isinstance(values[k], Tensor))
        steps.append(Step(tuple(places), tuple(layouts), launch, tensors, numbers))

    if together:
        add(together, *_joint(rule, together, g, values))
    for i in alone:
        add((i,), *_reduction(rule, i, g, values))
    plan = rule.plans[key] = tuple(steps)
    return plan


def _joint(rule: PointwiseRule, parts: list[int], g: Tensor, values: list[Any]) -> tuple:
    """One kernel for several gradients: their formulas side by side over the union of what they need."""
    needs = tuple(sorted({k for i in parts for k in rule.parts[i][2]}))

    def side_by_side(g: Any, *symbols: Any) -> tuple:
        at = dict(zip(needs, symbols, strict=True))
        results = []
        for i in parts:
            _, expression, own = rule.parts[i]
            inputs = [g, *[at[k] for k in own]]
            done = expression.replay(g.trace, inputs)
            kind, index = expression.results[0]
            results.append(inputs[index] if kind == "input" else done[index])
        return tuple(results)

    expression = Expression.of(side_by_side, 1 + len(needs))
    used = [values[k] for k in needs]
    likes = [rule.parts[i][0] for i in parts]
    lowered = expression.lower((operand(g), *map(operand, used)), [like.dtype for like in likes])
    tensors = [g.layout, *[v.layout for v in used if isinstance(v, Tensor)]]
    outs = [result_layout(tensors, like.dtype) for like in likes]
    return outs, pointwise_launch(f"{rule.op.name}_backward", lowered, outs, tensors), needs


def _reduction(rule: PointwiseRule, i: int, g: Tensor, values: list[Any]) -> tuple:
    """The gradient of an input that was broadcast: its formula as the prologue of a sum, so that it is never stored."""
    like, expression, needs = rule.parts[i]
    shape = tuple(g.shape)
    lead = len(shape) - len(like.shape)
    dims = tuple(d for d in range(len(shape)) if d < lead or (like.shape[d - lead] == 1 and shape[d] != 1))
    used = [values[k] for k in needs]
    out = layout(like.dtype, tuple(like.shape), None, compute)
    launch = reduce_launch(
        f"{rule.op.name}_backward", "sum", expression, (operand(g), *map(operand, used)),
        [g.layout, *[v.layout for v in used if isinstance(v, Tensor)]], shape, dims, out,
    )  # fmt: skip
    return (out,), launch, needs


# --- formulas
# ----------------------------------------------------------------------------------------------------------
def _formulas(
    node: Node, rule: FormulaRule, g: Tensor, further: tuple[Expression, list[Tensor]] | None
) -> list[Gradient]:
    saved = [s.unpack(node) for s in node.saved or ()]
    values: list[Any] = [*saved, *node.numbers, None]  # None is at -1, for what is absent
    calls, joint = rule.prepared(current().record)
    held = [g.storage, *[t.storage for t in saved]]
    out: list[Gradient] = []
    given: dict[int, Tensor] = {}
    if joint is not None:
        positions, together, at = joint
        given = dict(zip(positions, together(g, *[values[k] for k in at]) or (), strict=False))
    for i, (like, formula, at) in enumerate(calls):
        if i in given:
            result = given[i]
        elif further is not None and rule.fold is not None and i == rule.fold[0]:
            result = rule.fold[1](g, *[values[k] for k in at], *further)
        else:
            result = formula(g, *[values[k] for k in at])
        if result is None:
            out.append((None, False))
            continue
        if result.layout is not like:
            result, _ = _fit(result, like, False)
        own = result.alias is None and result.storage not in held
        held.append(result.storage)
        out.append((result, own))
    return out


_pointwise, _formulas = install_backward(_pointwise, _formulas, _plan, _fit)
