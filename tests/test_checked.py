"""Kernels under observation: allocations filled with nan between margins of nan, and small tiles in checked launches.

A kernel that leaves an element of its result out,
or reads one that is not its operand's, gives nan in the first; one that
reads or writes out of range, or whose programs race, is caught in the second.
"""

import numpy as np
import pytest
import torch

import tgrad
from tests.compare import TORCH, assert_close, assert_same, random
from tests.samples import SAMPLES
from tgrad import updates
from tgrad.device import compute
from tgrad.kernels import (
    attention,
    attention_tiles,
    batch_norm_tiles,
    bits,
    creation,
    indexing,
    linear_cross_entropy,
    matmul,
    pointwise,
    reduce,
    row_norm,
    row_norm_sums,
    scan,
    softmax,
    sort,
)
from tgrad.kernels.matmul_tiles import Choice, Tile
from tgrad.op import forget_plans
from tgrad.ops import composed_attention, pointwise as p, views
from tgrad.storage import guarded, ledger

on_cpu = pytest.mark.skipif(compute.type == "cuda", reason="checked launches are the interpreter's")


def observe(sample, case, dtype):
    """Forward and backward of a case, compared with torch."""
    ours, plain, wide = sample.build(case, dtype, requires_grad=sample.differentiable)
    want = sample.ref(*wide, **case.settings)
    got = sample.ours(*ours, **case.settings)
    leaves = [t for t in ours if t.requires_grad]
    grads = wanted = ()
    if leaves:
        g = torch.tensor(random("observed", sample.id).normal(size=want.shape)).to(TORCH[got.dtype]).double()
        grads = tgrad.autograd.grad(got, leaves, tgrad.tensor(g.numpy(), dtype=got.dtype))
        wanted = torch.autograd.grad(want, [t for t in wide if t.requires_grad], g)
    if not want.dtype.is_floating_point:
        return assert_same(got, want)
    assert_close(got, want.detach(), length=case.length, factor=2 * sample.factor, scale=max(1, sample.scale))
    for a, b in zip(grads, wanted, strict=True):
        assert_close(a, b, length=case.length, factor=2 * sample.back_factor, scale=sample.back_scale, what="gradient")
    return None


def some(samples, size=600):
    """All cases but the long ones, which take small tiles long."""
    return [pytest.param(s, c, id=f"{s.id}-{c.id}") for s in samples for c in s.cases if c.length < size]


@pytest.mark.parametrize("sample, case", [c for c in some(SAMPLES, 10_000) if c.values[1].id != "scalar"])
def test_in_guarded_memory(sample, case):
    with guarded():
        observe(sample, case, tgrad.float64)


# --- small tiles in checked launches ---------------------------------------------------------------------------------
class Live:
    """The address ranges of all storages made while it listens."""

    def __init__(self):
        self.spans = {}

    def allocated(self, storage):
        self.spans[storage.id] = (storage.ptr, storage.ptr + storage.nbytes)

    def freed(self, storage):
        self.spans.pop(storage.id, None)


def forget():
    """Nothing that was prepared for other tiles is used again."""
    forget_plans()
    creation.prepare_creation.cache_clear()
    views.fill_launch.cache_clear()
    bits.prepare_bits.cache_clear()
    updates._plans.clear()


@pytest.fixture(scope="module")
def small_tiles():
    """Blocks of a few elements, and reductions in two passes, so that every kernel runs in several programs; accesses
    as on a GPU: whole blocks unmasked, groups, tiles of transposes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pointwise, "tile", lambda n, widest: 16)
        patch.setattr(pointwise, "matrix_tile", lambda m, n: (2, 4))
        patch.setattr(pointwise, "ACROSS", 2)
        for kernels in (pointwise, reduce):
            patch.setattr(kernels, "INTERPRET", False)
        patch.setattr(creation, "tile", lambda n, widest: 16)
        patch.setattr(reduce, "tile", lambda m, n, across: (4, 4))
        patch.setattr(reduce, "chunks", lambda m, n, bm, bn: 2 if n > 2 * bn else 1)
        small = Tile(8, 8, 8, 4, 1, False, 1.0)
        patch.setattr(matmul, "choose", lambda m, n, k, **given: Choice(small, 2 if k > 8 else 1))
        for kernels in (softmax, row_norm):
            patch.setattr(kernels, "tile", lambda m, n, most=0: (2, 4))
        patch.setattr(row_norm_sums, "tile", lambda m, n, most=0: (2, 8))
        patch.setattr(row_norm_sums, "_tile", lambda m, n, columns, elements: (2, 4))
        patch.setattr(row_norm_sums, "parts", lambda m, *given: min(m, 3))
        patch.setattr(batch_norm_tiles, "whole", lambda planes, *given: (8, 2) if planes.k <= 8 else None)
        patch.setattr(batch_norm_tiles, "cut", lambda planes, *given: ((4, 2), 8, -(-planes.k // 8)))
        patch.setattr(attention, "tile", lambda *given: attention_tiles.Tile(4, 2, 4, 1, pairs=2))
        patch.setattr(linear_cross_entropy, "tile", lambda m, n: (2, 4))
        patch.setattr(scan, "tile", lambda m, n: (2, 4))
        patch.setattr(indexing, "tile", lambda n, widest: 16)
        patch.setattr(sort, "tile", lambda n: (16, 4, 2))
        forget()
        yield
    forget()


@pytest.fixture
def checked(small_tiles):
    from tgrad.kernels import interpret

    live = Live()
    with ledger.subscribe(live), interpret.checked(lambda: live.spans.values()):
        yield live


@on_cpu
@pytest.mark.parametrize("sample, case", some(SAMPLES))
def test_checked_with_small_tiles(sample, case, checked):
    observe(sample, case, tgrad.float64)


@on_cpu
@pytest.mark.parametrize("dtype", [tgrad.float32, tgrad.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize("sample", [s for s in SAMPLES if not isinstance(s.op, p.Pointwise)], ids=lambda s: s.id)
def test_checked_in_other_types(sample, dtype, checked):
    ours, _, _ = sample.build(sample.cases[-1], dtype)
    assert sample.ours(*ours, **sample.cases[-1].settings).dtype is not tgrad.float64


@on_cpu
def test_creation_checked(checked):
    tgrad.manual_seed(1)
    small = tgrad.rand(50).tolist(), tgrad.randn(50).tolist(), tgrad.arange(50).tolist(), tgrad.eye(7, 5).tolist()
    assert small[2] == list(range(50)) and sum(map(sum, small[3])) == 5 and all(0 <= u < 1 for u in small[0])
    x = tgrad.ones(50)
    x[3:40:2].mul_(3)
    assert x.sum().item() == 50 + 2 * 19


@on_cpu
@pytest.mark.parametrize(
    "options",
    [{"is_causal": True, "dropout_p": 0.5}, {"attn_mask": [[True], [False], [True], [False], [True]]}],
    ids=["causal, dropout", "dead rows"],
)  # fmt: skip
def test_attention_checked(options, checked):
    """Of grouped heads, and as with one large tile: the sums' order apart, every part is in its place."""
    options = {name: tgrad.tensor(o) if name == "attn_mask" else o for name, o in options.items()}
    draw = lambda *shape: tgrad.tensor(random("attention", shape).standard_normal(shape), requires_grad=True)
    q, k, v = draw(4, 5, 3), draw(2, 7, 3), draw(2, 7, 1)
    got = []
    for function in (tgrad.nn.functional.scaled_dot_product_attention, composed):
        tgrad.manual_seed(2)
        out = function(q, k, v, enable_gqa=True, **options)
        got.append([out, *tgrad.autograd.grad(out, (q, k, v), tgrad.ones(4, 5, 1, dtype=out.dtype))])
    for x, y in zip(*got, strict=True):
        np.testing.assert_allclose(x.detach().numpy(), y.detach().numpy(), rtol=1e-10, atol=1e-12)


def composed(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, enable_gqa=True):
    wide = [composed_attention.repeated(t, 4) for t in (k, v)]
    return composed_attention.composed_attention(q, *wide, attn_mask, dropout_p, is_causal, 3**-0.5)


@on_cpu
def test_draws_and_places_checked(checked):
    tgrad.manual_seed(1)
    assert sorted(tgrad.randperm(50).tolist()) == list(range(50))
    assert all(0 <= k < 7 for k in tgrad.randint(7, (50,)).tolist())
    assert tgrad.multinomial(tgrad.tensor([[0.0, 1.0, 0.0]] * 3), 20, True).eq(1).all()
    assert tgrad.linspace(0, 49, 50).tolist() == list(range(50))
    x = tgrad.arange(60).reshape(5, 12)
    assert (x % 7 == 0).nonzero().shape == (9, 2) and x[x > 50].tolist() == list(range(51, 60))
    x[tgrad.tensor([4, 0]), 3:] = tgrad.tensor([[1], [2]])
    assert x[0, 3:].tolist() == [2] * 9 and x[4, 3:].tolist() == [1] * 9


@on_cpu
@pytest.mark.parametrize("shape", [(5, 16), (7, 13), (3, 20), (33,), (3, 8, 11), (2, 11, 16)], ids=str)
def test_access_patterns(shape, checked, monkeypatch):
    """Every way of `prepare_pointwise` to address operands, in guarded memory too."""
    used = set()

    def noting(kernel, grid, runtime, fixed, constexprs, **options):
        kinds = {"tiles": "BM" in constexprs, "split": constexprs.get("SPLIT")}
        kinds |= {"once": any(constexprs.get("STILL", ()))}
        kinds["groups"] = constexprs.get("GROUP", 1) > 1
        used.update(kind for kind, is_so in kinds.items() if is_so)
        return prepare(kernel, grid, runtime, fixed, constexprs, **options)

    prepare = pointwise.prepare
    monkeypatch.setattr(pointwise, "prepare", noting)
    x = torch.tensor(random("patterns", shape).normal(size=shape))
    y = x.transpose(0, -1).contiguous().transpose(0, -1)
    with guarded():
        forget()

        def ours(t):
            return tgrad.tensor(t.transpose(0, -1).contiguous().numpy()).transpose(0, -1)

        for a in (x, y):
            for b in (x, y, x[0], x[..., :1], x[:1], x.flatten()[:1]):
                assert_same(ours(a) * ours(b) + 1, a * b + 1)
                assert_same(ours(a)[..., 1:] + ours(a)[..., :-1], a[..., 1:] + a[..., :-1])
            assert_same(ours(a).contiguous() * ours(a), a * a)
            assert_same(ours(a)[..., ::2].sin(), a[..., ::2].sin())
            written = tgrad.tensor(a.contiguous().numpy())
            written[..., :-1].add_(ours(a)[..., 1:])
            assert_same(written, torch.cat([a[..., :-1] + a[..., 1:], a[..., -1:]], -1))
    forget()
    wanted = {(5, 16): {"groups", "once", "tiles"}, (7, 13): {"split", "tiles"}, (33,): {"split"}}
    assert used >= wanted.get(shape, set()), used


@on_cpu
@pytest.mark.parametrize("n", [16, 40, 133])
def test_bits_checked(n, checked):
    x = tgrad.tensor(random("bits", n).normal(size=n))
    packed, unpacked = tgrad.zeros(-(-n // 8), dtype=tgrad.uint8), tgrad.empty(n, dtype=tgrad.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bits, "split", lambda n, block: n % 16 != 0)
        bits.prepare_bits.cache_clear()
        bits.prepare_bits("pack", "fp64", n)(packed.data_ptr(), x.data_ptr())
        bits.prepare_bits("unpack", "fp64", n)(unpacked.data_ptr(), packed.data_ptr())
    bits.prepare_bits.cache_clear()
    assert_same(unpacked, torch.tensor(x.numpy() > 0).double())


@on_cpu
def test_the_checks_check(checked):
    """A layout that lies about its memory is caught."""
    x = tgrad.zeros(40)
    x.layout = tgrad.zeros(41).layout
    with pytest.raises(IndexError, match="out of range"):
        x + 1
