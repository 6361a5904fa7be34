"""Joining, cutting, moving and repeating tensors, compared with torch where the sample table does not reach."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tgrad
from tests.compare import assert_close, assert_same, pair, random
from tgrad.ops import padding

pytestmark = pytest.mark.anywhere


def both(*shape, way="plain", grad=False):
    ours, theirs, _ = pair(random("joining", shape).normal(size=shape), tgrad.float64, way, grad)
    return ours, theirs


DTYPES = ["float16", "bfloat16", "float32", "float64", "int32", "int64", "uint8", "bool"]


@pytest.mark.parametrize("b", DTYPES)
@pytest.mark.parametrize("a", DTYPES)
def test_cat_promotes(a, b):
    got = tgrad.cat([tgrad.ones(2, dtype=getattr(tgrad, a)), tgrad.ones(1, dtype=getattr(tgrad, b))])
    assert_same(got, torch.cat([torch.ones(2, dtype=getattr(torch, a)), torch.ones(1, dtype=getattr(torch, b))]))


def test_cat_of_many_and_of_one():
    x, y = both(7, 3)
    assert_same(tgrad.cat([x] * 40), torch.cat([y] * 40))
    one = tgrad.cat([x])
    assert_same(one, y)
    assert one.storage is not x.storage


def test_gradients_of_cat_go_to_those_who_want_them():
    a, b, c = (tgrad.full((2,), float(i), requires_grad=i != 1) for i in range(3))
    out = tgrad.cat([a, b, c, a])
    assert out.grad_fn.name() == "CatBackward0" and len(out.grad_fn.next_functions) == 4
    (out * tgrad.arange(8.0)).sum().backward()
    assert a.grad.tolist() == [6.0, 8.0] and b.grad is None and c.grad.tolist() == [4.0, 5.0]
    handle = tgrad.cat([a, b])
    handle.grad_fn.register_hook(lambda inputs, outputs: None)
    handle.sum().backward()


@pytest.mark.parametrize("call", [
    lambda t, x: t.cat([x, x], axis=1) if t is tgrad else t.cat([x, x], 1), lambda t, x: t.cat([x, t.zeros(0)]),
    lambda t, x: t.concat([x, x], -2), lambda t, x: t.stack([x, x], 1), lambda t, x: t.hstack([x[0], x[1]]),
    lambda t, x: t.vstack([x[0], x]), lambda t, x: x.tensor_split(3)[0], lambda t, x: x.tensor_split(4, 1)[1],
    lambda t, x: x.tensor_split([1, 3])[1], lambda t, x: x.tensor_split((-2, 9), 1)[1], lambda t,
    x: x.tensor_split(9)[7],
    lambda t, x: t.broadcast_tensors(x[:, :1], x[0])[1], lambda t, x: t.meshgrid(x[0], x[:, 0], indexing="xy")[1],
    lambda t, x: t.meshgrid(x[0], x[:, 0], x[1], indexing="ij")[2], lambda t, x: x.roll(3), lambda t,
    x: x.roll((1, 2), (0, 0)),
    lambda t, x: x.flip((0, 1)), lambda t, x: t.flip(x, [1]), lambda t, x: x.repeat(2, 1, 1), lambda t, x: x.tile((2,)),
    lambda t, x: x.repeat_interleave(t.tensor([0, 2, 1, 1, 0])), lambda t, x: x.diagonal(1), lambda t,
    x: t.diag(x[0], -1),
    lambda t, x: x.tril(-1), lambda t, x: t.triu(x, 2), lambda t, x: x.movedim((0, 1), (1, 0)), lambda t,
    x: x.moveaxis(0, 1),
    lambda t, x: x.swapaxes(0, 1), lambda t, x: x.swapdims(0, -1), lambda t, x: t.broadcast_to(x, (2, 5, 7)),
    lambda t, x: x.unflatten(1, (7, 1)), lambda t, x: x.t().ravel(), lambda t, x: t.as_strided(x, (2, 3), (7, 2), 1),
    lambda t, x: x[1:].as_strided((2, 3), (3, 1)), lambda t, x: x.as_strided((3, 3), (1, 1)),
], ids=range(35))  # fmt: skip
def test_by_name(call):
    def on(t, x):
        index = t.tensor([0, 2, 1, 1, 0])
        return call(t, x) if "repeat_interleave" not in call.__code__.co_names else x.repeat_interleave(index, 0)

    x, y = both(5, 7)
    assert_same(on(tgrad, x), on(torch, y))


def test_views_are_views():
    x, y = both(4, 6)
    for call in (lambda a: a.diagonal(1), lambda a: a.movedim(0, 1), lambda a: a.unflatten(1, (2, 3)),
                 lambda a: a.tensor_split(2, 1)[1], lambda a: a.broadcast_to((2, 4, 6)),
                 lambda a: a.as_strided((2, 2), (6, 1), 3)):  # fmt: skip
        mine, other = call(x), call(y)
        assert mine._base is x and mine.stride() == other.stride() and mine.storage_offset() == other.storage_offset()
    x.diagonal().fill_(9.0)
    y.diagonal().fill_(9.0)
    assert_same(x, y)


@pytest.mark.parametrize("call", [
    lambda t, x: x.as_strided((2, 3), (7, 2), 8), lambda t, x: x.as_strided((2, 3), (7, 0)),
    lambda t, x: x.t().diagonal(-1), lambda t, x: x.tensor_split(2, 1)[0],
    lambda t, x: x.as_strided((3, 2, 2), (1, 2, 0), 4), lambda t, x: x.t()[1:3].as_strided((3, 3), (2, 1), 0),
], ids=range(6))  # fmt: skip
def test_gradients_of_views(call):
    x, y = both(5, 7, grad=True)
    a, b = call(tgrad, x), call(torch, y)
    (mine,), (other,) = tgrad.autograd.grad((a * a).sum(), x), torch.autograd.grad((b * b).sum(), y)
    assert_close(mine, other, scale=1)


def test_as_strided_refuses_what_it_cannot_do():
    x = tgrad.zeros(4, requires_grad=True)
    with pytest.raises(RuntimeError, match="out of bounds for storage"):
        x.as_strided((5,), (1,))
    with pytest.raises(RuntimeError, match="elements do not overlap"):
        x[:1].expand(4).as_strided((2,), (1,))


def test_pad_has_torchs_arguments():
    x, y = both(2, 3, 4)
    for pads, value in (((1, 1), None), ((0, 0, 2, 1), 5), ((1, -1, -1, 0, 0, 3), 0.5)):
        assert_same(padding.pad(x, pads, "constant", value), F.pad(y, pads, "constant", value))
    assert_same(padding.pad(tgrad.arange(3), (1, 0), value=7), F.pad(torch.arange(3), (1, 0), value=7))
    with pytest.raises(NotImplementedError, match="Unrecognised padding mode mirror"):
        padding.pad(x, (1, 1), "mirror")


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("pads", [(2, 1), (-1, 2), (0, 0, 2, 2), (-1, -1, 1, 0)])
def test_pad_with_its_own_elements(mode, pads):
    x, y = both(2, 3, 5, grad=True)
    a, b = padding.pad(x, pads, mode), F.pad(y, pads, mode)
    assert_same(a, b)
    (mine,), (other,) = tgrad.autograd.grad((a * a).sum(), x), torch.autograd.grad((b * b).sum(), y)
    assert_close(mine, other, scale=1)


def test_pad_refuses_more_than_there_is():
    x = tgrad.zeros(2, 3, 5)
    for mode, pads in (("reflect", (5, 0)), ("circular", (0, 6)), ("replicate", (-3, -2))):
        with pytest.raises(RuntimeError, match="^pad: "):
            padding.pad(x, pads, mode)
    with pytest.raises(NotImplementedError, match="all dimensions but the first one or two"):
        padding.pad(x[0, 0], (1, 1), "reflect")
    with pytest.raises(ValueError, match="doesn't take in value"):
        padding.pad(x, (1, 1), "reflect", 1.0)


@pytest.mark.parametrize("call", [
    lambda t, x: t.cat([]), lambda t, x: t.cat([x, x[0]]), lambda t, x: t.cat([x, x[:, :2]]), lambda t,
    x: t.cat([x[0, 0]]),
    lambda t, x: t.cat([x, 1]), lambda t, x: t.cat([x, x], 2), lambda t, x: t.stack([x, x[0]]), lambda t,
    x: t.stack([]),
    lambda t, x: x.flip(0, 0), lambda t, x: x.flip(2), lambda t, x: x.roll((1, 2), 0), lambda t, x: x.repeat(2),
    lambda t, x: x.unflatten(0, (2, 2)), lambda t, x: x.movedim((0, 1), 0), lambda t, x: x.movedim((0, 0), (0, 1)),
    lambda t, x: x.diagonal(0, 1, 1), lambda t, x: x[0].tril(), lambda t, x: x[None].diag(), lambda t,
    x: x.tensor_split(0),
    lambda t, x: t.meshgrid(x), lambda t, x: x.repeat_interleave(t.tensor([1, 2]), 0), lambda t,
    x: x.repeat_interleave(-1),
], ids=range(22))  # fmt: skip
def test_errors_are_of_torchs_type(call):
    x, y = both(5, 7)
    with pytest.raises((RuntimeError, IndexError, ValueError, TypeError)) as want:
        call(torch, y)
    with pytest.raises(want.type):
        call(tgrad, x)


def test_flip_twice_is_nothing():
    x = tgrad.tensor(np.arange(24).reshape(2, 3, 4))
    assert (x.flip(0, 2).flip(0, 2) == x).all()
