"""Matrix products on Hopper and later: persistent programs, which move tiles with the bulk copy engine (TMA).

The descriptors of the matrices are made by the kernel, once per program, in scratch memory that the launch supplies
(`launch.scratch`). Descriptors made on the host would cost up to 0.3 us each per launch, and their parameters are
others in each Triton version; these cost the host nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels.matmul_parts import cut, finish, place
from tgrad.kernels.pointwise import coordinates

# Dimensions of a batch, besides the two of a matrix: descriptors have at most five.
MOST_BATCH = 3


@triton.jit
def described(
    base, rows, columns, stride, sizes, steps, BATCH: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr
):
    """A descriptor of a batch of matrices (rows, columns), whose columns are neighbours, in blocks of one of them."""
    if BATCH == 0:
        matrices = tl.make_tensor_descriptor(base, (rows, columns), (stride, 1), (HEIGHT, WIDTH))
    elif BATCH == 1:
        matrices = tl.make_tensor_descriptor(
            base, (sizes[0], rows, columns), (steps[0], stride, 1), (1, HEIGHT, WIDTH)
        )
    elif BATCH == 2:
        matrices = tl.make_tensor_descriptor(
            base, (sizes[0], sizes[1], rows, columns), (steps[0], steps[1], stride, 1), (1, 1, HEIGHT, WIDTH)
        )
    else:
        matrices = tl.make_tensor_descriptor(
            base, (sizes[0], sizes[1], sizes[2], rows, columns), (steps[0], steps[1], steps[2], stride, 1),
            (1, 1, 1, HEIGHT, WIDTH),
        )  # fmt: skip
    return matrices


@triton.jit
def block(matrices, where, row, column, BATCH: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """A block of the matrix at `where` in the batch."""
    if BATCH == 0:
        x = matrices.load((row, column))
    elif BATCH == 1:
        x = matrices.load((where[0], row, column)).reshape(HEIGHT, WIDTH)
    elif BATCH == 2:
        x = matrices.load((where[0], where[1], row, column)).reshape(HEIGHT, WIDTH)
    else:
        x = matrices.load((where[0], where[1], where[2], row, column)).reshape(HEIGHT, WIDTH)
    return x


@triton.jit
def within(where, sizes, BATCH: tl.constexpr):
    """Where in its batch an operand has what belongs `where`: sizes of 1 are repeated."""
    at = ()
    for d in tl.static_range(BATCH):
        at = at + (tl.minimum(where[d], sizes[d] - 1),)
    return at


@triton.jit
def matmul_tma(
    outs, sums, a, b, extras, M, N, K, CHUNK, stride_a, stride_b, batch_shape, batch_sizes, batch_strides,
    extra_strides, EPILOGUE: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr, A_ALONG_K: tl.constexpr,
    B_ALONG_K: tl.constexpr, BATCH: tl.constexpr, PARTS: tl.constexpr, BULK_STORE: tl.constexpr, SPLIT: tl.constexpr,
    WIDE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`matmul` for matrices whose elements are neighbours along one dimension, rows (or columns) and matrices a
    multiple of 16 bytes apart.

    Each program takes every tl.num_programs(0)-th tile. A_ALONG_K: a is stored as (M, K), else as (K, M); B_ALONG_K: b
    as (N, K), else as (K, N). Tiles beyond the edges are filled with zeros. An operand that is the same over a
    dimension of the batch has the size 1 there in batch_sizes. BULK_STORE: results go through descriptors too. PARTS:
    into how many the columns of a tile are cut for that, which then take less shared memory.
    """
    A_ROWS: tl.constexpr = BM if A_ALONG_K else BK
    A_COLUMNS: tl.constexpr = BK if A_ALONG_K else BM
    B_ROWS: tl.constexpr = BN if B_ALONG_K else BK
    B_COLUMNS: tl.constexpr = BK if B_ALONG_K else BN
    STORED: tl.constexpr = 0 if BATCH == 0 else 1  # results lie one after another
    WIDTH: tl.constexpr = BN // PARTS
    if A_ALONG_K:
        a_tiles = described(a, M, K, stride_a, batch_sizes[0], batch_strides[0], BATCH, A_ROWS, A_COLUMNS)
    else:
        a_tiles = described(a, K, M, stride_a, batch_sizes[0], batch_strides[0], BATCH, A_ROWS, A_COLUMNS)
    if B_ALONG_K:
        b_tiles = described(b, N, K, stride_b, batch_sizes[1], batch_strides[1], BATCH, B_ROWS, B_COLUMNS)
    else:
        b_tiles = described(b, K, N, stride_b, batch_sizes[1], batch_strides[1], BATCH, B_ROWS, B_COLUMNS)
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    tiles = tiles_m * tiles_n
    if SPLIT:
        tiles *= tl.cdiv(K, CHUNK)
    matrices = 1
    for d in tl.static_range(BATCH):
        matrices *= batch_shape[d]
    tiles *= matrices
    out_tiles = ()
    if BULK_STORE:
        for i in tl.static_range(len(outs)):
            out_tiles = out_tiles + (described(outs[i], M, N, N, (matrices,), (M * N,), STORED, BM, WIDTH),)
    for index in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        first, last = 0, K
        which = 0
        tile = index
        if SPLIT or BATCH > 0:
            which = index // (tiles_m * tiles_n)
            tile = index % (tiles_m * tiles_n)
        if SPLIT:
            first = which * CHUNK
            last = tl.minimum(first + CHUNK, K)
        at_a, at_b = (), ()
        if BATCH > 0:
            where = coordinates(which, batch_shape, BATCH)
            at_a, at_b = within(where, batch_sizes[0], BATCH), within(where, batch_sizes[1], BATCH)
        tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP)
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        total = tl.zeros((BM,), dtype=tl.float32)
        for k in range(first, last, BK):
            if A_ALONG_K:
                x = block(a_tiles, at_a, tile_m * BM, k, BATCH, A_ROWS, A_COLUMNS)
            else:
                x = block(a_tiles, at_a, k, tile_m * BM, BATCH, A_ROWS, A_COLUMNS).T
            if B_ALONG_K:
                y = block(b_tiles, at_b, tile_n * BN, k, BATCH, B_ROWS, B_COLUMNS).T
            else:
                y = block(b_tiles, at_b, k, tile_n * BN, BATCH, B_ROWS, B_COLUMNS)
            if len(sums) > 0:
                if tile_n == 0:
                    total += tl.sum(x.to(tl.float32), 1)
            acc = tl.dot(x, y, acc, input_precision=PRECISION)
        m = tile_m * BM + tl.arange(0, BM)
        above = which * M  # rows of the results before
        if WIDE:
            m, above = m.to(tl.int64), tl.cast(which, tl.int64) * M
        accs = cut(acc, PARTS)
        for j in tl.static_range(PARTS):
            n = tile_n * BN + j * WIDTH + tl.arange(0, WIDTH)
            if WIDE:
                n = n.to(tl.int64)
            results = finish(accs[j], m, n, M, N, extras, extra_strides, EPILOGUE, ROWS)
            for i in tl.static_range(len(outs)):
                if not BULK_STORE:
                    mask = (m[:, None] < M) & (n[None, :] < N)
                    tl.store(outs[i] + ((above + m[:, None]) * N + n[None, :]), results[i], mask=mask)
                elif BATCH == 0:
                    out_tiles[i].store((tile_m * BM, tile_n * BN + j * WIDTH), results[i])
                else:
                    out = results[i].reshape(1, BM, WIDTH)
                    out_tiles[i].store((which, tile_m * BM, tile_n * BN + j * WIDTH), out)
        if len(sums) > 0:
            mask_m = (m < M) & (tile_n == 0)  # an `if` here does not compile in a flattened loop
            tl.store(sums[0] + above + m, total.to(sums[0].dtype.element_ty), mask=mask_m)
