"""Views, basic indexing and the layout of results, compared with torch."""

import itertools

import numpy as np
import pytest
import torch

import tgrad
from tests.compare import WAYS, assert_same, pair, random
from tgrad.layout import may_overlap_itself, view_strides

pytestmark = pytest.mark.anywhere


def both(shape, way="plain"):
    ours, theirs, _ = pair(random("view", shape).normal(size=shape), tgrad.float64, way)
    return ours, theirs


def same_view(ours, theirs):
    """Values, shape, strides and offset."""
    assert_same(ours, theirs)
    assert ours.stride() == theirs.stride()
    assert ours.storage_offset() == theirs.storage_offset() or not ours.numel()
    assert ours.is_contiguous() == theirs.is_contiguous()


INDICES = [
    0, -1, (1, 2), slice(None), slice(1, 4), slice(None, None, 2), slice(-3, None), slice(4, 1), slice(0, 100), None,
    Ellipsis,
    (Ellipsis, 0), (0, Ellipsis), (slice(None), None, 1), (None, None), (slice(1, 3), slice(None, None, 3)),
    (Ellipsis, slice(1, 2), None),
    (2, slice(1, 5, 2)), (slice(None), Ellipsis, slice(None)), (), (Ellipsis, None, 1),
]  # fmt: skip


@pytest.mark.parametrize("way", ["plain", "transposed", "sliced", "expanded"])
@pytest.mark.parametrize("index", INDICES, ids=str)
def test_indexing(index, way):
    ours, theirs = both((5, 7), way)
    same_view(ours[index], theirs[index])
    assert ours[index]._base is not None


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("to", [(35,), (7, 5), (5, 7, 1), (1, 5, 1, 7), (5, -1), (-1,)], ids=str)
def test_view_is_possible_exactly_where_torchs_is(to, way):
    shape = (5, 7) if way != "rotated" else (5, 7, 1)
    ours, theirs = both(shape, way)
    try:
        want = theirs.view(to)
    except RuntimeError:
        with pytest.raises(RuntimeError, match="Use .reshape"):
            ours.view(to)
    else:
        same_view(ours.view(to), want)
    assert_same(ours.reshape(to), theirs.reshape(to))
    assert ours.reshape(to).stride() == theirs.reshape(to).stride()


def test_view_strides_agree_with_torch_on_small_shapes():
    """All ways to cut up to three dimensions of sizes 1 to 3 out of memory, into all shapes of the same elements."""
    sizes = [s for n in range(4) for s in itertools.product((1, 2, 3), repeat=n)]
    checked = 0
    for shape in sizes:
        for order in itertools.permutations(range(len(shape))):
            base = torch.zeros([shape[d] for d in order]).permute([order.index(d) for d in range(len(shape))])
            for to in sizes:
                if np.prod(to) != np.prod(shape):
                    continue
                try:
                    want = base.view(to).stride()
                except RuntimeError:
                    want = None
                assert view_strides(shape, base.stride(), to) == want, (shape, base.stride(), to)
                checked += 1
    assert checked > 500


def test_chains_of_views_share_memory():
    x = tgrad.zeros(4, 6)
    v = x.t()[1:5].unsqueeze(0).expand(2, 4, 4)[1, :, ::2]
    assert v._base is x and v.storage is x.storage
    copied = v.reshape(8)
    assert copied._base is None and copied.storage is not x.storage
    x.fill_(3.0)
    y = x.view(2, 12)[1].view(3, 4).transpose(0, 1)
    assert y._base is x and y.storage is x.storage and y.tolist() == [[3.0] * 3] * 4
    x.zero_()
    assert y.tolist() == [[0.0] * 3] * 4


def test_detach_and_data_share_memory():
    x = tgrad.tensor([1.0, 2.0], requires_grad=True)
    for alias in (x.detach(), x.data):
        assert alias.data_ptr() == x.data_ptr() and not alias.requires_grad
    x.detach().fill_(5)
    assert x.tolist() == [5.0, 5.0] and x._version == 1
    x.data.fill_(6)
    assert x.tolist() == [6.0, 6.0] and x._version == 1


def test_unbind_split_and_iteration():
    ours, theirs = both((5, 7))
    for mine, other in [
        (ours.unbind(1), theirs.unbind(1)), (ours.split(2), theirs.split(2)),
        (ours.split(3, dim=1), theirs.split(3, dim=1)),
        (ours.split([1, 4]), theirs.split([1, 4])), (tuple(ours), tuple(theirs)),
    ]:  # fmt: skip
        assert len(mine) == len(other)
        for a, b in zip(mine, other, strict=True):
            same_view(a, b)


def test_attributes_of_shape():
    x = tgrad.zeros(2, 3, 5)
    assert (x.shape, x.size(), x.size(-1), x.dim(), x.ndim, x.numel(), len(x)) == ((2, 3, 5), (2, 3, 5), 5, 3, 3, 30, 2)
    assert repr(x.shape) == "torch.Size([2, 3, 5])" and repr(x.shape[1:]) == "torch.Size([3, 5])"
    assert x.shape.numel() == 30
    assert x.stride() == (15, 5, 1) and x.stride(0) == 15 and x.is_contiguous() and not x.mT.is_contiguous()
    assert x[0].T.shape == (5, 3) and x.mT.shape == (2, 5, 3)
    assert x.view_as(tgrad.zeros(30)).shape == x.reshape_as(tgrad.zeros(6, 5)).reshape(30).shape == (30,)
    assert tgrad.zeros(1, 5).expand_as(x).shape == (2, 3, 5)
    assert x.nbytes == 120 and x.element_size() == x.itemsize == 4


def test_contiguous_is_itself_or_a_copy():
    x = tgrad.zeros(3, 4)
    assert x.contiguous() is x
    y = x.t().contiguous()
    assert y.is_contiguous() and y.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("call", [
    lambda x: x.view(5, 8), lambda x: x.view(-1, -1), lambda x: x.reshape(4, -1), lambda x: x.view(-2, 5),
    lambda x: x.expand(5, 8),
    lambda x: x.expand(7), lambda x: x.expand(-1, 5, 7), lambda x: x.permute(0), lambda x: x.permute(0, 0),
    lambda x: x.transpose(0, 2),
    lambda x: x.unsqueeze(3), lambda x: x.squeeze(2), lambda x: x[5], lambda x: x[0, 7], lambda x: x[0, 0, 0],
    lambda x: x[::-1], lambda x: x[::0], lambda x: x.select(0, -6), lambda x: x.narrow(0, 3, 3), lambda x: x.split(0),
    lambda x: x.split([2, 2]), lambda x: x.flatten(1, 0), lambda x: x.unbind(2), lambda x: x[None].t(),
    lambda x: len(x[0, 0]),
    lambda x: list(x[0, 0]),
], ids=range(26))  # fmt: skip
def test_errors_are_of_torchs_type(call):
    ours, theirs = both((5, 7))
    with pytest.raises((RuntimeError, IndexError, ValueError, TypeError)) as want:
        call(theirs)
    with pytest.raises(want.type) as got:
        call(ours)
    assert str(got.value) and "\n" not in str(got.value)


@pytest.mark.parametrize("index", ["a", 1.0, object()], ids=range(3))
def test_indices_of_other_kinds_are_refused(index):
    with pytest.raises((IndexError, TypeError)) as want:
        torch.zeros(3)[index]
    with pytest.raises(want.type, match="indices|invalid data type"):
        tgrad.zeros(3)[index]


def test_numpy_and_tensor_integers_are_indices():
    x = tgrad.arange(5)
    assert x[np.int64(2)].item() == 2 and x[tgrad.tensor(3)].item() == 3
    assert x[tgrad.tensor(1) : np.int32(3)].tolist() == [1, 2]


def test_overlap_with_oneself():
    """Sound: no layout whose elements share an address is called free of overlap."""
    for shape in itertools.product((1, 2, 3), repeat=2):
        for strides in itertools.product((0, 1, 2, 3, 4), repeat=2):
            at = [i * strides[0] + j * strides[1] for i in range(shape[0]) for j in range(shape[1])]
            assert may_overlap_itself(shape, strides) or len(set(at)) == len(at)


def test_narrow_from_a_tensor_and_flip_by_name():
    x, y = both((5, 4))
    same_view(x.narrow(1, tgrad.tensor(-3), 2), y.narrow(1, torch.tensor(-3), 2))
    assert_same(x.flip(dims=(0, 1)), y.flip(dims=(0, 1)))


@pytest.mark.parametrize("wanted", ["preserve_format", "contiguous_format"])
@pytest.mark.parametrize("call", [
    lambda m, x, f: x.clone(memory_format=f), lambda m, x, f: x.to(m.float32, memory_format=f),
    lambda m, x, f: x.double(memory_format=f), lambda m, x, f: x.int(memory_format=f),
], ids=["clone", "to", "double", "int"])  # fmt: skip
def test_memory_formats(call, wanted):
    x, y = both((3, 5))
    same_view(call(tgrad, x.t(), getattr(tgrad, wanted)), call(torch, y.t(), getattr(torch, wanted)))
    assert repr(getattr(tgrad, wanted)) == repr(getattr(torch, wanted))


def test_another_memory_format_is_refused():
    with pytest.raises(TypeError, match="memory_format: expected tgrad.preserve_format"):
        tgrad.ones(2).clone(memory_format="channels_last")
