"""Aggregation and the report's files, on records made by hand: no engine runs here."""

import csv
import io
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from tgrad.profiler import (
    aggregate,
    datafiles,
    figures,
    html,
    markdown,
    output,
    plots,
    plots_kept,
    sections,
    tables,
    units,
    words,
)
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.measure import Records
from tgrad.profiler.records import EventRow, RunRecord, SampleRecord, SavedRow, columns, row
from tgrad.profiler.report import Report

NAN = float("nan")


def run(workload="mlp", mode="grad", **changes) -> RunRecord:
    values = {
        f: 0.0 if f.endswith(("_ms", "_us", "per_op")) else "x" if t == "str" else 0
        for f, t in RunRecord.__annotations__.items()
    }
    values |= {
        "run_id": f"{workload}/{mode}", "created_at": "2026-01-02T03:04:05+00:00", "workload": workload, "mode": mode,
        "is_interpreted": True, "held": 1, "parameters_bytes": 1000, "live_before_bytes": 1000, "peak_bytes": 3000,
        "forward_wall_q1_ms": 1.0, "forward_wall_median_ms": 2.0, "forward_wall_q3_ms": 3.0, "host_us_per_op": 12.0,
        "forward_gpu_median_ms": NAN, "backward_gpu_median_ms": NAN, "forward_kernels": 3,
    }  # fmt: skip
    if mode == "grad":
        values |= {"graph_bytes": 900, "intermediates_bytes": 600, "inputs_held_bytes": 300, "backward_kernels": 6}
    else:
        values |= {f"backward_wall_{q}_ms": NAN for q in ("q1", "median", "q3")}
    return RunRecord(**(values | changes))


def saved(seq, category="intermediate", module="0", storage=1, charged=64, workload="mlp", **changes) -> SavedRow:
    record = SavedRow(
        f"{workload}/grad", workload, "grad", seq, "Relu", "out", category, module, "model.py", 7, "forward", "4x4",
        "float32", storage, False, 64, 64, charged,
    )  # fmt: skip
    return replace(record, **changes)


def event(t, action, size, live, category="temporary", phase="forward", mode="grad", workload="mlp") -> EventRow:
    return EventRow(f"{workload}/{mode}", workload, mode, t, action, t, size, live, phase, category)


def make_report() -> Report:
    modes = ("grad", "no_grad", "inference_mode")
    records = Records()
    for workload in ("mlp", 'a<b>&"c"'):
        records.runs += [run(workload, m) for m in modes]
        for m in modes:
            records.samples.append(SampleRecord(f"{workload}/{m}", workload, m, "forward", 0, False, 2.0, 1.0, NAN))
        records.saved += [
            saved(0, workload=workload), saved(1, storage=1, charged=0, workload=workload),
            saved(2, "input", "", 2, workload=workload), saved(3, "parameter", "0", 3, workload=workload),
        ]  # fmt: skip
        for m in modes:
            records.events += [
                event(0, "alloc", 600, 1600, "intermediate", mode=m, workload=workload),
                event(1000, "alloc", 300, 1900, "input", mode=m, workload=workload),
                event(2000, "alloc", 1100, 3000, "gradient", "backward", mode=m, workload=workload),
                event(3000, "free", 600, 2400, "intermediate", "backward", mode=m, workload=workload),
            ]
    environment = {"tgrad": "0", "is_interpreted": True, "packages": {"torch": "1"}, "argv": ["tgrad"], "seed": 0}
    return Report(records, environment, {"mlp": "An MLP."})


@pytest.fixture
def report() -> Report:
    return make_report()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A whole report on disk."""
    return make_report().save(tmp_path_factory.mktemp("written") / "new" / "out")


@pytest.fixture
def no_plots(monkeypatch):
    """Drawing takes a second."""
    monkeypatch.setattr(figures, "draw", lambda *a: [])


# --- frames ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "record"),
    [
        (aggregate.runs_frame, RunRecord),
        (aggregate.samples_frame, SampleRecord),
        (aggregate.saved_frame, SavedRow),
        (aggregate.events_frame, EventRow),
    ],
)
def test_a_frame_of_nothing_has_the_columns(make, record):
    frame = make([])
    assert tuple(frame.columns) == columns(record) and len(frame) == 0


def test_frames_are_tidy_and_unscaled():
    frame = aggregate.runs_frame([run(), run(mode="no_grad")])
    assert len(frame) == 2
    assert all(pd.api.types.is_integer_dtype(frame[c]) for c in frame.columns if c.endswith("_bytes"))
    assert all(pd.api.types.is_float_dtype(frame[c]) for c in frame.columns if c.endswith("_ms"))
    assert list(frame["graph_bytes"]) == [900, 0]


def test_summary_adds_kernels_and_keeps_nan():
    table = aggregate.summary(aggregate.runs_frame([run(), run(mode="no_grad")]))
    assert tuple(table.columns) == aggregate.SUMMARY
    assert list(table["kernels"]) == [9, 3]
    assert pd.isna(table["backward_wall_median_ms"][1])


def test_saved_bytes_count_a_storage_once():
    frame = aggregate.saved_frame([saved(0), saved(1, storage=1, charged=0), saved(2, "input", "1", 2)])
    table = aggregate.saved_by_source(frame)
    assert table["bytes"].sum() == 128 and table["tensors"].sum() == 3
    by_module = aggregate.saved_by_module(frame, "mlp")
    assert list(by_module.index) == ["0 · Relu", "1 · Relu"]
    assert by_module.to_numpy().sum() == 128


def test_saved_by_module_leaves_parameters_out_and_names_the_top():
    frame = aggregate.saved_frame([saved(0, module=""), saved(1, "parameter", "0", 2)])
    table = aggregate.saved_by_module(frame, "mlp")
    assert list(table.index) == ["(top level) · Relu"] and list(table.columns) == ["intermediate"]
    assert aggregate.saved_by_module(frame, "other").empty


def test_live_memory_by_category():
    events = aggregate.events_frame(
        [event(0, "alloc", 10, 110, "input"), event(5, "alloc", 40, 150), event(9, "free", 10, 140, "input")]
    )
    table = aggregate.live_by_category(events, {"parameter": 100})
    assert list(table["parameter"]) == [100] * 4
    assert list(table["input"]) == [0, 10, 10, 0]
    sums = table.drop(columns=["t_ns", "phase"]).sum(axis=1)
    assert list(sums) == [100, 110, 150, 140]
    assert aggregate.at_peak(table)["temporary"] == 40


# --- words and units -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (40_000_000, "38.1 MiB"), (2**20 * 300, "300 MiB"), (NAN, "n/a")],
)
def test_bytes_as_people_read_them(value, text):
    assert units.show_bytes(value) == text


@pytest.mark.parametrize(("value", "text"), [(NAN, "n/a"), (0.0123, "12.3 us"), (1.234, "1.23 ms"), (2500, "2.50 s")])
def test_time_as_people_read_it(value, text):
    assert units.show_ms(value) == text


def test_spread_is_in_one_unit():
    assert units.show_spread(10.84, 10.51, 11.29) == "10.8 ms [10.5-11.3]"
    assert units.show_spread(0.02, 0.01, 0.03) == "20.0 us [10.0-30.0]"
    assert units.show_spread(NAN, NAN, NAN) == "n/a"


def test_words_say_bytes():
    one = words.sentence(aggregate.runs_frame([run(), run(mode="no_grad", peak_bytes=1500)]))
    assert "grad keeps 900 B for backward (600 B intermediates, 300 B inputs); no_grad keeps 0 B" in one
    assert "(50 % less)" in one
    held = {"held": 100, "outputs_held_bytes": 500}
    loop = words.sentence(
        aggregate.runs_frame([run(live_after_bytes=2400, **held), run(mode="no_grad", live_after_bytes=1500, **held)])
    )
    assert loop.startswith("100 outputs with their graph hold 1.4 KiB (1,400 bytes)")
    assert "without it (no_grad) 500 B (500 bytes)" in loop
    assert words.sentence(aggregate.runs_frame([run(mode="no_grad")])).startswith("no_grad: 0 B kept for backward")


def test_gpu_times_have_a_column_only_where_there_are_some():
    without = tables.columns(aggregate.runs_frame([run()]))
    with_gpu = tables.columns(aggregate.runs_frame([run(forward_gpu_median_ms=1.5)]))
    assert tables.GPU not in without and tables.GPU in with_gpu


# --- files -----------------------------------------------------------------------------------------------------------
def test_a_report_is_all_its_files(written):
    out = written
    names = {p.name for p in out.iterdir()}
    parquet = {f"{name}.parquet" for name in ("runs", "samples", "saved", "events")}
    assert names == set(output.FILES) | set(output.FOLDERS) | parquet
    stems = [f"{w}-{what}" for w in ("a-b-c-", "mlp") for what in ("icicle", "latency", "peak", "saved", "timeline")]
    pngs, svgs = (sorted(out.glob(f"plots/*.{kind}")) for kind in ("png", "svg"))
    assert [p.stem for p in pngs] == [p.stem for p in svgs] == stems
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in pngs)
    for p in svgs:
        assert ElementTree.parse(p).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert json.loads((out / "env.json").read_text())["seed"] == 0
    assert [p.name for p in out.parent.iterdir()] == ["out"]
    assert out.stat().st_mode & 0o700 == 0o700


@pytest.mark.parametrize(
    ("name", "record"), [("runs", RunRecord), ("samples", SampleRecord), ("saved", SavedRow), ("events", EventRow)]
)
def test_csv_is_the_records(report, written, name, record):
    header, *rows = csv.reader(io.StringIO((written / f"{name}.csv").read_text()))
    assert tuple(header) == columns(record)
    records = getattr(report.records, name)
    assert len(rows) == len(records)
    for text, r in zip(rows, records, strict=True):
        for cell, value in zip(text, row(r), strict=True):
            assert cell == ("" if value != value else str(value))


class Page(HTMLParser):
    """Checks nesting, and collects what matters."""

    VOID = {"meta", "br", "img", "link", "input", "hr"}

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.addresses, self.tags, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "action", "poster", "srcset"):
                self.addresses.append(value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_no_network_and_is_well_formed(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open
    assert all(a.startswith("#") for a in page.addresses), page.addresses
    assert not re.search(r"https?://|//cdn|@import|url\((?!#)", text)
    assert "link" not in page.tags and "iframe" not in page.tags
    assert len(page.ids) == len(set(page.ids))
    assert {a[1:] for a in page.addresses} <= set(page.ids)
    assert page.tags.count("svg") == page.tags.count("figcaption") == 10 and page.tags.count("table") == 14
    assert "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    assert "<b>" not in text and "a&lt;b&gt;&amp;" in text


def test_interpreter_timings_are_labelled_wherever_they_are(report, written):
    label = "Triton interpreter on the CPU: not GPU performance"
    assert (written / "report.html").read_text().count(label) >= 3  # once for the page, once a table of times
    assert label in (written / "summary.md").read_text()
    report.environment["is_interpreted"] = False
    assert label not in html.page(report, {}) and label not in markdown.page(report, {})


def test_the_timeline_says_who_took_the_time(report):
    table = aggregate.live_by_category(aggregate.events_frame([event(0, "alloc", 1, 1), event(9, "free", 1, 0)]), {})
    for interpreted in (True, False):
        fig = plots.memory_over_time({"grad": table}, "mlp", interpreted)
        assert ("not GPU performance" in fig.axes[-1].get_xlabel()) is interpreted


def test_summary_links_its_plots(written):
    linked = re.findall(r"\]\((plots/[^)]+)\)", (written / "summary.md").read_text())
    assert len(linked) == 10 and all((written / p).is_file() for p in linked)


def test_a_deep_model_is_cut_to_the_largest_bars():
    frame = aggregate.saved_frame([saved(i, module=f"layers.{i}", storage=i, charged=100 + i) for i in range(40)])
    fig = plots.saved_by_module(aggregate.saved_by_module(frame, "mlp"), "mlp")
    labels = [t.get_text() for t in fig.axes[0].get_yticklabels()]
    assert len(labels) == plots.LONGEST and labels[-1] == "27 others" and labels[0] == "layers.27 · Relu"


def test_notebooks_show_a_fragment(report):
    page = Page()
    page.feed(report._repr_html_())
    assert not page.open and "html" not in page.tags and "script" not in page.tags and "table" in page.tags


@pytest.mark.parametrize("name", ["runs", "samples", "saved", "events"])
def test_parquet_is_the_same_frame(report, written, name):
    pytest.importorskip("pyarrow")
    frame = getattr(report, name)
    pd.testing.assert_frame_equal(pd.read_parquet(written / f"{name}.parquet"), frame, check_dtype=False)


def test_without_pyarrow_one_line_says_so(report, no_plots, tmp_path, monkeypatch):
    monkeypatch.setattr(datafiles, "has_parquet", lambda: False)
    out = report.save(tmp_path / "out")
    assert not list(out.glob("*.parquet")) and (out / "runs.csv").is_file()
    for file in ("summary.md", "report.html"):
        assert (out / file).read_text().count("pip install pyarrow") == 1


def test_a_figure_takes_the_colours_of_its_page_and_a_file_does_not(written):
    page = (written / "report.html").read_text()
    drawn = page[page.index("<svg") : page.rindex("</svg>")]
    assert "var(--ink)" in drawn and "var(--paper)" in drawn and "#1f2328" not in drawn
    for used in set(re.findall(r"var\((--[\w-]+)\)", page)):
        assert page.count(f"{used}: #") == 2, used  # once for light, once for dark
    assert "var(" not in (written / "plots" / "mlp-peak.svg").read_text()


# --- parts of the page -----------------------------------------------------------------------------------------------
def test_the_ledger_has_reasons_and_times_and_closes(report):
    report.records.runs[0] = run(outputs_held_bytes=50, live_after_bytes=1950)
    report.records.saved[0] = saved(0, reason="gradient of input", saved_at_ns=1_500_000, used_at_ns=4_000_000)
    shown = sections.workload(report, "mlp", [])["ledger"]
    first = shown["rows"][0]
    assert (first["reason"], first["sizes"], first["times"][:2]) == ("gradient of input", [64, 64, 64], [1.5, 4.0])
    assert first["times"][2] != first["times"][2]  # never freed within the run
    assert shown["closed"].startswith("600 intermediates + 300 inputs held + 50 outputs held = 950 bytes.")
    assert "left 950 bytes live: a residual of 0." in shown["closed"]
    page = html.page(report, {})
    assert "gradient of input" in page and "950 bytes" in page


def test_what_is_live_at_the_peak(report):
    shown = sections.workload(report, "mlp", [])["at_peak"]
    assert [(r["bytes"], r["category"]) for r in shown["rows"]] == [
        (1100, "gradient"), (600, "intermediate"), (300, "input")
    ]  # fmt: skip
    assert "3 storages of this run, 2.0 KiB, with 1000 B that were live before it" in shown["says"]


def test_the_mode_matrix_in_words():
    runs = aggregate.runs_frame([run(nodes=3), run(mode="no_grad", peak_bytes=1500), run(mode="inference_mode")])
    rows = [saved(0, charged=600), saved(1, "input", storage=2, charged=300)]
    said = [
        words.change_sentence(row, True)
        for _, row in aggregate.mode_changes(runs, aggregate.saved_frame(rows)).iterrows()
    ]
    assert said[0] == (
        "no_grad against grad: the graph keeps 900 B less; 2 tensors (900 bytes) no longer saved; 3 nodes fewer in the "
        "graph; the peak is 1.5 KiB lower."
    )
    same = "inference_mode against no_grad: the graph keeps the same bytes; the peak is 1.5 KiB higher"
    assert said[1].startswith(same)


def test_an_icicle_is_as_high_as_the_bytes_and_groups_what_is_small():
    rows = [saved(i, module=f"a.{i}.b.c", storage=i, charged=100 + i) for i in range(40)]
    paths = plots_kept.saved_paths(aggregate.saved_frame(rows), "mlp")
    assert sum(paths.values()) == sum(100 + i for i in range(40))
    assert next(iter(paths)) == ("a", "0", "b.c", "Relu out", "model.py:7")
    grouped = plots_kept._grouped({(f"m{i}", "", "", "op", "line"): 10 for i in range(100)})
    assert sum(grouped.values()) == 1000 and 20 <= len(grouped) <= 30 and ("m0 … m3", "", "", "op", "line") in grouped
    assert plots_kept.icicle(paths, "mlp") is not None and plots_kept.icicle({}, "mlp") is None


# --- a folder that appears complete or not at all --------------------------------------------------------------------
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
def test_nothing_is_left_of_a_report_that_failed(report, no_plots, tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(html, "page", fail)
    with pytest.raises(error):
        report.save(tmp_path / "a" / "b" / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_report_stays_unless_forced(report, no_plots, tmp_path, monkeypatch):
    out = report.save(tmp_path / "out")
    (out / "summary.md").write_text("mine")
    with pytest.raises(ProfilerError, match="--force"):
        report.save(out)
    assert (out / "summary.md").read_text() == "mine"
    report.save(out, force=True)
    assert (out / "summary.md").read_text() != "mine"
    (out / "summary.md").write_text("mine")
    monkeypatch.setattr(html, "page", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.save(out, force=True)
    assert (out / "summary.md").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_filled(report, no_plots, tmp_path):
    (tmp_path / "out").mkdir()
    assert (report.save(tmp_path / "out") / "report.html").exists()


@pytest.mark.parametrize("name", ["notes.txt", "plots/photo.jpg", "src/x.py"])
def test_force_never_removes_what_is_not_a_report(report, no_plots, tmp_path, name):
    out = report.save(tmp_path / "out")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_text("precious")
    with pytest.raises(ProfilerError, match="not part of a report"):
        report.save(out, force=True)
    assert (out / name).read_text() == "precious"


def test_a_file_is_not_a_folder(report, no_plots, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProfilerError, match="this is a file"):
        report.save(tmp_path / "file", force=True)
    with pytest.raises(ProfilerError, match="is a file, not a folder"):
        report.save(tmp_path / "file" / "below")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write to")
def test_an_unwritable_folder_is_named(report):
    with pytest.raises(ProfilerError, match="/proc/self.*cannot be written"):
        report.save("/proc/self/report")


# --- importing -------------------------------------------------------------------------------------------------------
def test_importing_the_profiler_is_light():
    heavy = ("pandas", "matplotlib", "jinja2", "rich")
    code = f"import sys, tgrad.profiler; print([m for m in {heavy} if m in sys.modules])"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=env)
    assert done.stdout == "[]\n"
