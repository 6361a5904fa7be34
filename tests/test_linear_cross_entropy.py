"""Linear and cross-entropy in one: torch's values and gradients, second derivatives, memory to the byte, errors."""

import itertools

import numpy as np
import pytest
import torch

import tgrad as T
import tgrad.nn.functional as F
from tests.compare import NEWEST, TORCH, random
from tests.twins import agree, host, leaves, same_grads, twin
from tgrad import nn
from tgrad.autograd.graph import saved
from tgrad.ops.linear_cross_entropy import block_classes, chunk_rows
from tgrad.storage import ledger

G = torch.nn.functional
pytestmark = pytest.mark.anywhere


def two_functions(x, w, t, linear_bias=None, **options):
    options = {name: value for name, value in options.items() if value is not None}
    bias = None if linear_bias is None else linear_bias.reshape(-1)
    logits = G.linear(x, w.reshape(-1, w.shape[-1]) if w.numel() else w, bias)
    return G.cross_entropy(logits.reshape(*x.shape[:-1], *w.shape[:-1]), t, **options)


torch_loss = getattr(G, "linear_cross_entropy", two_functions)


def draw(*shape, key=0):
    return random("linear cross-entropy", shape, key).standard_normal(shape)


def classes(n, *shape):
    return random("classes", n, shape).integers(0, n, shape)


def cut(rows):
    return nn.LinearCrossEntropyOptions(batch_chunk_size=rows)


# Rows, features, classes, rows of a chunk: one part or several of each kind, whole or with a rest.
SHAPES = [(7, 5, 11, None), (1, 1, 1, None), (150, 3, 37, None), (37, 3, 2, 16), (23, 3, 150, 7), (5, 3, 131, 1)]


@pytest.mark.parametrize(("rows", "features", "count", "size"), SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["none", "mean", pytest.param("sum", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("smoothing", [0.3, pytest.param(0.0, marks=pytest.mark.thorough)])
def test_agrees_with_torch(rows, features, count, size, reduction, smoothing):
    target = leaves(classes(count, rows))
    for weighted, biased, ignored in ((False, False, None), (True, True, 1), (False, True, 1), (True, False, None)):
        w, v = leaves(np.abs(draw(count)) + 0.1, requires_grad=False) if weighted else (None, None)
        options = {"reduction": reduction, "label_smoothing": smoothing, "ignore_index": ignored}
        pairs = [leaves(draw(rows, features)), leaves(draw(count, features, key=1)), target]
        pairs += [leaves(draw(count, key=2))] if biased else []
        agree(lambda x, y, t, b=None: F.linear_cross_entropy(
                  x, y, t, linear_bias=b, weight=w, options=size and cut(size), **options),
              lambda x, y, t, b=None: torch_loss(x, y, t, linear_bias=b, weight=v, **options),
              pairs)  # fmt: skip


@pytest.mark.parametrize("wanted", [p for p in itertools.product((False, True), repeat=3) if any(p)], ids=str)
def test_any_of_the_gradients_may_be_wanted(wanted):
    arrays = draw(23, 3), draw(150, 3, key=1), draw(150, key=2)
    pairs = [leaves(a, requires_grad=r) for a, r in zip(arrays, wanted, strict=True)]
    t, u = leaves(classes(150, 23))
    agree(lambda x, w, b: F.linear_cross_entropy(x, w, t, linear_bias=b, options=cut(16)),
          lambda x, w, b: torch_loss(x, w, u, linear_bias=b), pairs)  # fmt: skip
    assert [x.grad is not None for x, _ in pairs] == list(wanted)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_other_layouts_a_single_row_and_small_classes(reduction):
    target = classes(70, 18)
    small = T.tensor(target.astype(np.uint8)), torch.tensor(target)
    agree(lambda a, b: F.linear_cross_entropy(a.T[1::2, :3], b.T, small[0], reduction=reduction, options=cut(5)),
          lambda a, b: torch_loss(a.T[1::2, :3], b.T, small[1], reduction=reduction),
          [leaves(draw(7, 37)), leaves(draw(3, 70))])  # fmt: skip
    agree(lambda a, b: F.linear_cross_entropy(a, b, T.tensor(2), reduction=reduction),
          lambda a, b: torch_loss(a, b, torch.tensor(2), reduction=reduction),
          [leaves(draw(7)), leaves(draw(5, 7))])  # fmt: skip


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_what_goes_through_the_whole_logits(reduction):
    """Probabilities, logits of more dimensions, and nothing at all."""
    soft = random("soft").dirichlet(np.ones(5), 4)
    deep, deep_target = draw(5, 2, 3, 7), classes(5, 4, 2, 3)
    for w, b, target in ((draw(5, 7), draw(5), soft), (deep, draw(5, 2, 3), deep_target)):
        agree(lambda x, w, b, t: F.linear_cross_entropy(x, w, t, linear_bias=b, reduction=reduction),
              lambda x, w, b, t: torch_loss(x, w, t, linear_bias=b, reduction=reduction),
              [leaves(draw(4, 7)), leaves(w), leaves(b), leaves(target, requires_grad=False)])  # fmt: skip
    for rows, features in ((0, 3), (4, 0)):
        agree(lambda x, w, t: F.linear_cross_entropy(x, w, t, reduction=reduction),
              lambda x, w, t: torch_loss(x, w, t, reduction=reduction),
              [leaves(draw(rows, features)), leaves(draw(5, features)), leaves(classes(5, rows))])  # fmt: skip


@pytest.mark.parametrize(("reduction", "options"), [
    ("none", {}), ("mean", {"weight": True, "label_smoothing": 0.2, "ignore_index": 0}),
    ("sum", {"label_smoothing": 0.1}),
], ids=str)  # fmt: skip
def test_second_derivatives(reduction, options):
    x, w, b = (T.tensor(draw(*shape), requires_grad=True) for shape in ((2, 1), (3, 1), (3,)))
    t = T.tensor([0, 2])
    if "weight" in options:
        options = {**options, "weight": T.tensor([0.5, 1.0, 2.0], dtype=T.float64)}
    f = lambda x, w, b: F.linear_cross_entropy(x, w, t, linear_bias=b, reduction=reduction, **options)
    assert T.autograd.gradcheck(f, (x, w, b)) and T.autograd.gradgradcheck(f, (x, w, b))


@pytest.mark.parametrize("dtype", [T.float16, T.bfloat16, T.float32])
def test_low_types_are_as_near_as_the_two_functions(dtype):
    """The error against float64 is at most what linear and cross_entropy make, and one rounding more."""
    arrays, target = (draw(150, 8), draw(200, 8, key=1), draw(200, key=2)), classes(200, 150)

    def errors(function):
        pairs = [leaves(a, dtype) for a in arrays]
        exact = [y.detach().double().requires_grad_() for _, y in pairs]
        loss = function(*[x for x, _ in pairs])
        want = torch_loss(*exact[:2], torch.tensor(target), linear_bias=exact[2])
        assert loss.dtype is dtype
        loss.backward()
        want.backward()
        got = [loss, *[x.grad for x, _ in pairs]]
        want = [want.detach().numpy(), *[y.grad.numpy() for y in exact]]
        return [np.abs(host(a.double()) - b).max() / np.abs(b).max() for a, b in zip(got, want, strict=True)]

    ids = T.tensor(target)
    ours = errors(lambda x, w, b: F.linear_cross_entropy(x, w, ids, linear_bias=b, options=cut(16)))
    two = errors(lambda x, w, b: F.cross_entropy(F.linear(x, w, b), ids))
    eps = torch.finfo(TORCH[dtype]).eps
    assert all(a <= b + eps for a, b in zip(ours, two, strict=True)), (ours, two)


def test_autocast_computes_in_the_low_type_and_returns_float32():
    x, w = (T.tensor(draw(9, 4, key=k), dtype=T.float32, requires_grad=True) for k in range(2))
    t, each = T.tensor(classes(9, 9)), T.rand(9)

    def run(function):
        x.grad = w.grad = None
        with T.autocast(x.device.type, T.bfloat16):
            loss = function()
        loss.backward()
        assert loss.dtype is T.float32 and x.grad.dtype is w.grad.dtype is T.float32
        return [host(a) for a in (loss, x.grad, w.grad)]

    for options in ({}, {"weight": each, "label_smoothing": 0.1}):
        got = run(lambda: F.linear_cross_entropy(x, w, t, **options))
        want = run(lambda: F.cross_entropy(F.linear(x, w), t, **options))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-3)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-6)


# --- memory ----------------------------------------------------------------------------------------------------
N, K, C = 512, 64, 4096


def measured(function, dtype):
    """(bytes kept beside leaves, peak of forward, peak of forward and backward), beyond what was live before."""
    x, w, b = (T.zeros(*shape, dtype=dtype, requires_grad=True) for shape in ((N, K), (C, K), (C,)))
    t = T.zeros(N, dtype=T.int64)
    for _ in range(2):  # plans, and the constants they hold, stay after the first
        x.grad = w.grad = b.grad = None
        before = ledger.live_bytes
        ledger.reset_peak()
        loss = function(x, w, b, t)
        kept = sum(r.storage_bytes for r in saved(loss) if not r.is_leaf and r.storage_id != t.storage.id)
        forward = ledger.peak_bytes - before
        loss.backward()
    return kept, forward, ledger.peak_bytes - before


@pytest.mark.parametrize("dtype", [T.float32, T.bfloat16])
def test_memory(dtype):
    *_, whole = measured(lambda x, w, b, t: F.cross_entropy(F.linear(x, w, b), t), dtype)
    kept, forward, peak = measured(lambda x, w, b, t: F.linear_cross_entropy(x, w, t, linear_bias=b), dtype)
    size, part = dtype.itemsize, 64 * C * dtype.itemsize  # a chunk of 64 rows, then a block of 512 classes
    rows = N * 4
    assert (chunk_rows(N, K, C), block_classes(N, C, 64)) == (64, 512)
    assert kept == rows + 4  # the log-sum-exp, and the number of rows
    assert forward == part + 3 * rows + 4 + size  # the losses, who counts, and the log-sum-exp; the results
    gradients = (N * K + C * K + C) * size
    sums = 0 if dtype is T.float32 else N * K * 4
    assert peak == kept + size + gradients + part + sums
    assert peak <= 0.2 * whole
    with T.no_grad():
        assert measured_without_graph(dtype) == forward


def measured_without_graph(dtype):
    x, w, b = (T.zeros(*shape, dtype=dtype) for shape in ((N, K), (C, K), (C,)))
    t, before = T.zeros(N, dtype=T.int64), ledger.live_bytes
    ledger.reset_peak()
    F.linear_cross_entropy(x, w, t, linear_bias=b)
    return ledger.peak_bytes - before


def test_parts_have_about_the_memory_of_the_input():
    assert chunk_rows(8192, 4096, 131072) == 256 and block_classes(8192, 131072, 256) == 4096
    assert chunk_rows(5, 4096, 100) == 5 and block_classes(5, 100, 5) == 100
    assert chunk_rows(1000, 8, 10**6) == 64 and block_classes(1000, 10**6, 64) == 64000
    assert chunk_rows(8192, 100, 200) == 4096 and block_classes(8192, 200, 4096) == 112


# --- the module, errors ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [
    {}, {"bias": True, "label_smoothing": 0.2, "ignore_index": 1, "reduction": "sum"},
    {"out_features": (2, 3), "bias": True, "reduction": "none"},
], ids=str)  # fmt: skip
@pytest.mark.skipif(not NEWEST, reason="an older torch lacks the module")
def test_module(options):
    ours, theirs = (m.LinearCrossEntropyLoss(7, 5, dtype=t.float64, **options) for m, t in ((nn, T), (torch.nn, torch)))
    twin(ours, theirs)
    agree(ours, theirs, [leaves(draw(4, 7)), leaves(classes(5, 4, *options.get("out_features", ())))])
    same_grads(ours, theirs)
    assert ours.extra_repr() == theirs.extra_repr()


X, W, B, CLASSES = T.ones(2, 3), T.ones(4, 3), T.ones(4), T.tensor([0, 1])
WRONG = [
    (lambda: F.linear_cross_entropy(X, W, CLASSES, reduction="avg"), ValueError, "avg is not a valid value"),
    (lambda: F.linear_cross_entropy(X[None], W, CLASSES), RuntimeError, r"dimensionality 1 or 2, got 3 \(input shape"),
    (lambda: F.linear_cross_entropy(X, W[0], CLASSES), RuntimeError, r"at least 2, got 1 .*linear_weight shape \(3,\)"),
    (lambda: F.linear_cross_entropy(X, W[:, :2], CLASSES), RuntimeError, r"got 3 and 2 \(input shape \(2, 3\)"),
    (lambda: F.linear_cross_entropy(X, W, CLASSES, linear_bias=B[:2]), RuntimeError, r"linear_bias shape \(4,\), got"),
    (lambda: F.linear_cross_entropy(X[0], W[None], CLASSES), RuntimeError, "K-dimensional loss"),
    (lambda: F.linear_cross_entropy(X, W, T.ones(2, 4), ignore_index=1), RuntimeError, "ignore_index cannot be"),
    (lambda: F.linear_cross_entropy(X, W, CLASSES, label_smoothing=2.0), RuntimeError, "between 0.0 and 1.0. Got: 2"),
    (lambda: F.linear_cross_entropy(X, W, T.tensor([0, 1, 2])), ValueError, r"batch_size \(2\) to match .* \(3\)"),
    (lambda: F.linear_cross_entropy(X, W, T.zeros(2, 1, dtype=T.int64)), RuntimeError, r"target shape \(2,\) for"),
    (lambda: F.linear_cross_entropy(X, W, CLASSES.int()), RuntimeError, "expected scalar type Long but found Int"),
    (lambda: F.linear_cross_entropy(X, W, CLASSES, weight=B[:3]), RuntimeError, r"weight must be .* shape \(4,\), one"),
    (lambda: F.linear_cross_entropy(X, W.double(), CLASSES), RuntimeError, "linear_weight to have the same dtype"),
    (lambda: F.linear_cross_entropy(X.int(), W.int(), CLASSES), RuntimeError, "not implemented for"),
    (lambda: F.linear_cross_entropy(X, W, CLASSES + 3), IndexError, "Target 4 is out of bounds|index 4, at"),
    (lambda: F.linear_cross_entropy(X, W, [0, 1]), TypeError, "argument 'target' must be Tensor, not list"),
    (lambda: F.linear_cross_entropy(X, W, CLASSES, options=3), TypeError, "options must be LinearCrossEntropyOptions"),
    (lambda: cut(0), ValueError, "batch_chunk_size must be positive int or None, got 0"),
    (lambda: nn.LinearCrossEntropyLoss(3, 4, weight=B[:2]), RuntimeError, "expected weight shape"),
    (lambda: nn.LinearCrossEntropyLoss(3, 4, label_smoothing=-1.0), RuntimeError, r"in range \[0, 1\]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "text"), WRONG)
def test_errors(call, kind, text):
    with T.check_indices(), pytest.raises(kind, match=text):
        call()


def test_ignored_rows_count_for_nothing():
    x = T.tensor([[np.inf, 1.0], [1.0, 2.0]], dtype=T.float64, requires_grad=True)
    w = T.tensor([[1.0, 0.5], [0.25, 1.0], [2.0, 2.0]], dtype=T.float64)
    loss = F.linear_cross_entropy(x, w, T.tensor([-100, 1]))
    loss.backward()
    assert np.isfinite(loss.item()) and not host(x.grad)[0].any() and host(x.grad)[1].all()
    assert np.isnan(F.linear_cross_entropy(x.detach(), w, T.tensor([2, 2]), ignore_index=2).item())
