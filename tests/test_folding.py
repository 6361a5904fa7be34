"""Masks folded into products in a plain backward: where that happens, where it must not, and that no bit differs."""

import gc
import weakref

import pytest
import torch

import tgrad
import tgrad.nn.functional as F
from tests.compare import assert_close, pair, random, same_bits
from tgrad import engine
from tgrad.kernels import launch


def leaves(dtype, *shapes):
    pairs = [pair(random("fold", i, s).standard_normal(s), dtype, requires_grad=True) for i, s in enumerate(shapes)]
    return [ours for ours, _, _ in pairs], [exact for _, _, exact in pairs]


SHAPES = (9, 8), (12, 8), (12,), (16, 12), (16,), (5, 16), (5,)


def network(x, w1, b1, w2, b2, w3, b3, *, linear, activation):
    return linear(activation(linear(activation(linear(x, w1, b1)), w2, b2)), w3, b3)


def gradients(ours, fold, activation=tgrad.relu, **options):
    """Of the network's leaves, and the kernels that ran in the backward, folding or not."""
    for t in ours:
        t.grad = None
    launched = []
    g = tgrad.ones(9, 5, dtype=ours[0].dtype) * 0.37
    with pytest.MonkeyPatch.context() as patch:
        if not fold:
            patch.setattr(engine, "fold", lambda *_: None)
        with launch.listen(launched.append):
            out = network(*ours, linear=F.linear, activation=activation)
            launched.clear()
            out.backward(g, **options)
    return [t.grad for t in ours], launched


MASKS = {"relu": tgrad.relu, "relu6": F.relu6, "hardtanh": F.hardtanh}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("dtype", [tgrad.float32, tgrad.bfloat16, tgrad.float64], ids=lambda d: d.name)
def test_same_bits(name, dtype):
    ours, _ = leaves(dtype, *SHAPES)
    folded, _ = gradients(ours, True, MASKS[name])
    plain, _ = gradients(ours, False, MASKS[name])
    assert all(same_bits(a, b) for a, b in zip(folded, plain, strict=True))


def test_as_torch():
    ours, exact = leaves(tgrad.float32, *SHAPES)
    found, launched = gradients(ours, True)
    out = network(*exact, linear=torch.nn.functional.linear, activation=torch.relu)
    out.backward(torch.full_like(out, 0.37))
    for got, want in zip(found, exact, strict=True):
        assert_close(got, want.grad, length=64, scale=4)
    assert "relu_backward" not in launched and launched.count("linear_backward") == 5  # 3 of weights, 2 with a mask
    assert gradients(ours, False)[1].count("relu_backward") == 2


def test_not_with_arithmetic():
    ours, _ = leaves(tgrad.float32, *SHAPES)
    _, launched = gradients(ours, True, tgrad.tanh)
    assert launched.count("tanh_backward") == 2


def test_again_with_retain_graph():
    (x, w, b, v), _ = leaves(tgrad.float32, (6, 5), (4, 5), (4,), (3, 4))
    out = F.linear(tgrad.relu(F.linear(x, w, b)), v)
    g = tgrad.ones(6, 3)
    out.backward(g, retain_graph=True)
    first = w.grad.clone()
    out.backward(g)
    assert same_bits(w.grad, first * 2)
    with pytest.raises(RuntimeError, match="second time"):
        out.backward(g)


def test_what_the_mask_kept_is_freed():
    (x, w, v), _ = leaves(tgrad.float32, (6, 5), (4, 5), (3, 4))
    h = tgrad.relu(F.linear(x, w))
    out, storage = F.linear(h, v), weakref.ref(h.storage)
    del h
    out.backward(tgrad.ones(6, 3))
    gc.collect()
    assert storage() is None


def test_modified_mask_is_an_error():
    (x, w, v), _ = leaves(tgrad.float32, (6, 5), (4, 5), (3, 4))
    v.requires_grad_(False)
    h = tgrad.relu(F.linear(x, w))
    out = F.linear(h, v)
    with tgrad.no_grad():
        h.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward(tgrad.ones(6, 3))


def hooked(h, seen):
    h.register_hook(lambda g: seen.append(g) or g * 2)
    return h


def retained(h, seen):
    h.retain_grad()
    seen.append(h)
    return h


# Where the mask's node must see its gradient, or gets a further one: (what is done with h, the last layer).
ELSEWHERE = {
    "hook": (hooked, lambda h, v: F.linear(h, v)),
    "retain_grad": (retained, lambda h, v: F.linear(h, v)),
    "residual": (lambda h, seen: h, lambda h, v: F.linear(h, v) + h),
    "residual first": (lambda h, seen: h, lambda h, v: h * 3 + F.linear(h, v)),
    "twice": (lambda h, seen: h, lambda h, v: F.linear(h, v) * F.linear(h, v * 2)),
    "both operands": (lambda h, seen: h[:4], lambda h, v: F.linear(h, h)),
    "weight of it": (lambda h, seen: h, lambda h, v: F.linear(h, v * h.sum())),
}  # fmt: skip


@pytest.mark.parametrize("name", ELSEWHERE)
def test_other_consumers(name, monkeypatch):
    done, last = ELSEWHERE[name]
    found, seen = [], []
    for folds in (True, False):
        (x, w, v), (tx, tw, tv) = leaves(tgrad.float32, (6, 5), (4, 5), (4, 4))
        if not folds:
            monkeypatch.setattr(engine, "fold", lambda *_: None)
        out = last(done(tgrad.relu(F.linear(x, w)), seen), v)
        out.backward(tgrad.ones(*out.shape))
        found.append([x.grad, w.grad, v.grad if v.grad is not None else v.detach()])
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))
    assert len(seen) in (0, 2)
    if name == "retain_grad":
        assert same_bits(seen[0].grad, seen[1].grad)
    if name == "residual":
        torch.nn.functional.linear(h := torch.relu(tx @ tw.t()), tv).add(h).sum().backward()
        assert_close(found[0][0], tx.grad, length=32, scale=4)


def test_gradients_of_what_is_asked_for():
    """autograd.grad takes the gradient between, and create_graph records every formula."""
    (x, w, v), _ = leaves(tgrad.float32, (6, 5), (4, 5), (3, 4))
    h = tgrad.relu(F.linear(x, w))
    out = F.linear(h, v)
    gh, gw = tgrad.autograd.grad(out, (h, w), tgrad.ones(6, 3), retain_graph=True)
    assert same_bits(gh, tgrad.ones(6, 3) @ v.detach())
    (recorded,) = tgrad.autograd.grad(out, w, tgrad.ones(6, 3), create_graph=True)
    assert recorded.requires_grad and same_bits(recorded.detach(), gw)


@pytest.mark.parametrize("shape", [(0, 5), (6, 5)])
def test_three_dimensions_and_empty_batches(shape):
    (x, w, v), (tx, tw, tv) = leaves(tgrad.float32, shape, (4, 5), (3, 4))
    F.linear(tgrad.relu(F.linear(x, w)), v).backward(tgrad.ones(shape[0], 3))
    torch.nn.functional.linear(torch.relu(tx @ tw.t()), tv).backward(torch.ones(shape[0], 3, dtype=torch.float64))
    for t, tt in ((x, tx), (w, tw), (v, tv)):
        assert_close(t.grad, tt.grad, length=32, scale=4)
