"""`tgrad.cuda.graphed`: a step that is captured as a CUDA graph and replayed."""

from __future__ import annotations

import functools
import gc
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from tgrad import autocasting, dispatch, dtypes, graph, modes, random
from tgrad.cudagraphs.capture import Run, blame
from tgrad.cudagraphs.replay import Later, Mismatch, Refused, Step, copy, settle
from tgrad.cudagraphs.snapshot import Snapshot
from tgrad.device import compute
from tgrad.kernels import cuda_graph, launch
from tgrad.layout import layout, may_overlap_itself
from tgrad.ops.matmul import get_float32_matmul_precision
from tgrad.tensor import Tensor, empty

MOST = 8  # graphs of one function
_one = threading.RLock()  # the hooks of a capture are the process's


class Signature:
    """What calls with the same graph have in common, for one combination of arguments and modes."""

    def __init__(self) -> None:
        self.warm = 0  # calls that ran the function
        self.steps: list[Step] = []


class Graphed:
    """What `graphed` returns.

    Attributes:
        reason: why calls run eagerly, for good; None while they need not.
        graphs: how many are kept.
    """

    def __init__(self, function: Callable[..., Any], warmup: int) -> None:
        functools.update_wrapper(self, function)
        self._function, self._warmup = function, warmup
        self._signatures: dict[Any, Signature] = {}
        self.reason: str | None = cuda_graph.why_not()
        self._told = False

    @property
    def graphs(self) -> int:
        return sum(len(s.steps) for s in self._signatures.values())

    def reset(self) -> None:
        """Drop all graphs and their memory; calls begin anew with the warm-up."""
        with _one:
            self._signatures.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        watched = dispatch.observer is not None or launch._listener is not None
        if self.reason is not None or watched or random.in_memory is not None:
            result = _detached(self._function(*args, **kwargs))[0]
        else:
            with _one:
                result = self._run(args, kwargs)
        if self.reason is not None and not self._told:
            self._told = True
            name = getattr(self._function, "__qualname__", repr(self._function))
            text = f"tgrad.cuda.graphed: {name} runs eagerly, without a CUDA graph: {self.reason}"
            warnings.warn(text, stacklevel=2)
        return result

    def _run(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        given: list[Tensor] = []
        try:
            spec = _spec((args, kwargs), given)
            signature = self._signatures.get((spec, *_context()))
            if signature is None:
                signature = self._signatures[(spec, *_context())] = Signature()
        except TypeError as error:
            return self._eagerly(args, kwargs, f"an argument cannot be told from another: {error}")
        for step in signature.steps:
            if step.fits():
                try:
                    return step.replay(given)
                except Mismatch:
                    continue
        signature.warm += 1
        if signature.warm < self._warmup:
            return _detached(self._function(*args, **kwargs))[0]
        if signature.warm == self._warmup:
            with Run(rehearsal=True).hooked():
                return _detached(self._function(*args, **kwargs))[0]
        wrong = next(filter(None, map(_unfit, given)), None)
        if gc.get_freeze_count():
            wrong = "gc.freeze() was called: what a failed capture has to put back could not be found"
        if wrong is not None:
            return self._eagerly(args, kwargs, wrong)
        if self.graphs >= MOST:
            return self._eagerly(args, kwargs, f"more than {MOST} graphs would be needed, for as many kinds of calls")
        return self._capture(signature, args, kwargs, given)

    def _capture(self, signature: Signature, args: tuple, kwargs: dict[str, Any], given: list[Tensor]) -> Any:
        settle()
        inputs = [_like(t) for t in given]
        copy(list(zip(inputs, given, strict=True)))
        region = autocasting.region()
        snapshot = Snapshot()

        def run(tensors: Sequence[Tensor]) -> tuple[Any, list[Tensor]]:
            fed, named = _fill((args, kwargs), iter(tensors))
            if region is None:
                return _detached(self._function(*fed, **named))
            # The casts kept so far were made outside of the graph, of parameters as they were then.
            token = autocasting._state.set(autocasting.Region(region.low, region.caching, {}))
            try:
                return _detached(self._function(*fed, **named))
            finally:
                autocasting._state.reset(token)

        reason = None
        try:
            step = Step(run, inputs, snapshot)
        except BaseException as error:
            snapshot.restore()
            if not isinstance(error, Exception):
                raise
            if not isinstance(error, Later):
                reason = str(error) if isinstance(error, Refused) else f"the capture failed: {blame(error)}"
        else:
            signature.steps.append(step)
            signature.warm = self._warmup - 1  # a call that the graph does not fit is rehearsed, and the next captured
            return step.result
        if reason is not None:
            return self._eagerly(args, kwargs, reason)
        signature.warm = self._warmup - 1
        return _detached(self._function(*args, **kwargs))[0]

    def _eagerly(self, args: tuple, kwargs: dict[str, Any], reason: str) -> Any:
        """Run the function, and from now on always, unless it raises."""
        result = _detached(self._function(*args, **kwargs))[0]
        self.reason = reason
        self._signatures.clear()
        return result


def graphed(function: Callable[..., Any], warmup: int = 3) -> Graphed:
    """A function that runs a whole step, of training or inference, as one CUDA graph: same results, little host time.

    The first `warmup` calls run `function`; then a call captures what it launches, and later ones launch that again.
    Each call is one step, bit for bit the one that `function` would make: forward and backward, `optimizer.step()` and
    `zero_grad`, random numbers, learning rates (of schedulers, too) and counts of steps as they are at the call. As for
    `torch.cuda.make_graphed_callables`, what Python does beside that happens in the calls that are not replays alone,
    and the values of Python numbers are those of the capture.

    Tensor arguments (also within lists, tuples and dictionaries) are copied into memory of the graph. Arguments of
    other shapes or dtypes, other Python arguments, another grad mode, modules in another mode (`train`, `eval`),
    gradients that were or were not there before, parameters or optimiser states in other memory: each gets a graph
    of its own, after warming up, at most 8 in all. Results have no history, and the next replay overwrites them and the
    gradients: clone what is to stay.

    Where no graph can be made, all calls run `function`, as without `graphed`, and one warning says why: no CUDA
    device; a step that looks at values on the host (`item`, `print`, `if` on a tensor), makes tensors of them, moves
    tensors between devices, or writes to its arguments, with its line; CPU tensors or tensors that require grad as
    arguments; an old driver. A capture that fails has changed nothing. While the profiler listens, too, calls run
    `function`. No other thread can launch anything during a capture.

    Args:
        warmup: calls before a capture, at least 1: kernels are compiled and optimisers begin their state in them.

    Returns:
        A callable with the attributes `reason` (why it runs eagerly, or None), `graphs` (how many it keeps) and
        `reset()`, which drops them.

    Shape: any; kept.
    Dtype: any; kept.
    Raises:
        TypeError: `function` cannot be called, or `warmup` is no integer.
        ValueError: `warmup` is below 1.
    """
    if not callable(function):
        raise TypeError(f"graphed(): expected a function, got {type(function).__name__}")
    if not isinstance(warmup, int) or isinstance(warmup, bool):
        raise TypeError(f"graphed(): argument 'warmup' must be int, not {type(warmup).__name__}")
    if warmup < 1:
        raise ValueError(f"graphed(): expected a warmup of at least 1, got {warmup}: kernels are compiled in it")
    return Graphed(function, warmup)


# --- arguments and results -------------------------------------------------------------------------------------------
def _context() -> tuple:
    """What decides beside the arguments which kernels a call launches."""
    region = autocasting.region()
    return (
        modes.current(), None if region is None else region.low, get_float32_matmul_precision(), graph.policy.get(),
        graph.patterns.get(), dtypes.get_default_dtype(),
    )  # fmt: skip


def _spec(tree: Any, tensors: list[Tensor]) -> Any:
    """A key for a tree of arguments; its tensors are added to a list."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return tree.layout, tree._requires_grad
    if isinstance(tree, dict):
        return type(tree), tuple((k, _spec(v, tensors)) for k, v in tree.items())
    if isinstance(tree, (tuple, list)):
        return type(tree), tuple(_spec(v, tensors) for v in tree)
    hash(tree)
    return type(tree), tree


def _fill(tree: Any, tensors: Any) -> Any:
    """The tree with other tensors."""
    if isinstance(tree, Tensor):
        return next(tensors)
    if isinstance(tree, dict):
        filled: Any = {k: _fill(v, tensors) for k, v in tree.items()}
        return filled if type(tree) is dict else type(tree)(filled)
    if isinstance(tree, (tuple, list)):
        parts = [_fill(v, tensors) for v in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree


def _detached(result: Any) -> tuple[Any, list[Tensor]]:
    """A result without history, and its tensors."""
    found: list[Tensor] = []
    _gather(result, found)
    bare = [t.detach() if t._requires_grad else t for t in found]
    return (_fill(result, iter(bare)) if bare else result), bare


def _gather(tree: Any, found: list[Tensor]) -> None:
    """Add the tensors of a tree to a list, in the order in which `_fill` takes them."""
    if isinstance(tree, Tensor):
        found.append(tree)
    elif isinstance(tree, (dict, tuple, list)):
        for part in tree.values() if isinstance(tree, dict) else tree:
            _gather(part, found)


def _unfit(t: Tensor) -> str | None:
    if t._requires_grad:
        return "an argument requires grad: the gradients of a step stay within it, so give x.detach()"
    if t.layout.device is not compute:
        return f"an argument is on the CPU: move it with .to('{compute}') before the call"
    return None


def _like(t: Tensor) -> Tensor:
    """Memory for an argument, in its strides where they leave no two elements in one place."""
    own = t.layout
    if may_overlap_itself(own.shape, own.strides):
        own = layout(own.dtype, tuple(own.shape), None, compute)
    return empty(own, inference=False)
