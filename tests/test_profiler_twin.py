"""The twin in PyTorch: its rows, its check by MemTracker, a user's own twin, and a PyTorch model alone."""

import math

import pytest
import torch

from tgrad.profiler import profile, torch_twin, twins, words
from tgrad.profiler.cli import main
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.torch_twin import Twin
from tgrad.profiler.workloads import Options, make

FILE = """
import torch
from torch import nn

import tgrad
from tgrad import nn as ours

def factory(batch_size=3):
    return ours.Sequential(ours.Linear(6, 4), ours.ReLU()), tgrad.randn(batch_size, 6), lambda y: (y * y).sum()

def torch_twin(batch_size=3):
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU()), torch.randn(batch_size, 6), lambda y: (y * y).sum()

def layer():
    return nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), torch.randn(2, 3, 8)

def fails():
    return nn.Linear(3, 3), torch.randn(2, 4)

def without_tensor():
    return nn.Linear(3, 3), 4
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(FILE)
    return tmp_path


def deep(depth=2, width=8):
    layers = [m for _ in range(depth) for m in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    return torch.nn.Sequential(*layers)


def test_rows_name_op_argument_module_and_line():
    record, rows = torch_twin.profile(Twin(deep(), lambda: ((torch.randn(3, 8),), ()), lambda y: y.sum()), "deep", "id")
    named = [(r.op, r.argument, r.category, r.module, r.charged_bytes) for r in rows]
    assert named == [
        ("Addmm", "mat1", "input", "0", 96), ("Relu", "result", "intermediate", "1", 96),
        ("Addmm", "mat1", "intermediate", "2", 0), ("Addmm", "mat2", "parameter", "2", 256),
        ("Relu", "result", "output", "3", 96),
    ]  # fmt: skip
    assert all(r.file.endswith("test_profiler_twin.py") and r.line for r in rows)
    kept = [r for r in rows if r.category != "parameter"]
    assert sum(r.charged_bytes for r in kept) == record.graph_bytes == 3 * 96


@pytest.mark.parametrize("name", ["mlp", "digits", "tutorial"])
def test_the_hooks_agree_with_mem_tracker_to_the_byte(name):
    pytest.importorskip("torch.distributed._tools.mem_tracker")
    if name == "digits":
        pytest.importorskip("sklearn")
    record, _ = torch_twin.profile(make(name, Options(batch_size=4)).twin(), name, "id")
    assert not math.isnan(record.mem_tracker_peak_bytes)
    # Cross-entropy's log-softmax returns a result of its own, which is saved: nothing is live beside what hooks see.
    assert record.residual_bytes == 0
    assert record.mem_tracker_peak_bytes >= record.mem_tracker_bytes


def test_what_mem_tracker_counts_beside_is_itemised():
    class Holds(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.seen = torch.nn.Linear(4, 5), []

        def forward(self, x):
            y = self.inner(x)
            self.seen.append(y * 2)  # needed by no formula
            return y.relu()

    record, _ = torch_twin.profile(Twin(Holds(), lambda: ((torch.randn(3, 4),), ())), "holds", "id")
    # What the model holds from the run that the hooks saw was live before MemTracker began: the rest is its own run's.
    assert record.residual_bytes == 3 * 5 * 4
    assert "counts +60 bytes beside that" in words.twin_sentence(record) and "Activation" in record.mem_tracker_kinds


def test_without_mem_tracker_its_figures_are_nan(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.distributed._tools.mem_tracker", None)
    record = torch_twin.measure(deep(), lambda: ((torch.randn(3, 8),), ()))
    assert math.isnan(record.mem_tracker_bytes) and math.isnan(record.residual_bytes)


def test_gradients_of_the_twin_survive_and_hooks_are_gone():
    module = deep()
    module(torch.randn(3, 8)).sum().backward()
    had = [p.grad for p in module.parameters()]
    torch_twin.measure(module, lambda: ((torch.randn(3, 8),), ()))
    assert all(p.grad is g for p, g in zip(module.parameters(), had, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


def test_side_by_side(tmp_path):
    report = profile("mlp", ["grad", "no_grad"], batch_size=8, width=16, depth=2, repeats=1, warmup=0, vs="torch")
    table = twins.beside(report.saved[report.saved["mode"] == "grad"], report.twin_saved)
    assert list(table["module"])[:5] == ["0", "1", "2", "3", "4"]
    assert table["tgrad_bytes"].sum() == report.runs["graph_bytes"][0]
    assert table["torch_bytes"].sum() == report.twins["graph_bytes"][0]
    assert list(table["difference_bytes"][:5]) == [0] * 5
    text = "\n".join(twins.sentences(twins.only(report.saved[report.saved["mode"] == "grad"], report.twin_saved)))
    assert "PyTorch saves this, tgrad does not: 8x10 float32 (intermediate, 320 bytes)" in text
    folder = report.save(tmp_path / "out")
    assert (folder / "twins.csv").is_file() and (folder / "twin_saved.csv").is_file()
    assert "Beside PyTorch" in (folder / "report.html").read_text()
    assert "| engine |" in (folder / "summary.md").read_text()


def test_a_users_twin_and_a_model_alone(model, capsys):
    given = ["--batch-size", "5", "--vs", "torch", "--repeats", "1", "--modes", "grad"]
    assert main(["profile", "model.py:factory", *given]) == 0
    out = capsys.readouterr().out
    assert "torch 2" in out and "MemTracker" in out
    assert main(["profile", "model.py:layer", "--out", "out"]) == 0
    out = capsys.readouterr().out
    assert "self_attn" in out and "tgrad bytes" not in out and "run by PyTorch alone" in out
    page = (model / "out" / "report.html").read_text()
    assert "self_attn" in page and "what the allocator says" not in page
    assert main(["profile", "model.py:layer", "--json"]) == 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["model.py:fails"], "the twin of workload fails failed"),
        (["model.py:without_tensor"], "not PyTorch's tensor"),
        (["mlp", "--vs", "jax"], "unknown engine 'jax'"),
    ],
)
def test_bad_input(model, capsys, argv, says):
    assert main(["profile", *argv]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_a_workload_without_a_twin(model):
    import tgrad
    from tgrad import nn
    from tgrad.profiler import Workload

    workload = Workload("mine", nn.Linear(2, 2), lambda: ((tgrad.randn(1, 2),), ()))
    with pytest.raises(ProfilerError, match="has no twin in PyTorch"):
        profile(workload, ["grad"], repeats=1, warmup=0, vs="torch")
