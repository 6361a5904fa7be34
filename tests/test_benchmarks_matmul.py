"""The code of the tuner of matrix products runs; what it would print of a GPU is not tested."""

from tests.benchmarks import tune_matmul
from tgrad.device import compute
from tgrad.kernels.matmul_tiles import SHARED, TILES, Tile, shared


def test_tuner_says_that_there_is_no_device(capsys):
    if compute.type != "cuda":
        assert tune_matmul.main([]) == 3
        assert "no CUDA device" in capsys.readouterr().err


def test_candidates_hold_the_table():
    """What the tuner would time includes every tile that is used now."""
    for (arch, kind), rows in TILES.items():
        offered = {t[:6] for tma in (True, False) for t in tune_matmul.candidates(arch, kind, tma)}
        assert {t[:6] for t in rows} <= offered
        size = {"half": 2, "fp32": 4, "fp64": 8}[kind]
        assert all(shared(t, size) <= SHARED[arch] for t in tune_matmul.candidates(arch, kind, True))


def test_tuner_keeps_what_is_faster_than_all_smaller():
    tile = lambda bm, bn, stages, tma, rate: Tile(bm, bn, 64, 4, stages, tma, rate)
    rows = [
        tile(128, 256, 3, True, 600.0), tile(128, 256, 4, True, 610.0), tile(128, 128, 3, True, 620.0),
        tile(64, 64, 3, True, 300.0), tile(64, 128, 3, False, 200.0), tile(64, 64, 3, False, 250.0),
    ]  # fmt: skip
    assert [t.rate for t in tune_matmul.kept(rows)] == [620.0, 300.0, 250.0]
