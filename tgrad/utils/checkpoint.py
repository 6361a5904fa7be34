"""Activation checkpointing: keep a function's inputs, and run it again in backward for what its gradients need."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tgrad import autocasting, dispatch, engine, graph, modes, once
from tgrad.differentiate import backward
from tgrad.engine import Walk
from tgrad.function import Function
from tgrad.nn.container import Sequential
from tgrad.origins import find
from tgrad.random import default_generator, fork_rng
from tgrad.saved_hooks import saved_tensors_hooks
from tgrad.tensor import Tensor

__all__ = [
    "CheckpointError", "checkpoint", "checkpoint_sequential", "set_checkpoint_debug_enabled",
    "set_checkpoint_early_stop",
]  # fmt: skip

_debug: bool | None = None
_early_stop: bool | None = None


class CheckpointError(RuntimeError):
    """The function did not do the same when it was run again."""


@contextlib.contextmanager
def set_checkpoint_debug_enabled(enabled: bool | None) -> Iterator[None]:
    """Inside the block, `enabled` overrides the `debug` of every checkpoint; None leaves it to them."""
    global _debug
    before, _debug = _debug, enabled
    try:
        yield
    finally:
        _debug = before


@contextlib.contextmanager
def set_checkpoint_early_stop(enable: bool) -> Iterator[None]:
    """For checkpoints called inside the block, `enable` overrides their `early_stop`."""
    global _early_stop
    before, _early_stop = _early_stop, enable
    try:
        yield
    finally:
        _early_stop = before


def noop_context_fn() -> tuple:
    """Two contexts that do nothing."""
    return contextlib.nullcontext(), contextlib.nullcontext()


def checkpoint(
    function: Callable,
    *args: Any,
    use_reentrant: bool | None = None,
    context_fn: Callable[[], tuple] = noop_context_fn,
    determinism_check: str = "default",
    debug: bool = False,
    early_stop: bool = True,
    **kwargs: Any,
) -> Any:
    """function(*args, **kwargs), without keeping what it saves for backward: there it is run again.

    Args:
        use_reentrant: False: the forward is recorded, and the function run again when backward first needs something
            that it saved, once per backward. True, PyTorch's first form: the forward runs without grad, and backward
            runs the function again with grad and then its own backward; only `.backward()` without `inputs` works, and
            only tensors that are direct arguments get gradients. Not given: True, with a warning.
        context_fn: makes two contexts, for the function and for its second run. Only with use_reentrant=False.
        determinism_check: "default" compares shape, dtype and device of what is saved; "none" does not.
        debug: a mismatch lists what was saved both times, with source lines. Only with use_reentrant=False.
        early_stop: end the second run when it has saved what is needed. Only with use_reentrant=False.
        kwargs: preserve_rng_state (default True): run the function again with the same random numbers. Others are the
            function's own, with use_reentrant=False.

    Raises:
        ValueError: arguments that the form does not take. CheckpointError, in backward: the second run saved other
            tensors than the first.
    """
    if use_reentrant is None:
        warnings.warn(
            "torch.utils.checkpoint: the use_reentrant parameter should be passed explicitly. Starting in PyTorch 2.9, "
            "calling checkpoint without use_reentrant will raise an exception. use_reentrant=False is recommended, but "
            "if you need to preserve the current default behavior, you can pass use_reentrant=True. Refer to docs for "
            "more details on the differences between the two variants.",
            stacklevel=2,
        )
        use_reentrant = True
    preserve = kwargs.pop("preserve_rng_state", True)
    if use_reentrant:
        _refuse_kwargs(kwargs)
        if context_fn is not noop_context_fn or debug is not False:
            raise ValueError("Passing `context_fn` or `debug` is only supported when use_reentrant=False.")
        return _Reentrant.apply(function, preserve, *args)
    debug = debug if _debug is None else _debug
    if debug and context_fn is not noop_context_fn:
        raise ValueError("debug=True is incompatible with non-default context_fn")
    if determinism_check not in ("default", "none"):
        raise ValueError(f"determinism_check should be one of ['default', 'none'], but got {determinism_check}")
    first, second = context_fn()
    if not modes.current().grad:
        return function(*args, **kwargs)
    frame = Frame(function, args, kwargs, preserve, second)
    frame.compare, frame.debug = determinism_check == "default", debug
    frame.early_stop = early_stop if _early_stop is None else _early_stop
    with saved_tensors_hooks(frame.pack, frame.unpack), first:
        result = function(*args, **kwargs)
    frame.complete = True
    return result


def checkpoint_sequential(
    functions: Any, segments: int, input: Any, use_reentrant: bool | None = None, **kwargs: Any
) -> Any:
    """Run a Sequential, or a list of functions, on `input` in `segments` parts, all but the last checkpointed.

    Args:
        use_reentrant, kwargs: as for `checkpoint`; of the kwargs, preserve_rng_state alone.

    Raises:
        ValueError: other keyword arguments.
    """
    if use_reentrant is None:
        warnings.warn(
            "torch.utils.checkpoint.checkpoint_sequential: the use_reentrant parameter should be passed explicitly. In "
            "version 2.9 we will raise an exception if use_reentrant is not passed. use_reentrant=False is "
            "recommended, but if you need to preserve the current default behavior, you can pass use_reentrant=True. "
            "Refer to docs for more details on the differences between the two variants.",
            stacklevel=2,
        )
        use_reentrant = True
    preserve = kwargs.pop("preserve_rng_state", True)
    _refuse_kwargs(kwargs)
    parts: list[Callable] = list(functions.children()) if isinstance(functions, Sequential) else list(functions)

    def run(some: Sequence[Callable]) -> Callable:
        def forward(input: Any) -> Any:
            for function in some:
                input = function(input)
            return input

        return forward

    size = len(parts) // segments
    end = 0
    for start in range(0, size * (segments - 1), size):
        end = start + size
        input = checkpoint(run(parts[start:end]), input, use_reentrant=use_reentrant, preserve_rng_state=preserve)
    return run(parts[end:])(input)


def _refuse_kwargs(kwargs: dict) -> None:
    if kwargs:
        raise ValueError("Unexpected keyword arguments: " + ",".join(kwargs))


# --- the form without re-entrance -------------------------------------------------------------------------------------
class _Stop(Exception):
    """Ends the second run: all that is needed has been saved."""


class Slot:
    """Stands in the graph for the tensor that the function saved there."""

    __slots__ = ("index", "__weakref__")

    def __init__(self, index: int) -> None:
        self.index = index


class _Input:
    """What errors about a checkpoint's inputs name as their node."""

    origin = None

    def name(self) -> str:
        return "checkpoint"


class Frame:
    """One call of a checkpointed function.

    Attributes:
        slots: of what it saved, in order; dead where the graph no longer needs it.
        kept: shape, dtype and device of those.
        lines: where those were saved; only with `debug`.
        again: by walk, what the second run saved and nobody has fetched yet, by index.
        lean: whether the second run keeps recipes where there are some.
    """

    compare, debug, early_stop, complete = True, False, True, False

    def __init__(self, function: Callable, args: tuple, kwargs: dict, preserve: bool, context: Any) -> None:
        self.function, self.kwargs, self.context = function, kwargs, context
        # Through the hooks of an outer checkpoint, if there is one, but not through this one's.
        # One tensor given twice is saved once, and comes back as one: functions may ask whether two arguments are one.
        distinct = {id(a): graph.save(a, "input", False) for a in args if isinstance(a, Tensor)}
        self.args = [distinct.get(id(a), a) for a in args]
        self.random = default_generator.get_state() if preserve else None
        self.autocast = autocasting.setting()
        self.slots: list[weakref.ref[Slot]] = []
        self.kept: list[dict] = []
        self.lines: list[str] = []
        self.again: weakref.WeakKeyDictionary[Walk, dict[int, Tensor | graph.Saved]] = weakref.WeakKeyDictionary()
        self.lean = graph.policy.get() != "keep"

    def pack(self, t: Tensor) -> Slot:
        slot = self.new_slot(t)
        self.slots.append(weakref.ref(slot))
        self.kept.append(_facts(t))
        if self.debug:
            self.lines.append(f"{_facts(t)} {find()}")
        return slot

    def new_slot(self, t: Tensor) -> Slot:
        """What stands for t."""
        return Slot(len(self.slots))

    def unpack(self, slot: Slot) -> Tensor:
        walk = engine.innermost_walk()
        if walk is None:  # outside backward, as when a node's saved tensors are looked at
            return _value(self._run_again()[slot.index])
        found = self.again.get(walk)
        if found is None or slot.index not in found:  # the first time, or fetched twice: it is kept for one fetch only
            found = self.again[walk] = self._run_again()
        return _value(found.pop(slot.index))

    def _run_again(self) -> dict[int, Tensor | graph.Saved]:
        inputs = {id(a): a.unpack(_INPUT) for a in self.args if isinstance(a, graph.Saved)}
        args = [inputs.get(id(a), a) for a in self.args]
        run = _SecondRun(self)
        with contextlib.suppress(_Stop), fork_rng(enabled=self.random is not None):
            if self.random is not None:
                default_generator.set_state(self.random)
            hooks = saved_tensors_hooks(run.pack, lambda t: t)
            ending = once.second_run(run.end_before if self.early_stop and self.complete else None)
            with hooks, self.context, modes.enable_grad(), autocasting.resumed(*self.autocast), ending:
                graph.saver.set(run.save)
                self.function(*args, **self.kwargs)
        run.check()
        return run.found


_INPUT: Any = _Input()


def _value(kept: Tensor | graph.Saved) -> Tensor:
    return kept.unpack(_INPUT) if isinstance(kept, graph.Saved) else kept


class _SecondRun:
    """What one further run of the function saves: by the policy, but plainly what is asked for first."""

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.count = 0
        self.found: dict[int, Tensor | graph.Saved] = {}
        self.other: list[str] = []
        self.lines: list[str] = []
        self.incomplete = False  # the backward began inside the function: the comparison would be with a part
        self.last: tuple[Any, int] = None, 0  # the node that saved last, and how much was saved when it is done

    def pack(self, t: Tensor) -> Tensor:
        """As a hook, where the function changes what decides how tensors are kept."""
        t = t.detach()
        self._keep(t, t)
        return t

    def save(self, t: Tensor, name: str, own: bool, node: graph.Node | None = None) -> graph.Saved:
        """Keep t, as a recipe where there is one."""
        if node is None or node is not self.last[0]:
            self.last = node, self.count + (len(getattr(node.rule, "saves", ())) if node is not None else 1)
        plain = not self.frame.lean or node is None or self.last[1] >= len(self.frame.slots)
        saved = graph.Saved(t, name, own) if plain else graph.lean(t, name, own, node)
        self._keep(t, saved)
        return saved

    def end_before(self, op: Any, args: tuple) -> None:
        """An op is about to run; if it is the last that saves, and its operands alone, they are all that is needed."""
        key = tuple([a.layout if isinstance(a, Tensor) else a.__class__ for a in args])
        plan = op.plans.get(key)
        if plan is None or graph.saver.get() != self.save or not modes.current().record:
            return
        mask = 0
        for i, a in enumerate(args):
            if isinstance(a, Tensor):
                if a.alias is not None:
                    dispatch.refresh(a)
                mask |= a._requires_grad << i
        rule = plan.rule(mask) if mask else None
        if rule is None or self.count + len(rule.saves) != len(self.frame.slots):
            return
        if all(i < len(args) for i, _ in rule.saves):
            for i, name in rule.saves:
                self._keep(args[i], graph.Saved(args[i], name, False))

    def _keep(self, t: Tensor, kept: Tensor | graph.Saved) -> None:
        frame, index = self.frame, self.count
        self.count += 1
        if frame.debug:
            self.lines.append(f"{_facts(t)} {find()}")
        if index >= len(frame.slots):
            if frame.complete:
                raise CheckpointError(
                    "torch.utils.checkpoint: trying to save more tensors during recomputation than during the original "
                    "forward pass." + self._listing()
                )
            self.incomplete = True
            return
        if frame.slots[index]() is not None:
            self.found[index] = kept
            if frame.compare and _facts(t) != frame.kept[index]:
                self.other.append(
                    f"tensor at position {index}:\nsaved metadata: {frame.kept[index]}\n"
                    f"recomputed metadata: {_facts(t)}\n"
                )
        if frame.early_stop and self.count == len(frame.slots):
            raise _Stop

    def check(self) -> None:
        """Raise if something else was saved than the first time."""
        frame = self.frame
        if self.incomplete:
            return
        if self.count != len(frame.slots):
            raise CheckpointError(
                "torch.utils.checkpoint: A different number of tensors was saved during the original forward and "
                f"recomputation.\nNumber of tensors saved during forward: {len(frame.slots)}\nNumber of tensors saved "
                f"during recomputation: {self.count}.{self._listing()}"
            )
        if self.other:
            raise CheckpointError(
                "torch.utils.checkpoint: Recomputed values for the following tensors have different metadata than "
                "during the forward pass.\n" + "".join(self.other) + self._listing()
            )
        for kept in self.found.values():  # of this run's graph, whose nodes nobody needs
            if isinstance(kept, graph.Saved) and isinstance(kept.edge, graph.Node):
                kept.edge = None

    def _listing(self) -> str:
        if not self.frame.debug:
            return "\nTip: pass debug=True to checkpoint to see what was saved both times, and where."
        first, second = ("".join(f"\n  {line}" for line in lines) for lines in (self.frame.lines, self.lines))
        return f"\nSaved during forward:{first}\nSaved during recomputation:{second}"


def _facts(t: Tensor) -> dict[str, Any]:
    return {"shape": t.shape, "dtype": t.dtype, "device": t.device}


# --- the re-entrant form ----------------------------------------------------------------------------------------------
class _Reentrant(Function):
    @staticmethod
    def forward(ctx: Any, function: Callable, preserve: bool, *args: Any) -> Any:
        tensors = [a for a in args if isinstance(a, Tensor)]
        if not any(t.requires_grad for t in tensors):
            warnings.warn("None of the inputs have requires_grad=True. Gradients will be None", stacklevel=5)
        ctx.function, ctx.random = function, default_generator.get_state() if preserve else None
        ctx.autocast = autocasting.setting()
        ctx.others = [None if isinstance(a, Tensor) else a for a in args]
        ctx.places = [i for i, a in enumerate(args) if isinstance(a, Tensor)]
        ctx.save_for_backward(*tensors)
        return function(*args)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple:
        if engine.current_walk().capture is not None:
            raise RuntimeError(
                "When use_reentrant=True, torch.utils.checkpoint is incompatible with .grad() or passing an `inputs` "
                "parameter to .backward(). To resolve this error, you can either set use_reentrant=False, or call "
                ".backward() without passing the `inputs` argument."
            )
        args = list(ctx.others)
        for i, t in zip(ctx.places, ctx.saved_tensors, strict=True):
            args[i] = t.detach().requires_grad_(t.requires_grad)
        with fork_rng(enabled=ctx.random is not None):
            if ctx.random is not None:
                default_generator.set_state(ctx.random)
            with modes.enable_grad(), autocasting.resumed(*ctx.autocast):
                returned = ctx.function(*args)
        outputs = returned if isinstance(returned, tuple) else (returned,)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if isinstance(o, Tensor) and o.requires_grad]
        if not pairs:
            raise RuntimeError("none of output has requires_grad=True, this checkpoint() is not necessary")
        backward([o for o, _ in pairs], [g for _, g in pairs])
        return (None, None, *[a.grad if isinstance(a, Tensor) else None for a in args])
