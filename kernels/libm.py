"""The mathematical functions that kernels call, in float32 and float64.

On a GPU they are CUDA's libdevice, as in PyTorch. Triton's own `tl.exp`, `tl.sin`, ... are cheap approximations there
(`ex2.approx`), and its interpreter has no libdevice, so that there they are numpy's.
"""

from __future__ import annotations

import math

import numpy as np
import triton
import triton.language as tl
from triton.language.extra import libdevice

from tgrad.kernels.launch import INTERPRET

if INTERPRET:
    from tgrad.kernels.interpret import elementwise

    def _erf_table(step: float, last: float, terms: int) -> np.ndarray:
        """Taylor coefficients of erf at multiples of `step`: erf's derivatives are Hermite polynomials times a
        Gaussian.
        """
        at = np.arange(0, last + step, step)
        gauss = 2 / math.sqrt(math.pi) * np.exp(-at * at)
        before, hermite = np.zeros_like(at), np.ones_like(at)
        rows, factorial = [np.array([math.erf(x) for x in at])], 1.0
        for n in range(1, terms):
            factorial *= n
            rows.append(gauss * hermite / factorial)
            before, hermite = hermite, -2 * at * hermite - 2 * (n - 1) * before
        return np.array(rows)

    _STEP = 1 / 256
    _ERF = _erf_table(_STEP, 6.0, 7)

    def _numpy_erf(x: np.ndarray) -> np.ndarray:
        size = np.minimum(np.abs(x), 6.0).astype(np.float64)  # erf(6) is 1 in float64
        index = np.rint(np.nan_to_num(size) / _STEP).astype(np.int64)
        d = size - index * _STEP
        terms = 7 if x.dtype == np.float64 else 4
        y = _ERF[terms - 1].take(index)
        for n in reversed(range(terms - 1)):
            y = y * d + _ERF[n].take(index)
        return np.copysign(y, x).astype(x.dtype)

    exp, expm1, log, log1p = (elementwise(f) for f in (np.exp, np.expm1, np.log, np.log1p))
    sin, cos, tanh = (elementwise(f) for f in (np.sin, np.cos, np.tanh))
    erf, pow = elementwise(_numpy_erf), elementwise(np.power)
    sqrt, div = elementwise(np.sqrt), elementwise(np.divide)
    exp2, log2, log10, tan = (elementwise(f) for f in (np.exp2, np.log2, np.log10, np.tan))
    asin, acos, atan, atan2 = (elementwise(f) for f in (np.arcsin, np.arccos, np.arctan, np.arctan2))
    sinh, cosh, asinh, acosh, atanh = (elementwise(f) for f in (np.sinh, np.cosh, np.arcsinh, np.arccosh, np.arctanh))
    floor, ceil, trunc, rint = (elementwise(f) for f in (np.floor, np.ceil, np.trunc, np.rint))
    fmod, hypot, copysign = (elementwise(f) for f in (np.fmod, np.hypot, np.copysign))

    def _numpy_erfc(x: np.ndarray) -> np.ndarray:
        # C's, one by one: 1 - erf(x) has no digits left where x is large.
        return np.asarray(np.frompyfunc(math.erfc, 1, 1)(x.astype(np.float64)), x.dtype)

    erfc = elementwise(_numpy_erfc)
else:

    @triton.jit
    def exp(x):
        return libdevice.exp(x)

    @triton.jit
    def expm1(x):
        return libdevice.expm1(x)

    @triton.jit
    def log(x):
        return libdevice.log(x)

    @triton.jit
    def log1p(x):
        return libdevice.log1p(x)

    @triton.jit
    def sin(x):
        return libdevice.sin(x)

    @triton.jit
    def cos(x):
        return libdevice.cos(x)

    @triton.jit
    def tanh(x):
        return libdevice.tanh(x)

    @triton.jit
    def erf(x):
        return libdevice.erf(x)

    @triton.jit
    def pow(x, y):
        return libdevice.pow(x, y)

    @triton.jit
    def sqrt(x):
        # Correctly rounded: tl.sqrt is approximate in float32, and flushes subnormal numbers.
        if x.dtype == tl.float32:
            y = tl.sqrt_rn(x)
        else:
            y = tl.sqrt(x)
        return y

    @triton.jit
    def div(x, y):
        # Correctly rounded: `/` is approximate in float32.
        if x.dtype == tl.float32:
            z = tl.div_rn(x, y)
        else:
            z = x / y
        return z

    @triton.jit
    def exp2(x):
        return libdevice.exp2(x)

    @triton.jit
    def log2(x):
        return libdevice.log2(x)

    @triton.jit
    def log10(x):
        return libdevice.log10(x)

    @triton.jit
    def tan(x):
        return libdevice.tan(x)

    @triton.jit
    def asin(x):
        return libdevice.asin(x)

    @triton.jit
    def acos(x):
        return libdevice.acos(x)

    @triton.jit
    def atan(x):
        return libdevice.atan(x)

    @triton.jit
    def sinh(x):
        return libdevice.sinh(x)

    @triton.jit
    def cosh(x):
        return libdevice.cosh(x)

    @triton.jit
    def asinh(x):
        return libdevice.asinh(x)

    @triton.jit
    def acosh(x):
        return libdevice.acosh(x)

    @triton.jit
    def atanh(x):
        return libdevice.atanh(x)

    @triton.jit
    def erfc(x):
        return libdevice.erfc(x)

    @triton.jit
    def floor(x):
        return libdevice.floor(x)

    @triton.jit
    def ceil(x):
        return libdevice.ceil(x)

    @triton.jit
    def trunc(x):
        return libdevice.trunc(x)

    @triton.jit
    def rint(x):
        return libdevice.rint(x)

    @triton.jit
    def atan2(x, y):
        return libdevice.atan2(x, y)

    @triton.jit
    def fmod(x, y):
        return libdevice.fmod(x, y)

    @triton.jit
    def hypot(x, y):
        return libdevice.hypot(x, y)

    @triton.jit
    def copysign(x, y):
        return libdevice.copysign(x, y)
