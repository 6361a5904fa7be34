"""Offload: what some modules save moves to the host, and comes back for backward.

What stands for a saved tensor then is a `Recipe` of no kernel, whose result comes by a copy from the host. So recipes
compose with it: of `linear(gelu(z))` z alone moves, and gelu's result is made again from z when z is back.
"""

from __future__ import annotations

import weakref
from typing import Any

from tgrad import dispatch, dtypes, graph
from tgrad.device import compute
from tgrad.graph import Node, Saved
from tgrad.layout import layout
from tgrad.recompute import Recipe, Recomputed, is_view, unwritten
from tgrad.storage import Allocation
from tgrad.tensor import Tensor, empty
from tgrad.torch_host import HostMemory, arrive

# Whether the copies of the module before are begun when the first of a module is asked for; no use on the CPU.
AHEAD = compute.type == "cuda"


class Offloaded(Recipe):
    """All bytes of a storage, in host memory."""

    __slots__ = ("host", "region", "event")

    def __init__(self, storage: Allocation, region: Region) -> None:
        super().__init__("offload", None, (), ())  # type: ignore[arg-type]
        self.length = 0
        self.host, self.region, self.event = HostMemory(storage), region, None

    def begin(self) -> Tensor:
        """Begin to bring the bytes back."""
        t = empty(layout(dtypes.uint8, (self.host.nbytes,), None, compute), inference=False)
        observer = dispatch.observer
        if observer is not None:
            observer.begin("offload (brought back)")
        self.event = self.host.bring(t.storage)
        if observer is not None:
            observer.end("offload (brought back)")
        return t

    def run(self) -> Tensor:
        found = self.result
        if found is None:
            found = self.begin()
            if self.users > 0:
                self.result = found
            if AHEAD:
                self.region.ahead()
        arrive(self.event)
        self.event = None
        return found


_copies: weakref.WeakValueDictionary[int, Offloaded] = weakref.WeakValueDictionary()


class Region:
    """One call of a module whose saved tensors move.

    Attributes:
        before: the region before this one.
        copies: what moved.
    """

    last: weakref.ref[Region] | None = None  # of this process

    def __init__(self) -> None:
        self.before, Region.last = Region.last, weakref.ref(self)
        self.copies: list[weakref.ref[Offloaded]] = []
        self._waiting = True

    def __enter__(self) -> None:
        self._outer = graph.offloading.get()
        graph.offloading.set(self.save)
        graph.choose_saver()

    def __exit__(self, *exception: object) -> None:
        graph.offloading.set(self._outer)
        graph.choose_saver()

    def save(self, t: Tensor, name: str, own: bool, node: Node | None) -> Saved:
        """Keep t: as a recipe if the policy has one, else on the host, unless that frees nothing or little."""
        kept = Saved(t, name, own) if graph.policy.get() == "keep" else graph.lean(t, name, own, node)
        memory = kept.storage
        if type(kept) is not Saved or memory is None or memory.device is not compute:
            return kept
        if memory.nbytes < graph.SMALLEST_RECIPE or (not own and _is_leafs(t)):
            return kept
        copy = _copies.get(memory.id)
        if copy is None or not unwritten(memory, copy.key):
            copy = _copies[memory.id] = Offloaded(memory, self)
            self.copies.append(weakref.ref(copy))
        return Recomputed(t, name, own, (copy, t.ptr - memory.ptr))

    def ahead(self) -> None:
        """The first of this region was asked for: begin to bring back what the region before it moved."""
        before = self.before() if self.before is not None and self._waiting else None
        self._waiting = False
        for reference in before.copies if before is not None else ():
            copy = reference()
            if copy is not None and copy.result is None and copy.users > 0:
                copy.result = copy.begin()


def _is_leafs(t: Tensor) -> bool:
    """Whether its memory is a leaf's, perhaps seen through views: that stays anyway."""
    if t.node is None:
        return t._requires_grad
    maker: Any = t.node
    while isinstance(maker, Node) and is_view(maker):
        maker = maker.edges[0]
    return isinstance(maker, Tensor)
