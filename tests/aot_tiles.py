"""Compiles the tiles of matrix products for a GPU that is not there, and reads what the compiler made of them.

    python -m tests.aot_tiles 90                  every variant of every tile for sm_90; lists what breaks a gate
    python -m tests.aot_tiles 90 some REPORT.json what CI holds: one or two variants of each tile

It needs TGRAD_LAUNCH=compile:90 in the environment, and sets it where it is not.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

LAYOUTS = ("NT", "NN", "TN")


class Variant(NamedTuple):
    """One product: how a and b are stored (N: as read, T: transposed), and what comes with it.

    Attributes:
        tile: of kernels/matmul_tiles.py.
        dtype: Triton type of the operands.
        extra: "bias", "sums" (of a's rows), "mask" (an epilogue with a matrix), "batch" (of two dimensions, b the same
            over one of them), "both" (a bias, and silu beside what it is of), "gelu" or "silu" (its gradient, of the
            product's result and a matrix), or none.
        aligned: whether rows are a multiple of 16 bytes.
        pieces: of K.
    """

    tile: Any
    dtype: str
    stored: str
    extra: str
    aligned: bool
    pieces: int
    precision: str

    @property
    def label(self) -> str:
        t = self.tile
        name = "tma" if t.tma else "pointer"
        shape = f"{t.bm}x{t.bn}x{t.bk} {t.warps} warps {t.stages} stages"
        rest = f"{self.extra} {'aligned' if self.aligned else 'odd'} {self.pieces} {self.precision}"
        return f"{name} {self.dtype} {shape} {self.stored} {rest}"


def every(arch: int) -> Iterator[Variant]:
    """All that `prepare_matmul` may ask for, of each tile."""
    from tgrad.kernels.matmul_tiles import tiles

    for dtype in ("bf16", "fp16", "fp32", "fp64"):
        for precision in {"fp32": ("tf32x3", "tf32"), "fp64": ("ieee",)}.get(dtype, ("tf32x3",)):
            for tile in tiles(arch, dtype):
                for stored in LAYOUTS:
                    for aligned in (True,) if tile.tma else (True, False):
                        for extra in ("", "bias", "sums", "mask", "batch"):
                            yield Variant(tile, dtype, stored, extra, aligned, 1, precision)
                        yield Variant(tile, dtype, stored, "sums", aligned, 2, precision)
                yield Variant(tile, dtype, "NT", "both", True, 1, precision)
                if dtype != "fp64":
                    for extra in ("gelu", "silu"):
                        for aligned in (True,) if tile.tma else (True, False):
                            yield Variant(tile, dtype, "NN", extra, aligned, 1, precision)


def some(arch: int) -> Iterator[Variant]:
    """One variant of each tile, in turn another one; of the largest tiles, those that need the most registers.

    Not so for sm_100, whose largest tiles take seconds each: those with TGRAD_THOROUGH=1.
    """
    from tgrad.kernels.matmul_tiles import tiles

    turns = [
        ("NT", "bias", True, 1), ("TN", "sums", True, 1), ("NN", "mask", True, 1), ("TN", "sums", True, 2),
        ("NN", "batch", True, 1),
    ]  # fmt: skip
    heavy = arch < 100 or os.environ.get("TGRAD_THOROUGH") == "1"
    for dtype in ("bf16", "fp32"):
        for i, tile in enumerate(tiles(arch, dtype)):
            stored, extra, aligned, pieces = turns[i % len(turns)]
            yield Variant(tile, dtype, stored, extra, aligned, pieces, "tf32x3")
            if tile.bm * tile.bn >= 128 * 64 and heavy:
                yield Variant(tile, dtype, "TN", "sums", tile.tma, 1, "tf32x3")
                if tile.tma:
                    yield Variant(tile, dtype, "NT", "both", True, 1, "tf32x3")
                if tile.bm * tile.bn >= 128 * 128:
                    yield Variant(tile, dtype, "NN", "gelu", True, 1, "tf32x3")
                if not tile.tma:
                    yield Variant(tile, dtype, "NT", "bias", False, 1, "tf32x3")


def compiled(v: Variant, n: int = 4096) -> list[Any]:
    """The kernels of a variant, compiled."""
    from tgrad import dtypes
    from tgrad.expression import Expression
    from tgrad.kernels import launch
    from tgrad.kernels.matmul import Operands, prepare_matmul
    from tgrad.kernels.matmul_tiles import Choice
    from tgrad.kernels.program import copy_program, program
    from tgrad.kernels.scalar import add, mul
    from tgrad.ops import pointwise
    from tgrad.ops.linear import activated, bias_program
    from tgrad.ops.matmul import rounded_first

    wide = "fp64" if v.dtype == "fp64" else "fp32"
    size = n if v.aligned else n - 1
    extras: tuple[tuple[str, tuple[int, int]], ...] = ()
    epilogue = copy_program(wide, v.dtype)
    if v.extra in ("bias", "mask"):
        step = (add if v.extra == "bias" else mul, ((0, None), (1, None if v.dtype == wide else wide)))
        epilogue = program(2, (), (step,), ((2, v.dtype),))
        extras = ((v.dtype, (0, 1) if v.extra == "bias" else (size, 1)),)
    if v.extra == "both":
        kind = next(d for d in dtypes.FLOATS if d.triton == v.dtype)
        silu = Expression.of(pointwise.silu, 1)
        epilogue = activated(bias_program(wide, v.dtype, v.dtype), silu, kind, both=True)
        extras = ((v.dtype, (0, 1)),)
    if v.extra in ("gelu", "silu"):
        kind = next(d for d in dtypes.FLOATS if d.triton == v.dtype)
        expression, _ = getattr(pointwise, v.extra).derivative(0)
        epilogue, extras = rounded_first(expression, kind, [kind]), ((v.dtype, (size, 1)),)
    batch = ((8, 16), [(16 * size**2, size**2), (size**2, 0)]) if v.extra == "batch" else ((), [(), ()])
    strides = {"N": (size, 1), "T": (1, size)}
    operands = Operands(
        (v.dtype, v.dtype, tuple(t for t, _ in extras)), (size, size, size), strides[v.stored[0]],
        strides[v.stored[1]], tuple(s for _, s in extras), batch, aligned=True, wide=False,
    )  # fmt: skip
    used: list[Any] = []
    compile = launch.compile

    def watched(*args: Any) -> Any:
        used.append(compile(*args))
        return used[-1]

    launch.compile = watched  # type: ignore[assignment]
    try:
        prepare_matmul(
            epilogue, operands, precision=v.precision, sums=v.extra == "sums", name=v.label,
            choice=Choice(v.tile, v.pieces),
        )  # fmt: skip
    finally:
        launch.compile = compile
    return used


def report(variants: Iterator[Variant]) -> dict[str, dict]:
    """Figures (see aot_gates.py) by label, with the variant's own: what is expected depends on it."""
    from tests import aot_gates

    found = {}
    for v in variants:
        for kernel in compiled(v):
            figures = aot_gates.figures(kernel)
            figures["tile"] = v.tile._asdict()
            figures["precision"], figures["aligned"] = v.precision, v.aligned
            found[f"{v.label}: {figures['kernel'].rpartition('.')[2]}"] = figures
    return found


def main(arch: str, how: str = "every", path: str = "") -> int:
    os.environ.setdefault("TGRAD_LAUNCH", f"compile:{arch}")
    from tests import aot_gates

    found = report((every if how == "every" else some)(int(arch)))
    if path:
        Path(path).write_text(json.dumps(found))
        return 0
    wrong = {
        label: [said for gate in aot_gates.TILE_GATES if (said := gate(figures))] for label, figures in found.items()
    }
    for label, said in wrong.items():
        if said:
            print(label, "|", "; ".join(said), flush=True)
    print(f"{len(found)} kernels, {sum(map(bool, wrong.values()))} of them break a gate")
    return int(any(wrong.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
