"""The names of movement, indexing, sorting and random draws: which are functions, methods, or both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tgrad.ops import advanced, bins, indexing, joining, masks, movement, random, ranges, running, selection, sorting

# Functions whose first argument is a tensor, which are methods too.
_THEMES: tuple[Any, ...] = (indexing.BOTH, masks.BOTH, joining.BOTH, movement.BOTH, sorting.BOTH, random.BOTH,
                            selection.BOTH, running.BOTH, bins.BOTH)  # fmt: skip
BOTH: dict[str, Callable[..., Any]] = {f.__name__: f for theme in _THEMES for f in theme}
BOTH |= {**movement.ALIASES, "index_put": advanced.index_put}
# Functions only.
FREE: dict[str, Callable[..., Any]] = {**joining.FREE, **random.FREE, **ranges.FREE, **bins.FREE}
# Methods only.
METHODS: dict[str, Callable[..., Any]] = {
    **movement.METHODS, **ranges.METHODS, "index_put_": advanced.index_put_,
    **{f.__name__: f for f in (*indexing.IN_PLACE, *masks.IN_PLACE, *random.IN_PLACE)},
}  # fmt: skip
