"""Batch normalisation: which kernels make it, that all ways agree, and what becomes of the running statistics."""

import numpy as np
import pytest
import torch

import tgrad as T
import tgrad.nn.functional as F
from tests.compare import assert_close, random, values
from tests.twins import agree, leaves, same, twin
from tgrad import nn
from tgrad.kernels import batch_norm_tiles as tiles, launch
from tgrad.storage import ledger

G = torch.nn.functional
pytestmark = pytest.mark.anywhere

# Channels that fit into registers, and such as are cut into pieces.
WHOLE, CUT = [(7, 5), (3, 5, 7)], [(16411, 3), (2, 3, 8209)]


def operands(shape, dtype=T.float64, wanted="xwb"):
    rng = random("batch norm", shape)
    given = [leaves(rng.standard_normal(s), dtype) for s in (shape, shape[1], shape[1])]
    for pair, name in zip(given, "xwb", strict=True):
        for t in pair:
            t.requires_grad_(name in wanted)
    return given


def trained(f):
    return lambda x, w, b: f.batch_norm(x, None, None, w, b, True, eps=1e-3)


def launched(call):
    """The names of the kernels of a second call."""
    names = []
    with launch.listen(names.append):
        call()
        names.clear()
        call()
    return names


# --- kernels ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("training, shape, kernels", [
    (True, WHOLE[0], ["batch_norm", "batch_norm_backward"]),
    (True, WHOLE[1], ["batch_norm", "batch_norm_backward"]),
    (True, CUT[0], ["batch_norm_statistics", "batch_norm_finish", "batch_norm",
                    "batch_norm_sums", "norm_sums", "batch_norm_backward"]),
    (True, CUT[1], ["batch_norm_statistics", "batch_norm_finish", "batch_norm",
                    "batch_norm_sums", "norm_sums", "batch_norm_backward"]),
    (False, WHOLE[0], ["native_batch_norm", "batch_norm_sums", "norm_sums"]),
])  # fmt: skip
def test_the_kernels_of_both_ways(training, shape, kernels):
    """The running statistics and the count of batches move in these too; gradients come in the leaves' shapes."""
    module = nn.BatchNorm1d(shape[1]).train(training)
    x, g = T.randn(*shape, requires_grad=True), T.randn(*shape)

    def both():
        module(x).backward(g)
        x.grad = module.weight.grad = module.bias.grad = None

    assert launched(both) == kernels


@pytest.mark.parametrize("wanted", ["x", "w", "b", "xw", "xb", "wb", "xwb"])
@pytest.mark.parametrize("shape", [CUT[0], (3, 5, 7)], ids=["cut", "whole"])
def test_each_set_of_inputs_gets_its_gradients(shape, wanted):
    agree(trained(F), trained(G), operands(shape, wanted=wanted))
    mean, var = random("given").standard_normal(shape[1]), random("given").uniform(0.5, 2, shape[1])
    given = [(T.tensor(v), torch.tensor(v)) for v in (mean, var)]
    agree(lambda x, w, b: F.batch_norm(x, given[0][0], given[1][0], w, b, eps=1e-3),
          lambda x, w, b: G.batch_norm(x, given[0][1], given[1][1], w, b, eps=1e-3),
          operands(shape, wanted=wanted))  # fmt: skip


@pytest.mark.parametrize("training", [True, False])
def test_without_a_weight_or_a_bias(training):
    shape = 6, 3, 4
    x, w, b = operands(shape)
    ours, theirs = ([xp.zeros(3, dtype=xp.float64), xp.ones(3, dtype=xp.float64)] for xp in (T, torch))
    norm = lambda f, x, w, b: f.batch_norm(x, *(ours if f is F else theirs), w, b, training)
    agree(lambda x: norm(F, x, None, None), lambda x: norm(G, x, None, None), [x])
    agree(lambda x, w: norm(F, x, w, None), lambda x, w: norm(G, x, w, None), [x, w])
    ones = torch.ones(3, dtype=torch.float64)
    agree(lambda x, b: norm(F, x, None, b), lambda x, b: norm(G, x, ones, b), [x, b])


@pytest.mark.parametrize("pieces", [1, 2, 3, 11])
@pytest.mark.parametrize("shape", [(22, 3), (2, 3, 11)])
def test_channels_cut_into_any_number_of_pieces(shape, pieces, monkeypatch):
    chunk = 22 // pieces + (22 % pieces > 0)
    monkeypatch.setattr(tiles, "whole", lambda planes, kept, accumulator: None)
    monkeypatch.setattr(tiles, "cut", lambda planes, accumulator: ((4, 4), chunk, -(-22 // chunk)))
    with launch.listen(lambda name: None):  # launches are prepared anew
        for wanted in ("xwb", "w"):
            agree(trained(F), trained(G), operands(shape, wanted=wanted))


@pytest.mark.parametrize("dtype", [T.float16, T.bfloat16], ids=repr)
def test_half_types_in_pieces(dtype, monkeypatch):
    monkeypatch.setattr(tiles, "whole", lambda planes, kept, accumulator: None)
    with launch.listen(lambda name: None):
        agree(trained(F), trained(G), operands((9, 5), dtype))


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_float32_weights_beside_a_half_input(training, monkeypatch):
    x, g = (random("mixed", k).standard_normal((6, 8)) for k in range(2))
    for whole in (True, False):
        if not whole:
            monkeypatch.setattr(tiles, "whole", lambda planes, kept, accumulator: None)
        with launch.listen(lambda name: None):
            a, w = T.tensor(x, dtype=T.bfloat16, requires_grad=True), T.ones(8, requires_grad=True)
            F.batch_norm(a, T.zeros(8), T.ones(8), w, None, training).backward(T.tensor(g, dtype=T.bfloat16))
        exact = torch.tensor(values(a.detach()).astype(np.float64), requires_grad=True)
        weight = torch.ones(8, dtype=torch.float64, requires_grad=True)
        out = G.batch_norm(exact, torch.zeros(8).double(), torch.ones(8).double(), weight, None, training)
        out.backward(torch.tensor(g).bfloat16().double())
        assert w.grad.dtype is T.float32 and a.grad.dtype is T.bfloat16
        assert_close(w.grad, weight.grad, factor=16, scale=8)
        assert_close(a.grad, exact.grad, factor=4, scale=1)


@pytest.mark.parametrize("way", [(0, 2, 3, 1), (3, 1, 2, 0), (2, 1, 3, 0), (1, 0, 2, 3)], ids=str)
def test_inputs_and_gradients_of_any_strides(way):
    """Channels last, transposed, and what no three strides describe; the gradient of a sum is expanded."""
    back = tuple(np.argsort(way))
    x, w, b = operands((2, 3, 4, 5))
    x = leaves(np.ascontiguousarray(x[1].detach().numpy().transpose(way)))
    for turned in (lambda t: t, lambda t: t.sum(0)):
        agree(lambda x, w, b: turned(trained(F)(x.permute(*back), w, b)),
              lambda x, w, b: turned(trained(G)(x.permute(*back), w, b)), [x, w, b])  # fmt: skip


@pytest.mark.parametrize("itemsize, c, k, l, steps", [
    (4, 1000, 256, 1, (1000, 1, 0)), (2, 64, 1 << 20, 1, (64, 1, 0)), (4, 3, 50176, 784, (2352, 784, 1)),
    (8, 999, 33, 1, (999, 1, 0)), (4, 1, 1 << 22, 1, (1, 1, 0)), (2, 512, 16384, 4, (2048, 4, 1)),
    (4, 7, 2, 1, (7, 1, 0)),
])  # fmt: skip
def test_tiles_on_a_gpu(itemsize, c, k, l, steps, monkeypatch):
    """Blocks are powers of 2 that registers hold, and read whole sectors; no piece is empty."""
    monkeypatch.setattr(tiles, "INTERPRET", False)
    planes = tiles.Planes(c, k, l, itemsize, steps, False)
    accumulator, scale = ("fp64", 4) if itemsize == 8 else ("fp32", 1)
    for kept in (1, 2):
        block = tiles.whole(planes, kept, accumulator)
        assert block is None or (block[0] >= k and block[0] * block[1] * scale <= 16384 // kept)
    (bk, bc), chunk, pieces = tiles.cut(planes, accumulator)
    assert bk & (bk - 1) == bc & (bc - 1) == 0 and bk * bc <= 4096
    assert bc * itemsize * (l if steps[2] == 1 else 1) >= 32 or bc >= c
    assert chunk % bk == 0 and (pieces - 1) * chunk < k <= pieces * chunk
    assert pieces <= 528


# --- numbers ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(1000, 8), (20000, 3), (64, 3, 400)], ids=str)
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_statistics_are_accurate_where_the_mean_is_large(shape, mean):
    """As exact as float32 numbers of this size are: the mean to an ulp, the variance to many digits."""
    x = T.tensor(random("large", shape).standard_normal(shape) + mean, dtype=T.float32)
    exact = torch.tensor(values(x).astype(np.float64))
    ours = T.zeros(shape[1]), T.zeros(shape[1])
    theirs = torch.zeros(shape[1]).double(), torch.zeros(shape[1]).double()
    out = F.batch_norm(x, *ours, training=True, momentum=1.0)
    want = G.batch_norm(exact, *theirs, training=True, momentum=1.0)
    ulp = np.spacing(np.float32(max(mean, 1.0)))
    assert np.abs(values(ours[0]) - theirs[0].numpy()).max() <= ulp
    assert np.abs(values(ours[1]) / theirs[1].numpy() - 1).max() <= 2e-6
    assert np.abs(values(out) - want.numpy()).max() <= 2 * ulp + 4e-6


def test_bits_are_the_same_each_time_and_when_made_again():
    """A recipe makes the result again from the statistics that were kept."""
    for shape in (WHOLE[0], (16411, 3)):
        x, w, b = (t.detach() for t, _ in operands(shape, T.float32))
        first, second = (F.batch_norm(x, None, None, w, b, True) for _ in range(2))
        assert np.array_equal(values(first), values(second))
    model = nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 64, bias=False))
    x, g, grads = T.randn(64, 64, requires_grad=True), T.randn(64, 64), []
    for policy in ("keep", "lean"):
        with T.activation_memory(policy):
            grads.append(T.autograd.grad(model(x), [x, *model.parameters()], g))
    for kept, again in zip(*grads, strict=True):
        assert np.array_equal(values(kept), values(again))


@pytest.mark.parametrize("training", [True, False])
def test_the_fused_backward_is_the_recorded_one(training):
    x, w, b = (t for t, _ in operands((4, 2, 3)))
    mean, var = T.tensor([0.1, -0.2], dtype=T.float64), T.tensor([0.5, 2.0], dtype=T.float64)
    f = lambda *a: F.batch_norm(a[0], mean, var, a[1], a[2], training, 0.0)
    g = T.randn(4, 2, 3, dtype=T.float64)
    fused = T.autograd.grad(f(x, w, b), [x, w, b], g)
    recorded = T.autograd.grad(f(x, w, b), [x, w, b], g, create_graph=True)
    for a, c in zip(fused, recorded, strict=True):
        np.testing.assert_allclose(values(a), values(c.detach()), rtol=1e-12, atol=1e-12)


# --- running statistics ----------------------------------------------------------------------------------------------
BUFFERS = "running_mean", "running_var", "num_batches_tracked"


@pytest.mark.parametrize("momentum", [0.3, None, 1])
@pytest.mark.parametrize("dtype", [T.float32, T.float64, T.bfloat16], ids=repr)
@pytest.mark.parametrize("shape", [(7, 3), (8209, 3, 2)], ids=["whole", "cut"])
def test_they_move_as_torchs(shape, dtype, momentum):
    """In buffers of float32 beside half inputs; the count alone has a new version."""
    wide = T.float64 if dtype is T.float64 else T.float32
    ours = nn.BatchNorm1d(3, momentum=momentum, dtype=wide)
    theirs = torch.nn.BatchNorm1d(3, momentum=momentum, dtype=torch.float64)
    versions = [getattr(ours, name)._version for name in BUFFERS]
    for k in range(3):
        x = T.tensor(random("moving", k).standard_normal(shape) + k, dtype=dtype)
        with T.no_grad() if k == 1 else T.enable_grad():
            ours(x)
        theirs(torch.tensor(values(x).astype(np.float64)))
    for name in BUFFERS[:2]:
        assert_close(getattr(ours, name), getattr(theirs, name), length=shape[0], factor=4, scale=1)
    assert ours.num_batches_tracked.item() == 3
    assert [getattr(ours, name)._version for name in BUFFERS] == [versions[0], versions[1], versions[2] + 3]


@pytest.mark.parametrize("count", [T.int32, T.float32], ids=repr)
def test_counts_of_other_dtypes(count):
    m = nn.BatchNorm1d(2)
    m.num_batches_tracked = T.tensor(4, dtype=count)
    m(T.randn(3, 2))
    assert m.num_batches_tracked.item() == 5 and m.num_batches_tracked.dtype is count


def test_statistics_of_any_strides():
    x = random("strided").standard_normal((6, 3))
    ours, theirs = T.zeros(3, 2, dtype=T.float64), torch.zeros(3, 2, dtype=torch.float64)
    F.batch_norm(T.tensor(x), ours[:, 0], ours[:, 1], training=True)
    G.batch_norm(torch.tensor(x), theirs[:, 0], theirs[:, 1], training=True)
    same(ours, theirs, T.float64)
    weight = T.ones(6, dtype=T.float64)[::2].requires_grad_()
    agree(lambda x: F.batch_norm(x, None, None, weight, None, True),
          lambda x: G.batch_norm(x, None, None, None, None, True), [leaves(x)])  # fmt: skip


def test_no_rows_move_nothing_but_the_count():
    ours, theirs = twin(nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3))
    for m, xp in ((ours, T), (theirs, torch)):
        m(xp.zeros(0, 3, requires_grad=True)).sum().backward()
    for name in BUFFERS:
        assert getattr(ours, name).tolist() == getattr(theirs, name).tolist()
    assert ours.weight.grad.tolist() == theirs.weight.grad.tolist() == [0, 0, 0]


def test_they_move_once_when_a_block_is_run_again():
    m, other = nn.BatchNorm1d(64), nn.BatchNorm1d(64)
    x = T.randn(64, 64, requires_grad=True)
    with T.activation_memory("leanest"):
        out = nn.Sequential(nn.Sequential(nn.Tanh(), m))(x)
        seen = launched(lambda: T.autograd.grad(out.sum(), x, retain_graph=True))
    assert any(name.startswith("batch_norm") for name in seen)
    other(x.tanh())
    for name in BUFFERS:
        assert getattr(m, name).tolist() == getattr(other, name).tolist()
    assert m.num_batches_tracked.item() == m.num_batches_tracked._version == 1


def test_tracking_that_was_turned_off_counts_no_more():
    ours, theirs = nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    for m, xp in ((ours, T), (theirs, torch)):
        m.track_running_stats = False
        m(xp.ones(3, 2))
        assert m.num_batches_tracked.item() == 0 and m.running_var.tolist() == [1, 1]


def test_inference_mode():
    with T.inference_mode():
        inside = nn.BatchNorm1d(2)
        inside(T.randn(3, 2))
        assert inside.num_batches_tracked.item() == 1
        outside = nn.BatchNorm1d(2).requires_grad_(False)
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode"):
        outside(T.randn(3, 2))


# --- evaluation ------------------------------------------------------------------------------------------------------
def test_what_was_normalised_by_running_statistics_is_made_again_by_the_old_ones():
    """They move between forward and backward, which no version tells."""
    x, w = T.randn(64, 64, requires_grad=True), T.randn(64, 64, requires_grad=True)
    grads = []
    for policy in ("keep", "lean"):
        m = nn.BatchNorm1d(64).eval()
        for p in m.parameters():
            p.requires_grad_(False)
        with T.activation_memory(policy):
            out = F.linear(m(x), w)
            m.train()(T.ones(3, 64) * 5)
            grads.append(T.autograd.grad(out, w, T.ones(64, 64))[0])
    assert np.array_equal(values(grads[0]), values(grads[1]))


def test_a_frozen_norm_keeps_no_input():
    m = nn.BatchNorm1d(64).eval().requires_grad_(False)
    x = T.randn(64, 64, requires_grad=True)
    kept = {e.storage_id: e.storage_bytes for e in T.autograd.graph.saved(m(x))}
    assert sum(kept.values()) <= 3 * 64 * 4  # the variance, the weight


def test_in_a_fused_function():
    m = nn.BatchNorm1d(4).eval()
    f = T.fuse(lambda x: m(x).tanh())
    x = T.randn(5, 4, requires_grad=True)
    assert np.array_equal(values(f(x)), values(m(x).tanh()))
    with T.no_grad():
        assert len(launched(lambda: f(x))) == 1


def test_the_forward_makes_two_numbers_a_channel_beside_its_result():
    x, m = T.randn(64, 32, requires_grad=True), nn.BatchNorm1d(32)
    m(x)
    before = ledger.live_bytes
    ledger.reset_peak()
    y = m(x)
    assert ledger.peak_bytes - before == y.nbytes + 2 * 32 * 4 == ledger.live_bytes - before


def test_integers_are_refused():
    for training in (True, False):
        with pytest.raises(RuntimeError, match="batch_norm: not implemented for .*int64: convert the input first"):
            F.batch_norm(T.ones(3, 2, dtype=T.int64), T.zeros(2), T.ones(2), training=training)
