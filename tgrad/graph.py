"""The autograd graph: nodes, what they save, and where they come from."""

from __future__ import annotations

import itertools
import os
import types
import weakref
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from tgrad import modes
from tgrad.edges import accumulator
from tgrad.hooks import RemovableHandle
from tgrad.layout import Layout
from tgrad.saved_errors import modified, unsaveable
from tgrad.storage import Allocation
from tgrad.tensor import Tensor, Version, make

if TYPE_CHECKING:
    from tgrad.policy import Patterns
    from tgrad.rules import Rule

PackHooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]

# The (pack, unpack) hooks in force in this thread, innermost last.
pack_hooks: ContextVar[tuple[PackHooks, ...]] = ContextVar("tgrad_pack_hooks", default=())

# What may be recomputed instead of kept: "keep" (nothing), "lean" or "leanest".
policy: ContextVar[str] = ContextVar("tgrad_activation_memory", default="lean")

# Patterns of the modules that are checkpointed and offloaded, None where there are neither.
patterns: ContextVar[Patterns | None] = ContextVar("tgrad_patterns", default=None)

# How tensors are kept inside an offloaded module.
offloading: ContextVar[Callable[..., Saved] | None] = ContextVar("tgrad_offloading", default=None)

# How tensors are kept: None for `lean`, `Saved` for the policy "keep", `_pack` inside pack hooks, else `offloading`.
saver: ContextVar[Callable[..., Saved] | None] = ContextVar("tgrad_saver", default=None)

# Set by recompute.py, which stands above this module: keeping a tensor as a recipe where there is one, whether
# a node's operands are as their makers left them, what comes before each write, and before what recipes read is freed.
lean: Any = None  # (tensor, name, own, node) -> Saved
intact: Any = None  # (operands, node) -> bool
about_to_write: Any = None  # (storage) -> None
settle_lent: Any = None  # (node) -> None

# Set by signs.py: looks, as a node is recorded, at the relus before it; before a tensor is saved.
decide: Any = None  # (node, operands) -> bool
restore: Any = None  # (tensor) -> None

# Bytes. Of less, a recipe would cost more time than the memory is worth.
SMALLEST_RECIPE = int(os.environ.get("TGRAD_SMALLEST_RECIPE", "4096"))

# Whether anomaly mode is on.
anomaly = False

_ITSELF = object()  # the history of a saved result: the node that saved it


class Saved:
    """One tensor kept for backward: its memory, its version when it was saved, and its history.

    It never holds the Tensor object of a result: result -> node -> saved -> result would be a cycle.
    """

    __slots__ = ("storage", "layout", "ptr", "version", "expected", "edge", "name")

    def __init__(self, t: Tensor, name: str, own: bool, node: Node | None = None) -> None:
        """`own`: t is the result of `node`, which saves it. (Auxiliary results have no history.)"""
        if t.version is None:
            raise unsaveable()
        self.storage: Allocation | None = t.storage
        self.layout: Layout = t.layout
        self.ptr = t.ptr
        self.version: Version = t.version
        self.expected = t.version.value
        self.edge: Any = _ITSELF if own else t.node or (t if t._requires_grad else None)
        self.name = name

    def pinned(self) -> Allocation | None:
        """The memory it keeps alive, where that is known."""
        return self.storage

    def check(self, node: Node) -> None:
        """Raise if it was modified in place since it was saved."""
        if self.version.value != self.expected:
            maker = node if self.edge is _ITSELF else self.edge
            raise modified(self, node, maker.name() if isinstance(maker, Node) else None, anomaly)

    def unpack(self, node: Node) -> Tensor:
        """The tensor, with its history.

        Raises:
            RuntimeError: it was modified in place since it was saved.
        """
        if self.version.value != self.expected:
            self.check(node)
        return self.value(node)

    def value(self, node: Node) -> Tensor:
        """The tensor, with its history; it has been checked."""
        edge = node if self.edge is _ITSELF else self.edge
        if isinstance(edge, Tensor):
            if edge.ptr == self.ptr and edge.layout is self.layout:
                return edge
            edge = through(edge, self.layout)  # the leaf has other memory by now: what was saved is the old one
        assert self.storage is not None
        t = make(self.layout, self.storage, self.ptr, self.version)
        t.node, t._requires_grad = edge, edge is not None
        return t


class Packed(Saved):
    """A saved tensor in whatever form a pack hook gave it. Its version is checked as ever."""

    __slots__ = ("packed", "unpack_hook")

    def __init__(self, t: Tensor, name: str, own: bool, hooks: PackHooks) -> None:
        super().__init__(t, name, own)
        given = make(t.layout, t.storage, t.ptr, t.version) if own else t
        before = modes.current()
        modes.set_mode(modes.NO_GRAD)
        try:
            self.packed = hooks[0](given)
        finally:
            modes.set_mode(before)
        if self.version.value != self.expected:
            raise RuntimeError(
                "A saved tensor pack hook is modifying its input in place. Tensors provided as input to pack hook "
                "can not be modified by in-place operations as this can lead to unexpected side-effects. Please "
                "open an issue if you need to perform in-place operations on the input to a pack hook."
            )
        self.unpack_hook = hooks[1]
        self.storage = None  # the hook decides what stays alive

    def pinned(self) -> Allocation | None:
        parts = self.packed if isinstance(self.packed, tuple) else (self.packed,)
        return next((part.storage for part in parts if isinstance(part, Tensor)), None)

    def value(self, node: Node) -> Tensor:
        value = self.unpack_hook(self.packed)
        if not isinstance(value, Tensor):
            raise TypeError(
                "Output of saved tensor unpack_hook expected to be a Tensor but got result of type "
                f"{type(value).__name__}"
            )
        if value is self.edge:
            return value
        t = make(value.layout, value.storage, value.ptr, value.version)
        edge = node if self.edge is _ITSELF else self.edge
        t.node = through(edge, t.layout) if isinstance(edge, Tensor) else edge
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
        intact: of a rule that is `edged` alone, whether the operands were as their makers made them.
        recipe: a weak reference to the Recipe of its result, if there is one.
        lent: weak references to the recipes that read what it saved.
        undecided: whether what a relu at it or before it keeps is to be decided by who comes next.
        origin: set only while somebody listens.
        hooks: on the gradient that arrives, `register_hook` of its tensor.
        prehooks, posthooks: on the node itself.
        retains: called with that gradient, `retain_grad` of its tensor.
    """

    __slots__ = (
        "rule", "edges", "saved", "numbers", "layout", "key", "origin", "hooks", "retains", "prehooks",
        "posthooks", "metadata_", "intact", "recipe", "lent", "undecided",
        "__weakref__",
    )  # fmt: skip

    rule: Rule
    edges: tuple[Any, ...]
    saved: tuple[Saved, ...] | None
    numbers: tuple
    layout: Layout
    key: int
    origin: Origin | None
    hooks: dict[int, Callable] | None
    retains: Callable[[Tensor], None] | None
    prehooks: dict[int, Callable] | None
    posthooks: dict[int, Callable] | None
    metadata_: dict | None
    intact: bool
    recipe: weakref.ref | None
    lent: list[weakref.ref] | None
    undecided: bool

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
        """(node or accumulator, index of its result) for each input of the op; (None, 0) where no gradient goes."""
        found: list[tuple[Any, int]] = [(None, 0)] * len(self.rule.op.inputs)
        for i, edge in zip(self.rule.wanted, self.edges, strict=True):
            found[i] = edge.target() if isinstance(edge, Node) else (accumulator(edge), 0)
        return tuple(found)

    def target(self) -> tuple[Node, int]:
        """What users see in its place: a node and which of its results."""
        return self, 0

    def register_prehook(self, hook: Callable) -> RemovableHandle:
        """Call hook(grad_outputs) before the node runs; it may return as many gradients to use instead."""
        if self.prehooks is None:
            self.prehooks = {}
        return RemovableHandle(hook, self.prehooks)

    def register_hook(self, hook: Callable) -> RemovableHandle:
        """Call hook(grad_inputs, grad_outputs) after the node ran; it may return as many gradients to pass on."""
        if self.posthooks is None:
            self.posthooks = {}
        return RemovableHandle(hook, self.posthooks)


def reachable(roots: Sequence[Tensor]) -> dict[int, Node]:
    """Every node behind `roots`, by key."""
    seen: dict[int, Node] = {}
    stack = [t.node for t in roots if t.node is not None]
    while stack:
        node = stack.pop()
        if node.key not in seen:
            seen[node.key] = node
            for e in node.edges:
                if (e.__class__ is Node or isinstance(e, Node)) and e.key not in seen:
                    stack.append(e)
    return seen


# Told of each saved tensor, while somebody listens.
on_save: Callable[[Saved], None] | None = None

# Finds the Origin of the op being recorded, or of a write in place, while somebody listens.
find_origin: Callable[[], Origin] | None = None

# Told of each tensor about to be written, while somebody listens.
before_write: Callable[[Tensor], None] | None = None


def announce_write(t: Tensor) -> None:
    """Let those who need the old value of t take it; comes before every write in place."""
    if before_write is not None:
        before_write(t)
    about_to_write(t.storage)


def announce_writes(tensors: Sequence[Tensor]) -> None:
    """`announce_write` of many."""
    now = next_key()
    for t in tensors:
        memory = t.storage
        if before_write is not None or getattr(memory, "readers", None):
            announce_write(t)
        memory.changed = now


def count_write(version: Version | None, op: str) -> None:
    """Count a write in place, and remember where it was made while somebody listens."""
    if version is not None:
        version.value += 1
        if find_origin is not None:
            version.written = (version.value, op, find_origin())


def written(t: Tensor, op: str) -> None:
    """Count a write that is over already."""
    t.storage.changed = next_key()
    count_write(t.version, op)


def save(t: Tensor, name: str, own: bool, node: Node | None = None) -> Saved:
    """Keep t for backward: through the innermost pack hook if there is one, else by the policy in force."""
    keep = saver.get()
    saved = (keep or lean)(t, name, own, node)
    if on_save is not None:
        on_save(saved)
    return saved


def choose_saver() -> None:
    """Set how tensors are kept from here on, by the policy and the pack hooks in force."""
    otherwise = Saved if policy.get() == "keep" else None
    saver.set(_pack if pack_hooks.get() else offloading.get() or otherwise)


def _pack(t: Tensor, name: str, own: bool, node: Node | None) -> Saved:
    return Packed(t, name, own, pack_hooks.get()[-1])


def record(out: Tensor, rule: Rule, args: Sequence[Any], outs: Sequence[Tensor]) -> None:
    """Give `out` its node. `args`: the op's inputs, tensors and numbers; `outs`: all its results, auxiliary ones too.

    Raises:
        RuntimeError: something to be saved is an inference tensor.
    """
    node = Node()
    wanted = rule.wanted  # no comprehension in here: a variable that one reads costs more everywhere
    if len(wanted) == 1:
        only = args[wanted[0]]
        node.edges = (only.node or only,)
    else:
        node.edges = tuple([t.node or t for t in _picked(args, wanted)])
    node.numbers = _picked(args, rule.numbers) if rule.numbers else ()
    node.rule = rule
    node.layout = out.layout
    node.key = next_key()
    node.origin = None if find_origin is None else find_origin()
    node.hooks = node.retains = node.prehooks = node.posthooks = node.metadata_ = node.recipe = node.lent = None
    if rule.edged:  # views look for themselves: they share their operand's memory
        node.intact = intact(args, node)
    saves, how = rule.saves, saver.get()
    if not saves:
        node.saved = ()
    else:
        node.saved = None
        keep: Any = save
        if on_save is None:
            keep = _as_is if how is Saved or (how is None and not rule.large) else how or lean
        i, name = saves[0]
        n = len(args)
        first = keep(args[i] if i < n else outs[i - n], name, i == n, node)
        node.saved = (first,) if len(saves) == 1 else _save_others(first, keep, saves, args, outs, node)
    node.undecided = rule.big and how is None and decide(node, args)
    out.node = node
    out._requires_grad = True


def _save_others(
    first: Saved, keep: Any, saves: Any, args: Sequence[Any], outs: Sequence[Tensor], node: Node
) -> tuple[Saved, ...]:
    n, saved = len(args), [first]
    for i, name in saves[1:]:
        if i == n:
            node.saved = tuple(saved)  # operands, of which a recipe may make the result
        saved.append(keep(args[i] if i < n else outs[i - n], name, i == n, node))
    return tuple(saved)


def _picked(args: Sequence[Any], indices: tuple[int, ...]) -> tuple:
    return tuple([args[i] for i in indices])


def _as_is(t: Tensor, name: str, own: bool, node: Node) -> Saved:
    """`Saved(t, name, own)`, which costs twice as much."""
    s = _bare(Saved)
    s.version = version = t.version
    if version is None:
        raise unsaveable()
    s.expected = version.value
    s.storage = t.storage
    s.layout = t.layout
    s.ptr = t.ptr
    s.edge = _ITSELF if own else t.node or (t if t._requires_grad else None)
    s.name = name
    return s


_bare: Any = object.__new__


def fill(node: Node, layout: Layout) -> None:
    """Set what all new nodes have."""
    node.layout = layout
    node.key = next_key()
    node.origin = find_origin() if find_origin is not None else None
    node.hooks = node.retains = node.prehooks = node.posthooks = node.metadata_ = node.recipe = node.lent = None
    node.undecided = False


def through(leaf: Tensor, layout: Layout) -> Node:
    """A node that passes its gradient on to `leaf`: the history of a copy of it."""
    node = Node()
    node.saved, node.numbers, node.edges, node.rule = (), (), (leaf,), _THROUGH
    fill(node, layout)
    return node


class _Through:
    """The rule of `through`."""

    op: Any = types.SimpleNamespace(inputs=("x",), grad_name="Alias", node_name="AliasBackward0")
    wanted, saves, numbers, source = (0,), (), (), None

    def run(self, node: Node, g: Tensor) -> list:
        return [(g, False)]


_THROUGH: Any = _Through()
