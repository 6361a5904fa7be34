"""Markers for pytest: a test that takes more memory than it may fails.

    @pytest.mark.limit_peak("1 MiB")    # the most that is live during the test, beyond what was before
    @pytest.mark.limit_saved("64 KiB")  # distinct memory saved for backward, leaves left out
    @pytest.mark.limit_leaks("0 B")     # what is live after the test and was not before; says which variable holds it

Switch it on with `pytest -p tgrad.profiler.pytest_plugin`, or `pytest_plugins = ["tgrad.profiler.pytest_plugin"]` in
the root conftest.py. Exact on any machine: bytes as requested, not as an allocator rounds them. It does not load by
itself: it imports tgrad, and so torch and Triton, which is seconds for every run of pytest where tgrad is installed.
"""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest

from tgrad.profiler.leaks import Births, holders
from tgrad.profiler.origins import recorded
from tgrad.profiler.recording import record
from tgrad.profiler.units import parse_bytes, show_bytes
from tgrad.storage import ledger

LIMITS = {
    "limit_peak": ("peak_bytes", "is live at most"),
    "limit_saved": ("saved_bytes", "is saved for backward"),
    "limit_leaks": ("leaked_bytes", "is live after the test and was not before"),
}


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known."""
    for name, (_, what) in LIMITS.items():
        config.addinivalue_line("markers", f"{name}(size): fail if more than size, such as '1 MiB', {what} in the test")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Record the test if it has a limit, and hold it against that."""
    limits = {name: _limit(item, name) for name in LIMITS if item.get_closest_marker(name) is not None}
    if not limits:
        return (yield)
    births = Births()
    with ledger.subscribe(births), recorded(), record() as found:
        result = yield
        gc.collect()
    for name, limit in limits.items():
        figure, what = LIMITS[name]
        taken = sum(births.live.values()) if name == "limit_leaks" else getattr(found, figure)
        if taken > limit:
            who = [h.sentence() for h in holders(set(births.live))] if name == "limit_leaks" else []
            said = (
                f"{name}: {show_bytes(taken)} ({taken:,} bytes) {what}, and the limit is {show_bytes(limit)} "
                f"({limit:,} bytes)"
            )
            pytest.fail("\n".join([said, *who]), pytrace=False)
    return result


def _limit(item: pytest.Item, name: str) -> int:
    marker = item.get_closest_marker(name)
    assert marker is not None
    given = marker.args[0] if len(marker.args) == 1 else None
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    try:
        if not isinstance(given, str):
            raise ValueError(f"expected one size, got {marker.args}")
        return parse_bytes(given)
    except ValueError as error:
        raise pytest.UsageError(f"{item.nodeid}: {name}: {error}") from None
