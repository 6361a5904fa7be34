"""Losses as functions. Elementwise ones and cross-entropy of classes are fused with their reduction."""

from __future__ import annotations

import math
import warnings
from typing import Any

from tgrad import dtypes
from tgrad.autocasting import full, is_autocast_enabled
from tgrad.layout import broadcast_shapes
from tgrad.op import Pointwise
from tgrad.ops import bounds, losses as l_, pointwise as p, reduce as r_, softmax as rows
from tgrad.ops.reduced import mean_of, sum_of
from tgrad.tensor import Tensor

REDUCTIONS = ("none", "mean", "sum")


def legacy_reduction(size_average: bool | None, reduce: bool | None) -> str:
    """The reduction that the arguments of old PyTorch mean. Warns."""
    mean = "mean" if size_average is None or size_average else "sum"
    name = mean if reduce is None or reduce else "none"
    warnings.warn(
        f"size_average and reduce args will be deprecated, please use reduction='{name}' instead.", stacklevel=3
    )
    return name


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    if size_average is not None or reduce is not None:
        mean = size_average is None or size_average
        reduction = ("mean" if mean else "sum") if reduce is None or reduce else "none"
        warnings.warn(
            f"size_average and reduce args will be deprecated, please use reduction='{reduction}' instead.",
            stacklevel=4,
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return reduction


def _reduced(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return loss
    return r_.mean(loss) if reduction == "mean" else r_.sum(loss)


def _loss(reduction: str, row: Pointwise, *args: Any) -> Tensor:
    """row(*args), or its mean or sum, in one kernel."""
    if reduction == "none":
        return row(*args)
    return mean_of(row, *args) if reduction == "mean" else sum_of(row, *args)


def _tensors(name: str, **given: Any) -> None:
    for argument, t in given.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}(): argument '{argument}' must be Tensor, not {type(t).__name__}")


def _sizes(input: Tensor, target: Tensor) -> None:
    """Warn of shapes that differ; refuse those that cannot be broadcast."""
    if target.shape != input.shape:
        warnings.warn(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). This will "
            "likely lead to incorrect results due to broadcasting. Please ensure they have the same size.",
            stacklevel=3,
        )
        broadcast_shapes(tuple(input.shape), tuple(target.shape))


def _weights(weight: Tensor | None, input: Tensor) -> None:
    if weight is not None and weight.shape != input.shape:
        raise ValueError("Weights and input must have the same size.")


# --- regression: input and target of one shape -----------------------------------------------------------------
def mse_loss(
    input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """(input - target) ** 2, its mean or its sum: two tensors of one shape.

    Args:
        weight: of the input's shape; multiplies each element, and the mean is by the sum of weights.

    Shape: input and target broadcast (PyTorch's warning where they differ); the result is 0-dim, with "none" the
    broadcast shape.
    Dtype: floating; the result has their common dtype.
    Raises:
        ValueError: an unknown reduction.
        RuntimeError: the shapes cannot be broadcast.
    """
    _tensors("mse_loss", input=input, target=target)
    _sizes(input, target)
    reduction = _reduction(size_average, reduce, reduction)
    input, target = full(input, target)
    return _weighted(p.squared_error, input, target, weight, reduction)


def l1_loss(
    input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """|input - target|, its mean or its sum. Arguments as of `tgrad.nn.functional.mse_loss`.

    Shape: input and target broadcast (PyTorch's warning where they differ); the result is 0-dim, with "none" the
    broadcast shape.
    Dtype: the operands' common dtype; floating for a mean.
    Raises:
        TypeError: an argument is no Tensor.
        ValueError: an unknown reduction; weight has another shape.
        RuntimeError: the shapes do not broadcast; a mean of integers.
    """
    _tensors("l1_loss", input=input, target=target)
    _sizes(input, target)
    reduction = _reduction(size_average, reduce, reduction)
    input, target = full(input, target)
    return _weighted(l_.absolute_error, input, target, weight, reduction)


def _weighted(row: Pointwise, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    if weight is None:
        return _loss(reduction, row, input, target)
    _weights(weight, input)
    loss = row(input, target)
    if reduction == "mean":
        return sum_of(p.mul, loss, weight) / r_.sum(weight)
    return _loss(reduction, p.mul, loss, weight)


def smooth_l1_loss(
    input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", beta: float = 1.0,
) -> Tensor:  # fmt: skip
    """With d = |input - target|: d * d / (2 * beta) where d < beta, else d - beta / 2; reduced.

    Shape: input and target broadcast (PyTorch's warning where they differ); the result is 0-dim, with "none" the
    broadcast shape.
    Dtype: floating; the result has their common dtype.
    Raises:
        RuntimeError: beta is negative, or shapes that cannot be broadcast.
        ValueError: an unknown reduction.
    """
    _tensors("smooth_l1_loss", input=input, target=target)
    _sizes(input, target)
    reduction = _reduction(size_average, reduce, reduction)
    if beta < 0:
        raise RuntimeError("smooth_l1_loss does not support negative values for beta.")
    input, target = full(input, target)
    if beta == 0:
        return _loss(reduction, l_.absolute_error, input, target)
    return _loss(reduction, l_.smooth_l1, input, target, float(beta))


def huber_loss(
    input: Tensor, target: Tensor, reduction: str = "mean", delta: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """With d = |input - target|: d * d / 2 where d <= delta, else delta * (d - delta / 2) (Huber, 1964); reduced.

    Shape: input and target broadcast (PyTorch's warning where they differ); the result is 0-dim, with "none" the
    broadcast shape.
    Dtype: floating; the result has their common dtype.
    Raises:
        RuntimeError: delta is not positive, or shapes that cannot be broadcast.
        ValueError: an unknown reduction.
    """
    _tensors("huber_loss", input=input, target=target)
    _sizes(input, target)
    reduction = _reduction(None, None, reduction)
    if delta <= 0:
        raise RuntimeError("huber_loss does not support non-positive values for delta.")
    _weights(weight, input)
    input, target = full(input, target)
    if weight is None:
        return _loss(reduction, l_.huber, input, target, float(delta))
    return _loss(reduction, p.mul, l_.huber(input, target, float(delta)), weight)


# --- probabilities ---------------------------------------------------------------------------------------------
def binary_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
    reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """-(target * log(input) + (1 - target) * log(1 - input)), logarithms no less than -100; reduced.

    Args:
        input: probabilities; target: of the same shape; weight: broadcast to it.

    Shape: input and target alike; weight broadcasts to them; the result is 0-dim, with "none" theirs.
    Dtype: floating; the result has their common dtype.
    Raises:
        ValueError: shapes differ, or an unknown reduction.
        RuntimeError: an input outside [0, 1] (CPU); under autocast.
    """
    _tensors("binary_cross_entropy", input=input, target=target)
    if is_autocast_enabled():
        raise RuntimeError(
            "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast: use "
            "binary_cross_entropy_with_logits, or autocast(enabled=False) around it"
        )
    reduction = _reduction(size_average, reduce, reduction)
    if target.shape != input.shape:
        raise ValueError(
            f"Using a target size ({target.size()}) that is different to the input size ({input.size()}) is "
            "deprecated. Please ensure they have the same size."
        )
    if not input.is_cuda and input.numel():
        values = input._values()
        if not ((values >= 0) & (values <= 1)).all():
            raise RuntimeError("all elements of input should be between 0 and 1")
    if weight is None:
        return _loss(reduction, l_.bce, input, target)
    return _loss(reduction, p.mul, l_.bce(input, target), weight)


def binary_cross_entropy_with_logits(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
    reduce: bool | None = None, reduction: str = "mean", pos_weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`binary_cross_entropy` of sigmoid(input), without overflow.

    Args:
        weight: multiplies each element's loss; pos_weight: the part of positive targets. Both are broadcast.

    Shape: input and target alike; weight and pos_weight broadcast to them; the result is 0-dim, with "none" theirs.
    Dtype: floating; the result has their common dtype.
    Raises:
        ValueError: shapes differ, or an unknown reduction.
    """
    _tensors("binary_cross_entropy_with_logits", input=input, target=target)
    reduction = _reduction(size_average, reduce, reduction)
    if target.shape != input.shape:
        raise ValueError(f"Target size ({target.size()}) must be the same as input size ({input.size()})")
    input, target = full(input, target)
    row, args = (l_.bce_logits, ()) if pos_weight is None else (l_.bce_logits_weighted, (pos_weight,))
    if weight is None:
        return _loss(reduction, row, input, target, *args)
    return _loss(reduction, p.mul, row(input, target, *args), weight)


def kl_div(
    input: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean", log_target: bool = False,
) -> Tensor:  # fmt: skip
    """target * (log(target) - input), reduced: input holds log-probabilities, target probabilities (or their logs).

    Args:
        reduction: "none", "sum", "mean" (over elements) or "batchmean" (the sum over the first size).

    Shape: input and target broadcast; the result is 0-dim, with "none" their broadcast shape.
    Dtype: floating; the result has their common dtype.
    Raises:
        ValueError: an unknown reduction.
    """
    _tensors("kl_div", input=input, target=target)
    batch = reduction == "batchmean" and size_average is None and reduce is None
    if reduction == "mean" and size_average is None and reduce is None:
        warnings.warn(
            "reduction: 'mean' divides the total loss by both the batch size and the support size."
            "'batchmean' divides only by the batch size, and aligns with the KL div math definition."
            "'mean' will be changed to behave the same as 'batchmean' in the next major release.",
            stacklevel=2,
        )
    reduction = _reduction(size_average, reduce, "sum" if batch else reduction)
    input, target = full(input, target)
    row = l_.kl_log if log_target else l_.kl
    if batch and input.ndim:
        return mean_of(row, input, target, count=input.shape[0])
    return _loss(reduction, row, input, target)


# --- classes ---------------------------------------------------------------------------------------------------
def _classes_last(input: Tensor) -> Tensor:
    if input.ndim < 3:
        return input
    return input.permute(0, *range(2, input.ndim), 1)


def _picked(
    logp: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str
) -> tuple[Tensor, Tensor | None]:
    """Of log-probabilities (*, C): the loss and, for a mean, the sum of weights."""
    if target.dtype not in (dtypes.int64, dtypes.uint8):
        raise RuntimeError(f"expected scalar type Long but found {target.dtype.legacy}")
    rows.check_weight(weight, logp.shape[-1])
    rows.check_classes("nll_loss", target, logp.shape[-1], ignore_index)
    kept = p.ne(target, ignore_index)
    target = p.where(kept, target.to(dtypes.int64), -1)
    loss = -l_.pick(logp, target)
    if not bounds.host:  # where nobody looked, what is no class gives nan, as in rows.cross_entropy
        wrong = p.logical_and(kept, p.logical_or(p.lt(target, 0), p.ge(target, logp.shape[-1])))
        loss = loss + p.where(wrong, math.nan, 0.0)
    if weight is None:
        scale = kept
    else:
        each = weight.detach().to(logp.dtype)
        scale = l_.pick(r_.expand(each, *logp.shape), target)
        loss = loss * scale
    total = r_.sum(scale).to(logp.dtype) if reduction == "mean" else None
    return loss, total


def nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
    ignore_index: int = -100, reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """-input[target]: log-probabilities (C,), (N, C) or (N, C, ...), classes (), (N,) or (N, ...).

    Args:
        weight: (C,), of each class; the mean is by the sum of the weights of the targets.
        ignore_index: a class that counts for nothing, and not in the mean.

    Shape: input (C,), (N, C) or (N, C, ...); target (), (N,) or (N, ...); weight (C,); the result is 0-dim, with "none"
    target's.
    Dtype: input: floating, and the result too; target: int64 or uint8.
    Raises:
        TypeError: input or target is no Tensor.
        ValueError: an unknown reduction; input is 0-dimensional; the batches have two sizes.
        RuntimeError: other sizes do not fit; target holds no classes; weight is not (C,).
        IndexError: a class is out of range (CPU).
    """
    _tensors("nll_loss", input=input, target=target)
    reduction = _reduction(size_average, reduce, reduction)
    if input.ndim == 0:
        raise ValueError("Expected 1 or more dimensions (got 0)")
    if input.ndim > 1 and (target.ndim == 0 or input.shape[0] != target.shape[0]):
        raise ValueError(
            f"Expected input batch_size ({input.shape[0]}) to match target batch_size "
            f"({target.shape[0] if target.ndim else 0})."
        )
    logp = _classes_last(*full(input))
    if tuple(logp.shape[:-1]) != tuple(target.shape):
        raise RuntimeError(f"size mismatch (got input: {list(input.shape)}, target: {list(target.shape)})")
    loss, total = _picked(logp, target, weight, ignore_index, reduction)
    return _reduced(loss, reduction) if total is None else r_.sum(loss) / total


def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None = None, size_average: bool | None = None,
    ignore_index: int = -100, reduce: bool | None = None, reduction: str = "mean", label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """-log(softmax(input))[target]: scores (C,), (N, C) or (N, C, ...), classes (), (N,) or (N, ...).

    Of classes it keeps the scores, not the probabilities: a kernel for the loss of each row, one that reduces them, and
    one for backward.

    Args:
        target: classes (int64), or probabilities of the input's shape.
        weight: (C,), of each class.
        ignore_index: a class that counts for nothing, and not in the mean.
        label_smoothing: how much of the target is spread over all classes, in [0, 1].

    Shape: input (C,), (N, C) or (N, C, ...); target (), (N,) or (N, ...), or input's where it holds probabilities;
    weight (C,); the result is 0-dim, with "none" that of the classes.
    Dtype: input: floating, and the result too; target: int64 or uint8, or floating for probabilities.
    Raises:
        TypeError: input or target is no Tensor.
        ValueError: an unknown reduction; the batches have two sizes.
        RuntimeError: other sizes or dtypes do not fit; weight is not (C,); label_smoothing is not in [0, 1];
            ignore_index is given beside probabilities.
        IndexError: a class is out of range (CPU).
    """
    reduction = _reduction(size_average, reduce, reduction)
    probabilities = isinstance(target, Tensor) and target.is_floating_point()
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"label_smoothing must be between 0.0 and 1.0. Got: {label_smoothing:g}")
    if not probabilities:
        return rows.cross_entropy(input, target, ignore_index, reduction, weight, label_smoothing)
    _tensors("cross_entropy", input=input, target=target)
    return _soft_cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)


def _soft_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, smoothing: float
) -> Tensor:
    if target.shape != input.shape:
        if input.ndim and target.ndim and input.shape[0] != target.shape[0] and input.ndim > 1:
            raise ValueError(
                f"Expected input batch_size ({input.shape[0]}) to match target batch_size ({target.shape[0]})."
            )
        raise RuntimeError(
            f"cross_entropy: class probabilities must have the shape of the input, {list(input.shape)}, got "
            f"{list(target.shape)}"
        )
    if ignore_index >= 0:
        raise RuntimeError("ignore_index is not supported for floating point target")
    x, t = _classes_last(input), _classes_last(target)
    classes = x.shape[-1]
    rows.check_weight(weight, classes)
    if smoothing:
        t = t * (1 - smoothing) + smoothing / classes
    loss = rows.log_softmax(x, -1) * t
    loss = -r_.sum(loss if weight is None else loss * weight, -1)
    if reduction == "mean":
        return r_.sum(loss) / max(loss.numel(), 1)
    return _reduced(loss, reduction)

