"""Doctor: every known model counted by hand, graph, ledger, hooks and MemTracker; and a fault in any of them found."""

import json

import pytest

from tgrad.profiler import doctor, kept, known, machine, memory, torch_twin
from tgrad.profiler.cli import main
from tgrad.profiler.doctor import replay
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.workloads import REGISTRY


def test_every_workload_is_known_by_hand():
    assert set(REGISTRY) <= set(known.ALL)


@pytest.mark.parametrize("name", known.ALL)
def test_the_hand_agrees_with_everything(name):
    if name == "digits":
        pytest.importorskip("sklearn")
    r = replay(known.ALL[name](rows=3))
    assert r.why == []
    assert r.hand_bytes == r.graph_bytes == r.ledger_bytes == r.hooks_bytes > 0
    # What differs from PyTorch in the parts (a log-softmax here, scores there) is the same in sum, on these models.
    assert r.torch_bytes == r.mem_tracker_bytes == r.hand_bytes


def test_a_lost_tensor_is_found(monkeypatch, capsys):
    monkeypatch.setattr(memory, "kept_by", lambda results: kept.kept_by(results)[1:])
    assert main(["doctor", "mlp"]) == 1
    out = capsys.readouterr().out
    assert "DISAGREE" in out and "by hand it is" in out and "cannot be trusted" in out


def test_a_blind_twin_is_found(monkeypatch):
    whole = torch_twin.tracked
    monkeypatch.setattr(torch_twin, "tracked", lambda twin: (*(n + 8 for n in whole(twin)[:2]), ""))
    found = doctor(["expanded"])
    assert not found.ok and "PyTorch's hooks saw 12, its MemTracker 20" in found.replays[0].why[0]


def test_without_mem_tracker_nothing_disagrees(monkeypatch):
    monkeypatch.setattr(torch_twin, "tracked", lambda twin: (float("nan"), float("nan"), ""))
    found = doctor(["expanded"])
    assert found._repr_html_().count("<table") == 2
    assert found.ok and found.as_json()["replays"][0]["mem_tracker_bytes"] is None
    assert not next(f for f in found.machine if "MemTracker" in f.what).can


def test_the_machine(monkeypatch, tmp_path):
    found = {f.what: f for f in machine.facts()}
    assert found["working folder"].can and all(f.why for f in found.values())
    monkeypatch.setenv("CC", "no-such-compiler")
    monkeypatch.setattr(machine.metadata, "version", lambda name: "2.0.1")
    found = {f.what: f for f in machine.facts()}
    assert not found["C compiler"].can and "no-such-compiler is not on PATH" in found["C compiler"].why
    assert not found["Triton"].can and "2.0.1: tgrad is tested with 3.6 and 3.7" in found["Triton"].why
    monkeypatch.setenv("TRITON_CACHE_DIR", "/proc/self/cache")
    assert not {f.what: f for f in machine.facts()}["cache of kernels"].can


def test_the_command(capsys, monkeypatch):
    assert main(["doctor", "normed", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] and found["replays"][0]["model"] == "normed" and len(found["machine"]) > 8
    assert main(["doctor", "resnet"]) == 2
    assert "unknown model 'resnet'; choose from tutorial" in capsys.readouterr().err

    def missing(rows=1):
        raise ProfilerError("workload digits: its images come with scikit-learn")

    monkeypatch.setitem(known.ALL, "digits", missing)
    assert main(["doctor", "digits", "expanded"]) == 0
    out = capsys.readouterr().out
    assert "left out: workload digits" in out and "All agree." in out
