"""The tiles of matrix products, compiled ahead of time for three chips and held to static gates; no GPU is needed.

Here: one or two variants of each tile of the tables. `python -m tests.aot_tiles 90` compiles all of them.
"""

import functools

import pytest

from tests import aot_gates as gates
from tests.aot_reports import made

ARCHS = pytest.mark.parametrize("arch", [80, 90, 100])


@functools.cache
def tiles(arch: int) -> dict:
    """Figures by label."""
    report = made(f"tiles_{arch}", "tests.aot_tiles", str(arch), "some", TGRAD_LAUNCH=f"compile:{arch}")
    assert report
    return report


@ARCHS
@pytest.mark.parametrize("gate", gates.TILE_GATES, ids=lambda g: g.__name__)
def test_tiles(arch, gate):
    wrong = [f"{label}: {gate(f)}" for label, f in tiles(arch).items() if gate(f)]
    assert not wrong, "\n".join(wrong)


@ARCHS
def test_every_tile_is_compiled(arch):
    from tgrad.kernels.matmul_tiles import TILES, kind_of

    kinds = {"*bf16": "half", "*fp32": "fp32"}
    seen = {(kinds[t], tuple(f["tile"].values())) for f in tiles(arch).values() for t in f["types"]}
    for (chip, kind), rows in TILES.items():
        if chip == arch and kind != "fp64":
            assert {(kind, tuple(t)) for t in rows} <= seen
    assert kind_of("fp16") == kind_of("bf16") == "half", "float16 has the tiles of bfloat16, and its code"


@ARCHS
def test_kernels(arch):
    """Pieces are added by a kernel of their own; the bulk copy engine serves from Hopper on."""
    names = {f["kernel"].rpartition(".")[2] for f in tiles(arch).values()}
    assert names == {"matmul", "combine"} | ({"matmul_tma"} if arch >= 90 else set())


# --- the gates can fail ----------------------------------------------------------------------------------------------
FIGURES = {
    "kernel": "matmul_tma", "types": ["*bf16"], "arch": 90, "warps": 8, "matrix": ["wgmma.mma_async"], "bulk": 3,
    "async16": 0, "adds": 0, "loads": {}, "stores": {}, "aligned": True, "precision": "tf32x3",
    "tile": {"bm": 128, "bn": 128, "tma": True},
}  # fmt: skip
POINTER = {"kernel": "matmul", "bulk": 0, "stores": {"16": 4}, "tile": {"bm": 128, "bn": 128, "tma": False}}


@pytest.mark.parametrize(
    "gate, change, says",
    [
        (gates.tile_matrix_units, {}, None), (gates.tile_matrix_units, {"matrix": ["mma.sync"]}, "no wgmma"),
        (gates.tile_matrix_units, {"tile": {"bm": 16}, "matrix": ["mma.sync"]}, None),
        (gates.tile_matrix_units, {"tile": {"bm": 16}, "matrix": []}, "no mma.sync"),
        (gates.tile_moves, {}, None), (gates.tile_moves, {"bulk": 1}, "1 bulk copies"),
        (gates.tile_moves, POINTER, "loads of {} bytes"), (gates.tile_moves, POINTER | {"async16": 4}, None),
        (gates.tile_moves, POINTER | {"loads": {"16": 4}, "stores": {"4": 9}}, "stores of"),
        (gates.tile_moves, POINTER | {"loads": {"2": 4}, "stores": {"2": 9}, "aligned": False}, None),
        (gates.tile_adds_outside, {}, None), (gates.tile_adds_outside, {"types": ["*fp32"]}, "0 additions"),
        (gates.tile_adds_outside, {"types": ["*fp32"], "adds": 64}, None),
        (gates.tile_adds_outside, {"types": ["*fp32"], "precision": "tf32"}, None),
    ],
)  # fmt: skip
def test_gates_of_tiles(gate, change, says):
    said = gate(FIGURES | change)
    assert said is None if says is None else says in (said or "nothing wrong")
