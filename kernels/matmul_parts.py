"""What the kernels of matrix products share: the order of tiles, and the epilogue."""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels.program import run


@triton.jit
def place(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """The row and the column of a tile. GROUP rows of tiles are walked together, so that their operands stay in L2."""
    group = tile // (GROUP * tiles_n)
    first = group * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    return first + (tile % (GROUP * tiles_n)) % height, (tile % (GROUP * tiles_n)) // height


@triton.jit
def cut(x, PARTS: tl.constexpr):
    """The columns of a matrix in 1, 2 or 4 parts, from the left."""
    parts = (x,)
    if PARTS > 1:
        halves = tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))
        parts = cut(halves[0], PARTS // 2) + cut(halves[1], PARTS // 2)
    return parts


@triton.jit
def finish(acc, m, n, M, N, extras, extra_strides, EPILOGUE: tl.constexpr, ROWS: tl.constexpr):
    """EPILOGUE of the accumulator at rows m and columns n, and of the extras there; the i-th is one row if ROWS[i]."""
    values = (acc,)
    for i in tl.static_range(len(extras)):
        if ROWS[i]:
            row = tl.load(extras[i] + n * extra_strides[i][1], mask=n < N, other=0)
            values = values + (tl.broadcast_to(row[None, :], (m.shape[0], n.shape[0])),)
        else:
            at = extras[i] + (m[:, None] * extra_strides[i][0] + n[None, :] * extra_strides[i][1])
            values = values + (tl.load(at, mask=(m[:, None] < M) & (n[None, :] < N), other=0),)
    return run(values, EPILOGUE)


@triton.jit
def combine(
    outs, sums, parts, part_sums, extras, M, N, extra_strides,
    PIECES: tl.constexpr, EPILOGUE: tl.constexpr, ROWS: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Adds the parts that the pieces of K gave, in order, for the same bits each time; then comes the epilogue."""
    tiles_n = tl.cdiv(N, BN)
    tile_m, tile_n = tl.program_id(0) // tiles_n, tl.program_id(0) % tiles_n
    m, n = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
    size = M * N
    if WIDE:
        m, n, size = m.to(tl.int64), n.to(tl.int64), M.to(tl.int64) * N
    mask = (m[:, None] < M) & (n[None, :] < N)
    at = m[:, None] * N + n[None, :]
    acc = tl.load(parts + at, mask=mask, other=0)
    for _ in range(1, PIECES):
        parts += size
        acc += tl.load(parts + at, mask=mask, other=0)
    results = finish(acc, m, n, M, N, extras, extra_strides, EPILOGUE, ROWS)
    for i in tl.static_range(len(outs)):
        tl.store(outs[i] + at, results[i], mask=mask)
    if len(sums) > 0:
        mask_m = (m < M) & (tile_n == 0)
        total = tl.load(part_sums[0] + m, mask=mask_m, other=0)
        for piece in range(1, PIECES):
            total += tl.load(part_sums[0] + piece * M + m, mask=mask_m, other=0)
        tl.store(sums[0] + m, total.to(sums[0].dtype.element_ty), mask=mask_m)
