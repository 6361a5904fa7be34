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
        held: whether a program holds its own rows, and does not read them in parts at each step.
        together: whether one launch gives the gradients of key and value.
        pairs: matrices of the batch; more than one in the interpreter alone.
    """

    bl: int
    bs: int
    warps: int
    stages: int
    held: bool = True
    together: bool = True
    pairs: int = 1


# The widest head, by kind.
WIDEST = {"half": 256, "fp32": 128}

# By kernel, kind and greatest width of a head: the tile of plain attention, with a mask, with dropout, and with both
# where that is another. Chosen by compiling for sm_80, 90 and 100 so that no register is spilled: tests/aot_attention
# compiles each. No GPU has measured them. Operands of float32 are cut into parts for three tf32 products: those of wide
# heads cannot be held.
CASES = ("plain", "mask", "dropout", "both")
TILES: dict[tuple[str, str], dict[int, tuple[Tile, ...]]] = {
    ("forward", "half"): {
        32: (Tile(128, 64, 8, 3), Tile(128, 32, 8, 2), Tile(128, 32, 8, 2)),
        64: (Tile(128, 128, 8, 3), Tile(128, 64, 8, 2), Tile(128, 32, 8, 2)),
        128: (Tile(128, 64, 8, 3), Tile(128, 32, 8, 2), Tile(64, 32, 8, 2)),
        256: (Tile(64, 32, 8, 2), Tile(64, 16, 8, 2), Tile(64, 16, 8, 2)),
    },
    ("query", "half"): {
        32: (Tile(128, 32, 8, 3), Tile(64, 32, 4, 2), Tile(64, 32, 4, 2)),
        64: (Tile(128, 32, 8, 3), Tile(64, 32, 8, 2), Tile(64, 16, 4, 2)),
        128: (Tile(64, 64, 8, 2), Tile(64, 16, 8, 2), Tile(64, 16, 8, 2)),
        256: (Tile(64, 16, 8, 2, held=False), Tile(64, 16, 8, 2, held=False), Tile(64, 16, 8, 2, held=False)),
    },
    ("key", "half"): {
        64: (Tile(64, 128, 8, 3), Tile(32, 128, 8, 2), Tile(16, 128, 8, 2)),
        128: (Tile(64, 64, 8, 2), Tile(16, 64, 8, 2), Tile(16, 64, 8, 2)),
        256: (Tile(16, 64, 8, 2), Tile(16, 64, 8, 2), Tile(16, 64, 8, 2, held=False)),
    },
    ("forward", "fp32"): {
        32: (Tile(64, 16, 4, 2), Tile(64, 16, 4, 2), Tile(64, 16, 4, 2)),
        64: (Tile(64, 32, 8, 2), Tile(64, 16, 8, 2), Tile(64, 16, 8, 2)),
        128: (Tile(64, 32, 8, 2, held=False), Tile(64, 16, 8, 2, held=False), Tile(64, 16, 4, 2, held=False),
              Tile(64, 16, 8, 2, held=False)),
    },
    ("query", "fp32"): {
        32: (Tile(64, 16, 4, 2), Tile(64, 16, 4, 2), Tile(64, 16, 4, 2)),
        64: (Tile(64, 16, 8, 2), Tile(64, 16, 8, 2, held=False), Tile(64, 16, 8, 2, held=False)),
        128: (Tile(64, 32, 8, 2, held=False), Tile(64, 16, 8, 2, held=False), Tile(64, 16, 8, 2, held=False)),
    },
    ("key", "fp32"): {
        32: (Tile(16, 64, 4, 2), Tile(16, 64, 4, 2), Tile(16, 64, 4, 2)),
        64: (Tile(16, 64, 8, 2, held=False), Tile(16, 64, 8, 2, False, False), Tile(16, 64, 8, 2, False, False)),
        128: (Tile(32, 64, 8, 2, False, False), Tile(16, 64, 8, 2, False, False), Tile(16, 64, 4, 2, False, False)),
    },
}  # fmt: skip

# By the chip's generation, kernel, kind and width of such a row: tiles in place of its own, where these spill there
# alone. "wide" is a case with offsets of 64 bits, "grouped" one with several heads of queries to one of keys.
INSTEAD: dict[tuple[int, str, str, int], dict[str, Tile]] = {
    (8, "forward", "half", 32): {"mask": Tile(128, 16, 8, 2)},
    (8, "forward", "half", 64): {"both wide": Tile(64, 32, 8, 2)},
    (8, "forward", "half", 128): {"mask": Tile(128, 16, 8, 2)},
    (8, "query", "half", 32): {"mask": Tile(128, 32, 8, 2)},
    (8, "query", "half", 128): {"both": Tile(32, 16, 4, 2)},
    (8, "key", "half", 64): {"both": Tile(16, 64, 4, 2)},
    (8, "key", "half", 128): {"plain grouped": Tile(32, 64, 8, 2)},
    (8, "query", "fp32", 32): {"both": Tile(64, 16, 8, 2)},
    (8, "key", "fp32", 64): {"plain": Tile(16, 64, 8, 2, held=False, together=False)},
    (8, "forward", "fp32", 128): {"dropout": Tile(64, 16, 8, 2, held=False)},
    (8, "key", "fp32", 128): {
        "dropout": Tile(16, 64, 8, 2, held=False, together=False),
        "both": Tile(16, 64, 8, 2, held=False, together=False)},
    (9, "forward", "fp32", 128): {"both": Tile(64, 16, 8, 1, held=False)},
    (9, "query", "fp32", 128): {
        "plain wide": Tile(64, 16, 8, 2, held=False), "dropout wide": Tile(128, 16, 8, 2, held=False),
        "both wide": Tile(64, 16, 8, 1, held=False)},
    (10, "forward", "half", 32): {"both": Tile(128, 16, 8, 2)},
    (10, "forward", "half", 64): {"dropout wide": Tile(64, 32, 8, 2), "both": Tile(64, 32, 8, 2)},
    (10, "forward", "half", 128): {"mask": Tile(64, 64, 8, 2)},
    (10, "forward", "half", 256): {"plain": Tile(64, 64, 8, 2), "mask": Tile(64, 32, 8, 2)},
    (10, "query", "half", 32): {"both": Tile(64, 16, 4, 2)},
    (10, "key", "half", 64): {"mask": Tile(16, 128, 8, 2)},
    (10, "key", "half", 128): {"plain grouped": Tile(32, 64, 8, 2)},
    (10, "key", "half", 256): {"plain grouped": Tile(16, 64, 8, 2, held=False)},
    (10, "forward", "fp32", 32): {"plain wide": Tile(64, 16, 8, 2)},
    (10, "query", "fp32", 32): {"dropout": Tile(64, 16, 8, 2)},
    (10, "query", "fp32", 64): {"both wide": Tile(64, 16, 4, 2, held=False)},
    (10, "key", "fp32", 32): {"both wide": Tile(16, 64, 8, 2)},
    (10, "key", "fp32", 64): {"mask wide": Tile(16, 64, 4, 2, held=False, together=False)},
}  # fmt: skip

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
    kernel: str, dtype: str, pairs: int, sizes: tuple[int, int, int, int], mask: int = 0, drops: bool = False,
    wide: bool = False, grouped: bool = False,
) -> Tile:  # fmt: skip
    """The tile of "forward", of "query" (its gradient) or of "key" (the gradients of key and value).

    Args:
        dtype: Triton type of the operands.
        sizes: L, S, E, V.
        mask: bytes of an element of the mask; 0: there is none. drops: whether there is dropout.
        wide: whether offsets take 64 bits. grouped: whether several matrices of queries attend to one of keys.
    """
    length, keys, width, values = sizes
    be, bv = blocks(width), blocks(values)
    if interpreted():
        bl, bs = min(blocks(length), 512), min(blocks(keys), 512)
        each = max(bl * bs, max(bl, bs) * max(be, bv))
        return Tile(bl, bs, 4, 1, pairs=max(1, min(triton.next_power_of_2(pairs), LARGEST // each)))
    arch, kind = launch.target().arch, kind_of(dtype)
    table, case = TILES[kernel, kind], (mask > 0) + 2 * drops
    widest = next(w for w in table if max(be, bv) <= w)
    row, instead = table[widest], INSTEAD.get((arch // 10, kernel, kind, widest), {})
    found = row[min(case, len(row) - 1)]
    for more in ["", *[" wide"] * wide, *[" grouped"] * grouped]:
        found = instead.get(CASES[case] + more, found)
    bl, bs, stages = found.bl, found.bs, found.stages
    limit, size = SHARED.get(arch, LEAST_SHARED), itemsize(dtype)
    held, step = (bs, bl) if kernel == "key" else (bl, bs)
    kept = held * (be if kernel == "forward" else be + bv) * size + SPARE
    while stages > 1 and kept + stages * (step * (be + bv) * size + bl * bs * mask) > limit:
        stages -= 1
    return found._replace(stages=stages)
