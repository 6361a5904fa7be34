"""The backward engine: an iterative walk over the graph, youngest node first.

A node runs once, when all its consumers in the walk have run: they are all younger. Gradients that meet are summed
before.
"""

from __future__ import annotations

import contextvars
import threading
import warnings
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple

from tgrad import modes
from tgrad.accumulate import finish
from tgrad.aliasing import refresh
from tgrad.backward import Gradient, gradients
from tgrad.graph import AccumulateGrad, GradientEdge, Node, reachable
from tgrad.hooks import run_posthooks, run_prehooks, run_tensor_hooks
from tgrad.inplace import write
from tgrad.ops import pointwise as p
from tgrad.tensor import Tensor

_warned_create_graph = False

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
            for entry in list(self.leaves.values()):
                self._finish_leaf(entry)
            while self.heap:
                self._visit(heappop(self.heap))
            for entry in self.leaves.values():  # those with a consumer that no gradient reached
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
        seen = reachable(roots)
        if self.capture is not None:
            self.needed = set()
            for key in sorted(seen, reverse=True):  # oldest first: keys fall with age
                if id(seen[key]) in self.capture or self._leads_on(seen[key]):
                    self.needed.add(key)
        self.reached = set(seen) if self.needed is None else self.needed
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

    def _sum(self, a: Tensor, own: bool, b: Tensor) -> tuple[Tensor, bool]:
        """a + b, in a's memory if nobody else holds it."""
        if own and not self.create and a.layout.contiguous:
            return write(p.add, a, (a, b)), True
        return p.add(a, b), True

    def _visit(self, key: int) -> None:
        if modes.current() is not self.mode:  # left behind by the user's own backward or hook
            modes.set_mode(self.mode)
        node, g, _ = self.pending.pop(key)  # here, so that nobody else holds g while the node runs
        if node.hooks:
            g = run_tensor_hooks(node.hooks, g)
        if node.retains is not None and g is not None:
            node.retains(g)
        if self.capture is not None and id(node) in self.capture:
            self.captured[id(node)] = g
        if not self._leads_on(node):
            return
        results = self._run_node(node, g) if watch is None else watch(self._run_node, node, g)
        del g
        if not self.retain and node.saved:
            node.saved = None
        if modes.current() is not self.mode:
            modes.set_mode(self.mode)
        for edge, (gradient, own) in zip(node.edges, results, strict=True):
            is_node = isinstance(edge, Node)
            if gradient is not None or is_node:
                self._send(edge, gradient, own)
            if not is_node:
                entry = self.leaves[id(edge)]
                entry[3] -= 1
                self._finish_leaf(entry)

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


def _gradients(node: Node, g: Any) -> list[Gradient]:
    """What the node computes; where no gradient arrived, only a custom Function runs, and may ask for zeros."""
    if g is None and not getattr(node.rule, "takes_none", False):
        return [(None, False)] * len(node.edges)
    return gradients(node, g)


# --- what users call -------------------------------------------------------------------------------------------------
Tensors = Tensor | Sequence[Tensor]


def backward(
    tensors: Tensors,
    grad_tensors: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Tensors | None = None,
) -> None:
    """Accumulate the gradients of `tensors` into the leaves' `.grad` (or into those of `inputs` alone).

    Args:
        tensors: roots.
        grad_tensors: the gradient of each root, of its shape; None for roots of one element means 1.
        retain_graph: keep what nodes saved; by default, if `create_graph`.
        create_graph: record the backward pass, so that gradients can be differentiated.
        inputs: accumulate into these only, and run only what leads to them.

    Raises:
        RuntimeError: PyTorch's errors, such as a root without a graph, a gradient of another shape, a freed graph.
    """
    roots = _tuple(tensors)
    given = (None,) * len(roots) if grad_tensors is None else _tuple(grad_tensors)
    if len(given) < len(roots):
        raise RuntimeError(f"got {len(roots)} tensors and {len(given)} gradients")
    targets = None if inputs is None else _tuple(inputs)
    if targets == ():
        raise RuntimeError("`inputs` argument to `backward()` cannot be empty.")
    pairs = _seed(roots, given)
    retain = create_graph if retain_graph is None else retain_graph
    if create_graph:
        _warn_create_graph()
    if targets is None:
        Walk(retain, create_graph, None, accumulate=True).run(pairs)
        return
    for t in targets:
        t.retain_grad()
    Walk(retain, create_graph, {id(t.node or t) for t in targets}, accumulate=True).run(pairs)


def grad(
    outputs: Tensors,
    inputs: Any,
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> Any:
    """The gradients of `outputs` with respect to `inputs`, as a tuple; `.grad` is not touched.

    Raises:
        RuntimeError: PyTorch's errors; among them an input that the outputs do not depend on, unless `allow_unused`.
    """
    if isinstance(inputs, dict):
        names = list(inputs)
        found = grad(
            outputs, [inputs[n] for n in names], grad_outputs, retain_graph, create_graph, only_inputs, allow_unused,
            is_grads_batched, materialize_grads,
        )  # fmt: skip
        return dict(zip(names, found, strict=True))
    if is_grads_batched:
        raise NotImplementedError(
            "autograd.grad: is_grads_batched needs vmap, which tgrad does not have: loop over the batch"
        )
    if materialize_grads and allow_unused is False:
        raise ValueError(
            "Expected allow_unused to be True or not passed when materialize_grads=True, but got: allow_unused=False."
        )
    roots, targets = _tuple(outputs), _several(inputs)
    given = (None,) * len(roots) if grad_outputs is None else _tuple(grad_outputs)
    if not targets:
        raise RuntimeError("`inputs` argument to `grad()` cannot be empty.")
    if len(given) < len(roots):
        raise RuntimeError(f"got {len(roots)} tensors and {len(given)} gradients")
    pairs = _seed(roots, given)
    for t in _tuple(targets):
        if isinstance(t, Tensor) and not t._requires_grad:
            raise RuntimeError("One of the differentiated Tensors does not require grad")
    places = [id(_place(t)) for t in targets]
    retain = create_graph if retain_graph is None else retain_graph
    walk = Walk(retain, create_graph, set(places), accumulate=False)
    walk.run(pairs)
    results: list[Tensor | None] = []
    for i, t in enumerate(targets):
        g = walk.captured.get(places[i])
        if isinstance(g, list):  # of a node with several results, named by a GradientEdge
            g = g[t.output_nr]
        if g is None and materialize_grads:
            from tgrad.ops.creation import zeros_like

            g = zeros_like(t)
        if g is None and not allow_unused:
            raise RuntimeError(
                f"The differentiated Tensor at index {i} appears to not have been used in the graph. Set "
                "allow_unused=True if this is the desired behavior."
            )
        results.append(g)
    return tuple(results)


def _place(target: Tensor | GradientEdge) -> Any:
    """Where in the graph the gradient of `target` is met: a node, or a leaf."""
    if isinstance(target, Tensor):
        return target.node or target
    return target.node.variable if isinstance(target.node, AccumulateGrad) else target.node


def _several(tensors: Any) -> tuple:
    return (tensors,) if isinstance(tensors, (Tensor, GradientEdge)) else tuple(tensors)


def _tuple(tensors: Any) -> tuple:
    """One tensor or several, as a tuple; the histories of views are brought up to date."""
    several = _several(tensors)
    for t in several:
        if isinstance(t, Tensor) and t.alias is not None:
            refresh(t)
    return several


def _seed(roots: tuple[Tensor, ...], given: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
    from tgrad.ops.creation import ones_like

    pairs = []
    for i, (t, g) in enumerate(zip(roots, given, strict=False)):
        if not t._requires_grad:
            raise RuntimeError(f"element {i} of tensors does not require grad and does not have a grad_fn")
        if g is None:
            if t.numel() != 1:
                raise RuntimeError("grad can be implicitly created only for scalar outputs")
            with modes.no_grad():
                g = ones_like(t)
        elif not isinstance(g, Tensor):
            raise TypeError(f"gradients can be either Tensors or None, but got {type(g).__name__}")
        elif g.layout.shape != t.layout.shape:
            raise RuntimeError(
                f"Mismatch in shape: grad_output[{i}] has a shape of {g.shape} and output[{i}] has a shape of "
                f"{t.shape}."
            )
        if g.layout.dtype is not t.layout.dtype:
            g = p.cast(t.layout.dtype)(g)
        pairs.append((t, g))
    return pairs


def _warn_create_graph() -> None:
    global _warned_create_graph
    if not _warned_create_graph:
        _warned_create_graph = True
        warnings.warn(
            "Using backward() with create_graph=True will create a reference cycle between the parameter and its "
            "gradient which can cause a memory leak. We recommend using autograd.grad when creating the graph to "
            "avoid this. If you have to use this function, make sure to reset the .grad fields of your parameters "
            "to None after use to break the cycle and avoid the leak.",
            UserWarning,
            stacklevel=3,
        )
