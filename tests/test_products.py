"""addmm, baddbmm, outer, dot, mv and einsum against torch, with gradients."""

import numpy as np
import pytest
import torch

import tgrad
from tests.compare import assert_same, random, values

EQUATIONS = [
    ("ij,jk->ik", (3, 4), (4, 5)), ("ij,jk", (3, 4), (4, 5)), ("ij,kj->ki", (3, 4), (5, 4)), ("i,j->ij", (3,), (4,)),
    ("i,i->", (3,), (3,)), ("ij->", (3, 4)), ("ij->ji", (3, 4)), ("ji", (3, 4)), ("ij->j", (3, 4)), ("ii->i", (4, 4)),
    ("ii", (4, 4)), ("iij->j", (3, 3, 2)), ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)), ("bhqd,bhkd->bhqk", (2, 2, 3, 4),
    (2, 2, 5, 4)), ("...ij,...jk->...ik", (2, 3, 4), (4, 5)), ("...ij,...jk", (2, 1, 3, 4), (3, 4, 5)),
    ("i...->...", (3, 4, 5)), ("...,i->...i", (2, 3), (4,)),
    ("ij,ij->ij", (3, 4), (3, 4)), ("ij,ij->i", (3, 4), (3, 4)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 5)), ("ij,ik,il->jkl", (2, 3), (2, 4), (2, 5)), ("ij,k->i", (3, 4), (5,)),
    ("ijk,ik->j", (2, 3, 4), (2, 4)), ("ij , jk -> ik", (0, 4), (4, 5)), ("ij,jk->ik", (3, 0), (0, 5)),
    ("ij,jk->ik", (3, 1), (4, 5)), ("bi,bi->b", (1, 3), (4, 3)), ("aab,bc->ac", (3, 3, 2), (2, 4)), (",->", (), ()),
    ("i,->i", (3,), ()),
]  # fmt: skip


def tensors(shapes):
    arrays = [random("products", i, s).normal(size=s) for i, s in enumerate(shapes)]
    ours = [tgrad.tensor(a, dtype=tgrad.float64, requires_grad=True) for a in arrays]
    return ours, [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in arrays]


def agree(got, want, ours, theirs):
    assert tuple(got.shape) == tuple(want.shape)
    np.testing.assert_allclose(values(got), want.detach().numpy(), rtol=1e-12, atol=1e-13)
    g = random("cotangent").normal(size=tuple(want.shape))
    a = tgrad.autograd.grad(got, ours, tgrad.tensor(g, dtype=tgrad.float64), create_graph=True)
    b = torch.autograd.grad(want, theirs, torch.tensor(g, dtype=torch.float64), create_graph=True)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(values(x), y.detach().numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.anywhere
@pytest.mark.parametrize("equation, shapes", [(e, s) for e, *s in EQUATIONS], ids=[f"{e} {s}" for e, *s in EQUATIONS])
def test_einsum(equation, shapes):
    ours, theirs = tensors(shapes)
    agree(tgrad.einsum(equation, *ours), torch.einsum(equation, *theirs), ours, theirs)


def test_einsum_takes_the_diagonal_of_what_is_expanded():
    (x,), (y,) = tensors([(1, 3)])
    agree(tgrad.einsum("ii->i", x.expand(3, 3)), torch.einsum("ii->i", y.expand(3, 3)), [x], [y])


@pytest.mark.parametrize("equation", ["ij,k->ik", "ij,k->", "ij,jk->ik", "i...,j->j"])
def test_einsum_of_integers_grows_where_it_sums(equation):
    n = [len(part.replace("...", "a")) for part in equation.split("->")[0].split(",")]
    arrays = [random("integers", d).integers(-9, 9, (3,) * d).astype(np.int32) for d in n]
    got, want = (m.einsum(equation, *map(m.tensor, arrays)) for m in (tgrad, torch))
    assert_same(got, want)


def test_linear_of_integers_adds_its_bias():
    x, w, b = (random("linear", s).integers(-9, 9, s) for s in ((2, 3), (4, 3), (4,)))
    for first in (x, x[0], x[:0]):
        got = tgrad.nn.functional.linear(*map(tgrad.tensor, (first, w, b)))
        assert_same(got, torch.nn.functional.linear(*map(torch.tensor, (first, w, b))))


def test_einsum_takes_a_list_and_integers():
    x = tgrad.tensor([[1, 2], [3, 4]])
    assert tgrad.einsum("ij,jk->ik", [x, x]).tolist() == [[7, 10], [15, 22]]


@pytest.mark.parametrize("equation, shapes, words", [
    ("ij,jk->ik", ((3, 4),), "more operands|fewer operands"), ("ij->i", ((3,),), "number of subscripts"),
    ("ij->k", ((3, 4),), "output subscript k does not appear"), ("ij->ii", ((3, 4),), "more than once"),
    ("i1->i", ((3, 4),), "invalid subscript"), ("ij,jk->ik", ((3, 4), (5, 2)), "do not broadcast"),
    ("ii->i", ((3, 4),), "subscript i is repeated"),
])  # fmt: skip
def test_einsum_refuses(equation, shapes, words):
    with pytest.raises(RuntimeError, match=words):
        tgrad.einsum(equation, *[tgrad.ones(*s) for s in shapes])


PRODUCTS = [
    ("addmm", ((3, 5), (3, 4), (4, 5)), {}), ("addmm", ((5,), (3, 4), (4, 5)), {"beta": 0.5, "alpha": 2}),
    ("addmm", ((), (3, 4), (4, 5)), {"alpha": -1}), ("baddbmm", ((2, 3, 5), (2, 3, 4), (2, 4, 5)), {}),
    ("baddbmm", ((5,), (2, 3, 4), (2, 4, 5)), {"beta": 2, "alpha": 0.5}), ("addmv", ((3,), (3, 4), (4,)), {"beta": 3}),
    ("outer", ((3,), (4,)), {}), ("dot", ((4,), (4,)), {}), ("mv", ((3, 4), (4,)), {}), ("mv", ((0, 4), (4,)), {}),
]  # fmt: skip


@pytest.mark.anywhere
@pytest.mark.parametrize("name, shapes, settings", PRODUCTS, ids=[f"{n}-{s[0]}" for n, s, _ in PRODUCTS])
def test_products(name, shapes, settings):
    ours, theirs = tensors(shapes)
    agree(getattr(tgrad, name)(*ours, **settings), getattr(torch, name)(*theirs, **settings), ours, theirs)


def test_beta_zero_ignores_the_input():
    nan = tgrad.full((2, 2), float("nan"))
    assert tgrad.addmm(nan, tgrad.eye(2), tgrad.eye(2), beta=0).tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize("call, words", [
    (lambda o: tgrad.dot(o(3), o(2, 2)), "1D tensors expected, but got 1D and 2D"),
    (lambda o: tgrad.dot(o(3), o(4)), "inconsistent tensor size"), (lambda o: tgrad.mv(o(3, 4), o(3)), "size mismatch"),
    (lambda o: tgrad.outer(o(3, 3), o(3)), "must be a 1D tensor"),
    (lambda o: tgrad.addmm(o(9), o(3, 4), o(4, 5)), "expand"),
    (lambda o: tgrad.addmm(o(5), o(3, 4), o(3, 5)), "cannot be multiplied"),
    (lambda o: tgrad.addmm(o(5).double(), o(3, 4), o(4, 5)), "one dtype"),
])  # fmt: skip
def test_refusals(call, words):
    with pytest.raises(RuntimeError, match=words):
        call(tgrad.ones)
