"""Grad modes: thread-local state, and the context managers and decorators that set it.

The state is one immutable `Mode` in one `ContextVar`: a new thread starts with the default, asyncio tasks do not leak
into one another, and a read costs nanoseconds. `dispatch` alone reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from threading import get_ident
from typing import Any

from tgrad.decorators import decorate


class Mode:
    """What results are. `record`: an op whose inputs need a gradient makes a node."""

    __slots__ = ("grad", "inference", "record")

    def __init__(self, grad: bool, inference: bool) -> None:
        self.grad = grad
        self.inference = inference
        self.record = grad and not inference

    def __repr__(self) -> str:
        return f"Mode(grad={self.grad}, inference={self.inference})"


GRAD, NO_GRAD = Mode(True, False), Mode(False, False)
INFERENCE, INFERENCE_GRAD = Mode(False, True), Mode(True, True)

mode_variable: ContextVar[Mode] = ContextVar("tgrad_mode", default=GRAD)
current: Callable[[], Mode] = mode_variable.get
set_mode = mode_variable.set


def is_grad_enabled() -> bool:
    """Whether grad mode is on in this thread."""
    return current().grad


def is_inference_mode_enabled() -> bool:
    """Whether inference mode is on in this thread."""
    return current().inference


def _with_grad(enabled: bool) -> Mode:
    if current().inference:
        return INFERENCE_GRAD if enabled else INFERENCE
    return GRAD if enabled else NO_GRAD


class _ModeContext:
    """A context manager and decorator.

    One object may be entered again while it is entered, and in several threads: it keeps a stack for each.
    """

    def __init__(self) -> None:
        self._before: dict[int, list[Mode]] = {}

    def _target(self) -> Mode:
        raise NotImplementedError

    def clone(self) -> _ModeContext:
        """A context for the same mode; a decorated function makes one at each call."""
        return type(self)()

    def __enter__(self) -> None:
        self._push(current())
        set_mode(self._target())

    def __exit__(self, *exception: object) -> None:
        set_mode(self._pop())

    def _push(self, mode: Mode) -> None:
        self._before.setdefault(get_ident(), []).append(mode)

    def _pop(self) -> Mode:
        thread = get_ident()
        if thread not in self._before:  # entered by a generator in one thread, left in another
            thread = next(reversed(self._before))
        stack = self._before[thread]
        mode = stack.pop()
        if not stack:
            del self._before[thread]
        return mode

    def __call__(self, function: Callable) -> Callable:
        return decorate(function, self.clone)


class _NoParentheses(_ModeContext):
    """Also `@no_grad` without parentheses."""

    def __new__(cls, function: Callable | None = None) -> Any:
        if function is None:
            return super().__new__(cls)
        return decorate(function, cls)

    def __init__(self) -> None:  # of an object: a decorated function is none
        super().__init__()


class no_grad(_NoParentheses):
    """Turn recording off: results do not require grad and keep nothing for backward."""

    def _target(self) -> Mode:
        return _with_grad(False)


class enable_grad(_NoParentheses):
    """Turn recording on, also inside `no_grad`. In inference mode, results stay inference tensors without a graph."""

    def _target(self) -> Mode:
        return _with_grad(True)


class set_grad_enabled(_ModeContext):
    """Turn recording on or off. Acts at once; as a context manager, its exit restores what was before construction.

    As a decorator it acts in the function alone.

    Raises:
        TypeError: mode is not a bool.
    """

    def __init__(self, mode: bool) -> None:
        if not isinstance(mode, bool):
            raise TypeError(f"set_grad_enabled(): argument 'mode' must be bool, not {type(mode).__name__}")
        super().__init__()
        self.mode = mode
        self._at_construction = current()
        set_mode(_with_grad(mode))

    def _target(self) -> Mode:
        return _with_grad(self.mode)

    def clone(self) -> _ModeContext:
        return enable_grad() if self.mode else no_grad()

    def __enter__(self) -> None:
        self._push(current() if get_ident() in self._before else self._at_construction)
        set_mode(self._target())

    def __exit__(self, *exception: object) -> None:
        set_mode(_with_grad(self._pop().grad))

    def __call__(self, function: Callable) -> Callable:
        set_mode(_with_grad(self._at_construction.grad))  # decorating is not calling: the mode is as it was
        return decorate(function, self.clone)

    def __repr__(self) -> str:
        return f"torch.autograd.grad_mode.set_grad_enabled(mode={self.mode})"


class inference_mode(_ModeContext):
    """Results are inference tensors: no graph, no version counter. `inference_mode(False)` leaves it, with grad on."""

    def __new__(cls, mode: bool | Callable = True) -> Any:
        if isinstance(mode, bool):
            return super().__new__(cls)
        return decorate(mode, cls)

    def __init__(self, mode: bool = True) -> None:
        super().__init__()
        self.mode = mode

    def _target(self) -> Mode:
        return INFERENCE if self.mode else GRAD

    def clone(self) -> _ModeContext:
        return inference_mode(self.mode)
