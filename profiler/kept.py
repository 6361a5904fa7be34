"""All that a graph keeps, as records: what its nodes saved, in whatever form, and the leaves that it holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tgrad.autograd.graph import SavedRecord, nodes
from tgrad.graph import Node, Origin, Packed, Saved
from tgrad.tensor import Tensor

NOWHERE = Origin("", "", 0, "")


def kept_by(results: list[Tensor]) -> list[SavedRecord]:
    """What the graph behind `results` keeps for backward, oldest node first.

    What a pack hook made of a tensor counts as what it is; the inputs of a checkpoint count at its first node, once.
    """
    found: list[SavedRecord] = []
    frames: dict[int, Any] = {}  # held, so that no id recurs
    for node in nodes(*results):
        for s in node.saved or ():
            found += _of(node, s, frames)
    return found


def _of(node: Node, s: Saved, frames: dict[int, Any]) -> Iterator[SavedRecord]:
    if not isinstance(s, Packed):
        yield _record(node, node.rule.op.grad_name, s.name, s, s.storage)
        return
    for t in _tensors(s.packed):
        yield _record(node, node.rule.op.grad_name, s.name, t, t.storage)
    frame = getattr(s.unpack_hook, "__self__", None)
    inputs = getattr(frame, "args", None)
    if inputs is None or id(frame) in frames:
        return
    frames[id(frame)] = frame
    for a in inputs:
        if isinstance(a, Packed):
            yield from _of(node, a, frames)
        elif isinstance(a, Saved):
            yield _record(node, "Checkpoint", a.name, a, a.storage)
    state = getattr(frame, "random", None)
    if isinstance(state, Tensor):
        yield _record(node, "Checkpoint", "random state", state, state.storage)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from _tensors(v)
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _tensors(v)


def _record(node: Node, op: str, argument: str, of: Saved | Tensor, storage: Any) -> SavedRecord:
    at = node.origin or NOWHERE
    layout = of.layout
    leaf = isinstance(of, Saved) and isinstance(of.edge, Tensor)
    return SavedRecord(
        op, argument, tuple(layout.shape), layout.dtype.name, storage.id, storage.nbytes, layout.nbytes, leaf,
        at.module, at.file, at.line, at.function, node.key,
    )  # fmt: skip


def held_leaves(results: list[Tensor], known: set[int]) -> list[SavedRecord]:
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
        SavedRecord(
            "AccumulateGrad", "leaf", tuple(t.shape), t.dtype.name, t.storage.id, t.storage.nbytes, 0, True,
            "", "", 0, "", n.key,
        )
        for n, t in found.values()
    ]  # fmt: skip
