"""The grad modes, under PyTorch's second name for them; and a switch that is kept for its name."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from tgrad.decorators import decorate
from tgrad.modes import enable_grad, inference_mode, no_grad, set_grad_enabled

__all__ = [
    "enable_grad", "inference_mode", "is_multithreading_enabled", "no_grad", "set_grad_enabled",
    "set_multithreading_enabled",
]  # fmt: skip

_multithreading: ContextVar[bool] = ContextVar("tgrad_multithreading", default=True)


def is_multithreading_enabled() -> bool:
    """What `set_multithreading_enabled` was last told in this thread."""
    return _multithreading.get()


class set_multithreading_enabled:
    """Remember whether backward may use several threads: at once, and as a context manager until the block's end.

    tgrad's backward runs in the thread that calls it either way. As a decorator it acts in the function alone.
    """

    def __init__(self, mode: bool) -> None:
        self.prev, self.mode = _multithreading.get(), mode
        _multithreading.set(mode)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        _multithreading.set(self.prev)

    def clone(self) -> set_multithreading_enabled:
        """Another for the same mode."""
        return type(self)(self.mode)

    def __call__(self, function: Callable) -> Callable:
        _multithreading.set(self.prev)
        return decorate(function, self.clone)
