"""Matrix products by every kernel and tile on the interpreter: pointers, bulk copies, pieces of K, sums, epilogues.

`choose` is replaced, since on the interpreter it takes the whole product as one tile.
"""

import numpy as np
import pytest
import torch

import tgrad
import tgrad.nn.functional as F
from tests.compare import assert_close, pair, random, same_bits
from tgrad import engine
from tgrad.device import compute
from tgrad.kernels import matmul as kernel, matmul_tiles
from tgrad.kernels.matmul_tiles import Choice, Tile
from tgrad.op import forget_plans
from tgrad.ops import matmul as products

pytestmark = pytest.mark.skipif(compute.type != "cpu", reason="on a GPU the tiles are the chip's own")

POINTER = Tile(16, 16, 16, 4, 2, False, 1.0)
BULK = Tile(16, 32, 16, 4, 2, True, 1.0)
CHOICES = {
    "pointers": Choice(POINTER, 1), "pointers in pieces": Choice(POINTER, 3),
    "pointers in parts": Choice(POINTER._replace(parts=2), 1),
    "bulk": Choice(BULK, 1), "bulk in pieces": Choice(BULK, 2), "bulk in parts": Choice(BULK._replace(parts=2), 1),
}  # fmt: skip


@pytest.fixture
def forced(monkeypatch):
    """`forced(choice)` makes products take it, persistent programs being two; it returns the list of what was asked."""
    asked = []

    def force(choice):
        def choose(m, n, k, **given):
            asked.append((m, n, k, given["tma"]))
            assert given["tma"] or not choice.tile.tma, "operands that the bulk copy engine cannot read"
            return choice

        monkeypatch.setattr(kernel, "choose", choose)
        monkeypatch.setattr(kernel, "multiprocessors", lambda: 2)
        forget_plans()
        return asked

    yield force
    forget_plans()


def operands(dtype, *shapes, key=0):
    """Leaves of tgrad, and of torch in float64 with the same values."""
    draws = [random(key, i, shape).standard_normal(shape) for i, shape in enumerate(shapes)]
    pairs = [pair(values, dtype, requires_grad=True) for values in draws]
    return [ours for ours, _, _ in pairs], [exact for _, _, exact in pairs]


@pytest.mark.parametrize("dtype", [tgrad.float32, tgrad.bfloat16], ids=lambda d: d.name)
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("m, n, k", [(40, 72, 56), (8, 16, 200), (24, 8, 16)])
def test_linear_forward_and_backward(m, n, k, name, dtype, forced):
    """NT with a bias, NN, and TN with the sums of its rows; partial tiles in every direction."""
    asked = forced(CHOICES[name])
    (x, w, b), (tx, tw, tb) = operands(dtype, (m, k), (n, k), (n,))
    (g,), (tg,) = operands(dtype, (m, n), key=1)
    y, ty = F.linear(x, w, b), torch.nn.functional.linear(tx, tw, tb)
    assert_close(y, ty, length=k, scale=4)
    y.backward(g.detach())
    ty.backward(tg.detach())
    for got, want, length in ((x.grad, tx.grad, n), (w.grad, tw.grad, m), (b.grad, tb.grad, m)):
        assert_close(got, want, length=length, scale=4)
    assert sorted(asked) == sorted([(m, n, k, True), (m, k, n, True), (n, k, m, True)])


@pytest.mark.parametrize("name", ["pointers", "pointers in pieces"])
@pytest.mark.parametrize("dtype", [tgrad.float16, tgrad.float64], ids=lambda d: d.name)
def test_odd_sizes(name, dtype, forced):
    forced(CHOICES[name])
    (x, w, b), (tx, tw, tb) = operands(dtype, (19, 35), (7, 35), (7,))
    y, ty = F.linear(x, w, b), torch.nn.functional.linear(tx, tw, tb)
    (g,), (tg,) = operands(dtype, (19, 7), key=1)
    y.backward(g.detach())
    ty.backward(tg.detach())
    for got, want in ((y, ty), (x.grad, tx.grad), (w.grad, tw.grad), (b.grad, tb.grad)):
        assert_close(got, want, length=40, scale=4)


def test_which_operands_can_be_copied_in_bulk(forced):
    asked = forced(CHOICES["pointers"])
    a, b = tgrad.ones(24, 16), tgrad.ones(16, 32)
    odd, half = tgrad.ones(16, 30), tgrad.ones(16, 12, dtype=tgrad.bfloat16)
    base = tgrad.ones(24 * 16 + 1)
    cases = [
        (a, b, True), (a, tgrad.ones(32, 16).t(), True), (tgrad.ones(16, 24).t(), b, True),
        (a, odd, False),  # rows of 120 bytes
        (tgrad.ones(24, 16, dtype=tgrad.bfloat16), half, False),  # rows of 24 bytes
        (a.double(), b.double(), False),
        (base[1:].view(24, 16), b, False),  # an address that is no multiple of 16
        (tgrad.ones(24, 32)[:, ::2], b, False),  # no neighbours
        (tgrad.ones(24, 32)[:, :16], b, True),  # rows further apart than long
        (tgrad.ones(1, 16).expand(24, 16), b, False),  # rows zero apart
    ]  # fmt: skip
    for x, y, able in cases:
        asked.clear()
        out = x @ y
        assert out.tolist() == [[16.0] * y.shape[1]] * x.shape[0]
        assert asked[0][3] is able, (x.shape, x.stride(), y.stride())

def test_which_batches_can_be_copied_in_bulk(forced):
    asked = forced(CHOICES["pointers"])
    heads = tgrad.ones(2, 24, 3, 16).transpose(1, 2)  # as attention has them: 3 matrices between each other's rows
    cases = [
        (tgrad.ones(3, 24, 16), tgrad.ones(3, 16, 32), True), (heads, heads.transpose(2, 3), True),
        (tgrad.ones(2, 1, 24, 16), tgrad.ones(3, 16, 32), True),
        (tgrad.ones(1, 24, 16).expand(3, 24, 16), tgrad.ones(3, 16, 32), True),
        (tgrad.ones(3, 24 * 16 + 1)[:, :-1].view(3, 24, 16), tgrad.ones(3, 16, 32), False),  # 1540 bytes apart
        (tgrad.ones(2, 3, 2, 3, 24, 16).transpose(0, 1).transpose(2, 3), tgrad.ones(16, 32).expand(3, 2, 3, 2, 16, 32),
         False),  # six dimensions
    ]  # fmt: skip
    for x, y, able in cases:
        asked.clear()
        out = x @ y
        assert out.shape[-1] == y.shape[-1] and out.flatten().tolist() == [16.0] * out.numel()
        assert asked[0][3] is able, (x.shape, x.stride(), y.shape, y.stride())


BATCHES = [
    (lambda a, b: (a, b), (3, 40, 24), (3, 24, 48)),
    (lambda a, b: (a, b), (2, 1, 24, 16), (3, 16, 40)),  # each repeated over one dimension
    (lambda a, b: (a.transpose(1, 2), b.permute(0, 2, 3, 1)), (2, 24, 3, 16), (2, 40, 3, 16)),  # heads of attention
    (lambda a, b: (a.transpose(1, 2), b), (4, 16, 24), (4, 16, 40)),
]


# In float32 what is repeated: in bfloat16 each product of a gradient is rounded before they are summed, as in PyTorch.
ALIKE = [(case, tgrad.bfloat16) for case in BATCHES if case is not BATCHES[1]]


@pytest.mark.parametrize("name", ["pointers", "bulk", "bulk in parts"])
@pytest.mark.parametrize(
    "case, dtype", [*[(case, tgrad.float32) for case in BATCHES], *ALIKE],
    ids=lambda c: c.name if isinstance(c, tgrad.dtype) else f"{c[1]} {c[2]}",
)  # fmt: skip
def test_batches(case, dtype, name, forced):
    arranged, *shapes = case
    asked = forced(CHOICES[name])
    (a, b), (ta, tb) = operands(dtype, *shapes)
    y, ty = (x @ z for x, z in (arranged(a, b), arranged(ta, tb)))
    assert_close(y, ty, length=24, scale=4)
    (g,), (tg,) = operands(dtype, tuple(y.shape), key=1)
    y.backward(g.detach())
    ty.backward(tg.detach())
    assert_close(a.grad, ta.grad, length=120, scale=4)
    assert_close(b.grad, tb.grad, length=120, scale=4)
    assert len(asked) == 3 and all(able for *_, able in asked)


def test_batch_of_three_dimensions(forced):
    asked = forced(CHOICES["bulk"])
    (a, b), (ta, tb) = operands(tgrad.float32, (2, 3, 4, 20, 8), (3, 1, 8, 12))
    assert_close(a.detach().transpose(0, 2) @ b.detach(), ta.detach().transpose(0, 2) @ tb.detach(), length=8, scale=4)
    assert asked == [(20, 12, 8, True)]


@pytest.mark.parametrize("name", CHOICES)
def test_result_whose_rows_are_not_16_bytes_apart(name, forced):
    """The operands may be copied in bulk, the result not."""
    forced(CHOICES[name])
    (a, b), (ta, tb) = operands(tgrad.float32, (40, 24), (24, 21))
    wide = tgrad.zeros(24, 24)
    wide[:, :21] = b.detach()
    assert_close(a.detach() @ wide[:, :21], (ta @ tb).detach(), length=24, scale=4)


@pytest.mark.parametrize("name", CHOICES)
def test_formula_folded_into_a_gradient(name, forced, monkeypatch):
    """gelu's, of the product's result and what gelu was of: the bits of a kernel of its own, in every form."""
    forced(CHOICES[name])
    found = []
    for folds in (True, False):
        if not folds:
            monkeypatch.setattr(engine, "fold", lambda *_: None)
        (x, w, v), _ = operands(tgrad.bfloat16, (40, 24), (72, 24), (56, 72))
        F.linear(F.gelu(F.linear(x, w)), v).backward(tgrad.ones(40, 56, dtype=tgrad.bfloat16))
        found.append((x.grad, w.grad, v.grad))
    assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["pointers in pieces", "bulk in pieces"])
def test_pieces_give_the_same_bits_each_time(name, forced):
    forced(CHOICES[name])
    (a, b), _ = operands(tgrad.float32, (24, 200), (200, 16))
    first = (a @ b).detach().numpy().copy()
    for _ in range(3):
        assert np.array_equal((a @ b).detach().numpy(), first)


@pytest.mark.parametrize("name", CHOICES)
def test_nothing_outside_is_read_or_written(name, forced):
    """With nan around every operand, and in what is not yet written."""
    from tgrad.storage import guarded

    forced(CHOICES[name])
    with guarded():
        (x, w, b), (tx, tw, tb) = operands(tgrad.float32, (20, 36), (12, 36), (12,))
        y = F.linear(x, w, b)
        y.backward(tgrad.ones(20, 12))
        ty = torch.nn.functional.linear(tx, tw, tb)
        ty.backward(torch.ones(20, 12, dtype=torch.float64))
        for got, want in ((y, ty), (x.grad, tx.grad), (w.grad, tw.grad), (b.grad, tb.grad)):
            assert_close(got, want, length=40, scale=4)


def test_precision_of_float32(forced, monkeypatch):
    """What each name has products formed with; plans made before are not used again."""
    asked, prepare = [], products.prepare_matmul

    def prepared(*args, **given):
        asked.append(given["precision"])
        return prepare(*args, **given)

    monkeypatch.setattr(products, "prepare_matmul", prepared)
    forced(CHOICES["pointers"])
    a, b = tgrad.ones(4, 4), tgrad.ones(4, 4)
    assert tgrad.get_float32_matmul_precision() == "highest"
    try:
        for name in ("highest", "high", "medium"):
            tgrad.set_float32_matmul_precision(name)
            assert tgrad.get_float32_matmul_precision() == name
            assert (a @ b).tolist() == [[4.0] * 4] * 4
            assert (a.double() @ b.double()).dtype is tgrad.float64
    finally:
        tgrad.set_float32_matmul_precision("highest")
    assert asked == ["tf32x3", "ieee", "tf32x3", "ieee", "tf32", "ieee"]


# --- gradients of weight and bias together ---------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 0, 3), (1, 1, 1), (6, 5, 3)])
def test_weight_and_bias_of_odd_batches(shape):
    rows, k, n = shape
    (x, w, b), (tx, tw, tb) = operands(tgrad.float32, (rows, k), (n, k), (n,))
    (g,), (tg,) = operands(tgrad.float32, (rows, n), key=1)
    F.linear(x, w, b).backward(g.detach())
    torch.nn.functional.linear(tx, tw, tb).backward(tg.detach())
    assert_close(w.grad, tw.grad, length=8, scale=4)
    assert_close(b.grad, tb.grad, length=8, scale=4)


@pytest.mark.parametrize("wanted", ["w", "b", "xw", "xb", "wb"])
def test_only_the_gradients_that_are_wanted(wanted):
    (x, w, b), (tx, tw, tb) = operands(tgrad.float32, (6, 5), (3, 5), (3,))
    for name, t, tt in (("x", x, tx), ("w", w, tw), ("b", b, tb)):
        t.requires_grad_(name in wanted)
        tt.requires_grad_(name in wanted)
    (g,), (tg,) = operands(tgrad.float32, (6, 3), key=1)
    F.linear(x, w, b).backward(g.detach())
    torch.nn.functional.linear(tx, tw, tb).backward(tg.detach())
    for t, tt in ((x, tx), (w, tw), (b, tb)):
        assert (t.grad is None) == (tt.grad is None)
        if t.grad is not None:
            assert_close(t.grad, tt.grad, length=8, scale=4)


def test_weight_and_bias_take_one_launch():
    from tgrad.kernels import launch

    launched = []
    (x, w, b), _ = operands(tgrad.float32, (6, 5), (3, 5), (3,))
    x.requires_grad_(False)
    with launch.listen(launched.append):
        F.linear(x, w, b).backward(tgrad.ones(6, 3))
    assert launched.count("linear_backward") == 1 and "sum" not in launched and "mm" not in launched
    again, create = tgrad.ones(6, 3).requires_grad_(), {"create_graph": True}
    (gw,) = tgrad.autograd.grad(F.linear(x, w, b), w, again, **create)
    assert gw.requires_grad  # the formulas, which can be differentiated, serve there


# --- the choice ------------------------------------------------------------------------------------------------------
ARCHS = [80, 86, 90, 100, 120]


def chosen(m, n, k, dtype, arch, tma, monkeypatch, count=None):
    from triton.backends.compiler import GPUTarget

    from tgrad.kernels import launch

    monkeypatch.setattr(launch, "COMPILE_ONLY", GPUTarget("cuda", arch, 32))
    if count is not None:
        monkeypatch.setattr(matmul_tiles, "multiprocessors", lambda: count)
    return matmul_tiles.choose(m, n, k, dtype=dtype, tma=tma)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", ["bf16", "fp32", "fp64"])
@pytest.mark.parametrize("sizes", [(8192, 8192, 8192), (1, 4096, 4096), (17, 333, 20000), (1, 1, 1), (64, 64, 65536)])
def test_choice_fits_the_chip(sizes, dtype, arch, monkeypatch):
    m, n, k = sizes
    for tma in (True, False):
        tile, pieces = choice = chosen(m, n, k, dtype, arch, tma, monkeypatch)
        assert matmul_tiles.shared(tile, matmul_tiles.itemsize(dtype)) <= matmul_tiles.SHARED.get(arch, 101_376)
        assert not tile.tma or (tma and arch in (90, 100))
        chunk = choice.chunk(k)
        assert chunk % tile.bk == 0 and (pieces - 1) * chunk < k <= pieces * chunk, "no piece is empty, none is left"


def test_large_products_take_the_largest_tile_on_hopper(monkeypatch):
    for sizes in ((8192, 8192, 8192), (4096, 4096, 1024), (16384, 1024, 4096)):
        tile, pieces = chosen(*sizes, "bf16", 90, True, monkeypatch)
        assert (tile.bm, tile.bn, tile.bk, tile.tma, pieces) == (128, 256, 64, True, 1), sizes


def test_skinny_products_are_cut_into_pieces(monkeypatch):
    for sizes in ((16, 256, 65536), (64, 64, 16384), (8, 1024, 8192)):
        tile, pieces = chosen(*sizes, "bf16", 90, True, monkeypatch)
        programs = -(-sizes[0] // tile.bm) * -(-sizes[1] // tile.bn)
        assert pieces > 1 and programs * pieces <= 2 * 132, sizes
    assert chosen(16, 256, 128, "bf16", 90, True, monkeypatch).pieces == 1, "nothing to gain"
    assert chosen(16, 256, 65536, "bf16", 90, True, monkeypatch, count=1).pieces == 1, "one multiprocessor"


def test_no_choice_depends_on_anything_else(monkeypatch):
    """The same sizes give the same choice, so the same bits."""
    for sizes in ((33, 65, 4097), (512, 512, 512)):
        assert len({chosen(*sizes, "fp32", 90, False, monkeypatch) for _ in range(3)}) == 1


@pytest.mark.parametrize("arch, kind", matmul_tiles.TILES)
def test_tables_are_sane(arch, kind):
    rows = matmul_tiles.TILES[arch, kind]
    assert len({row[:6] for row in rows}) == len(rows)
    for t in rows:
        assert all(size & (size - 1) == 0 and size >= 16 for size in (t.bm, t.bn, t.bk)) and t.rate > 0
        assert not t.tma or (arch >= 90 and t.bm >= 64), "wgmma and tcgen05 have 64 rows or more"
        assert matmul_tiles.shared(t, {"half": 2, "fp32": 4, "fp64": 8}[kind]) <= matmul_tiles.SHARED[arch]
    assert any(not t.tma for t in rows), "some tile serves any strides"
