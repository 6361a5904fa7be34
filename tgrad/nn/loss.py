"""Losses as modules: each calls the function of `nn.functional` whose docstring says what it computes."""

from __future__ import annotations

import math
from typing import Any

from tgrad.dtypes import dtype
from tgrad.nn import functional as F
from tgrad.nn.linear import Linear
from tgrad.nn.linear_cross_entropy import LinearCrossEntropyOptions
from tgrad.nn.module import Module
from tgrad.tensor import Tensor


class _Loss(Module):
    reduction: str

    def __init__(self, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean") -> None:
        super().__init__()
        legacy = size_average is not None or reduce is not None
        self.reduction = F.legacy_reduction(size_average, reduce) if legacy else reduction


class _WeightedLoss(_Loss):
    def __init__(
        self, weight: Tensor | None = None, size_average: bool | None = None, reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:  # fmt: skip
        super().__init__(size_average, reduce, reduction)
        self.register_buffer("weight", weight)


class MSELoss(_Loss):
    """(input - target) ** 2: its mean, its sum, or ("none") each.

    Shape: input and target alike; the result is 0-dim, with "none" theirs.
    Dtype: floating; the result has their common dtype.
    Raises:
        ValueError: an unknown reduction.
        RuntimeError: the shapes do not broadcast; the dtype is not floating.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(input, target, reduction=self.reduction)


class L1Loss(_Loss):
    """|input - target|: its mean, its sum, or ("none") each.

    Shape: input and target alike; the result is 0-dim, with "none" theirs.
    Dtype: floating; the result has their common dtype.
    Raises:
        ValueError: an unknown reduction.
        RuntimeError: the shapes do not broadcast; a mean of integers.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(input, target, reduction=self.reduction)


class SmoothL1Loss(_Loss):
    """Squared below `beta`, absolute above (Girshick, 2015). See `tgrad.nn.functional.smooth_l1_loss`.

    Shape: input and target alike; the result is 0-dim, with "none" theirs.
    Dtype: floating; the result has their common dtype.
    Raises:
        RuntimeError: beta is negative; the shapes do not broadcast.
        ValueError: an unknown reduction.
    """

    def __init__(
        self, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean", beta: float = 1.0
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.beta = beta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.smooth_l1_loss(input, target, reduction=self.reduction, beta=self.beta)


class HuberLoss(_Loss):
    """Squared up to `delta`, absolute above (Huber, 1964). See `tgrad.nn.functional.huber_loss`.

    Shape: input and target alike; the result is 0-dim, with "none" theirs.
    Dtype: floating; the result has their common dtype.
    Raises:
        RuntimeError: delta is not positive; the shapes do not broadcast.
        ValueError: an unknown reduction.
    """

    def __init__(self, reduction: str = "mean", delta: float = 1.0) -> None:
        super().__init__(reduction=reduction)
        self.delta = delta

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(input, target, reduction=self.reduction, delta=self.delta)


class BCELoss(_WeightedLoss):
    """Binary cross-entropy of probabilities. See `tgrad.nn.functional.binary_cross_entropy`.

    Shape: input and target alike; the result is 0-dim, with "none" theirs.
    Dtype: floating; the result has their common dtype.
    Raises:
        ValueError: shapes differ; an unknown reduction.
        RuntimeError: an input outside [0, 1] (CPU); under autocast.
    """

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy(input, target, weight=self.weight, reduction=self.reduction)


class BCEWithLogitsLoss(_Loss):
    """Binary cross-entropy of scores. See `tgrad.nn.functional.binary_cross_entropy_with_logits`.

    Shape: input and target alike; the result is 0-dim, with "none" theirs.
    Dtype: floating; the result has their common dtype.
    Raises:
        ValueError: shapes differ; an unknown reduction.
    """

    def __init__(
        self, weight: Tensor | None = None, size_average: bool | None = None, reduce: bool | None = None,
        reduction: str = "mean", pos_weight: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__(size_average, reduce, reduction)
        self.register_buffer("weight", weight)
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input, target, self.weight, pos_weight=self.pos_weight, reduction=self.reduction
        )


class NLLLoss(_WeightedLoss):
    """-input[target] of log-probabilities. See `tgrad.nn.functional.nll_loss`.

    Shape: input (C,), (N, C) or (N, C, ...); target (), (N,) or (N, ...); the result is 0-dim, with "none" target's.
    Dtype: input: floating, and the result too; target: int64 or uint8.
    Raises:
        ValueError, RuntimeError: shapes, dtypes or arguments do not fit.
        IndexError: a class is out of range (CPU).
    """

    def __init__(
        self, weight: Tensor | None = None, size_average: bool | None = None, ignore_index: int = -100,
        reduce: bool | None = None, reduction: str = "mean",
    ) -> None:  # fmt: skip
        super().__init__(weight, size_average, reduce, reduction)
        self.ignore_index = ignore_index

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(
            input, target, weight=self.weight, ignore_index=self.ignore_index, reduction=self.reduction
        )


class CrossEntropyLoss(_WeightedLoss):
    """-log(softmax(input))[target] over dimension 1. See `tgrad.nn.functional.cross_entropy`.

    Shape: input (C,), (N, C) or (N, C, ...); target (), (N,) or (N, ...), or input's where it holds probabilities; the
    result is 0-dim, with "none" that of the classes.
    Dtype: input: floating, and the result too; target: int64 or uint8, or floating for probabilities.
    Raises:
        ValueError, RuntimeError: shapes, dtypes or arguments do not fit.
        IndexError: a class is out of range (CPU).
    """

    def __init__(
        self, weight: Tensor | None = None, size_average: bool | None = None, ignore_index: int = -100,
        reduce: bool | None = None, reduction: str = "mean", label_smoothing: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(weight, size_average, reduce, reduction)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(
            input, target, weight=self.weight, ignore_index=self.ignore_index, reduction=self.reduction,
            label_smoothing=self.label_smoothing,
        )  # fmt: skip


class LinearCrossEntropyLoss(_WeightedLoss):
    """Cross-entropy of a linear layer's result, a chunk of rows at a time. See
    `tgrad.nn.functional.linear_cross_entropy`.

    Args:
        in_features: of the input; num_classes: C; out_features: further dimensions d1, ... of the logits.
        bias: whether the layer, `linear`, has one.
        weight: (C,), of each class.

    Shape: input (in,) or (N, in); target () or (N, d1, ...), or (N, C, d1, ...) where it holds probabilities; the
    result is 0-dim, with "none" that of the classes.
    Dtype: input and parameters: floating, the same, and the result too; target: int64 or uint8, or floating.
    Raises:
        ValueError, RuntimeError: shapes, dtypes or arguments do not fit.
        IndexError: a class is out of range (CPU).
    """

    def __init__(
        self, in_features: int, num_classes: int, *, out_features: tuple[int, ...] = (), bias: bool = False,
        device: Any = None, dtype: dtype | None = None, reduction: str = "mean", weight: Tensor | None = None,
        ignore_index: int | None = None, label_smoothing: float = 0.0,
        options: LinearCrossEntropyOptions | None = None,
    ) -> None:  # fmt: skip
        if weight is not None and tuple(weight.shape) != (num_classes,):
            raise RuntimeError(f"expected weight shape to be {(num_classes,)}, got {tuple(weight.shape)}")
        if label_smoothing < 0 or label_smoothing > 1.0:
            raise RuntimeError(f"expected label_smoothing to be in range [0, 1], got {label_smoothing}")
        super().__init__(weight, reduction=reduction)
        self.num_classes, self.out_features = num_classes, out_features
        self.ignore_index, self.label_smoothing, self.options = ignore_index, label_smoothing, options
        self.linear = Linear(
            in_features, math.prod(out_features, start=num_classes), bias=bias, device=device, dtype=dtype
        )

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        linear, classes = self.linear, (self.num_classes, *self.out_features)
        deep = bool(self.out_features)
        return F.linear_cross_entropy(
            input, linear.weight.reshape(*classes, linear.in_features) if deep else linear.weight, target,
            linear_bias=linear.bias.reshape(classes) if deep and linear.bias is not None else linear.bias,
            weight=self.weight, reduction=self.reduction, ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing, options=self.options,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return (
            f"in_features={self.linear.in_features}, num_classes={self.num_classes}, "
            f"out_features={self.out_features}, bias={self.linear.bias is not None}, reduction={self.reduction}, "
            f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}, options={self.options}"
        )


class KLDivLoss(_Loss):
    """Divergence from log-probabilities to probabilities. See `tgrad.nn.functional.kl_div`.

    Shape: input and target alike; the result is 0-dim, with "none" theirs.
    Dtype: floating; the result has their common dtype.
    Raises:
        ValueError: an unknown reduction.
        RuntimeError: the shapes do not broadcast.
    """

    def __init__(
        self, size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean",
        log_target: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(size_average, reduce, reduction)
        self.log_target = log_target

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return F.kl_div(input, target, reduction=self.reduction, log_target=self.log_target)


class CosineEmbeddingLoss(_Loss):
    """How far two directions are from what target (1 or -1) says. See `tgrad.nn.functional.cosine_embedding_loss`.

    Shape: inputs (N, D) and target (N,), or (D,) and (); the result is 0-dim, with "none" target's.
    Dtype: floating; the result has their common dtype.
    Raises:
        RuntimeError: ranks do not fit.
        ValueError: an unknown reduction.
    """

    def __init__(
        self, margin: float = 0.0, size_average: bool | None = None, reduce: bool | None = None,
        reduction: str = "mean",
    ) -> None:  # fmt: skip
        super().__init__(size_average, reduce, reduction)
        self.margin = margin

    def forward(self, input1: Tensor, input2: Tensor, target: Tensor) -> Tensor:
        return F.cosine_embedding_loss(input1, input2, target, margin=self.margin, reduction=self.reduction)


class CosineSimilarity(Module):
    """The cosine of the angle between x1 and x2 along `dim`.

    Shape: x1 and x2 broadcast; the result is without `dim`.
    Dtype: floating; the result has their common dtype.
    Raises:
        RuntimeError: the dtype is not floating; the shapes do not broadcast.
        IndexError: `dim` is out of range.
    """

    def __init__(self, dim: int = 1, eps: float = 1e-8) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return F.cosine_similarity(x1, x2, self.dim, self.eps)
