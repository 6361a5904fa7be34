"""Layer, group, root-mean-square and batch norms against torch's."""

import numpy as np
import pytest
import torch

import tgrad as T
import tgrad.nn.functional as F
from tests.compare import NEWEST, assert_close, pair, random, values
from tests.errors import message
from tests.twins import agree, leaves, same, same_grads, twin
from tgrad import nn
from tgrad.storage import ledger

G = torch.nn.functional
pytestmark = pytest.mark.anywhere

LAYERS = [
    (lambda n: n.LayerNorm(4), [(3, 4), (4,), (2, 3, 4)]),
    (lambda n: n.LayerNorm((3, 4), eps=1e-3), [(3, 4), (2, 5, 3, 4)]),
    (lambda n: n.LayerNorm([4], bias=False), [(3, 4)]),
    (lambda n: n.LayerNorm(4, elementwise_affine=False), [(3, 4)]),
    (lambda n: n.RMSNorm(4), [(3, 4), (2, 3, 4)]),
    (lambda n: n.RMSNorm((3, 4), eps=1e-3), [(2, 3, 4)]),
    (lambda n: n.RMSNorm(4, elementwise_affine=False), [(3, 4)]),
    (lambda n: n.GroupNorm(3, 6), [(2, 6, 5), (2, 6, 3, 2)]),
    (lambda n: n.GroupNorm(1, 6, eps=1e-3), [(2, 6, 5)]),
    (lambda n: n.GroupNorm(6, 6, affine=False), [(2, 6, 5)]),
    (lambda n: n.BatchNorm2d(3), [(2, 3, 4, 5)]),
    (lambda n: n.BatchNorm2d(3, momentum=None, affine=False), [(2, 3, 4, 5)]),
    (lambda n: n.BatchNorm2d(3, track_running_stats=False), [(2, 3, 2, 2)]),
]


@pytest.mark.parametrize("dtype", [T.float64, T.float32], ids=repr)
@pytest.mark.parametrize(("build", "shapes"), LAYERS)
def test_layers(build, shapes, dtype):
    for shape in shapes:
        ours, theirs = build(nn).to(dtype), build(torch.nn).to(torch.float64 if dtype is T.float64 else torch.float32)
        twin(ours, theirs)
        assert repr(ours) == repr(theirs) or not NEWEST
        agree(ours, theirs, [leaves(random("norm", shape).standard_normal(shape), dtype)])
        same_grads(ours, theirs)
        ours.eval(), theirs.eval()
        agree(ours, theirs, [leaves(random("eval", shape).standard_normal(shape), dtype)])


@pytest.mark.parametrize("dtype", [T.float16, T.bfloat16], ids=repr)
def test_half_types(dtype):
    x = random("half").standard_normal((4, 8)) * 3
    for name in ("layer_norm", "rms_norm"):
        agree(lambda a: getattr(F, name)(a, (8,)), lambda a: getattr(G, name)(a, (8,)), [leaves(x, dtype)])
    agree(lambda a: F.group_norm(a, 2), lambda a: G.group_norm(a, 2), [leaves(x, dtype)])


def test_any_strides():
    x, y = leaves(random("strided").standard_normal((4, 3, 5)))
    agree(lambda a: F.layer_norm(a.permute(2, 1, 0), (3, 4)), lambda a: G.layer_norm(a.permute(2, 1, 0), (3, 4)),
          [(x, y)])  # fmt: skip


def test_long_rows_are_accurate():
    x = random("long").standard_normal((2, 20000)) + 1000
    out = F.layer_norm(T.tensor(x, dtype=T.float32), (20000,))
    want = G.layer_norm(torch.tensor(x, dtype=torch.float32).double(), (20000,))
    assert np.abs(out.cpu().numpy() - want.numpy()).max() < 1e-3


def test_constant_rows_and_no_rows():
    for shape in ((2, 3), (0, 3)):
        agree(lambda a: F.layer_norm(a, (3,)), lambda a: G.layer_norm(a, (3,)), [leaves(np.ones(shape))])
    assert F.layer_norm(T.zeros(2, 0), (0,)).shape == (2, 0)


@pytest.mark.thorough
def test_second_derivatives():
    x = T.tensor(random("second").standard_normal((3, 4)), requires_grad=True)
    w, b = (T.tensor(random("second", k).standard_normal(4), requires_grad=True) for k in range(2))
    for f, given in (
        (lambda *a: F.layer_norm(a[0], (4,), *a[1:]), (x, w, b)), (lambda *a: F.rms_norm(a[0], (4,), *a[1:]), (x, w)),
        (lambda *a: F.group_norm(a[0], 2, *a[1:]), (x, w, b)),
    ):  # fmt: skip
        assert T.autograd.gradcheck(f, given) and T.autograd.gradgradcheck(f, given)


def test_the_input_and_two_numbers_a_row_are_kept():
    x = T.randn(16, 64, requires_grad=True)
    out = F.layer_norm(x, (64,))
    kept = {entry.storage_id: entry.storage_bytes for entry in T.autograd.graph.saved(out)}
    assert sum(kept.values()) == x.nbytes + 2 * 16 * 4


def test_errors_are_torchs():
    calls = [
        lambda n, f, t: f.layer_norm(t.zeros(2, 3), (4,)),
        lambda n, f, t: f.layer_norm(t.zeros(2, 3), ()),
        lambda n, f, t: f.layer_norm(t.zeros(2, 3), (3,), t.zeros(2)),
        lambda n, f, t: f.group_norm(t.zeros(2, 3), 2),
        lambda n, f, t: n.GroupNorm(2, 3),
        lambda n, f, t: n.BatchNorm2d(3)(t.zeros(2, 3)),
    ]
    for call in calls:
        assert message(call, nn, F, T) == message(call, torch.nn, G, torch)


def test_batch_norm_evaluates_by_running_statistics():
    ours, theirs = twin(nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3))
    for k in range(3):
        x, y = leaves(random("bn", k).standard_normal((2, 3, 4, 4)), T.float32)
        same(ours(x), theirs(y))
    ours.eval(), theirs.eval()
    same(ours(x), theirs(y))


@pytest.mark.parametrize("kind", [T.bfloat16, T.float16], ids=str)
def test_batch_norm_in_evaluation_keeps_the_inputs_dtype(kind):
    """Statistics of float32 beside half inputs, as in mixed precision; rounded once."""
    x, mean, var, w, b = (random("bn", i).normal(size=(4, 3) if not i else 3) for i in range(5))
    ours = [T.tensor(x, dtype=kind), *(T.tensor(v, dtype=T.float32) for v in (mean, var * var, w, b))]
    theirs = [torch.tensor(values(t).astype(np.float64)) for t in ours]
    got = F.batch_norm(*ours)
    assert got.dtype is kind
    assert_close(got, G.batch_norm(*theirs), scale=1)


@pytest.mark.parametrize("p", [0.0, 0.5, 1, 2.0, 3, float("inf")])
def test_normalize_of_any_order(p):
    x, _, y = pair(random("normalize").normal(size=(3, 5)), T.float64, requires_grad=True)
    got, want = (f.normalize(t, p=p) for f, t in ((F, x), (G, y)))
    assert_close(got, want, factor=8)
    g = random("g").normal(size=(3, 5))
    got.backward(T.tensor(g))
    want.backward(torch.tensor(g))
    assert_close(x.grad, y.grad, factor=64, scale=1)


def batch_norm_leaves(dtype, shape=(7, 3, 5)):
    rng = random("batch norm", shape)
    return [leaves(rng.standard_normal(n), dtype) for n in (shape, shape[1], shape[1])]


@pytest.mark.parametrize("dtype", [T.float16, T.bfloat16], ids=repr)
def test_batch_norm_in_half_types(dtype):
    agree(lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
          lambda x, w, b: G.batch_norm(x, None, None, w, b, True), batch_norm_leaves(dtype))  # fmt: skip


@pytest.mark.parametrize("shape", [(7, 3), (7, 3, 5), (1, 2, 3, 5), (4, 1, 1), (0, 3, 2)])
def test_batch_norm_of_any_strides(shape):
    turned = lambda t: t.permute(*reversed(range(t.ndim)))
    x, w, b = batch_norm_leaves(T.float64, shape)
    x = leaves(np.ascontiguousarray(x[1].detach().numpy().T))
    agree(lambda x, w, b: turned(F.batch_norm(turned(x), None, None, w, b, True)),
          lambda x, w, b: turned(G.batch_norm(turned(x), None, None, w, b, True)), [x, w, b])  # fmt: skip


@pytest.mark.parametrize("wanted", ["x", "w", "b", "xw", "xb", "wb"])
def test_batch_norm_for_some_inputs_alone(wanted):
    given = batch_norm_leaves(T.float64)
    for pair_, name in zip(given, "xwb"):
        for t in pair_:
            t.requires_grad_(name in wanted)
    agree(lambda x, w, b: F.batch_norm(x, None, None, w, b, True),
          lambda x, w, b: G.batch_norm(x, None, None, w, b, True), given)  # fmt: skip


@pytest.mark.parametrize("dtype", [T.float32, T.bfloat16], ids=repr)
def test_the_backward_of_batch_norm_makes_nothing_of_the_inputs_size_but_its_gradient(dtype):
    x = T.randn(64, 32, 8).to(dtype).requires_grad_()
    layer = nn.BatchNorm1d(32).to(dtype)
    y = layer(x)
    g = T.randn(64, 32, 8).to(dtype)
    y.backward(g, retain_graph=True)
    x.grad = None
    before = ledger.live_bytes
    ledger.reset_peak()
    y.backward(g)
    assert x.nbytes <= ledger.peak_bytes - before <= x.nbytes + 32 * 4 * 8  # and some numbers a channel
