"""The sample table: for every op, how to call it in tgrad and in torch, and on which inputs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import tgrad
from tests import samples_moving, samples_nn
from tests.samples_numeric import NUMERIC
from tests.samples_reduce import FURTHER
from tests.sampling import (
    BINARY,
    CLASSES,
    CONDITION,
    TERNARY,
    UNARY,
    Case,
    Input,
    Sample,
    case,
    nonzero,
    ones,
    positive,
    real,
)  # fmt: skip
from tgrad import aliasing
from tgrad.dispatch import dispatch
from tgrad.op import Op
from tgrad.ops import (
    composed_attention,
    creation,
    fused_attention,
    linear,
    matmul,
    norm,
    pointwise as p,
    reduce,
    softmax,
    views,
)


def unary(row: Any, ref: Callable, domain: Callable = real, points: tuple[float, ...] = (), **rest: Any) -> Sample:
    return Sample(row, row, ref, (Input(domain),), UNARY, tuple((x,) for x in points), **rest)


def binary(row: Any, ref: Callable, a: Callable = real, b: Callable = real, points: Any = (), **rest: Any) -> Sample:
    return Sample(row, row, ref, (Input(a), Input(b)), BINARY, points, **rest)


def with_numbers(row: Any, ref: Callable, *numbers: float, label: str, **rest: Any) -> Sample:
    """A row of which all inputs but the first are numbers."""
    ours = lambda x: row(x, *numbers)
    return Sample(row, ours, lambda x: ref(x, *numbers), (Input(rest.pop("domain", real)),), UNARY, label=label, **rest)


TIES = ((1.0, 1.0), (-2.0, -2.0), (0.0, 0.0), (0.0, -0.0), (1.0, 2.0), (2.0, 1.0))
EDGES = ((1.0, 1.0, 2.0), (2.0, 1.0, 2.0), (1.5, 2.0, 1.0), (1.0, 1.0, 1.0), (0.0, 1.0, 2.0), (3.0, 1.0, 2.0),
    (3.0, 2.0, 2.0))
KINK = (0.0, -0.0)


def _quiet_mse(a, b):
    return (a - b) * (a - b)


# --- pointwise -------------------------------------------------------------------------------------------------------
ARITHMETIC = [
    unary(p.neg, torch.neg), binary(p.add, torch.add), binary(p.sub, torch.sub), binary(p.mul, torch.mul),
    binary(p.div, torch.div, b=nonzero), binary(p.pow, torch.pow, a=positive, back_factor=4, back_scale=8),
    with_numbers(p.pow, torch.pow, 2.5, label="pow-number", domain=positive, integers=False, back_scale=8),
    with_numbers(p.pow, torch.pow, 3, label="pow-cube", points=((0.0,),), back_scale=8),
    with_numbers(p.pow, torch.pow, 2, label="pow-square", points=((0.0,),)),
    with_numbers(p.pow, torch.pow, 1, label="pow-one", points=((0.0,),)),
    with_numbers(p.pow, torch.pow, 0, label="pow-zero", points=((0.0,),)),
    Sample(p.pow, lambda x: p.pow(2.5, x), lambda x: torch.pow(2.5, x), (Input(),), UNARY, label="pow-exponent",
           integers=False, back_scale=8, strides=False),
    Sample(p.sub, lambda x: 2.5 - x, lambda x: 2.5 - x, (Input(),), UNARY, label="rsub"),
    Sample(p.div, lambda x: 2.5 / x, lambda x: 2.5 / x, (Input(nonzero),), UNARY, label="rdiv", integers=False),
    Sample(p.mul, lambda x: x * 2.5, lambda x: x * 2.5, (Input(),), UNARY, label="mul-number"),
    binary(p.maximum, torch.maximum, points=TIES), binary(p.minimum, torch.minimum, points=TIES),
    Sample(p.clamp, p.clamp, torch.clamp, (Input(), Input(), Input()), TERNARY, EDGES),
    with_numbers(p.clamp, torch.clamp, -1, 1.5, label="clamp-numbers", points=((-1.0,), (1.5,), (0.0,))),
    Sample(p.clamp_min, p.clamp_min, torch.clamp_min, (Input(), Input()), BINARY, TIES),
    Sample(p.clamp_max, p.clamp_max, torch.clamp_max, (Input(), Input()), BINARY, TIES),
    with_numbers(p.clamp_min, torch.clamp_min, 0.5, label="clamp_min-number", points=((0.5,),)),
    with_numbers(p.clamp_max, torch.clamp_max, 0.5, label="clamp_max-number", points=((0.5,),)),
    Sample(p.where, p.where, torch.where, (CONDITION, Input(), Input()),
        (*TERNARY, case("mixed", (3, 1), (5, 1, 7), ()))),
]  # fmt: skip
FUNCTIONS = [
    unary(p.abs, torch.abs, points=KINK), unary(p.exp, torch.exp, back_scale=4), unary(p.log, torch.log, positive),
    unary(p.sqrt, torch.sqrt, positive, (0.0,)), unary(p.rsqrt, torch.rsqrt, positive, back_scale=8),
    unary(p.reciprocal, torch.reciprocal, nonzero, back_scale=8), unary(p.square, torch.square),
    unary(p.sin, torch.sin, points=KINK),
    unary(p.cos, torch.cos), unary(p.tanh, torch.tanh, points=KINK), unary(p.erf, torch.erf, points=KINK),
    unary(p.normal_density, lambda x: torch.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi)), factor=2),
    unary(p.sigmoid, torch.sigmoid, points=KINK), unary(p.relu, torch.relu, points=KINK),
    with_numbers(p.leaky_relu, F.leaky_relu, 0.125, label="leaky_relu", points=((0.0,), (-0.0,))),
    unary(p.gelu, F.gelu, points=KINK, scale=2),
    unary(p.gelu_tanh, lambda x: F.gelu(x, approximate="tanh"), points=KINK, scale=2),
    unary(p.silu, F.silu, points=KINK),
    with_numbers(p.softplus, F.softplus, 1.0, 20.0, label="softplus", points=((0.0,), (20.0,), (25.0,))),
    with_numbers(p.softplus, F.softplus, 2.0, 4.0, label="softplus-beta", points=((0.0,), (2.0,), (2.5,))),
    with_numbers(p.elu, F.elu, 1.0, label="elu", points=((0.0,), (-0.0,))),
    with_numbers(p.elu, F.elu, 0.5, label="elu-alpha", points=((0.0,),)),
    binary(p.squared_error, _quiet_mse, integers=False, factor=2),
    unary(p.clone, torch.clone), unary(p.copy, torch.clone),
]  # fmt: skip
CONDITIONS = [
    *(binary(row, getattr(torch, row.name), points=TIES) for row in (p.eq, p.ne, p.lt, p.le, p.gt, p.ge)),
    *(binary(row, getattr(torch, row.name), points=TIES) for row in (p.logical_and, p.logical_or, p.logical_xor)),
    unary(p.logical_not, torch.logical_not, points=KINK),
]
CASTS = [
    Sample(p.cast(kind), p.cast(kind), lambda x, kind=kind: x.to(getattr(torch, kind.name), copy=True),
           (Input(grad=kind.is_floating_point),), UNARY, label=f"to-{kind.name}")
    for kind in (tgrad.float64, tgrad.int32, tgrad.int64, tgrad.bool)
]


# --- reductions, softmax, norms --------------------------------------------------------------------------------------
def reductions(op: Any, ours: Callable, ref: Callable, cases: tuple[Case, ...], **rest: Any) -> Sample:
    return Sample(op, ours, ref, (Input(),), cases, scale=1, **rest)


SUMS = (
    case("scalar", (), dim=(), length=1), case("all", (5, 7), dim=(), length=35),
    case("empty", (0, 3), dim=(), length=1),
    case("empty-dim", (0, 3), dim=0, length=1), case("rows", (5, 7), dim=1, length=7),
    case("last", (5, 7), dim=-1, length=7),
    case("columns", (5, 7), dim=0, keepdim=True, length=5), case("outer", (3, 5, 7), dim=(0, 2), length=21),
    case("transposed", (5, 7), ways="transposed", dim=1, length=7),
    case("sliced", (5, 3), ways="sliced", dim=0, length=5),
    case("expanded", (5, 7), ways="expanded", dim=0, length=5),
    case("rotated", (3, 5, 7), ways="rotated", dim=(1, 2), length=35),
    case("one", (1, 7, 1), dim=(0, 2), length=1), case("long", (1031,), dim=(), length=1031),
)  # fmt: skip
EXTREMES = tuple(c for c in SUMS if not c.id.startswith("empty")) + (case("empty-other", (0, 3), dim=1, length=1),)
HIGHEST = tuple((x,) for x in (9.0, 9.0, -9.0, 9.0, -9.0))
ROWS = (
    case("scalar", (), dim=0), case("empty", (0, 3), dim=1), case("one", (1,), dim=0), case("odd", (5, 7), dim=1),
    case("columns", (5, 7), dim=0), case("middle", (3, 5, 7), dim=1),
    case("transposed", (5, 7), ways="transposed", dim=1),
    case("sliced", (5, 3), ways="sliced", dim=1), case("expanded", (5, 7), ways="expanded", dim=-1),
    case("rotated", (3, 5, 7), ways="rotated", dim=0), case("long", (2, 1031), dim=1, length=1031),
)  # fmt: skip


def _nll(x, target, **settings):
    return F.cross_entropy(x, target, **settings)


def _batch_norm(x, weight, bias):
    return F.batch_norm(x, None, None, weight, bias, training=True)


LOSSES = tuple(
    case(f"{id}-{reduction}", *shapes, ways=ways, length=35, reduction=reduction, ignore_index=ignore)
    for id, shapes, ways, ignore in (
        ("odd", ((7, 5), (7,)), "", -100), ("transposed", ((7, 5), (7,)), "transposed", 2),
        ("vector", ((5,), ()), "", -100), ("images", ((3, 5, 7), (3, 7)), "plain sliced", 1),
    )
    for reduction in ("mean", "sum", "none")
)  # fmt: skip
PLANES = (
    case("odd", (7, 5), (5,), (5,), length=35), case("images", (3, 5, 7), (5,), (5,), length=21),
    case("transposed", (7, 5), (5,), (5,), ways="transposed sliced", length=35),
    case("deep", (2, 3, 2, 2), (3,), (3,), ways="rotated", length=24),
)  # fmt: skip
REDUCTIONS = [
    reductions(reduce.sum_op, tgrad.sum, torch.sum, SUMS), reductions(reduce.mean_op, tgrad.mean, torch.mean, SUMS),
    reductions(reduce.amax_op, tgrad.amax, torch.amax, EXTREMES, points=HIGHEST),
    reductions(reduce.amin_op, tgrad.amin, torch.amin, EXTREMES, points=HIGHEST),
    Sample(softmax.softmax_op, softmax.softmax, torch.softmax, (Input(),), ROWS, factor=4, back_factor=4, bits=False),
    Sample(softmax.log_softmax_op, softmax.log_softmax, torch.log_softmax, (Input(),), ROWS, factor=4, scale=1,
        back_factor=8, bits=False),
    Sample(softmax.cross_entropy_op, softmax.cross_entropy, _nll, (Input(), CLASSES), LOSSES, integers=False,
           factor=4, scale=1, back_factor=8, bits=False),
    Sample(norm.batch_norm_op, lambda x, w, b: norm.batch_norm(x, None, None, w, b, training=True), _batch_norm,
           (Input(), Input(), Input()), PLANES, integers=False, factor=4, scale=2, back_factor=16, back_scale=4,
           bits=False),
]  # fmt: skip

# The fused backward kernels, which are ops without derivatives.
FUSED = [
    Sample(softmax._softmax_backward, softmax._softmax_backward, lambda g, y, dim: (g - (g * y).sum(dim, True)) * y,
           (Input(), Input(positive)),
           tuple(case(c.id, *c.shapes * 2, ways=f"plain {c.ways[0]}", length=7, **c.settings)
           for c in ROWS[:8]), integers=False, factor=2, scale=16),
    Sample(softmax._log_softmax_backward, softmax._log_softmax_backward, lambda g, y,
        dim: g - torch.exp(y) * g.sum(dim, True),
           (Input(), Input()), tuple(case(c.id, *c.shapes * 2, ways=f"plain {c.ways[0]}", length=7, **c.settings)
           for c in ROWS[:8]), integers=False, factor=2, scale=1000),
    Sample(softmax._cross_entropy_backward,
           lambda g, x, t, n, **settings: softmax._cross_entropy_backward(g, x, t, n, None, smoothing=0.0, **settings),
           lambda g, x, t, n, ignore_index,
           reduction: (torch.softmax(x, -1) - F.one_hot(t, 5)) * g[:, None] * (t != ignore_index)[:, None],
           (Input(), Input(), CLASSES, Input(ones)),
           (case("odd", (7,), (7, 5), (7,), (), length=5, ignore_index=2, reduction="none"),), integers=False, factor=4,
           scale=1),
    Sample(linear._weight_bias_op, lambda g, x: dispatch(linear._weight_bias_op, (g, x))[0], lambda g, x: g.t() @ x,
           (Input(), Input()), (case("odd", (7, 5), (7, 3), length=7),), integers=False, scale=4),
]  # fmt: skip


# --- products --------------------------------------------------------------------------------------------------------
def product(id: str, a: tuple, b: tuple, ways: str = "") -> Case:
    return case(id, a, b, ways=ways, length=max(1, a[-1], math.prod(a) // max(1, a[-1]), math.prod(b) // max(1, b[0])))


LAYOUTS = [f"{a} {b}" for a in ("plain", "transposed", "sliced") for b in ("plain", "transposed", "sliced")]
MATRICES = (
    product("odd", (5, 7), (7, 3)), product("size1", (1, 7), (7, 1)), product("single", (1, 1), (1, 1)),
    product("inner1", (5, 1), (1, 3)), product("empty", (0, 7), (7, 3)), product("empty-inner", (5, 0), (0, 3)),
    product("blocks", (33, 65), (65, 17)), product("expanded", (5, 7), (7, 3), "expanded expanded"),
    *(product(ways.replace(" ", "-"), (5, 7), (7, 3), ways) for ways in LAYOUTS[1:]),
)  # fmt: skip
BATCHES = (
    product("batch", (3, 5, 7), (3, 7, 2)), product("broadcast", (2, 1, 5, 7), (3, 7, 2)),
    product("matrix-batch", (5, 7), (3, 7, 2)),
    product("batch-matrix", (3, 5, 7), (7, 2)), product("rotated", (3, 5, 7), (3, 7, 2), "rotated transposed"),
    product("sliced", (3, 5, 7), (3, 7, 2), "sliced sliced"),
    product("expanded", (3, 5, 7), (3, 7, 2), "expanded expanded"),
    product("vector-matrix", (7,), (7, 3)), product("matrix-vector", (5, 7), (7,)), product("dot", (7,), (7,)),
    product("batch-vector", (3, 5, 7), (7,)), product("vector-batch", (7,), (3, 7, 2)),
    product("empty", (0, 5, 7), (0, 7, 2)),
)  # fmt: skip
LINEAR = (
    case("odd", (5, 7), (3, 7), (3,), length=7), case("one", (1, 1), (1, 1), (1,), length=1),
    case("vector", (7,), (3, 7), (3,), length=7),
    case("batch", (2, 5, 7), (3, 7), (3,), length=10),
    case("transposed", (5, 7), (3, 7), (3,), ways="transposed transposed sliced", length=7),
    case("sliced", (5, 7), (3, 7), (3,), ways="sliced sliced expanded", length=7),
    case("empty", (0, 7), (3, 7), (3,), length=7),
    case("empty-inner", (5, 0), (3, 0), (3,), length=5),
)  # fmt: skip
ATTENTIONS = (
    case("odd", (5, 3), (7, 3), (7, 2), length=7), case("batch", (3, 5, 4), (3, 6, 4), (3, 6, 2), length=6),
    case("broadcast", (2, 1, 5, 3), (3, 7, 3), (7, 2), length=14),
    case("transposed", (5, 3), (7, 3), (7, 2), ways="transposed sliced transposed", length=7),
    case("no-keys", (5, 3), (0, 3), (0, 2), length=1),
)  # fmt: skip


def _attention(q, k, v):
    return (q @ k.mT / 2).softmax(-1) @ v


def _attention_backward(g, q, k, v):
    with tgrad.no_grad():
        out, sums = dispatch(fused_attention.attention_op, (q, k, v, None, 0.5, None, None, None), (False, False))
        args = g, q, k, v, None, out, sums, 0.5, None, None, None
        return dispatch(fused_attention._backward, args, (False, False, ("query", "key", "value")))[1]


def _attention_backward_torch(g, *args):
    args = [x.detach().requires_grad_() for x in args]
    return torch.autograd.grad(_attention(*args), args, g)[1]


PRODUCTS = [
    Sample(fused_attention.attention_op,
           lambda q, k, v: fused_attention.fused_attention(q, k, v, None, 0.0, False, 0.5, False), _attention,
           (Input(), Input(), Input()), ATTENTIONS, integers=False, scale=4, back_scale=8, back_factor=4, bits=False),
    Sample(fused_attention._backward, _attention_backward, _attention_backward_torch,
           tuple(Input(grad=False) for _ in range(4)),
           (case("odd", (5, 2), (5, 3), (7, 3), (7, 2), length=7),), integers=False, factor=4, scale=8),
    Sample(matmul.mm_op, tgrad.mm, torch.mm, (Input(), Input()), MATRICES, label="mm", scale=4, back_scale=4),
    Sample(matmul.bmm_op, tgrad.matmul, torch.matmul, (Input(), Input()), BATCHES, label="matmul", scale=4,
        back_scale=4),
    Sample(composed_attention.scores_op, lambda a, b: composed_attention.scores_op(a, b, scale=0.3, kind=a.dtype),
           lambda a, b: a @ b * 0.3, (Input(), Input()), BATCHES[:7], integers=False, scale=4, back_scale=4),
    Sample(composed_attention.weigh_op, composed_attention.weigh_op, torch.matmul, (Input(), Input()), BATCHES[:3],
           integers=False, scale=4, back_scale=4),
    Sample(linear.linear_op, linear.linear, F.linear, (Input(), Input(), Input()), LINEAR, scale=4, back_scale=4,
        integers=False),
    Sample(linear.linear_op, linear.linear, F.linear, (Input(), Input()), tuple(
        Case(c.id, c.shapes[:2], c.ways[:2], c.settings, c.length) for c in LINEAR),
        label="linear-no-bias", scale=4, back_scale=4, integers=False),
]  # fmt: skip


# --- views and copies ------------------------------------------------------------------------------------------------
def shaped(op: Op, method: str, *cases: Case, **rest: Any) -> Sample:
    call = lambda x, args: getattr(x, method)(*args)
    return Sample(op, call, call, (Input(),), cases, **rest)


VIEWS = [
    shaped(views.view_op, "reshape", case("odd", (5, 7), args=(7, 5)), case("scalar", (), args=(1, 1)),
        case("empty", (0, 3), args=(3, 0)),
           case("transposed", (5, 6), ways="transposed", args=(3, 10)),
           case("infer", (3, 5, 7), ways="sliced", args=(3, -1)),
           case("expanded", (5, 7), ways="expanded", args=(35,)),
           case("merge", (3, 5, 7), ways="rotated", args=(15, 7))),
    shaped(views.view_op, "view", case("odd", (4, 6), args=(2, 2, 3, 2)),
        case("transposed", (4, 6), ways="transposed", args=(4, 2, 3)),
           label="view-split"),
    shaped(views.view_op, "flatten", case("odd", (3, 5, 7), args=(1,)), case("scalar", (), args=()), label="flatten"),
    shaped(reduce.expand_op, "expand", case("odd", (5, 1), args=(5, 7)), case("scalar", (), args=(3, 2)),
        case("lead", (7,), args=(3, 5, -1)),
           case("sliced", (5, 1), ways="sliced", args=(2, -1, 3)), case("empty", (1, 3), args=(0, 3)),
           case("same", (5, 7), args=(5, 7))),
    shaped(views.permute_op, "permute", case("odd", (3, 5, 7), args=(2, 0, 1)),
        case("sliced", (3, 5), ways="sliced", args=(-1, 0)),
           case("scalar", (), args=((),))),
    shaped(views.transpose_op, "transpose", case("odd", (3, 5, 7), args=(0, -1)), case("scalar", (), args=(0, -1)),
        case("one", (7,), args=(0, 0))),
    shaped(views.t_op, "t", case("odd", (5, 7), args=()), case("vector", (7,), args=()), case("scalar", (), args=())),
    shaped(views.squeeze_op, "squeeze", case("odd", (1, 5, 1), args=()), case("dim", (1, 5, 1), args=(-1,)),
        case("not", (5, 7), args=(0,)),
           case("dims", (1, 5, 1), ways="transposed", args=((0, 1),)), case("scalar", (), args=())),
    shaped(views.unsqueeze_op, "unsqueeze", case("odd", (5, 7), args=(1,)),
        case("last", (5, 7), ways="transposed", args=(-1,)),
           case("scalar", (), args=(0,)), case("empty", (0, 3), args=(1,))),
    shaped(views.slice_op, "__getitem__", case("odd", (5, 7), args=(slice(1, 4),)),
        case("step", (5, 7), args=((slice(None), slice(1, None, 3)),)),
           case("transposed", (5, 7), ways="transposed", args=((Ellipsis, slice(-3, -1)),)),
           case("empty", (5, 7), args=(slice(4, 2),)),
           case("none", (5, 7), ways="sliced", args=((None, slice(0, 5, 2), 3),)), label="slice"),
    shaped(views.alias_op, "__getitem__", case("odd", (5, 7), args=(Ellipsis,)), case("scalar", (), args=((),)),
           case("rotated", (3, 1, 7), ways="rotated", args=(slice(None),)), label="alias"),
    shaped(views.slice_op, "narrow", case("odd", (5, 7), args=(1, 2, 3)), case("negative", (5, 7), args=(0, -2, 2)),
        label="narrow"),
    shaped(views.select_op, "select", case("odd", (5, 7), args=(1, 3)),
        case("negative", (3, 5, 7), ways="rotated", args=(-1, -2)),
           case("vector", (7,), args=(0, 6))),
    Sample(views.unbind_op, lambda x: x.unbind(1)[2], lambda x: x.unbind(1)[2], (Input(),),
        (case("odd", (5, 7)), case("rotated", (3, 5, 7), ways="rotated"))),
    Sample(views.split_op, lambda x: x.split(3, 1)[-1], lambda x: x.split(3, 1)[-1], (Input(),),
        (case("odd", (5, 7)), case("transposed", (5, 7), ways="transposed"))),
    shaped(views.contiguous_op, "contiguous", case("transposed", (5, 7), ways="transposed", args=()),
        case("expanded", (5, 7), ways="expanded", args=()),
           case("sliced", (3, 5), ways="sliced", args=()), case("rotated", (3, 5, 7), ways="rotated", args=())),
    Sample(views.embed_op, lambda g: views.embed_op(g, dim=1, start=1, step=2, shape=(5, 7)),
        lambda g: F.pad(g[..., None], (0, 1)).flatten(1).roll(1, 1)
           [:, [0, 1, 2, 3, 4, 5]] @ torch.eye(6, 7, dtype=g.dtype), (Input(),),
           (case("odd", (5, 3)), case("transposed", (5, 3), ways="transposed")),
           integers=False),
]  # fmt: skip


# What in-place writes on views record: parts of a base, by strides and offset.
PART = ((2, 3), (7, 2), 8)


def _scatter(g):
    return torch.as_strided_scatter(torch.zeros(5, 7, dtype=g.dtype), g, *PART)


def _without(g):
    return g * (1 - _scatter(torch.ones(PART[0], dtype=g.dtype)))


ALIASES = [
    Sample(aliasing.as_strided_op, lambda x: aliasing.as_strided_op(x, shape=PART[0], strides=PART[1], offset=PART[2]),
           lambda x: torch.as_strided(x, *PART), (Input(),), (case("odd", (5, 7)),)),
    Sample(aliasing.as_strided_op, lambda x: aliasing.as_strided_op(x, shape=(2, 3), strides=(7, 0), offset=8),
           lambda x: torch.as_strided(x, (2, 3), (7, 0), 8), (Input(),), (case("odd", (5, 7), length=3),),
           label="as_strided-expanded"),
    Sample(aliasing._embed_op, lambda g: aliasing._embed_op(g, shape=(5, 7), strides=(7, 1), part=PART),
           _scatter, (Input(),), (case("odd", (2, 3)), case("transposed", (2, 3), ways="transposed"))),
    Sample(aliasing._without_op, lambda g: aliasing._without_op(g, strides=(7, 1), part=PART),
           _without, (Input(),), (case("odd", (5, 7)), case("transposed", (5, 7), ways="transposed")), integers=False),
    Sample(aliasing._in_layout_op, lambda x: aliasing._in_layout_op(x, strides=(1, 5)), torch.clone, (Input(),),
           (case("odd", (5, 7)), case("sliced", (5, 7), ways="sliced")), integers=False),
]  # fmt: skip


# --- dropout: the mask that tgrad draws, found by dropping ones, is given to the reference ---------------------------
@functools.cache
def _mask(shape: tuple[int, ...]) -> np.ndarray:
    kept = creation.dropout_op(tgrad.ones(shape, dtype=tgrad.float64), 11, 5, 0.25, 1.0)
    return kept.cpu().numpy()


DROPOUT = [
    Sample(creation.dropout_op, lambda x: creation.dropout_op(x.contiguous(), 11, 5, 0.25, 4 / 3),
           lambda x: x * torch.from_numpy(_mask(tuple(x.shape))).to(x.dtype) * (4 / 3), (Input(),), UNARY,
           integers=False),
]  # fmt: skip

SAMPLES: list[Sample] = [
    *ARITHMETIC, *FUNCTIONS, *CONDITIONS, *NUMERIC, *CASTS, *REDUCTIONS, *FURTHER,
    *FUSED, *PRODUCTS, *VIEWS, *ALIASES, *DROPOUT,
    *samples_moving.SAMPLES, *samples_nn.SAMPLES,
]  # fmt: skip
DIFFERENTIABLE = [s for s in SAMPLES if s.differentiable]
ROW_SAMPLES = [s for s in SAMPLES if isinstance(s.op, p.Pointwise) and s not in samples_nn.SAMPLES]
