"""What this machine can measure and what it cannot, each with the reason."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tgrad.device import compute, describe
from tgrad.kernels import interpret, launch, native

TESTED = ((3, 6), (3, 7))  # of Triton


@dataclass(frozen=True)
class Fact:
    """what: a capability; can: whether it is there; why: what was found, and what to do about it."""

    what: str
    can: bool
    why: str


def facts() -> list[Fact]:
    """All of them, the device first."""
    return [
        _device(), _device_time(), _triton(), _interpreter(), _compiler(), _writable("working folder", Path.cwd()),
        _writable("cache of kernels", _cache()), _writable("temporary folder", Path(tempfile.gettempdir())),
        _package("scikit-learn", "sklearn", "workload digits"),
        _package("pyarrow", "pyarrow", "Parquet files beside the CSV ones"), _mem_tracker(),
    ]  # fmt: skip


def _device() -> Fact:
    if compute.type == "cuda":
        found = describe()
        return Fact("GPU", True, f"{found['gpu']}, CUDA {found['cuda']}, compute capability {found['capability']}")
    why = "TGRAD_LAUNCH is set" if "TGRAD_LAUNCH" in os.environ else "no CUDA device, or TRITON_INTERPRET=1"
    return Fact("GPU", False, f"{why}: bytes are exact all the same, times say nothing about a GPU")


def _device_time() -> Fact:
    if compute.type == "cuda":
        return Fact("device time", True, "CUDA events, beside the wall time")
    return Fact("device time", False, "no CUDA events on the CPU: gpu_ms is NaN; wall_ms and host_ms are the CPU's")


def _triton() -> Fact:
    version = metadata.version("triton")
    known = tuple(int(n) for n in version.split(".")[:2]) in TESTED
    listed = " and ".join(".".join(map(str, v)) for v in TESTED)
    return Fact("Triton", known, version if known else f"{version}: tgrad is tested with {listed}; use one of those")


def _interpreter() -> Fact:
    if not launch.INTERPRET:
        return Fact("interpreter", False, "not in use: kernels are compiled; set TRITON_INTERPRET=1 to run on the CPU")
    if interpret._usable_here():
        return Fact("interpreter", True, "tgrad's launches, bfloat16 and nan rules passed their self-test")
    return Fact("interpreter", False, "this Triton's internals are unknown: kernels run in its own interpreter, slowly")


def _compiler() -> Fact:
    names = [os.environ["CC"]] if os.environ.get("CC") else ["cc", "gcc", "clang"]
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        why = f"{' or '.join(names)} is not on PATH: Triton cannot build launchers for a GPU; install one"
        return Fact("C compiler", False, why)
    if launch.INTERPRET:
        return Fact("C compiler", True, f"{found} (the interpreter does not need it)")
    if native.module() is None:
        why = f"{found} did not build the native launcher (or TGRAD_NATIVE=0): each op costs about 0.8 us more"
        return Fact("C compiler", False, why)
    return Fact("C compiler", True, f"{found}; the native launcher is built")


def _cache() -> Path:
    home = Path(os.environ.get("TRITON_HOME") or Path.home())
    return Path(os.environ.get("TRITON_CACHE_DIR") or home / ".triton" / "cache")


def _writable(what: str, folder: Path) -> Fact:
    there = next(p for p in (folder, *folder.parents) if p.exists())
    probe = there / f".tgrad-{os.getpid()}.probe"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        return Fact(what, False, f"{folder} cannot be written to ({error.strerror or error}); change its permissions")
    return Fact(what, True, f"{folder} can be written to")


def _package(name: str, module: str, use: str) -> Fact:
    if importlib.util.find_spec(module) is None:
        return Fact(name, False, f"not installed: no {use}; pip install {name}")
    return Fact(name, True, f"{metadata.version(name)}, for {use}")


def _mem_tracker() -> Fact:
    from tgrad.profiler import torch_twin

    why = torch_twin.no_mem_tracker()
    return Fact("PyTorch's MemTracker", not why, why or "cross-checks what hooks see of a PyTorch model")
