"""Which elements are above zero, at one bit each."""

from __future__ import annotations

import functools

import triton
import triton.language as tl

from tgrad.kernels.launch import INTERPRET, Launch, holders, prepare
from tgrad.kernels.pointwise import split
from tgrad.kernels.program import TYPES, convert


@triton.jit
def pack(out, x, n, TYPE: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr):
    """Bit j of out[i] is whether x[8 * i + j] is not <= 0: nan counts as above. SPLIT, here and below: only the last
    block is masked."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    i = first + tl.arange(0, BLOCK)
    j = tl.arange(0, 8)
    at = i[:, None] * 8 + j[None, :]
    if SPLIT:
        if (first + BLOCK) * 8 <= n:
            value = tl.load(x + at)
        else:
            value = tl.load(x + at, mask=at < n, other=0)
    else:
        value = tl.load(x + at, mask=at < n, other=0)
    value = convert(value, TYPE)
    word = tl.sum(tl.where(value <= 0, 0, 1) << j[None, :], axis=1)
    tl.store(out + i, word.to(tl.uint8), mask=i * 8 < n)


@triton.jit
def unpack(out, bits, n, TYPE: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr):
    """out[8 * i + j] = bit j of bits[i]."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    i = first + tl.arange(0, BLOCK)
    j = tl.arange(0, 8)
    at = i[:, None] * 8 + j[None, :]
    word = tl.load(bits + i, mask=i * 8 < n, other=0).to(tl.int32)
    value = convert((word[:, None] >> j[None, :]) & 1, TYPE)
    if SPLIT:
        if (first + BLOCK) * 8 <= n:
            tl.store(out + at, value)
        else:
            tl.store(out + at, value, mask=at < n)
    else:
        tl.store(out + at, value, mask=at < n)


@functools.lru_cache(maxsize=256)
def prepare_bits(kernel: str, kind: str, n: int, *, aligned: bool = True) -> Launch:
    """A launch of `pack` (addresses of the bits and of x) or `unpack` (of the result and the bits) over n elements.

    Args:
        kind: Triton type of x, or of the result.
        aligned: whether every address is a multiple of 16.
    """
    block = min(triton.next_power_of_2(triton.cdiv(n, 8)), 1 << 15) if INTERPRET else 256
    packing = kernel == "pack"
    wide = "fp64" if kind == "fp64" else "fp32" if kind in ("fp16", "bf16", "fp32") else kind
    runtime = ("*u8", "*" + kind) if packing else ("*" + kind, "*u8")
    return prepare(
        pack if packing else unpack, (triton.cdiv(triton.cdiv(n, 8), block),), runtime, (n,),
        {"TYPE": TYPES[wide if packing else kind], "BLOCK": block, "SPLIT": split(n, 8 * block)},
        name=f"relu_{kernel}", aligned=aligned,
    )  # fmt: skip


holders.append(prepare_bits.cache_clear)
