"""The `tgrad` command: what it prints, what it leaves, and what it says to bad input."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tgrad
from tgrad.device import compute
from tgrad.profiler import latency, profile, tables
from tgrad.profiler.cli import main, show

ROOT = Path(__file__).resolve().parent.parent
SMALL = ("--width", "8", "--depth", "2", "--batch-size", "4", "--repeats", "1")

FACTORY = """
import tgrad
from tgrad import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 4)

    def forward(self, x):
        return self.first(x).relu()

def factory():
    return Net(), tgrad.randn(3, 6)

def with_loss(batch_size=2, seed=0):
    return Net(), tgrad.randn(batch_size, 6), lambda out: (out * out).mean()

def whole():
    from tgrad.profiler import Workload
    return Workload("mine", Net(), lambda: ((tgrad.randn(3, 6),), ()))

def raises():
    raise ValueError("no such\\nfile")

def interrupted():
    import time
    print("ready", flush=True)
    time.sleep(60)

def out_of_memory():
    return Net(), tgrad.empty(2**60)

def fails_in_forward():
    return Net(), tgrad.randn(3, 5)

def loss_of_many():
    return Net(), tgrad.randn(3, 6), lambda out: out

def needs(path):
    return Net(), path

def number(): return 3
def four(): return Net(), 1, 2, 3
def not_callable(): return 3, tgrad.randn(2)
def no_tensor(): return Net(), [1, 2]
def wrong_loss(): return Net(), tgrad.randn(3, 6), 0.5
value = 3
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A folder to work in, with model.py in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(FACTORY)
    return tmp_path


def fails(capsys, *argv, code=2) -> str:
    """The one line that the command leaves on stderr."""
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("tgrad: ") and "Traceback" not in err, err
    return err


# --- what it prints --------------------------------------------------------------------------------------------------
def test_a_profile_in_the_terminal(capsys):
    assert main(["profile", "mlp", *SMALL]) == 0
    out, err = capsys.readouterr()
    assert err == ""  # no terminal, no progress
    for word in ("grad", "no_grad", "inference_mode", "intermediates", "inputs held", "outputs held", "graph total",
                 "parameters", "peak", "forward", "backward", "kernels", "host us/op"):  # fmt: skip
        assert word in out, word
    assert "grad keeps" in out and "no_grad and inference_mode keep 0 B" in out
    if compute.type == "cpu":
        assert "Triton interpreter on the CPU: not GPU performance" in out


@pytest.mark.parametrize("width", [60, 80, 100, 140, 200])
def test_tables_are_whole_in_any_terminal(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    report = profile("mlp", batch_size=4, width=8, depth=2, repeats=1)
    show(report)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    assert "\u2026" not in text  # rich's mark of what it cut
    for column in tables.columns(report.runs):
        assert column.heading in text


def test_json_alone_is_on_stdout(capsys):
    assert main(["profile", "mlp", *SMALL, "--json", "--modes", "grad, inference_mode"]) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == "" and set(found) == {"runs", "in_words", "environment"}
    grad, inference = found["runs"]
    assert (grad["mode"], inference["mode"]) == ("grad", "inference_mode")
    assert grad["graph_bytes"] > inference["graph_bytes"] == 0
    assert inference["backward_wall_median_ms"] is None
    assert all(type(v) in (int, float, str, type(None)) for run in found["runs"] for v in run.values())


@pytest.mark.thorough
def test_quiet_prints_nothing(capsys, tmp_path):
    assert main(["profile", "mlp", *SMALL, "--quiet", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr() == ("", "")
    assert (tmp_path / "out" / "report.html").exists()


def test_version_help_and_env(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"tgrad {tgrad.__version__}\n"
    assert main(["profile", "--help"]) == 0
    assert "file.py:factory" in capsys.readouterr().out
    assert main(["env"]) == 0
    assert "python" in capsys.readouterr().out
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"tgrad", "python", "os", "cpu_count", "device", "packages", "git", "argv", "seed"} <= set(found)
    assert "/" not in found["argv"][0]
    assert main([]) == 2


def test_python_dash_m_is_the_command(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tgrad.profiler", "--version"], check=False, cwd=tmp_path, env=env, capture_output=True,
        text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tgrad {tgrad.__version__}\n", "")


# --- a user's own model ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("factory", "rows"), [("with_loss", 2), pytest.param("factory", 3, marks=pytest.mark.thorough),
                                                pytest.param("whole", 0, marks=pytest.mark.thorough)])  # fmt: skip
def test_a_factorys_model(model, capsys, factory, rows):
    assert main(["profile", f"model.py:{factory}", "--repeats", "1", "--out", "out", "--quiet"]) == 0
    text = (model / "out" / "saved.csv").read_text()
    line = FACTORY.splitlines().index("        return self.first(x).relu()") + 1
    assert f",first,model.py,{line},forward," in text
    header, first, *_ = (model / "out" / "runs.csv").read_text().splitlines()
    found = dict(zip(header.split(","), first.split(","), strict=True))
    assert int(found["batch_size"]) == rows and int(found["residual_bytes"]) == 0


def test_a_factory_is_given_what_it_asks_for(model, capsys):
    assert main(["profile", "model.py:with_loss", "--batch-size", "5", "--repeats", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["inputs_held_bytes"] == 5 * 6 * 4


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ("model.py:raises", "the factory failed: ValueError: no such file (at model.py:24)"),
        ("model.py:number", "the factory returned int; expected (model, example_input)"),
        ("model.py:four", "the factory returned a tuple of 4; expected"),
        ("model.py:not_callable", "the factory's model is of type int, which cannot be called"),
        ("model.py:no_tensor", "the example input is of type list, without a tgrad tensor"),
        ("model.py:wrong_loss", "loss_fn is of type float, which cannot be called"),
        ("model.py:needs", "the factory needs path: give each a default"),
        ("model.py:value", "'value' is of type int; expected a function"),
        ("model.py:missing", "model.py has no 'missing'; it has "),
        ("nowhere.py:factory", "there is no file nowhere.py"),
        ("broken.py:factory", "could not be loaded: SyntaxError: "),
        ("exits.py:factory", "could not be loaded: SystemExit: 3"),
        ("model.py", "name the factory in it as well: model.py:factory"),
        ("model.py:fails_in_forward", "the forward in mode grad failed: RuntimeError: "),
        ("model.py:loss_of_many", "the loss has shape (3, 4); expected a single number"),
        ("model.py:out_of_memory", "out of memory"),
    ],
)
def test_a_wrong_factory_is_one_line(model, capsys, workload, message):
    (model / "broken.py").write_text("def factory(:\n")
    (model / "exits.py").write_text("import sys\nsys.exit(3)\n")
    before = sorted(p.name for p in model.iterdir())
    err = fails(capsys, "profile", workload, "--out", "out", "--repeats", "1")
    assert message in err
    assert sorted(p.name for p in model.iterdir() if p.name != "__pycache__") == before


def test_an_option_that_a_factory_cannot_take(model, capsys):
    assert "no parameter 'batch_size'" in fails(capsys, "profile", "model.py:factory", "--batch-size", "3")
    assert "no parameter 'dtype'" in fails(capsys, "profile", "model.py:factory", "--dtype", "float64")


# --- other bad input -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["resnet"], ("unknown workload 'resnet'", "tutorial, digits, mlp", "file.py:factory")),
        (["mlp", "--modes", "grad,nograd"], ("unknown mode 'nograd'", "grad, no_grad, inference_mode")),
        (["mlp", "--modes", ","], ("--modes: none given",)),
        (["mlp", "--modes", "grad,grad"], ("'grad' is given twice",)),
        (["mlp", "mlp"], ("'mlp' is given twice",)),
        (["mlp", "--batch-size", "0"], ("--batch-size", "at least 1", "got 0")),
        (["mlp", "--batch-size", "-3"], ("--batch-size", "got -3")),
        (["mlp", "--batch-size", "many"], ("--batch-size", "expected a whole number", "'many'")),
        (["mlp", "--depth", "0"], ("--depth", "at least 1")),
        (["mlp", "--repeats", "0"], ("--repeats", "at least 1")),
        (["mlp", "--seed", "-1"], ("--seed", "got -1")),
        (["mlp", "--dtype", "float8"], ("unknown dtype 'float8'", "float16, bfloat16, float32, float64")),
        (["mlp", "--device", "tpu"], ("unknown device 'tpu'", "auto, cpu or cuda")),
        (["tutorial", "--width", "9"], ("--width", "only mlp has a width")),
        (["mlp", "--colour"], ("unrecognized arguments: --colour",)),
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, argv, words):
    err = fails(capsys, "profile", *argv, "--out", str(tmp_path / "out"))
    for word in words:
        assert word in err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_command(capsys):
    assert "invalid choice: 'profil'" in fails(capsys, "profil")


@pytest.mark.skipif(compute.type == "cuda", reason="there is a CUDA device")
def test_cuda_where_there_is_none(capsys):
    assert "no CUDA device" in fails(capsys, "profile", "mlp", "--device", "cuda")


def test_out_is_checked_before_anything_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("tgrad.profiler.measure.profile", lambda *a, **k: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for name, words in [("file", "this is a file"), ("full", "add --force"), ("file/below", "is a file, not a folder")]:
        assert words in fails(capsys, "profile", "mlp", "--out", str(tmp_path / name))
    forced = fails(capsys, "profile", "mlp", "--out", str(tmp_path / "full"), "--force")
    assert "notes.txt, which is not part of a report" in forced
    if os.path.isdir("/proc/self"):
        assert "cannot be written" in fails(capsys, "profile", "mlp", "--out", "/proc/self/out")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_force_replaces_a_report(capsys, tmp_path):
    out = tmp_path / "out"
    argv = ["profile", "mlp", *SMALL, "--modes", "no_grad", "--quiet", "--out", str(out)]
    assert main(argv) == 0
    first = (out / "runs.csv").read_text()
    assert "--force" in fails(capsys, *argv)
    assert (out / "runs.csv").read_text() == first
    assert main([*argv, "--force"]) == 0
    assert (out / "runs.csv").read_text() != first
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# --- interruption ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("where", ["measuring", "writing"])
def test_an_interruption_leaves_nothing(capsys, tmp_path, monkeypatch, where):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    if where == "measuring":
        monkeypatch.setattr(latency, "measure", interrupt)
    else:
        monkeypatch.setattr("tgrad.profiler.html.page", interrupt)
    err = fails(capsys, "profile", "mlp", *SMALL, "--modes", "no_grad", "--out", str(tmp_path / "out"), code=130)
    assert "interrupted" in err
    assert list(tmp_path.iterdir()) == []


def test_a_real_interruption(model):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "tgrad.profiler", "profile", "model.py:interrupted", "--out", "out"]
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "tgrad: interrupted; nothing was written\n")
    assert not (model / "out").exists()


def test_a_mode_is_left_as_it_was_after_a_failure(model, capsys):
    fails(capsys, "profile", "model.py:fails_in_forward", "--modes", "inference_mode")
    assert tgrad.is_grad_enabled() and not tgrad.is_inference_mode_enabled()
