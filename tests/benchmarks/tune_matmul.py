"""Times the tiles that matrix products may have, and prints the table for kernels/matmul_tiles.py.

    python -m tests.benchmarks.tune_matmul              on a CUDA device: rows of TILES, ready to be pasted
    python -m tests.benchmarks.tune_matmul --static 90  on none: which candidates spill, or do not fit, on sm_90

On a device each candidate forms a large product of each layout (NT, NN, TN) on random data; its rate is the least of
the three, between CUDA events and with the L2 cache emptied before (see gpu/timing.py). A candidate whose result is
wrong, or whose code spills, is dropped; of each shape of tile the fastest is kept, and of those only tiles that are
faster than every smaller one.

Exit codes: 0 done, 1 some candidate gave a wrong result, 3 no CUDA device and no --static.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

SIZES = {"half": 8192, "fp32": 4096, "fp64": 2048}
DTYPES = {"half": "bf16", "fp32": "fp32", "fp64": "fp64"}
TORCH = {"bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
LIMITS = {"bf16": 1e-2, "fp32": 2e-6, "fp64": 1e-14}  # of ||out - ref|| / ||ref||


def candidates(arch: int, kind: str, tma: bool) -> Iterator[Any]:
    """Tiles that fit into shared memory, with 4 to 128 accumulators a thread; rates are 0.

    By bulk copies also some whose result is stored in two parts, where that allows one more stage. Warps of their own
    that copy (`tl.range(..., warp_specialize=True)`) are not among them: on Hopper, Triton 3.7 refuses them for
    batches, and both 3.6 and 3.7 pass over them for the sums of rows.
    """
    from tgrad.kernels.matmul_tiles import LEAST_SHARED, SHARED, Tile, family, itemsize, shared

    size, limit = itemsize(DTYPES[kind]), SHARED.get(arch, LEAST_SHARED)
    if tma and (family(arch) < 90 or kind == "fp64"):
        return
    heights = (64, 128, 256) if tma else (16, 32) if kind == "fp64" else (16, 32, 64, 128)
    widths = (16, 32) if kind == "fp64" else (64, 128, 256)
    depths = {"half": (32, 64, 128), "fp32": (16, 32), "fp64": (16, 32)}[kind]
    for bm, bn, bk, warps, stages in itertools.product(heights, widths, depths, (4, 8), (2, 3, 4, 5, 6)):
        tile = Tile(bm, bn, bk, warps, stages, tma, 0.0)
        if not 4 <= bm * bn // (32 * warps) <= 128 or (stages == 6 and not tma):
            continue
        if shared(tile, size) <= limit:
            yield tile
        elif tma and shared(tile._replace(parts=2), size) <= limit:
            yield tile._replace(parts=2)


def static(arch: int, kinds: list[str]) -> int:
    """Compile the candidates; print what is wrong with each that is no good."""
    os.environ.setdefault("TGRAD_LAUNCH", f"compile:{arch}")
    from tests import aot_gates
    from tests.aot_tiles import Variant, report

    for kind, tma in itertools.product(kinds, (True, False)):
        good = 0
        tiles = list(candidates(arch, kind, tma))
        for tile in tiles:
            ways, precision = (("NT", "bias"), ("TN", "sums")), "ieee" if kind == "fp64" else "tf32x3"
            variants = [Variant(tile, DTYPES[kind], stored, extra, True, 1, precision) for stored, extra in ways]
            try:
                found = report(iter(variants))
                said = [f"{label}: {s}" for label, f in found.items() for g in aot_gates.TILE_GATES if (s := g(f))]
            except Exception as error:
                said = [f"{variants[0].label}: does not compile: {str(error).splitlines()[0][:120]}"]
            good += not said
            for line in said:
                print(line, flush=True)
        if tiles:
            print(f"sm_{arch} {kind} {'tma' if tma else 'pointers'}: {good} of {len(tiles)} candidates pass")
    return 0


def measured(kinds: list[str], budget: float) -> int:
    """Time the candidates on the device; print the rows of the table."""
    from tests.benchmarks.gpu.timing import Timer
    from tgrad.kernels import launch

    arch = launch.target().arch
    timer, deadline, wrong = Timer(), time.monotonic() + budget, 0
    for kind in kinds:
        rows = []
        for tma in (True, False):
            for tile in candidates(arch, kind, tma):
                if time.monotonic() > deadline:
                    print("# out of time: the rest is left out")
                    break
                rate = _rate(timer, tile, DTYPES[kind])
                wrong += rate is None
                if rate:
                    rows.append(tile._replace(rate=round(rate, 1)))
        print(f"    # sm_{arch}, {SIZES[kind]}^3, TFLOP/s measured by tests/benchmarks/tune_matmul.py")
        print(f'    ({arch}, "{kind}"): (')
        for tile in kept(rows):
            print(f"        Tile{tuple(tile) if tile.parts > 1 else tuple(tile)[:7]},")
        print("    ),", flush=True)
    return int(wrong > 0)


def kept(rows: list[Any]) -> list[Any]:
    """Of each shape and kernel the fastest, then those faster than all of their kernel that are no larger."""
    best: dict[tuple, Any] = {}
    for t in sorted(rows, key=lambda t: t.rate):
        best[t.tma, t.bm, t.bn] = t
    tiles = sorted(best.values(), key=lambda t: (not t.tma, -t.rate))
    return [
        t for t in tiles
        if not any(o.tma == t.tma and o.bm * o.bn <= t.bm * t.bn and o.rate > t.rate for o in tiles if o is not t)
    ]  # fmt: skip


def _rate(timer: Any, tile: Any, dtype: str) -> float | None:
    """TFLOP/s, the least of three layouts; 0 where it spills or does not compile, None where the result is wrong."""
    import torch

    from tests.aot_tiles import LAYOUTS
    from tests.benchmarks.gpu.data import error
    from tgrad.kernels import launch
    from tgrad.kernels.matmul import Operands, prepare_matmul
    from tgrad.kernels.matmul_tiles import Choice, kind_of
    from tgrad.kernels.program import copy_program

    n, least = SIZES[kind_of(dtype)], float("inf")
    used: list[Any] = []
    compile = launch.compile
    for stored in LAYOUTS:
        a, b = (torch.randn(n, n, device="cuda").to(getattr(torch, TORCH[dtype])) for _ in range(2))
        out = torch.full((n, n), float("nan"), device="cuda", dtype=a.dtype)
        steps = {"N": (n, 1), "T": (1, n)}
        operands = Operands(
            (dtype, dtype, ()), (n, n, n), steps[stored[0]], steps[stored[1]], (), ((), [(), ()]), True, False
        )
        launch.compile = lambda *given: used.append(compile(*given)) or used[-1]  # type: ignore[func-returns-value]
        try:
            epilogue = copy_program("fp64" if dtype == "fp64" else "fp32", dtype)
            precision = "ieee" if dtype == "fp64" else "tf32x3"
            call, _ = prepare_matmul(epilogue, operands, precision=precision, name="tune", choice=Choice(tile, 1))
        except Exception as failure:
            print(f"# {tuple(tile)} {stored}: {str(failure).splitlines()[0][:100]}", flush=True)
            return 0.0
        finally:
            launch.compile = compile
        if used[-1].n_spills:
            print(f"# {tuple(tile)} {stored}: {used[-1].n_spills} spills", flush=True)
            return 0.0
        product = lambda call=call, out=out, a=a, b=b: call(out.data_ptr(), a.data_ptr(), b.data_ptr())
        product()
        x = a[:64] if stored[0] == "N" else a.t()[:64]
        y = b if stored[1] == "N" else b.t()
        off = error(out[:64], x.double() @ y.double())
        if not off < LIMITS[dtype]:
            print(f"# {tuple(tile)} {stored}: WRONG, error {off:.1e}", flush=True)
            return None
        ((ms, *_),) = timer.device((product,), seconds=0.1)
        least = min(least, 2e-9 * n**3 / ms)
    print(f"# {tuple(tile)}: {least:.1f}", flush=True)
    return least


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--static", type=int, metavar="ARCH", help="compile only, for this compute capability")
    parser.add_argument("--kinds", default="half,fp32", help="of half, fp32, fp64")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds")
    given = parser.parse_args(arguments)
    kinds = given.kinds.split(",")
    if set(kinds) - set(SIZES):
        parser.error(f"--kinds: expected some of {','.join(SIZES)}, got {given.kinds}")
    if given.static:
        return static(given.static, kinds)
    import torch

    if not torch.cuda.is_available():
        print("tune_matmul: no CUDA device: tiles cannot be timed here (--static ARCH compiles them)", file=sys.stderr)
        return 3
    return measured(kinds, given.budget)


if __name__ == "__main__":
    sys.exit(main())
