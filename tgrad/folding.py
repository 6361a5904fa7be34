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
    below = _alone(walk, node, position)
    further = None if below is None else _formula(below)
    if below is None or further is None:
        return None
    results = gradients(node, g, further)
    if not walk.retain:
        if below.lent is not None:
            graph.settle_lent(below)
        below.saved = None
    edges = list(node.edges)
    edges[position] = below.edges[0]
    return edges, results


def _alone(walk: Walk, node: Node, position: int) -> Node | None:
    """The node that gets that gradient of `node`, and no other, if its formula can be folded. Keys fall with age."""
    to = node.edges[position]
    if to.__class__ is not Node or to.rule.__class__ is not PointwiseRule or to.key in walk.pending:
        return None
    if walk.heap and walk.heap[0] < to.key:  # one that is younger waits, and may send a gradient too
        return None
    for i, other in enumerate(node.edges):
        if i != position and isinstance(other, Node) and other.key <= to.key:
            return None
    if to.hooks or to.retains is not None or to.prehooks or to.posthooks or to.saved is None or to.rule.numbers:
        return None
    parts = to.rule.parts
    if len(parts) != 1 or parts[0][0].shape != to.layout.shape or parts[0][0].dtype is not to.layout.dtype:
        return None
    expression = parts[0][1]
    return to if expression.steps and all(row in _SELECTING for row, _ in expression.steps) else None


def _formula(node: Node) -> tuple[Expression, list[Tensor]] | None:
    """A node's formula and the tensors it takes after g; None if their layouts do not suit an epilogue.

    Raises:
        RuntimeError: one was modified in place since it was saved.
    """
    saved = [s.unpack(node) for s in node.saved or ()]
    _, expression, needs = node.rule.parts[0]  # type: ignore[attr-defined]
    values = [saved[k] for k in needs]
    suit = all(v.layout.contiguous and v.layout.shape == node.layout.shape for v in values)
    return (expression, values) if suit else None
