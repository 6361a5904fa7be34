"""The autograd graph: nodes, what they save, and where they come from."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tgrad.layout import Layout
from tgrad.tensor import Tensor, Version, make

if TYPE_CHECKING:
    from tgrad.op import Rule

_ITSELF = object()  # the history of a saved result: the node that saved it


class Saved:
    """One tensor kept for backward: its memory, its version when it was saved, and its history.

    It never holds the Tensor object of a result: result -> node -> saved -> result would be a cycle.
    """

    __slots__ = ("storage", "layout", "ptr", "version", "expected", "edge", "name")

    def __init__(self, t: Tensor, name: str, own: bool) -> None:
        """`own`: t is the result of the node that saves it. (Auxiliary results have no history.)"""
        if t.version is None:
            raise RuntimeError(
                "Inference tensors cannot be saved for backward. Please do not use Tensors created in inference "
                "mode in computation tracked by autograd. To work around this, you can make a clone to get a normal "
                "tensor and use it in autograd, or use `torch.no_grad()` instead of `torch.inference_mode()`."
            )
        self.storage = t.storage
        self.layout: Layout = t.layout
        self.ptr = t.ptr
        self.version: Version = t.version
        self.expected = t.version.value
        self.edge: Any = _ITSELF if own else t.node or (t if t._requires_grad else None)
        self.name = name

    def unpack(self, node: Node) -> Tensor:
        """The tensor, with its history.

        Raises:
            RuntimeError: it was modified in place since it was saved.
        """
        if self.version.value != self.expected:
            kind = "torch.cuda" if self.layout.device.type == "cuda" else "torch"
            maker = node if self.edge is _ITSELF else self.edge
            made = f", which is output 0 of {maker.name()}," if isinstance(maker, Node) else ""
            where = f", recorded {node.origin}" if node.origin else ""
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an inplace operation: "
                f"[{kind}.{self.layout.dtype.legacy}Tensor {list(self.layout.shape)}]{made} is at version "
                f"{self.version.value}; expected version {self.expected} instead. It is the '{self.name}' that "
                f"{node.name()}{where}, saved. Hint: enable anomaly detection to find the operation that failed to "
                "compute its gradient, with torch.autograd.set_detect_anomaly(True)."
            )
        if isinstance(self.edge, Tensor):
            return self.edge
        t = make(self.layout, self.storage, self.ptr, self.version)
        t.node = node if self.edge is _ITSELF else self.edge
        t._requires_grad = t.node is not None
        return t


class Origin:
    """Where an op was called: module path (of nn.Module) and source line."""

    __slots__ = ("module", "file", "line", "function")

    def __init__(self, module: str, file: str, line: int, function: str) -> None:
        self.module, self.file, self.line, self.function = module, file, line, function

    def __str__(self) -> str:
        inside = f" in module '{self.module}'" if self.module else ""
        return f"at {self.file}:{self.line}, in {self.function}{inside}"


next_key = itertools.count(0, -1).__next__


class Node:
    """One recorded operation with one result.

    Attributes:
        rule: how it goes backward, and for which of its inputs.
        edges: where each of those gradients goes: an earlier node, or a leaf itself.
        saved: what it keeps; None once freed.
        numbers: Python numbers among the inputs, which formulas may name.
        layout: of the result.
        key: falls with age, so that a min-heap gives the youngest node first.
        origin: set only while somebody listens.
        hooks: on the gradient that arrives, `register_hook` of its tensor.
        retains: called with that gradient, `retain_grad` of its tensor.
    """

    __slots__ = (
        "rule", "edges", "saved", "numbers", "layout", "shapes", "key", "origin", "hooks", "retains", "prehooks",
        "posthooks", "metadata_", "__weakref__",
    )  # fmt: skip

    rule: Rule
    edges: tuple[Any, ...]
    saved: tuple[Saved, ...] | None
    numbers: tuple
    layout: Layout
    shapes: tuple
    key: int
    origin: Origin | None
    hooks: list[Callable] | None
    retains: Callable[[Tensor], None] | None
    prehooks: list[Callable] | None
    posthooks: list[Callable] | None
    metadata_: dict | None

    def name(self) -> str:
        """As PyTorch names it: `MulBackward0`."""
        return self.rule.op.node_name

    def __repr__(self) -> str:
        return f"<{self.name()} object at {id(self):#x}>"

    @property
    def metadata(self) -> dict:
        """A dict for the user's own notes."""
        if self.metadata_ is None:
            self.metadata_ = {}
        return self.metadata_

    @property
    def next_functions(self) -> tuple:
        """(node or accumulator, 0) for each input that requires grad."""
        return tuple((edge if isinstance(edge, Node) else AccumulateGrad(edge), 0) for edge in self.edges)

    def __del__(self) -> None:
        # A long chain would recurse: each node's end would end the next. Instead the nodes that only this one holds are
        # handed to a list that is emptied in a loop.
        edges = getattr(self, "edges", None)
        if edges:
            saved = self.saved
            self.edges, self.saved = (), None
            _bury(edges, saved)


class _Graveyard(threading.local):
    def __init__(self) -> None:
        self.waiting: list[Any] = []
        self.burying = False


_graveyard = _Graveyard()


def _bury(edges: tuple, saved: Any) -> None:
    _graveyard.waiting.append((edges, saved))
    edges = saved = None  # type: ignore[assignment]
    if not _graveyard.burying:
        _graveyard.burying = True
        while _graveyard.waiting:
            _graveyard.waiting.pop()
        _graveyard.burying = False


class AccumulateGrad:
    """The end of the graph at a leaf, as `next_functions` shows it. The engine's edge is the leaf itself."""

    __slots__ = ("variable",)

    def __init__(self, variable: Tensor) -> None:
        self.variable = variable

    next_functions = ()

    def name(self) -> str:
        return "torch::autograd::AccumulateGrad"

    def __repr__(self) -> str:
        return f"<AccumulateGrad object at {id(self):#x}>"


# Finds the Origin of the op being recorded, while somebody listens.
find_origin: Callable[[], Origin] | None = None


def record(out: Tensor, rule: Rule, args: Sequence[Any], outs: Sequence[Tensor]) -> None:
    """Give `out` its node. `args`: the op's inputs, tensors and numbers; `outs`: all its results, auxiliary ones too.

    Raises:
        RuntimeError: something to be saved is an inference tensor.
    """
    node = Node()
    n = len(args)
    node.saved = tuple([Saved(args[i] if i < n else outs[i - n], name, own=i == n) for i, name in rule.saves])
    node.edges = tuple([args[i].node or args[i] for i in rule.wanted])
    node.rule = rule
    node.numbers = tuple([args[i] for i in rule.numbers])
    node.layout = out.layout
    node.shapes = tuple([args[i].layout for i in rule.wanted])
    node.key = next_key()
    node.origin = find_origin() if find_origin is not None else None
    node.hooks = node.retains = node.prehooks = node.posthooks = node.metadata_ = None
    out.node = node
    out._requires_grad = True
