"""Figures: what they draw is what was measured. None is looked at here."""

import math

import pandas as pd
import pytest

from tests.test_profiler_report import event, saved
from tgrad.profiler import aggregate, leak_plot, lifetimes, plots_kept, plots_times, twins
from tgrad.profiler.cli import main
from tgrad.profiler.latency import interval
from tgrad.profiler.leaks import Leaks
from tgrad.profiler.records import SampleRecord


def labels(figure, axis=0):
    return [t.get_text() for t in figure.axes[axis].get_yticklabels()]


def test_lifetimes_are_bars_from_save_to_use():
    rows = [
        saved(0, module="first", storage=1, saved_at_ns=1_000_000, used_at_ns=9_000_000),
        saved(1, module="second", storage=2, saved_at_ns=3_000_000, used_at_ns=7_000_000),
        saved(2, module="never used", storage=3, saved_at_ns=3_000_000),
    ]
    events = aggregate.events_frame([event(0, "alloc", 64, 64), event(10_000_000, "free", 64, 0)])
    table = lifetimes.idle(aggregate.saved_frame(rows), events, "mlp")
    figure = plots_kept.lifetimes(table, "mlp", False)
    assert labels(figure) == ["first · Relu", "second · Relu"]
    assert [(p.get_x(), p.get_width()) for p in figure.axes[0].patches] == [(1.0, 8.0), (3.0, 4.0)]
    assert plots_kept.lifetimes(table[table["idle_ms"].isna()], "mlp", False) is None


def test_the_dumbbell_has_a_dot_an_engine_and_says_the_difference():
    ours = aggregate.saved_frame([saved(i, module=f"m{i}", storage=i, charged=100) for i in range(20)])
    theirs = ours.assign(charged_bytes=[100 + (i == 7) * 30 for i in range(20)])
    figure = plots_kept.dumbbell(twins.beside(ours, theirs), "mlp")
    shown = labels(figure)
    assert "m7" in shown and shown[-1] == "7 others" and len(shown) == 14
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    y = shown.index("m7")
    assert sorted(float(d.get_xdata()[0]) for d in dots if d.get_ydata()[0] == y) == [100, 130]
    assert [t.get_text() for t in figure.axes[0].texts][y] == "tgrad -30 B"
    assert plots_kept.dumbbell(twins.beside(ours[:0], theirs[:0]), "mlp") is None


def test_latency_is_the_distribution_and_the_interval_of_the_median():
    values = [4.0, 1.0, 3.0, 2.0]
    samples = [SampleRecord("r", "w", "grad", "forward", i, False, v, v, math.nan) for i, v in enumerate(values)]
    samples.append(SampleRecord("r", "w", "grad", "forward", -1, True, 99.0, 99.0, math.nan))
    figure = plots_times.latency(aggregate.samples_frame(samples), "w", True)
    curve, between, middle = figure.axes[0].lines
    assert list(curve.get_xdata()) == [1, 1, 2, 3, 4] and list(curve.get_ydata()) == [0, 0.25, 0.5, 0.75, 1]
    assert tuple(between.get_xdata()) == interval(sorted(values)) and list(middle.get_xdata()) == [2.5]
    assert "not GPU performance" in figure.axes[0].get_xlabel()
    assert plots_times.latency(aggregate.samples_frame([]), "w", True) is None


@pytest.mark.thorough
def test_the_plot_of_a_leak(tmp_path, monkeypatch, capsys):
    grows = Leaks([100, 200, 300, 400], 100.0, 0.0)
    figure = leak_plot.draw(grows)
    line, dots = figure.axes[0].lines
    assert list(dots.get_ydata()) == [100, 200, 300, 400]
    assert list(line.get_ydata()) == pytest.approx([100, 200, 300, 400])
    assert "100 B ± 0 B more" in figure.get_suptitle()
    assert "does not grow" in leak_plot.draw(Leaks([5, 5, 5, 5], 0.0, 0.0)).get_suptitle()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.py").write_text(
        "import tgrad\nlosses = []\nw = tgrad.ones(8, requires_grad=True)\n"
        "def step():\n    losses.append((w * w).sum())\n"
    )
    assert main(["leaks", "loop.py:step", "--iterations", "4", "--out", "out"]) == 1
    assert "out/leaks.png" in capsys.readouterr().out
    frame = pd.read_csv("out/leaks.csv")
    assert list(frame.columns) == ["iteration", "live_bytes"]
    assert len(frame) == 5 and frame["live_bytes"].is_monotonic_increasing
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"leaks.csv", "leaks.png", "leaks.svg"}
