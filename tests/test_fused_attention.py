"""Attention by the kernels that store no map: against torch, against the composition, and what it keeps."""

import numpy as np
import pytest
import torch

import tgrad as T
import tgrad.nn.functional as F
from tests.compare import EPS, random
from tests.twins import agree, host, leaves, same
from tgrad import dispatch, nn
from tgrad.autograd import gradgradcheck
from tgrad.autograd.graph import saved
from tgrad.kernels import attention as kernels
from tgrad.kernels.attention_tiles import Tile
from tgrad.op import forget_plans
from tgrad.ops import fused_attention as fused
from tgrad.ops.composed_attention import composed_attention
from tgrad.storage import ledger

G = torch.nn.functional
pytestmark = pytest.mark.anywhere


def draw(*shape, key=0):
    return random("fused attention", shape, key).standard_normal(shape)


def heads(*shapes):
    """Pairs of leaves of these shapes."""
    return [leaves(draw(*shape, key=i)) for i, shape in enumerate(shapes)]


@pytest.fixture(params=["whole", (16, 8, 1), (4, 16, 4)], ids=str)
def tiles(request, monkeypatch):
    """The tile as it is, and small ones, of which a problem takes several in each direction."""
    if request.param != "whole":
        bl, bs, pairs = request.param
        parts = pairs == 1  # and so read as wide heads of float32 are
        monkeypatch.setattr(kernels, "tile", lambda *_: Tile(bl, bs, 4, 1, not parts, not parts, pairs))
    forget_plans()
    yield
    forget_plans()


def is_fused(t):
    return t.node.name() == "ScaledDotProductAttentionBackward0"


# Shapes of query, key and value, what else is given, and the mask.
CASES = {
    "plain": ([(2, 3, 19, 6), (2, 3, 21, 6), (2, 3, 21, 7)], {}, None),
    "matrices": ([(5, 3), (4, 3), (4, 2)], {}, None),
    "one of each": ([(1, 1, 1, 1)] * 3, {}, None),
    "one key": ([(2, 7, 16), (2, 1, 16), (2, 1, 5)], {"scale": 0.7}, None),
    "wide": ([(2, 9, 65), (2, 18, 65), (2, 18, 128)], {"scale": -1.5}, None),
    "causal, more keys": ([(3, 2, 18, 4), (3, 2, 37, 4), (3, 2, 37, 4)], {"is_causal": True}, None),
    "causal, more queries": ([(3, 2, 37, 4), (3, 2, 18, 4), (3, 2, 18, 3)], {"is_causal": True}, None),
    "causal, square": ([(2, 33, 3)] * 3, {"is_causal": True}, None),
    "numbers": ([(2, 3, 19, 4), (2, 3, 21, 4), (2, 3, 21, 4)], {}, draw(19, 21)),
    "numbers of heads": ([(2, 3, 9, 4), (2, 3, 5, 4), (2, 3, 5, 4)], {}, draw(3, 1, 5)),
    "bools": ([(2, 3, 19, 4), (2, 3, 21, 4), (2, 3, 21, 4)], {}, draw(2, 1, 19, 21) > 0.3),
    "bools of keys": ([(2, 3, 19, 4), (2, 3, 21, 4), (2, 3, 21, 4)], {}, np.arange(42).reshape(2, 1, 1, 21) % 3 > 0),
    "dead rows": ([(2, 3, 19, 4), (2, 3, 21, 4), (2, 3, 21, 4)], {}, np.arange(399).reshape(19, 21) < 100),
    "dead by numbers": ([(1, 9, 4)] * 3, {}, np.where(np.arange(9) < 3, -np.inf, 0.5)[:, None]),
    "broadcast": ([(4, 1, 5, 3), (1, 2, 6, 3), (2, 6, 3)], {}, None),
    "grouped": ([(2, 6, 19, 4), (2, 2, 21, 4), (2, 2, 21, 5)], {"enable_gqa": True}, draw(6, 19, 21)),
    "grouped, causal": ([(6, 9, 4), (1, 9, 4), (1, 9, 4)], {"enable_gqa": True, "is_causal": True}, None),
    "grouped by one": ([(2, 2, 5, 4)] * 3, {"enable_gqa": True}, None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_as_torch(name, tiles):
    shapes, options, mask = CASES[name]
    ours, theirs = (None, None) if mask is None else (T.tensor(mask), torch.tensor(mask))
    a, _ = agree(lambda *x: F.scaled_dot_product_attention(*x, ours, **options),
                 lambda *y: G.scaled_dot_product_attention(*y, theirs, **options), heads(*shapes))  # fmt: skip
    assert is_fused(a)


@pytest.mark.parametrize(
    "shapes",
    [[(2, 3, 0, 4), (2, 3, 5, 4), (2, 3, 5, 6)], [(2, 3, 4, 4), (2, 3, 0, 4), (2, 3, 0, 6)],
     [(0, 3, 4, 4), (0, 3, 5, 4), (0, 3, 5, 6)], [(2, 4, 4), (2, 5, 4), (2, 5, 0)], [(2, 4, 0), (2, 5, 0), (2, 5, 3)]],
    ids=["no queries", "no keys", "no batch", "no values", "no width"],
)  # fmt: skip
def test_empty(shapes):
    """Nothing to attend to gives zeros; heads of no width attend to all alike."""
    (q, q2), (k, k2), (v, v2) = heads(*shapes)
    out = F.scaled_dot_product_attention(q, k, v, T.ones(shapes[0][-2], shapes[1][-2], dtype=T.bool))
    want = (q2 @ k2.mT).softmax(-1) @ v2
    same(out, want)
    out.backward(T.ones(*out.shape, dtype=T.float64)), want.backward(torch.ones_like(want))
    for x, y in ((q, q2), (k, k2), (v, v2)):
        same(x.grad, torch.zeros_like(y) if y.grad is None else y.grad)


def test_views_of_one_projection_and_a_result_that_is_joined_without_a_copy(tiles):
    """As nn.MultiheadAttention has them, with the batch first and second."""
    for order, back in (((0, 2, 1, 3), (0, 2, 1, 3)), ((1, 2, 0, 3), (2, 0, 1, 3))):
        x, y = leaves(draw(5, 6, 3 * 8))
        split = lambda t, order=order: [p.reshape(5, 6, 2, 4).permute(*order) for p in t.split(8, -1)]
        out, want = F.scaled_dot_product_attention(*split(x)), G.scaled_dot_product_attention(*split(y))
        same(out, want)
        joined = out.permute(*back).reshape(5, 6, 8)
        assert joined.storage is out.storage
        g = draw(5, 6, 8, key=1)
        joined.backward(T.tensor(g)), want.permute(*back).reshape(5, 6, 8).backward(torch.tensor(g))
        same(x.grad, y.grad)
    q = T.ones(2, 3, 5, 4)
    assert F.scaled_dot_product_attention(q, q, q).is_contiguous()


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [T.float64, T.float16], ids=str)
def test_some_gradients_alone(wanted, dtype):
    """The bits of each are those that come with the others."""
    arrays = [draw(2, 5, 4, key=i) for i in range(3)]
    every = [T.tensor(a, dtype=dtype, requires_grad=True) for a in arrays]
    some = [T.tensor(a, dtype=dtype, requires_grad=bool(w)) for a, w in zip(arrays, wanted)]
    g = T.tensor(draw(2, 5, 4, key=9), dtype=dtype)
    for x in (every, some):
        F.scaled_dot_product_attention(*x, is_causal=True).backward(g)
    for x, y, w in zip(every, some, wanted):
        assert y.grad is None if not w else np.array_equal(host(x.grad), host(y.grad))


def composed(q, k, v, mask=None, dropout_p=0.0, is_causal=False):
    return composed_attention(q, k, v, mask, dropout_p, is_causal, q.shape[-1] ** -0.5)


@pytest.mark.parametrize("p, causal", [(0.3, False), (0.3, True), (1.0, False)])
def test_dropout_drops_what_the_composition_drops(p, causal, tiles):
    results = []
    for function in (F.scaled_dot_product_attention, composed):
        T.manual_seed(5)
        T.rand(3)
        x = [a for a, _ in heads((2, 3, 19, 4), (2, 3, 21, 4), (2, 3, 21, 5))]
        out = function(*x, dropout_p=p, is_causal=causal)
        out.backward(T.tensor(draw(2, 3, 19, 5, key=7)))
        results.append([out, *(t.grad for t in x), T.rand(3, dtype=T.float64)])
    for got, want in zip(*results):
        np.testing.assert_allclose(host(got), host(want), rtol=1e-10, atol=1e-12)
    assert bool((results[0][0] == 0).all()) == (p == 1.0)


def test_grouped_heads_with_dropout():
    """As if the keys were repeated."""
    results = []
    for grouped in (True, False):
        T.manual_seed(5)
        q, k, v = (a for a, _ in heads((2, 4, 7, 4), (2, 2, 9, 4), (2, 2, 9, 4)))
        wide = (k, v) if grouped else [T.repeat_interleave(t, 2, 1) for t in (k, v)]
        out = F.scaled_dot_product_attention(q, *wide, dropout_p=0.4, enable_gqa=grouped)
        out.backward(T.tensor(draw(2, 4, 7, 4, key=7)))
        results.append([out, q.grad, k.grad, v.grad])
    for got, want in zip(*results):
        np.testing.assert_allclose(host(got), host(want), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [{"enable_gqa": True, "dropout_p": 0.3, "is_causal": True}, {"attn_mask": [[True, True], [False, False]]}],
    ids=["grouped, dropout, causal", "dead row"],
)  # fmt: skip
def test_second_derivatives(options):
    options = {n: T.tensor(o) if n == "attn_mask" else o for n, o in options.items()}
    x = [T.tensor(draw(h, 2, 1, key=i), requires_grad=True) for i, h in enumerate((2, 1, 1))]

    def f(*x):
        T.manual_seed(4)
        return F.scaled_dot_product_attention(*x, **options)

    assert is_fused(f(*x)) and bool((f(*x) != 0).any())
    assert gradgradcheck(f, x)


@pytest.mark.parametrize("dtype", [T.float16, T.bfloat16, T.float32], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_other_dtypes(dtype, causal, tiles):
    """With scores of tens, where dp - delta cancels: as exact as inputs and results."""
    x = [T.tensor(3 * draw(2, 3, n, e, key=i), dtype=dtype, requires_grad=True)
         for i, (n, e) in enumerate(((19, 8), (21, 8), (21, 5)))]  # fmt: skip
    y = [torch.tensor(host(t.double()), requires_grad=True) for t in x]
    g = T.tensor(draw(2, 3, 19, 5, key=9), dtype=dtype)
    out, want = (f(*a, is_causal=causal) for f, a in ((F.scaled_dot_product_attention, x),
                                                       (G.scaled_dot_product_attention, y)))  # fmt: skip
    out.backward(g), want.backward(torch.tensor(host(g.double())))
    few = 20 if dtype is T.float32 else 2  # of float32, the sums' own rounding
    for a, b in ((out, want), *((s.grad, t.grad) for s, t in zip(x, y))):
        error = np.abs(host(a.double()) - b.detach().numpy())
        assert a.dtype is dtype and error.max() <= few * EPS[dtype] * np.abs(b.detach().numpy()).max()


@pytest.mark.parametrize("where", ["query", "key", "value", "mask"])
@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_go_where_they_go_in_the_composition(where, special):
    arrays = {"query": draw(2, 5, 4), "key": draw(2, 6, 4, key=1), "value": draw(2, 6, 4, key=2), "mask": draw(5, 6)}
    arrays[where].flat[7] = special
    q, k, v, mask = (T.tensor(a) for a in arrays.values())
    np.testing.assert_allclose(
        host(F.scaled_dot_product_attention(q, k, v, mask)), host(composed(q, k, v, mask)), rtol=1e-10, atol=1e-12
    )


def test_what_the_kernels_do_not_do_is_composed(monkeypatch):
    (q, q2), (k, k2), (v, v2), (m, m2) = heads((2, 3, 4), (2, 5, 4), (2, 5, 4), (3, 5))
    out, want = F.scaled_dot_product_attention(q, k, v, m), G.scaled_dot_product_attention(q2, k2, v2, m2)
    same(out, want)
    out.square().sum().backward(), want.square().sum().backward()
    same(m.grad, m2.grad)
    assert not is_fused(out) and is_fused(F.scaled_dot_product_attention(q, k, v, m.detach()))
    monkeypatch.setattr(fused, "fits", lambda *_: False)  # a head that is too wide
    fused._serves.cache_clear()
    other = F.scaled_dot_product_attention(q, k, v, m.detach())
    fused._serves.cache_clear()
    assert not is_fused(other)
    same(other, want)


def test_errors():
    q = T.zeros(2, 4, 3, 8)
    narrow, long, other = T.zeros(2, 4, 3, 7), T.zeros(2, 4, 5, 8), T.zeros(3, 4, 3, 8)
    width = r"query and key of one width, .* got shapes \(2, 4, 3, 8\), \(2, 4, 3, 7\)"
    for args, says in (((narrow, q), width), ((q, long), "key and value of one length"), ((other, q), "size")):
        with pytest.raises(RuntimeError, match=says):
            F.scaled_dot_product_attention(q, *args)
    with pytest.raises(RuntimeError, match="must divide the number of heads in query, got 3 and 4"):
        F.scaled_dot_product_attention(q, q[:, :3], q[:, :3], enable_gqa=True)


# --- what it keeps ---------------------------------------------------------------------------------------------------
def test_no_map_is_stored():
    """Forward and backward stay below the map's bytes, of which the composition takes several."""
    n = 128
    x = [T.tensor(draw(1, n, 4, key=i), dtype=T.float32, requires_grad=True) for i in range(3)]
    before = ledger.live_bytes
    ledger.reset_peak()
    F.scaled_dot_product_attention(*x, dropout_p=0.1).backward(T.ones(1, n, 4))
    assert ledger.peak_bytes - before < 4 * n * n


def test_grouped_keys_are_not_repeated():
    q, k = (T.tensor(draw(2, h, 64, 16), dtype=T.float32, requires_grad=True) for h in (8, 2))
    with T.activation_memory("keep"):
        out = F.scaled_dot_product_attention(q, k, k, enable_gqa=True)
    kept = {r.storage_id: r.storage_bytes for r in saved(out)}
    assert sorted(kept.values()) == [4 * 2 * 8 * 64, k.numel() * 4, q.numel() * 4, out.numel() * 4]


class Observer:
    """How often each op ran."""

    def __init__(self):
        self.names = []

    def begin(self, name):
        self.names.append(name)

    def end(self, name):
        pass


def projected(length, policy, dtype=T.float32, p=0.1):
    """(bytes kept beside parameters, what backward ran, gradients) of an attention behind and before a Linear."""
    T.manual_seed(0)
    module = nn.MultiheadAttention(64, 4, dropout=p, batch_first=True, dtype=dtype)
    x = T.randn(256 // length, length, 64, dtype=dtype, requires_grad=True)
    with T.activation_memory(policy):
        out = module(x, x, x, need_weights=False)[0]
    leaf_ids = {t.storage.id for t in (x, *module.parameters())}
    kept = {r.storage_id: r.storage_bytes for r in saved(out) if r.storage_id not in leaf_ids}
    watcher = dispatch.observer = Observer()
    try:
        out.backward(T.ones(*out.shape, dtype=dtype))
    finally:
        dispatch.observer = None
    results = [out, x.grad, *(q.grad for q in module.parameters())]
    return sum(kept.values()), watcher.names, [host(t.float()) for t in results]


@pytest.mark.parametrize("dtype", [T.float32, T.bfloat16], ids=str)
@pytest.mark.parametrize("length, again", [(16, True), (32, False)], ids=["a recipe", "kept"])
def test_lean_makes_a_cheap_result_again_once_with_the_same_bits(length, again, dtype):
    """Cheap: 4 S <= H V. The sums in float32 are a number for each of the 4 heads of 256 tokens."""
    stream, sums = 256 * 64 * dtype.itemsize, 256 * 4 * 4
    keep, _, want = projected(length, "keep", dtype)
    lean, ran, got = projected(length, "lean", dtype)
    assert keep == 4 * stream + sums
    assert lean == keep - again * stream
    assert ran.count("attention (recomputed)") == again  # for the projection and for attention itself
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def twice(x, z, q):
    a, b = T.autograd.grad(z, q, retain_graph=True)[0], T.autograd.grad(z, q)[0]
    return np.stack([host(a), host(b)])


def written(x, z, q):
    x.data.zero_()
    return host(T.autograd.grad(z, q)[0])


def second(x, z, q):
    (g,) = T.autograd.grad(z, q, create_graph=True)
    return host(T.autograd.grad(g.sum(), q)[0])


@pytest.mark.parametrize("disturb", [twice, written, second])
def test_a_recipe_of_a_nodes_own_result_survives(disturb):
    """Two backwards, a write to what it reads, a derivative of the derivative: as if the result were kept."""

    def gradient(policy):
        T.manual_seed(1)
        q = T.randn(4, 4, 8, 64, requires_grad=True)
        x = F.linear(q, T.eye(64))  # which is kept, unlike what a cheap kernel makes
        with T.activation_memory(policy):
            y = F.scaled_dot_product_attention(x, x, x)
            z = y.exp().sum() + (y * y).sum()
        (out,) = [r for r in saved(y) if (r.op, r.argument) == ("ScaledDotProductAttention", "out")]
        assert out.storage_bytes == (0 if policy == "lean" else 4 * 4 * 8 * 64 * 4)
        del y, out
        return disturb(x, z, q)

    np.testing.assert_array_equal(gradient("lean"), gradient("keep"))


def test_the_causal_hint_of_a_module_is_taken():
    """As in PyTorch: the mask is not read then, unless it has a gradient or something else is masked."""
    module = nn.MultiheadAttention(8, 2, batch_first=True).double()
    x, mask = T.tensor(draw(2, 5, 8)), T.ones(5, 5, dtype=T.bool).triu(1)
    want, _ = module(x, x, x, attn_mask=mask, need_weights=False)
    for options in ({"attn_mask": mask}, {"attn_mask": T.zeros(5, 5, dtype=T.bool)},
                    {"attn_mask": mask, "key_padding_mask": T.zeros(2, 5, dtype=T.bool)}):  # fmt: skip
        got, _ = module(x, x, x, need_weights=False, is_causal=True, **options)
        np.testing.assert_allclose(host(got), host(want), rtol=1e-12, atol=1e-12)
    learned = T.zeros(5, 5, dtype=T.float64, requires_grad=True)
    module(x, x, x, need_weights=False, is_causal=True, attn_mask=learned)[0].square().sum().backward()
    assert bool((learned.grad[0, 1:] != 0).any())  # those right of the diagonal take part
