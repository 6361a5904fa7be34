"""Scalar functions of mathematics beyond the basic ones of scalar.py, under the same rules."""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels import libm

PI = tl.constexpr(3.141592653589793)
DEGREES = tl.constexpr(57.29577951308232)


@triton.jit
def exp2(x):
    return libm.exp2(x)


@triton.jit
def expm1(x):
    return libm.expm1(x)


@triton.jit
def log2(x):
    return libm.log2(x)


@triton.jit
def log10(x):
    return libm.log10(x)


@triton.jit
def log1p(x):
    return libm.log1p(x)


@triton.jit
def tan(x):
    return libm.tan(x)


@triton.jit
def asin(x):
    return libm.asin(x)


@triton.jit
def acos(x):
    return libm.acos(x)


@triton.jit
def atan(x):
    return libm.atan(x)


@triton.jit
def sinh(x):
    return libm.sinh(x)


@triton.jit
def cosh(x):
    return libm.cosh(x)


@triton.jit
def asinh(x):
    return libm.asinh(x)


@triton.jit
def acosh(x):
    return libm.acosh(x)


@triton.jit
def atanh(x):
    return libm.atanh(x)


@triton.jit
def erfc(x):
    return libm.erfc(x)


@triton.jit
def atan2(a, b):
    return libm.atan2(a, b)


@triton.jit
def hypot(a, b):
    return libm.hypot(a, b)


@triton.jit
def copysign(a, b):
    return libm.copysign(a, b)


@triton.jit
def logaddexp(a, b):
    high = tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
    apart = libm.log1p(libm.exp(-tl.abs(a - b))) + high
    return tl.where((a == b) & (tl.abs(a) == float("inf")), a, apart)  # inf - inf would be nan


@triton.jit
def sinc(x):
    # sin(pi x) is, up to its sign, that of the distance to the nearest integer, which is exact.
    near = libm.rint(x)
    wave = libm.sin((x - near) * PI)
    wave = tl.where(near - 2.0 * libm.floor(near * 0.5) != 0, -wave, wave)
    wave = tl.where(tl.abs(x) == float("inf"), x - x, wave)
    return tl.where(x == 0, tl.full((), 1.0, x.dtype), libm.div(wave, tl.where(x == 0, 1.0, x) * PI))


@triton.jit
def logit(x, low, high):
    y = tl.minimum(tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL), high, propagate_nan=tl.PropagateNan.ALL)
    y = tl.where(low <= high, y, x)  # no bounds are given as low > high
    return libm.log(libm.div(y, 1.0 - y))


@triton.jit
def xlogy(a, b):
    zero = (a == 0) & (b == b)
    return tl.where(zero, tl.zeros_like(a), a * libm.log(tl.where(zero, tl.full((), 1.0, b.dtype), b)))


@triton.jit
def rad2deg(x):
    return x * DEGREES


@triton.jit
def deg2rad(x):
    return x * (PI / 180.0)


# --- rounding --------------------------------------------------------------------------------------------------------
@triton.jit
def floor(x):
    return libm.floor(x) if x.dtype.is_floating() else x


@triton.jit
def ceil(x):
    return libm.ceil(x) if x.dtype.is_floating() else x


@triton.jit
def trunc(x):
    return libm.trunc(x) if x.dtype.is_floating() else x


@triton.jit
def round(x):
    return libm.rint(x) if x.dtype.is_floating() else x  # half to even


@triton.jit
def round_decimals(x, power, coarse):
    """Round to `power` parts of one, or, if `coarse`, to multiples of `power`."""
    fine = libm.div(libm.rint(x * power), power)
    return tl.where(coarse != 0, libm.rint(libm.div(x, power)) * power, fine)


@triton.jit
def frac(x):
    return x - libm.trunc(x)


# --- signs and special values ----------------------------------------------------------------------------------------
@triton.jit
def sign(x):
    return tl.where(x > 0, 1, tl.where(x < 0, -1, 0)).to(x.dtype)


@triton.jit
def signbit(x):
    return libm.copysign(tl.full((), 1.0, x.dtype), x) < 0 if x.dtype.is_floating() else x < 0


@triton.jit
def isnan(x):
    return x != x


@triton.jit
def isinf(x):
    return tl.abs(x) == float("inf") if x.dtype.is_floating() else x != x


@triton.jit
def isfinite(x):
    return tl.abs(x) < float("inf") if x.dtype.is_floating() else x == x


@triton.jit
def nan_to_num(x, nan, posinf, neginf):
    y = tl.where(x != x, nan, x)
    y = tl.where(x == float("inf"), posinf, y)
    return tl.where(x == float("-inf"), neginf, y)


@triton.jit
def heaviside(a, b):
    return tl.where(a == 0, b, tl.where(a > 0, 1, 0).to(a.dtype))


@triton.jit
def isclose(a, b, rtol, atol, equal_nan):
    """rtol and atol are of the values' type."""
    apart = tl.abs(a - b)
    near = (apart <= atol + tl.abs(rtol * b)) & (apart < float("inf"))
    return (a == b) | near | ((equal_nan != 0) & (a != a) & (b != b))
