"""The cross-entropy of a linear layer's result, as a function."""

from __future__ import annotations

from dataclasses import dataclass

from tgrad import dtypes
from tgrad.autocasting import is_autocast_enabled, low
from tgrad.dispatch import dispatch
from tgrad.layout import numel
from tgrad.nn import losses
from tgrad.ops.linear import linear
from tgrad.ops.linear_cross_entropy import chunk_rows, linear_cross_entropy_op
from tgrad.ops.softmax import check_classes
from tgrad.ops.views import reshape
from tgrad.tensor import Tensor

NAME = "linear_cross_entropy"


@dataclass(frozen=True)
class LinearCrossEntropyOptions:
    """How `tgrad.nn.functional.linear_cross_entropy` cuts rows into chunks.

    Args:
        batch_chunk_size: rows of a chunk; None: as many as make a chunk's logits about as large as the input.

    Raises:
        ValueError: batch_chunk_size is not a positive int.
    """

    batch_chunk_size: int | None = None

    def __post_init__(self) -> None:
        size = self.batch_chunk_size
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size <= 0):
            raise ValueError(f"batch_chunk_size must be positive int or None, got {size!r}")


def linear_cross_entropy(
    input: Tensor, linear_weight: Tensor, target: Tensor, *, linear_bias: Tensor | None = None,
    weight: Tensor | None = None, reduction: str = "mean", ignore_index: int | None = None,
    label_smoothing: float = 0.0, options: LinearCrossEntropyOptions | None = None,
) -> Tensor:  # fmt: skip
    """cross_entropy(linear(input, linear_weight, linear_bias), target, ...), without the whole logits in memory.

    Rows are worked off in chunks whose logits take about as much memory as the input, 64 rows at least. Kept for
    backward are the operands and the log-sum-exp of each row; backward makes each chunk's logits again. The gradients
    of linear_weight and linear_bias are summed over chunks in float32 where the operands are of a half type. Second
    derivatives, class probabilities and weights of more than two dimensions go through the whole logits.

    Args:
        target: classes, or probabilities of the logits' shape.
        linear_bias: (C,), or (C, d1, ...).
        weight: (C,), of each class.
        ignore_index: a class that counts for nothing, and not in the mean; None: -100.
        label_smoothing: how much of the target is spread over all classes, in [0, 1].
        options: how to cut; None: as above.

    Shape: input (in,) or (N, in); linear_weight (C, in) or (C, d1, ..., in); target () or (N,), (N, d1, ...), or that
    of the logits (N, C, d1, ...) where it holds probabilities; the result is 0-dim, with "none" that of the classes.
    Dtype: input, linear_weight, linear_bias: floating, the same of all, and the result's; target: int64 or uint8, or
    floating for probabilities.
    Raises:
        TypeError: input, linear_weight or target is no Tensor; options are of another type.
        ValueError: an unknown reduction; the batches have two sizes.
        RuntimeError: other sizes or dtypes do not fit; label_smoothing is not in [0, 1]; ignore_index is given beside
            probabilities.
        IndexError: a class is out of range (CPU).
    """
    losses._tensors(NAME, input=input, linear_weight=linear_weight, target=target)
    if options is not None and not isinstance(options, LinearCrossEntropyOptions):
        raise TypeError(f"{NAME}(): options must be LinearCrossEntropyOptions or None, not {type(options).__name__}")
    logits_shape = _check(input, linear_weight, linear_bias, target, ignore_index, label_smoothing)
    reduction = losses._reduction(None, None, reduction)
    ignored = -100 if ignore_index is None else int(ignore_index)
    if target.is_floating_point() or linear_weight.ndim > 2 or not numel(logits_shape) or not input.numel():
        flat = reshape(linear_weight, (numel(linear_weight.shape[:-1]), linear_weight.shape[-1]))
        bias = None if linear_bias is None else reshape(linear_bias, (linear_bias.numel(),))
        logits = reshape(linear(input, flat, bias), logits_shape)
        return losses.cross_entropy(
            logits, target, weight=weight, ignore_index=ignored, reduction=reduction, label_smoothing=label_smoothing
        )
    _check_classes(input, linear_weight, target, weight, ignored)
    input, linear_weight, linear_bias = low(input, linear_weight, linear_bias)
    for name, t in (("linear_weight", linear_weight), ("linear_bias", linear_bias)):
        if t is not None and t.dtype is not input.dtype:
            raise RuntimeError(
                f"{NAME}: expected input and {name} to have the same dtype, but got: {input.dtype!r} != {t.dtype!r}"
            )
    if not input.dtype.is_floating_point:
        raise RuntimeError(f"{NAME}: not implemented for {input.dtype!r}: convert the operands first, as in x.float()")
    result = dtypes.accumulator(input.dtype) if is_autocast_enabled() else input.dtype
    x = input if input.ndim == 2 else reshape(input, (1, input.shape[0]))
    rows, features = x.shape
    given = None if options is None else options.batch_chunk_size
    size = chunk_rows(rows, features, linear_weight.shape[0]) if given is None else min(given, rows)
    each = None if weight is None else weight.detach().contiguous()
    args = x, linear_weight, linear_bias, reshape(target, (rows,)), each
    out = dispatch(linear_cross_entropy_op, args, (result, ignored, reduction, float(label_smoothing), size))[0]
    return reshape(out, tuple(target.shape)) if reduction == "none" and target.ndim == 0 else out


def _check(
    input: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, ignore_index: int | None, smoothing: float
) -> tuple[int, ...]:
    """The shape of the logits.

    Raises:
        RuntimeError: what does not fit.
    """
    shapes = f"(input shape {tuple(input.shape)}, linear_weight shape {tuple(weight.shape)})"
    if input.ndim not in (1, 2):
        raise RuntimeError(f"{NAME}: expected input with dimensionality 1 or 2, got {input.ndim} {shapes}")
    if weight.ndim < 2:
        raise RuntimeError(f"{NAME}: expected linear_weight with dimensionality at least 2, got {weight.ndim} {shapes}")
    if input.shape[-1] != weight.shape[-1]:
        raise RuntimeError(
            f"{NAME}: expected equal input and linear_weight last dimensions (in_features), got {input.shape[-1]} and "
            f"{weight.shape[-1]} {shapes}"
        )
    if bias is not None:
        losses._tensors(NAME, linear_bias=bias)
        if bias.shape != weight.shape[:-1]:
            raise RuntimeError(
                f"{NAME}: expected linear_bias shape {tuple(weight.shape[:-1])}, got {tuple(bias.shape)} {shapes}"
            )
    if weight.ndim > 2 and input.ndim == 1:
        raise RuntimeError(
            f"{NAME}: K-dimensional loss defined by linear_weight shape {tuple(weight.shape)} requires batched input, "
            f"(N, {input.shape[-1]}), got unbatched input with shape {tuple(input.shape)}"
        )
    logits_shape = (*input.shape[:-1], *weight.shape[:-1])
    if tuple(target.shape) == logits_shape and ignore_index is not None:
        raise RuntimeError(f"{NAME}: ignore_index cannot be specified when target contains probabilities")
    if not 0.0 <= smoothing <= 1.0:
        raise RuntimeError(f"{NAME}: label_smoothing must be between 0.0 and 1.0. Got: {smoothing:g}")
    return logits_shape


def _check_classes(
    input: Tensor, linear_weight: Tensor, target: Tensor, weight: Tensor | None, ignored: int
) -> None:
    """Raises:
    RuntimeError, ValueError: target or weight do not fit. IndexError: a class is out of range (CPU).
    """
    classes = linear_weight.shape[0]
    if target.dtype not in (dtypes.int64, dtypes.uint8):
        raise RuntimeError(
            f"{NAME}: expected scalar type Long but found {target.dtype.legacy}: class indices are int64"
        )
    if tuple(target.shape) != tuple(input.shape[:-1]):
        if input.ndim == 2 and target.ndim and input.shape[0] != target.shape[0]:
            raise ValueError(
                f"{NAME}: Expected input batch_size ({input.shape[0]}) to match target batch_size ({target.shape[0]})."
            )
        raise RuntimeError(
            f"{NAME}: expected target shape {tuple(input.shape[:-1])} for input shape {tuple(input.shape)}, got "
            f"{tuple(target.shape)}"
        )
    if weight is not None:
        losses._tensors(NAME, weight=weight)
        if tuple(weight.shape) != (classes,) or not weight.is_floating_point():
            raise RuntimeError(
                f"{NAME}: weight must be floating, of shape ({classes},), one for each class of linear_weight, got "
                f"{weight.dtype!r} of shape {tuple(weight.shape)}"
            )
    check_classes(NAME, target, classes, ignored)
