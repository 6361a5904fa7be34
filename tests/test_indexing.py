"""Indexing with tensors, by brackets and by name, compared with torch."""

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tgrad
from tests.compare import TORCH, assert_close, assert_same, pair, random
from tgrad.device import compute
from tgrad.ops import classes

pytestmark = [pytest.mark.anywhere, pytest.mark.filterwarnings("ignore:.*(indexing with dtype|non-tuple sequence)")]
on_cpu = pytest.mark.skipif(compute.type == "cuda", reason="the CPU's checks")
DTYPES = [tgrad.float64, tgrad.bfloat16, tgrad.int64, tgrad.uint8, tgrad.bool]


# --- random keys -----------------------------------------------------------------------------------------------------
def random_key(rng, shape, byte=0.2):
    """A key as a list of descriptions, from which both libraries' are made. `byte`: how many masks are of uint8."""
    key, d, ellipsis = [], 0, False
    indices = [(), (1,), (4,), (3, 1), (3, 4), (0,)][rng.integers(6)]  # shapes that broadcast together
    while d < len(shape) and rng.random() < 0.85:
        n = shape[d]
        what = rng.choice(["int", "slice", "none", "ellipsis", "tensor", "mask", "list", "array", "bool"],
                          p=[0.1, 0.2, 0.08, 0.07, 0.35, 0.1, 0.04, 0.04, 0.02])  # fmt: skip
        if what == "ellipsis":
            if ellipsis:
                continue
            ellipsis = True
            room = len(shape) - d
            d += int(rng.integers(room + 1))
            key.append(("basic", Ellipsis))
            if d >= len(shape) or room == 0:
                break
            rest = random_key(rng, shape[d:], byte)
            if any(v is Ellipsis for _, v in rest):
                break
            used = sum(w for w in map(width, rest))
            return [*key, *rest] if used == len(shape) - d else key
        if what == "none":
            key.append(("basic", None))
            continue
        if what == "bool":
            key.append(("basic", bool(rng.random() < 0.8)))
            continue
        if what == "mask":
            k = int(rng.integers(1, min(2, len(shape) - d) + 1))
            mask = rng.random(shape[d : d + k]) < 0.4
            key.append(("byte" if rng.random() < byte else "mask", mask))
            d += k
            continue
        if what in ("int", "tensor", "list", "array") and n == 0:
            what = "slice"
        if what == "int":
            key.append(("basic", int(rng.integers(-n, n))))
        elif what == "slice":
            start, stop = sorted(int(v) for v in rng.integers(-n - 1, n + 2, size=2))
            key.append(("basic", slice(start if rng.random() < 0.7 else None, stop, int(rng.integers(1, 4)))))
        else:
            part = indices[int(rng.integers(len(indices) + 1)) :]
            part = tuple(1 if rng.random() < 0.2 else s for s in part)
            key.append((what if what == "tensor" or part else "tensor", rng.integers(-n, n, size=part)))
        d += 1
    return key


def width(item):
    kind, value = item
    if kind in ("mask", "byte"):
        return value.ndim
    return 0 if value is None or value is Ellipsis or isinstance(value, bool) else 1


def made(key, library):
    out = []
    for kind, value in key:
        if kind == "tensor":
            out.append(library.tensor(value, dtype=library.int64))
        elif kind == "mask":
            out.append(library.tensor(value))
        elif kind == "byte":
            out.append(library.tensor(value.astype(np.uint8)))
        else:
            out.append(value.tolist() if kind == "list" else value)
    return tuple(out)


def read(x, key, library):
    return x[made(key, library)]


def attempt(f, *args):
    try:
        return f(*args), None
    except (IndexError, RuntimeError, ValueError) as error:
        return None, error


SHAPES = [(5,), (4, 5), (3, 4, 5), (2, 3, 4, 2), (3, 0, 4), (1, 5, 1)]
WAYS = ["plain", "transposed", "sliced", "rotated"]


@pytest.mark.parametrize("seed", range(25))
def test_random_keys_read_as_torch_does(seed):
    rng = random("keys", seed)
    compared = 0
    for n in range(30):
        shape = SHAPES[rng.integers(len(SHAPES))]
        way = WAYS[rng.integers(len(WAYS))]
        ours, theirs, _ = pair(rng.permutation(int(np.prod(shape))).reshape(shape), DTYPES[n % 2], way)
        key = random_key(rng, shape)
        want, refused = attempt(read, theirs, key, torch)
        got, error = attempt(read, ours, key, tgrad)
        if refused is not None:
            assert type(error) is type(refused), (shape, key, refused, error)
            continue
        assert error is None, (shape, key, error)
        assert_same(got, want, f"{shape} {key}")
        compared += 1
    assert compared > 15


@pytest.mark.parametrize("seed", range(25))
def test_random_keys_write_as_torch_does(seed):
    """Values are a function of the place, so that repeated places get the same whatever the order."""
    rng = random("writes", seed)
    compared = 0
    for n in range(30):
        shape = SHAPES[rng.integers(len(SHAPES))]
        way = WAYS[rng.integers(len(WAYS))]
        dtype = DTYPES[n % len(DTYPES)]
        count = int(np.prod(shape))
        ours, theirs, _ = pair(rng.permutation(count).reshape(shape) % 100, dtype, way)
        key = random_key(rng, shape, 0)  # torch refuses some writes by uint8
        where, refused = attempt(read, torch.arange(count).reshape(shape), key, torch)
        if refused is not None:
            _, error = attempt(ours.__setitem__, made(key, tgrad), 1)
            assert type(error) is type(refused), (shape, key, refused, error)
            continue
        values = (where * 3 + 1) % 50
        if rng.random() < 0.3:
            a = b = 1 if dtype is tgrad.bool else 7
        else:
            a, b = tgrad.tensor(values.numpy(), dtype=dtype), values.to(TORCH[dtype])
        ours[made(key, tgrad)] = a
        theirs[made(key, torch)] = b
        assert_same(ours, theirs, f"{shape} {key}")
        compared += 1
    assert compared > 15


@pytest.mark.parametrize("seed", range(8))
def test_random_keys_have_torchs_gradients(seed):
    rng = random("gradients", seed)
    for _ in range(15):
        shape = SHAPES[rng.integers(4)]
        ours, theirs, _ = pair(rng.normal(size=shape), tgrad.float64, WAYS[rng.integers(3)], True)
        key = random_key(rng, shape)
        if attempt(read, theirs, key, torch)[1] is not None:
            continue
        a, b = ours[made(key, tgrad)], theirs[made(key, torch)]
        g = rng.normal(size=tuple(b.shape))
        (mine,) = tgrad.autograd.grad(a, ours, tgrad.tensor(g))
        (other,) = torch.autograd.grad(b, theirs, torch.tensor(g))
        assert_close(mine, other, scale=1, length=20)


@pytest.mark.parametrize("seed", range(8))
def test_random_writes_have_torchs_gradients(seed):
    """The gradient of what was written over, and of what was written, where no place is written twice."""
    rng = random("write gradients", seed)
    compared = 0
    for _ in range(25):
        shape = SHAPES[rng.integers(4)]
        key = random_key(rng, shape, 0)
        where, refused = attempt(read, torch.arange(int(np.prod(shape))).reshape(shape), key, torch)
        if refused is not None or where.numel() != where.unique().numel():
            continue
        x, w = rng.normal(size=shape), rng.normal(size=tuple(where.shape[1:]))
        results = []
        for lib in (tgrad, torch):
            leaves = [lib.tensor(v, dtype=lib.float64, requires_grad=True) for v in (x, w)]
            base = leaves[0] * 2
            base.reshape(shape)[made(key, lib)] = leaves[1]
            results.append((base, lib.autograd.grad((base * base).sum(), leaves, allow_unused=True)))
        assert_same(results[0][0], results[1][0])
        for mine, other in zip(results[0][1], results[1][1], strict=True):
            assert (mine is None) == (other is None)
            if mine is not None:
                assert_close(mine, other, scale=4, length=100)
        compared += 1
    assert compared > 5


@pytest.mark.parametrize("dtype", DTYPES + [tgrad.float16, tgrad.float32, tgrad.int32], ids=lambda d: d.name)
def test_index_put_accumulates(dtype):
    rng = random("accumulate", dtype.name)
    for key, shape in ([(np.array([0, 0, -1, 2]),), (4, 4)], [(np.array([[1, 1]]), np.array([[0], [0]])), (2, 2)],
                       [(rng.random((5, 4)) < 0.5,), ()]):  # fmt: skip
        ours, theirs, _ = pair(rng.integers(0, 2, size=(5, 4)), dtype)
        v = rng.integers(0, 2, size=shape)
        got = ours.index_put_([tgrad.tensor(k) for k in key], tgrad.tensor(v, dtype=dtype), accumulate=True)
        want = theirs.index_put_([torch.tensor(k) for k in key], torch.tensor(v).to(TORCH[dtype]), accumulate=True)
        assert got is ours
        assert_same(ours, want)


def test_index_put_with_none():
    x, y = tgrad.zeros(3, 4), torch.zeros(3, 4)
    x.index_put_([None, tgrad.tensor([1, 3])], tgrad.tensor([5.0, 6.0]))
    y[:, torch.tensor([1, 3])] = torch.tensor([5.0, 6.0])
    assert_same(x, y)


# --- history of writes -----------------------------------------------------------------------------------------------
def test_a_write_to_a_view_reaches_the_base():
    ours, theirs, _ = pair(random("base").normal(size=(5, 7)), tgrad.float64, requires_grad=True)
    results = []
    for lib, x in ((tgrad, ours), (torch, theirs)):
        base = x * 1
        view = base[1:4].t()
        index = lib.tensor([0, 2, 6])
        view[index] = 3.0
        view[index, 1:] *= 2.0
        base[lib.tensor([4]), :2] = x[0, :2]
        results.append((base, lib.autograd.grad((base * base).sum() + view.sum(), x)[0]))
    assert_close(results[0][0], results[1][0])
    assert_close(results[0][1], results[1][1], scale=1)


def test_writes_are_refused_where_torch_refuses():
    leaf = tgrad.zeros(3, requires_grad=True)
    index = tgrad.tensor([0])
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad"):
        leaf[index] = 1.0
    with pytest.raises(RuntimeError, match="a view of a leaf Variable"):
        leaf[:2][index] = 1.0
    with pytest.raises(RuntimeError, match="more than one element"):
        tgrad.zeros(1).expand(3).index_fill_(0, index, 1.0)
    with tgrad.inference_mode():
        made_there = tgrad.zeros(3)
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        made_there[index] = 1.0
    leaf.detach()[index] = 2.0
    assert leaf.tolist() == [2.0, 0.0, 0.0] and leaf._version == 1


def test_a_saved_tensor_that_is_written_is_noticed():
    x = tgrad.tensor([1.0, 2.0], requires_grad=True)
    y = x * 1
    z = y * y
    y[tgrad.tensor([0])] = 5.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()
    index = tgrad.tensor([0, 1])
    picked = x[index]
    index.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        picked.sum().backward()


def test_a_write_from_itself():
    x = tgrad.arange(6.0)
    x[tgrad.tensor([0, 1, 2, 3, 4, 5])] = x
    assert x.tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(RuntimeError, match="single memory location"):
        x[tgrad.tensor([0, 1])] = x[1:3]


@pytest.mark.parametrize("name, dim", [("scatter_", 0), ("scatter_add_", 1)])
def test_scatter_in_place(name, dim):
    for way in WAYS:
        ours, theirs, _ = pair(random(name).normal(size=(5, 7)), tgrad.float64, way)
        index, src = np.array([[4, 1, 0], [2, 2, 3]]), np.full((2, 4), 2.5)
        getattr(ours, name)(dim, tgrad.tensor(index), tgrad.tensor(src, dtype=tgrad.float64))
        getattr(theirs, name)(dim, torch.tensor(index), torch.tensor(src))
        assert_same(ours, theirs)
    ours.scatter_(0, tgrad.tensor([[1]]), 9.0)
    theirs.scatter_(0, torch.tensor([[1]]), 9.0)
    assert_same(ours, theirs)


@pytest.mark.parametrize("call", [
    lambda t, x: x.index_add_(0, t.tensor([1, 1]), t.ones(2, 4), alpha=3), lambda t,
    x: x.index_fill_(1, t.tensor([-1]), 5),
    lambda t, x: x.index_copy_(0, t.tensor([2]), t.ones(1, 4)), lambda t, x: x.masked_fill_(x > 5, -1.0),
    lambda t, x: x.masked_fill(x > 5, t.tensor(2.0)), lambda t,
    x: t.masked_select(x, t.tensor([True, False, True, True])),
    lambda t, x: x.masked_select(x[:, :1] > 3), lambda t, x: t.where(x > 7)[1], lambda t, x: t.argwhere(x > 7),
    lambda t, x: t.nonzero(x.reshape(3, 2, 2)), lambda t, x: t.nonzero(t.tensor(3.0)), lambda t,
    x: t.nonzero(t.tensor(0)),
    lambda t, x: t.nonzero(x, as_tuple=True)[0], lambda t, x: t.take(x, t.tensor([[0, -1]])),
    lambda t, x: t.take_along_dim(x, t.tensor([3, 4])), lambda t, x: x[t.tensor(2)], lambda t, x: x[np.array([0, 2])],
    lambda t, x: x[[0, 2]], lambda t, x: x[[[0, 2], [1, 1]]], lambda t, x: x[[True, False, True]], lambda t, x: x[[]],
    lambda t, x: x[np.int64(1)], lambda t, x: x[t.tensor([1], dtype=t.int32)], lambda t, x: x[range(2)],
    lambda t, x: t.gather(t.tensor(3.0), 0, t.tensor([0, 0])), lambda t,
    x: t.tensor(3.0).index_select(0, t.tensor([0])),
    lambda t, x: t.scatter(x, 0, t.tensor([[1]]), 5.0, reduce="add"), lambda t, x: x.index_select(0, t.tensor(1)),
    lambda t, x: t.gather(x, 1, t.tensor([[1]], dtype=t.int32)), lambda t,
    x: t.tensor(3.0).masked_select(t.tensor(True)),
    lambda t, x: t.tensor(3.0)[None, True], lambda t, x: t.gather(x, 0, t.zeros(0, dtype=t.int64)),
], ids=range(32))  # fmt: skip
def test_by_name(call):
    assert_same(call(tgrad, tgrad.arange(12.0).reshape(3, 4)), call(torch, torch.arange(12.0).reshape(3, 4)))


def test_one_hot_and_embedding():
    for values, n in (([[0, 2], [1, 1]], -1), ([3], 5), ([], 4), (2, 3)):
        got = classes.one_hot(tgrad.tensor(values, dtype=tgrad.int64), n)
        assert_same(got, F.one_hot(torch.tensor(values, dtype=torch.int64), n))
    index, (weight, other, _) = (
        [[0, 2], [2, 4]],
        pair(random("weight").normal(size=(5, 3)), tgrad.float64, "plain", True),
    )
    a, b = classes.embedding(tgrad.tensor(index), weight, -3), F.embedding(torch.tensor(index), other, -3)
    assert_same(a, b)
    for mine, want in zip(tgrad.autograd.grad(a.square().sum(), weight), torch.autograd.grad((b * b).sum(), other),
                          strict=True):  # fmt: skip
        assert_close(mine, want)
    assert (mine[2] == 0).all()


def test_nonzero_of_many_blocks():
    x = random("nonzero").random(200_000) < 0.3
    assert np.array_equal(tgrad.tensor(x).nonzero().reshape(-1).cpu().numpy(), np.nonzero(x)[0])


# --- errors ----------------------------------------------------------------------------------------------------------
@on_cpu
@pytest.mark.parametrize("call", [
    lambda t, x: x[t.tensor([3])], lambda t, x: x[:, t.tensor([-5])], lambda t,
    x: x[t.tensor([0, 1]), t.tensor([0, 1, 2])],
    lambda t, x: x[t.tensor([0.5])], lambda t, x: x[t.tensor([True, False])], lambda t, x: x[0, 0, t.tensor([0])],
    lambda t, x: x["a"], lambda t, x: x[1.5], lambda t, x: t.gather(x, 0, t.tensor([[3]])),
    lambda t, x: t.gather(x, 0, t.tensor([[-1]])), lambda t, x: t.gather(x, 0, t.tensor([0])),
    lambda t, x: x.index_select(0, t.tensor([3])), lambda t, x: x.index_select(0, t.tensor([[1]])),
    lambda t, x: x.scatter(0, t.tensor([[7]]), 1.0), lambda t, x: x.index_add(0, t.tensor([4]), t.ones(1, 4)),
    lambda t, x: x.index_copy(0, t.tensor([4]), t.ones(1, 4)), lambda t, x: x.index_fill(0, t.tensor([4]), 1.0),
    lambda t, x: t.take(x, t.tensor([12])), lambda t, x: x.__setitem__(t.tensor([5]), 1.0),
    lambda t, x: x.__setitem__(t.tensor([1]), t.ones(3)), lambda t, x: x.__setitem__(t.tensor([1]), t.tensor(1)),
    lambda t, x: x.index_add(0, t.tensor([0]), t.ones(1, 4, dtype=t.int64)), lambda t, x: x.masked_fill(x, 1.0),
    lambda t, x: x.masked_fill(x > 1, t.ones(2)), lambda t, x: x[..., ..., t.tensor([0])],
], ids=range(25))  # fmt: skip
def test_errors_are_torchs(call):
    with pytest.raises(Exception) as want:
        call(torch, torch.arange(12.0).reshape(3, 4))
    with pytest.raises(want.type) as got:
        call(tgrad, tgrad.arange(12.0).reshape(3, 4))
    first = str(want.value).splitlines()[0]
    if "out of bounds" in first or "out of range" in first or "mismatch" in first or "index put" in first.lower():
        assert str(got.value) == first


def test_warnings_do_not_leak():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tgrad.arange(3)[tgrad.tensor([True, False, True])].tolist() == [0, 2]


def test_a_slice_filled_twice_holds_the_value_once():
    """The gradient of a value that index_fill writes to one slice under two names counts that slice once."""
    g = random("fill").normal(size=(4, 3))
    grads = []
    for m in (tgrad, torch):
        x, value = m.zeros(4, 3, dtype=m.float64), m.tensor(2.0, dtype=m.float64, requires_grad=True)
        index = m.tensor([1, 1, 3])  # torch's gradient refuses negative ones
        for out in (x.index_fill(0, index, value), x.clone().index_fill_(0, index, value)):
            out.backward(m.tensor(g))
        grads.append(value.grad)
    assert_close(*grads)


def test_an_empty_index_is_of_any_dtype():
    for m in (tgrad, torch):
        x = m.ones(3, requires_grad=True)
        out = x.gather(0, m.empty(2, 0, dtype=m.uint8))
        assert tuple(out.shape) == (2, 0) and out.requires_grad
    x = tgrad.ones(3)
    assert x.scatter(0, tgrad.empty(0, dtype=tgrad.uint8), x).tolist() == [1, 1, 1]


def test_where_as_a_method():
    x, y = tgrad.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0])
    assert_same(x.where(x > 1.5, x * 10), y.where(y > 1.5, y * 10))
    assert_same(x.where(x > 1.5, 0), y.where(y > 1.5, 0))
