"""All that a graph keeps, as records: what its nodes saved, in whatever form, and the leaves that it holds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from tgrad import graph
from tgrad.autograd.graph import SavedRecord, nodes
from tgrad.graph import Node, Origin, Packed, Saved
from tgrad.offload import Offloaded
from tgrad.recompute import Recipe, Recomputed
from tgrad.tensor import Tensor

NOWHERE = Origin("", "", 0, "")


@dataclass(frozen=True)
class Kept(SavedRecord):
    """A SavedRecord, and why: reason and kind as in a SavedRow. saved_id: of the engine's object, while it lives.

    place: where it is, and its layout. host_bytes: of host memory that it takes, at the first tensor that lies there.
    """

    reason: str = ""
    kind: str = ""
    saved_id: int = 0
    place: tuple[Any, Any] = (0, None)
    host_bytes: int = 0


class Watch:
    """When tensors are saved, and when backward first uses them: by the id of the engine's object, in ns."""

    def __init__(self) -> None:
        self.saved: dict[int, int] = {}
        self.used: dict[int, int] = {}
        self.listening = True

    def on_save(self, saved: Saved) -> None:
        if self.listening:  # not to what backward itself saves, under ids of objects that are gone
            self.saved[id(saved)] = time.perf_counter_ns()

    @contextmanager
    def on(self) -> Iterator[Watch]:
        """Listen inside the block."""
        before, unpack = graph.on_save, Saved.unpack

        def on_save(saved: Saved) -> None:
            self.on_save(saved)
            if before is not None:
                before(saved)

        def noted(saved: Saved, node: Node) -> Tensor:
            if not self.listening:
                self.used.setdefault(id(saved), time.perf_counter_ns())
            return unpack(saved, node)

        graph.on_save = on_save
        Saved.unpack = noted  # type: ignore[method-assign, assignment]
        try:
            yield self
        finally:
            graph.on_save = before
            Saved.unpack = unpack  # type: ignore[method-assign]


def kept_by(results: list[Tensor]) -> list[Kept]:
    """What the graph behind `results` keeps for backward, oldest node first.

    What a pack hook made of a tensor counts as what it is; the inputs of a checkpoint count at its first node, once.
    """
    found: list[Kept] = []
    frames: dict[int, Any] = {}  # and recipes; held, so that no id recurs
    for node in nodes(*results):
        for s in node.saved or ():
            found += _of(node, s, frames)
    return found


def _of(node: Node, s: Saved, frames: dict[int, Any]) -> Iterator[Kept]:
    op, why = node.rule.op.grad_name, reason(node, s.name)
    if isinstance(s, Recomputed):
        moved = isinstance(s.recipe, Offloaded)
        how = "brought back from the host" if moved else f"recomputed by {s.recipe}"
        record = _record(node, op, s.name, s, None, f"{why}: {how}", "offloaded" if moved else "recomputed", id(s))
        place = (id(s.recipe), s.offset), s.layout  # its address is by now another's
        yield replace(record, host_bytes=_on_host(s.recipe, frames), place=place)
        return
    if not isinstance(s, Packed):
        own = s.edge is graph._ITSELF
        kind = "leaf" if isinstance(s.edge, Tensor) else "result" if own else "value"
        yield _record(node, op, s.name, s, s.pinned(), why, kind, id(s))
        return
    for t in _tensors(getattr(s.packed, "value", s.packed)):  # a block's slot may have its tensor after all
        yield _record(node, op, s.name, t, t.storage, why, "packed", id(s))
    frame = getattr(s.unpack_hook, "__self__", None)
    inputs = getattr(frame, "args", None)
    if inputs is None or id(frame) in frames:
        return
    frames[id(frame)] = frame
    for a in inputs:
        if isinstance(a, (Packed, Recomputed)):
            yield from _of(node, a, frames)
        elif isinstance(a, Saved):
            kind = "leaf" if isinstance(a.edge, Tensor) else "value"
            yield _record(node, "Checkpoint", a.name, a, a.storage, "running it again", kind, id(a))
    for name, value in getattr(frame, "kwargs", {}).items():
        for t in _tensors(value):
            kind = "leaf" if t.requires_grad and t.node is None else "value"
            yield _record(node, "Checkpoint", name, t, t.storage, "running it again", kind, 0)
    state = getattr(frame, "random", None)
    if isinstance(state, Tensor):
        yield _record(node, "Checkpoint", "random state", state, state.storage, "running it again", "value", 0)


def _on_host(recipe: Recipe, seen: dict[int, Any]) -> int:
    """Bytes of host memory behind a recipe, without those seen before."""
    if id(recipe) in seen:
        return 0
    seen[id(recipe)] = recipe
    if isinstance(recipe, Offloaded):
        return recipe.host.nbytes
    return sum(_on_host(memory, seen) for memory, _ in recipe.tensors if isinstance(memory, Recipe))


def reason(node: Node, argument: str) -> str:
    """Which gradients need what a node saved under this name: "gradient of input, weight"."""
    op = node.rule.op
    inputs, needs = getattr(op, "inputs", ()), getattr(op, "needs", {})
    wanted = [inputs[i] for i in node.rule.wanted if i < len(inputs) and argument in needs.get(inputs[i], ())]
    return f"gradient of {', '.join(wanted)}" if wanted else "saved by its forward"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from _tensors(v)
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _tensors(v)


def _record(
    node: Node, op: str, argument: str, of: Saved | Tensor, storage: Any, why: str, kind: str, saved_id: int
) -> Kept:
    at = node.origin or NOWHERE
    layout = of.layout
    return Kept(
        op, argument, tuple(layout.shape), layout.dtype.name, 0 if storage is None else storage.id,
        0 if storage is None else storage.nbytes, layout.nbytes, kind == "leaf",
        at.module, at.file, at.line, at.function, node.key, why, kind, saved_id,
        (of.ptr, layout),
    )  # fmt: skip


def held_leaves(results: list[Tensor], known: set[int]) -> list[Kept]:
    """Leaves that the graph holds only as the goals of gradients: inputs that require grad and were not saved.

    Args:
        known: storages to leave out.
    """
    found: dict[int, tuple[Node, Tensor]] = {}
    for node in nodes(*results):
        for edge in node.edges:
            if isinstance(edge, Tensor) and edge.storage.id not in known:
                found.setdefault(id(edge), (node, edge))
    return [
        Kept(
            "AccumulateGrad", "leaf", tuple(t.shape), t.dtype.name, t.storage.id, t.storage.nbytes, 0, True,
            "", "", 0, "", n.key, "where its gradient goes", "held",
        )
        for n, t in found.values()
    ]  # fmt: skip
