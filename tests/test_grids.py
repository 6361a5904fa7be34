"""Tiles and grids as on a GPU, by the plain functions that choose them: there are programs for all multiprocessors."""

import pytest
import triton

from tgrad.kernels import reduce, rows
from tgrad.kernels.launch import MULTIPROCESSORS

THREADS = 1024  # of a program


@pytest.fixture(autouse=True)
def on_gpu(monkeypatch):
    for module in (reduce, rows):
        monkeypatch.setattr(module, "INTERPRET", False)


SHAPES = [
    (1, 10**6), (1, 10**8 + 7), (8, 10**6), (1000, 1000), (100, 1000), (4096, 50257), (131, 10**5), (133, 10**5),
    (10**6, 8), (10**6, 1), (64, 64 * 784), (3, 2**20),
]  # fmt: skip


@pytest.mark.parametrize("across", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("m, n", SHAPES)
def test_reductions_fill_the_chip(m, n, across):
    bm, bn = reduce.tile(m, n, across)
    pieces = reduce.chunks(m, n, bm, bn)
    assert 256 <= bm * bn <= 4096 or bm >= m
    if m * n >= MULTIPROCESSORS * 4096:
        assert triton.cdiv(m, bm) * pieces >= MULTIPROCESSORS


@pytest.mark.parametrize("m, n", [*SHAPES, (1, 1), (7, 5), (1, 8192), (1, 8193), (2, 40000), (5, 10**6 + 1)])
def test_every_piece_has_something(m, n):
    """And all together have everything: chunks are whole blocks, in order."""
    for across in (False, True):
        bm, bn = reduce.tile(m, n, across)
        pieces = reduce.chunks(m, n, bm, bn)
        chunk = triton.cdiv(triton.cdiv(n, pieces), bn) * bn
        assert (pieces - 1) * chunk < n <= pieces * chunk
        assert pieces == 1 or chunk >= bn


@pytest.mark.parametrize("m, n", [(1, 100), (100, 10**4), (1, 8192), (10**5, 30)])
def test_small_reductions_take_one_pass(m, n):
    bm, bn = reduce.tile(m, n, False)
    assert reduce.chunks(m, n, bm, bn) == 1 or n > 4 * bn


@pytest.mark.parametrize("kept", [1, 2])
@pytest.mark.parametrize("m", [1, 100, 1000, 10**6])
@pytest.mark.parametrize("n", [1, 7, 64, 1000, 1024, 4097, 16384, 16385, 32768, 32769, 50257])
def test_rows_are_whole_and_fill_the_chip(m, n, kept):
    bm, bn = rows.tile(m, n, rows.longest(n, kept, "fp32"))
    warps = rows.warps(bm, bn)
    assert (bn >= n) == (triton.next_power_of_2(n) <= 32768 // kept // (2 if n % 4 else 1))
    assert 32 * warps <= THREADS and warps & (warps - 1) == 0
    assert bm * bn // (32 * warps) <= 32 // kept, "registers of each operand that is kept"
    assert bm == 1 or bm * bn <= 2048
    assert triton.cdiv(m, bm) >= min(MULTIPROCESSORS, m) or bm * bn <= 512


def test_rows_in_float64_are_shorter():
    assert rows.longest(8, 1, "fp64") == rows.longest(8, 1, "fp32") // 4
