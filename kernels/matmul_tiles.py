"""Which kernel, tile and number of pieces a matrix product gets: a plain function of sizes, types and chip.

`TILES` is what `python -m tests.benchmarks.tune_matmul` prints on a GPU. Its rates order the tiles of one chip and
kind; those that no GPU has measured for tgrad yet are estimates, and say so.
"""

from __future__ import annotations

from typing import NamedTuple

import triton

from tgrad.kernels import launch


class Tile(NamedTuple):
    """A block of the result that one program computes, BK steps along K at a time.

    Attributes:
        tma: for `matmul_tma`; else for `matmul`.
        rate: TFLOP/s on a product that fills the chip.
        parts: into how many the result is cut, which `matmul_tma` stores through shared memory: 1, 2 or 4.
    """

    bm: int
    bn: int
    bk: int
    warps: int
    stages: int
    tma: bool
    rate: float
    parts: int = 1


class Choice(NamedTuple):
    """A tile, and how many pieces K is cut into: more than one are summed by a second kernel."""

    tile: Tile
    pieces: int

    def chunk(self, k: int) -> int:
        """The length of a piece of K: a multiple of the tile's step."""
        step = self.tile.bk
        return max(1, triton.cdiv(triton.cdiv(k, self.pieces), step)) * step


class Chip(NamedTuple):
    """Multiprocessors, TB/s of memory, and TB/s into all multiprocessors (from L2)."""

    multiprocessors: int
    memory: float
    cache: float


# A100, H200, B200: multiprocessors and memory of the data sheets (H200: a copy was measured at 4.3 TB/s).
CHIPS = {80: Chip(108, 1.7, 4.0), 90: Chip(132, 4.3, 7.0), 100: Chip(148, 7.0, 10.0)}

# Bytes of shared memory that a block may have, by compute capability; see "Technical Specifications per Compute
# Capability" in the CUDA C++ Programming Guide.
SHARED = {80: 166_912, 86: 101_376, 87: 166_912, 89: 101_376, 90: 232_448, 100: 232_448, 103: 232_448}
LEAST_SHARED = 101_376

# By chip and kind: "half" (float16, bfloat16), "fp32" (three tf32 products, or one), "fp64".
# (BM, BN, BK, warps, stages, tma, rate, parts). The rate of 128x256x64 on Hopper is a measurement of another persistent
# kernel with this tile (Triton's Gluon tutorial 07: 661 with 3 stages, 503 with BK 128); all others are estimates.
TILES: dict[tuple[int, str], tuple[Tile, ...]] = {
    (80, "half"): (
        Tile(128, 128, 32, 8, 4, False, 230.0), Tile(128, 64, 64, 8, 3, False, 190.0),
        Tile(64, 64, 64, 4, 3, False, 150.0), Tile(32, 64, 32, 4, 4, False, 90.0), Tile(16, 64, 64, 4, 4, False, 50.0),
    ),
    (80, "fp32"): (
        Tile(128, 64, 16, 8, 4, False, 40.0), Tile(64, 64, 32, 8, 2, False, 33.0), Tile(32, 64, 16, 8, 3, False, 22.0),
    ),
    (90, "half"): (
        Tile(128, 256, 64, 8, 3, True, 661.0), Tile(128, 128, 64, 8, 4, True, 600.0),
        Tile(64, 128, 64, 4, 4, True, 450.0), Tile(64, 64, 64, 4, 4, True, 300.0),
        Tile(128, 128, 64, 8, 3, False, 540.0), Tile(64, 64, 64, 4, 3, False, 280.0),
        Tile(32, 64, 32, 4, 4, False, 120.0), Tile(16, 64, 64, 4, 4, False, 60.0),
    ),
    (90, "fp32"): (
        Tile(128, 128, 32, 8, 3, True, 110.0), Tile(64, 64, 32, 4, 3, True, 70.0), Tile(64, 64, 16, 4, 3, True, 55.0),
        Tile(128, 128, 32, 8, 3, False, 90.0), Tile(64, 64, 32, 4, 3, False, 60.0),
        Tile(64, 64, 16, 4, 3, False, 50.0), Tile(32, 64, 16, 8, 3, False, 28.0),
    ),
    (100, "half"): (
        Tile(128, 256, 64, 8, 3, True, 1100.0), Tile(128, 128, 64, 8, 4, True, 900.0),
        Tile(64, 128, 64, 4, 4, True, 600.0), Tile(64, 64, 64, 4, 4, True, 400.0),
        Tile(128, 128, 64, 8, 3, False, 700.0), Tile(64, 64, 64, 4, 3, False, 350.0),
        Tile(32, 64, 32, 4, 4, False, 130.0), Tile(16, 64, 64, 4, 4, False, 70.0),
    ),
    (100, "fp32"): (
        Tile(128, 128, 32, 8, 3, True, 150.0), Tile(64, 64, 32, 4, 3, True, 100.0), Tile(64, 64, 16, 4, 3, True, 80.0),
        Tile(128, 128, 32, 8, 3, False, 110.0), Tile(64, 64, 32, 8, 3, False, 80.0),
        Tile(64, 64, 16, 4, 5, False, 60.0), Tile(32, 64, 16, 8, 3, False, 32.0),
    ),
    (80, "fp64"): (Tile(32, 32, 16, 4, 2, False, 5.0),),
    (90, "fp64"): (Tile(32, 32, 16, 4, 2, False, 10.0),),
    (100, "fp64"): (Tile(32, 32, 16, 4, 2, False, 10.0),),
}  # fmt: skip

# Estimates in microseconds: to the first product of a tile, to make descriptors, of the second kernel where K is cut.
FILL, DESCRIPTORS, SECOND = 1.0, 1.0, 3.0
MOST_PIECES = 32
LARGEST_SPLIT = 128 * 64  # elements of a tile whose K may be cut: where larger ones are few, smaller ones are more


def family(arch: int) -> int:
    """The chip in the tables whose matrix instructions a compute capability has; others have those of sm_80."""
    return 90 if arch == 90 else 100 if arch in (100, 103) else 80


def kind_of(dtype: str) -> str:
    """The kind of a Triton type."""
    return dtype if dtype in ("fp32", "fp64") else "half"


def itemsize(dtype: str) -> int:
    return {"fp32": 4, "fp64": 8}.get(dtype, 2)


def interpreted() -> bool:
    """Whether launches go to the interpreter."""
    return launch.INTERPRET and launch.COMPILE_ONLY is None


def multiprocessors() -> int:
    """Of the device that launches go to; of the chip in the tables where there is none."""
    if interpreted():
        return CHIPS[90].multiprocessors
    return launch.multiprocessors() or CHIPS[family(launch.target().arch)].multiprocessors


def registers(more: bool) -> int | None:
    """The most that a thread of `matmul_tma` may have, where the compiler is to be told. For Blackwell it keeps to 128
    or fewer by itself, and spills some of an epilogue that does `more` than store.
    """
    return 255 if more and not interpreted() and family(launch.target().arch) == 100 else None


def shared(tile: Tile, size: int) -> int:
    """Bytes of shared memory of a tile, its operands having `size` bytes an element: the stages, and the result."""
    return tile.stages * (tile.bm + tile.bn) * tile.bk * size + tile.tma * (tile.bm * tile.bn * size // tile.parts)


def tiles(arch: int, dtype: str) -> list[Tile]:
    """The tiles of a chip that fit into its shared memory."""
    limit = SHARED.get(arch, LEAST_SHARED)
    return [t for t in TILES[family(arch), kind_of(dtype)] if shared(t, itemsize(dtype)) <= limit]


def choose(m: int, n: int, k: int, *, dtype: str, batch: int = 1, tma: bool, split: bool = True) -> Choice:
    """The choice whose estimated time is the least, for `batch` products (m, k) @ (k, n).

    Args:
        dtype: Triton type of the operands.
        tma: whether the operands' addresses and strides are such that `matmul_tma` can read them.
        split: whether K may be cut into pieces.
    """
    if interpreted():
        return Choice(whole(m, n, k), 1)
    arch, count = launch.target().arch, multiprocessors()
    found = [
        (estimate(m, n, k, batch, choice, dtype, arch, count), i, choice)
        for i, choice in enumerate(choices(arch, dtype, k, tma, split and batch == 1))
    ]
    return min(found)[2]


def choices(arch: int, dtype: str, k: int, tma: bool, split: bool) -> list[Choice]:
    """Every tile that may serve, with every number of pieces of at least four steps along K.

    A step sums 3 * BK float32 products inside the matrix unit, which truncates: for K to 64 only steps of 16 keep the
    error of the whole within twice that of plain float32 (tests/test_matmul_precision.py).
    """
    fit = [t for t in tiles(arch, dtype) if tma or not t.tma]
    if dtype == "fp32" and k <= 64:
        fit = [t for t in fit if t.bk <= 16] or fit
    found = []
    for t in fit:
        found.append(Choice(t, 1))
        pieces = 2
        while split and t.bm * t.bn <= LARGEST_SPLIT and pieces <= MOST_PIECES and k >= 4 * t.bk * pieces:
            found.append(Choice(t, triton.cdiv(k, Choice(t, pieces).chunk(k))))  # none is empty
            pieces *= 2
    return found


def estimate(m: int, n: int, k: int, batch: int, choice: Choice, dtype: str, arch: int, count: int) -> float:
    """Microseconds on a chip with `count` multiprocessors.

    They take tiles in rounds, each bound by its arithmetic or by what it moves; all of them by memory.
    """
    tile, pieces = choice
    chip, size = CHIPS[family(arch)], itemsize(dtype)
    length = choice.chunk(k)
    work = 2e-6 * tile.bm * tile.bn * length / (tile.rate / count)
    moved = 1e-6 * ((tile.bm + tile.bn) * length + tile.bm * tile.bn) * size / (chip.cache / count)
    rounds = triton.cdiv(triton.cdiv(m, tile.bm) * triton.cdiv(n, tile.bn) * batch * pieces, count)
    memory = 1e-6 * (m * k + k * n + m * n) * batch * size / chip.memory
    time = FILL + DESCRIPTORS * tile.tma + max(rounds * max(work, moved), memory)
    if pieces > 1:
        time += SECOND + 1e-6 * 8 * m * n * pieces / chip.memory
    return time


def whole(m: int, n: int, k: int) -> Tile:
    """For the interpreter: the product at once, up to 2^20 elements a block."""
    bm, bn, bk = (max(2, triton.next_power_of_2(size)) for size in (m, n, k))  # it takes a block of 1 for a scalar
    bm, bn = min(bm, 1024), min(bn, 1024)
    return Tile(bm, bn, min(bk, (1 << 20) // max(bm, bn)), 4, 1, False, 1.0)
