"""relu's result, kept as one bit an element where nothing else keeps it.

relu needs of its result only where it is above 0. A linear layer behind it saves the result anyway, and then relu
shares it. Whether one does is known as the nodes behind relu are recorded: the first that neither saves the result nor
could be run again from it (a sum, a pooling) makes relu keep the bits; one that saves it after all undoes that.
"""

from __future__ import annotations

from typing import Any

from tgrad import dispatch, dtypes, graph
from tgrad.device import compute
from tgrad.graph import Node, Saved
from tgrad.kernels.bits import prepare_bits
from tgrad.layout import is_gapless, layout
from tgrad.recompute import Recomputed, as_made
from tgrad.storage import Allocation
from tgrad.tensor import Tensor, empty


class Bits(Saved):
    """A saved result of which one bit an element is kept. Its version is checked as ever."""

    __slots__ = ("bits",)

    bits: Tensor

    def pinned(self) -> Allocation | None:
        return self.bits.storage

    def value(self, node: Node) -> Tensor:
        """1 where the result was above 0, else 0: all that the formula asks for."""
        t = empty(self.layout, inference=False)
        run = prepare_bits("unpack", self.layout.dtype.triton, self.layout.numel)
        _observed("relu (unpacked)", lambda: run(t.ptr, self.bits.ptr))
        t.version, t.node, t._requires_grad = self.version, node, True
        return t


def _observed(name: str, run: Any) -> None:
    observer = dispatch.observer
    if observer is not None:
        observer.begin(name)
    run()
    if observer is not None:
        observer.end(name)


def decide(node: Node, args: Any) -> bool:
    """Look, as `node` is recorded, at the relus before it; returns whether one is still to be decided behind it."""
    rule, undecided = node.rule, False
    if not rule.signs and not any(e.__class__ is Node and e.undecided for e in node.edges):
        return False
    for i, edge in zip(rule.wanted, node.edges, strict=True):
        if not isinstance(edge, Node) or not edge.undecided:
            continue
        saved = next((s for (k, _), s in zip(rule.saves, node.saved or (), strict=True) if k == i), None)
        if saved is None and rule.source is not None:
            undecided = True  # it may be run again for who saves its result
        elif saved is None:
            _settle(edge, None)
        else:
            _settle(edge, saved)
    own = (node.saved or (None,))[0]
    if rule.signs and type(own) is Saved and is_gapless(own.layout):
        undecided = True
    return undecided


def _settle(node: Node, saved: Saved | None) -> None:
    """Decide for the relus at `node` or before it: `saved` is how their consumer keeps it, None: not."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if not node.undecided:
            continue
        node.undecided = False
        if node.rule.signs:
            _pack_unless_kept(node, saved)
        else:
            waiting += [e for e in node.edges if isinstance(e, Node)]


def _pack_unless_kept(node: Node, saved: Saved | None) -> None:
    own = (node.saved or (None,))[0]
    if type(own) is not Saved or own.version.value != own.expected:
        return
    if saved is not None and (isinstance(saved, Recomputed) or saved.storage is own.storage):
        return
    bits = Bits.__new__(Bits)
    for name in Saved.__slots__:
        setattr(bits, name, getattr(own, name))
    n = own.layout.numel
    bits.bits = empty(layout(dtypes.uint8, ((n + 7) // 8,), None, compute), inference=False)
    run = prepare_bits("pack", own.layout.dtype.triton, n, aligned=own.layout.aligned)
    _observed("relu (packed)", lambda: run(bits.bits.ptr, own.ptr))
    bits.storage = None
    node.saved = (bits,)


def restore(t: Tensor) -> None:
    """t is saved by another node after all: if it is relu's result, relu shares it."""
    node = t.node
    if node is not None and node.saved and type(node.saved[0]) is Bits and as_made(t):
        own = node.saved[0]
        if own.version is t.version and own.version.value == own.expected:
            node.saved = (Saved(t, own.name, True),)


graph.decide = decide
graph.restore = restore
