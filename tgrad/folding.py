"""Folding in a plain backward: an activation's formula into the product that computes the gradient it is applied to.

    linear 1 -> gelu -> linear 2

The gradient of linear 2's input goes to gelu's node and nowhere else, and that node runs next. So the product takes
gelu's formula as its epilogue, and what it would have stored between is neither written nor read. The result is the
same to the bit: the product is rounded to its dtype first, and a kernel whose epilogue has arithmetic is compiled
without contraction, which changes no product on matrix instructions. Those of float64 are not: into them go only
formulas that select, such as relu's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tgrad import dtypes, graph
from tgrad.backward import Gradient, gradients
from tgrad.expression import Expression
from tgrad.graph import Node
from tgrad.layout import Layout
from tgrad.ops import pointwise as p
from tgrad.ops.math import sign
from tgrad.rules import PointwiseRule
from tgrad.tensor import Tensor

if TYPE_CHECKING:
    from tgrad.engine import Walk

# What a formula may consist of: rows that select, others of some instructions, and those of some dozens. Of the last it
# has few, so that the compiler spills nothing: `python -m tests.aot_tiles 90` and other chips.
_SELECTING = frozenset((p.where, p.le, p.lt, p.ge, p.gt, p.eq, p.ne))
_SHORT = _SELECTING | {p.add, p.sub, p.mul, p.neg, p.abs, p.maximum, p.minimum, p.logical_and, p.logical_or, sign}
_LONG = frozenset((p.div, p.exp, p.erf, p.normal_density, p.tanh, p.sigmoid))
MOST_LONG, MOST_STEPS, MOST_TENSORS = 2, 20, 2


def fold(walk: Walk, node: Node, g: Any) -> tuple[list[Any], list[Gradient]] | None:
    """Run `node`, whose rule has a `fold`, together with the node below it; None if that cannot be.

    Returns:
        Where the gradients go, and the gradients: of both nodes.
    """
    if walk.create or walk.capture is not None or g is None or node.prehooks or node.posthooks:
        return None
    position = node.rule.fold[0]  # type: ignore[attr-defined]
    below = node.edges[position]
    if below.__class__ is not Node or below.rule.__class__ is not PointwiseRule or not _alone(walk, node, below):
        return None
    rule = below.rule
    if rule.foldable is None:
        rule.foldable = _foldable(rule)
    further = _formula(below, rule) if rule.foldable else None
    if further is None:
        return None
    results = gradients(node, g, further)
    if not walk.retain:
        if node.lent is not None:
            graph.settle_lent(node)
        node.saved = None  # first: it may hold recipes that read what `below` saved
        if below.lent is not None:
            graph.settle_lent(below)
        below.saved = None
    edges = list(node.edges)
    edges[position] = below.edges[0]
    return edges, results


def _alone(walk: Walk, node: Node, below: Node) -> bool:
    """Whether `below` gets a gradient of `node` and no other, and nobody looks at it. Keys fall with age."""
    if below.key in walk.pending or (walk.heap and walk.heap[0] < below.key):
        return False  # one that is younger waits, and may send a gradient too
    if below.hooks or below.retains is not None or below.prehooks or below.posthooks or below.saved is None:
        return False
    reaching = 0  # edges to it, and to older nodes, which may lead to it
    for e in node.edges:
        if (e.__class__ is Node or isinstance(e, Node)) and e.key <= below.key:
            reaching += 1
    return reaching == 1


def _foldable(rule: PointwiseRule) -> bool:
    """Whether a rule's one formula gives the same bits in an epilogue, at little cost there."""
    like, expression, needs = rule.parts[0]
    rows = [row for row, _ in expression.steps]
    if len(rule.parts) > 1 or rule.numbers or not rows:
        return False
    if all(row in _SELECTING for row in rows):
        return True
    long = sum(row in _LONG for row in rows)
    few = long <= MOST_LONG and len(rows) <= MOST_STEPS and len(needs) <= MOST_TENSORS
    return few and like.dtype is not dtypes.float64 and all(row in _SHORT or row in _LONG for row in rows)


def _formula(node: Node, rule: PointwiseRule) -> tuple[Expression, list[Tensor]] | None:
    """A node's formula and the tensors it takes after g; None if their layouts do not suit an epilogue.

    Raises:
        RuntimeError: one was modified in place since it was saved.
    """
    like, expression, needs = rule.parts[0]
    out = node.layout
    if out is not like and (out.shape != like.shape or out.dtype is not like.dtype):
        return None
    saved: Any = node.saved
    values = []
    for k in needs:
        s = saved[k]
        if not (s.layout is like and like.contiguous or _suits(s.layout, like)):
            return None
        v = s.unpack(node)
        if v.layout is not s.layout and not _suits(v.layout, like):  # a hook made another
            return None
        values.append(v)
    return expression, values


def _suits(of: Layout, like: Layout) -> bool:
    """Whether a tensor of the layout `of` can come with a product of the shape and dtype of `like`."""
    return of.contiguous and of.shape == like.shape and (of.dtype is like.dtype or of.dtype is dtypes.bool_)
