"""The scale law: the line against numbers by hand, the largest batch, the command."""

import json
import math

import pandas as pd
import pytest

from tgrad.profiler import fit
from tgrad.profiler.cli import main
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.scale import Point, law, scale
from tgrad.profiler.workloads import Options, make


def test_a_line_and_its_interval():
    found = fit.line([1, 2, 3, 4], [3, 5, 7, 9])
    assert (found.slope, found.intercept) == pytest.approx((2, 1)) and found.slope_ci == pytest.approx(0)
    scipy = pytest.importorskip("scipy.stats")
    x, y = [1, 2, 4, 7, 9], [2.0, 3.5, 4.0, 9.5, 8.0]
    found, theirs = fit.line(x, y), scipy.linregress(x, y)
    assert (found.slope, found.intercept) == pytest.approx((theirs.slope, theirs.intercept))
    assert found.slope_ci == pytest.approx(theirs.stderr * scipy.t.ppf(0.975, 3), rel=1e-3)
    assert math.isnan(fit.line([1, 2], [3, 5]).slope_ci)
    assert fit.quantile(100) == pytest.approx(scipy.t.ppf(0.975, 100), rel=1e-3)
    with pytest.raises(ValueError, match="two points"):
        fit.line([1, 1], [2, 3])


def points(f, sizes=(1, 2, 4, 8), held_out=True):
    return [Point("w", "grad", n, 0, f(n), held_out and n == sizes[-1]) for n in sizes]


def test_the_largest_batch_is_the_last_that_fits():
    found = law(points(lambda n: 1000 + 10 * n), "peak_bytes", 1105)
    assert (found.largest_batch, found.fixed_bytes, found.per_row_bytes) == (10, pytest.approx(1000), pytest.approx(10))
    assert (found.checked_batch, found.checked_predicted_bytes, found.error) == (
        8,
        pytest.approx(1080),
        pytest.approx(0),
    )
    assert law(points(lambda n: 1000 + 10 * n), "peak_bytes", 1000).largest_batch == 0
    assert law(points(lambda n: 1000), "peak_bytes", 2000).largest_batch == -1  # it does not grow
    assert law(points(lambda n: 1000 + n), "peak_bytes").largest_batch == -1  # not asked for


def test_a_law_that_is_no_line_is_found_out_by_the_held_out_batch():
    assert law(points(lambda n: n * n), "peak_bytes").error > 0.3


def test_an_mlp_grows_by_its_hidden_rows():
    found = scale("mlp", [2, 4, 8, 16], ["grad", "no_grad"], width=8, depth=2, memory_bytes=1 << 20)
    grad = found.law("grad", "graph_bytes")
    # A row: the input, two hidden results, ten scores and a class; fixed: the count of cross-entropy.
    assert grad.per_row_bytes == pytest.approx(4 * (8 + 2 * 8 + 10) + 8)
    assert grad.fixed_bytes == pytest.approx(4)
    assert found.law("no_grad", "graph_bytes").per_row_bytes == 0
    assert found.law("no_grad").error == pytest.approx(0)
    assert found.law("no_grad").largest_batch > found.law("grad").largest_batch > 1000
    # The peak of so small a batch lies elsewhere than that of a large one: what is held out says so.
    assert found.law("grad").error > 0.05
    assert scale("mlp", [64, 96, 128, 192], ["grad"], width=8, depth=2).law("grad").error < 0.01
    assert make("mlp", Options(2, width=8, depth=2)).batch_size == 2


@pytest.mark.thorough
def test_the_command(tmp_path, capsys):
    given = ["scale", "mlp", "--batch-sizes", "2,4,8,16", "--width", "8", "--depth", "1", "--memory", "1MiB"]
    assert main([*given, "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "largest batch in 1.0 MiB" in out and "had no part in the fit" in out
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names - {"scale.parquet", "laws.parquet"} == {"scale.csv", "laws.csv", "scale.png", "scale.svg"}
    assert main([*given, "--json"]) == 0
    assert {x["mode"] for x in json.loads(capsys.readouterr().out)} == {"grad", "no_grad", "inference_mode"}


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["mlp", "--batch-sizes", "2,4"], "at least three"),
        (["mlp", "--batch-sizes", "2,x,8"], "give 32,64,128"),
        (["mlp", "--memory", "much"], "no size"),
        (["mlp", "--modes", "train"], "unknown mode"),
        (["none"], "unknown workload"),
    ],
)
def test_bad_input(capsys, argv, says):
    assert main(["scale", *argv]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_a_batch_of_none():
    with pytest.raises(ProfilerError, match="at least 1"):
        scale("mlp", [0, 1, 2])


@pytest.mark.thorough
def test_a_report_shows_the_law_that_was_measured_with_it(tmp_path, capsys):
    out = tmp_path / "out"
    given = ["profile", "mlp", "--batch-size", "2", "--width", "8", "--depth", "1", "--repeats", "1", "--out", str(out)]
    assert main([*given, "--modes", "grad,no_grad", "--batch-sizes", "2,4,8,16", "--memory", "64KiB"]) == 0
    said = "The largest batch that fits 64.0 KiB: grad "
    assert said in capsys.readouterr().out
    page, summary = (out / "report.html").read_text(), (out / "summary.md").read_text()
    assert said in page and said in summary and "How memory grows with the batch" in page
    assert (out / "plots" / "mlp-scale.png").is_file() and "plots/mlp-scale.png" in summary
    assert len(pd.read_csv(out / "scale.csv")) == 8 and len(pd.read_csv(out / "laws.csv")) == 4


@pytest.mark.parametrize(
    ("argv", "says"),
    [(["--memory", "1GiB"], "add --batch-sizes"), (["--batch-sizes", "2,4"], "at least three"),
     (["--batch-sizes", "a"], "give 32,64,128")],
)  # fmt: skip
def test_bad_sizes_of_a_profile(capsys, argv, says):
    assert main(["profile", "mlp", *argv]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
