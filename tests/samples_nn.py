"""The part of the sample table for losses and normalisation over rows."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from tests.sampling import BINARY, CLASSES, Input, Sample, case, positive
from tgrad.dispatch import dispatch
from tgrad.ops import (
    batch_norm_backward as in_training,
    batch_norm_evaluation as evaluation,
    linear_cross_entropy as linear_loss,
    losses,
    norm,
    row_norm,
    row_norm_backward,
)


def probability(rng, shape):
    return rng.uniform(0.05, 0.95, size=shape)


def _both(function, **options):
    """A torch loss of operands that it wants in one shape."""
    return lambda a, b: function(*torch.broadcast_tensors(a, b), reduction="none", **options)


def _entropy(x, target):  # torch's backward has a denominator rounded to float32
    return -(target * torch.log(x) + (1 - target) * torch.log(1 - x))


def _picked(x, target):
    return x.gather(-1, target[..., None])[..., 0]


# Compared on floating dtypes; torch makes these from several ops, whose results have other strides.
REAL: dict[str, Any] = {"integers": False, "strides": False}
TRIPLES = (
    case("odd", (5, 7), (5, 7), (7,)), case("broadcast", (5, 7), (5, 1), (7,)),
    case("transposed", (5, 7), (5, 7), (7,), ways="transposed plain sliced"),
)  # fmt: skip
LOSSES = [
    Sample(losses.absolute_error, losses.absolute_error, lambda a, b: torch.abs(a - b), (Input(), Input()), BINARY,
           ((0.5, 0.5), (-0.0, 0.0)), **REAL),
    Sample(losses.smooth_l1, lambda a, b: losses.smooth_l1(a, b, 0.75), _both(F.smooth_l1_loss, beta=0.75),
           (Input(), Input()), BINARY, ((0.5, 0.5), (0.75, 0.0), (0.0, 2.0)), **REAL, factor=4, scale=1),
    Sample(losses.huber, lambda a, b: losses.huber(a, b, 1.25), _both(F.huber_loss, delta=1.25), (Input(), Input()),
           BINARY, ((0.5, 0.5), (1.25, 0.0), (0.0, 2.0)), **REAL, factor=4, scale=1),
    Sample(losses.bce, losses.bce, _entropy, (Input(probability), Input(probability)), BINARY, **REAL,
           factor=8, scale=4, back_factor=16, back_scale=16),
    Sample(losses.bce_logits, losses.bce_logits, _both(F.binary_cross_entropy_with_logits),
           (Input(), Input(probability)), BINARY, **REAL, factor=4, scale=2, back_factor=4, back_scale=4),
    Sample(losses.bce_logits_weighted, losses.bce_logits_weighted,
           lambda x, t, w: (1 - t) * x - ((w - 1) * t + 1) * F.logsigmoid(x),  # torch has no gradient for w
           (Input(), Input(probability), Input(positive)), TRIPLES, label="bce_logits_weighted", **REAL,
           factor=8, scale=8, back_factor=8, back_scale=8),
    Sample(losses.kl, losses.kl, _both(F.kl_div), (Input(), Input(positive)), BINARY, **REAL, factor=4, scale=4,
           back_factor=4, back_scale=8),
    Sample(losses.kl_log, losses.kl_log, _both(F.kl_div, log_target=True), (Input(), Input()), BINARY, label="kl_log",
           **REAL, factor=4, scale=64, back_factor=4, back_scale=64),
    Sample(losses._pick, losses.pick, _picked, (Input(), CLASSES),
           (case("odd", (7, 5), (7,), length=1), case("transposed", (7, 5), (7,), ways="transposed", length=1),
            case("deep", (3, 2, 5), (3, 2), length=1)), **REAL),
]  # fmt: skip


def _linear_loss(x, weight, bias, target, reduction, back=None):
    """The loss by chunks of two rows; back: instead, its gradient by x from the gradient `back`."""
    settings = (-100, reduction, 0.0, 2)
    args = x, weight, bias, target, None
    out, lse, count = dispatch(linear_loss.linear_cross_entropy_op, args, (x.dtype, *settings))
    if back is None:
        return out
    return dispatch(linear_loss._backward, (back, *args, lse, count), (*settings, ("input",)))[0]


def _linear_loss_backward(g, x, weight, bias, target):
    scores = torch.softmax(F.linear(x, weight, bias), -1)
    return (scores - F.one_hot(target, 5)) * g[:, None] @ weight


LINEAR_LOSS = tuple(
    case(f"{id}-{reduction}", (7, 3), (5, 3), (5,), (7,), ways=ways, length=35, reduction=reduction)
    for id, ways in (
        ("odd", ""), ("transposed", "transposed transposed sliced"), ("sliced", "sliced sliced plain sliced"),
    )
    for reduction in ("mean", "sum", "none")
)  # fmt: skip
LOSSES += [
    Sample(linear_loss.linear_cross_entropy_op, _linear_loss,
           lambda x, w, b, t, reduction: F.cross_entropy(F.linear(x, w, b), t, reduction=reduction),
           (Input(), Input(), Input(), CLASSES), LINEAR_LOSS, integers=False, factor=4, scale=4, back_factor=8,
           back_scale=16, bits=False),
    Sample(linear_loss._backward,
           lambda g, x, w, b, t: _linear_loss(x, w, b, t, reduction="none", back=g), _linear_loss_backward,
           (Input(), Input(), Input(), Input(), CLASSES),
           (case("odd", (7,), (7, 3), (5, 3), (5,), (7,), length=35),), integers=False, factor=8, scale=16),
]  # fmt: skip

ROWS = (
    case("odd", (5, 7), (7,), (7,), length=35), case("deep", (3, 5, 7), (7,), (7,), length=105),
    case("transposed", (5, 7), (7,), (7,), ways="transposed sliced", length=35),
)  # fmt: skip
GROUPS = (case("odd", (3, 4, 5), (4,), (4,), length=20), case("flat", (5, 4), (4,), (4,), length=20))


def _norm_backward(g, x, weight, wanted, over=None):
    """The gradient by the `wanted` one of x and weight, from the statistics that the forward keeps."""
    over = (x.shape[-1],) if over is None else over
    op = row_norm.group_norm_op if isinstance(over, int) else row_norm.layer_norm_op
    _, mean, rstd = dispatch(op, (x, None, None, 1e-5), (over,))
    kinds = tuple(weight.dtype for name in wanted if name != "x")
    weight = weight if "x" in wanted else None  # the sums do without
    return dispatch(row_norm_backward.backward_op, (g, x, mean, rstd, weight), (over, wanted, kinds))[-1]


def _norm_backward_torch(g, x, weight, wanted, over=None):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    over = (x.shape[-1],) if over is None else over
    out = F.group_norm(x, over, weight) if isinstance(over, int) else F.layer_norm(x, over, weight)
    return torch.autograd.grad(out, {"x": x, "weight": weight}[wanted[-1]], g)[0]


BACKWARD = tuple(
    case(f"{id}-{'-'.join(wanted)}", *shapes, length=35, wanted=wanted, **over)
    for id, shapes, over in (
        ("odd", ((5, 7), (5, 7), (7,)), {}), ("groups", ((3, 4, 5), (3, 4, 5), (4,)), {"over": 2}),
        ("flat-groups", ((5, 6), (5, 6), (6,)), {"over": 3}),
    )
    for wanted in (("x",), ("weight",), ("x", "weight"))
)  # fmt: skip


def _batch_norm(x):
    """The result beside which the statistics of the batch are made."""
    return dispatch(norm.training_op, (x, *(None,) * 5, 1e-5, 0.0))[0]


def _batch_norm_backward(g, x, weight, wanted):
    _, mean, rstd = dispatch(norm.training_op, (x, *(None,) * 5, 1e-5, 0.0))
    return dispatch(in_training.backward_op, (g, x, mean, rstd, weight), (wanted, (g.dtype,) * len(wanted)))[-1]


def _batch_norm_backward_torch(g, x, weight, wanted):
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = F.batch_norm(x, None, None, weight, training=True)
    return torch.autograd.grad(out, {"input": x, "weight": weight}[wanted[-1]], g)[0]


def _given_backward(g, x, mean, var, weight, wanted):
    operands = g, x, mean, var, weight, 1e-5
    return dispatch(evaluation.evaluation_backward_op, operands, (wanted, (g.dtype,) * len(wanted)))[-1]


def _given_backward_torch(g, x, mean, var, weight, wanted):
    x, weight, bias = (t.detach().requires_grad_() for t in (x, weight, torch.zeros_like(weight)))
    out = F.batch_norm(x, mean, var, weight, bias)
    return torch.autograd.grad(out, {"input": x, "weight": weight, "bias": bias}[wanted[-1]], g)[0]


BATCHES = (
    ("long", (16411, 2), "plain"), ("planes", (2, 3, 8209), "plain"), ("images", (3, 5, 7), "plain"),
    ("transposed", (7, 5), "transposed"), ("expanded", (3, 5, 7), "expanded"), ("rotated", (3, 4, 5), "rotated"),
    ("odd", (7, 5), "plain"),
)  # fmt: skip


def batches(full, channels, wanted):
    """Cases of `full` operands of the input's shape and as many of `channels` numbers a channel."""
    return tuple(
        case("-".join((id, *names)), *[shape] * full, *[shape[1:2]] * channels,
             ways=" ".join([way] * full + ["plain"] * channels), length=max(35, math.prod(shape)),
             **({"wanted": names} if names else {}))
        for id, shape, way in BATCHES for names in wanted
    )  # fmt: skip


NORMS = [
    Sample(row_norm.layer_norm_op, lambda x, w, b: row_norm.layer_norm(x, (7,), w, b),
           lambda x, w, b: F.layer_norm(x, (7,), w, b), (Input(), Input(), Input()), ROWS, **REAL, factor=4,
           scale=4, back_factor=16, back_scale=8, bits=False),
    Sample(row_norm.rms_norm_op, lambda x, w: row_norm.rms_norm(x, (7,), w, 1e-5),
           lambda x, w: F.rms_norm(x, (7,), w, 1e-5), (Input(), Input()),
           (case("odd", (5, 7), (7,), length=35), case("transposed", (5, 7), (7,), ways="transposed", length=35)),
           **REAL, factor=4, scale=4, back_factor=16, back_scale=8, bits=False),
    Sample(row_norm.group_norm_op, lambda x, w, b: row_norm.group_norm(x, 2, w, b),
           lambda x, w, b: F.group_norm(x, 2, w, b), (Input(), Input(), Input()), GROUPS, **REAL, factor=4,
           scale=4, back_factor=16, back_scale=8, bits=False),
    Sample(row_norm_backward.backward_op, _norm_backward, _norm_backward_torch, (Input(), Input(), Input()), BACKWARD,
           **REAL, factor=16, scale=8),
    Sample(norm.training_op, _batch_norm, lambda x: F.batch_norm(x, None, None, training=True), (Input(),),
           batches(1, 0, [()]), **REAL, factor=4, scale=4),
    Sample(in_training.backward_op, _batch_norm_backward, _batch_norm_backward_torch, (Input(), Input(), Input()),
           batches(2, 1, [("input",), ("weight",), ("input", "weight")]), **REAL, factor=16, scale=8),
    Sample(evaluation.evaluation_op, lambda x, w, b, m, v: norm.batch_norm(x, m, v, w, b),
           lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b),
           (Input(), Input(), Input(), Input(grad=False), Input(positive, grad=False)),
           batches(1, 4, [()])[2:], **REAL, factor=4, scale=2, back_factor=8, back_scale=4, bits=False),
    Sample(evaluation.evaluation_backward_op, _given_backward, _given_backward_torch,
           (Input(), Input(), Input(), Input(positive), Input()),
           batches(2, 3, [("input",), ("weight",), ("input", "bias")]), **REAL, factor=16, scale=8),
]  # fmt: skip

SAMPLES = [*LOSSES, *NORMS]

