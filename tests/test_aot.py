"""Every kernel compiled ahead of time for sm_80, sm_90 and sm_100, and held to static gates; no GPU is needed.

The sweeps (aot_sweep.py) run in processes without the interpreter, once for each state of the sources: their reports are
kept in .pytest_cache/aot, and with several test processes each takes what is not being made yet.
"""

import fcntl
import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from tests import aot_gates as gates

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".pytest_cache" / "aot"
SHARDS = {90: 2, 80: 1, 100: 1}
EVERY = [(arch, shard) for arch, n in SHARDS.items() for shard in range(n)]


@functools.cache
def state() -> str:
    """A name for the sources that sweeps depend on."""
    sources = [ROOT / "tests" / name for name in ("compare.py", "samples.py")]
    sources += [*ROOT.glob("kernels/*.py"), *ROOT.glob("tgrad/*.py"), *ROOT.glob("tgrad/[!kp]*/**/*.py"), *ROOT.glob("tests/aot_*.py")]
    contents = [f"{p.relative_to(ROOT)}\n".encode() + p.read_bytes() for p in sorted(sources)]
    return hashlib.sha256(b"\0".join([triton.__version__.encode(), *contents])).hexdigest()[:20]


def made(name: str, module: str, *arguments: str, wait: bool = True, **environment: str) -> dict | None:
    """The report `name`, made by `python -m module *arguments REPORT` if there is none; None if another process is at it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"{name}-{state()}.json"
    with open(CACHE / f"{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return None
        if not path.exists():
            for old in CACHE.glob(f"{name}-*.json"):
                old.unlink()
            inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
            given = {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(CACHE / "triton"), **environment}
            part = path.with_suffix(".part")
            command = [sys.executable, "-m", module, *arguments, str(part)]
            done = subprocess.run(command, env=inherited | given, capture_output=True, text=True, cwd=ROOT, check=False)
            if done.returncode:
                pytest.fail(f"{' '.join(command)}\n{done.stderr[-4000:]}")
            part.rename(path)
        return json.loads(path.read_text())


@functools.cache
def shard(arch: int, number: int) -> dict:
    """The report of one sweep. Sweeps that no other process is at are made first."""
    for a, n in sorted(EVERY, key=lambda s: s != (arch, number)):
        found = made(f"sm_{a}-{n}", "tests.aot_sweep", str(a), str(n), str(SHARDS[a]), wait=False, TGRAD_LAUNCH=f"compile:{a}")
        if found is not None and (a, n) == (arch, number):
            return found
    found = made(f"sm_{arch}-{number}", "tests.aot_sweep", str(arch), str(number), str(SHARDS[arch]), TGRAD_LAUNCH=f"compile:{arch}")
    assert found is not None
    return found


@functools.cache
def sweep(arch: int) -> list[tuple[list[str], frozenset[str], dict]]:
    """(labels, tags, figures) of each kernel that was compiled for `arch`."""
    kernels: dict[str, tuple[list[str], set[str], dict]] = {}
    for number in range(SHARDS[arch]):
        for key, entry in shard(arch, number)["kernels"].items():
            labels, tags, _ = kernels.setdefault(key, ([], set(), entry["figures"]))
            labels += entry["labels"]
            tags |= set(entry["tags"])
    return [(labels, frozenset(tags), figures) for labels, tags, figures in kernels.values()]


def hold(arch, gate, *tags, only=None):
    """`gate` finds nothing wrong with the kernels that have all `tags`, of which there are some."""
    looked = [(labels, f) for labels, have, f in sweep(arch) if have.issuperset(tags) and (only is None or only(f))]
    assert looked
    wrong = [f"{labels[0]}: {f['kernel']}{f['scalar']} {f['types']}: {gate(f)}" for labels, f in looked if gate(f)]
    assert not wrong, f"{gate.__name__}: {len(wrong)} of {len(looked)} kernels\n" + "\n".join(wrong[:20])


ARCHS = pytest.mark.parametrize("arch", SHARDS)


@ARCHS
def test_everything_compiles(arch):
    for number in range(SHARDS[arch]):
        failed = shard(arch, number)["failed"]
        assert not failed, "\n".join(f"{label}\n{text}" for label, text in failed.items())


@ARCHS
def test_every_kernel_and_row_is_compiled(arch):
    from tgrad.ops import pointwise as p

    compiled = {f["kernel"] for _, _, f in sweep(arch)}
    assert not set(shard(arch, 0)["all"]) - compiled, "kernels that no program of aot_sweep.py launches"
    functions = {name for _, _, f in sweep(arch) for name in f["scalar"]}
    assert not {row.fn.__name__ for row in p.TABLE.values()} - functions, "rows whose scalar function was not compiled"


@ARCHS
@pytest.mark.parametrize("gate", [gates.no_spills, gates.shared_fits, gates.right_arithmetic, gates.not_contracted], ids=lambda g: g.__name__)
def test_every_kernel(arch, gate):
    hold(arch, gate)


@ARCHS
def test_dense_pointwise_moves_16_bytes(arch):
    hold(arch, gates.wide_accesses, "dense")


@ARCHS
def test_unaligned_is_never_read_wide(arch):
    hold(arch, gates.element_accesses, "unaligned")


@ARCHS
def test_half_products_run_on_matrix_units(arch):
    hold(arch, gates.matrix_units, "product", only=lambda f: f["kernel"].endswith(".matmul") and "*fp32" not in f["types"])


@ARCHS
def test_float32_products_run_on_matrix_units(arch):
    hold(arch, gates.any_matrix_units, "product", "float32", only=lambda f: f["kernel"].endswith(".matmul"))


# --- the gates can fail ------------------------------------------------------------------------------------------------
@functools.cache
def bad() -> dict:
    return made("bad", "tests.aot_bad") or {}


@pytest.mark.parametrize(
    "gate, name, says",
    [
        (gates.right_arithmetic, "cheap_exp", "ex2.approx"), (gates.right_arithmetic, "cheap_div", "div.full"),
        (gates.right_arithmetic, "cheap_sqrt", "sqrt.approx"), (gates.right_arithmetic, "nan_lost", "max.f32"),
        (gates.right_arithmetic, "nan_lost_64", "tests for nan"), (gates.not_contracted, "contracted", "fused"),
        (gates.no_spills, "spilled", "bytes of stack"), (gates.matrix_units, "no_matrix", "no wgmma"),
        (gates.any_matrix_units, "no_matrix", "no matrix"), (gates.wide_accesses, "unaligned", "loads of"),
        (gates.element_accesses, "aligned", "accesses of"),
    ],
)  # fmt: skip
def test_gate_fails(gate, name, says):
    assert says in (gate(bad()[name]) or "nothing wrong")


@pytest.mark.parametrize("gate, name", [(gates.not_contracted, "not_contracted"), (gates.wide_accesses, "aligned"), (gates.element_accesses, "unaligned"), (gates.no_spills, "aligned"), (gates.right_arithmetic, "aligned")])
def test_gate_passes(gate, name):
    assert gate(bad()[name]) is None


def test_shared_gate_fails():
    assert "limit" in gates.shared_fits({"arch": 80, "shared": 200_000})
    assert gates.shared_fits({"arch": 90, "shared": 200_000}) is None
