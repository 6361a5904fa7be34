"""`tgrad run`: a script's own output and exit code, and a report that is written however it ends."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest

from tests.test_cli import ROOT
from tgrad import dispatch, graph
from tgrad.engine import Walk
from tgrad.optim import Optimizer
from tgrad.profiler.cli import main
from tgrad.profiler.watching import ITERATIONS, Iterations

SCRIPT = '''import sys
import tgrad
from tgrad import nn, optim

print("args", sys.argv[1:], __name__)
model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
optimizer = optim.Adam(model.parameters())
seen = []
for i in range(7):
    optimizer.zero_grad()
    loss = (model(tgrad.ones(5, 4)) ** 2).mean()
    loss.backward()
    optimizer.step()
    if "leak" in sys.argv:
        seen.append(model(tgrad.ones(5, 4)).sum())
with tgrad.no_grad():
    model(tgrad.ones(5, 4))
if "raise" in sys.argv:
    raise ValueError("no such thing")
if "exit" in sys.argv:
    sys.exit(7)
if "words" in sys.argv:
    sys.exit("some words")
if "interrupt" in sys.argv:
    raise KeyboardInterrupt
if "wait" in sys.argv:
    import time
    print("ready", flush=True)
    time.sleep(60)
print("done")
'''
FILES = {
    "report.html", "summary.md", "runs.csv", "samples.csv", "saved.csv", "events.csv", "iterations.csv", "env.json",
    "plots",
}  # fmt: skip


def written(folder):
    return {p.name for p in folder.iterdir()}


@pytest.fixture
def script(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def test_a_whole_run(script, capsys):
    before = graph.on_save, graph.find_origin, dispatch.observer, Walk.run, Optimizer.step, sys.argv
    assert main(["run", "--out", "out", "train.py", "--", "--lr", "3", "leak"]) == 0
    assert (graph.on_save, graph.find_origin, dispatch.observer, Walk.run, Optimizer.step, sys.argv) == before
    out, err = capsys.readouterr()
    assert out == "args ['--lr', '3', 'leak'] __main__\ndone\n"
    assert written(script / "out") >= FILES
    # The sum, what its graph keeps: the batch and ReLU's result.
    leaked = 4 * (1 + 5 * 4 + 5 * 6)
    assert f"tgrad: Leak: {leaked} B (±0 B) stay after each iteration, over 7 iterations." in err
    assert "seen[" in err and "in module __main__" in err and "train.py:15" in err and "loss in module" not in err
    assert "This forward recorded a graph that was never used: train.py:15 saved" in err
    run = pd.read_csv(script / "out" / "runs.csv").iloc[0]
    own = 4 * (4 * 6 + 6 + 6 + 1)
    assert (run["workload"], run["optimizer"], run["parameters_bytes"]) == ("train.py", "Adam", own)
    assert run["parameters"] == own // 4 and run["gradients_bytes"] == own and run["optimizer_bytes"] > 2 * own
    assert run["step_kernels"] > 0 and run["backward_kernels"] > 0
    iterations = pd.read_csv(script / "out" / "iterations.csv")
    assert list(iterations["iteration"]) == list(range(7))
    assert set(iterations["live_bytes"].diff().iloc[2:]) == {leaked}
    saved = pd.read_csv(script / "out" / "saved.csv")
    assert {11, 15} <= set(saved["line"]) and saved["charged_bytes"].sum() == run["graph_bytes"]
    events = pd.read_csv(script / "out" / "events.csv")
    assert {"forward", "backward", "step"} <= set(events["phase"])
    gradients = events[(events["category"] == "gradient") & (events["action"] == "alloc")]
    assert gradients["bytes"].sum() == 7 * own
    assert run["peak_bytes"] == events["live_bytes"].max() - run["other_live_bytes"]


@pytest.mark.parametrize(
    ("argument", "code", "says"),
    [
        ("raise", 1, 'File "train.py", line 19, in <module>'), ("exit", 7, ""), ("words", 1, "some words\n"),
        ("interrupt", 130, "KeyboardInterrupt"),
    ],
)  # fmt: skip
def test_however_it_ends(script, capsys, monkeypatch, argument, code, says):
    monkeypatch.setattr("tgrad.profiler.figures.draw", lambda *a: [])  # drawing takes a second
    assert main(["run", "--out", "out", "train.py", argument]) == code
    out, err = capsys.readouterr()
    assert out == f"args ['{argument}'] __main__\n" and says in err
    assert "profiler" not in err.partition("tgrad: ")[0]  # a traceback has the script's frames alone
    assert "No leak: memory does not grow over 7 iterations." in err
    assert written(script / "out") >= FILES
    about = "It was interrupted." if code == 130 else f"It ended with exit code {code}."
    assert about in (script / "out" / "summary.md").read_text()
    assert json.loads((script / "out" / "env.json").read_text())["argv"]


def test_a_script_without_tensors_and_one_that_is_no_python(script, capsys):
    (script / "plain.py").write_text("print(6 * 7)\n")
    assert main(["run", "plain.py", "--"]) == 0
    out, err = capsys.readouterr()
    assert out == "42\n" and "ops: none" in err
    (script / "broken.py").write_text("def f(:\n")
    assert main(["run", "broken.py", "--out", "broken"]) == 1
    assert "SyntaxError" in capsys.readouterr().err and (script / "broken" / "runs.csv").exists()


def test_bad_input(script, capsys):
    assert main(["run", "missing.py"]) == 2
    assert "there is no file missing.py" in capsys.readouterr().err
    (script / "full").mkdir()
    (script / "full" / "mine.txt").write_text("")
    assert main(["run", "train.py", "--out", "full"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "not empty" in err  # before the script runs


@pytest.mark.thorough
def test_a_real_interruption(script):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "tgrad.profiler", "run", "--out", "out", "train.py", "--", "wait"]
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("args") and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "KeyboardInterrupt" in err and "the report is in out/report.html" in err
    assert written(script / "out") >= FILES


def test_iterations_take_bounded_room():
    found = Iterations()
    for i in range(10 * ITERATIONS):
        found.add(100 + 3 * i)
    assert len(found.numbers) <= ITERATIONS + 1 and found.count == 10 * ITERATIONS
    slope, ci = found.slope()
    assert abs(slope - 3) < 1e-9 and ci < 1e-6
