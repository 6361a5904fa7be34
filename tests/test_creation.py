"""Factories, numpy and lists in and out, and random numbers."""

import math

import numpy as np
import pytest
import torch

import tgrad
from tests.compare import FLOATS, INTEGERS, TORCH, assert_same, random, values
from tgrad.ops.creation import dropout

anywhere = pytest.mark.anywhere
DTYPES = [pytest.param(d, id=d.name) for d in FLOATS + INTEGERS]


# --- factories -------------------------------------------------------------------------------------------------------
@anywhere
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [
    lambda m, d: m.zeros(2, 3, dtype=d), lambda m, d: m.ones((3,), dtype=d), lambda m, d: m.full((2, 2), 3, dtype=d),
    lambda m, d: m.eye(3, 5, dtype=d), lambda m, d: m.eye(4, dtype=d), lambda m, d: m.zeros((), dtype=d), lambda m,
    d: m.ones(0, 3, dtype=d),
    lambda m, d: m.zeros_like(m.empty(2, 3), dtype=d), lambda m, d: m.full_like(m.zeros(2, dtype=d), 1),
    lambda m, d: m.ones_like(m.zeros(3, dtype=d)), lambda m, d: m.tensor([[0, 1], [2, 3]], dtype=d),
], ids=["zeros", "ones", "full", "eye", "square", "scalar", "empty", "zeros_like", "full_like", "ones_like",
"tensor"])  # fmt: skip
def test_factories(make, dtype):
    ours, theirs = make(tgrad, dtype), make(torch, TORCH[dtype])
    assert_same(ours, theirs)
    assert ours.stride() == theirs.stride()


RANGES = [
    (5,), (0,), (2, 7), (2, 9, 3), (7, 2, -2), (0, 1, 0.1), (1.0,), (0.5, 3), (5, 0, -1), (0, 10, 2.5), (-3, 4),
    (1, 2, 1 / 3), (3, 3),
    (0.0, 1e3, 7.3), (2**33, 2**33 + 3),
]  # fmt: skip


@anywhere
@pytest.mark.parametrize("args", RANGES, ids=str)
def test_arange(args):
    """Each element is start + i * step, rounded once more at most: torch's vectorised ranges are off by an ulp."""
    got, want = tgrad.arange(*args), torch.arange(*args)
    start, step = (0, 1) if len(args) == 1 else (args[0], args[2] if len(args) == 3 else 1)
    exact = torch.from_numpy(start + np.arange(len(want)) * step)
    assert_same(got, exact.to(want.dtype))
    assert_same(tgrad.arange(*args, dtype=tgrad.float64), exact.double())
    if all(isinstance(a, int) for a in args):
        assert_same(tgrad.arange(*args, dtype=tgrad.int32), want.to(torch.int32))


@anywhere
def test_likes_keep_strides():
    for make in (lambda m: m.zeros(3, 5).t(), lambda m: m.zeros(2, 3, 5).permute(1, 2, 0),
        lambda m: m.zeros(6, 5)[::2]):
        for like in ("zeros_like", "ones_like", "empty_like", "rand_like", "randn_like"):
            assert getattr(tgrad, like)(make(tgrad)).stride() == getattr(torch, like)(make(torch)).stride(), like


@anywhere
@pytest.mark.parametrize("data", [
    1, 1.5, True, [1, 2], [1.0, 2], [[1, 2], [3, 4]], [], [[]], [True, False], (1, (2.5)), [[True], [False]],
    float("nan"), 2**40,
    [1, 2.5, True], np.float64(1.5), np.int32(3), np.arange(3), np.ones((2, 2), np.float32), np.array([True]),
    np.float32(1),
    np.arange(6).reshape(2, 3).T, np.array([1, 2], dtype=">i4"), np.array(5, np.uint8),
], ids=repr)  # fmt: skip
def test_tensor_from_data(data):
    with_torch = torch.tensor(data.astype(data.dtype.newbyteorder("="))) if isinstance(data,
        np.ndarray) else torch.tensor(data)
    assert_same(tgrad.tensor(data), with_torch)


@anywhere
def test_tensor_from_tensors():
    x = tgrad.tensor([1.0, 2.0], requires_grad=True)
    with pytest.warns(UserWarning, match="To copy construct"):
        y = tgrad.tensor(x)
    assert y.tolist() == [1.0, 2.0] and y.data_ptr() != x.data_ptr() and not y.requires_grad
    assert tgrad.as_tensor(x) is x
    assert tgrad.tensor([tgrad.tensor(1), tgrad.tensor(2)]).tolist() == [1, 2]


@pytest.mark.parametrize("call, error", [
    (lambda: tgrad.tensor("a"), TypeError), (lambda: tgrad.tensor([1, "a"]), TypeError),
    (lambda: tgrad.tensor(None), TypeError),
    (lambda: tgrad.tensor([[1], [1, 2]]), ValueError), (lambda: tgrad.tensor({}), TypeError),
    (lambda: tgrad.zeros(-1), RuntimeError),
    (lambda: tgrad.zeros("a"), TypeError), (lambda: tgrad.zeros(1.5), TypeError),
    (lambda: tgrad.arange(0, 1, 0), RuntimeError),
    (lambda: tgrad.arange(0, 1, -1), RuntimeError), (lambda: tgrad.arange(math.inf), RuntimeError),
    (lambda: tgrad.tensor(np.array([1 + 1j])), TypeError), (lambda: tgrad.from_numpy([1]), TypeError),
    (lambda: tgrad.zeros(2, dtype=float), TypeError),
    (lambda: tgrad.rand(2, dtype=tgrad.int64), RuntimeError),
    (lambda: tgrad.zeros(2, dtype=tgrad.int64, requires_grad=True), RuntimeError),
    (lambda: tgrad.tensor(np.array(["a"])), TypeError), (lambda: tgrad.zeros(2, device="tpu"), RuntimeError),
    (lambda: tgrad.zeros(2, device=3), TypeError),
], ids=range(19))  # fmt: skip
def test_bad_data_is_refused_in_one_line(call, error):
    with pytest.raises(error) as raised:
        call()
    assert str(raised.value) and "\n" not in str(raised.value)


# --- numpy in and out ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [pytest.param(d, id=d.name) for d in FLOATS + INTEGERS if d is not tgrad.bfloat16])
def test_numpy_shares_memory_both_ways(dtype):
    array = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype.numpy)
    t = tgrad.from_numpy(array)
    assert t.dtype is dtype and t.tolist() == array.tolist()
    array[0, 0] = 1
    assert t[0, 0].item() == 1
    t[0, 1] = 0
    assert array[0, 1] == 0
    back = t.cpu().t().numpy()
    assert back.strides == array.T.strides and np.shares_memory(back, array)


def test_numpy_copies_what_it_cannot_share():
    frozen = np.zeros(3)
    frozen.flags.writeable = False
    for array in (frozen, np.arange(10.0)[::2], np.arange(3.0).astype(">f8"), np.zeros((0, 3))):
        assert tgrad.from_numpy(array).tolist() == array.tolist()


@anywhere
def test_to_python():
    x = tgrad.tensor([[1.5, 2.0], [3.0, 4.0]])
    assert x.tolist() == [[1.5, 2.0], [3.0, 4.0]] and x[0,
        0].item() == 1.5 and float(x[1, 1]) == 4.0 and int(x[1, 0]) == 3
    assert bool(x[0, 0]) and not bool(tgrad.tensor(0)) and tgrad.tensor(True).item() is True
    assert f"{x[0, 0]:.3f}" == "1.500"
    assert type(tgrad.tensor(3).item()) is int and [10, 20, 30][tgrad.tensor(2)] == 30
    assert tgrad.tensor(1.5, dtype=tgrad.bfloat16).item() == 1.5
    assert np.asarray(x.cpu()).tolist() == x.tolist() and np.asarray(x.cpu(), dtype=np.float64).dtype == np.float64
    for bad in (lambda: x.item(), lambda: bool(x), lambda: int(x), lambda: bool(tgrad.zeros(0))):
        with pytest.raises(RuntimeError):
            bad()
    with pytest.raises(TypeError):
        [1][tgrad.tensor(0.0)]


def test_numpy_refusals():
    x = tgrad.tensor([1.0], requires_grad=True, device="cpu")
    with pytest.raises(RuntimeError,
        match=r"Can't call numpy\(\) on Tensor that requires grad. Use tensor.detach\(\).numpy"):
        x.numpy()
    with tgrad.no_grad():
        assert x.numpy().tolist() == [1.0]
    with pytest.raises(TypeError, match="BFloat16"):
        tgrad.zeros(2, dtype=tgrad.bfloat16, device="cpu").numpy()


# --- random ----------------------------------------------------------------------------------------------------------
def philox(seed, counters):
    """The first and the second 32 bits of Philox4x32-10 for each counter: Salmon et al., SC 2011, in numpy."""
    c = [counters & 0xFFFFFFFF, np.zeros_like(counters), np.zeros_like(counters), np.zeros_like(counters)]
    c = [x.astype(np.uint64) for x in c]
    key = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF)]
    mask, low = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(b >> low) ^ c[1] ^ key[0], b & mask, (a >> low) ^ c[3] ^ key[1], a & mask]
        key = [(key[0] + np.uint64(0x9E3779B9)) & mask, (key[1] + np.uint64(0xBB67AE85)) & mask]
    return c[0], c[1]


def test_the_reference_is_philox():
    """Known answers of the authors' kat_vectors: key and counter 0."""
    first, second = philox(0, np.array([0]))
    assert (int(first[0]), int(second[0])) == (0x6627E8D5, 0xE169C58D)


@anywhere
@pytest.mark.parametrize("seed", [0, 1, 1234, 2**32 + 5, 2**63 + 11])
def test_draws_are_philox_of_seed_and_position(seed):
    tgrad.manual_seed(seed)
    first, second = tgrad.rand(7), tgrad.rand(5, dtype=tgrad.float64)
    bits, _ = philox(seed, np.arange(12))
    want = (bits >> np.uint64(8)).astype(np.float64) * 2.0**-24
    assert [*first.tolist(), *second.tolist()] == want.tolist()
    a, b = philox(seed, 12 + np.arange(6))
    u, v = 1 - (a >> np.uint64(8)) * 2.0**-24, (b >> np.uint64(8)) * 2.0**-24
    normal = np.sqrt(-2 * np.log(u)) * np.cos(2 * np.pi * v)
    np.testing.assert_allclose(values(tgrad.randn(6)), normal, rtol=1e-5, atol=1e-6)


@anywhere
def test_the_same_seed_gives_the_same_draw():
    def draw():
        tgrad.manual_seed(3)
        return [t.tolist() for t in (tgrad.rand(3), tgrad.randn(2, 2), tgrad.empty(4).normal_(),
            tgrad.empty(4).uniform_(-1, 1), tgrad.rand(2))]

    first, second = draw(), draw()
    assert first == second and first[0][:2] != first[4]
    assert tgrad.initial_seed() == 3
    generator = tgrad.Generator().manual_seed(3)
    assert tgrad.rand(3, generator=generator).tolist() == first[0]
    assert tgrad.rand(3, generator=generator).tolist() != first[0]


@anywhere
@pytest.mark.parametrize("dtype", [pytest.param(d, id=d.name) for d in FLOATS])
def test_statistics_of_draws(dtype):
    tgrad.manual_seed(0)
    n = 40_000
    u, z = (values(t).astype(np.float64) for t in (tgrad.rand(n, dtype=dtype), tgrad.randn(n, dtype=dtype)))
    assert u.min() >= 0 and u.max() <= (1 if dtype in (tgrad.float16, tgrad.bfloat16) else 1 - 2**-24)
    assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.005
    assert abs(z.mean()) < 0.03 and abs(z.std() - 1) < 0.02
    assert abs((z**3).mean()) < 0.1 and abs((z**4).mean() - 3) < 0.25
    counts, _ = np.histogram(u, 20, (0, 1 + 1e-9))
    chi_squared = ((counts - n / 20) ** 2 / (n / 20)).sum()  # of 19 degrees of freedom
    assert chi_squared < (100 if dtype is tgrad.bfloat16 else 45)  # bfloat16's values are not the bins'
    assert abs(np.corrcoef(z[1:], z[:-1])[0, 1]) < 0.02 and 3 < np.abs(z).max() < 6.5


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seeds_of_more_than_64_bits_are_refused(seed):
    with pytest.raises(RuntimeError, match="64 bits"):
        tgrad.manual_seed(seed)


@anywhere
@pytest.mark.parametrize("p", [0.0, 0.25, 0.5, 1.0])
def test_dropout(p):
    tgrad.manual_seed(5)
    x = tgrad.tensor(random("dropout").normal(size=10_000) + 3, requires_grad=True)
    y = dropout(x, p)
    kept = values(y) != 0
    assert abs(kept.mean() - (1 - p)) < 0.02
    want = values(x) * kept * (0 if p == 1 else 1 / (1 - p))
    np.testing.assert_allclose(values(y), want, rtol=1e-7)
    g = tgrad.tensor(random("g").normal(size=10_000))
    (dx,) = tgrad.autograd.grad(y, x, g)
    assert np.array_equal(values(dx) != 0, kept & (values(g) != 0))  # the mask is drawn again, the same
    np.testing.assert_allclose(values(dx), values(g) * kept * (0 if p == 1 else 1 / (1 - p)), rtol=1e-7)
    tgrad.manual_seed(5)
    assert dropout(x, p).tolist() == y.tolist()


@anywhere
@pytest.mark.parametrize("dtype", INTEGERS[:2], ids=str)
@pytest.mark.parametrize("numbers", [(0.1, -7.9, -4.0), (0.0, -8.000001, -4.0), (-0.9, 2.1, 2.0), (0.5, 7.5, 2)])
def test_integer_ranges_of_floats(numbers, dtype):
    assert_same(tgrad.arange(*numbers, dtype=dtype), torch.arange(*numbers, dtype=TORCH[dtype]))


@anywhere
def test_integer_ranges_refuse_a_step_that_vanishes():
    with pytest.raises(RuntimeError, match="step is 0 as int64"):
        tgrad.arange(0, 3.0, 0.5, dtype=tgrad.int64)


@anywhere
@pytest.mark.parametrize("ends", [(0, 1.2), (4.3, 1.2), (0, 3)])
def test_integer_logspace(ends):
    assert_same(tgrad.logspace(*ends, 4, dtype=tgrad.int64), torch.logspace(*ends, 4, dtype=torch.int64))
