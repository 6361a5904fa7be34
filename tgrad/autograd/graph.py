"""Looking into the graph: what it saved, for which op, and where in the source that was."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tgrad import graph as _graph
from tgrad.graph import Node, Origin, Saved
from tgrad.nn.module import current_path
from tgrad.tensor import Tensor

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_OWN = (_PACKAGE + os.sep, *(os.path.realpath(os.path.join(_PACKAGE, n)) + os.sep for n in ("kernels", "profiler")))


@dataclass(frozen=True)
class SavedRecord:
    """One tensor that a node keeps for backward.

    Attributes:
        op: the node's op, as in its name ("Addmm", "Relu").
        argument: what the formula calls it ("input", "weight", "out").
        storage_id, storage_bytes: of the memory it pins; two records may pin one storage.
        logical_bytes: elements times their size.
        is_leaf: whether it is a leaf that requires grad, such as a parameter.
        module: path of the nn.Module that was running, "" outside.
        file, line, function: of the call, outside tgrad; "" and 0 if origins were not recorded.
        node_key: unique to the node, falling with age.
    """

    op: str
    argument: str
    shape: tuple[int, ...]
    dtype: str
    storage_id: int
    storage_bytes: int
    logical_bytes: int
    is_leaf: bool
    module: str
    file: str
    line: int
    function: str
    node_key: int


def saved(*roots: Tensor) -> list[SavedRecord]:
    """Everything that the graph behind `roots` keeps for backward, oldest node first."""
    return [_describe(node, s) for node in nodes(*roots) for s in node.saved or ()]


def nodes(*roots: Tensor) -> list[Node]:
    """Every node behind `roots`, oldest first."""
    seen: dict[int, Node] = {}
    stack = [t.node for t in roots if t.node is not None]
    while stack:
        node = stack.pop()
        if node.key not in seen:
            seen[node.key] = node
            stack += [e for e in node.edges if isinstance(e, Node) and e.key not in seen]
    return [seen[k] for k in sorted(seen, reverse=True)]


def _describe(node: Node, s: Saved) -> SavedRecord:
    at = node.origin or Origin("", "", 0, "")
    return SavedRecord(
        op=node.rule.op.grad_name,
        argument=s.name,
        shape=tuple(s.layout.shape),
        dtype=s.layout.dtype.name,
        storage_id=s.storage.id,
        storage_bytes=s.storage.nbytes,
        logical_bytes=s.layout.nbytes,
        is_leaf=isinstance(s.edge, Tensor),
        module=at.module,
        file=at.file,
        line=at.line,
        function=at.function,
        node_key=node.key,
    )


@contextmanager
def record_origins() -> Iterator[None]:
    """Inside the block, nodes remember the module path and source line they come from. Costs about 1 us a node."""
    before = _graph.find_origin
    _graph.find_origin = _find
    try:
        yield
    finally:
        _graph.find_origin = before


def _find() -> Origin:
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return Origin(current_path(), "", 0, "")
    code = frame.f_code
    return Origin(current_path(), code.co_filename, frame.f_lineno, code.co_name)
