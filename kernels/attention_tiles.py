"""How much of attention a program takes: a plain function of types, sizes and chip."""

from __future__ import annotations

from typing import NamedTuple

import triton

from tgrad.kernels import launch
from tgrad.kernels.matmul_tiles import LEAST_SHARED, SHARED, itemsize, kind_of


class Tile(NamedTuple):
    """What one program takes at a time.

    Attributes:
        bl, bs: queries and keys.
        pairs: matrices of the batch; more than one in the interpreter alone.
        held: whether a program holds its own rows, and does not read them at each step.
    """

    bl: int
    bs: int
    pairs: int
    warps: int
    stages: int
    held: bool = True


# The widest head, by kind.
WIDEST = {"half": 256, "fp32": 128}

# By kernel, kind and greatest width of a head: (BL, BS, warps, stages). Found by compiling for sm_80, 90 and 100; no
# GPU has measured them. No register is spilled of half types up to 128 (but with a mask and dropout on sm_100) and of
# float32 up to 64 without dropout; tens to hundreds of bytes are beyond: of three tf32 products one operand stays in.
TILES: dict[tuple[str, str], dict[int, tuple[int, int, int, int]]] = {
    ("forward", "half"): {64: (128, 128, 8, 3), 128: (128, 64, 8, 3), 256: (64, 32, 8, 2)},
    ("query", "half"): {64: (128, 32, 8, 3), 128: (64, 64, 8, 2), 256: (64, 32, 8, 2)},
    ("key", "half"): {64: (64, 128, 8, 3), 128: (64, 64, 8, 2), 256: (32, 64, 8, 2)},
    ("forward", "fp32"): {64: (64, 16, 4, 2), 128: (64, 32, 8, 2)},
    ("query", "fp32"): {64: (32, 32, 4, 2), 128: (32, 32, 8, 2)},
    ("key", "fp32"): {64: (32, 32, 4, 2), 128: (32, 32, 8, 2)},
}

SPARE = 2048  # bytes of shared memory for sums of rows
LARGEST = 1 << 18  # elements of a block in the interpreter


def interpreted() -> bool:
    """Whether kernels run in the interpreter."""
    return launch.INTERPRET and launch.COMPILE_ONLY is None


def fits(dtype: str, width: int, values: int) -> bool:
    """Whether there is a tile for heads of these widths."""
    return interpreted() or max(width, values) <= WIDEST.get(kind_of(dtype), -1)


def blocks(size: int) -> int:
    """The columns of a block for matrices of `size`."""
    return max(2 if interpreted() else 16, triton.next_power_of_2(size))


def tile(
    kernel: str, dtype: str, pairs: int, sizes: tuple[int, int, int, int], mask: int = 0, drops: bool = False
) -> Tile:
    """The tile of "forward", of "query" (its gradient) or of "key" (the gradients of key and value).

    Args:
        dtype: Triton type of the operands.
        sizes: L, S, E, V.
        mask: bytes of an element of the mask; 0: there is none. drops: whether there is dropout. Each takes registers,
            so that steps are half as long.
    """
    length, keys, width, values = sizes
    be, bv = blocks(width), blocks(values)
    if interpreted():
        bl, bs = min(blocks(length), 512), min(blocks(keys), 512)
        each = max(bl * bs, max(bl, bs) * max(be, bv))
        return Tile(bl, bs, max(1, min(triton.next_power_of_2(pairs), LARGEST // each)), 4, 1)
    table, extras = TILES[kernel, kind_of(dtype)], (mask > 0) + drops
    bl, bs, warps, stages = next(table[w] for w in table if max(be, bv) <= w)
    if kernel == "key":
        bl = max(16, bl >> (extras + (extras > 0 and max(be, bv) > 64)))
    else:
        bs = max(16, bs >> extras)
    stages = 2 if extras else stages
    limit, size = SHARED.get(launch.target().arch, LEAST_SHARED), itemsize(dtype)
    held, step = (bs, bl) if kernel == "key" else (bl, bs)
    kept = held * (be if kernel == "forward" else be + bv) * size + SPARE
    while stages > 1 and kept + stages * (step * (be + bv) * size + bl * bs * mask) > limit:
        stages -= 1
    return Tile(bl, bs, 1, warps, stages)
