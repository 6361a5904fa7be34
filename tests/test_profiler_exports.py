"""Exports: each by the structure that its tool reads."""

import csv
import gzip
import json
import pickle
import pickletools
import subprocess
import sys

import pytest
from torch.cuda import _memory_viz

from tgrad.profiler import profile
from tgrad.profiler.cli import main
from tgrad.profiler.exports import FORMATS
from tgrad.profiler.reading import load


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    report = profile("mlp", ["grad", "no_grad"], batch_size=4, width=8, depth=2, repeats=3, warmup=1)
    return report.save(tmp_path_factory.mktemp("report") / "out")


def exported(folder, to):
    assert main(["export", "--to", to, str(folder)]) == 0
    return (folder / FORMATS[to][0]).read_bytes()


def test_perfetto(folder):
    found = json.loads(gzip.decompress(exported(folder, "perfetto")))
    events = found["traceEvents"]
    assert {e["ph"] for e in events} == {"M", "X", "C", "b", "e"}
    for e in events:
        assert isinstance(e["pid"], int) and isinstance(e["name"], str)
        if e["ph"] != "M":
            assert e["ts"] >= 0
    assert all(e["dur"] >= 0 for e in events if e["ph"] == "X")
    begun, ended = ({(e["pid"], e["id"]): e["ts"] for e in events if e["ph"] == ph} for ph in "be")
    assert begun.keys() == ended.keys() and all(begun[k] <= ended[k] for k in begun)
    peak = max(sum(e["args"].values()) for e in events if e["ph"] == "C" and e["pid"] == 1)
    assert peak == load(folder).runs["peak_bytes"][0]


def test_memory_viz_reads_the_snapshot(folder):
    data = exported(folder, "memviz")
    assert next(pickletools.genops(data))[1] == 4
    found = pickle.loads(data)
    assert set(found) >= {"segments", "device_traces"} and len(found["device_traces"]) == 2
    assert found["device_traces"][0][0]["category"] == "unknown"
    live, most = {}, 0
    for e in found["device_traces"][0]:
        assert set(e) >= {"action", "addr", "size", "stream", "time_us", "frames"}
        assert all(set(f) == {"filename", "line", "name"} for f in e["frames"])
        if e["action"] == "alloc":
            assert e["addr"] not in live
            live[e["addr"]] = e["size"]
            most = max(most, sum(live.values()))
        elif e["action"] == "free_completed":
            assert live.pop(e["addr"]) == e["size"]
    run = load(folder).runs.iloc[0]
    assert most + run["parameters_bytes"] == run["peak_bytes"]
    assert "= MEM[" in _memory_viz.trace(found)
    assert _memory_viz.segsum(found)
    assert "Active Memory Timeline" in _memory_viz.trace_plot(found)


def test_speedscope(folder):
    found = json.loads(exported(folder, "speedscope"))
    assert found["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    frames = found["shared"]["frames"]
    assert len(found["profiles"]) == 1  # no_grad keeps nothing
    for p in found["profiles"]:
        assert (p["type"], p["unit"], p["startValue"]) == ("sampled", "bytes", 0)
        assert len(p["samples"]) == len(p["weights"]) and p["endValue"] == sum(p["weights"])
        assert all(0 <= i < len(frames) for stack in p["samples"] for i in stack)
    assert found["profiles"][0]["endValue"] == load(folder).runs["graph_bytes"][0]
    assert {"name": "0"} in frames and any(f["name"] == "Relu out" and f["line"] > 0 for f in frames)


def test_pytest_benchmark(folder):
    found = json.loads(exported(folder, "pytest-benchmark"))
    assert {"machine_info", "commit_info", "benchmarks", "datetime", "version"} <= set(found)
    names = [b["name"] for b in found["benchmarks"]]
    assert names == ["mlp[grad-forward]", "mlp[grad-backward]", "mlp[grad-step]", "mlp[no_grad-forward]"]
    stats = found["benchmarks"][0]["stats"]
    run = load(folder).runs.iloc[0]
    assert stats["median"] == pytest.approx(run["forward_wall_median_ms"] / 1e3) and stats["rounds"] == 3
    assert stats["min"] <= stats["ld15iqr"] <= stats["median"] <= stats["hd15iqr"] <= stats["max"]


def test_pytest_benchmark_compares_what_was_exported(folder, tmp_path):
    """In the tool itself: `pytest-benchmark compare` of two stored runs."""
    pytest.importorskip("pytest_benchmark")
    data = exported(folder, "pytest-benchmark")
    for name in ("0001_before.json", "0002_after.json"):
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-m", "pytest_benchmark", "--storage", f"file://{tmp_path}", "compare", "0001", "0002",
               "--csv", str(tmp_path / "table")]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert "mlp[grad-forward] (0001_before)" in done.stdout and "(0002_after)" in done.stdout
    median = load(folder).runs["forward_wall_median_ms"][0] / 1e3
    with open(tmp_path / "table.csv") as file:
        rows = [r for r in csv.DictReader(file) if r["name"].endswith("mlp[grad-forward]")]
    assert len(rows) == 2 and all(float(r["median"]) == pytest.approx(median, rel=1e-6) for r in rows)


# What the Trace Event Format asks of each kind of event, beside its name, pid and tid.
ASKED = {"M": {"args"}, "X": {"ts", "dur"}, "C": {"ts", "args"}, "b": {"ts", "id", "cat"}, "e": {"ts", "id", "cat"}}


def test_every_event_has_what_the_trace_event_format_asks_for(folder):
    found = json.loads(gzip.decompress(exported(folder, "perfetto")))
    assert isinstance(found["traceEvents"], list) and found["displayTimeUnit"] in ("ms", "ns")
    for e in found["traceEvents"]:
        assert set(e) >= {"name", "ph", "pid", "tid"} | ASKED[e["ph"]], e
        assert isinstance(e["pid"], int) and isinstance(e["tid"], int)
        if e["ph"] == "M":
            assert e["name"] in ("process_name", "thread_name") and isinstance(e["args"]["name"], str)
        if e["ph"] == "C":
            assert all(isinstance(v, int) and v >= 0 for v in e["args"].values())
    by_thread = {}
    for e in found["traceEvents"]:
        if e["ph"] == "X":
            by_thread.setdefault((e["pid"], e["tid"]), []).append((e["ts"], e["ts"] + e["dur"]))
    for spans in by_thread.values():  # slices of a thread follow one another or nest
        ordered = sorted(spans)
        assert all(a[1] <= b[0] or b[1] <= a[1] for a, b in zip(ordered, ordered[1:]))


# speedscope's file format, in its own terms: what is required, and of which type.
def test_speedscope_has_the_types_of_its_schema(folder):
    found = json.loads(exported(folder, "speedscope"))
    assert set(found) == {"$schema", "exporter", "name", "activeProfileIndex", "shared", "profiles"}
    assert 0 <= found["activeProfileIndex"] < len(found["profiles"]) and set(found["shared"]) == {"frames"}
    for frame in found["shared"]["frames"]:
        assert isinstance(frame["name"], str) and set(frame) <= {"name", "file", "line", "col"}
        assert isinstance(frame.get("file", ""), str) and isinstance(frame.get("line", 0), int)
    for p in found["profiles"]:
        assert set(p) == {"type", "name", "unit", "startValue", "endValue", "samples", "weights"}
        assert p["unit"] in ("bytes", "microseconds", "milliseconds", "nanoseconds", "none", "seconds")
        assert all(isinstance(w, int) and w > 0 for w in p["weights"])


def test_the_file_may_be_named_and_the_report_replaced(folder, tmp_path, capsys):
    file = tmp_path / "mine.json"
    assert main(["export", "--to", "speedscope", str(folder), "--file", str(file)]) == 0
    assert file.is_file() and str(file) in capsys.readouterr().out


def test_bad_input(folder, tmp_path, capsys):
    for argv, says in (
        (["--to", "excel", str(folder)], "unknown format 'excel'"),
        (["--to", "perfetto", str(tmp_path / "none")], "no folder"),
        (["--to", "perfetto", str(folder), "--file", str(tmp_path / "no" / "x.json")], "cannot be written"),
    ):
        assert main(["export", *argv]) == 2
        err = capsys.readouterr().err
        assert says in err and err.count("\n") == 1
