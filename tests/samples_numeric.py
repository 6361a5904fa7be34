"""Samples of mathematics, rounding, bits and the further activations: rows of samples.py's table."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

import tgrad
from tests.sampling import BINARY, TERNARY, UNARY, Input, Sample, nonzero, positive, real
from tgrad.ops import activations as act, arithmetic as a, math as m


def unit(rng, shape):
    return rng.uniform(-0.9, 0.9, size=shape)


def probability(rng, shape):
    return rng.uniform(0.05, 0.95, size=shape)


def above_one(rng, shape):
    return 1.1 + np.exp(rng.normal(size=shape) * 0.7)


def whole(rng, shape):
    return rng.integers(-40, 40, size=shape)


def few(rng, shape):
    return rng.integers(-2, 70, size=shape)


KINK = ((0.0,), (-0.0,))
HALVES = ((0.5,), (1.5,), (-0.5,), (-1.5,), (2.0,), (0.0,), (-0.0,))
TIES = ((1.0, 1.0), (-2.0, -2.0), (0.0, 0.0), (0.0, -0.0), (1.0, 2.0), (2.0, 1.0))


def one(row, ref, domain=real, points=(), ours=None, **rest):
    return Sample(row, ours or row, ref, (Input(domain),), UNARY, points, **rest)


def two(row, ref, x=real, y=real, points=(), ours=None, **rest):
    return Sample(row, ours or row, ref, (Input(x), Input(y)), BINARY, points, **rest)


def named(name, **rest):
    return one(m.TABLE[name], getattr(torch, name), **rest)


def _elementwise_prelu(x, weight):
    x, weight = torch.broadcast_tensors(x, weight)
    return F.prelu(x.reshape(1, -1), weight.reshape(-1)).reshape(x.shape) if x.numel() else x * weight


def _hardsigmoid(x):  # torch rounds 1 / 6 to float32
    return F.relu6(x + 3) / 6


def _halves(x, y):
    return F.glu(torch.stack(torch.broadcast_tensors(x, y)), 0)[0]


def _odd(f, divide):
    """f with divisors that are not zero, whatever they are made of."""
    return lambda x, y: divide(f)(x, y if y.is_floating_point() else y * 2 + 1)


def division(row, name, **settings):
    ours, ref = getattr(tgrad, name), getattr(torch, name)
    label = "-".join([name, *settings.values()])
    differentiable = Input() if row.formulas else Input(grad=False)
    divisor = Input(nonzero) if row.formulas else Input(nonzero, grad=False)
    call = lambda f: lambda x, y: f(x, y, **settings)
    return [
        Sample(row, call(ours), call(ref), (differentiable, divisor), BINARY, label=label),
        Sample(row, _odd(ours, call), _odd(ref, call), (Input(grad=False), Input(grad=False)), BINARY,
               label=f"{label}-odd"),
    ]  # fmt: skip


BITS = Input(whole, False, tgrad.int64)
MATHS = [
    *(named(n, points=KINK) for n in ("expm1", "atan", "asinh", "sinh", "erfc", "rad2deg", "deg2rad")),
    named("sinc", points=KINK, scale=1, integers=False), named("exp2", back_scale=4), named("cosh"),
    *(named(n, domain=positive) for n in ("log2", "log10", "log1p")),
    named("tan", domain=unit), *(named(n, domain=unit) for n in ("asin", "acos", "atanh")),
    named("acosh", domain=above_one, back_scale=4),
    one(m.logit, torch.logit, probability, label="logit", ours=tgrad.logit, integers=False, factor=4, scale=2,
        back_factor=4),
    one(m.logit, lambda x: torch.logit(x, 0.25), probability, label="logit-eps", factor=4, scale=2, back_factor=4,
        ours=lambda x: tgrad.logit(x, 0.25), integers=False),
    two(m.logaddexp, torch.logaddexp, points=TIES, integers=False, factor=2, scale=1, back_factor=4),
    two(m.xlogy, torch.xlogy, y=positive, points=TIES),
    two(m.atan2, torch.atan2, x=nonzero, y=nonzero), two(m.hypot, torch.hypot, x=nonzero, y=nonzero),
    two(m.copysign, torch.copysign, points=TIES),
]  # fmt: skip
ROUNDING = [
    *(named(n, points=HALVES) for n in ("floor", "ceil", "trunc", "round", "frac", "sign")),
    one(m.sgn, torch.sign, points=HALVES),
    one(m.round_decimals, lambda x: torch.round(x, decimals=1), ours=lambda x: tgrad.round(x, decimals=1),
        label="round-decimals", integers=False, factor=4),
    one(m.round_decimals, lambda x: torch.round(x, decimals=-1), lambda rng, shape: real(rng, shape) * 20,
        ours=lambda x: tgrad.round(x, decimals=-1), label="round-tens", integers=False),
    *(one(m.TABLE[n], getattr(torch, n), points=KINK) for n in ("isnan", "isinf", "isfinite", "signbit")),
    one(m.nan_to_num, lambda x: torch.nan_to_num(x, 1.5, 2.5, -3.5), ours=lambda x: tgrad.nan_to_num(x, 1.5, 2.5, -3.5),
        label="nan_to_num-values", points=((np.nan,), (np.inf,), (-np.inf,))),
    two(m.heaviside, torch.heaviside, points=TIES),
    Sample(m.isclose, tgrad.isclose, torch.isclose, (Input(), Input()), BINARY, TIES),
]  # fmt: skip
DIVISIONS = [
    *division(a.div_trunc, "div", rounding_mode="trunc"), *division(a.div_floor, "div", rounding_mode="floor"),
    *division(a.floor_divide, "floor_divide"), *division(a.remainder, "remainder"), *division(a.fmod, "fmod"),
    *(Sample(a.TABLE[n], a.TABLE[n], getattr(torch, n), (BITS, BITS), BINARY, integers=False)
      for n in ("bitwise_and", "bitwise_or", "bitwise_xor")),
    *(Sample(a.TABLE[n], a.TABLE[n], getattr(torch, n), (BITS, Input(few, False, tgrad.int64)), BINARY, integers=False)
      for n in ("bitwise_left_shift", "bitwise_right_shift")),
    Sample(a.bitwise_not, a.bitwise_not, torch.bitwise_not, (BITS,), UNARY, integers=False),
    Sample(a.lerp, a.lerp, torch.lerp, (Input(), Input(), Input()), TERNARY,
           ((0.0, 1.0, 0.5), (1.0, 3.0, 1.0), (1.0, 3.0, 0.0)), factor=4, back_factor=4, scale=4),
    Sample(a.lerp, lambda x, y: tgrad.lerp(x, y, 0.25), lambda x, y: torch.lerp(x, y, 0.25), (Input(), Input()), BINARY,
           label="lerp-number", factor=2, scale=2),
    Sample(a.addcmul, lambda x, y, z: tgrad.addcmul(x, y, z, value=2), lambda x, y, z: torch.addcmul(x, y, z, value=2),
           (Input(), Input(), Input()), TERNARY, scale=8),
    Sample(a.addcdiv, lambda x, y, z: tgrad.addcdiv(x, y, z, value=0.5),
           lambda x, y, z: torch.addcdiv(x, y, z, value=0.5), (Input(), Input(), Input(nonzero)), TERNARY, scale=4,
           back_factor=4, back_scale=4),
]  # fmt: skip
ACTIVATIONS = [
    one(act.hardtanh, F.hardtanh, ours=tgrad.activations.hardtanh, points=((-1.0,), (1.0,), (0.0,))),
    one(act.hardtanh, F.relu6, ours=tgrad.activations.relu6, points=((0.0,), (6.0,)), label="relu6"),
    one(act.hardswish, F.hardswish, points=((3.0,), (-3.0,)), scale=1),
    one(act.hardsigmoid, _hardsigmoid, integers=False, points=((3.0,), (-3.0,)), scale=1),
    one(act.mish, F.mish, points=KINK, scale=1),
    one(act.celu, lambda x: F.celu(x, 0.5), ours=lambda x: act.celu(x, 0.5), points=KINK),
    one(act.selu, F.selu, points=KINK), one(act.softsign, F.softsign, points=KINK, back_scale=2, back_factor=4),
    one(act.logsigmoid, F.logsigmoid, points=KINK, scale=1, strides=False),
    one(act.threshold, lambda x: F.threshold(x, 1, 20), ours=lambda x: act.threshold(x, 1, 20), points=((1.0,),)),
    two(act.prelu, _elementwise_prelu, points=((0.0, 2.0), (-0.0, 2.0)), integers=False, strides=False),
    two(act.glu, _halves, integers=False, strides=False, factor=2, back_factor=4),
]  # fmt: skip
NUMERIC = [*MATHS, *ROUNDING, *DIVISIONS, *ACTIVATIONS]
