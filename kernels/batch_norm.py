"""Batch normalisation in training: statistics of each channel, the running ones, and the result.

Where channels fit into registers, one kernel does all; else there are pieces, and pointwise kernels follow. What
operands, steps and pieces are: batch_norm_tiles.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from tgrad.kernels import batch_norm_tiles as tiles, libm
from tgrad.kernels.batch_norm_tiles import Planes, Steps, channels, fixed_steps, piece_number, places
from tgrad.kernels.launch import INTERPRET, Launch, Static, multiple, prepare
from tgrad.kernels.program import TYPES
from tgrad.kernels.row_norm import ratio
from tgrad.kernels.rows import warps


@triton.jit
def finish(
    mean_to, rstd_to, running, counter, eps, keep, take, take_var, running_steps, c, valid, mean, spread, K,
    TYPE: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Store the mean and rstd = 1 / sqrt(variance + eps), which is returned; move the running statistics, and count.

    Args:
        running: the running mean and variance, or nothing. The former becomes keep * old + take * mean, the latter
            keep * old + take_var * variance.
        counter: the number of batches, or nothing.
    """
    var = ratio(spread, K, TYPE, BC)
    rstd = libm.div(tl.zeros((BC,), TYPE) + 1.0, libm.sqrt(var + eps.to(TYPE)))
    tl.store(mean_to + c, mean, mask=valid)
    tl.store(rstd_to + c, rstd, mask=valid)
    if len(running) > 0:
        at = running[0] + c * running_steps[0]
        new = tl.load(at, mask=valid, other=0).to(TYPE) * keep + mean * take
        tl.store(at, new.to(running[0].dtype.element_ty), mask=valid)
        at = running[1] + c * running_steps[1]
        new = tl.load(at, mask=valid, other=0).to(TYPE) * keep + var * take_var
        tl.store(at, new.to(running[1].dtype.element_ty), mask=valid)
    if len(counter) > 0:
        if tl.program_id(0) == 0:
            tl.store(counter[0], tl.load(counter[0]) + 1)
    return rstd


@triton.jit
def batch_norm(
    out, mean_to, rstd_to, x, affine, running, counter, eps, keep, take, take_var,
    C, K, L, x_steps, out_steps, running_steps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, TYPE: tl.constexpr, WIDE: tl.constexpr, BK: tl.constexpr,
    BC: tl.constexpr,
):  # fmt: skip
    """out = (x - mean) * rstd * weight + bias, of BC channels, whose elements are read once; and what `finish` does."""
    c = channels(WIDE, BC)
    valid = c < C
    k = tl.arange(0, BK)
    mask = (k < K)[:, None] & valid[None, :]
    v = tl.load(x + places(k, c, L, x_steps), mask=mask, other=0).to(TYPE)
    mean = ratio(tl.sum(v, 0), K, TYPE, BC)
    v = tl.where(mask, v - mean[None, :], 0.0)
    spread = tl.sum(v * v, 0)
    rstd = finish(
        mean_to, rstd_to, running, counter, eps, keep, take, take_var, running_steps, c, valid, mean, spread, K,
        TYPE, BC,
    )  # fmt: skip
    y = v * rstd[None, :]
    if WEIGHT:
        y = y * tl.load(affine[0] + c, mask=valid, other=0).to(TYPE)[None, :]
    if BIAS:
        y = y + tl.load(affine[len(affine) - 1] + c, mask=valid, other=0).to(TYPE)[None, :]
    tl.store(out + places(k, c, L, out_steps), y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def batch_norm_pieces(
    means, spreads, x, C, K, CHUNK, L, steps,
    TYPE: tl.constexpr, WIDE: tl.constexpr, LONG: tl.constexpr, BK: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Of CHUNK elements of each of BC channels the mean and the sum of squares about it: piece p of channel c at
    p * C + c. Means are relative to the first element of the channel, so that they have no fewer digits where all
    elements are large.

    Each row of the block follows its elements one by one (Welford, 1962); in the end all rows become one (Chan, Golub
    and LeVeque, 1983).
    """
    c = channels(WIDE, BC)
    valid = c < C
    piece = piece_number(LONG)
    first = piece * CHUNK
    last = tl.minimum(first + CHUNK, K)
    origin = tl.load(x + c * steps[1], mask=valid, other=0).to(TYPE)
    mean = tl.zeros((BK, BC), TYPE)
    spread = tl.zeros((BK, BC), TYPE)
    one = tl.zeros((BK,), TYPE) + 1.0
    turn = tl.zeros((BK,), TYPE)
    for start in range(first, last, BK):
        k = start + tl.arange(0, BK)
        mask = (k < last)[:, None] & valid[None, :]
        v = tl.load(x + places(k, c, L, steps), mask=mask, other=0).to(TYPE) - origin[None, :]
        turn += 1.0
        step = tl.where(mask, v - mean, 0.0)
        mean += step * libm.div(one, turn)[:, None]
        spread += step * (v - mean)
    count = last - first
    had = ((count - tl.arange(0, BK) + BK - 1) // BK).to(TYPE)[:, None]  # how many each row has followed
    whole = ratio(tl.sum(mean * had, 0), count, TYPE, BC)
    off = mean - whole[None, :]
    at = piece.to(c.dtype) * C + c
    tl.store(means + at, whole, mask=valid)
    tl.store(spreads + at, tl.sum(spread + had * (off * off), 0), mask=valid)


@triton.jit
def batch_norm_finish(
    mean_to, rstd_to, x, means, spreads, running, counter, eps, keep, take, take_var,
    C, K, CHUNK, PIECES, steps, running_steps,
    TYPE: tl.constexpr, WIDE: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The pieces of BC channels made one (Chan, Golub and LeVeque, 1983), and what `finish` does."""
    c = channels(WIDE, BC)
    valid = c < C
    p = tl.arange(0, BP)
    mask = (p < PIECES)[:, None] & valid[None, :]
    count = tl.where(p < PIECES - 1, CHUNK, K - (PIECES - 1) * CHUNK)
    count = tl.where(p < PIECES, count, 0).to(TYPE)[:, None]
    at = (p.to(c.dtype) * C)[:, None] + c[None, :]
    part = tl.load(means + at, mask=mask, other=0)
    mean = ratio(tl.sum(part * count, 0), K, TYPE, BC)
    off = part - mean[None, :]
    spread = tl.sum(tl.load(spreads + at, mask=mask, other=0) + count * (off * off), 0)
    mean += tl.load(x + c * steps[1], mask=valid, other=0).to(TYPE)
    finish(
        mean_to, rstd_to, running, counter, eps, keep, take, take_var, running_steps, c, valid, mean, spread, K,
        TYPE, BC,
    )  # fmt: skip


def prepare_batch_norm(
    runtime: tuple, planes: Planes, out_steps: Steps, running_steps: tuple[int, ...], constants: dict[str, bool], *,
    accumulator: str, aligned: bool,
) -> Launch | None:  # fmt: skip
    """A launch of `batch_norm`; None where channels do not fit into registers.

    Args:
        runtime: Triton types of its run-time parameters.
        constants: WEIGHT and BIAS.
    """
    block = tiles.whole(planes, 1, accumulator)
    if block is None:
        return None
    bk, bc = block
    constexprs = {**constants, "TYPE": TYPES[accumulator], "WIDE": planes.wide, "BK": bk, "BC": bc}
    fixed = *planes.sizes, fixed_steps(planes.x_steps), fixed_steps(out_steps), tuple(map(_step, running_steps))
    return prepare(
        batch_norm, (triton.cdiv(planes.c, bc),), runtime, fixed, constexprs, name="batch_norm", warps=warps(bk, bc),
        aligned=aligned,
    )  # fmt: skip


def _step(step: int) -> int:
    return Static(1) if step == 1 else step


def prepare_batch_norm_statistics(
    x: str, finished: tuple, planes: Planes, running_steps: tuple[int, ...], *, accumulator: str, aligned: bool
) -> tuple[int, Launch, Launch]:
    """How many pieces there are, and the launches of `batch_norm_pieces` and `batch_norm_finish`.

    Args:
        x, finished: Triton types of the input, and of the latter's run-time parameters after the pieces.
    """
    (bk, bc), chunk, pieces = tiles.cut(planes, accumulator)
    c, k, l = planes.sizes
    constexprs = {"TYPE": TYPES[accumulator], "WIDE": planes.wide, "LONG": planes.long, "BK": bk, "BC": bc}
    number = "*" + accumulator
    first = prepare(
        batch_norm_pieces, (triton.cdiv(planes.c, bc), pieces), (number, number, x),
        (c, k, multiple(chunk), l, fixed_steps(planes.x_steps)), constexprs, name="batch_norm_statistics",
        warps=warps(bk, bc), aligned=aligned,
    )  # fmt: skip
    bp, bc = max(2, triton.next_power_of_2(pieces)), 16 if not INTERPRET else max(2, triton.next_power_of_2(planes.c))
    constexprs = {"TYPE": TYPES[accumulator], "WIDE": planes.wide, "BP": bp, "BC": bc}
    second = prepare(
        batch_norm_finish, (triton.cdiv(planes.c, bc),), (number, number, x, number, number, *finished),
        (c, k, multiple(chunk), pieces, fixed_steps(planes.x_steps), tuple(map(_step, running_steps))), constexprs,
        name="batch_norm_finish", warps=warps(bp, bc), aligned=aligned,
    )  # fmt: skip
    return pieces, first, second
