"""Long runs: at most so many rows are listed, what is not listed keeps its sums, and the report stays small."""

import math
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tests.test_profiler_report import event, run, saved
from tgrad.profiler import aggregate, lifetimes, plots, profile, rows, timeline
from tgrad.profiler.exports import snapshot, trace
from tgrad.profiler.kept import Kept
from tgrad.profiler.measure import Records
from tgrad.profiler.reading import load
from tgrad.profiler.records import ALL_MODES, REST, SampleRecord, columns
from tgrad.profiler.report import Report
from tgrad.profiler.scale import Point, Scale, law
from tgrad.profiler.timeline import Timeline
from tgrad.profiler.torch_twin import TwinRecord

HEAD = ("r", "w", "grad")
PHASES = ("forward", "backward", "after")


@pytest.fixture(scope="module")
def long_run():
    """(timeline of 100,000 events with at most 500 listed, all events as (phase, action, id, bytes, live))."""
    draw, ledger = random.Random(0), SimpleNamespace(live_bytes=1000)
    seen, live = [], {}
    before, timeline.ledger = timeline.ledger, ledger
    try:
        found = Timeline(500)
        for i in range(100_000):
            found.phase = PHASES[i * 3 // 100_000]
            if live and (draw.random() < 0.5 or len(live) > 300):
                number = draw.choice(list(live)[:50])
                size, action, tell = live.pop(number), "free", found.freed
                ledger.live_bytes -= size
            else:
                number, size, action, tell = i, draw.choice((0, 4, 64, 64, 4096)), "alloc", found.allocated
                live[number] = size
                ledger.live_bytes += size
            tell(SimpleNamespace(id=number, nbytes=size))
            seen.append((found.phase, action, number, size, ledger.live_bytes))
    finally:
        timeline.ledger = before
    return found, seen


def test_a_long_timeline_is_bounded_and_its_sums_are_exact(long_run):
    found, seen = long_run
    assert 100 < len(found.events) <= 500
    for phase in PHASES:
        assert found.peak(0, [phase]) == max(s[4] for s in seen if s[0] == phase)
        for action in ("alloc", "free"):
            mine = [s[3] for s in seen if s[:2] == (phase, action)]
            listed = [e[3] for e in found.events if (e[5], e[1]) == (phase, action)]
            rest = found.rest[phase, action]
            assert (rest.count + len(listed), rest.bytes + sum(listed)) == (len(mine), sum(mine))
    # Of a storage both events are listed or none, and the largest are.
    made, freed = ({e[2] for e in found.events if e[1] == a} for a in ("alloc", "free"))
    assert freed == {s[2] for s in seen if s[1] == "free"} & made
    assert {e[3] for e in found.events} == {4096}


def test_rows_of_a_long_timeline_add_up_to_the_ledger_at_every_moment(long_run):
    found, seen = long_run
    events = aggregate.events_frame(rows.event_rows(found, lambda i: "temporary", HEAD, rows.Numbering()))
    assert len(events) <= 500 + 1 + 6 + 1 and events["t_ns"].is_monotonic_increasing
    assert events["count"].sum() == 100_000
    took = events[events["action"].str.startswith("alloc")]["bytes"].sum()
    assert took == sum(s[3] for s in seen if s[1] == "alloc")
    live = aggregate.live_by_category(events, {"parameter": 1000})
    total = live[[c for c in live.columns if c not in ("t_ns", "phase")]].sum(axis=1)
    assert list(total[1:]) == list(events["live_bytes"]) and total[0] == 1000
    peak = max(s[4] for s in seen)
    assert total.max() == peak
    table = lifetimes.at_peak(aggregate.saved_frame([]), events, "w")
    assert table["bytes"].sum() == peak - 1000 and (table["op"] == REST).sum() == 1


def test_a_short_timeline_has_every_event_and_no_rest():
    found = Timeline(10)
    for i in range(10):
        found.allocated(SimpleNamespace(id=i, nbytes=i))
    assert len(found.events) == 10 and not found.rest
    assert [r.count for r in rows.event_rows(found, lambda i: "other", HEAD, rows.Numbering())] == [1] * 10


def test_saved_tensors_beyond_the_limit_keep_their_sums():
    def kept(i, size):
        return Kept("Relu", "out", (size,), "float32", i, size, size, False, "m", "f.py", 1, "f", 0, "why", "result", i)

    given = [kept(i // 2, 8 * (i // 2 % 50)) for i in range(1000)]
    kinds = {i: ("intermediate", "input")[i % 2] for i in range(500)}
    found = rows.saved_rows(given, [(-1, -1, -1)] * 1000, kinds.get, HEAD, rows.Numbering(), limit=100)
    frame = aggregate.saved_frame(found)
    assert len(frame) == 102 and list(frame["op"][-2:]) == [REST] * 2
    assert frame["tensors"].sum() == 1000
    assert frame["logical_bytes"].sum() == sum(k.logical_bytes for k in given)
    for kind in ("intermediate", "input"):
        mine = frame[frame["category"] == kind]
        assert mine["charged_bytes"].sum() == sum(8 * (i % 50) for i in range(500) if kinds[i] == kind)
    assert frame["charged_bytes"][:100].min() >= 8 * 40
    assert aggregate.saved_by_source(frame)["tensors"].sum() == 1000


@pytest.fixture(scope="module")
def short_and_long(tmp_path_factory):
    """Two reports of one workload: one that lists all, one that lists little."""
    given = {"batch_size": 4, "width": 8, "depth": 4, "repeats": 1, "warmup": 0}
    whole = profile("mlp", ["grad", "no_grad"], **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timeline, "LIMIT", 12)
        patch.setattr(rows, "LIMIT", 5)
        cut = profile("mlp", ["grad", "no_grad"], **given)
    return whole, cut


def test_a_run_that_lists_little_has_the_same_figures(short_and_long, tmp_path):
    whole, cut = short_and_long
    assert len(cut.records.events) < len(whole.records.events) and len(cut.records.saved) < len(whole.records.saved)
    exact = [c for c in columns(type(whole.records.runs[0])) if c.endswith("_bytes") or c in ("nodes", "forward_ops")]
    for a, b in zip(whole.records.runs, cut.records.runs, strict=True):
        assert [getattr(a, c) for c in exact] == [getattr(b, c) for c in exact]
    for report in short_and_long:
        mine = report.saved[~report.saved["category"].isin(("parameter", "constant"))]
        assert mine["charged_bytes"].sum() == report.runs["graph_bytes"].sum()
    assert cut.saved["tensors"].sum() == whole.saved["tensors"].sum()
    assert cut.events["count"].sum() == whole.events["count"].sum()
    loaded = load(cut.save(tmp_path / "out"))
    page = (tmp_path / "out" / "report.html").read_text()
    assert REST in page
    counters = [e["args"] for e in trace(loaded)["traceEvents"] if e["ph"] == "C" and e["pid"] == 1]
    assert max(sum(a.values()) for a in counters) == cut.runs["peak_bytes"][0]
    assert snapshot(loaded)["device_traces"][0]


def deep(layers=48):
    """A report of a model of so many layers in six modes, with a twin and a scale law, made by hand: no engine runs."""
    records, names = Records(), [f"blocks.{i}.{part}" for i in range(layers) for part in ("attention", "mlp")]
    for mode in ALL_MODES:
        records.runs.append(run("deep", mode))
        records.samples += [
            SampleRecord("r", "deep", mode, phase, i, False, 1.0 + i / 7, 1.0, math.nan)
            for phase in ("forward", "backward") for i in range(10)
        ]  # fmt: skip
        live, action = 1000, "alloc"
        for t in range(10 * layers):
            action, size = ("alloc", "free")[t >= 5 * layers], 640 + t % 5 * 64
            live += size if action == "alloc" else -size
            phase = "forward" if action == "alloc" else "backward"
            records.events.append(event(t * 10_000, action, size, live, "intermediate", phase, mode, "deep"))
    for i, name in enumerate(names):
        row = saved(i, module=name, storage=i + 1, charged=4096, workload="deep", saved_at_ns=i, used_at_ns=10**9 - i)
        records.saved.append(row)
        records.twin_saved.append(replace(row, mode="torch", charged_bytes=4096 + i % 3 * 512))
    records.twins.append(TwinRecord(1, 0, 0, 0, 1, 1, 1, workload="deep"))
    points = [Point("deep", m, n, n, 1000 + 10 * n, n == 64) for m in ALL_MODES for n in (8, 16, 32, 64)]
    laws = [law([p for p in points if p.mode == m], "peak_bytes", 10_000) for m in ALL_MODES]
    return Report(records, {"is_interpreted": True}, {}, [Scale("deep", points, laws)])


@pytest.mark.thorough
def test_the_page_of_48_layers_is_below_two_megabytes(tmp_path):
    deep().save(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_bytes()
    assert 100_000 < len(page) < 2_000_000
    assert page.count(b"<figure>") == 8


def test_a_crowded_timeline_keeps_its_outline():
    sizes = [random.Random(0).randrange(1000) for _ in range(5000)]
    sizes[1234] = 5000
    shown = plots._outline(np.array(sizes))
    assert len(shown) <= plots.MOMENTS + 2 and {0, 1234, 4999} <= set(shown.tolist())
    assert list(plots._outline(np.array(sizes[:50]))) == list(range(50))
