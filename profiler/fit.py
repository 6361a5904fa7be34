"""A straight line through points, with 95 % intervals: bytes against batch size, bytes against iterations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t: 97.5 % quantiles for 1, 2, ... degrees of freedom.
T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
    2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """y = intercept + slope * x. slope_ci: half the width of the slope's 95 % interval; NaN from two points."""

    slope: float
    intercept: float
    slope_ci: float
    spread: float  # standard deviation of the residuals
    mean_x: float
    sum_xx: float
    n: int

    def at(self, x: float) -> float:
        """The line's value."""
        return self.intercept + self.slope * x

    def half_width(self, x: float) -> float:
        """Half the 95 % interval of a new point at x; NaN from two points."""
        if self.n < 3:
            return math.nan
        return quantile(self.n - 2) * self.spread * math.sqrt(1 + 1 / self.n + (x - self.mean_x) ** 2 / self.sum_xx)


def quantile(freedom: int) -> float:
    """Student's t at 97.5 %."""
    return T[freedom - 1] if freedom <= len(T) else 1.96 + 2.5 / freedom


def line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least squares.

    Raises:
        ValueError: fewer than two different x.
    """
    n = len(x)
    mean_x, mean_y = sum(x) / max(n, 1), sum(y) / max(n, 1)
    sum_xx = sum((v - mean_x) ** 2 for v in x)
    if n < 2 or not sum_xx:
        raise ValueError("a line takes two points with different x")
    slope = sum((v - mean_x) * (w - mean_y) for v, w in zip(x, y)) / sum_xx
    intercept = mean_y - slope * mean_x
    left = sum((w - intercept - slope * v) ** 2 for v, w in zip(x, y))
    spread = math.sqrt(left / (n - 2)) if n > 2 else math.nan
    ci = quantile(n - 2) * spread / math.sqrt(sum_xx) if n > 2 else math.nan
    return Line(slope, intercept, ci, spread, mean_x, sum_xx, n)
