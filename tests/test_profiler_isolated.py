"""Measurements in processes of their own: the same bytes, and errors in one line."""

import pytest

from tgrad.profiler import Workload, isolated, profile
from tgrad.profiler.cli import main
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.records import RunRecord, columns
from tgrad.profiler.scale import scale

SMALL = {"batch_size": 4, "width": 8, "depth": 1, "repeats": 1, "warmup": 0}
EXACT = [
    c for c in columns(RunRecord)
    if c.endswith(("_bytes", "_kernels", "_ops")) and not c.startswith(("live", "other"))
]  # fmt: skip


@pytest.mark.thorough
def test_a_process_for_each_engine_and_mode(monkeypatch):
    called = []
    call = isolated.call

    def noted(task, **arguments):
        called.append((task, arguments.get("mode")))
        return call(task, **arguments) if task == "profile" else isolated.TASKS[task](**arguments)

    monkeypatch.setattr(isolated, "call", noted)
    alone = profile("mlp", ["no_grad"], isolate=True, vs="torch", **SMALL)
    assert called == [("profile", "no_grad"), ("twin", None)]
    here = profile("mlp", ["no_grad"], vs="torch", **SMALL)
    assert alone.runs[EXACT].equals(here.runs[EXACT])
    assert alone.twins["graph_bytes"].equals(here.twins["graph_bytes"])
    assert alone.environment["device"] == here.environment["device"] and "peak" in alone.sentences()["mlp"]


@pytest.mark.thorough
def test_points_of_the_scale_law(monkeypatch):
    def call(task, **arguments):  # the task itself, in this process
        return isolated.TASKS[task](**arguments)

    monkeypatch.setattr(isolated, "call", call)
    sizes, given = [2, 3, 4], {"width": 8, "depth": 1}
    assert scale("mlp", sizes, ["grad"], isolate=True, **given) == scale("mlp", sizes, ["grad"], **given)


def test_what_goes_wrong(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text("import os\ndef dies(): os._exit(3)\n")
    with pytest.raises(ProfilerError, match="a process ended with exit code 3: no word"):
        isolated.call("twin", workload="model.py:dies", options={})
    import tgrad

    mine = Workload("mine", lambda x: x, lambda: ((tgrad.ones(1),), ()))
    with pytest.raises(ProfilerError, match="a Workload cannot be sent to another process"):
        profile(mine, ["grad"], isolate=True)
    isolated.main("twin", '{"workload": "nope", "options": {}}', str(tmp_path / "file"))
    monkeypatch.setattr(isolated.subprocess, "run", lambda *a, **k: (tmp_path / "file").rename(a[0][-1]))
    with pytest.raises(ProfilerError, match="unknown workload 'nope'"):
        isolated.call("twin", workload="nope", options={})
    assert main(["profile", "nope", "--isolate"]) == 2  # before any process
    assert "unknown workload 'nope'" in capsys.readouterr().err
