"""The part of the sample table for losses and normalisation over rows."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from tests.sampling import BINARY, CLASSES, Input, Sample, case, positive
from tgrad.dispatch import dispatch
from tgrad.ops import linear_cross_entropy as linear_loss, losses, row_norm


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


def _statistics(x):
    """Mean and 1 / deviation of the rows of (rows, groups, channels, elements), as the forward keeps them."""
    return dispatch(row_norm._layer_norm, (x, None, None, 1e-5), (False,))[1:3]


def _hat(x):
    spread = torch.sqrt(x.var((2, 3), correction=0, keepdim=True) + 1e-5)
    return (x - x.mean((2, 3), keepdim=True)) / spread, spread


def _backward(g, x):
    hat, spread = _hat(x)
    average = lambda t: t.mean((2, 3), keepdim=True)
    return (g - average(g) - hat * average(g * hat)) / spread


FOUR = (case("odd", (5, 1, 7, 1), (5, 1, 7, 1), length=35), case("groups", (3, 2, 2, 5), (3, 2, 2, 5), length=30))
NORMS = [
    Sample(row_norm._layer_norm, lambda x, w, b: row_norm.layer_norm(x, (7,), w, b),
           lambda x, w, b: F.layer_norm(x, (7,), w, b), (Input(), Input(), Input()), ROWS, **REAL, factor=4,
           scale=4, back_factor=16, back_scale=8, bits=False),
    Sample(row_norm._rms_norm, lambda x, w: row_norm.rms_norm(x, (7,), w, 1e-5),
           lambda x, w: F.rms_norm(x, (7,), w, 1e-5), (Input(), Input()),
           (case("odd", (5, 7), (7,), length=35), case("transposed", (5, 7), (7,), ways="transposed", length=35)),
           **REAL, factor=4, scale=4, back_factor=16, back_scale=8, bits=False),
    Sample(row_norm._group_norm, lambda x, w, b: row_norm.group_norm(x, 2, w, b),
           lambda x, w, b: F.group_norm(x, 2, w, b), (Input(), Input(), Input()), GROUPS, **REAL, factor=4,
           scale=4, back_factor=16, back_scale=8, bits=False),
    Sample(row_norm._backward, lambda g, x: row_norm._backward(g, x, *_statistics(x), None, rms=False), _backward,
           (Input(), Input()), FOUR, **REAL, factor=16, scale=8),
    Sample(row_norm._weight_backward,
           lambda g, x: row_norm._weight_backward(g, x, *_statistics(x), kind=x.dtype),
           lambda g, x: (g * _hat(x)[0]).sum((0, 3), True), (Input(), Input()), FOUR, **REAL, factor=16,
           scale=8),
]  # fmt: skip

SAMPLES = [*LOSSES, *NORMS]

