"""Custom Functions: a forward and a backward of the user's own, recorded as one node."""

from __future__ import annotations

import functools
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from tgrad import graph, modes, once
from tgrad.aliasing import rebase, refresh, wants_grad
from tgrad.backward import Gradient
from tgrad.engine import Part
from tgrad.graph import Node, Saved
from tgrad.layout import Layout
from tgrad.ops import pointwise as p
from tgrad.ops.creation import zeros
from tgrad.ops.reduce import sum_to
from tgrad.ops.views import view_op
from tgrad.tensor import IN_FUNCTION, Alias, Tensor


class FunctionCtx(Node):
    """The node of a custom Function, which its forward and backward know as `ctx`; it takes any attribute.

    Attributes:
        needs_input_grad: for each argument, whether it is a tensor that requires grad.
    """

    needs_input_grad: tuple[bool, ...] = ()
    _to_save: tuple[Tensor | None, ...] | None = None
    _dirty: tuple[Tensor, ...] = ()
    _non_differentiable: tuple[Tensor, ...] = ()
    _materialize = True
    _given: tuple[bool, ...] = ()  # of what save_for_backward was given, which were tensors and not None

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Keep tensors (inputs, outputs or others) for backward, where `saved_tensors` has them.

        Raises:
            TypeError: one is no tensor.
        """
        for i, t in enumerate(tensors):
            if t is not None and not isinstance(t, Tensor):
                raise TypeError(
                    f"save_for_backward can only save variables, but argument {i} is of type {type(t).__name__}"
                )
        self._to_save = tensors

    save_for_forward = save_for_backward

    def mark_dirty(self, *tensors: Tensor) -> None:
        """Say that forward wrote these inputs in place; it must return them."""
        self._dirty = tensors

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        """Say that these outputs have no gradient."""
        self._non_differentiable = tensors

    def set_materialize_grads(self, value: bool) -> None:
        """Whether backward gets zeros (default) or None for outputs that nothing used."""
        self._materialize = value

    @property
    def saved_tensors(self) -> tuple[Tensor | None, ...]:
        """What `save_for_backward` kept, with its history.

        Raises:
            RuntimeError: it was freed, or written in place since.
        """
        if self.saved is None:
            raise RuntimeError(
                "Trying to backward through the graph a second time (or directly access saved tensors after they "
                "have already been freed). Saved intermediate values of the graph are freed when you call "
                ".backward() or autograd.grad(). Specify retain_graph=True if you need to backward through the "
                "graph a second time or if you need to access saved tensors after calling backward."
            )
        kept = iter(self.saved)
        return tuple(next(kept).unpack(self) if given else None for given in self._given)

    def name(self) -> str:
        return self.rule.op.node_name


class _Pick(Node):
    """One of several results of a custom Function: hands its gradient on to the Function's node."""

    __slots__ = ("index",)

    index: int

    def target(self) -> tuple[Node, int]:
        return self.edges[0], self.index


class _PickRule:
    op: Any = types.SimpleNamespace(inputs=("x",), grad_name="Pick", node_name="Pick")
    wanted, saves, numbers, source, n_results = (0,), (), (), None, 1

    def run(self, node: Any, g: Tensor) -> list:
        return [(Part(node.index, g), False)]


_PICK: Any = _PickRule()


def _pick(ctx: Node, index: int, layout: Layout, key: int) -> _Pick:
    node = _Pick()
    node.saved, node.numbers, node.edges, node.rule = (), (), (ctx,), _PICK
    graph.fill(node, layout)
    node.key, node.index = key, index
    return node


class _Result(Saved):
    """A saved result of a Function with several: its history is a pick, made when asked for, since one kept is a
    cycle.
    """

    __slots__ = ("index", "key")

    index: int
    key: int

    def value(self, node: Node) -> Tensor:
        t = super().value(node)
        t.node = _pick(node, self.index, self.layout, self.key)
        return t


class FunctionRule:
    """How a custom Function's node goes backward."""

    numbers, saves, source, takes_none = (), (), None, True

    def __init__(self, function: type[Function], n_inputs: int, wanted: tuple[int, ...]) -> None:
        name = f"{function.__name__}Backward"
        self.op: Any = types.SimpleNamespace(inputs=range(n_inputs), grad_name=function.__name__, node_name=name)
        self.function, self.n_inputs, self.wanted = function, n_inputs, wanted
        self.inputs: dict[int, Layout] = {}
        self.outputs: list[Layout | None] = []
        self.n_results = 1

    def run(self, ctx: Any, g: Any) -> list[Gradient]:
        arriving = g if isinstance(g, list) else [g] * self.n_results
        grads: list[Any] = []
        at = iter(arriving)
        for layout in self.outputs:
            grad = next(at) if layout is not None and layout.dtype.is_floating_point else None
            if grad is None and layout is not None and ctx._materialize:
                grad = zeros(*layout.shape, dtype=layout.dtype)
            grads.append(grad)
        returned = _backward_of(self.function)(ctx, *grads)
        values = returned if isinstance(returned, tuple) else (returned,)
        return self._checked(values)

    def _checked(self, values: tuple) -> list[Gradient]:
        name, n = self.op.node_name, self.n_inputs
        while len(values) > n and values[-1] is None:
            values = values[:-1]
        if len(values) != n:
            raise RuntimeError(
                f"function {name} returned an incorrect number of gradients (expected {n}, got {len(values)})"
            )
        results: list[Gradient] = []
        for i, value in enumerate(values):
            if value is not None and not isinstance(value, Tensor):
                raise RuntimeError(f"expected Variable or None (got {type(value).__name__})")
            if value is not None and i not in self.inputs:
                raise RuntimeError(
                    f"function {name} returned a gradient different than None at position {i + 1}, but the "
                    "corresponding forward input was not a Variable"
                )
            if i in self.wanted:
                results.append((None if value is None else self._fitted(i, value), False))
        return results

    def _fitted(self, i: int, value: Tensor) -> Tensor:
        like = self.inputs[i]
        if value.layout.shape != like.shape:
            if not _expands(like.shape, value.layout.shape):
                raise RuntimeError(
                    f"Function {self.op.node_name} returned an invalid gradient at index {i} - got "
                    f"{list(value.layout.shape)} but expected shape compatible with {list(like.shape)}"
                )
            value = sum_to(value, tuple(like.shape))
        return value if value.layout.dtype is like.dtype else p.cast(like.dtype)(value)


def _expands(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a tensor of `shape` can be read as one of shape `to`."""
    lead = len(to) - len(shape)
    return lead >= 0 and all(have in (1, want) for have, want in zip(shape, to[lead:], strict=True))


def _missing_forward(*args: Any, **kwargs: Any) -> Any:
    """What a subclass defines: forward(ctx, *args), or forward(*args) beside `setup_context`."""
    raise NotImplementedError("You must implement the forward function for custom autograd.Function.")


def _missing_backward(ctx: Any, *grads: Any) -> Any:
    """What a subclass defines, under either name: a gradient for each argument of forward, from one per output."""
    raise NotImplementedError(
        "You must implement either the backward or vjp method for your custom autograd.Function to use it with "
        "backward mode AD."
    )


class Function:
    """Base class of custom Functions: static methods `forward` and `backward`, used through `apply`.

    Either `forward(ctx, *args)`, or `forward(*args)` with `setup_context(ctx, inputs, output)`. `backward(ctx, *grads)`
    gets a gradient per output and returns one per argument of forward (None for those that are no tensors). forward
    runs with grad off; backward too, except under `create_graph`, where what it does is recorded.

    Raises:
        RuntimeError: it is instantiated or called, rather than applied.
    """

    forward: Callable[..., Any] = staticmethod(_missing_forward)
    setup_context: Callable[..., Any] | None = None
    backward: Callable[..., Any] = staticmethod(_missing_backward)
    vjp: Callable[..., Any] = staticmethod(_missing_backward)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        warnings.warn(
            f"{type(self)} should not be instantiated. Methods on autograd functions are all static, so you should "
            "invoke them on the class itself. Instantiating an autograd function will raise an error in a future "
            "version of PyTorch.",
            DeprecationWarning,
            stacklevel=2,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError(
            "Legacy autograd function with non-static forward method is deprecated. Please use new-style autograd "
            f"function with static forward method: call {type(self).__name__}.apply(...)"
        )

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Run forward and, if gradients are on and an argument needs one, record it."""
        for a in args:
            if isinstance(a, Tensor) and a.alias is not None:
                refresh(a)
        once.happened()
        ctx = FunctionCtx()
        ctx.saved = ()  # until forward is done
        ctx.needs_input_grad = tuple(isinstance(a, Tensor) and wants_grad(a) for a in args)
        returned = _forward(cls, ctx, args, kwargs)
        outputs = returned if isinstance(returned, tuple) else (returned,)
        recording = modes.current().record and any(ctx.needs_input_grad)
        results = _finish(cls, ctx, args, outputs, recording)
        return tuple(results) if isinstance(returned, tuple) else results[0]


def _forward(cls: type[Function], ctx: FunctionCtx, args: tuple, kwargs: dict) -> Any:
    mode = modes.current()
    modes.set_mode(modes.INFERENCE if mode.inference else modes.NO_GRAD)
    try:
        if cls.setup_context is None:
            return cls.forward(ctx, *args, **kwargs)
        returned = cls.forward(*args, **kwargs)
        cls.setup_context(ctx, args, returned)
        return returned
    finally:
        modes.set_mode(mode)


def _backward_of(cls: type[Function]) -> Callable:
    own = [name for name in ("backward", "vjp") if getattr(cls, name) is not _missing_backward]
    if len(own) == 2:
        raise RuntimeError(
            "Implementing both 'backward' and 'vjp' for a custom Function is not allowed. You should only implement "
            "one of them."
        )
    return getattr(cls, own[0] if own else "backward")


def _finish(cls: type[Function], ctx: FunctionCtx, args: tuple, outputs: tuple, recording: bool) -> list[Any]:
    """Give the outputs their history, and keep what was saved."""
    dirty = {id(t) for t in ctx._dirty}
    missing = dirty - {id(o) for o in outputs}
    if missing:
        raise RuntimeError(
            "Some elements marked as dirty during the forward method were not returned as output. The inputs that "
            "are modified inplace must all be outputs of the Function."
        )
    inputs = {id(a) for a in args if isinstance(a, Tensor)}
    for t in ctx._dirty:
        if recording and t._requires_grad and t.node is None and t.alias is None:
            raise RuntimeError("a leaf Variable that requires grad has been used in an in-place operation.")
        graph.written(t, f"{cls.__name__}.apply")
    results = [_as_view(o) if isinstance(o, Tensor) and id(o) in inputs and id(o) not in dirty else o for o in outputs]
    if not recording:
        return results
    wanted = tuple(i for i, need in enumerate(ctx.needs_input_grad) if need)
    rule = FunctionRule(cls, len(args), wanted)
    rule.inputs = {i: a.layout for i, a in enumerate(args) if isinstance(a, Tensor)}
    rule.outputs = [o.layout if isinstance(o, Tensor) else None for o in results]
    plain = {id(t) for t in ctx._non_differentiable}
    tracked = [
        o for o, given in zip(results, outputs, strict=True)
        if isinstance(o, Tensor) and o.dtype.is_floating_point and id(given) not in plain
    ]  # fmt: skip
    floating = [o for o in results if isinstance(o, Tensor) and o.dtype.is_floating_point]
    rule.n_results = len(floating)
    ctx.rule, ctx.numbers, ctx.saved = rule, (), ()  # type: ignore[assignment]
    ctx.edges = tuple(args[i].node or args[i] for i in wanted)
    layout = tracked[0].layout if tracked else args[wanted[0]].layout
    graph.fill(ctx, layout)
    keys = [graph.next_key() for _ in floating]
    position = {id(o): k for k, o in enumerate(floating)}
    saved = _save(ctx, outputs, results, position, keys)
    for o in tracked:
        k = position[id(o)]
        node = ctx if len(floating) == 1 else _pick(ctx, k, o.layout, keys[k])
        if id(o) in dirty:
            _write_history(o, node)
        else:
            if o.alias is not None:
                o.alias.creation, o.alias.output = IN_FUNCTION, (cls.__name__, k)
            o.node, o._requires_grad = node, True
    ctx._given, ctx.saved = tuple(s is not None for s in saved), tuple(s for s in saved if s is not None)
    ctx._to_save = None
    ctx._dirty = ctx._non_differentiable = ()
    return results


def _as_view(x: Tensor) -> Tensor:
    """An input returned as it is: a new object over the same memory."""
    with modes.no_grad():
        y = view_op(x, shape=tuple(x.shape))
    y.alias = Alias(x if x.alias is None else x.alias.base, IN_FUNCTION, 0 if x.version is None else x.version.value)
    return y


def _write_history(t: Tensor, node: Node) -> None:
    old = t.node
    if old is not None and old.retains is not None:
        node.retains, old.retains = old.retains, None
    t.node, t._requires_grad = node, True
    if t.alias is not None:
        rebase(t)


def _save(
    ctx: FunctionCtx, outputs: tuple, results: list[Any], position: dict[int, int], keys: list[int]
) -> tuple[Saved | None, ...]:
    """What `save_for_backward` was given, in forward's own order."""
    made = {id(o): r for o, r in zip(outputs, results, strict=True) if isinstance(r, Tensor)}
    saved: list[Saved | None] = []
    for i, t in enumerate(ctx._to_save or ()):
        if t is None:
            saved.append(None)
            continue
        result = made.get(id(t))
        index = None if result is None else position.get(id(result))
        if index is None:
            saved.append(graph.save(t, f"saved {i}", False))
        elif len(keys) == 1:
            saved.append(graph.save(t, f"saved {i}", True))
        else:
            kept = _Result(t, f"saved {i}", True)
            kept.index, kept.key = index, keys[index]
            saved.append(kept)
    return tuple(saved)


def once_differentiable(backward: Callable) -> Callable:
    """Decorate a backward that cannot be differentiated: doing so raises, and never gives an incomplete result."""

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Any) -> Any:
        recording = modes.current().record
        with modes.no_grad():
            returned = backward(ctx, *grads)
        if not recording:
            return returned
        values = returned if isinstance(returned, tuple) else (returned,)
        marked = tuple(_undifferentiable(ctx, v) if isinstance(v, Tensor) else v for v in values)
        return marked if isinstance(returned, tuple) else marked[0]

    return wrapper


class _Once:
    op: Any = types.SimpleNamespace(inputs=(), grad_name="OnceDifferentiable", node_name="Error")
    saves, numbers, n_results = (), (), 1
    wanted: tuple[int, ...] = ()

    def run(self, node: Node, g: Tensor) -> list:
        raise RuntimeError("trying to differentiate twice a function that was marked with @once_differentiable")


def _undifferentiable(ctx: Any, value: Tensor) -> Tensor:
    out = view_op(value, shape=tuple(value.shape))
    out.alias = None
    node = Node()
    rule: Any = _Once()
    node.saved, node.numbers, node.edges, node.rule = (), (), ctx.edges, rule
    graph.fill(node, out.layout)
    out.node, out._requires_grad = node, True
    return out
