"""Scalar activation functions beyond the basic ones of scalar.py, under the same rules."""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels import libm

SELU_ALPHA = tl.constexpr(1.6732632423543772848170429916717)
SELU_SCALE = tl.constexpr(1.0507009873554804934193349852946)


@triton.jit
def hardtanh(x, low, high):
    return tl.where(x <= low, low, tl.where(x >= high, high, x))  # nan stays nan


@triton.jit
def _clip6(x):
    return tl.where(x <= 0, 0.0, tl.where(x >= 6, 6.0, x))


@triton.jit
def hardswish(x):
    return x * libm.div(_clip6(x + 3.0), tl.full((), 6.0, x.dtype))  # in this order there is no overflow


@triton.jit
def hardsigmoid(x):
    return libm.div(_clip6(x + 3.0), tl.full((), 6.0, x.dtype))


@triton.jit
def mish(x):
    # Beyond 20, exp(x) adds nothing to log(1 + exp(x)).
    soft = tl.where(x > 20, x, libm.log1p(libm.exp(tl.where(x > 20, tl.zeros_like(x), x))))
    return x * libm.tanh(soft)


@triton.jit
def celu(x, alpha):
    return tl.where(x > 0, x, alpha * libm.expm1(libm.div(x, alpha)))


@triton.jit
def selu(x):
    return tl.where(x > 0, x, libm.expm1(x) * SELU_ALPHA) * SELU_SCALE


@triton.jit
def softsign(x):
    return libm.div(x, 1.0 + tl.abs(x))


@triton.jit
def logsigmoid(x):
    return tl.where(x > 0, 0.0, x) - libm.log1p(libm.exp(-tl.abs(x)))


@triton.jit
def threshold(x, bound, value):
    return tl.where(x <= bound, value, x)


@triton.jit
def prelu(x, weight):
    return tl.where(x > 0, x, weight * x)


@triton.jit
def glu(a, b):
    return a * libm.div(tl.full((), 1.0, b.dtype), 1.0 + libm.exp(-b))
