"""Scalar functions of integer division, bits, and products that are added, under the rules of scalar.py.

A division of integers by zero gives zero here: it is refused, or undefined, above.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels import libm


@triton.jit
def _divisor(a, b):
    return tl.where(b == 0, tl.full((), 1, b.dtype), b)


@triton.jit
def div_trunc(a, b):
    return libm.trunc(libm.div(a, b)) if a.dtype.is_floating() else a // _divisor(a, b)


@triton.jit
def _floor_divide_floats(a, b):
    # As CPython: the quotient of what is left without the remainder, which is exact up to rounding.
    rest = libm.fmod(a, b)
    quotient = libm.div(a - rest, b)
    quotient = tl.where((rest != 0) & ((b < 0) != (rest < 0)), quotient - 1.0, quotient)
    whole = libm.floor(quotient)
    whole = tl.where(quotient - whole > 0.5, whole + 1.0, whole)
    whole = tl.where(quotient == 0, libm.copysign(tl.zeros_like(quotient), libm.div(a, b)), whole)
    return tl.where(b == 0, libm.div(a, b), whole)


@triton.jit
def _floor_divide_integers(a, b):
    safe = _divisor(a, b)
    quotient = a // safe
    rest = a - quotient * safe
    return tl.where((rest != 0) & ((safe < 0) != (rest < 0)), quotient - 1, quotient)


@triton.jit
def floor_divide(a, b):
    return _floor_divide_floats(a, b) if a.dtype.is_floating() else _floor_divide_integers(a, b)


@triton.jit
def _remainder_floats(a, b):
    rest = libm.fmod(a, b)
    return tl.where((rest != 0) & ((b < 0) != (rest < 0)), rest + b, rest)


@triton.jit
def _remainder_integers(a, b):
    safe = _divisor(a, b)
    rest = a % safe
    return tl.where((rest != 0) & ((safe < 0) != (rest < 0)), rest + safe, rest)


@triton.jit
def remainder(a, b):
    """With the sign of the divisor, as in Python."""
    return _remainder_floats(a, b) if a.dtype.is_floating() else _remainder_integers(a, b)


@triton.jit
def fmod(a, b):
    """With the sign of the dividend, as in C."""
    return libm.fmod(a, b) if a.dtype.is_floating() else a % _divisor(a, b)


# --- bits ------------------------------------------------------------------------------------------------------------
@triton.jit
def bitwise_and(a, b):
    return a & b


@triton.jit
def bitwise_or(a, b):
    return a | b


@triton.jit
def bitwise_xor(a, b):
    return a ^ b


@triton.jit
def bitwise_not(x):
    return tl.full((), 255, x.dtype) - x if x.dtype == tl.uint8 else -1 - x  # unsigned, ~x has an operand of -1


@triton.jit
def left_shift(a, b):
    """Zero where b is negative or not less than the number of bits."""
    bits: tl.constexpr = a.dtype.primitive_bitwidth
    good = (b >= 0) & (b < bits)
    return tl.where(good, a << tl.where(good, b, tl.zeros_like(b)), tl.zeros_like(a))


@triton.jit
def right_shift(a, b):
    """Arithmetic; a b that is negative or not less than the number of bits shifts out all but the sign."""
    bits: tl.constexpr = a.dtype.primitive_bitwidth
    good = (b >= 0) & (b < bits)
    sign = tl.where(a < 0, -1, 0).to(a.dtype)
    return tl.where(good, a >> tl.where(good, b, tl.zeros_like(b)), sign)


# --- products that are added -----------------------------------------------------------------------------------------
@triton.jit
def lerp(a, b, weight):
    # From the nearer end, so that lerp(a, b, 1) is b exactly.
    apart = b - a
    return tl.where(tl.abs(weight) < 0.5, a + weight * apart, b - apart * (1.0 - weight))


@triton.jit
def addcmul(x, a, b, value):
    return x + value * a * b


@triton.jit
def addcdiv(x, a, b, value):
    return x + value * libm.div(a, b)
