"""The GPU path up to the driver's door: what tgrad launches, over a libcuda that does nothing (tests/stub)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stub import driver
from tests.stub.cases import CASES

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(driver.why_not() is not None, reason=str(driver.why_not()))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What each case said, run in a process of its own whose Triton launches through the stub."""
    path = tmp_path_factory.mktemp("stub") / "report.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TGRAD_LAUNCH": "driver", "PYTHONPATH": str(ROOT)}
    environment.setdefault("TRITON_CACHE_DIR", str(ROOT / ".pytest_cache/aot/triton"))  # where test_aot.py's kernels are
    done = subprocess.run(
        [sys.executable, "-m", "tests.stub.cases", str(path)], env=environment, capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(path.read_text())


@pytest.mark.xdist_group("stub")
@pytest.mark.parametrize("name", CASES)
def test_launches(report, name):
    assert not report[name], report[name]
