"""Random draws: reproducible, of the right distribution; and ranges and factories beside them."""

import math

import numpy as np
import pytest
import torch

import tgrad
from tests.compare import assert_close, assert_same
from tgrad.device import compute
from tgrad.kernels import creation

pytestmark = pytest.mark.anywhere

M0, M1, W0, W1 = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85


def philox(seed, offset):
    """Philox4x32-10 of one counter, in plain Python."""
    c = [offset & 0xFFFFFFFF, 0, 0, 0]
    k = [seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF]
    for _ in range(10):
        a, b = M0 * c[0], M1 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + W0) & 0xFFFFFFFF, (k[1] + W1) & 0xFFFFFFFF]
    return c


@pytest.mark.parametrize("seed", [0, 7, 2**40 + 3])
def test_integers_are_philox(seed):
    g = tgrad.Generator().manual_seed(seed)
    tgrad.randint(10, (3,), generator=g)  # the draw goes on where the last one ended
    got = tgrad.randint(-5, 1000, (6,), generator=g).tolist()
    words = [philox(seed, 3 + i) for i in range(6)]
    assert got == [-5 + ((a >> 1) << 32 | b) % 1005 for a, b, _, _ in words]


DRAWS = {
    "randint": lambda g: tgrad.randint(0, 100, (50,), generator=g),
    "randperm": lambda g: tgrad.randperm(50, generator=g),
    "randint_like": lambda g: tgrad.randint_like(tgrad.zeros(50), 3, 9, generator=g),
    "normal": lambda g: tgrad.normal(1.0, 2.0, (50,), generator=g),
    "normal-tensors": lambda g: tgrad.normal(tgrad.zeros(50), tgrad.ones(1), generator=g),
    "bernoulli": lambda g: tgrad.bernoulli(tgrad.full((50,), 0.3), generator=g),
    "bernoulli_": lambda g: tgrad.zeros(50).bernoulli_(0.3, generator=g),
    "multinomial": lambda g: tgrad.multinomial(tgrad.ones(50), 20, generator=g),
    "replacement": lambda g: tgrad.multinomial(tgrad.ones(50), 20, True, generator=g),
    "exponential_": lambda g: tgrad.zeros(50).exponential_(generator=g),
    "random_": lambda g: tgrad.zeros(50).random_(generator=g),
    "rand": lambda g: tgrad.rand(50, generator=g), "randn": lambda g: tgrad.randn(50, generator=g),
}  # fmt: skip


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_seed_says_it_all(draw):
    first = draw(tgrad.Generator().manual_seed(3)).tolist()
    assert draw(tgrad.Generator().manual_seed(3)).tolist() == first
    assert draw(tgrad.Generator().manual_seed(4)).tolist() != first
    g = tgrad.Generator().manual_seed(3)
    assert draw(g).tolist() == first and draw(g).tolist() != first
    tgrad.manual_seed(3)
    assert draw(None).tolist() == first
    state = tgrad.get_rng_state()
    again = draw(None).tolist()
    tgrad.set_rng_state(state)
    assert draw(None).tolist() == again


def near(share, p, n):
    """Within five standard deviations of a share of n draws."""
    return abs(share - p) <= 5 * math.sqrt(max(p * (1 - p), 1e-9) / n)


def test_integers_are_uniform():
    tgrad.manual_seed(1)
    n = 70_000
    counts = np.bincount(tgrad.randint(7, (n,)).cpu().numpy(), minlength=7)
    assert len(counts) == 7 and all(near(c / n, 1 / 7, n) for c in counts)
    for kind, low, high in ((tgrad.uint8, 0, 256), (tgrad.float16, -3, 4), (tgrad.int64, -(2**62), 2**62)):
        x = tgrad.randint(low, high, (1000,), dtype=kind)
        assert x.dtype is kind and low <= x.min().item() and x.max().item() < high
    assert set(tgrad.zeros(200, dtype=tgrad.bool).random_().tolist()) == {True, False}
    assert tgrad.zeros(200, dtype=tgrad.int64).random_().max().item() > 2**60
    assert tgrad.zeros(200).random_(5).max().item() == 4 and tgrad.zeros(200).random_(5, 7).min().item() == 5


def test_permutations():
    tgrad.manual_seed(2)
    for n in (0, 1, 2, 100, 5000):
        assert np.array_equal(np.sort(tgrad.randperm(n).cpu().numpy()), np.arange(n))
    firsts = np.bincount([tgrad.randperm(4)[0].item() for _ in range(400)], minlength=4)
    assert all(near(c / 400, 0.25, 400) for c in firsts)
    assert tgrad.randperm(5, dtype=tgrad.float32).dtype is tgrad.float32


def test_normal_has_its_moments():
    tgrad.manual_seed(3)
    n = 100_000
    for x in (
        tgrad.normal(2.0, 3.0, (n,)),
        tgrad.normal(tgrad.full((n,), 2.0), 3.0),
        tgrad.normal(2.0, tgrad.full((n,), 3.0)),
    ):
        values = x.cpu().numpy().astype(np.float64)
        assert abs(values.mean() - 2) < 5 * 3 / math.sqrt(n) and abs(values.std() - 3) < 0.05
    mean = tgrad.zeros(4, 1, dtype=tgrad.float64, requires_grad=True)
    assert tgrad.normal(mean, tgrad.ones(3)).shape == (4, 3) and tgrad.normal(mean, 1.0).dtype is tgrad.float64
    with pytest.raises(RuntimeError, match="std >= 0"):
        tgrad.normal(0.0, -1.0, (2,))


def test_coins_and_waits():
    tgrad.manual_seed(4)
    n = 50_000
    x = tgrad.bernoulli(tgrad.tensor([[0.0], [0.3], [1.0]]).expand(3, n))
    shares = x.mean(1).tolist()
    assert shares[0] == 0 and shares[2] == 1 and near(shares[1], 0.3, n)
    assert near(tgrad.zeros(n, dtype=tgrad.int32).bernoulli_(0.7).float().mean().item(), 0.7, n)
    assert tgrad.zeros(2, 3).bernoulli_(tgrad.tensor([0.0, 1.0, 0.0])).tolist() == [[0.0, 1.0, 0.0]] * 2
    waits = tgrad.zeros(n, dtype=tgrad.float64).exponential_(2.0)
    assert waits.min().item() > 0 and abs(waits.mean().item() - 0.5) < 5 * 0.5 / math.sqrt(n)
    assert near((waits > 0.5).float().mean().item(), math.exp(-1), n)
    with pytest.raises(RuntimeError, match="expects p to be in"):
        tgrad.zeros(2).bernoulli_(1.5)


def test_categories_by_weight():
    tgrad.manual_seed(5)
    weights = tgrad.tensor([[0.0, 1.0, 3.0, 0.0], [5.0, 0.0, 0.0, 5.0]])
    n = 20_000
    drawn = tgrad.multinomial(weights, n, replacement=True).cpu().numpy()
    assert drawn.shape == (2, n)
    for row, p in zip(drawn, ([0, 0.25, 0.75, 0], [0.5, 0, 0, 0.5]), strict=True):
        counts = np.bincount(row, minlength=4)
        assert all(c == 0 if q == 0 else near(c / n, q, n) for c, q in zip(counts, p, strict=True))
    firsts = tgrad.multinomial(tgrad.tensor([[1.0, 3.0, 0.0]]).expand(n, 3), 2).cpu().numpy()
    assert set(map(tuple, firsts.tolist())) == {(0, 1), (1, 0)} and near((firsts[:, 0] == 1).mean(), 0.75, n)
    wide = tgrad.multinomial(tgrad.ones(300), 3000, True)
    assert wide.shape == (3000,) and wide.max().item() > 250 and wide.min().item() < 50
    assert sorted(tgrad.multinomial(tgrad.ones(300), 300).tolist()) == list(range(300))


@pytest.mark.parametrize("call", [
    lambda t: t.randint(5, 5, (2,)), lambda t: t.multinomial(t.ones(3), 4), lambda t: t.multinomial(t.ones(3), 0),
    lambda t: t.multinomial(t.ones(1, 1, 3), 1), lambda t: t.multinomial(t.tensor([-1.0, 2.0]), 1),
    lambda t: t.multinomial(t.zeros(3), 1), lambda t: t.multinomial(t.ones(3, dtype=t.int64), 1),
    lambda t: t.randperm(-1),
    lambda t: t.zeros(3).exponential_(0.0), lambda t: t.linspace(0, 1, -1),
    lambda t: t.empty_strided((2,), (1, 1)), lambda t: t.zeros(3, requires_grad=True).random_(),
], ids=range(12))  # fmt: skip
def test_errors_are_of_torchs_type(call):
    with pytest.raises((RuntimeError, ValueError, TypeError)) as want:
        call(torch)
    if compute.type == "cuda" and "probabilit" in str(want.value):
        pytest.skip("the CPU's check: on a GPU it would wait for the weights")
    with pytest.raises(want.type):
        call(tgrad)


# --- ranges and factories --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16", "int64", "int32"])
def test_linspace(dtype):
    for start, end, steps in ((0, 1, 5), (-3, 7, 11), (5, -5, 4), (2, 9, 1), (0, 1, 0), (1, 100, 1000)):
        kinds = {"dtype": getattr(tgrad, dtype)}, {"dtype": getattr(torch, dtype)}
        got, want = tgrad.linspace(start, end, steps, **kinds[0]), torch.linspace(start, end, steps, **kinds[1])
        if dtype.startswith("float") or dtype == "bfloat16":
            assert_close(
                got, torch.linspace(start, end, steps, dtype=torch.float64), scale=100 if dtype[0] == "b" else 1
            )
        else:
            assert np.abs(got.cpu().numpy() - want.numpy()).max(initial=0) <= (1 if steps > 100 else 0)
        assert tuple(got.shape) == tuple(want.shape)
    assert_close(
        tgrad.logspace(-2, 3, 7, dtype=tgrad.float64), torch.logspace(-2, 3, 7, dtype=torch.float64), factor=40
    )
    assert_close(tgrad.logspace(0, 4, 5, 2), torch.logspace(0, 4, 5, 2, dtype=torch.float64))


def test_like_and_new():
    x, y = tgrad.zeros(2, 3, dtype=tgrad.float64), torch.zeros(2, 3, dtype=torch.float64)
    assert_same(x.new_zeros(2, 2), y.new_zeros(2, 2))
    assert_same(x.new_ones((2, 2), dtype=tgrad.int64), y.new_ones((2, 2), dtype=torch.int64))
    assert_same(x.new_full((3,), 2.5), y.new_full((3,), 2.5))
    assert_same(x.new_tensor([1, 2]), y.new_tensor([1, 2]))
    assert x.new_empty(4, 5).shape == (4, 5) and x.new_zeros(2, requires_grad=True).requires_grad
    z = tgrad.empty_strided((2, 3), (1, 2))
    assert z.stride() == (1, 2) and z.shape == (2, 3)
    for offset in (-2, 0, 1, 5):
        assert_same(tgrad.tril_indices(3, 4, offset), torch.tril_indices(3, 4, offset))
        assert_same(tgrad.triu_indices(4, 3, offset), torch.triu_indices(4, 3, offset))


def test_kernels_are_known():
    assert {"integers", "exponential", "linspace"} <= set(creation.KERNELS)
