"""Losses against torch's: values, gradients, reductions, warnings and errors."""

import warnings

import numpy as np
import pytest
import torch

import tgrad as T
import tgrad.nn.functional as F
from tests.compare import random
from tests.errors import message
from tests.twins import agree, host, leaves, same
from tgrad import nn
from tgrad.device import compute

G = torch.nn.functional
REDUCTIONS = ["none", "mean", "sum"]
pytestmark = pytest.mark.anywhere


def draw(*shape, low=None, high=None, key=0):
    rng = random("losses", shape, key)
    return rng.standard_normal(shape) if low is None else rng.uniform(low, high, shape)


def quiet(f, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f(*args, **kwargs)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("name", "options"),
    [("l1_loss", {}), ("mse_loss", {}), ("smooth_l1_loss", {}), ("smooth_l1_loss", {"beta": 0.5}),
     ("smooth_l1_loss", {"beta": 0}), ("huber_loss", {}), ("huber_loss", {"delta": 0.3})],
)  # fmt: skip
def test_regression_losses(name, options, reduction):
    for dtype in (T.float64, T.float32):
        pairs = [leaves(draw(3, 4, key=k), dtype) for k in range(2)]
        with_options = {**options, "reduction": reduction}
        agree(lambda a, b: getattr(F, name)(a, b, **with_options), lambda a, b: getattr(G, name)(a, b, **with_options),
              pairs)  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ["l1_loss", "mse_loss", "huber_loss"])
def test_weighted_regression(name, reduction):
    pairs = [leaves(draw(3, 4, key=k)) for k in range(2)]
    w, v = leaves(draw(3, 4, low=0.1, high=2), requires_grad=False)
    agree(lambda a, b: getattr(F, name)(a, b, weight=w, reduction=reduction),
          lambda a, b: getattr(G, name)(a, b, weight=v, reduction=reduction), pairs)  # fmt: skip


def test_kinks_have_torchs_gradients():
    x = np.array([0.0, 1.0, -1.0, 2.0])
    for name in ("l1_loss", "smooth_l1_loss", "huber_loss"):
        agree(lambda a, b: getattr(F, name)(a, b), lambda a, b: getattr(G, name)(a, b),
              [leaves(x), leaves(np.zeros(4))])  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_binary_cross_entropy(reduction, weighted):
    x = draw(3, 4, low=0, high=1)
    x[0, :2] = 0, 1
    target = draw(3, 4, low=0, high=1, key=1)
    kind = T.float32  # torch's least denominator is a float32 number in float64 too
    w, v = leaves(draw(4, low=0.1, high=2), kind, False) if weighted else (None, None)
    agree(lambda a, b: F.binary_cross_entropy(a, b, w, reduction=reduction),
          lambda a, b: G.binary_cross_entropy(a, b, v, reduction=reduction),
          [leaves(x, kind), leaves(target, kind, False)])  # fmt: skip
    ours, theirs = nn.BCELoss(w, reduction=reduction), torch.nn.BCELoss(v, reduction=reduction)
    agree(ours, theirs, [leaves(x, kind), leaves(target, kind, False)])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("pos", [False, True])
def test_binary_cross_entropy_with_logits(reduction, pos):
    x = draw(3, 4) * 3
    x[0] = 100, -100, 40, 0
    target, pw = draw(3, 4, low=0, high=1, key=1), draw(4, low=0.1, high=3, key=2)
    for dtype in (T.float64, T.float32):
        ours = lambda a, b, w, c: F.binary_cross_entropy_with_logits(
            a, b, w, pos_weight=c if pos else None, reduction=reduction
        )
        theirs = lambda a, b, w, c: G.binary_cross_entropy_with_logits(
            a, b, w, pos_weight=c if pos else None, reduction=reduction
        )
        agree(ours, theirs, [leaves(x, dtype), leaves(target, dtype), leaves(draw(3, 4, key=5), dtype, False),
                             leaves(pw, dtype, False)])  # fmt: skip


@pytest.mark.parametrize("reduction", [*REDUCTIONS, "batchmean"])
@pytest.mark.parametrize("log_target", [False, True])
@pytest.mark.filterwarnings("ignore:reduction")
def test_kl_div(reduction, log_target):
    x, t = draw(3, 4), draw(3, 4, low=0, high=1, key=1)
    t[0, 0] = 0
    ours = lambda a, b: F.kl_div(a, b, reduction=reduction, log_target=log_target)
    theirs = lambda a, b: G.kl_div(a, b, reduction=reduction, log_target=log_target)
    agree(ours, theirs, [leaves(x), leaves(t, requires_grad=log_target)])


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 5, 3), (2, 5, 2, 3)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nll_loss(shape, reduction):
    rows = () if len(shape) == 1 else (shape[0], *shape[2:])
    target = random("target", shape).integers(0, 5, rows)
    w, v = leaves(draw(5, low=0.1, high=2), requires_grad=False)
    for options in ({}, {"ignore_index": 2}, {"weight": True}, {"weight": True, "ignore_index": 1}):
        ours, theirs = dict(options), dict(options)
        if "weight" in options:
            ours["weight"], theirs["weight"] = w, v
        agree(lambda a, b: F.nll_loss(a, b, reduction=reduction, **ours),
              lambda a, b: G.nll_loss(a, b, reduction=reduction, **theirs),
              [leaves(draw(*shape)), leaves(target)])  # fmt: skip


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 5, 3)], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "options",
    [{}, {"label_smoothing": 0.2}, {"weight": True}, {"weight": True, "label_smoothing": 0.3},
     {"ignore_index": 1, "label_smoothing": 0.1}, {"ignore_index": 1, "weight": True, "label_smoothing": 0.1}],
    ids=str,
)  # fmt: skip
def test_cross_entropy(shape, reduction, options):
    rows = () if len(shape) == 1 else (shape[0], *shape[2:])
    target = random("target", shape).integers(0, 5, rows)
    w, v = leaves(draw(5, low=0.1, high=2), requires_grad=False)
    ours, theirs = dict(options), dict(options)
    if "weight" in options:
        ours["weight"], theirs["weight"] = w, v
    agree(lambda a, b: F.cross_entropy(a, b, reduction=reduction, **ours),
          lambda a, b: G.cross_entropy(a, b, reduction=reduction, **theirs),
              [leaves(draw(*shape)), leaves(target)])  # fmt: skip
    if "ignore_index" not in options:
        soft = draw(*shape, low=0, high=1, key=3)
        agree(lambda a, b: F.cross_entropy(a, b, reduction=reduction, **ours),
              lambda a, b: G.cross_entropy(a, b, reduction=reduction, **theirs),
              [leaves(draw(*shape)), leaves(soft)])  # fmt: skip


def test_all_ignored_is_nan():
    x, t = T.zeros(2, 3, dtype=T.float64), T.tensor([1, 1])
    for options in ({}, {"label_smoothing": 0.1}):
        assert np.isnan(float(F.cross_entropy(x, t, ignore_index=1, **options)))
    assert np.isnan(float(F.nll_loss(x, t, ignore_index=1)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_cosine_embedding_loss(reduction):
    a, b, t = draw(4, 3), draw(4, 3, key=1), np.array([1, -1, 1, -1])
    for margin in (0, 0.2):
        agree(lambda x, y, z: F.cosine_embedding_loss(x, y, z, margin, reduction=reduction),
              lambda x, y, z: G.cosine_embedding_loss(x, y, z, margin, reduction=reduction),
              [leaves(a), leaves(b), leaves(t)])  # fmt: skip
    agree(nn.CosineEmbeddingLoss(0.1), torch.nn.CosineEmbeddingLoss(0.1), [leaves(a[0]), leaves(b[0]), leaves(t[0])])


def test_cosine_similarity():
    a, b = draw(2, 3, 4), draw(2, 1, 4, key=1)
    a[0, 0] = 0
    for dim in (1, -1):
        agree(lambda x, y: F.cosine_similarity(x, y, dim), lambda x, y: G.cosine_similarity(x, y, dim),
              [leaves(a), leaves(b)])  # fmt: skip
    agree(nn.CosineSimilarity(0), torch.nn.CosineSimilarity(0), [leaves(a), leaves(b)])


MODULES = [
    ("L1Loss", {}), ("SmoothL1Loss", {"beta": 0.4}), ("HuberLoss", {"delta": 0.6}), ("MSELoss", {"reduction": "sum"}),
    ("BCEWithLogitsLoss", {}), ("KLDivLoss", {"reduction": "batchmean"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), MODULES)
def test_modules(name, options):
    x, t = draw(3, 4), draw(3, 4, low=0.1, high=1, key=2)
    ours, theirs = getattr(nn, name)(**options), getattr(torch.nn, name)(**options)
    agree(ours, theirs, [leaves(x), leaves(t, requires_grad=False)])
    assert repr(ours) == repr(theirs)


def test_module_weights_are_state():
    w = T.tensor([1.0, 2.0, 3.0])
    assert list(nn.NLLLoss(w).state_dict()) == list(torch.nn.NLLLoss(torch.ones(3)).state_dict()) == ["weight"]
    assert list(nn.BCEWithLogitsLoss(pos_weight=w).state_dict()) == ["pos_weight"]
    target = T.tensor([2, 0])
    x = T.tensor(draw(2, 3), dtype=T.float32)
    same(nn.NLLLoss(w, ignore_index=0)(x, target),
         G.nll_loss(torch.tensor(host(x)), torch.tensor([2, 0]), torch.tensor([1.0, 2, 3]), ignore_index=0))


@pytest.mark.parametrize("name", ["l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss"])
def test_sizes_that_differ_warn(name):
    with pytest.warns(UserWarning, match="Using a target size"):
        ours = getattr(F, name)(T.ones(2, 3), T.zeros(3))
    with pytest.warns(UserWarning, match="Using a target size"):
        same(ours, getattr(G, name)(torch.ones(2, 3), torch.zeros(3)))


def test_kl_mean_warns():
    with pytest.warns(UserWarning, match="'batchmean' divides only by the batch size"):
        F.kl_div(T.ones(2, 2), T.ones(2, 2))


def test_errors_are_torchs():
    calls = [
        lambda f, t: f.l1_loss(t.ones(2), t.ones(2), reduction="avg"),
        lambda f, t: f.smooth_l1_loss(t.ones(2), t.ones(2), beta=-1.0),
        lambda f, t: f.huber_loss(t.ones(2), t.ones(2), delta=0.0),
        lambda f, t: f.binary_cross_entropy(t.ones(2), t.ones(3)),
        lambda f, t: f.binary_cross_entropy_with_logits(t.ones(2), t.ones(3)),
        lambda f, t: f.l1_loss(t.ones(2), t.ones(2), weight=t.ones(3)),
        lambda f, t: f.nll_loss(t.ones(2, 3), t.zeros(3, dtype=t.int64)),
        lambda f, t: f.nll_loss(t.ones(2, 3), t.zeros(2, dtype=t.int64), t.ones(2)),
        lambda f, t: f.cosine_embedding_loss(t.ones(2, 3), t.ones(2, 3), t.ones(2, 1)),
        lambda f, t: f.cross_entropy(t.ones(2, 3), t.zeros(2, dtype=t.int64), label_smoothing=2.0),
    ]
    for call in calls:
        assert quiet(message, call, F, T) == quiet(message, call, G, torch)


@pytest.mark.skipif(compute.type == "cuda", reason="the CPU's check: on a GPU it would wait for the values")
def test_a_probability_outside_is_refused():
    with pytest.raises(RuntimeError, match="all elements of input should be between 0 and 1"):
        F.binary_cross_entropy(T.tensor([1.5]), T.tensor([1.0]))


def test_a_class_out_of_range_is_refused():
    for options in ({}, {"label_smoothing": 0.1}, {"weight": T.ones(3)}):
        with T.check_indices(), pytest.raises(IndexError, match="Target 3 is out of bounds|index 3, at"):
            F.cross_entropy(T.ones(2, 3), T.tensor([0, 3]), **options)


def test_second_derivatives():
    x = T.tensor(draw(3, 4), requires_grad=True)
    t = T.tensor(draw(3, 4, low=0.1, high=0.9, key=1))
    for f in (
        lambda v: F.binary_cross_entropy_with_logits(v, t), lambda v: F.smooth_l1_loss(v, t, beta=0.3),
        lambda v: F.cross_entropy(v, T.tensor([0, 1, 3]), label_smoothing=0.1), lambda v: F.cross_entropy(v, t),
        lambda v: F.cosine_similarity(v, t),
    ):  # fmt: skip
        assert T.autograd.gradcheck(f, (x,)) and T.autograd.gradgradcheck(f, (x,))


def test_the_plain_case_keeps_no_probabilities():
    x = T.randn(8, 16, requires_grad=True)
    loss = F.cross_entropy(x, T.zeros(8, dtype=T.int64))
    below = loss.grad_fn.next_functions[0][0]
    assert loss.grad_fn.name() == "NllLossBackward0" and below.name() == "torch::autograd::AccumulateGrad"


@pytest.mark.parametrize("dtype", [T.float16, T.bfloat16])
def test_half_types(dtype):
    for name in ("l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits"):
        agree(lambda a, b: getattr(F, name)(a, b), lambda a, b: getattr(G, name)(a, b),
              [leaves(draw(3, 4), dtype), leaves(draw(3, 4, low=0, high=1), dtype, False)])  # fmt: skip
