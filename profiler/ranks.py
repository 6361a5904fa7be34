"""The rank test of Mann and Whitney, and medians: whether one set of times lies above another."""

from __future__ import annotations

import math
from collections.abc import Sequence

EXACT = 20  # values on a side up to which the distribution is counted instead of approximated


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> float:
    """The probability, if a and b came from one distribution, of values in b as far above those of a as these.

    One-sided: small where b lies above a. Counted exactly for up to 20 values on a side without ties; else the normal
    approximation with its corrections for ties and continuity. NaN if either is empty or holds a NaN.
    """
    if not a or not b or any(map(math.isnan, (*a, *b))):
        return math.nan
    u = sum((y > x) + 0.5 * (y == x) for y in b for x in a)
    m, n = len(a), len(b)
    counts: dict[float, int] = {}
    for v in (*a, *b):
        counts[v] = counts.get(v, 0) + 1
    if len(counts) == m + n and max(m, n) <= EXACT:
        ways = _distribution(m, n)
        return sum(ways[int(u) :]) / sum(ways)
    total = m + n
    ties = sum(t**3 - t for t in counts.values())
    variance = m * n / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0  # every value is the same
    return 0.5 * math.erfc((u - m * n / 2 - 0.5) / math.sqrt(2 * variance))


def _distribution(m: int, n: int) -> list[int]:
    """In how many of the orders of m values and n others the statistic U is 0, 1, ..., m * n."""
    # The coefficients of the Gaussian binomial: the product of (1 - x^(n + i)) / (1 - x^i) for i from 1 to m.
    ways = [1] + [0] * (m * n)
    for i in range(1, m + 1):
        for k in range(m * n, n + i - 1, -1):
            ways[k] -= ways[k - n - i]
        for k in range(i, m * n + 1):
            ways[k] += ways[k - i]
    return ways


def median(values: Sequence[float]) -> float:
    """The middle value; NaN of none."""
    if not values:
        return math.nan
    ordered, half = sorted(values), len(values) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
