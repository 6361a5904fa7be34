"""What the two bridges between tgrad and PyTorch share: tensors over one memory, grad modes, checks of arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tgrad import graph, modes
from tgrad.tensor import Tensor


class Twins:
    """A tensor of tgrad and one of PyTorch over one memory. `sync` tells each of the other's writes in place."""

    __slots__ = ("ours", "theirs", "seen")

    def __init__(self, ours: Tensor, theirs: torch.Tensor) -> None:
        self.ours, self.theirs = ours, theirs
        self.seen = self._now()

    def _now(self) -> tuple[int, int] | None:
        if self.ours.version is None or self.theirs.is_inference():
            return None  # inference tensors count no writes
        return self.ours.version.value, self.theirs._version

    def sync(self) -> None:
        now = self._now()
        if now is None or self.seen is None or now == self.seen:
            return
        ours, theirs = (new != old for new, old in zip(now, self.seen, strict=True))
        if theirs and not ours:
            graph.written(self.ours, "an operation of PyTorch")
        if ours and not theirs:
            torch.autograd.graph.increment_version(self.theirs)
        self.seen = self._now()


def sync_all(pairs: Iterable[Twins | None]) -> None:
    for pair in pairs:
        if pair is not None:
            pair.sync()


@contextmanager
def torch_mode(recording: bool) -> Iterator[None]:
    with torch.inference_mode(False), torch.set_grad_enabled(recording):
        yield


@contextmanager
def tgrad_mode(recording: bool) -> Iterator[None]:
    before = modes.current()
    modes.set_mode(modes.GRAD if recording else modes.NO_GRAD)
    try:
        yield
    finally:
        modes.set_mode(before)


def flat_arguments(
    name: str, tensor: type, args: tuple, kwargs: dict[str, Any], function: Callable
) -> tuple[list, Callable]:
    """All arguments in one list, and the function over such a list.

    Raises:
        TypeError: tensors in containers, or of the other library and requiring grad: gradients would be lost.
    """
    given, keys, n = [*args, *kwargs.values()], tuple(kwargs), len(args)
    for label, x in zip([*(f"argument {i}" for i in range(n)), *(f"argument '{k}'" for k in keys)], given, strict=True):
        if _holds(x, tensor):
            raise TypeError(f"{name}: {label} is a {type(x).__name__} that holds tensors: pass each by itself")
        if isinstance(x, (Tensor, torch.Tensor)) and not isinstance(x, tensor) and x.requires_grad:
            raise TypeError(f"{name}: {label} is a {_name(type(x))} that requires grad; expected a {_name(tensor)}")
    run = lambda *values: function(*values[:n], **dict(zip(keys, values[n : n + len(keys)])))
    return given, run


def _holds(x: Any, tensor: type) -> bool:
    values = x.values() if isinstance(x, dict) else x if isinstance(x, (list, tuple, set)) else ()
    return any(isinstance(v, tensor) or _holds(v, tensor) for v in values)


def _name(kind: type) -> str:
    return "tgrad.Tensor" if issubclass(kind, Tensor) else "torch.Tensor"


def results_of(name: str, outputs: Any, tensor: type) -> tuple[tuple, bool]:
    """What a function returned, as a tuple, and whether it was one."""
    many = isinstance(outputs, (tuple, list))
    values = tuple(outputs) if many else (outputs,)
    for value in values:
        if _holds(value, tensor):
            kind = type(value).__name__
            raise TypeError(f"{name}: the function returned a {kind} of tensors; expected a tensor or a tuple of them")
        if isinstance(value, (Tensor, torch.Tensor)) and not isinstance(value, tensor):
            raise TypeError(f"{name}: the function returned a {_name(type(value))}; expected a {_name(tensor)}")
    return values, many
