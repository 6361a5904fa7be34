"""The GPU benchmarks' code runs: every case once on the CPU, tiny; the runner, with sections that fail; the results."""

import csv
import sys
import time
from pathlib import Path

import pytest
import torch

import tgrad
from tests import conftest
from tests.benchmarks.gpu import cli, goals, memory_cases, models, output, results, runner, sections, timing
from tests.benchmarks.gpu.bench import Bench, Contest
from tests.benchmarks.gpu.rows import Journal, Row
from tests.benchmarks.gpu.sections import Section
from tgrad.device import compute

on_cpu = pytest.mark.skipif(compute.type != "cpu", reason="a smoke run is for the CPU: on a GPU there are timings")
LIMITS = {"float32": 2e-6, "float16": 3e-3, "bfloat16": 2e-2, "uint8": 0}


def table(path):
    """The rows of benchmarks.csv."""
    with open(path) as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


@on_cpu
@pytest.mark.parametrize("section", [s.name for s in sections.SECTIONS])
def test_smoke(section, tmp_path, capsys):
    """Every contender of every case runs and is right; nothing is called a time."""
    assert cli.main(["--out", str(tmp_path), "--smoke", "--sections", section]) == 0, capsys.readouterr().out
    rows = table(tmp_path / "benchmarks.csv")
    assert rows and not [row["note"] for row in rows if row["note"] and not row["note"].startswith("smoke: no timings")]
    for row in rows:
        assert row["kind"] == "smoke" and not row["ms"] and not row["rate"] and not row["ratio"], row
        assert not row["error"] or float(row["error"]) <= LIMITS[row["dtype"]], row
        assert "NOT EQUAL" not in row["note"], row
    assert {"tgrad", "torch"} & {row["contender"].partition(" ")[0] for row in rows}
    assert capsys.readouterr().out.endswith("smoke: no timings\n")
    assert (tmp_path / "NOTES.md").read_text().startswith("# A smoke run: no timings")
    assert not list(tmp_path.glob("*.svg"))


@on_cpu
def test_no_device_and_bad_arguments(tmp_path, capsys):
    out = str(tmp_path / "out")
    assert cli.main(["--out", out]) == 3 and "no CUDA device" in capsys.readouterr().err
    for wrong in (["--sections", "nothing"], ["--budget", "0"], ["--budget", "nan"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["--out", out, *wrong])
        assert stopped.value.code == 2
    assert not (tmp_path / "out").exists()


@on_cpu
def test_a_policy_without_memory_leaves_the_others(tmp_path, monkeypatch):
    policy = tgrad.activation_memory

    def refused(name, **more):
        if name == "lean" and not more:
            raise tgrad.OutOfMemoryError("out of memory\nmore")
        return policy(name, **more)

    monkeypatch.setattr(tgrad, "activation_memory", refused)
    journal = Journal(tmp_path / "rows")
    memory_cases.model(Bench("memory", journal, 60.0, smoke=True), "relu", models.perceptron(8, 1), "memory 1.0")
    notes = {r.contender: r.note for r in journal.rows()}
    assert list(notes) == ["torch", "tgrad keep", "tgrad lean", "tgrad leanest"]
    assert notes["tgrad lean"] == "FAILED: OutOfMemoryError: out of memory"
    assert "gradients equal to those of keep" in notes["tgrad leanest"]


def test_names_of_goals_are_used():
    """A goal that no case names would never be looked at."""
    text = "".join((Path(runner.__file__).parent / f"{s.name}_cases.py").read_text() for s in sections.SECTIONS)
    for name in goals.GOALS:
        assert f'"{name}"' in text or name.startswith("linear "), name


# --- what goes wrong -------------------------------------------------------------------------------------------------
@on_cpu
def test_a_contender_that_fails_is_a_row(tmp_path):
    journal = Journal(tmp_path / "rows")
    b = Bench("here", journal, 100, smoke=True)

    def broken():
        raise RuntimeError("out of luck\nmore")

    def build():
        x = torch.ones(2)
        return Contest({"tgrad": broken, "torch": lambda: x + 1, "far": lambda: x}, lambda: [x.double() + 1])

    b.case("sum", torch.float32, (2,), build)
    b.case("worse", torch.float32, (2,), broken)
    b.case("sum", torch.float32, (2,), build)  # not twice
    found = {(row.case, row.contender): (row.note, row.error) for row in journal.rows()}
    assert found == {
        ("sum", "tgrad"): ("FAILED: RuntimeError: out of luck", None),
        ("sum", "torch"): ("smoke: no timings", 0.0),
        ("sum", "far"): ("smoke: no timings", 0.5),
        ("worse", ""): ("FAILED: RuntimeError: out of luck", None),
    }
    assert len(journal.rows()) == 4
    with pytest.raises(RuntimeError, match="no timings"):
        b.add(Row("here", "sum"), "tgrad", "device", timing.Times(1.0, 1.0, 1.0, 1))
    late = Bench("late", journal, 0, smoke=True)
    late.case("sum", torch.float32, (2,), build)
    assert journal.rows()[-1].note == "left out: no time left"


SCRIPT = """
import os, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.benchmarks.gpu.rows import Journal, Row
name, journal = sys.argv[1], Journal(Path(sys.argv[2]))
sys.stdin.readline()
begun = list(journal.read("begin"))
for case in ("one", "two", "three"):
    mark = name + "|" + case
    if mark in begun:
        continue
    journal.write(begin=mark)
    if name == "crash" and case == "two":
        os.abort()
    if name == "hang" and case == "two":
        time.sleep(600)
    journal.add(Row(name, case))
"""


@pytest.mark.thorough
def test_a_crash_and_a_hang_cost_one_section_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "GRACE", 0.3)
    monkeypatch.setattr(runner, "LEAST", 0.1)
    root = str(runner.__file__).rpartition("/tests/")[0]
    program, journal, said = SCRIPT.format(root=root), Journal(tmp_path / "rows"), []
    command = lambda name, path: [sys.executable, "-S", "-c", program, name, str(path)]
    chosen = [Section("crash", 3, ""), Section("hang", 0.5, ""), Section("fine", 5, "")]
    failures = runner.run(chosen, journal, 12, said.append, command)
    assert [failure.partition(":")[0] for failure in failures] == ["crash, at two", "hang, at two"]
    assert "SIGABRT" in failures[0] and "ran past its limit" in failures[1]
    rows = [(row.section, row.case) for row in journal.rows() if row.case != "section"]
    assert rows[:2] == [("crash", "one"), ("crash", "three")]  # a second process went on after the crash
    assert rows[2:] == [("hang", "one"), ("fine", "one"), ("fine", "two"), ("fine", "three")]
    assert [line.partition(":")[0] for line in said] == ["crash", "hang", "fine"]


def test_a_line_cut_short_is_left_out(tmp_path):
    journal = Journal(tmp_path / "rows")
    journal.add(Row("a", "b"))
    with open(journal.path, "a") as file:
        file.write('{"row": {"section": "a", "ca')
    assert [row.case for row in journal.rows()] == ["b"]


# --- numbers ---------------------------------------------------------------------------------------------------------
def test_results(tmp_path):
    common = {"dtype": "bfloat16", "shape": "8192x8192x8192", "kind": "device", "flops": 2.0 * 8192**3}
    linear = {**common, "case": "linear, large", "section": "linear", "goal": "linear forward"}
    memory = {"section": "memory", "case": "gelu", "kind": "saved", "goal": "memory 0.5"}
    late = {"section": "memory", "case": "gelu", "kind": "wall", "goal": "policy time"}
    rows = [
        Row("ceilings", "copy", "uint8", "1", "torch", "device", ms=2.0, nbytes=8e9),
        Row(**{**common, "case": "cuBLAS", "section": "ceilings"}, contender="torch", ms=1.4),
        Row(**linear, contender="tgrad", ms=1.5), Row(**linear, contender="torch", ms=1.4),
        Row("pointwise", "add", "float32", "9", "tgrad", "device", ms=1.0, nbytes=3.9e9, goal="pointwise"),
        Row(**memory, contender="tgrad lean", bytes=50), Row(**memory, contender="torch", bytes=100),
        Row(**late, contender="tgrad keep", ms=2.0), Row(**late, contender="tgrad lean", ms=2.04),
        Row("row", "softmax", contender="tgrad", note="FAILED: RuntimeError: no"),
    ]  # fmt: skip
    results.finish(rows)
    ours, add, lean, policy = rows[2], rows[4], rows[5], rows[8]
    assert results.ceilings(rows) == pytest.approx({"copy": 4000, "bfloat16": 785.4}, rel=1e-3)
    assert (ours.ratio, ours.met, ours.wanted) == (pytest.approx(1.5 / 1.4), False, "ratio <= 1.02")
    assert ours.percent == pytest.approx(100 * 1.4 / 1.5)
    assert (add.percent, add.met) == (pytest.approx(97.5), True)
    assert (lean.ratio, lean.met) == (0.5, True)
    assert (policy.measured, policy.met, policy.ratio) == (pytest.approx(1.02), True, None)

    facts = {"gpu": "a chip", "commit": "123"}
    text = output.table(rows, facts, ["linear: killed"])
    assert "MISSED: ratio <= 1.02, is 1.07" in text and "met: percent >= 95" in text and "RuntimeError: no" in text
    assert text.endswith("3 of 4 goals met")
    output.write_csv(rows, facts, tmp_path / "rows.csv")
    assert len(table(tmp_path / "rows.csv")) == len(rows)
    output.write_notes(rows, facts, ["linear: killed"], [], tmp_path / "NOTES.md")
    notes = (tmp_path / "NOTES.md").read_text()
    assert "3 of 4 met" in notes and "## Where PyTorch is faster" in notes and "- linear: killed" in notes
    from tests.benchmarks.gpu.plots import draw

    assert draw(rows, "a chip", tmp_path) == ["ratios.svg", "ceilings.svg", "memory.svg"]


# --- the tests that come before the benchmarks -----------------------------------------------------------------------
class Item:
    """What pytest's items have of what is asked here."""

    def __init__(self, name, gpu=True, until=None):
        self.name, self.path, self.gpu, self.config, self.until = name, Path("a.py"), gpu, self, until

    def get_closest_marker(self, name):
        return self.gpu if name == "gpu" else None

    def getoption(self, name):
        return self.until


def test_any_beginning_has_a_part_of_each_function():
    names = [*(f"test_many[{i}]" for i in range(8)), "test_one", "test_two[0]", "test_two[1]"]
    items = [*(Item(name) for name in names), Item("test_not_here", gpu=False)]
    assert [item.name for item in conftest.spread(items)] == [
        "test_many[0]", "test_one", "test_two[0]", "test_many[4]", "test_many[2]", "test_many[6]", "test_many[1]",
        "test_two[1]", "test_many[5]", "test_many[3]", "test_many[7]", "test_not_here",
    ]  # fmt: skip


def test_after_a_time_the_rest_is_skipped():
    conftest.pytest_runtest_setup(Item("test"))
    conftest.pytest_runtest_setup(Item("test", until=time.time() + 60))
    with pytest.raises(pytest.skip.Exception, match="no time left"):
        conftest.pytest_runtest_setup(Item("test", until=time.time() - 1))


def test_a_lost_device_ends_the_process(monkeypatch):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(conftest, "synchronize", lost)
    monkeypatch.setattr(conftest, "ON_GPU", True)
    with pytest.raises(pytest.exit.Exception, match=r"since test_a: CUDA error: an illegal memory access [a-z ]*$"):
        conftest.pytest_runtest_teardown(Item("test_a"))
    monkeypatch.setattr(conftest, "ON_GPU", False)
    conftest.pytest_runtest_teardown(Item("test_a"))


def test_quantiles():
    assert timing.quantiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (3.0, 2.0, 5.0, 6)
    assert timing.quantiles([2.0]) == (2.0, 2.0, 2.0, 1)
