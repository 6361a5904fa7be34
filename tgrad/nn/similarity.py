"""The angle between vectors, and the loss of it."""

from __future__ import annotations

from tgrad import dtypes
from tgrad.autocasting import full
from tgrad.layout import broadcast_shapes
from tgrad.nn.losses import _reduced, _reduction, _tensors
from tgrad.ops import pointwise as p, reduce as r_
from tgrad.tensor import Tensor


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """sum(x1 * x2) / (max(|x1|, eps) * max(|x2|, eps)) along `dim`, for tensors that can be broadcast.

    Shape: the operands broadcast; the result is without `dim`.
    Dtype: floating; the operands' common dtype.
    Raises:
        RuntimeError: the dtype is not floating; the shapes do not broadcast.
        TypeError: an operand is no Tensor.
        IndexError: `dim` is out of range.
    """
    _tensors("cosine_similarity", x1=x1, x2=x2)
    x1, x2 = full(x1, x2)
    kind = dtypes.promote(x1.dtype, x2.dtype)
    if not kind.is_floating_point:
        raise RuntimeError("expected common dtype to be floating point, yet common dtype is " + kind.legacy)
    shape = broadcast_shapes(tuple(x1.shape), tuple(x2.shape))
    wide = dtypes.accumulator(kind)
    a, b = (r_.expand(t, *shape) if tuple(t.shape) != shape else t for t in (x1.to(wide), x2.to(wide)))
    norms = [p.sqrt(p.clamp_min(r_.sum(t * t, dim), float(eps) * float(eps))) for t in (a, b)]
    return (r_.sum(a * b, dim) / (norms[0] * norms[1])).to(kind)


def cosine_embedding_loss(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0, size_average: bool | None = None,
    reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """1 - cos(input1, input2) where target is 1, max(0, cos - margin) where it is -1: (N, D), target (N,); or (D,), ().

    Shape: inputs (N, D) and target (N,), or (D,) and (); the result is 0-dim, with "none" target's.
    Dtype: the inputs' common dtype, of integers the default dtype.
    Raises:
        RuntimeError: ranks do not fit.
        ValueError: an unknown reduction.
        TypeError: an argument is no Tensor.
    """
    _tensors("cosine_embedding_loss", input1=input1, input2=input2, target=target)
    reduction = _reduction(size_average, reduce, reduction)
    if target.ndim not in (0, 1):
        raise RuntimeError("0D or 1D target tensor expected, multi-target not supported")
    for t in (input1, input2):
        if target.ndim == 1 and t.ndim != 2 or target.ndim == 0 and t.ndim != 1:
            raise RuntimeError(
                f"{target.ndim}D target tensor expects {target.ndim + 1}D input tensors, but found inputs with sizes "
                f"{list(input1.shape)} and {list(input2.shape)}."
            )
    dim, eps = target.ndim, 1e-12
    input1, input2 = full(input1, input2)
    squares = (r_.sum(input1 * input1, dim) + eps) * (r_.sum(input2 * input2, dim) + eps)
    cos = r_.sum(input1 * input2, dim) / p.sqrt(squares)
    away = p.clamp_min(cos - margin, 0)
    return _reduced(p.where(p.eq(target, 1), 1 - cos, 0) + p.where(p.eq(target, -1), away, 0), reduction)
