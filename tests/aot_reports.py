"""Reports of programs that run in processes of their own, made once for each state of the sources.

They are kept in .pytest_cache/aot, beside the kernels that Triton compiled for them.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import triton

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".pytest_cache" / "aot"
SOURCES = (
    "kernels/*.py",
    "kernels/*.c",
    "tgrad/*.py",
    "tgrad/*.c",
    "tgrad/[!kp]*/**/*.py",
    "tests/aot_*.py",
    "tests/stub/*",
    "tests/samples.py",
    "tests/sampling.py",
    "tests/compare.py",
)


@functools.cache
def state() -> str:
    """A name for the sources and versions that reports depend on."""
    files = sorted({p for pattern in SOURCES for p in ROOT.glob(pattern) if p.is_file()})
    contents = [f"{p.relative_to(ROOT)}\n".encode() + p.read_bytes() for p in files]
    versions = f"{sys.version} {torch.__version__} {triton.__version__}".encode()
    return hashlib.sha256(b"\0".join([versions, *contents])).hexdigest()[:20]


def made(name: str, module: str, *arguments: str, wait: bool = True, **environment: str) -> dict | None:
    """The report of `python -m module *arguments REPORT`; None if another process is making it and `wait` is False.

    Raises:
        RuntimeError: the program failed.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    name += "-thorough" * (os.environ.get("TGRAD_THOROUGH") == "1")
    path = CACHE / f"{name}-{state()}.json"
    with open(CACHE / f"{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return None
        if not path.exists():
            for old in CACHE.glob(f"{name}-*.json"):
                old.unlink()
            inherited = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "TGRAD_LAUNCH")}
            given = {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(CACHE / "triton"), **environment}
            part = path.with_suffix(".part")
            command = [sys.executable, "-m", module, *arguments, str(part)]
            done = subprocess.run(command, env=inherited | given, capture_output=True, text=True, cwd=ROOT, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
            part.rename(path)
        return json.loads(path.read_text())
