"""The tiles of attention, compiled ahead of time for three chips and held to static gates; no GPU is needed.

Here: one variant of each row of the table for sm_90. `--thorough` compiles every variant for each of the three chips.
"""

import functools

import pytest

from tests import aot_gates as gates
from tests.aot_attention import moves
from tests.aot_reports import made

ROWS = pytest.mark.parametrize("arch, how", [
    (90, "some"), *(pytest.param(a, "every", marks=pytest.mark.thorough) for a in (80, 90, 100))])  # fmt: skip


@functools.cache
def tiles(arch: int, how: str) -> dict:
    """Figures by label."""
    report = made(f"attention_{arch}_{how}", "tests.aot_attention", str(arch), how, TGRAD_LAUNCH=f"compile:{arch}")
    assert report
    return report


@ROWS
@pytest.mark.parametrize(
    "gate", [gates.no_spills, gates.shared_fits, gates.right_arithmetic, gates.matrix_units, moves],
    ids=lambda g: g.__name__,
)  # fmt: skip
def test_tiles(arch, how, gate):
    wrong = [f"{label}: {gate(f)}" for label, f in tiles(arch, how).items() if gate(f)]
    assert not wrong, "\n".join(wrong)


@ROWS
def test_every_row_is_compiled(arch, how):
    from tgrad.kernels.attention_tiles import TILES, blocks
    from tgrad.kernels.matmul_tiles import kind_of

    seen = set()
    for f in tiles(arch, how).values():
        kernel, dtype, width, *_ = f["variant"].values()
        kind = kernel, kind_of(dtype)
        seen.add((*kind, next(w for w in TILES[kind] if max(blocks(width), 16) <= w)))
    assert seen == {(*kind, width) for kind, rows in TILES.items() for width in rows}


def test_tiles_of_one_chip_stand_in_for_a_row_of_the_table():
    from tgrad.kernels.attention_tiles import CASES, INSTEAD, TILES

    for (chip, kernel, kind, width), cases in INSTEAD.items():
        row = TILES[kernel, kind][width]
        assert chip in (8, 9, 10), chip
        for case, found in cases.items():
            name, *more = case.split()
            usual = row[min(CASES.index(name), len(row) - 1)]
            assert found != usual and found.bl > 0, (chip, kernel, kind, width, case)
            assert more in ([], ["wide"]) or (kernel, more) == ("key", ["grouped"]), case
            # The host asks for "together" before it knows how heads are grouped.
            assert more != ["grouped"] or found.together == usual.together, case


FIGURES = {"aligned": True, "async16": 4, "loads": {"4": 3}, "stores": {"16": 4, "4": 1}}


@pytest.mark.parametrize(
    "change, says",
    [({}, None), ({"async16": 0}, "loads of {'4': 3} bytes"), ({"async16": 0, "loads": {"16": 1}}, None),
     ({"stores": {"8": 4}}, "stores of"), ({"stores": {"16": 1, "2": 8}}, "stores of"),
     ({"stores": {"2": 8}, "async16": 0, "aligned": False}, None)],
)  # fmt: skip
def test_gate_of_moves(change, says):
    said = moves(FIGURES | change)
    assert said is None if says is None else says in (said or "nothing wrong")
