"""The scalar functions: what a pointwise operation computes for one element, and nothing else.

They work on float32, float64, int32, int64, uint8 or bool (int1) values; half types never reach them. Both arguments
of a binary function have the same type. Names and special values (nan, infinities, ties) are PyTorch's.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels import libm

SQRT_HALF = tl.constexpr(0.7071067811865476)
SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)
TANH_GELU_CUBIC = tl.constexpr(0.044715)
INV_SQRT_2PI = tl.constexpr(0.3989422804014327)


@triton.jit
def neg(x):
    if x.dtype.is_floating():
        y = x * -1.0  # Triton's -x is 0 - x, which loses the sign of zero
    else:
        y = -x
    return y


@triton.jit
def abs(x):
    return tl.abs(x)


@triton.jit
def exp(x):
    return libm.exp(x)


@triton.jit
def log(x):
    return libm.log(x)


@triton.jit
def sqrt(x):
    return libm.sqrt(x)


@triton.jit
def rsqrt(x):
    return libm.div(tl.full((), 1.0, x.dtype), libm.sqrt(x))


@triton.jit
def reciprocal(x):
    return libm.div(tl.full((), 1.0, x.dtype), x)


@triton.jit
def square(x):
    return x * x


@triton.jit
def sin(x):
    return libm.sin(x)


@triton.jit
def cos(x):
    return libm.cos(x)


@triton.jit
def tanh(x):
    return libm.tanh(x)


@triton.jit
def erf(x):
    return libm.erf(x)


@triton.jit
def sigmoid(x):
    return libm.div(tl.full((), 1.0, x.dtype), 1.0 + libm.exp(-x))


@triton.jit
def relu(x):
    return tl.where(x <= 0, 0, x)  # nan stays nan


@triton.jit
def leaky_relu(x, slope):
    return tl.where(x > 0, x, x * slope)


@triton.jit
def gelu(x):
    return x * 0.5 * (1.0 + libm.erf(x * SQRT_HALF))


@triton.jit
def gelu_tanh(x):
    return x * 0.5 * (1.0 + libm.tanh((x + x * x * x * TANH_GELU_CUBIC) * SQRT_2_OVER_PI))


@triton.jit
def normal_density(x):
    return libm.exp(x * x * -0.5) * INV_SQRT_2PI


@triton.jit
def silu(x):
    return libm.div(x, 1.0 + libm.exp(-x))


@triton.jit
def softplus(x, beta, threshold):
    scaled = x * beta
    return tl.where(scaled > threshold, x, libm.div(libm.log1p(libm.exp(scaled)), beta))


@triton.jit
def elu(x, alpha):
    return tl.where(x > 0, x, libm.expm1(x) * alpha)


@triton.jit
def squared_error(a, b):
    return (a - b) * (a - b)


@triton.jit
def add(a, b):
    return a + b


@triton.jit
def sub(a, b):
    return a - b


@triton.jit
def mul(a, b):
    return a * b


@triton.jit
def div(a, b):
    return libm.div(a, b)


@triton.jit
def pow(a, b):
    if a.dtype.is_floating():
        y = libm.pow(a, b)
    else:
        # By squaring, modulo 2^64 as integer arithmetic has it. A negative exponent gives 1/a, truncated.
        y = tl.full((), 1, a.dtype) + (a - a)
        square = a
        rest = b
        for _ in range(63):
            y = tl.where((rest & 1) != 0, y * square, y)
            square = square * square
            rest = rest >> 1
        flip = tl.where((b & 1) != 0, -1, 1).to(a.dtype)
        y = tl.where(b < 0, tl.where(a == 1, tl.full((), 1, a.dtype), tl.where(a == -1, flip, tl.zeros_like(a))), y)
    return y


@triton.jit
def maximum(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clamp(x, low, high):
    # A nan stays; where low > high the result is high. An infinite or nan bound behaves as PyTorch's.
    y = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(y, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def where(condition, a, b):
    return tl.where(condition, a, b)


@triton.jit
def eq(a, b):
    return a == b


@triton.jit
def ne(a, b):
    return a != b


@triton.jit
def lt(a, b):
    return a < b


@triton.jit
def le(a, b):
    return a <= b


@triton.jit
def gt(a, b):
    return a > b


@triton.jit
def ge(a, b):
    return a >= b


@triton.jit
def logical_and(a, b):
    return a & b


@triton.jit
def logical_or(a, b):
    return a | b


@triton.jit
def logical_xor(a, b):
    return a ^ b


@triton.jit
def logical_not(x):
    return x == 0


@triton.jit
def identity(x):
    return x
