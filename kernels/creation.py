"""Kernels that make values from nothing: ranges, the identity matrix, random numbers.

Random numbers are Philox4x32-10 (Salmon et al., SC 2011) of (seed, offset): element i of a draw is a function of the
seed and offset + i alone, so the same seed gives the same draw on a CPU and on a GPU, in whatever tiles. In a CUDA
graph the two are in device memory (`stream_at`), so that each replay draws anew.
"""

from __future__ import annotations

import functools

import triton
import triton.language as tl

from tgrad.kernels import libm
from tgrad.kernels.launch import Launch, holders, prepare
from tgrad.kernels.pointwise import tile
from tgrad.kernels.program import TYPES, convert

TWO_PI = tl.constexpr(6.283185307179586)


@triton.jit
def arange(out, start, step, n, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    """out[i] = start + i * step, computed in the type of start."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, convert(start + i.to(start.dtype) * step, TYPE), mask=i < n)


@triton.jit
def eye(out, n, columns, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, convert(i // columns == i % columns, TYPE), mask=i < n)


class StreamAddress(int):
    """Given as a seed: the address of two int64, a seed and an offset that the offset given with it is added to."""


def seed_type(seed: int) -> str:
    """The Triton type of a seed, or of the address of one."""
    return "*i64" if type(seed) is StreamAddress else "i64"


@triton.jit
def stream_at(seed, offset):
    """Seed and offset of a draw, from memory if `seed` is the address of a stream."""
    if seed.dtype.is_ptr():
        offset += tl.load(seed + 1)
        seed = tl.load(seed)
    return seed, offset


@triton.jit
def bits(seed, offset, i):
    """32 random bits of element i."""
    low, _, _, _ = tl.randint4x(seed, offset + i)
    return low


@triton.jit
def unit(x):
    """Bits as a float32 in [0, 1), a multiple of 2^-24."""
    return (x.to(tl.uint32, bitcast=True) >> 8).to(tl.float32) * 5.9604644775390625e-08


@triton.jit
def uniform(out, seed, offset, low, width, n, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    """low + width * u, u uniform in [0, 1)."""
    seed, offset = stream_at(seed, offset)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    u = unit(bits(seed, offset, i))
    tl.store(out + i, convert(low + u.to(low.dtype) * width, TYPE), mask=i < n)


@triton.jit
def normal(out, seed, offset, mean, deviation, n, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    """Normal numbers by Box and Muller's transform (Ann. Math. Statist. 29, 1958)."""
    seed, offset = stream_at(seed, offset)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a, b, _, _ = tl.randint4x(seed, offset + i)
    u = 1.0 - unit(a)  # in (0, 1], whose logarithm is finite
    z = libm.sqrt(-2.0 * libm.log(u)) * libm.cos(unit(b) * TWO_PI)
    tl.store(out + i, convert(mean + z.to(mean.dtype) * deviation, TYPE), mask=i < n)


@triton.jit
def dropout(out, x, seed, offset, p, scale, n, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    """x * scale where the element's draw is at least p, else 0. The mask is never stored: the draw can be repeated."""
    seed, offset = stream_at(seed, offset)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    value = tl.load(x + i, mask=mask, other=0).to(scale.dtype)
    keep = unit(bits(seed, offset, i)) >= p
    tl.store(out + i, convert(tl.where(keep, value * scale, 0.0), TYPE), mask=mask)


@triton.jit
def integers(out, seed, offset, low, width, n, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    """low + r, r in [0, width) the remainder of 63 random bits; width 0: of all integers from low on."""
    seed, offset = stream_at(seed, offset)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a, b, _, _ = tl.randint4x(seed, offset + i)
    low_word = b.to(tl.uint32, bitcast=True).to(tl.int64)
    word = ((a.to(tl.uint32, bitcast=True) >> 1).to(tl.int64) << 32) | low_word
    word = tl.where(width > 0, word % tl.maximum(width, 1), word)
    tl.store(out + i, convert(low + word, TYPE), mask=i < n)


@triton.jit
def exponential(out, seed, offset, mean, unused, n, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    """Exponential numbers of a mean, never 0."""
    seed, offset = stream_at(seed, offset)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    z = -libm.log(1.0 - unit(bits(seed, offset, i)))
    z = tl.where(z > 0, z, 2.9802322387695312e-08)
    tl.store(out + i, convert(z.to(mean.dtype) * mean, TYPE), mask=i < n)


@triton.jit
def linspace(out, start, end, step, n, TYPE: tl.constexpr, BLOCK: tl.constexpr):
    """n numbers from start to end, `step` apart, counted from the nearer end."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.where(i < n // 2, start + i.to(start.dtype) * step, end - (n - 1 - i).to(start.dtype) * step)
    tl.store(out + i, convert(tl.where(n == 1, start, value), TYPE), mask=i < n)


KERNELS = {"arange": arange, "eye": eye, "uniform": uniform, "normal": normal, "dropout": dropout, "integers": integers,
           "exponential": exponential, "linspace": linspace}  # fmt: skip


@functools.lru_cache(maxsize=1024)
def prepare_creation(
    name: str, out: str, pointers: tuple[str, ...], scalars: tuple[str, ...], n: int, *sizes: int, aligned: bool = True
) -> Launch:
    """A launch of one of KERNELS over `n` elements; takes the addresses of the result and the operands, then the
    scalars.

    Args:
        out: Triton type of the result; `pointers`: of the operands; `scalars`: of the run-time numbers.
        sizes: further fixed sizes (`eye`: columns).
        aligned: whether every address is a multiple of 16.
    """
    block = min(tile(n, 4), 1 << 16)
    runtime = ("*" + out, *("*" + t for t in pointers), *scalars)
    constexprs = {"TYPE": TYPES[out], "BLOCK": block}
    return prepare(KERNELS[name], (triton.cdiv(n, block),), runtime, (n, *sizes), constexprs, aligned=aligned)


holders.append(prepare_creation.cache_clear)
