"""The benchmarks' code runs: each section of the GPU's once on the CPU, tiny."""

import csv
import json

import torch

from tests.benchmarks import gpu
from tgrad.device import compute


def test_gpu_benchmarks_run_dry(tmp_path, capsys):
    if compute.type != "cuda":
        assert gpu.main(["--out", str(tmp_path), "--dry-run"]) == 0, capsys.readouterr().err
        found = json.loads((tmp_path / "gpu.json").read_text())
        assert not found["failures"]
        assert {row["section"] for row in found["rows"]} == {section.__name__ for section in gpu.SECTIONS}
        errors = [row["error"] for row in found["rows"] if row["error"] is not None]
        assert errors and max(errors) < 0.02
        with open(tmp_path / "gpu.csv") as file:
            assert len(list(csv.DictReader(file))) == len(found["rows"])
        assert "MLP step" in capsys.readouterr().out


def test_failure_is_kept(tmp_path, capsys, monkeypatch):
    def broken(b):
        raise RuntimeError("out of luck")

    if compute.type != "cuda":
        monkeypatch.setattr(gpu, "SECTIONS", (broken, gpu.tiny))
        assert gpu.main(["--out", str(tmp_path), "--dry-run"]) == 1
        printed = capsys.readouterr()
        assert "out of luck" in printed.out and "tiny" in printed.out


def test_no_device_is_said(tmp_path, capsys):
    if not torch.cuda.is_available():
        assert gpu.main(["--out", str(tmp_path)]) == 3
        assert capsys.readouterr().err.count("\n") == 1
        assert not list(tmp_path.iterdir())


def test_no_time_left(tmp_path, capsys):
    if compute.type != "cuda":
        assert gpu.main(["--out", str(tmp_path), "--dry-run", "--budget", "-1"]) == 0
        assert capsys.readouterr().out.count("out of time") == len(gpu.SECTIONS)
