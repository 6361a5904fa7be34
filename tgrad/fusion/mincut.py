"""Which values of a computation are cheapest to keep, so that others can be computed again from them.

The minimum cut of a flow network in which every value is an edge of the capacity that it costs; found with augmenting
paths, shortest first (Edmonds and Karp, 1972). PyTorch's compiler decides so what to save for backward.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

_WITHOUT_BOUND = 1 << 62


def cheapest_cut(
    costs: Mapping[Any, int | None], before: Mapping[Any, Sequence[Any]], needed: Iterable[Any]
) -> set[Any]:
    """The values of least total cost from which all `needed` follow.

    Args:
        costs: of every value, None where it cannot be kept.
        before: what a value is computed from; the others are given, and can be kept.
        needed: values; those that are given cannot be avoided.
    """
    edges: dict[Hashable, dict[Hashable, int]] = {}

    def connect(a: Hashable, b: Hashable, capacity: int) -> None:
        edges.setdefault(a, {})[b] = capacity
        edges.setdefault(b, {}).setdefault(a, 0)

    for value, cost in costs.items():
        connect((value, "in"), (value, "out"), _WITHOUT_BOUND if cost is None else cost)
        for source in before.get(value, ()):
            if source in costs:
                connect((source, "out"), (value, "in"), _WITHOUT_BOUND)
        if value not in before:
            connect("source", (value, "in"), _WITHOUT_BOUND)
    edges.setdefault("sink", {})
    for value in needed:
        connect((value, "out"), "sink", _WITHOUT_BOUND)
    while True:
        came = _search(edges)
        if "sink" not in came:
            return {v for v in costs if (v, "in") in came and (v, "out") not in came}
        path, at = [], "sink"
        while at != "source":
            path.append((came[at], at))
            at = came[at]
        room = min(edges[a][b] for a, b in path)
        for a, b in path:
            edges[a][b] -= room
            edges[b][a] += room


def _search(edges: dict[Hashable, dict[Hashable, int]]) -> dict[Any, Any]:
    """From where each place that still can be reached was reached first."""
    came: dict[Hashable, Hashable] = {"source": None}
    queue: deque[Hashable] = deque(["source"])
    while queue:
        a = queue.popleft()
        for b, room in edges.get(a, {}).items():
            if room > 0 and b not in came:
                came[b] = a
                queue.append(b)
    return came
