"""`tgrad compare`: the rank test against counts by hand, bytes to the byte, exit codes, and bad input."""

import itertools
import json
import math
import re
import shutil
from dataclasses import replace

import pandas as pd
import pytest

from tests.test_profiler_report import NAN, Page, make_report
from tgrad.profiler import change_plot, figures
from tgrad.profiler.cli import main
from tgrad.profiler.compare import compare, parse_limit
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.ranks import mann_whitney, median
from tgrad.profiler.reading import load
from tgrad.profiler.records import SampleRecord
from tgrad.profiler.units import parse_bytes


# --- the rank test ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3), (3, 3), (4, 2)])
def test_exact_probabilities_are_those_of_all_orders(m, n):
    def u(b, a):
        return sum(y > x for y in b for x in a)

    values = range(m + n)
    orders = [(sorted(set(values) - set(b)), b) for b in itertools.combinations(values, n)]
    for a, b in orders:
        expected = sum(u(y, x) >= u(b, a) for x, y in orders) / len(orders)
        assert mann_whitney(a, b) == pytest.approx(expected)


def test_the_approximation_is_near_the_exact_value_and_corrects_ties():
    a, b = [float(i) for i in range(0, 40, 2)], [float(i) + 7 for i in range(0, 40, 2)]
    exact = mann_whitney(a, b)
    near = mann_whitney([*a, -1.0], b)  # 21 values: approximated
    assert abs(exact - near) < 0.03
    assert mann_whitney([1.0] * 8, [1.0] * 8) == 1.0
    scipy = pytest.importorskip("scipy.stats")  # comes with scikit-learn
    for a, b in (([1, 2, 2, 3], [2, 3, 3, 4]), ([5, 5, 1, 7, 9], [2, 2, 8]), ([0.5] * 3 + [2] * 30, [1.0, 3] * 12)):
        expected = scipy.mannwhitneyu(b, a, alternative="greater", method="asymptotic").pvalue
        assert mann_whitney(a, b) == pytest.approx(expected)
    assert math.isnan(mann_whitney([], [1.0])) and math.isnan(mann_whitney([NAN], [1.0]))


def test_median():
    assert median([3, 1, 2]) == 2 and median([4, 1, 2, 3]) == 2.5 and math.isnan(median([]))


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("1024", 1024), ("1KiB", 1024), ("1.5 MiB", 3 << 19), ("2g", 1 << 31)]
)  # fmt: skip
def test_parse_bytes(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "x", "1 PiB", "-1", "1e3x"])
def test_parse_bytes_refuses(text):
    with pytest.raises(ValueError, match="no size"):
        parse_bytes(text)


# --- reports on disk -------------------------------------------------------------------------------------------------
@pytest.fixture
def two(tmp_path, monkeypatch):
    """Writes reports a and b; each is changed by a function first."""
    monkeypatch.setattr(figures, "draw", lambda *a: [])

    def write(change=lambda report: None, before=lambda report: None):
        for name, how in (("a", before), ("b", change)):
            report = make_report()
            how(report)
            report.save(tmp_path / name, force=True)
        return str(tmp_path / "a"), str(tmp_path / "b")

    return write


def _times(*values):
    def change(report):
        report.records.samples = [
            SampleRecord("r", "mlp", "grad", "forward", i, False, v, v, NAN) for i, v in enumerate(values)
        ]

    return change


def _more(report):
    report.records.runs[0] = replace(report.records.runs[0], graph_bytes=964)
    report.records.saved[0] = replace(report.records.saved[0], charged_bytes=128)


def test_a_report_equals_itself(two, capsys):
    a, _ = two()
    assert main(["compare", a, a, "--fail-on", "saved_bytes:0", "--fail-on", "peak_bytes:0%"]) == 0
    out = capsys.readouterr().out
    assert "the same, to the byte" in out and "No regression" in out


def test_one_more_byte_is_found_by_module_and_fails(two, capsys):
    a, b = two(_more)
    assert main(["compare", a, b, "--fail-on", "saved_bytes:63"]) == 1
    out = capsys.readouterr().out
    assert "REGRESSION mlp in mode grad: graph_bytes +64 bytes" in out and "Relu" in out
    assert main(["compare", a, b, "--fail-on", "saved_bytes:64"]) == 0
    assert main(["compare", a, b]) == 0  # without a limit a difference is only shown
    assert main(["compare", b, a, "--fail-on", "saved_bytes:0"]) == 0  # less is no regression


@pytest.mark.parametrize("by", ["module", "op", "line"])
def test_the_difference_by_group(two, by):
    a, b = map(load, two(_more))
    table = compare(a, b, by=by).saved
    assert list(table["bytes_change"]) == [64]
    if by == "line":
        assert (table["file"][0], table["line"][0]) == ("model.py", 7)


def test_json(two, capsys):
    a, b = two(_more)
    assert main(["compare", a, b, "--fail-on", "saved_bytes:0", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["regressions"][0]["metric"] == "graph_bytes" and found["saved"][0]["bytes_change"] == 64


def test_a_slower_forward_fails_only_beyond_threshold_and_chance(two):
    fast, slow = [1.0 + i / 1000 for i in range(10)], [1.1 + i / 1000 for i in range(10)]
    a, b = two(_times(*slow), _times(*fast))
    assert main(["compare", a, b, "--fail-on", "forward_ms:5%"]) == 1
    assert main(["compare", a, b, "--fail-on", "forward_ms:20%"]) == 0  # slower, but less than matters
    assert main(["compare", a, b, "--fail-on", "forward_ms:0.05ms"]) == 1
    a, b = two(_times(*(fast[:5] + [3.0] * 5)), _times(*(fast[:5] + [2.0] + [0.5] * 2 + [4.0] * 2)))
    assert main(["compare", a, b, "--fail-on", "forward_ms:5%"]) == 0  # too scattered to say


def fails(capsys, *argv) -> str:
    assert main(["compare", *argv]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_bad_input_names_the_file_and_what_to_do(two, tmp_path, capsys):
    a, b = two()
    assert "no folder" in fails(capsys, a, str(tmp_path / "none"))
    shutil.copytree(b, tmp_path / "c")
    (tmp_path / "c" / "saved.csv").unlink()
    said = fails(capsys, a, str(tmp_path / "c"))
    assert "c/saved.csv is missing" in said and "tgrad profile" in said
    assert "is a file" in fails(capsys, a, f"{b}/runs.csv")
    runs = pd.read_csv(f"{b}/runs.csv")
    runs.drop(columns="graph_bytes").to_csv(f"{b}/runs.csv", index=False)
    assert "runs.csv has no column graph_bytes" in fails(capsys, a, b)
    runs.assign(graph_bytes="many").to_csv(f"{b}/runs.csv", index=False)
    assert "holds something else than numbers" in fails(capsys, a, b)
    with open(f"{b}/runs.csv", "w") as file:
        file.write("")
    assert "cannot be read" in fails(capsys, a, b)
    runs.assign(batch_size=512).to_csv(f"{b}/runs.csv", index=False)
    assert "batch size 0 in the first and 512 in the second" in fails(capsys, a, b)
    runs.assign(workload="other").to_csv(f"{b}/runs.csv", index=False)
    assert "no run in common" in fails(capsys, a, b)
    runs.to_csv(f"{b}/runs.csv", index=False)
    (tmp_path / "b" / "env.json").write_text("{")
    assert "env.json cannot be read" in fails(capsys, a, b)


def test_times_of_different_devices_are_not_compared(two, capsys):
    a, b = two(lambda r: r.environment.update(device="cuda:0"))
    assert main(["compare", a, b, "--fail-on", "saved_bytes:0"]) == 0
    assert "times are not compared: device is" in capsys.readouterr().out
    assert "the times cannot be compared" in fails(capsys, a, b, "--fail-on", "forward_ms:5%")


def test_too_few_times_for_a_gate(two, capsys):
    assert "too few" in fails(capsys, *two(), "--fail-on", "forward_ms:5%")


@pytest.mark.parametrize("limit", ["saved_bytes", "speed:5%", "saved_bytes:x", "forward_ms:-1%", "forward_ms:nan", ":"])
def test_limits_that_are_none(limit):
    with pytest.raises(ProfilerError, match="--fail-on"):
        parse_limit(limit)


# --- files -----------------------------------------------------------------------------------------------------------
def test_html_and_markdown(two, tmp_path, capsys):
    a, b = two(_more)
    out = tmp_path / "compare"
    given = ["compare", a, b, "--fail-on", "saved_bytes:0", "--out", str(out)]
    assert main(given) == 1
    assert "compare.html" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} == {"compare.html", "compare.md", "compare.json", "plots"}
    assert {p.name for p in (out / "plots").iterdir()} == {"mlp-grad-change.png", "mlp-grad-change.svg"}
    text = (out / "compare.html").read_text()
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open and all(x.startswith("#") for x in page.addresses)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    assert page.tags.count("svg") == page.tags.count("figcaption") == 1 and page.tags.count("table") == 3
    said = "REGRESSION mlp in mode grad: graph_bytes +64 bytes (--fail-on saved_bytes:0)"
    assert said in text and "prefers-color-scheme: dark" in text and 'name="viewport"' in text
    summary = (out / "compare.md").read_text()
    assert said in summary and "| mlp | grad | 0 | Relu | out | 64 B | 128 B | +64 B | 2 -> 2 |" in summary
    assert all((out / p).is_file() for p in re.findall(r"\]\((plots/[^)]+)\)", summary))
    assert json.loads((out / "compare.json").read_text())["regressions"][0]["metric"] == "graph_bytes"
    assert main(given) == 2 and "--force" in capsys.readouterr().err
    assert main([*given, "--force"]) == 1
    assert main(["compare", a, a, "--fail-on", "saved_bytes:0", "--out", str(out), "--force"]) == 0
    assert "No regression" in (out / "compare.html").read_text() and not list((out / "plots").iterdir())


def test_the_waterfall_leads_from_before_to_after(two):
    a, b = map(load, two(_more))
    changes = change_plot.steps(compare(a, b).saved, "mlp", "grad")
    assert changes == [("0 · Relu · out", 64)]
    many = pd.DataFrame({
        "workload": "w", "mode": "grad", "op": [f"op{i}" for i in range(20)], "bytes_before": 0, "tensors_before": 0,
        "bytes_after": range(20), "tensors_after": 1, "bytes_change": range(20, 0, -1),
    })  # fmt: skip
    found = change_plot.steps(many, "w", "grad")
    assert len(found) == change_plot.STEPS and sum(n for _, n in found) == 210 and found[-1][0] == "9 others"
    figure = change_plot.waterfall(100, [("x", 50), ("y", -20)], 120, "w")
    labels = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert labels == ["before", "x", "y", "not by saved tensor", "after"]
    bars = [(round(p.get_x()), round(p.get_width())) for p in figure.axes[0].patches]
    assert bars == [(0, 100), (100, 50), (130, 20), (120, 10), (0, 120)]


# --- what cannot be compared -----------------------------------------------------------------------------------------
def _runs(**changes):
    def change(report):
        report.records.runs = [replace(r, **changes) for r in report.records.runs]

    return change


def _environment(**changes):
    return lambda report: report.environment.update(changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_runs(dtype="bfloat16"), "dtype x in the first and bfloat16 in the second"),
        (_runs(workload="gpt"), "have no run in common"),
        (_runs(batch_size=7), "batch size 0 in the first and 7 in the second"),
        (_runs(engine="other"), "engine x in the first and other in the second"),
    ],
)
def test_other_runs_are_not_compared(two, capsys, change, says):
    assert says in fails(capsys, *two(change))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_runs(parameters=99), "is another model: 0 parameters in the first and 99 in the second"),
        (_environment(tgrad="9"), "other versions: tgrad 0 in the first and 9 in the second"),
        (_environment(packages={"torch": "2"}), "other versions: torch 1 in the first and 2 in the second"),
        (_environment(device_facts={"gpu": "B"}), "times are not compared: gpu is A in the first and B in the second"),
        (_environment(is_interpreted=False), "times are not compared: is interpreted is True in the first"),
    ],
)
def test_what_else_may_make_bytes_differ_is_noted(two, capsys, change, says):
    before = _environment(device_facts={"gpu": "A"})
    if "gpu" not in says:
        before = _environment()
    a, b = two(change, before)
    assert main(["compare", a, b]) == 0
    assert says in " ".join(capsys.readouterr().out.split())
    assert any(says in note for note in compare(load(a), load(b)).notes)
