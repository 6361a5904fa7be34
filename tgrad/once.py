"""What must not happen again when a block's forward is run a second time for backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol


class Watched(Protocol):
    """A block's forward while it runs the first time."""

    only_once: bool


_watched: ContextVar[Watched | None] = ContextVar("tgrad_block", default=None)
_again: ContextVar[bool] = ContextVar("tgrad_again", default=False)
_second: ContextVar[bool] = ContextVar("tgrad_second_run", default=False)

# In a second run that may end early: called with an op and its arguments before a linear layer's product.
ending: ContextVar[Callable[[Any, tuple], None] | None] = ContextVar("tgrad_ending", default=None)

# Whether a second run is on: running statistics do not move then.
is_again = _again.get

# Whether what a checkpoint or a block did not keep is being made again.
is_second_run = _second.get


@contextmanager
def watch(block: Watched) -> Iterator[None]:
    """Inside the block, `happened` marks it as one that cannot be run again."""
    before = _watched.set(block)
    try:
        yield
    finally:
        _watched.reset(before)


def happened() -> None:
    """What a second run would not do alike was done: a user's own function, or a draw from a user's generator."""
    block = _watched.get()
    if block is not None:
        block.only_once = True


class again:
    """A context: a second run. It may be entered more than once."""

    def __enter__(self) -> None:
        self._before = _again.set(True)

    def __exit__(self, *exception: object) -> None:
        _again.reset(self._before)


@contextmanager
def second_run(end_before: Callable[[Any, tuple], None] | None = None) -> Iterator[None]:
    """Inside the block, `is_second_run` says so, and `ending` is `end_before`."""
    before, outer = _second.set(True), ending.set(end_before)
    try:
        yield
    finally:
        _second.reset(before)
        ending.reset(outer)
