"""Every kernel compiled ahead of time for sm_80, sm_90 and sm_100, and held to static gates; no GPU is needed.

The sweeps (aot_sweep.py) run in processes without the interpreter, once for each state of the sources; of several test
processes each takes what is not being made yet.
"""

import functools

import pytest

from tests import aot_gates as gates
from tests.aot_reports import made

SHARDS = {90: 2, 80: 1, 100: 1}
EVERY = [(arch, shard) for arch, n in SHARDS.items() for shard in range(n)]


@functools.cache
def shard(arch: int, number: int) -> dict:
    """The report of one sweep. If another process is at it, the others are made first."""

    def report(arch: int, number: int, wait: bool) -> dict | None:
        arguments = str(arch), str(number), str(SHARDS[arch])
        return made(f"sm_{arch}-{number}", "tests.aot_sweep", *arguments, wait=wait, TGRAD_LAUNCH=f"compile:{arch}")

    found = report(arch, number, wait=False)
    if found is None:
        for other in EVERY:
            report(*other, wait=False)
        found = report(arch, number, wait=True)
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
def test_every_kernel_is_compiled(arch):
    compiled = {f["kernel"] for _, _, f in sweep(arch)}
    later = {"tgrad.kernels.matmul_tma.matmul_tma"} if arch < 90 else set()
    assert not set(shard(arch, 0)["all"]) - compiled - later, "kernels that no program of aot_sweep.py launches"


def test_every_row_is_compiled():
    from tgrad.ops import pointwise as p

    functions = {name for _, _, f in sweep(90) for name in f["scalar"]}
    assert not {row.fn.__name__ for row in p.TABLE.values()} - functions, "rows whose scalar function was not compiled"


@ARCHS
@pytest.mark.parametrize(
    "gate", [gates.no_spills, gates.shared_fits, gates.right_arithmetic, gates.not_contracted], ids=lambda g: g.__name__
)
def test_every_kernel(arch, gate):
    hold(arch, gate)


@ARCHS
def test_dense_pointwise_moves_16_bytes(arch):
    hold(arch, gates.wide_accesses, "dense")


@ARCHS
def test_steps_of_many_parameters_move_16_bytes(arch):
    hold(arch, gates.wide_tiles, "many", only=lambda f: ".multi_tensor." in f["kernel"])


@ARCHS
def test_broadcasts_transposes_and_reductions_move_16_bytes(arch):
    named = (".pointwise", ".pointwise_tiles", ".reduce", ".extreme", ".scan")
    hold(arch, gates.vector_accesses, "vector", only=lambda f: f["kernel"].endswith(named))


@ARCHS
def test_odd_sizes_move_16_bytes(arch):
    hold(arch, gates.wide_tiles, "odd", only=lambda f: f["constants"].get("SPLIT"))


@ARCHS
def test_rows_are_read_and_written_once(arch):
    hold(arch, gates.vector_accesses, "once", only=lambda f: f["kernel"].rpartition(".")[2] in gates.READ)
    hold(arch, gates.read_once, "once", only=lambda f: f["kernel"].rpartition(".")[2] in gates.READ)


@ARCHS
def test_unaligned_is_never_read_wide(arch):
    hold(arch, gates.element_accesses, "unaligned")


@ARCHS
def test_products_run_on_matrix_units(arch):
    """Of any generation: test_aot_tiles.py says of each tile which."""
    hold(arch, gates.any_matrix_units, "product", only=lambda f: f["kernel"].endswith((".matmul", ".matmul_tma")))


@ARCHS
def test_attention_runs_on_the_chips_own_matrix_units(arch):
    hold(arch, gates.matrix_units, "attention", only=lambda f: ".attention" in f["kernel"])


# --- the gates can fail ----------------------------------------------------------------------------------------------
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
        (gates.element_accesses, "aligned", "accesses of"), (gates.wide_tiles, "unaligned", "loads of"),
        (gates.vector_accesses, "unaligned", "loads of"),
    ],
)  # fmt: skip
def test_gate_fails(gate, name, says):
    assert says in (gate(bad()[name]) or "nothing wrong")


@pytest.mark.parametrize(
    "gate, name",
    [
        (gates.not_contracted, "not_contracted"), (gates.wide_accesses, "aligned"),
        (gates.element_accesses, "unaligned"), (gates.wide_tiles, "aligned"), (gates.no_spills, "aligned"),
        (gates.vector_accesses, "aligned"),
        (gates.right_arithmetic, "aligned"),
    ],
)  # fmt: skip
def test_gate_passes(gate, name):
    assert gate(bad()[name]) is None


ROWS = {
    "kernel": "tgrad.kernels.row_norm.norm_backward", "types": ["*bf16", "*fp32"], "warps": 4,
    "constants": {"BM": 2, "BN": 1024, "WHOLE": 1, "WEIGHT": 1}, "loads": {"16": 6, "8": 2}, "stores": {"16": 2},
}  # fmt: skip
SUMS = {
    "kernel": "tgrad.kernels.row_norm.norm_backward_sums", "loads": {"16": 5, "8": 2}, "stores": {"16": 6},
    "constants": ROWS["constants"] | {"BY_WEIGHT": 1, "BY_BIAS": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    "change, says",
    [
        ({}, None), ({"loads": {"16": 7}}, None), ({"loads": {"16": 8}}, "128 bytes read 16 at a time, not 3 x 32"),
        ({"loads": {"16": 4, "2": 16}}, "64 bytes read"), ({"stores": {"2": 16}}, "0 bytes written"),
        ({"loads": {"16": 9}, "constants": {"WHOLE": 0}}, None),
        ({"kernel": "tgrad.kernels.softmax.softmax"}, "not 2 x 32"),
        (SUMS, None), (SUMS | {"loads": {"16": 7}}, "96 bytes read 16 at a time, not 2 x 32"),
        (SUMS | {"stores": {"16": 2, "4": 16}}, "32 bytes written 16 at a time, not 32 + 64"),
    ],
)  # fmt: skip
def test_gate_of_rows(change, says):
    said = gates.read_once(ROWS | change)
    assert said is None if says is None else says in (said or "nothing wrong")


def test_shared_gate_fails():
    assert "limit" in gates.shared_fits({"arch": 80, "shared": 200_000})
    assert gates.shared_fits({"arch": 90, "shared": 200_000}) is None
