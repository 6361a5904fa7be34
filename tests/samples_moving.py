"""The part of the sample table for indexing, joining, movement and sorting."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import tgrad
from tests import sampling
from tests.sampling import Case, Input, Sample
from tgrad.ops import bins, joining, library, movement, padding, places, reduce, running, selection, sorting, views
from tgrad.ops.classes import embedding, embedding_op


def case(id: str, *shapes: tuple[int, ...], length: int = 1, **rest: Any) -> Case:
    """As in tests/sampling.py, of shapes that need not broadcast."""
    return sampling.case(id, *shapes, length=length, **rest)


# --- indices ---------------------------------------------------------------------------------------------------------


def below(n: int, first: int = 0) -> Input:
    """Indices from `first` to n - 1, with repetitions."""
    return Input(lambda rng, shape: rng.integers(first, n, size=shape), False, tgrad.int64)


def order(axis: int = 0) -> Input:
    """Distinct indices along an axis, from 0 to its size."""
    return Input(lambda rng, shape: np.argsort(rng.random(shape), axis) if shape else np.zeros(shape, np.int64), False,
                 tgrad.int64)  # fmt: skip


GET = {"dims": (0,), "at": None}
PLACES = [
    Sample(places.get_op, lambda x, i: tgrad.gather(x, 1, i), lambda x, i: torch.gather(x, 1, i), (Input(), below(7)),
           (case("odd", (5, 7), (3, 4), length=4), case("transposed", (5, 7), (5, 2), ways="transposed transposed"),
            case("sliced", (5, 7, 3), (4, 2, 3), ways="sliced sliced"), case("empty", (5, 7), (0, 3)),
            case("expanded", (5, 7), (5, 9), ways="expanded", length=9), case("one", (1, 7), (1, 1)))),
    Sample(places.get_op, lambda x, i: x.index_select(1, i), lambda x, i: x.index_select(1, i), (Input(), below(5)),
           (case("odd", (3, 5, 7), (8,), length=8), case("transposed", (3, 5), (4,), ways="transposed sliced",
               length=4),
            case("empty", (3, 5), (0,))), label="index_select"),
    Sample(places.get_op, lambda x, i: tgrad.take(x, i), torch.take, (Input(), below(35, -35)),
           (case("odd", (5, 7), (3, 4), length=12), case("transposed", (5, 7), (9,), ways="transposed", length=9)),
           label="take"),
    Sample(places.get_op, lambda x, i: tgrad.take_along_dim(x, i, 0), lambda x, i: torch.take_along_dim(x, i, 0),
           (Input(), below(5, -5)), (case("odd", (5, 7), (2, 7), length=4),
               case("broadcast", (5, 1), (2, 7), length=14)),
           label="take_along_dim"),
    Sample(places.get_op, lambda x, i, j: x[i, :, j], lambda x, i, j: x[i, :, j],
           (Input(), below(5, -5), below(3, -3)),
           (case("odd", (5, 7, 3), (4,), (2, 1), length=8), case("sliced", (5, 7, 3), (4,), (), ways="sliced",
               length=4),
            case("empty", (5, 0, 3), (2,), (2,))), label="x[i, :, j]"),
    Sample(places.get_op, lambda x, m: x[m > 0], lambda x, m: x[m > 0], (Input(), below(3, -2)),
           (case("odd", (5, 7), (5, 7)), case("broadcast", (5, 7), (5,)),
            case("transposed", (5, 7), (5, 7), ways="transposed sliced")), label="x[mask]"),
    Sample(embedding_op, lambda w, i: embedding(i, w), lambda w, i: F.embedding(i, w), (Input(), below(5)),
           (case("odd", (5, 7), (3, 4), length=12), case("scalar-index", (5, 7), ())), label="embedding"),
    Sample(places.spread_op, lambda g, i: places.spread_op(g, i, shape=(5, 7), **GET),
           lambda g, i: torch.zeros(5, 7, dtype=g.dtype).scatter_add(0, i, g), (Input(), below(5)),
           (case("odd", (4, 7), (4, 7), length=4), case("transposed", (3, 5), (3, 5), ways="transposed", length=3)),
           scale=1, integers=False),
    Sample(places.put_op, lambda x, i, v: tgrad.scatter(x, 0, i, v), lambda x, i,
        v: torch.scatter(x, 0, i, v[: i.shape[0], : i.shape[1]]),
           (Input(), order(), Input()),
           (case("odd", (5, 7), (3, 6), (3, 7)), case("transposed", (5, 7), (4, 7), (4, 7), ways="transposed sliced"),
            case("sliced", (5, 3), (2, 3), (2, 3), ways="sliced plain expanded"))),
    Sample(places.put_op, lambda x, i, v: tgrad.index_copy(x, 1, i, v), lambda x, i, v: torch.index_copy(x, 1, i, v),
           (Input(), order(), Input()), (case("odd", (3, 5, 7), (4,), (3, 4, 7)),), label="index_copy"),
    Sample(places.put_op, lambda x, i: tgrad.index_fill(x, 0, i, 2), lambda x, i: torch.index_fill(x, 0, i, 2),
           (Input(), below(5, -5)), (case("odd", (5, 7), (3,)),), label="index_fill"),
    Sample(places.put_op, lambda x, i, j, v: tgrad.index_put(x, (i, j), v), lambda x, i, j,
        v: torch.index_put(x, (i, j), v),
           (Input(), order(), order(-1), Input()),
           (case("odd", (5, 7), (4,), (4,), (4,)), case("broadcast", (5, 7, 3), (4,), (4,), (1, 3), length=4),
            case("transposed", (5, 7), (3, 1), (1, 4), (3, 4), ways="transposed")), label="index_put"),
    Sample(places.accumulate_op, lambda x, i, v: tgrad.scatter_add(x, 1, i, v),
           lambda x, i, v: torch.scatter_add(x, 1, i, v[:, : i.shape[1]]), (Input(), below(7), Input()),
           (case("odd", (5, 7), (5, 4), (5, 6), length=5),
            case("transposed", (5, 7), (4, 9), (4, 9), ways="transposed sliced", length=10)), scale=1,
            label="scatter_add"),
    Sample(places.accumulate_op, lambda x, i, v: tgrad.index_add(x, 0, i, v, alpha=2),
           lambda x, i, v: torch.index_add(x, 0, i, v, alpha=2), (Input(), below(5), Input()),
           (case("odd", (5, 7), (9,), (9, 7), length=10),), scale=8, label="index_add"),
    Sample(places.accumulate_op, lambda x, i, v: tgrad.index_put(x, (i,), v, True),
           lambda x, i, v: torch.index_put(x, (i,), v, True), (Input(), below(5, -5), Input()),
           (case("odd", (5, 7), (2, 4), (2, 4, 7), length=9), case("broadcast", (5, 7), (3,), (7,), length=9)), scale=4,
           label="index_put-accumulate"),
    Sample(places.join_op, lambda a, b: places.join_op(a, b, 5, 35),
           lambda a, b: torch.where((b >= -5) & (b < 5), a * 5 + b % 5, 35), (below(7), below(7, -7)),
           (case("odd", (3, 4), (3, 4)), case("broadcast", (3, 1), (4,)))),
]  # fmt: skip


# --- joining and movement --------------------------------------------------------------------------------------------
def moved(op: Any, name: str, *cases: Case, **rest: Any) -> Sample:
    """A method of one tensor."""
    call = lambda x, args=(), kwargs={}: getattr(x, name)(*args, **kwargs)
    return Sample(op, call, call, (Input(),), cases, **{"label": name, **rest})


def joined(name: str, *cases: Case, **settings: Any) -> Sample:
    ours, ref = library.FREE[name], getattr(torch, name)
    return Sample(joining.cat_op, lambda *t: ours(t, **settings), lambda *t: ref(t, **settings), (Input(),) * 3, cases,
                  label=name)  # fmt: skip


MOVEMENT = [
    joined("cat",
        case("odd", (3, 5), (3, 2), (3, 7)), case("transposed", (5, 3), (5, 1), (5, 2), ways="transposed sliced"),
           case("empty", (3, 5), (3, 0), (0,)), case("rotated", (3, 5, 7), (3, 1, 7), (3, 2, 7),
               ways="rotated expanded"),
           dim=1),
    joined("stack", case("odd", (5, 7), (5, 7), (5, 7)), case("scalar", (), (), ()),
           case("transposed", (5, 7), (5, 7), (5, 7), ways="transposed"), dim=-1),
    joined("hstack", case("odd", (5, 3), (5, 1), (5, 2)), case("scalar", (), (2,), (3,))),
    joined("vstack", case("odd", (5, 3), (3,), (2, 3)), case("scalar", (), (1,), (1, 1))),
    moved(joining.cat_op, "roll", case("odd", (5, 7), args=(2, 1)), case("both", (5, 7), args=((1, -3), (0, 1))),
          case("transposed", (5, 7), ways="transposed", args=(4,)), case("none", (5, 7), args=(7, 1)),
          case("empty", (0, 3), args=(1, 0))),
    moved(movement.flip_op, "flip", case("odd", (3, 5, 7), args=(0, 2)), case("scalar", (), args=(0,)),
          case("transposed", (5, 7), ways="transposed", args=(0,)), case("empty", (0, 3), args=(1,)),
          case("sliced", (5, 3), ways="sliced", args=((0, -1),)), case("expanded", (5, 3), ways="expanded", args=(0,))),
    moved(movement.triangle_op, "tril", case("odd", (3, 5, 7)),
        case("transposed", (5, 7), ways="transposed", args=(-2,)),
          case("empty", (0, 3)), case("far", (5, 7), args=(9,))),
    moved(movement.triangle_op, "triu", case("odd", (3, 5, 7), args=(1,)), case("sliced", (5, 3), ways="sliced"),
          case("far", (5, 7), args=(-9,))),
    moved(movement.diagonal_op, "diagonal", case("odd", (5, 7)),
        case("transposed", (5, 7), ways="transposed", args=(2,)),
          case("low", (3, 5, 7), ways="rotated", args=(-2, 1, 2)), case("outside", (5, 7), args=(9,)),
          case("swapped", (3, 5, 7), args=(1, 2, 0))),
    moved(movement.diagonal_op, "diag", case("odd", (5, 7), args=(1,)), case("vector", (5,), args=(-2,))),
    Sample(padding.pad_op, lambda x, p, v=None: padding.pad(x, p, value=v),
           lambda x, p, v=None: F.pad(x, p, value=v), (Input(),),
           (case("odd", (5, 7), p=(1, 2), v=3.0), case("transposed", (5, 7), ways="transposed", p=(0, 1, 2, 0)),
            case("cut", (5, 7), p=(-2, 3, 1, -1), v=-1), case("empty", (0, 3), p=(1, 1, 2, 0), v=2),
            case("whole", (5, 7), p=()))),
    moved(views.view_op, "unflatten", case("odd", (3, 12), args=(1, (2, -1))), label="unflatten"),
    moved(reduce.expand_op, "repeat", case("odd", (5, 7), args=(2, 1, 3), length=6),
        case("scalar", (), args=(2, 2), length=4),
          case("zero", (5, 7), args=(0, 1)), case("once", (5, 7), args=(1, 1)),
          case("sliced", (5, 3), ways="sliced", args=(2, 2), length=4), label="repeat"),
    moved(reduce.expand_op, "tile", case("odd", (5, 7), args=(2,), length=2), label="tile"),
    moved(reduce.expand_op, "repeat_interleave", case("odd", (5, 7), args=(2, 0), length=2),
          case("flat", (5, 7), ways="transposed", args=(3,), length=3), case("once", (5, 7), args=(1, 1))),
    moved(views.permute_op, "movedim", case("odd", (3, 5, 7), args=(0, -1)),
        case("two", (3, 5, 7), args=((2, 0), (0, 1)))),
    moved(views.transpose_op, "swapaxes", case("odd", (3, 5, 7), args=(0, -1))),
    moved(views.view_op, "ravel", case("odd", (5, 7)), case("transposed", (5, 7), ways="transposed")),
    moved(reduce.expand_op, "broadcast_to", case("odd", (5, 1), args=((2, 5, 7),), length=14)),
]  # fmt: skip
SORTING = [
    Sample(sorting.sort_op, lambda x, dim=-1, descending=False: tgrad.sort(x, dim, descending)[0],
           lambda x, dim=-1, descending=False: torch.sort(x, dim=dim, descending=descending, stable=True)[0],
           (Input(),),
           (case("odd", (5, 7)), case("transposed", (5, 7), ways="transposed", dim=0, descending=True),
            case("rotated", (3, 5, 7), ways="rotated", dim=1), case("empty", (0, 3)), case("empty-dim", (3, 0)),
            case("one", (5, 1)), case("scalar", ()), case("long", (2, 1031), length=1031, descending=True),
            case("merged", (3, 71)))),
    Sample(sorting.sort_op, lambda x, **s: tgrad.topk(x, **s)[0], lambda x, **s: torch.topk(x, **s)[0], (Input(),),
           (case("odd", (5, 7), k=3), case("transposed", (5, 7), ways="transposed", k=2, dim=0, largest=False)),
           label="topk"),
    Sample(sorting.sort_op, tgrad.msort, torch.msort, (Input(),), (case("odd", (5, 7)),), label="msort"),
    Sample(selection.median_op, tgrad.median, torch.median, (Input(),),
           (case("odd", (5, 7), length=35), case("transposed", (5, 7), ways="transposed", length=35),
            case("scalar", ()), case("one", (1, 1)))),
    Sample(running.cummax_op, lambda x: tgrad.cummax(x, 0)[0], lambda x: torch.cummax(x, 0)[0], (Input(),),
           (case("odd", (5, 7)), case("long", (1031, 2)), case("empty", (0, 3)), case("scalar", ()))),
    Sample(running.cummin_op, lambda x: tgrad.cummin(x, 1)[0], lambda x: torch.cummin(x, 1)[0], (Input(),),
           (case("odd", (5, 7)), case("long", (2, 1031)), case("empty", (0, 3)))),
    Sample(bins.search_op, lambda x, v: tgrad.searchsorted(tgrad.msort(x), v),
           lambda x, v: torch.searchsorted(torch.msort(x), v), (Input(), Input()), (case("odd", (7,), (4, 3)),)),
]  # fmt: skip
SAMPLES = [*PLACES, *MOVEMENT, *SORTING]
