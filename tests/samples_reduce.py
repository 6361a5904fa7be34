"""Samples of the further reductions and of products made of others: rows of samples.py's table."""

from __future__ import annotations

import math

import numpy as np
import torch

import tgrad
from tests.sampling import Input, Sample, case, nonzero, real
from tgrad.ops import extremes, scan, statistics as s, truth

ALL_DIMS = (
    case("all", (5, 7), dim=None, length=35), case("rows", (5, 7), dim=1, length=7),
    case("columns", (5, 7), dim=0, keepdim=True, length=5), case("last", (3, 5, 7), dim=-1, length=7),
    case("outer", (3, 5, 7), dim=(0, 2), length=21), case("transposed", (5, 7), ways="transposed", dim=1, length=7),
    case("sliced", (5, 3), ways="sliced", dim=0, length=5),
    case("expanded", (5, 7), ways="expanded", dim=1, length=7),
    case("rotated", (3, 5, 7), ways="rotated", dim=(1, 2), length=35),
    case("long", (1031,), dim=0, length=1031),
)  # fmt: skip
EMPTY = (case("scalar", (), dim=None), case("empty", (0, 3), dim=None), case("empty-dim", (0, 3), dim=0),
         case("one", (1, 7, 1), dim=(0, 2)))  # fmt: skip
ONE_DIM = (
    case("scalar", (), dim=0), case("empty", (0, 3), dim=1), case("one", (1,), dim=0), case("odd", (5, 7), dim=1,
        length=7),
    case("columns", (5, 7), dim=0, length=5), case("middle", (3, 5, 7), dim=1, length=5),
    case("transposed", (5, 7), ways="transposed", dim=1, length=7),
    case("sliced", (5, 3), ways="sliced", dim=1, length=3), case("expanded", (5, 7), ways="expanded", dim=-1, length=7),
    case("rotated", (3, 5, 7), ways="rotated", dim=0, length=3), case("long", (2, 1031), dim=1, length=1031),
)  # fmt: skip
PRODS = (*(c for c in ALL_DIMS if not isinstance(c.settings["dim"], tuple) and c.id != "long"), *EMPTY[:3])
UNSIGNED = Input(real, False)


def _call(f, **fixed):
    """`f` over a dimension or, without, over all."""
    return lambda x, dim=None, **rest: f(x, **fixed, **rest) if dim is None else f(x, dim=dim, **fixed, **rest)


def _torch_norm(order):
    return lambda x, **settings: torch.linalg.vector_norm(x, order, **settings)


def _norm(order):
    return lambda x, **settings: tgrad.linalg.vector_norm(x, order, **settings)


def _zeros(n):
    return ((0.0,), (1.5,), *((0.0,),) * (n - 1)) if n else ()


def _values(module, name):
    return lambda x, **settings: getattr(module, name)(x, **settings)[0]


def _lse(f):
    return lambda x, dim=None, **rest: f(x, dim=tuple(range(x.ndim)) if dim is None else dim, **rest)


ORDERS = (2, 1, 0, 0.5, 1.5, 3, math.inf, -math.inf)
HIGHEST = tuple((x,) for x in (9.0, 9.0, -9.0, 9.0, -9.0))
FURTHER = [
    Sample(truth.any_op, tgrad.any, torch.any, (UNSIGNED,), (*ALL_DIMS, *EMPTY), label="any"),
    Sample(truth.all_op, tgrad.all, torch.all, (UNSIGNED,), (*ALL_DIMS, *EMPTY), label="all", points=((0.0,),)),
    Sample(truth.count_op, tgrad.count_nonzero, torch.count_nonzero, (UNSIGNED,),
           tuple(c for c in (*ALL_DIMS, *EMPTY) if "keepdim" not in c.settings), points=((0.0,), (np.nan,))),
    Sample(truth.nansum_op, tgrad.nansum, torch.nansum, (Input(),), (*ALL_DIMS, *EMPTY), scale=4,
           points=((np.nan,), (1.0,), (np.nan,))),
    *(Sample(scan.prod_op, _call(tgrad.prod), _call(torch.prod), (Input(nonzero),), PRODS, _zeros(n), factor=16,
             back_factor=64, label=f"prod-{n}" if n else "", bits=False) for n in (0, 1, 2)),
    Sample(scan.cumsum_op, tgrad.cumsum, torch.cumsum, (Input(),), ONE_DIM, scale=16, back_scale=16),
    *(Sample(scan.cumprod_op, tgrad.cumprod, torch.cumprod, (Input(nonzero),), ONE_DIM[:-1], _zeros(n), factor=16,
             scale=1, back_factor=64, back_scale=64, label=f"cumprod-{n}" if n else "", bits=False) for n in (0, 1, 2)),
    Sample(extremes.max_op, _values(tgrad, "max"), _values(torch, "max"), (Input(),), ONE_DIM, HIGHEST),
    Sample(extremes.min_op, _values(tgrad, "min"), _values(torch, "min"), (Input(),), ONE_DIM, HIGHEST),
    Sample(extremes.max_op, tgrad.argmax, torch.argmax, (UNSIGNED,), ONE_DIM, HIGHEST, label="argmax"),
    Sample(extremes.min_op, tgrad.argmin, torch.argmin, (UNSIGNED,), ONE_DIM, HIGHEST, label="argmin"),
    *(Sample(op, _call(getattr(tgrad, op.name), **rest), _call(getattr(torch, op.name), **rest), (Input(),), ALL_DIMS,
             factor=4, scale=4, back_factor=8, back_scale=4, label=op.name + label)
      for op in (s.var_op, s.std_op) for label, rest in (("", {}), ("-biased", {"correction": 0}))),
    *(Sample(s.norm_op, _norm(order), _torch_norm(order), (Input(nonzero, order != 0),), ALL_DIMS, factor=8,
             scale=4, back_factor=32, back_scale=4, label=f"norm-{order}") for order in ORDERS),
    Sample(s.norm_op, _norm(2), _torch_norm(2), (Input(),), EMPTY, label="norm-empty", back_factor=4),
    Sample(s.logsumexp_op, _lse(tgrad.logsumexp), _lse(torch.logsumexp), (Input(),), (*ALL_DIMS, *EMPTY), factor=4,
           scale=4, back_factor=8, back_scale=2),
]  # fmt: skip
