"""Matrix products: C = epilogue(A @ B), batched, for any strides of A and B."""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels.launch import INTERPRET, Launch, Static, prepare, strides
from tgrad.kernels.pointwise import coordinates, offset
from tgrad.kernels.program import TYPES, Program, run


@triton.jit
def matmul(
    outs, a, b, extras, M, N, K, stride_am, stride_ak, stride_bk, stride_bn, batch_shape, batch_strides, extra_strides,
    EPILOGUE: tl.constexpr, PRECISION: tl.constexpr, TYPE: tl.constexpr, BATCH: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Each program computes one BM x BN tile of one matrix of the batch.

    Tiles are numbered so that GROUP rows of tiles are walked together: their operands then stay in the L2 cache.
    EPILOGUE maps the float accumulator and the extras (bias, ...) to the results, which are row-major.
    """
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    which = tl.program_id(0) // (tiles_m * tiles_n)  # in one dimension with the tiles: the grid's others end at 65,535
    tile = tl.program_id(0) % (tiles_m * tiles_n)
    group = tile // (GROUP * tiles_n)
    first = group * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    tile_m = first + (tile % (GROUP * tiles_n)) % height
    tile_n = (tile % (GROUP * tiles_n)) // height
    m = tile_m * BM + tl.arange(0, BM)
    n = tile_n * BN + tl.arange(0, BN)
    k0 = tl.arange(0, BK)
    if WIDE:
        m, n, k0, which = m.to(tl.int64), n.to(tl.int64), k0.to(tl.int64), which.to(tl.int64)
    if BATCH > 0:
        where = coordinates(which, batch_shape, BATCH)
        a += offset(where, batch_strides[0], BATCH)
        b += offset(where, batch_strides[1], BATCH)
    acc = tl.zeros((BM, BN), dtype=TYPE)
    for start in range(0, K, BK):
        k = start + k0
        x = tl.load(
            a + (m[:, None] * stride_am + k[None, :] * stride_ak), mask=(m[:, None] < M) & (k[None, :] < K), other=0
        )
        y = tl.load(
            b + (k[:, None] * stride_bk + n[None, :] * stride_bn), mask=(k[:, None] < K) & (n[None, :] < N), other=0
        )
        acc = tl.dot(x, y, acc, input_precision=PRECISION, out_dtype=TYPE)
    mask = (m[:, None] < M) & (n[None, :] < N)
    values = (acc,)
    for i in tl.static_range(len(extras)):
        at = extras[i] + (m[:, None] * extra_strides[i][0] + n[None, :] * extra_strides[i][1])
        values = values + (tl.load(at, mask=mask, other=0),)
    results = run(values, EPILOGUE)
    for i in tl.static_range(len(outs)):
        tl.store(outs[i] + (which * M * N + m[:, None] * N + n[None, :]), results[i], mask=mask)


def tile(m: int, n: int, k: int, itemsize: int) -> tuple[int, int, int, int, int]:
    """(BM, BN, BK, warps, stages).

    Interpreter: the whole product at once up to 2^20 elements a block. GPU: half types as Inductor's persistent list
    begins (128x256x64 needs subtiling for the epilogue, so 128x128x64), float32 in three tf32 products 128x128x32 with
    8 warps (4 spill), float64 small tiles; smaller ones for matrices that do not fill them.
    """
    if INTERPRET:
        bm, bn, bk = (max(2, triton.next_power_of_2(size)) for size in (m, n, k))  # it takes a block of 1 for a scalar
        bm, bn = min(bm, 1024), min(bn, 1024)
        return bm, bn, min(bk, (1 << 20) // max(bm, bn)), 4, 1
    if itemsize == 8:
        return 32, 32, 16, 4, 2
    bm = min(max(16, triton.next_power_of_2(m)), 128)
    bn = min(max(16, triton.next_power_of_2(n)), 128)
    bk = 64 if itemsize == 2 else 32
    if triton.cdiv(m, bm) * triton.cdiv(n, bn) < 132:  # too few tiles for an H200's multiprocessors
        bm, bn = min(bm, 64), min(bn, 64)
    return bm, bn, bk, 8 if bm * bn >= 128 * 128 else 4, 3


def prepare_matmul(
    epilogue: Program,
    types: tuple[tuple[str, ...], str, str, tuple[str, ...]],
    sizes: tuple[int, int, int],
    a_strides: tuple[int, int],
    b_strides: tuple[int, int],
    extra_strides: tuple[tuple[int, ...], ...],
    batch: tuple[tuple[int, ...], list[tuple[int, ...]]],
    *,
    precision: str,
    aligned: bool,
    wide: bool,
    name: str,
) -> Launch:
    """A launch; the callable takes the results, a, b, then the extras.

    Args:
        types: Triton types of the results, a, b and the extras.
        sizes: M, N, K of one product.
        batch: collapsed batch sizes, and the strides of a and b over them.
        precision: how float32 products are formed: "ieee", "tf32x3" or "tf32".
    """
    m, n, k = sizes
    outs, a, b, extras = types
    bm, bn, bk, warps, stages = tile(m, n, k, 8 if a == "fp64" else 4 if a == "fp32" else 2)
    count = 1
    for size in batch[0]:
        count *= size
    runtime = (tuple("*" + t for t in outs), "*" + a, "*" + b, tuple("*" + t for t in extras))
    unit = [Static(1) if s == 1 else s for s in (*a_strides, *b_strides)]
    fixed = (m, n, k, *unit, batch[0], tuple(batch[1]), tuple(strides(s) for s in extra_strides))
    accumulator = "fp64" if a == "fp64" else "fp32"
    constexprs = {
        "EPILOGUE": epilogue, "PRECISION": precision, "TYPE": TYPES[accumulator], "BATCH": len(batch[0]), "WIDE": wide,
        "BM": bm, "BN": bn, "BK": bk, "GROUP": 8,
    }  # fmt: skip
    grid = (triton.cdiv(m, bm) * triton.cdiv(n, bn) * count,)
    return prepare(
        matmul, grid, runtime, fixed, constexprs, name=name, warps=warps, stages=stages, aligned=aligned, contract=True
    )
