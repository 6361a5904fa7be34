"""Numbers as people read them. Data files keep plain bytes and milliseconds."""

from __future__ import annotations

import math
import re

UNITS = (("B", 1), ("KiB", 2**10), ("MiB", 2**20), ("GiB", 2**30), ("TiB", 2**40))


def unit_of(nbytes: float) -> tuple[str, int]:
    """(name, bytes) of the unit in which `nbytes` has one to four digits before the point."""
    found = UNITS[0]
    for unit in UNITS:
        if abs(nbytes) >= unit[1]:
            found = unit
    return found


def show_bytes(nbytes: float) -> str:
    """38.1 MiB, 256 B, 0 B; n/a for NaN."""
    if math.isnan(nbytes):
        return "n/a"
    name, scale = unit_of(nbytes)
    if scale == 1:
        return f"{int(nbytes)} B"
    value = nbytes / scale
    return f"{value:.0f} {name}" if value >= 1000 else f"{value:.3g} {name}" if value >= 100 else f"{value:.1f} {name}"


def signed(nbytes: float) -> str:
    """+38.1 MiB, -256 B; "same" for 0."""
    return "same" if not nbytes else ("+" if nbytes > 0 else "-") + show_bytes(abs(nbytes))


def show_ms(ms: float) -> str:
    """1.23 ms, 12.3 us, 1.2 s; n/a for NaN."""
    if math.isnan(ms):
        return "n/a"
    if ms >= 1000:
        return f"{ms / 1000:.2f} s"
    if ms < 0.1:
        return f"{ms * 1000:.1f} us"
    return f"{ms:.3g} ms" if ms < 100 else f"{ms:.0f} ms"


def show_spread(median: float, q1: float, q3: float) -> str:
    """median [q1-q3] in one unit; n/a for NaN."""
    if math.isnan(median):
        return "n/a"
    name, scale = ("s", 1e-3) if median >= 1000 else ("us", 1e3) if median < 0.1 else ("ms", 1.0)
    digits = max(0, 2 - int(math.floor(math.log10(max(median * scale, 1e-9)))))
    a, b, c = (f"{v * scale:.{min(digits, 3)}f}" for v in (median, q1, q3))
    return f"{a} {name} [{b}-{c}]"


def show_count(n: float) -> str:
    """Whole numbers with thousands separated; n/a for NaN."""
    return "n/a" if isinstance(n, float) and math.isnan(n) else f"{int(n):,}"


def percent_less(less: float, more: float) -> str:
    """How much smaller `less` is than `more`: '45 % less', 'the same'."""
    if more <= 0 or less == more:
        return "the same"
    change = 100 * (more - less) / more
    if abs(change) < 0.5:
        return "about the same"
    return f"{change:.0f} % less" if change > 0 else f"{-change:.0f} % more"


def parse_bytes(text: str) -> int:
    """1024 of "1024", "1 KiB", "1KiB" or "1kb"; units of 1000 are not offered.

    Raises:
        ValueError: it is no size.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*([KMGT]?)(i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"'{text}' is no size; expected bytes, or a number with KiB, MiB, GiB or TiB")
    return round(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
