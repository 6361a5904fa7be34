"""`tgrad compare`: the rank test against counts by hand, bytes to the byte, exit codes, and bad input."""

import itertools
import json
import math
import shutil

import pandas as pd
import pytest

from tests.test_profiler_report import NAN, make_report
from tgrad.profiler import plots
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
    monkeypatch.setattr(plots, "draw", lambda *a: [])

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
    from dataclasses import replace

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
