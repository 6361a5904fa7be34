"""Tensors of classes: one_hot and embedding."""

from __future__ import annotations

from tgrad import dtypes
from tgrad.ops import creation, pointwise as p
from tgrad.ops.indexing import _index
from tgrad.ops.places import extremes, get_op, outside
from tgrad.ops.views import reshape
from tgrad.tensor import Tensor


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """int64 zeros with a 1 at each class: shape (*tensor.shape, num_classes); -1: one more than the greatest.

    Raises:
        RuntimeError: not int64; a class is negative or too great (CPU); none to infer num_classes from.
    """
    if tensor.dtype is not dtypes.int64:
        raise RuntimeError("one_hot is only applicable to index tensor of type LongTensor.")
    found = extremes(tensor)
    if tensor.numel() == 0 and num_classes <= 0:
        raise RuntimeError("Can not infer total number of classes from empty tensor.")
    if found is not None and found[0] < 0:
        raise RuntimeError("Class values must be non-negative.")
    if num_classes == -1:
        num_classes = int(tensor._array().max()) + 1
    elif found is not None and found[1] >= num_classes:
        raise RuntimeError("Class values must be smaller than num_classes.")
    classes = reshape(creation.arange(num_classes), (*(1,) * tensor.ndim, num_classes))
    return p.cast(dtypes.int64)(p.eq(reshape(tensor, (*tensor.shape, 1)), classes))


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
              norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False) -> Tensor:  # fmt: skip
    """The rows of weight (classes, width) that input names: shape (*input.shape, width). padding_idx gets no gradient.

    Raises:
        IndexError: an index is out of range (CPU). RuntimeError: an option that is not supported.
    """
    for name, given in (("max_norm", max_norm is not None), ("scale_grad_by_freq", scale_grad_by_freq),
                        ("sparse", sparse)):  # fmt: skip
        if given:
            raise RuntimeError(f"embedding: {name} is not supported")
    _index("embedding", input)
    if weight.ndim != 2:
        raise RuntimeError("'weight' must be 2-D")
    if outside(input, weight.shape[0], negative=False) is not None:
        raise IndexError("index out of range in self")
    rows = get_op(weight, input, dims=(0,), at=0)
    if padding_idx is None or not weight.requires_grad:
        return rows
    if not -weight.shape[0] <= padding_idx < weight.shape[0]:
        raise AssertionError("Padding_idx must be within num_embeddings")
    padding = p.eq(reshape(input, (*input.shape, 1)), padding_idx % weight.shape[0])
    return p.where(padding, rows.detach(), rows)
