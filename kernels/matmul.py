"""Matrix products: C = epilogue(A @ B), batched, for any strides of A and B.

`matmul` reads through pointers, for any strides; `matmul_tma` (matmul_tma.py) serves Hopper and later where it can.
`choose` (matmul_tiles.py) decides which, with what tile, and whether K is cut into pieces.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import triton
import triton.language as tl

from tgrad.kernels.launch import Launch, Static, multiples, prepare, strides
from tgrad.kernels.matmul_parts import combine, cut, finish, place
from tgrad.kernels.matmul_tiles import Choice, Tile, choose, interpreted, itemsize, multiprocessors, registers
from tgrad.kernels.matmul_tma import MOST_BATCH, matmul_tma
from tgrad.kernels.pointwise import coordinates, offset
from tgrad.kernels.program import TYPES, Program, copy_program


@triton.jit
def matmul(
    outs, sums, a, b, extras, M, N, K, CHUNK, stride_am, stride_ak, stride_bk, stride_bn, batch_shape, batch_strides,
    extra_strides, EPILOGUE: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr, TYPE: tl.constexpr,
    BATCH: tl.constexpr, SPLIT: tl.constexpr, WIDE: tl.constexpr,
    PARTS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Each program computes one BM x BN tile of one matrix of the batch.

    EPILOGUE maps the float accumulator and the extras (bias, ...) to the results, which are row-major, one for each of
    outs. SPLIT: instead of a batch there are pieces of K, CHUNK long, whose results are stored one after another. If
    there is a pointer in sums, the sums of a's rows are stored there. PARTS: into how many the columns of a tile are
    cut for the epilogue.
    """
    WIDTH: tl.constexpr = BN // PARTS
    tiles_m = tl.cdiv(M, BM)
    tiles_n = tl.cdiv(N, BN)
    which = tl.program_id(0) // (tiles_m * tiles_n)  # in one dimension with the tiles: the grid's others end at 65,535
    tile_m, tile_n = place(tl.program_id(0) % (tiles_m * tiles_n), tiles_m, tiles_n, GROUP)
    first, last = 0, K
    if SPLIT:
        first = which * CHUNK
        last = tl.minimum(first + CHUNK, K)
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
    total = tl.zeros((BM,), dtype=TYPE)
    for start in range(first, last, BK):
        k = start + k0
        x = tl.load(
            a + (m[:, None] * stride_am + k[None, :] * stride_ak), mask=(m[:, None] < M) & (k[None, :] < K), other=0
        )
        y = tl.load(
            b + (k[:, None] * stride_bk + n[None, :] * stride_bn), mask=(k[:, None] < K) & (n[None, :] < N), other=0
        )
        if len(sums) > 0:
            if tile_n == 0:
                total += tl.sum(x.to(TYPE), 1)
        acc = tl.dot(x, y, acc, input_precision=PRECISION, out_dtype=TYPE)
    accs = cut(acc, PARTS)
    for j in tl.static_range(PARTS):
        n = tile_n * BN + j * WIDTH + tl.arange(0, WIDTH)
        if WIDE:
            n = n.to(tl.int64)
        results = finish(accs[j], m, n, M, N, extras, extra_strides, EPILOGUE, ROWS)
        mask = (m[:, None] < M) & (n[None, :] < N)
        for i in tl.static_range(len(outs)):
            tl.store(outs[i] + (which * M * N + m[:, None] * N + n[None, :]), results[i], mask=mask)
    if len(sums) > 0:
        mask_m = (m < M) & (tile_n == 0)
        tl.store(sums[0] + which * M + m, total.to(sums[0].dtype.element_ty), mask=mask_m)


class Operands(NamedTuple):
    """What a product is of, in Triton's types and in elements.

    Attributes:
        types: of the results, of a and b, and of the extras.
        sizes: M, N, K of one product.
        a_strides, b_strides: of a as (M, K) and of b as (K, N).
        batch: collapsed batch sizes, and the strides of a and b over them.
        aligned: whether every address is a multiple of 16.
        wide: whether offsets need 64 bits.
    """

    types: tuple[str, str, tuple[str, ...]]
    sizes: tuple[int, int, int]
    a_strides: tuple[int, int]
    b_strides: tuple[int, int]
    extra_strides: tuple[tuple[int, ...], ...]
    batch: tuple[tuple[int, ...], list[tuple[int, ...]]]
    aligned: bool
    wide: bool

    @property
    def products(self) -> int:
        """How many there are in the batch."""
        return math.prod(self.batch[0])

    def tma(self) -> bool:
        """Whether the bulk copy engine can read both: neighbours along one dimension, 16-byte steps along the others,
        of which there are at most four.
        """
        dtype = self.types[1]
        sides = (self.a_strides, self.b_strides)
        steps = [s[0] if s[1] == 1 else s[1] if s[0] == 1 else 0 for s in sides]
        whole = all(step > 0 and step * itemsize(dtype) % 16 == 0 for step in steps)
        batch = len(self.batch[0]) <= MOST_BATCH and all(
            step * itemsize(dtype) % 16 == 0 for row in self.batch[1] for step in row
        )
        return whole and batch and min(self.sizes) > 0 and self.aligned and dtype != "fp64"


def prepare_matmul(
    epilogue: Program, operands: Operands, *, precision: str, name: str, sums: bool = False,
    choice: Choice | None = None,
) -> tuple[Launch, int]:  # fmt: skip
    """A launch, and how many bytes of workspace it needs.

    The callable takes the workspace if there is one, the results, the sums of a's rows if `sums`, a, b, the extras.
    The same operands give the same bits each time: where K is cut, the pieces are added in order.

    Args:
        epilogue: maps the accumulator and the extras to the results.
        precision: how float32 products are formed: "ieee", "tf32x3" or "tf32".
        choice: in place of what `choose` gives.
    """
    dtype = operands.types[1]
    m, n, k = operands.sizes
    if choice is None:
        choice = choose(m, n, k, dtype=dtype, batch=operands.products, tma=operands.tma())
    pieces = max(1, triton.cdiv(k, choice.chunk(k)))  # fewer than asked for where one would be empty
    choice = Choice(choice.tile, pieces)
    total = "fp64" if dtype == "fp64" else "fp32"
    wide = operands.wide or pieces * m * n >= 2**31
    options: dict[str, Any] = {"sums": sums, "choice": choice, "precision": precision, "wide": wide, "name": name}
    if pieces == 1:
        return _first(epilogue, operands, **options), 0
    partial = operands._replace(types=(total, dtype, ()), extra_strides=())
    first = _first(copy_program(total, total), partial, **options)
    second = _second(epilogue, operands, sums=sums, pieces=pieces, total=total, wide=wide, name=name)
    size = -(-pieces * m * n * itemsize(total) // 16) * 16
    results = len(epilogue.results) + sums

    def launch(workspace: int, *addresses: int) -> None:
        parts = (workspace, workspace + size)[: 1 + sums]
        a, b, *rest = addresses[results:]
        first(*parts, a, b)
        second(*addresses[:results], *parts, *rest)

    return launch, size + (pieces * m * itemsize(total) if sums else 0)


def _first(
    epilogue: Program, operands: Operands, *, sums: bool, choice: Choice, precision: str, wide: bool, name: str
) -> Launch:
    """The product itself, or its pieces one after another."""
    tile, pieces = choice
    out, dtype, extras = operands.types
    m, n, k = operands.sizes
    outs = ("*" + out,) * len(epilogue.results)
    runtime = outs, (f"*{out}",) * sums, "*" + dtype, "*" + dtype, tuple("*" + t for t in extras)
    constexprs: dict[str, Any] = {
        "EPILOGUE": epilogue, "ROWS": rows(operands.extra_strides), "PRECISION": precision, "SPLIT": pieces > 1,
        "WIDE": wide, "BM": tile.bm, "BN": tile.bn, "BK": tile.bk, "GROUP": 8,
        "PARTS": max(tile.parts, parts(tile, epilogue)),
    }  # fmt: skip
    steps = tuple(strides(s) for s in operands.extra_strides)
    programs = triton.cdiv(m, tile.bm) * triton.cdiv(n, tile.bn) * pieces * operands.products
    options: dict[str, Any] = {"name": name, "warps": tile.warps, "stages": tile.stages}
    options["contract"] = contracts(epilogue, dtype)
    chunk = choice.chunk(k) if pieces > 1 else 0
    if tile.tma:
        (am, ak), (bk, bn) = operands.a_strides, operands.b_strides
        constexprs |= {
            "A_ALONG_K": ak == 1, "B_ALONG_K": bk == 1, "BATCH": len(operands.batch[0]),
            "BULK_STORE": pieces == 1 and n * itemsize(out) % 16 == 0,
        }  # fmt: skip
        shape, both = operands.batch
        reach = tuple(tuple(size if step else 1 for size, step in zip(shape, row, strict=True)) for row in both)
        apart = tuple(multiples(tuple(step or 16 for step in row)) for row in both)  # 16: as good as any other
        stride_a, stride_b = am if ak == 1 else ak, bn if bk == 1 else bk
        fixed = (m, n, k, chunk, stride_a, stride_b, shape, reach, apart, steps)
        grid = (min(programs, multiprocessors()),)
        options["registers"] = registers(constexprs["PARTS"] > 1 or len(extras) > 0)
        return prepare(matmul_tma, grid, runtime, fixed, constexprs, aligned=True, **options)
    unit = [Static(1) if s == 1 else s for s in (*operands.a_strides, *operands.b_strides)]
    constexprs |= {"TYPE": TYPES["fp64" if dtype == "fp64" else "fp32"], "BATCH": len(operands.batch[0])}
    apart = tuple(multiples(row) for row in operands.batch[1])
    fixed = (m, n, k, chunk, *unit, operands.batch[0], apart, steps)
    return prepare(matmul, (programs,), runtime, fixed, constexprs, aligned=operands.aligned, **options)


def _second(
    epilogue: Program, operands: Operands, *, sums: bool, pieces: int, total: str, wide: bool, name: str
) -> Launch:
    """The sum of the pieces."""
    out, _, extras = operands.types
    m, n, _ = operands.sizes
    outs = ("*" + out,) * len(epilogue.results)
    runtime = outs, (f"*{out}",) * sums, "*" + total, (f"*{total}",) * sums, tuple("*" + t for t in extras)
    bm, bn = combine_tile(m, n)
    constexprs = {
        "PIECES": pieces, "EPILOGUE": epilogue, "ROWS": rows(operands.extra_strides), "WIDE": wide, "BM": bm, "BN": bn,
    }  # fmt: skip
    fixed = (m, n, tuple(strides(s) for s in operands.extra_strides))
    grid = (triton.cdiv(m, bm) * triton.cdiv(n, bn),)
    contract = contracts(epilogue, total)
    return prepare(combine, grid, runtime, fixed, constexprs, name=name, aligned=operands.aligned, contract=contract)


def contracts(epilogue: Program, dtype: str) -> bool:
    """Whether multiplications and additions may be contracted: not if the epilogue has some of its own, which then
    would not have the bits of the op alone. Matrix instructions have nothing to contract; float64's products have.
    """
    return dtype == "fp64" or all(f.__name__ in _NOTHING_TO_CONTRACT for f, _ in epilogue.steps)


_NOTHING_TO_CONTRACT = frozenset(("add", "identity", "where", "relu", "leaky_relu", "le", "lt", "ge", "gt", "eq", "ne"))


def parts(tile: Tile, epilogue: Program) -> int:
    """Into how many a tile's result is cut for an epilogue that computes much or has several results, so that 32
    elements a thread are in work at once: of 128, the compiler would spill some.
    """
    plain = len(epilogue.results) == 1 and all(f.__name__ in _NOTHING_TO_CONTRACT for f, _ in epilogue.steps)
    if plain or (interpreted() and not tile.tma):
        return 1
    return min(4, max(1, tile.bm * tile.bn // (32 * tile.warps) // 32))


def rows(extra_strides: tuple[tuple[int, ...], ...]) -> tuple[bool, ...]:
    """Which extras are one row, the same for every m."""
    return tuple(s[0] == 0 for s in extra_strides)


def combine_tile(m: int, n: int) -> tuple[int, int]:
    """Rows and columns per program of the kernel that adds pieces: 1024 elements, wide."""
    bn = min(256, max(16, triton.next_power_of_2(n)))
    return max(1, min(triton.next_power_of_2(m), 1024 // bn)), bn
