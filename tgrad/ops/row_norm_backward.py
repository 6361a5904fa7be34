"""Gradients of the norms over rows: in fused kernels, and in recorded maths that can be differentiated again.

Fused, of a layer or RMS norm: one kernel reads the gradient and the input once, writes the input's gradient and adds
up, over the rows of each program, what the weight's and the bias's are sums of; a second one adds those partial sums.
Where a row does not fit into registers, or a channel has several elements, the sums have a kernel of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dispatch import dispatch
from tgrad.kernels.launch import Launch
from tgrad.kernels.row_norm import prepare_norm, prepare_norm_backward_channels
from tgrad.kernels.row_norm_sums import (
    prepare_norm_backward_sums,
    prepare_norm_channel_sums,
    prepare_norm_column_sums,
    prepare_norm_sums,
)
from tgrad.layout import Layout, layout, numel
from tgrad.op import Kernel
from tgrad.ops import pointwise as p
from tgrad.ops.reduce import sum_op
from tgrad.ops.views import contiguous, fill_launch, reshape
from tgrad.storage import workspace
from tgrad.tensor import Tensor

# What a norm is over: the sizes of trailing dimensions, or the number of groups that dimension 1 is divided into.
Over = tuple[int, ...] | int


class Rows(NamedTuple):
    """An input as batch * groups rows of channels * elements."""

    batch: int
    groups: int
    channels: int
    elements: int


def rows_of(shape: Sequence[int], over: Over) -> Rows:
    if isinstance(over, int):
        return Rows(shape[0], over, shape[1] // over, numel(shape[2:]))
    return Rows(numel(shape[: len(shape) - len(over)]), 1, numel(over), 1)


def weight_shape(shape: Sequence[int], over: Over) -> tuple[int, ...]:
    return (shape[1],) if isinstance(over, int) else over


# --- fused
# ---------------------------------------------------------------------------------------------------------------
def pointer(t: Tensor) -> str:
    """Triton's type of its address."""
    return "*" + t.dtype.triton


class _Operands:
    """The operands of a backward, and what all its kernels are told of them.

    Attributes:
        dx, types: Triton types of the input's gradient, and of g, the input, its statistics and the weight.
        sums: of the gradients of weight and bias that are wanted.
        sizes: bytes of an element of the input, and of a partial sum.
    """

    def __init__(
        self, g: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, weight: Tensor | None, over: Over,
        wanted: tuple[str, ...], kinds: tuple[dtypes.dtype, ...],
    ) -> None:  # fmt: skip
        self.rows = rows_of(x.shape, over)
        self.accumulator = dtypes.accumulator(x.dtype)
        self.weighted, self.rms, self.wanted = weight is not None, mean is None, wanted
        stats, affine = [t for t in (mean, rstd) if t is not None], [] if weight is None else [weight]
        self.dx = pointer(x)
        self.types = pointer(g), pointer(x), tuple(map(pointer, stats)), tuple(map(pointer, affine))
        self.n_unweighted = 2 + len(stats)
        self.sums = tuple("*" + kind.triton for kind in kinds)
        self.sizes = x.dtype.itemsize, self.accumulator.itemsize
        aligned = all(t.layout.aligned for t in (g, x, *stats, *affine))
        self.common: dict[str, Any] = {"accumulator": self.accumulator.triton, "aligned": aligned}
        self.by = {"BY_WEIGHT": "weight" in wanted, "BY_BIAS": "bias" in wanted}


def _build(
    g: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, weight: Tensor | None, over: Over,
    wanted: tuple[str, ...], kinds: tuple[dtypes.dtype, ...],
) -> tuple[list[Layout], Launch]:  # fmt: skip
    """Results: the gradients of `wanted`, in the order x, weight, bias; `kinds`: the dtypes of the latter two. The
    weight is an operand of x's alone; for the bias's, the input and its statistics are not read.
    """
    shape = weight_shape(x.shape, over)
    outs = [layout(kind, shape, None, compute) for kind in kinds]
    if "x" in wanted:
        outs.insert(0, layout(x.dtype, tuple(x.shape), None, compute))
    if not x.numel():
        return outs, _zeros(outs)
    given = _Operands(g, x, mean, rstd, weight, over, wanted, kinds)
    if not kinds:
        return outs, _input_alone(given)
    if given.rows.elements > 1:
        return outs, _by_channels(given)
    return outs, _in_one_pass(given) or _by_columns(given)


def _zeros(outs: list[Layout]) -> Launch:
    """Of no rows the sums are 0."""
    launches = [fill_launch("fill", out) if out.numel else None for out in outs]

    def launch(*values: int) -> None:
        for fill, to in zip(launches, values, strict=False):
            if fill is not None:
                fill(to, 0.0)

    return launch


def _input_alone(given: _Operands) -> Launch:
    return prepare_norm(
        "norm_backward", (given.dx, *given.types), given.rows.batch * given.rows.groups, given.rows[1:],
        {"RMS": given.rms, "WEIGHT": given.weighted}, **given.common,
    )  # fmt: skip


def _in_one_pass(given: _Operands) -> Launch | None:
    """The input's gradient and the sums by one kernel, where a row fits into registers."""
    rows = given.rows
    if rows.groups > 1:
        return None
    constants = {"RMS": given.rms, "WEIGHT": given.weighted, **given.by}
    dx = (given.dx,) if "x" in given.wanted else ()
    found = prepare_norm_backward_sums(
        dx, given.types, given.sums, rows.batch, rows.channels, constants, given.sizes, **given.common
    )
    return None if found is None else _added_up(given, rows.channels, *found, lead=len(dx))


def _by_columns(given: _Operands) -> Launch:
    """The sums by a kernel of their own, where a channel is one element."""
    rows = given.rows
    found = prepare_norm_column_sums(
        given.types[:3], given.sums, rows.batch, rows.groups, rows.channels, {"RMS": given.rms, **given.by},
        given.sizes, **given.common,
    )  # fmt: skip
    sums, count = _added_up(given, rows.groups * rows.channels, *found, lead=0), len(given.sums)
    if "x" not in given.wanted:
        return sums
    alone, end = _input_alone(given), count + given.n_unweighted

    def launch(to: int, *values: int) -> None:
        alone(to, *values[count:])
        sums(*values[:end])

    return launch


def _added_up(given: _Operands, n: int, programs: int, kernel: Launch, lead: int) -> Launch:
    """`kernel`, whose sums, after `lead` other results, are n numbers each; and, if they are those of several programs,
    the kernel that adds these up.
    """
    if programs == 1:
        return kernel
    count = lead + len(given.sums)
    add = prepare_norm_sums(given.sums, programs, n, **given.common)
    nbytes = programs * n * given.accumulator.itemsize

    def launch(*values: int) -> None:
        partial = [workspace(nbytes) for _ in given.sums]
        addresses = [t.ptr for t in partial]
        kernel(*values[:lead], *addresses, *values[count:])
        add(*values[lead:count], *addresses)

    return launch


def _by_channels(given: _Operands) -> Launch:
    """The sums over each channel first: over the batch they give the weight's and the bias's gradients, and over the
    channels of a row what the input's gradient needs (as in PyTorch's group norm)."""
    rows = given.rows
    channels = rows.groups * rows.channels
    partial = prepare_norm_channel_sums(
        given.types[:3], rows.batch * channels, rows.elements, rows.channels, given.wanted != ("bias",), **given.common
    )
    add = prepare_norm_sums(given.sums, rows.batch, channels, **given.common)
    finish = None
    if "x" in given.wanted:
        types = (given.dx, *given.types, *("*" + given.accumulator.triton,) * 2)
        finish = prepare_norm_backward_channels(
            types, rows.batch * rows.groups, rows[1:], given.weighted, **given.common
        )
    lead, count, nbytes = finish is not None, len(given.wanted), rows.batch * channels * given.accumulator.itemsize
    end = count + given.n_unweighted

    def launch(*values: int) -> None:
        by_weight, by_bias = workspace(nbytes), workspace(nbytes)
        partial(by_weight.ptr, by_bias.ptr, *values[count:end])
        if finish is not None:
            finish(values[0], *values[count:], by_weight.ptr, by_bias.ptr)
        named = {"weight": by_weight.ptr, "bias": by_bias.ptr}
        add(*values[lead:count], *[named[name] for name in given.wanted[lead:]])

    return launch


backward_op = Kernel(
    "norm_backward", ("g", "x", "mean", "rstd", "weight"), _build, {}, settings=("over", "wanted", "kinds")
)


def together(
    g: Tensor, x: Tensor | None, mean: Tensor | None, rstd: Tensor | None, weight: Tensor | None, *, over: Over,
    wanted: tuple[str, ...], weight_dtype: dtypes.dtype | None, bias_dtype: dtypes.dtype | None,
) -> Sequence[Tensor]:  # fmt: skip
    """What a plain backward does for all inputs that want a gradient."""
    if x is None or rstd is None:  # of the bias alone: nothing is read but g
        x = rstd = g = contiguous(g)
    known = {"weight": weight_dtype, "bias": bias_dtype}
    kinds = tuple(known[name] for name in wanted if name != "x")
    return dispatch(backward_op, (contiguous(g), x, mean, rstd, weight), (over, wanted, kinds))


# --- in recorded maths
# ---------------------------------------------------------------------------------------------------
def _average(t: Tensor) -> Tensor:
    return sum_op(t, dims=(2, 3), keepdim=True, out_dtype=t.dtype) / float(max(1, t.shape[2] * t.shape[3]))


def _normalised(x: Tensor, kind: dtypes.dtype, eps: float, rms: bool) -> tuple[Tensor, Tensor]:
    """(normalised, rstd) of (batch, groups, channels, elements), as functions of x: what is saved are plain numbers."""
    x = x.to(kind)
    centred = x if rms else x - _average(x)
    rstd = p.rsqrt(_average(centred * centred) + eps)
    return centred * rstd, rstd


def input_grad(
    g: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, weight: Tensor | None, eps: float, *, over: Over
) -> Tensor:
    rows, kind = rows_of(x.shape, over), rstd.dtype
    hat, spread = _normalised(reshape(x, rows), kind, eps, mean is None)
    d = reshape(g.to(kind), rows)
    if weight is not None:
        d = d * reshape(weight, (1, rows.groups, rows.channels, 1))
    inner = hat * _average(d * hat)
    return reshape(((d - (inner if mean is None else _average(d) + inner)) * spread).to(x.dtype), tuple(x.shape))


def weight_grad(
    g: Tensor, x: Tensor, mean: Tensor | None, rstd: Tensor, eps: float, *, over: Over, weight_dtype: dtypes.dtype
) -> Tensor:
    rows = rows_of(x.shape, over)
    hat, _ = _normalised(reshape(x, rows), rstd.dtype, eps, mean is None)
    total = sum_op(reshape(g, rows) * hat, dims=(0, 3), keepdim=False, out_dtype=weight_dtype)
    return reshape(total, weight_shape(x.shape, over))


def bias_grad(g: Tensor, *, over: Over, bias_dtype: dtypes.dtype) -> Tensor:
    total = sum_op(reshape(g, rows_of(g.shape, over)), dims=(0, 3), keepdim=False, out_dtype=bias_dtype)
    return reshape(total, weight_shape(g.shape, over))
