"""Looking into the graph: what it saved, for which op, and where in the source that was."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tgrad import engine, graph as _graph
from tgrad.edges import GradientEdge, accumulator
from tgrad.graph import Node, Origin, Saved
from tgrad.hooks import RemovableHandle
from tgrad.origins import find
from tgrad.saved_hooks import (
    allow_mutation_on_saved_tensors,
    disable_saved_tensors_hooks,
    save_on_cpu,
    saved_tensors_hooks,
)
from tgrad.tensor import Tensor

__all__ = [
    "GradientEdge", "MultiHandle", "Node", "SavedRecord", "allow_mutation_on_saved_tensors",
    "disable_saved_tensors_hooks", "get_gradient_edge", "increment_version", "nodes", "record_origins",
    "register_multi_grad_hook", "save_on_cpu", "saved", "saved_tensors_hooks",
]  # fmt: skip


@dataclass(frozen=True)
class SavedRecord:
    """One tensor that a node keeps for backward.

    Attributes:
        op: the node's op, as in its name ("Addmm", "Relu").
        argument: what the formula calls it ("input", "weight", "out").
        storage_id, storage_bytes: of the memory it pins; two records may pin one storage. 0 where a pack
            hook keeps something else.
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
    """Everything that the graph behind `roots` keeps for backward, oldest node first.

    Shape: any; each record names its own.
    Dtype: any; each record names its own.
    Raises: nothing.
    """
    return [_describe(node, s) for node in nodes(*roots) for s in node.saved or ()]


def nodes(*roots: Tensor) -> list[Node]:
    """Every node behind `roots`, oldest first.

    Shape: any.
    Dtype: any.
    Raises: nothing.
    """
    seen = _graph.reachable(roots)
    return [seen[k] for k in sorted(seen, reverse=True)]


def _describe(node: Node, s: Saved) -> SavedRecord:
    at = node.origin or Origin("", "", 0, "")
    storage = s.pinned()
    return SavedRecord(
        op=node.rule.op.grad_name,
        argument=s.name,
        shape=tuple(s.layout.shape),
        dtype=s.layout.dtype.name,
        storage_id=0 if storage is None else storage.id,
        storage_bytes=0 if storage is None else storage.nbytes,
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
    _graph.find_origin = before or find  # somebody who listens already is told as much, or more
    try:
        yield
    finally:
        _graph.find_origin = before


# --- edges and versions ----------------------------------------------------------------------------------------------
def get_gradient_edge(tensor: Tensor) -> GradientEdge:
    """Where the gradient of a tensor arrives; `autograd.grad` takes it in the tensor's place.

    Shape: any.
    Dtype: floating.
    Raises:
        RuntimeError: the tensor does not require grad.
    """
    if not tensor.requires_grad:
        raise RuntimeError("It is not possible to get the gradient edge for a Tensor that does not require gradients")
    node = tensor.grad_fn
    if node is None:
        return GradientEdge(accumulator(tensor), 0)
    assert tensor.node is not None
    return GradientEdge(*tensor.node.target())


def increment_version(tensor: Tensor | Iterable[Tensor]) -> None:
    """Count a write to a tensor, or to each of several, made by means that tgrad does not see.

    Shape: any.
    Dtype: any.
    Raises:
        RuntimeError: an inference tensor, which has no counter.
    """
    for t in (tensor,) if isinstance(tensor, Tensor) else tensor:
        if t.version is None:
            raise RuntimeError("Inference tensors do not track version counter.")
        _graph.written(t, "increment_version")


def register_multi_grad_hook(tensors: Sequence[Tensor], fn: Callable[..., None], *, mode: str = "all") -> MultiHandle:
    """Call fn once per backward: with the list of all gradients (None where there is none), or with the first ("any").

    Shape: of the gradients: the tensors'.
    Dtype: of the gradients: the tensors'.
    Raises:
        ValueError: another mode.
    """
    if mode not in ("all", "any"):
        raise ValueError(f"Expects mode to be one of ('all', 'any') but got {mode}")
    return MultiHandle(_all_hooks(tensors, fn) if mode == "all" else _any_hooks(tensors, fn))


class MultiHandle:
    """Removes the hooks of several tensors."""

    def __init__(self, handles: list[RemovableHandle]) -> None:
        self.handles = handles

    def remove(self) -> None:
        """Unregister all of them."""
        for handle in self.handles:
            handle.remove()

    def __enter__(self) -> MultiHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def _all_hooks(tensors: Sequence[Tensor], fn: Callable) -> list[RemovableHandle]:
    walks: dict[int, list] = {}  # by walk: gradients so far, how many are to come
    lock = threading.Lock()

    def hook_of(i: int) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            walk = engine.current_walk()
            with lock:
                state = walks.setdefault(id(walk), [[None] * len(tensors), sum(map(walk.reaches, tensors))])
                state[0][i] = grad
                state[1] -= 1
                if state[1]:
                    return
                del walks[id(walk)]
            fn(state[0])

        return hook

    return [t.register_hook(hook_of(i)) for i, t in enumerate(tensors)]


def _any_hooks(tensors: Sequence[Tensor], fn: Callable) -> list[RemovableHandle]:
    ran: weakref.WeakSet[engine.Walk] = weakref.WeakSet()
    lock = threading.Lock()

    def hook(grad: Tensor) -> None:
        walk = engine.current_walk()
        with lock:
            if walk in ran:
                return
            ran.add(walk)
        fn(grad)

    return [t.register_hook(hook) for t in tensors]
