"""Folding in a plain backward: a mask, such as relu's, into the product that computes the gradient it is applied to.

    linear 1 -> relu -> linear 2

The gradient of linear 2's input goes to relu's node and nowhere else, and that node runs next. So the product takes
relu's formula as its epilogue, and what it would have stored between is neither written nor read. The result is the
same to the bit: the product is rounded to its dtype first, and formulas with arithmetic, which a compiler may contract,
are left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tgrad import graph
from tgrad.backward import Gradient, gradients
from tgrad.expression import Expression
from tgrad.graph import Node
from tgrad.ops import pointwise as p
from tgrad.rules import PointwiseRule
from tgrad.tensor import Tensor

if TYPE_CHECKING:
    from tgrad.engine import Walk

_SELECTING = frozenset((p.where, p.le, p.lt, p.ge, p.gt, p.eq, p.ne))


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
    if rule.selects is None:
        rule.selects = _selects(rule)
    further = _formula(below, rule) if rule.selects else None
    if further is None:
        return None
    results = gradients(node, g, further)
    if not walk.retain:
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
        if isinstance(e, Node) and e.key <= below.key:
            reaching += 1
    return reaching == 1


def _selects(rule: PointwiseRule) -> bool:
    """Whether a formula does no more than choose between what it is given."""
    steps = rule.parts[0][1].steps
    return len(rule.parts) == 1 and not rule.numbers and bool(steps) and all(row in _SELECTING for row, _ in steps)


def _formula(node: Node, rule: PointwiseRule) -> tuple[Expression, list[Tensor]] | None:
    """A node's formula and the tensors it takes after g; None if their layouts do not suit an epilogue.

    Raises:
        RuntimeError: one was modified in place since it was saved.
    """
    like, expression, needs = rule.parts[0]
    shape = node.layout.shape
    if like.shape != shape or like.dtype is not node.layout.dtype:
        return None
    saved, values = node.saved or (), []
    for k in needs:
        v = saved[k].unpack(node)
        if not v.layout.contiguous or v.layout.shape != shape:
            return None
        values.append(v)
    return expression, values
