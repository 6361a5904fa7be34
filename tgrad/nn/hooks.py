"""Handles of registered hooks, for modules and optimisers."""

from __future__ import annotations

import itertools
from collections.abc import Callable

_ids = itertools.count()


class RemovableHandle:
    """Removes a hook from the dictionaries it was put into; removing twice does nothing. Also a context manager."""

    def __init__(
        self, hook: Callable, hooks: dict[int, Callable], *flags: dict[int, bool], prepend: bool = False
    ) -> None:
        self.id = next(_ids)
        self._tables: tuple[dict, ...] = (hooks, *flags)
        hooks[self.id] = hook
        for table in flags:
            table[self.id] = True
        if prepend:
            others = [(k, h) for k, h in hooks.items() if k != self.id]
            hooks.clear()
            hooks[self.id] = hook
            hooks.update(others)

    def remove(self) -> None:
        """Unregister the hook."""
        for table in self._tables:
            table.pop(self.id, None)

    def __enter__(self) -> RemovableHandle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()
