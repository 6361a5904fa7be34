"""Gradients of batch normalisation: the sums over each channel, and where these fit into registers the input's too.

What operands, steps and pieces are: batch_norm_tiles.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels import batch_norm_tiles as tiles, libm
from tgrad.kernels.batch_norm_tiles import Planes, Steps, channels, fixed_steps, piece_number, places
from tgrad.kernels.launch import Launch, multiple, prepare
from tgrad.kernels.program import TYPES
from tgrad.kernels.row_norm import ratio
from tgrad.kernels.rows import warps


@triton.jit
def batch_norm_sums(
    dx, by_weight, by_bias, g, x, stats, affine, eps, C, K, CHUNK, L, dx_steps, g_steps, x_steps,
    TYPE: tl.constexpr, WIDE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The sums of g * (x - mean) * rstd and of g over CHUNK elements of each of BC channels, piece p of channel c at
    p * C + c of each of `by_weight` and of `by_bias`. Without the former, x is not read.

    Args:
        stats: mean and rstd; with an `eps` mean and variance, which do not depend on x, and then there may be a
            dx = g * rstd * weight.
    """
    c = channels(WIDE, BC)
    valid = c < C
    piece = piece_number(LONG)
    last = tl.minimum(piece * CHUNK + CHUNK, K)
    first_sum = tl.zeros((BK, BC), TYPE)
    second_sum = tl.zeros((BK, BC), TYPE)
    if len(stats) > 0:
        mean = tl.load(stats[0] + c, mask=valid, other=0).to(TYPE)
        rstd = tl.load(stats[1] + c, mask=valid, other=0).to(TYPE)
        if len(eps) > 0:
            rstd = libm.div(tl.zeros((BC,), TYPE) + 1.0, libm.sqrt(rstd + eps[0].to(TYPE)))
        scale = rstd
        if len(affine) > 0:
            scale = scale * tl.load(affine[0] + c, mask=valid, other=0).to(TYPE)
    for start in range(piece * CHUNK, last, BK):
        k = start + tl.arange(0, BK)
        mask = (k < last)[:, None] & valid[None, :]
        d = tl.load(g + places(k, c, L, g_steps), mask=mask, other=0).to(TYPE)
        if len(by_bias) > 0:
            first_sum += d
        if len(by_weight) > 0:
            second_sum += d * (tl.load(x[0] + places(k, c, L, x_steps), mask=mask, other=0).to(TYPE) - mean[None, :])
        if len(dx) > 0:
            y = (d * scale[None, :]).to(dx[0].dtype.element_ty)
            tl.store(dx[0] + places(k, c, L, dx_steps), y, mask=mask)
    at = piece.to(c.dtype) * C + c
    if len(by_weight) > 0:
        total = tl.sum(second_sum, 0) * rstd
        for i in tl.static_range(len(by_weight)):
            tl.store(by_weight[i] + at, total.to(by_weight[i].dtype.element_ty), mask=valid)
    if len(by_bias) > 0:
        total = tl.sum(first_sum, 0)
        for i in tl.static_range(len(by_bias)):
            tl.store(by_bias[i] + at, total.to(by_bias[i].dtype.element_ty), mask=valid)


@triton.jit
def batch_norm_backward(
    dx, by_weight, by_bias, g, x, stats, affine, C, K, L, dx_steps, g_steps, x_steps,
    TYPE: tl.constexpr, WIDE: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """With h = (x - mean) * rstd, dx = (g - mean(g) - h * mean(g * h)) * rstd * weight, of BC channels, whose elements
    are read once; and the sums of `batch_norm_sums`. Without a `dx`, the sums alone.
    """
    c = channels(WIDE, BC)
    valid = c < C
    k = tl.arange(0, BK)
    mask = (k < K)[:, None] & valid[None, :]
    d = tl.load(g + places(k, c, L, g_steps), mask=mask, other=0).to(TYPE)
    total = tl.sum(d, 0)
    for i in tl.static_range(len(by_bias)):
        tl.store(by_bias[i] + c, total.to(by_bias[i].dtype.element_ty), mask=valid)
    if len(x) > 0:
        mean = tl.load(stats[0] + c, mask=valid, other=0)
        rstd = tl.load(stats[1] + c, mask=valid, other=0)
        h = (tl.load(x[0] + places(k, c, L, x_steps), mask=mask, other=0).to(TYPE) - mean[None, :]) * rstd[None, :]
        by_h = tl.sum(d * h, 0)
        for i in tl.static_range(len(by_weight)):
            tl.store(by_weight[i] + c, by_h.to(by_weight[i].dtype.element_ty), mask=valid)
        if len(dx) > 0:
            y = d - (ratio(total, K, TYPE, BC)[None, :] + h * ratio(by_h, K, TYPE, BC)[None, :])
            if len(affine) > 0:
                rstd = rstd * tl.load(affine[0] + c, mask=valid, other=0).to(TYPE)
            tl.store(dx[0] + places(k, c, L, dx_steps), (y * rstd[None, :]).to(dx[0].dtype.element_ty), mask=mask)


def prepare_batch_norm_backward(
    runtime: tuple, planes: Planes, dx_steps: Steps, g_steps: Steps, *, accumulator: str, aligned: bool
) -> Launch | None:
    """A launch of `batch_norm_backward`; None where channels do not fit into registers. See `prepare_batch_norm`."""
    block = tiles.whole(planes, 2, accumulator)
    if block is None:
        return None
    bk, bc = block
    constexprs = {"TYPE": TYPES[accumulator], "WIDE": planes.wide, "BK": bk, "BC": bc}
    fixed = *planes.sizes, fixed_steps(dx_steps), fixed_steps(g_steps), fixed_steps(planes.x_steps)
    return prepare(
        batch_norm_backward, (triton.cdiv(planes.c, bc),), runtime, fixed, constexprs, warps=warps(bk, bc),
        aligned=aligned,
    )  # fmt: skip


def prepare_batch_norm_sums(
    dx: tuple[str, ...], sums: tuple[tuple[str, ...], tuple[str, ...]], operands: tuple, planes: Planes,
    dx_steps: Steps, g_steps: Steps, *, accumulator: str, aligned: bool,
) -> tuple[int, Launch]:  # fmt: skip
    """How many pieces there are, and a launch of `batch_norm_sums`; of several pieces one sum each, of the accumulator.

    Args:
        sums: Triton types of `by_weight` and `by_bias` where there is one piece.
        dx, operands: of dx, and of g and what follows it.
    """
    (bk, bc), chunk, pieces = tiles.cut(planes, accumulator)
    c, k, l = planes.sizes
    if pieces > 1:
        by_weight, by_bias = (("*" + accumulator,) if types else () for types in sums)
        sums = by_weight, by_bias
    constexprs = {"TYPE": TYPES[accumulator], "WIDE": planes.wide, "LONG": planes.long, "BK": bk, "BC": bc}
    launch = prepare(
        batch_norm_sums, (triton.cdiv(planes.c, bc), pieces), (dx, *sums, *operands),
        (c, k, multiple(chunk), l, *map(fixed_steps, (dx_steps, g_steps, planes.x_steps))), constexprs,
        warps=warps(bk, bc), aligned=aligned,
    )  # fmt: skip
    return pieces, launch
