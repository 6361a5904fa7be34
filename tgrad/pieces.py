"""Gradients of parts of a tensor, such as those of a split, put together once all of them have come.

Alone, the gradient of a part is a tensor of the whole's size, zeros but for the part; the gradients of k parts are k
of these, written, read and added. Together they are one kernel if they are all of it, as where what was split is joined
again; else one tensor, to which each part is added where it belongs.
"""

from __future__ import annotations

from typing import Any

from tgrad.graph import Node
from tgrad.inplace import write
from tgrad.ops import pointwise as p
from tgrad.ops.joining import cat_op
from tgrad.ops.views import embed_op, owned, slice_op, unsqueeze_op
from tgrad.tensor import Tensor


class Pieces:
    """Gradients of slices, in the order in which they came, and what came for the whole tensor: None, or a sum of it.

    Attributes:
        parts: (gradient, settings of the `embed_op` that would place it).
        whole, own: that sum, and whether nobody else holds its memory.
    """

    __slots__ = ("parts", "whole", "own")

    def __init__(self, node: Node, g: Tensor) -> None:
        at: dict[str, Any] = node.rule.calls[0][4]  # type: ignore[attr-defined]
        if "index" in at:
            g = unsqueeze_op(g, dim=at["dim"])
            at = {"dim": at["dim"], "start": at["index"], "step": 1, "x_shape": at["x_shape"]}
        self.parts = [(g, {"dim": at["dim"], "start": at["start"], "step": at["step"], "shape": at["x_shape"]})]
        self.whole: Tensor | None = None
        self.own = False

    def joined(self) -> tuple[Tensor, bool]:
        """The gradient, and whether nobody else holds its memory. Nothing may be recorded."""
        whole, own = self.whole, self.own
        if whole is None:
            in_order = self._all_of_it()
            if in_order is not None:
                return cat_op(*in_order, dim=self.parts[0][1]["dim"]), True
            g, at = self.parts[0]
            whole = embed_op(g, **at)
        elif not own or not whole.layout.contiguous:
            g, at = self.parts[0]
            whole = p.add(whole, embed_op(g, **at))
        else:
            _add(whole, *self.parts[0])
        for part in self.parts[1:]:
            _add(whole, *part)
        return whole, True

    def _all_of_it(self) -> list[Tensor] | None:
        """The parts in order, if they follow one another along one dimension from its beginning to its end."""
        dim, shape = (self.parts[0][1][name] for name in ("dim", "shape"))
        if len(self.parts) == 1 or any(at["dim"] != dim or at["step"] != 1 for _, at in self.parts):
            return None
        parts = sorted(self.parts, key=lambda part: part[1]["start"])
        end = 0
        for g, at in parts:
            if at["start"] != end:
                return None
            end += g.shape[dim]
        return [g for g, _ in parts] if end == shape[dim] else None


def _add(whole: Tensor, g: Tensor, at: dict[str, Any]) -> None:
    dim, start, step = at["dim"], at["start"], at["step"]
    part = owned(slice_op(whole, dim=dim, start=start, stop=start + g.shape[dim] * step, step=step))
    write(p.add, part, (part, g))


def together(a: Any, own: bool, b: Any) -> Pieces:
    """a + b, of which one is Pieces, or both are, and either may be changed; `own`: whether nobody else holds a.

    What came for the whole tensor is added up first, the parts are added to that.
    """
    pieces: Pieces = a if isinstance(a, Pieces) else b
    other, own = (b, False) if pieces is a else (a, own)
    if isinstance(other, Pieces):
        pieces.parts += other.parts
        own, other = other.own, other.whole
    if other is None:
        return pieces
    if pieces.whole is None:
        pieces.whole, pieces.own = other, own
    elif pieces.own and pieces.whole.layout.contiguous:
        write(p.add, pieces.whole, (pieces.whole, other))
    else:
        pieces.whole, pieces.own = p.add(pieces.whole, other), True
    return pieces
