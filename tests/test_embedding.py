"""Embedding and its options against torch's."""

import pytest
import torch
import torch.nn.functional as G

import tgrad as T
import tgrad.nn.functional as F
from tests.compare import random
from tests.twins import host, leaves, same
from tgrad import nn

OPTIONS = [
    {}, {"padding_idx": 2}, {"padding_idx": -1}, {"scale_grad_by_freq": True}, {"max_norm": 1.0},
    {"padding_idx": 0, "scale_grad_by_freq": True}, {"max_norm": 0.5, "norm_type": 1.0, "padding_idx": 1},
    {"max_norm": 0.7, "norm_type": float("inf"), "scale_grad_by_freq": True}, {"max_norm": 0.7, "norm_type": 3.0},
]  # fmt: skip
SHAPES = [(), (0,), (1,), (7,), (3, 5)]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_gradients_and_second_derivatives(options):
    for shape in SHAPES:
        index = random("index", shape).integers(0, 5, shape)
        ours, theirs = leaves(random("table", shape).standard_normal((5, 3)))
        w = theirs * 1 if not options.get("max_norm") else theirs
        v = ours * 1 if not options.get("max_norm") else ours
        a, b = F.embedding(T.tensor(index), v, **options), G.embedding(torch.tensor(index), w, **options)
        same(a, b)
        assert a.grad_fn.name() == "EmbeddingBackward0"
        same(ours, theirs, "weight after")
        assert ours._version == theirs._version or index.size == 0
        g, h = leaves(random("cotangent", shape).standard_normal((*shape, 3)))
        (da,), (db,) = (lib.autograd.grad(y, x, c, create_graph=True)
                        for lib, y, x, c in ((T, a, ours, g), (torch, b, theirs, h)))  # fmt: skip
        same(da, db, f"gradient, {shape}")
        if index.size and not options.get("scale_grad_by_freq"):  # there torch has no second derivative
            (da * da).sum().backward(), (db * db).sum().backward()
            same(g.grad, h.grad, "second derivative")


def test_the_module_and_its_table():
    for options in ({}, {"padding_idx": 2, "max_norm": 2.0, "norm_type": 1.0, "scale_grad_by_freq": True}):
        theirs = torch.nn.Embedding(6, 4, **options).double()
        ours = nn.Embedding(6, 4, **options).double()
        assert repr(ours) == repr(theirs)
        ours.load_state_dict({"weight": T.tensor(theirs.weight.detach().numpy().copy())})
        index = random("module").integers(0, 6, (5, 2))
        g = random("module", "g").standard_normal((5, 2, 4))
        for _ in range(2):
            a, b = ours(T.tensor(index)), theirs(torch.tensor(index))
            same(a, b)
            a.backward(T.tensor(g)), b.backward(torch.tensor(g))
        same(ours.weight, theirs.weight), same(ours.weight.grad, theirs.weight.grad)
        frozen = nn.Embedding.from_pretrained(T.ones(6, 4), **options)
        assert not frozen.weight.requires_grad and repr(frozen) == repr(ours)


def test_renormalisation_is_a_write_that_backward_sees():
    w = T.full((3, 2), 5.0, requires_grad=True)
    y = (w * w).sum()
    F.embedding(T.tensor([1]), w, max_norm=1.0)
    assert host(w)[0].tolist() == [5, 5] and abs(float((w[1] ** 2).sum()) - 1) < 1e-5
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_it_keeps_the_indices_alone():
    w, index = T.randn(5, 3, requires_grad=True), T.tensor([1, 2, 2])
    for options in OPTIONS:
        records = T.autograd.graph.saved(F.embedding(index, w, **options))
        assert [r.storage_id for r in records] == [index.storage.id]


def test_half_gradients_are_shared_in_float32():
    n = 300  # bfloat16 has no 300
    w = T.ones(2, 1, dtype=T.bfloat16, requires_grad=True)
    F.embedding(T.zeros(n, dtype=T.int64), w, scale_grad_by_freq=True).sum().backward()
    assert w.grad.dtype is T.bfloat16 and abs(w.grad[0].item() - 1) < 0.01 and w.grad[1].item() == 0


def test_bad_input():
    w = T.ones(3, 2)
    with pytest.raises(NotImplementedError, match="embedding: sparse=True is not supported"):
        F.embedding(T.tensor([0]), w, sparse=True)
    with pytest.raises(NotImplementedError, match="Embedding: sparse=True is not supported"):
        nn.Embedding(3, 2, sparse=True)
    with pytest.raises(AssertionError, match="Padding_idx must be within num_embeddings"):
        F.embedding(T.tensor([0]), w, padding_idx=3)
    with pytest.raises(RuntimeError, match="'weight' must be 2-D"):
        F.embedding(T.tensor([0]), w[0])
    before = host(w).copy()
    with pytest.raises((IndexError, RuntimeError)):
        F.embedding(T.tensor([0.5]), w, max_norm=0.1)
    assert (host(w) == before).all()
