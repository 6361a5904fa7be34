"""What a report must say about where it was made."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import tgrad
from tgrad.device import compute, describe
from tgrad.kernels import launch

INTERPRETED = "Triton interpreter on the CPU: not GPU performance"
PACKAGES = ("torch", "triton", "numpy", "pandas", "matplotlib", "rich", "jinja2", "pyarrow", "scikit-learn")


def environment(seed: int | None = None, argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Versions, device, git state, command and machine, for env.json. What is unknown is None."""
    return {
        "tgrad": tgrad.__version__,
        "python": platform.python_version(),
        "os": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "device": str(compute),
        "is_interpreted": launch.INTERPRET,
        "timings": INTERPRETED if launch.INTERPRET else f"on {compute}",
        "device_facts": describe(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": git_state(),
        "argv": [
            os.path.basename(word) if i == 0 else word for i, word in enumerate(sys.argv if argv is None else argv)
        ],
        "seed": seed,
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("TGRAD_", "TRITON_"))},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_state() -> dict[str, Any] | None:
    """{"sha", "dirty"} of the checkout that tgrad runs from; None if it runs from none."""
    root = Path(tgrad.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    sha = _git(root, "rev-parse", "HEAD")
    status = _git(root, "status", "--porcelain")
    return {"sha": sha, "dirty": None if status is None else bool(status)}


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words],
            check=False,
            capture_output=True,
            text=True,
            timeout=10,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
