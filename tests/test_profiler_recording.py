"""`record`, and the limits of the pytest plugin, which runs in a pytest of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import tgrad
from tgrad import graph, nn
from tgrad.profiler import record
from tgrad.storage import ledger

ROOT = Path(__file__).resolve().parent.parent


def test_a_block():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), tgrad.ones(4, 8)
    model(x)  # plans are made
    with record("forward") as r:
        y = model(x)
    # Linear's result, which ReLU turns into its own: both are live for a moment, the second stays.
    assert (r.peak_bytes, r.kept_bytes, r.saved_bytes, r.saved_tensors) == (2 * 128, 128, 128 + 128, 2)
    assert r.wall_ms > 0 and str(r).startswith(
        "forward: peak +256 B, kept +128 B, saved for backward 256 B in 2 tensors"
    )
    with record() as r, tgrad.no_grad():
        model(x)
    assert (r.saved_bytes, r.kept_bytes) == (0, 0)
    with record() as r:
        y.sum().backward()
        del y
    assert r.kept_bytes == 4 * (64 + 8) - 128


def test_nested_and_left_by_an_exception():
    before = ledger.listeners, graph.on_save
    with pytest.raises(ValueError, match="stop"), record() as outer, record() as inner:
        tgrad.ones(4).requires_grad_().exp()
        raise ValueError("stop")
    assert outer.saved_bytes == inner.saved_bytes == 16
    assert (ledger.listeners, graph.on_save) == before


def test_a_decorator():
    @record()
    def double(x):
        """Twice."""
        return x * 2

    double(tgrad.ones(4))
    assert double.__doc__ == "Twice." and double.recorded.kept_bytes == 16
    assert str(double.recorded).startswith("double: ")
    assert double.recorded._repr_html_().startswith("<p>double: peak +16 B")


TESTS = """
import pytest
import tgrad

def keeps():
    return tgrad.ones(256).requires_grad_().exp()

@pytest.mark.limit_saved("1 KiB")
@pytest.mark.limit_peak(1 << 20)
def test_within(): keeps()

@pytest.mark.limit_saved(1023)
def test_saves_too_much(): keeps()

@pytest.mark.limit_peak("1 KiB")
def test_peaks_too_high(): keeps()

@pytest.mark.limit_peak("many")
def test_no_size(): keeps()

def test_without(): keeps()

held = []

@pytest.mark.limit_leaks("0 B")
def test_keeps_nothing(): keeps()

@pytest.mark.limit_leaks(2048)
def test_keeps_little(): held.append(keeps())

@pytest.mark.limit_leaks("1 KiB")
def test_leaks(): held.append(keeps() * 2)
"""


@pytest.mark.thorough
def test_the_plugin(tmp_path):
    (tmp_path / "test_it.py").write_text(TESTS)
    words = ["-m", "pytest", "-p", "tgrad.profiler.pytest_plugin", "--strict-markers", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, *words, "test_it.py"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "4 failed, 4 passed" in done.stdout, done.stdout + done.stderr
    assert "limit_saved: 1.0 KiB (1,024 bytes) is saved for backward, and the limit is 1023 B" in done.stdout
    assert "limit_peak: 2.0 KiB (2,048 bytes) is live at most" in done.stdout
    assert "'many' is no size" in done.stdout
    # The leaf, exp's result that its own graph keeps, and the product.
    assert "limit_leaks: 3.0 KiB (3,072 bytes) is live after the test and was not before" in done.stdout
    assert "held[1] in module test_it holds a 256 tensor made by Mul at test_it.py:" in done.stdout


def test_peaks_of_nested_blocks_and_of_the_process():
    ledger.peak_bytes = before = max(ledger.peak_bytes, ledger.live_bytes + 4096)
    with record() as outer:
        tgrad.ones(200)
        with record() as inner:
            tgrad.ones(100)
    assert (outer.peak_bytes, inner.peak_bytes) == (800, 400) and ledger.peak_bytes == before
    with record():
        tgrad.ones(2000)
    assert ledger.peak_bytes == max(before, ledger.live_bytes + 8000)


def test_one_storage_saved_twice_counts_once():
    x = tgrad.ones(16).requires_grad_()
    with record() as r:
        y = x.exp()
        y * y.view(4, 4).reshape(16)
    assert r.saved_bytes == 64 and r.saved_tensors == 3


def test_what_was_used_and_left_leaves_nothing():
    """With the profiler off, an op takes the very path it took before (tests/benchmarks/profiler.py times it)."""
    from tests.benchmarks.profiler import use_and_leave
    from tgrad import dispatch
    from tgrad.graph import Packed, Saved

    def hooks():
        return (
            dispatch.observer, graph.on_save, graph.find_origin, graph.before_write, Saved.unpack, Packed.unpack,
            ledger.listeners,
        )  # fmt: skip

    before = hooks()
    use_and_leave()
    assert hooks() == before and before[0] is None and before[1] is None and before[2] is None
