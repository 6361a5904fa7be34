"""What must not happen again when a block's forward is run a second time for backward."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Watched(Protocol):
    """A block's forward while it runs the first time."""

    only_once: bool


_watched: ContextVar[Watched | None] = ContextVar("tgrad_block", default=None)
_again: ContextVar[bool] = ContextVar("tgrad_again", default=False)
_second: ContextVar[bool] = ContextVar("tgrad_second_run", default=False)

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
def second_run() -> Iterator[None]:
    """Inside the block, `is_second_run` says so."""
    before = _second.set(True)
    try:
        yield
    finally:
        _second.reset(before)
