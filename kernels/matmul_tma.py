"""Matrix products on Hopper and later: persistent programs, which move tiles with the bulk copy engine (TMA).

The descriptors of the matrices are made by the kernel, once per program, in scratch memory that the launch supplies
(`launch.scratch`). Descriptors made on the host would cost up to 0.3 us each per launch, and their parameters are
others in each Triton version; these cost the host nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels.matmul_parts import finish, place


@triton.jit
def matmul_tma(
    outs, sums, a, b, extras, M, N, K, CHUNK, stride_a, stride_b, extra_strides,
    EPILOGUE: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr, A_ALONG_K: tl.constexpr,
    B_ALONG_K: tl.constexpr, BULK_STORE: tl.constexpr, SPLIT: tl.constexpr, WIDE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """`matmul` for two matrices whose elements are neighbours along one dimension, rows (or columns) a multiple of 16
    bytes apart.

    Each program takes every tl.num_programs(0)-th tile. A_ALONG_K: a is stored as (M, K), else as (K, M); B_ALONG_K: b
    as (N, K), else as (K, N). Tiles beyond the edges are filled with zeros. BULK_STORE: the result goes through a
    descriptor too.
    """
    if A_ALONG_K:
        a_tiles = tl.make_tensor_descriptor(a, (M, K), (stride_a, 1), (BM, BK))
    else:
        a_tiles = tl.make_tensor_descriptor(a, (K, M), (stride_a, 1), (BK, BM))
    if B_ALONG_K:
        b_tiles = tl.make_tensor_descriptor(b, (N, K), (stride_b, 1), (BN, BK))
    else:
        b_tiles = tl.make_tensor_descriptor(b, (K, N), (stride_b, 1), (BK, BN))
    if BULK_STORE:
        out_tiles = tl.make_tensor_descriptor(outs[0], (M, N), (N, 1), (BM, BN))
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    tiles = tiles_m * tiles_n
    if SPLIT:
        tiles *= tl.cdiv(K, CHUNK)
    for index in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        first, last = 0, K
        piece = 0
        tile = index
        if SPLIT:
            piece = index // (tiles_m * tiles_n)
            tile = index % (tiles_m * tiles_n)
            first = piece * CHUNK
            last = tl.minimum(first + CHUNK, K)
        tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP)
        acc = tl.zeros((BM, BN), dtype=tl.float32)
        total = tl.zeros((BM,), dtype=tl.float32)
        for k in range(first, last, BK):
            if A_ALONG_K:
                x = a_tiles.load((tile_m * BM, k))
            else:
                x = a_tiles.load((k, tile_m * BM)).T
            if B_ALONG_K:
                y = b_tiles.load((tile_n * BN, k)).T
            else:
                y = b_tiles.load((k, tile_n * BN))
            if len(sums) > 0:
                if tile_n == 0:
                    total += tl.sum(x.to(tl.float32), 1)
            acc = tl.dot(x, y, acc, input_precision=PRECISION)
        m, n = tile_m * BM + tl.arange(0, BM), tile_n * BN + tl.arange(0, BN)
        if WIDE:
            m, n = m.to(tl.int64), n.to(tl.int64)
        results = finish(acc, m, n, M, N, extras, extra_strides, EPILOGUE, ROWS)
        if BULK_STORE:
            out_tiles.store((tile_m * BM, tile_n * BN), results[0])
        else:
            mask = (m[:, None] < M) & (n[None, :] < N)
            tl.store(outs[0] + ((piece * M + m[:, None]) * N + n[None, :]), results[0], mask=mask)
        if len(sums) > 0:
            mask_m = (m < M) & (tile_n == 0)  # an `if` here does not compile in a flattened loop
            tl.store(sums[0] + piece * M + m, total.to(sums[0].dtype.element_ty), mask=mask_m)
