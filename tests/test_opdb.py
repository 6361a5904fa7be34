"""torch's op database: a sample of every op that tgrad has under torch's name. All of it: `python -m tests.opdb`."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tgrad
from tests.opdb import scope
from tests.opdb.agreement import difference
from tests.opdb.translate import Untranslatable, to_tgrad, to_torch

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_samples_agree(tmp_path):
    """In a process of its own: torch.testing._internal changes torch's global flags."""
    out = tmp_path / "opdb.csv"
    done = subprocess.run([sys.executable, "-m", "tests.opdb", "--quick", "--jobs", "1", "--csv", str(out)], cwd=ROOT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert int(done.stdout.splitlines()[-1].split()[0]) >= 200  # ops
    assert sum(int(r["failed"]) for r in rows) == 0
    assert sum(int(r["agreed"]) for r in rows) > 250


@pytest.mark.parametrize("dtype, off", [
    (torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 3e-3), (torch.int64, 1),
], ids=str)  # fmt: skip
def test_a_difference_is_found(dtype, off):
    want = torch.arange(1, 7).reshape(2, 3).to(dtype)
    wide = want.double() if dtype.is_floating_point else None
    same, other = (to_tgrad(False)(t) for t in (want, (want + want * off).to(dtype)))
    assert difference(same, want, wide, "x") is None
    assert "elements differ" in difference(other, want, wide, "x")
    assert "shape" in difference(same[0], want, wide, "x")
    assert "dtype" in difference(same.to(tgrad.uint8), want, wide, "x")
    assert "3 results" in difference([same, same], [want] * 3, None, "x")


def test_special_values_differ_from_numbers():
    want = torch.tensor([1.0, float("nan"), float("inf")])
    for values, agree in (([1.0, float("nan"), float("inf")], True), ([1.0, 0.0, float("inf")], False),
                          ([1.0, float("nan"), -float("inf")], False)):  # fmt: skip
        assert (difference(tgrad.tensor(values), want, want.double(), "x") is None) is agree


def test_a_sample_is_translated_with_its_memory():
    base = torch.arange(12.0).reshape(3, 4)
    sample = (base.t()[1:], [base.t()[1:], slice(1, None), torch.float32], {"p": base[0].requires_grad_()})
    ours, theirs = to_tgrad(True), to_torch(True, wide=True)
    a, b = ours(sample), theirs(sample)
    assert a[0].stride() == b[0].stride() == base.t()[1:].stride() and a[0].storage_offset() == 1
    assert a[0].tolist() == b[0].tolist() == base.t()[1:].tolist()
    assert a[1][2] is tgrad.float32 and b[1][2] is torch.float64 and b[0].dtype is torch.float64
    assert len(ours.inputs) == len(theirs.inputs) == 1 and a[2]["p"].requires_grad


def test_what_is_out_of_scope_is_named():
    for value in (torch.zeros(2, dtype=torch.complex64), 1j, torch.zeros(2, dtype=torch.int8), torch.strided,
                  torch.channels_last, torch.eye(2).to_sparse()):  # fmt: skip
        with pytest.raises(Untranslatable) as caught:
            to_tgrad(False)(value)
        assert scope.of_value(str(caught.value))
    assert scope.of_error("norm.nuc", RuntimeError("norm: order 'nuc' is not supported")) is not None
    assert scope.of_error("norm", RuntimeError("norm: order 'nuc' is not supported")) is None
    assert scope.of_error("norm.nuc", RuntimeError("another error")) is None
