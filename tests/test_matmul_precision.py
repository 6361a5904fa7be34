"""The arithmetic of float32 products on a GPU, modelled in numpy: three tf32 products, and what matrix units drop.

The model of the unit is that of Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor cores" (2021):
the products of one instruction are exact, they and the accumulator are aligned to the largest and truncated, and so is
the sum. Both references of this project's claim are held: the error against float64 is at most twice that of float32
arithmetic, and summing inside the unit along all of K would not be good enough.
"""

import numpy as np
import pytest

from tests.compare import random
from tgrad.kernels import matmul_tiles

DEPTH = 8  # products of one tf32 instruction along K
BITS = 25  # of the sum inside the unit


def tf32(x):
    """Rounded to 11 significant bits, ties away from zero."""
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def toward_zero(x):
    y = x.astype(np.float32)
    return np.where(np.abs(y.astype(np.float64)) > np.abs(x), np.nextafter(y, np.float32(0)), y)


def instruction(acc, a, b):
    """acc + a @ b as one instruction forms it."""
    terms = a.astype(np.float64)[:, :, None] * b.astype(np.float64)[None]
    terms = np.concatenate([acc.astype(np.float64)[:, None], terms], 1)
    unit = np.ldexp(1.0, np.frexp(np.abs(terms).max(1))[1] - BITS)[:, None]
    return toward_zero((np.trunc(terms / unit) * unit).sum(1))


def three_products(a, b, step, inside=False):
    """a @ b in steps along K, each summed by itself in the unit; `inside`: the unit's accumulator goes through."""
    a_high, b_high = tf32(a), tf32(b)
    a_low, b_low = tf32(a - a_high), tf32(b - b_high)
    acc = np.zeros((len(a), b.shape[1]), np.float32)
    for first in range(0, a.shape[1], step):
        part = acc if inside else np.zeros_like(acc)
        for x, y in ((a_low, b_high), (a_high, b_low), (a_high, b_high)):
            for k in range(first, min(first + step, a.shape[1]), DEPTH):
                part = instruction(part, x[:, k : k + DEPTH], y[k : k + DEPTH])
        acc = part if inside else acc + part
    return acc


def plain(a, b):
    """a @ b by fused multiply-adds in float32, one after another, as cuBLAS does."""
    acc = np.zeros((len(a), b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        acc = (acc.astype(np.float64) + a[:, k : k + 1].astype(np.float64) * b[k].astype(np.float64)).astype(np.float32)
    return acc


def error(out, a, b):
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return np.linalg.norm(out - exact) / np.linalg.norm(exact)


def draw(k, positive):
    """(32, k) and (k, 32)."""
    generator = random("precision", k, positive)
    make = generator.random if positive else generator.standard_normal
    return make((32, k), np.float32), make((k, 32), np.float32)


def steps(k):
    """The lengths of a step that products of length k may get on any chip."""
    return sorted({c.tile.bk for arch in (80, 90, 100) for c in matmul_tiles.choices(arch, "fp32", k, True, False)})


@pytest.mark.parametrize("positive", [False, True], ids=["normal", "positive"])
@pytest.mark.parametrize("k", [8, 32, 64, 72, 96, 256, 1024])
def test_error_is_at_most_twice_that_of_float32(k, positive):
    a, b = draw(k, positive)
    allowed = 2 * error(plain(a, b), a, b)
    assert steps(k)
    for step in steps(k):
        assert error(three_products(a, b, step), a, b) <= allowed, step


def test_longer_steps_would_not_do():
    """Why short products take steps of 16, and why the sum along K is not left to the unit: the model can fail."""
    a, b = draw(64, True)
    assert error(three_products(a, b, 64), a, b) > 2 * error(plain(a, b), a, b)
    a, b = draw(1024, False)
    assert error(three_products(a, b, 32, inside=True), a, b) > 5 * error(plain(a, b), a, b)


def test_one_product_is_far_from_float32():
    a, b = draw(256, False)
    one = np.zeros((32, 32), np.float32)
    for k in range(0, 256, DEPTH):
        one = instruction(one, tf32(a)[:, k : k + DEPTH], tf32(b)[k : k + DEPTH])
    assert 1e-4 < error(one, a, b) < 1e-3
