"""The backward engine: an iterative walk over the graph, youngest node first.

A node runs once, when all its consumers in the walk have run: they are all younger. Gradients that meet are summed
before.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple

from tgrad import graph, modes
from tgrad.accumulate import accumulating, finish
from tgrad.backward import Gradient, gradients
from tgrad.eager import install_engine
from tgrad.folding import fold
from tgrad.graph import Node, reachable
from tgrad.hooks import run_posthooks, run_prehooks, run_tensor_hooks
from tgrad.inplace import write
from tgrad.ops import pointwise as p
from tgrad.pieces import Pieces, together
from tgrad.rules import FormulaRule, PartRule
from tgrad.tensor import Tensor

# The most walks within walks that share one stack.
MAX_DEPTH = 30


class Part(NamedTuple):
    """The gradient of one of several results of a node."""

    position: int
    gradient: Tensor


class _Walks(threading.local):
    def __init__(self) -> None:
        self.running: list[Walk] = []


_walks = _Walks()

# Called as watch(run, node, g) in place of run(node, g) for each node, while somebody listens (anomaly mode).
watch: Callable[..., list[Gradient]] | None = None


def current_walk() -> Walk:
    """The innermost backward pass that runs in this thread."""
    return _walks.running[-1]


def innermost_walk() -> Walk | None:
    """The innermost backward pass that runs in this thread, if there is one."""
    return _walks.running[-1] if _walks.running else None


class Walk:
    """One backward pass.

    Attributes:
        capture: ids of the nodes and leaves whose gradient is asked for; None: all leaves accumulate.
        captured: those gradients, by id.
        mode: the grad mode in which nodes and hooks run.
        needed: keys of the nodes that lead to a captured one; None: all.
        reached: keys of the nodes that run.
        leaves: by id, [leaf, gradient so far, whether it is ours alone, consumers that have not run].
    """

    __slots__ = (
        "retain", "create", "mode", "capture", "accumulate", "captured", "needed", "reached", "heap", "pending",
        "leaves", "__weakref__",
    )  # fmt: skip

    def __init__(self, retain_graph: bool, create_graph: bool, capture: set[int] | None, accumulate: bool) -> None:
        self.retain, self.create = retain_graph, create_graph
        self.mode = modes.GRAD if create_graph else modes.NO_GRAD
        self.capture, self.accumulate = capture, accumulate
        self.captured: dict[int, Tensor] = {}
        self.needed: set[int] | None = None
        self.reached: set[int] = set()
        self.heap: list[int] = []
        self.pending: dict[int, list] = {}  # key -> [node, gradient (or one per result), ours alone]
        self.leaves: dict[int, list] = {}

    def run(self, roots: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Walk from `roots`, (tensor, gradient) pairs: on a stack of its own, if too deep within other walks."""
        if len(_walks.running) < MAX_DEPTH:
            self._run(roots)
            return
        raised: list[BaseException] = []

        def work() -> None:
            try:
                self._run(roots)
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
        thread.join()
        if raised:
            raise raised[0]

    def _run(self, roots: Sequence[tuple[Tensor, Tensor]]) -> None:
        before = modes.current()
        modes.set_mode(self.mode)
        _walks.running.append(self)
        try:
            self._survey([t for t, _ in roots])
            for t, g in roots:
                self._send(t.node or t, g, False)
            for t, _ in roots:
                if t.node is None:
                    self._finish_leaf(self.leaves[id(t)])
            while self.heap:
                if not advance(self):
                    self._visit(heappop(self.heap))
            for entry in self.leaves.values():
                if entry[1] is not None:  # it has a consumer that no gradient reached
                    entry[3] = 0
                    self._finish_leaf(entry)
        finally:
            _walks.running.pop()
            modes.set_mode(before)

    def reaches(self, t: Tensor) -> bool:
        """Whether the gradient of t is computed in this walk."""
        return id(t) in self.leaves if t.node is None else t.node.key in self.reached

    def _survey(self, roots: Sequence[Tensor]) -> None:
        """Count each leaf's consumers, and find the nodes that must run."""
        if self.capture is None:
            survey(self, roots)
            return
        seen = reachable(roots)
        self.needed = self.reached = set()
        for key in sorted(seen, reverse=True):  # oldest first: keys fall with age
            if id(seen[key]) in self.capture or self._leads_on(seen[key]):
                self.needed.add(key)
        for key, node in seen.items():
            if key in self.reached:
                for e in node.edges:
                    if not isinstance(e, Node):
                        self.leaves.setdefault(id(e), [e, None, False, 0])[3] += 1

    def _leads_on(self, node: Node) -> bool:
        """Whether one of the node's inputs needs a gradient in this walk."""
        if self.needed is None or self.capture is None:
            return True
        return any(e.key in self.needed if isinstance(e, Node) else id(e) in self.capture for e in node.edges)

    def _send(self, edge: Any, g: Any, own: bool) -> None:
        """Deliver a gradient to a node or leaf; None to a node, which runs all the same."""
        if not isinstance(edge, Node):
            entry = self.leaves.setdefault(id(edge), [edge, None, False, 0])
            entry[1], entry[2] = (g, own) if entry[1] is None else self._sum(entry[1], entry[2], g)
            return
        if self.needed is not None and edge.key not in self.needed:
            return
        have = self.pending.get(edge.key)
        if have is None:
            heappush(self.heap, edge.key)
            have = self.pending[edge.key] = [edge, None, own]
        if g is None:
            return
        if g.__class__ is Part:
            if have[1] is None:
                have[1] = [None] * edge.rule.n_results
            already = have[1][g.position]
            have[1][g.position] = g.gradient if already is None else p.add(already, g.gradient)
        elif have[1] is None:
            have[1] = g
        else:
            have[1], have[2] = self._sum(have[1], have[2], g)

    def _sum(self, a: Any, own: bool, b: Any) -> tuple[Any, bool]:
        """a + b, in a's memory if nobody else holds it."""
        if a.__class__ is Pieces or b.__class__ is Pieces:
            return together(a, own, b), False
        if own and not self.create and a.layout.contiguous:
            return write(p.add, a, (a, b)), True
        return p.add(a, b), True

    def _visit(self, key: int) -> None:
        if modes.current() is not self.mode:  # left behind by the user's own backward or hook
            modes.set_mode(self.mode)
        node, g, _ = self.pending.pop(key)  # here, so that nobody else holds g while the node runs
        if g.__class__ is Pieces:
            g = g.joined()[0]
        if node.hooks:
            g = run_tensor_hooks(node.hooks, g)
        if node.retains is not None and g is not None:
            node.retains(g)
        if self.capture is not None and id(node) in self.capture:
            self.captured[id(node)] = g
        if not self._leads_on(node):
            return
        edges: Sequence[Any] = node.edges
        rule: Any = node.rule
        folds = rule.__class__ is FormulaRule and rule.fold is not None and watch is None
        found = fold(self, node, g) if folds else None
        if found is not None:
            edges, results = found
        elif rule.__class__ is PartRule and g is not None and self._collects(node):
            results = [(Pieces(node, g), False)]  # type: ignore[list-item]
        else:
            results = self._run_node(node, g) if watch is None else watch(self._run_node, node, g)
        del g
        if not self.retain and node.saved:
            if node.lent is not None:
                graph.settle_lent(node)
            node.saved = None
        if modes.current() is not self.mode:
            modes.set_mode(self.mode)
        pending, plain = self.pending, self.needed is None
        for edge, (gradient, own) in zip(edges, results, strict=True):
            if edge.__class__ is Node and plain and edge.key not in pending:  # as in _send, without the call
                heappush(self.heap, edge.key)
                pending[edge.key] = [edge, gradient, own]
                continue
            if isinstance(edge, Node):
                self._send(edge, gradient, own)
                continue
            entry = self.leaves[id(edge)]
            if gradient is not None:
                entry[1], entry[2] = (gradient, own) if entry[1] is None else self._sum(entry[1], entry[2], gradient)
            entry[3] -= 1
            if not entry[3]:
                self._finish_leaf(entry)

    def _collects(self, node: Node) -> bool:
        """Whether the gradient of a part can wait for those of other parts: nobody looks at what its node makes."""
        looked_at = watch is not None or node.prehooks or node.posthooks
        return not (looked_at or self.create or node.saved is None)

    def _run_node(self, node: Node, g: Any) -> list[Gradient]:
        if not node.prehooks and not node.posthooks:
            return _gradients(node, g)
        several = isinstance(g, list)
        outputs = run_prehooks(node.prehooks or {}, g if several else (g,))
        results = _gradients(node, list(outputs) if several else outputs[0])
        if not node.posthooks:
            return results
        inputs: list[Any] = [None] * len(node.rule.op.inputs)
        for i, (gradient, _) in zip(node.rule.wanted, results, strict=True):
            inputs[i] = gradient
        replaced = run_posthooks(node.posthooks, inputs, outputs)
        return [(replaced[i], False) for i in node.rule.wanted]

    def _finish_leaf(self, entry: list) -> None:
        """Accumulate a leaf's gradient once all its consumers have run."""
        leaf, g, own, waiting = entry
        if waiting or g is None:
            return
        entry[1] = None
        if g.__class__ is Pieces:
            g, own = g.joined()
        if own and leaf.hooks is None and self.capture is None and not self.create and g.layout is leaf.layout:
            with accumulating:  # as in `accumulate`, of a first gradient
                if leaf._grad is None and leaf._requires_grad and leaf.node is None:
                    leaf._grad = g
                    return
        if modes.current() is not self.mode:
            modes.set_mode(self.mode)
        if not leaf._requires_grad:  # switched off since the forward
            return
        if leaf.hooks is not None and leaf.hooks.tensor:
            g, own = run_tensor_hooks(leaf.hooks.tensor, g), False
        if self.capture is not None:
            if id(leaf) not in self.capture:
                return
            self.captured[id(leaf)], own = g, False
        if self.accumulate:
            finish(leaf, g, own, self.create)


def survey(walk: Walk, roots: Sequence[Tensor]) -> None:
    """Fill `reached` and `leaves` of a walk that runs all nodes."""
    reached, leaves = walk.reached, walk.leaves
    found = []
    for t in roots:
        if t.node is not None and t.node.key not in reached:
            reached.add(t.node.key)
            found.append(t.node)
    for node in found:  # which grows
        for e in node.edges:
            if e.__class__ is Node or isinstance(e, Node):
                if e.key not in reached:
                    reached.add(e.key)
                    found.append(e)
                continue
            entry = leaves.get(id(e))
            if entry is None:
                leaves[id(e)] = [e, None, False, 1]
            else:
                entry[3] += 1


def advance(walk: Walk) -> bool:
    """Visit nodes as `Walk._visit` does, the youngest first; False if the youngest is left to that: here, always."""
    return False


def _gradients(node: Node, g: Any) -> list[Gradient]:
    """What the node computes; where no gradient arrived, only a custom Function runs, and may ask for zeros."""
    if g is None and not getattr(node.rule, "takes_none", False):
        return [(None, False)] * len(node.edges)
    return gradients(node, g)


survey, advance = install_engine(Walk, survey, advance, globals(), accumulating)
