"""Losses that are reduced: how many kernels, what is kept, and what the pieces of a large reduction add up to."""

import warnings

import numpy as np
import pytest
import torch

import tgrad as T
import tgrad.nn.functional as F
from tests.compare import random
from tests.twins import agree, leaves, same
from tgrad import kernels
from tgrad.autograd import gradcheck, gradgradcheck
from tgrad.autograd.graph import saved
from tgrad.device import compute
from tgrad.kernels import launch
from tgrad.ops import losses, pointwise, reduced, softmax
from tgrad.ops.reduce import sum_op
from tgrad.storage import ledger

G = torch.nn.functional
# name, options, and the op whose kernels it launches
ELEMENTWISE = [
    ("mse_loss", {}, "squared_error"), ("l1_loss", {}, "absolute_error"), ("smooth_l1_loss", {}, "smooth_l1"),
    ("smooth_l1_loss", {"beta": 0}, "absolute_error"), ("huber_loss", {"delta": 0.5}, "huber"),
    ("binary_cross_entropy", {}, "binary_cross_entropy"),
    ("binary_cross_entropy_with_logits", {}, "binary_cross_entropy_with_logits"), ("kl_div", {}, "kl_div"),
    ("kl_div", {"log_target": True}, "kl_div"),
]  # fmt: skip
SHAPES = [((), ()), ((1,), (1,)), ((7, 5), (7, 5)), ((7, 5), (5,)), ((5,), (7, 5)), ((7, 1), (1, 5)), ((0, 3), (0, 3))]


def launched(call):
    """What the call returns, and the names of the kernels that it launches."""
    names = []
    with launch.listen(names.append):
        return call(), names


def quiet(function, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


def inside(*shape, key=0, dtype=T.float64, requires_grad=True):
    """Values in (0, 1), which each of the losses takes."""
    return leaves(random("reduced", shape, key).uniform(0.1, 0.9, shape), dtype, requires_grad)


@pytest.mark.parametrize(("reduction", "kind"), [("mean", "mean"), ("sum", "sum"), ("batchmean", "mean")])
@pytest.mark.parametrize(("name", "options", "row"), ELEMENTWISE)
def test_one_kernel_each_way(name, options, row, reduction, kind):
    if reduction == "batchmean" and name != "kl_div":
        return
    x, t = (inside(7, 5, key=k, dtype=T.float32)[0] for k in range(2))
    call = lambda: quiet(getattr(F, name), x, t, reduction=reduction, **options)
    loss, names = launched(call)
    assert names == [f"{row}_{kind}"]
    assert not {r.storage_id for r in saved(loss)} - {x.storage.id, t.storage.id}  # the inputs, and no copy
    before = ledger.live_bytes
    ledger.reset_peak()
    again = call()
    assert ledger.peak_bytes - before == again.nbytes == 4
    _, names = launched(loss.backward)
    assert names == ["fill", f"{row}_backward"]  # the 1 that it begins with, and the gradients of both
    assert x.grad is not None and t.grad is not None


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_broadcast_and_empty_operands(shapes, reduction):
    pairs = [inside(*shape, key=k) for k, shape in enumerate(shapes)]
    for name in ("mse_loss", "huber_loss"):
        agree(lambda a, b: quiet(getattr(F, name), a, b, reduction=reduction),
              lambda a, b: quiet(getattr(G, name), a, b, reduction=reduction), pairs)  # fmt: skip


@pytest.mark.parametrize("ways", ["transposed", "sliced", "expanded"])
def test_strided_operands(ways):
    view = {"transposed": lambda t: t.T, "sliced": lambda t: t[1:, ::2], "expanded": lambda t: t[:1].expand(3, 7, 5)}
    pairs = [inside(7, 5, key=k) for k in range(2)]
    agree(lambda a, b: F.mse_loss(view[ways](a), view[ways](b)), lambda a, b: G.mse_loss(view[ways](a), view[ways](b)),
          pairs)  # fmt: skip


@pytest.mark.parametrize(("name", "options"), [
    ("mse_loss", {}), ("smooth_l1_loss", {"reduction": "sum"}), ("binary_cross_entropy_with_logits", {}),
    ("kl_div", {"reduction": "batchmean"}),
])  # fmt: skip
def test_second_derivatives(name, options):
    x, t = inside(2, 2)[0], inside(2, key=1)[0] if name == "mse_loss" else inside(2, 2, key=1)[0]
    function = lambda a, b: quiet(getattr(F, name), a, b, **options)
    assert gradcheck(function, (x, t)) and gradgradcheck(function, (x, t))


def test_half_types_are_rounded_once():
    x, t = (inside(64, 33, key=k, dtype=T.bfloat16)[0] for k in range(2))
    loss = F.mse_loss(x, t)
    exact = F.mse_loss(x.double(), t.double())
    assert loss.dtype is T.bfloat16 and loss.item() == exact.bfloat16().item()
    loss.backward()
    d = (x.double() - t.double()) * (2 / x.numel())
    np.testing.assert_array_equal(x.grad.float().tolist(), d.bfloat16().float().tolist())


def test_integers():
    with pytest.raises(RuntimeError, match="not implemented"):
        F.mse_loss(T.arange(3), T.arange(3))
    x, t = T.tensor([1, 5, 2], dtype=T.int32), T.tensor([4, 4, 4], dtype=T.int32)
    total = F.l1_loss(x, t, reduction="sum")
    assert total.dtype is T.int64 and total.item() == 6
    with pytest.raises(RuntimeError, match="could not infer output dtype"):
        F.l1_loss(x, t)


def test_a_loss_within_a_fused_function():
    pairs = [inside(7, 5, key=k) for k in range(2)]
    fused = T.fuse(lambda a, b: F.smooth_l1_loss(a.sin(), b, beta=0.25))
    agree(fused, lambda a, b: G.smooth_l1_loss(a.sin(), b, beta=0.25), pairs)
    assert len(launched(lambda: fused(*[x.detach() for x, _ in pairs]))[1]) == 1


def test_a_derivative_of_the_result_is_refused():
    with pytest.raises(TypeError, match="sigmoid: a derivative names the result, which is not stored by sum"):
        reduced.Reduced(sum_op, pointwise.sigmoid)


def test_hooks_see_the_gradient_of_the_loss():
    x, t = (inside(3, 2, key=k)[0] for k in range(2))
    loss, seen = F.mse_loss(x, t), []
    loss.register_hook(lambda g: seen.append(g.shape) or g * 3)
    loss.backward()
    assert seen == [()]
    np.testing.assert_allclose(x.grad.tolist(), ((x - t) * (6 / x.numel())).tolist(), rtol=1e-12)


# --- cross-entropy ---------------------------------------------------------------------------------------------------
OPTIONS = [{}, {"weight": True}, {"label_smoothing": 0.2}, {"weight": True, "label_smoothing": 0.2}]


def given(options, **further):
    """The options for tgrad and for torch; a weight is every second element of one."""
    both = []
    for side in range(2):
        w = leaves(random("weight").uniform(0.2, 2, 10), requires_grad=False)[side][::2]
        both.append({**options, **further, **({"weight": w} if "weight" in options else {})})
    return both


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
def test_kernels_of_cross_entropy(options):
    """One for the rows, one that reduces, and one for backward, which ends with it."""
    x, t = leaves(random("x").standard_normal((7, 5)))[0], T.tensor([0, 4, 2, -100, 1, 3, 0])
    reduces = {"mean": ["cross_entropy_mean"], "sum": ["cross_entropy_sum"], "none": []}
    for reduction, further in reduces.items():
        ours = given(options, reduction=reduction)[0]
        if "weight" in ours:
            ours["weight"] = ours["weight"].contiguous()
        x.grad = None
        loss, names = launched(lambda ours=ours: F.cross_entropy(x, t, **ours))
        assert names == ["cross_entropy", *further]
        assert launched(lambda loss=loss: loss.backward(T.ones_like(loss)))[1][-1] == "cross_entropy_backward"


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 5, 3), (0, 5)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_cross_entropy(options, shape, reduction):
    rows = () if len(shape) == 1 else (shape[0], *shape[2:])
    target = random("target", shape).integers(0, 5, rows)
    a, b = given(options, reduction=reduction, ignore_index=2)
    agree(lambda x: F.cross_entropy(x, T.tensor(target), **a), lambda x: G.cross_entropy(x, torch.tensor(target), **b),
          [leaves(random("x", shape).standard_normal(shape) * 3)])  # fmt: skip


def test_strided_weights_of_classes_after_a_linear_layer():
    a, b = given(OPTIONS[-1])
    target = random("target").integers(0, 5, 7)
    agree(lambda x, w: F.linear_cross_entropy(x, w, T.tensor(target), **a),
          lambda x, w: G.cross_entropy(G.linear(x, w), torch.tensor(target), **b), [inside(7, 3), inside(5, 3)])


def test_second_derivatives_of_cross_entropy():
    t = T.tensor([0, 4, 2])
    function = lambda x: F.cross_entropy(x, t, ignore_index=2, **given(OPTIONS[-1])[0])
    x = leaves(random("x").standard_normal((3, 5)))[0]
    assert gradcheck(function, (x,)) and gradgradcheck(function, (x,))


@pytest.mark.skipif(compute.type == "cuda", reason="there the number of pieces is the GPU's")
@pytest.mark.parametrize("pieces", [2, 3])
def test_the_mean_of_many_rows_is_taken_in_pieces(pieces, monkeypatch):
    monkeypatch.setattr(kernels.softmax, "chunks", lambda *of: pieces)
    monkeypatch.setattr(kernels.softmax, "reduce_tile", lambda *of, across: (1, 4))
    softmax.cross_entropy_op.plans.clear()
    x = leaves(random("x").standard_normal((11, 5)))
    target = random("target").integers(0, 5, 11)
    call = lambda: F.cross_entropy(x[0], T.tensor(target), ignore_index=2)
    assert launched(call)[1][-2:] == ["cross_entropy_mean"] * 2
    same(call(), G.cross_entropy(x[1], torch.tensor(target), ignore_index=2))
    softmax.cross_entropy_op.plans.clear()


def test_every_elementwise_loss_is_listed():
    rows = {v.name for v in vars(losses).values() if isinstance(v, pointwise.Pointwise)} | {"squared_error"}
    assert {row for *_, row in ELEMENTWISE} == rows
