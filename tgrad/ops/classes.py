"""Tensors of classes: one_hot and embedding."""

from __future__ import annotations

from typing import Any

from tgrad import dtypes, modes
from tgrad.device import compute
from tgrad.layout import Layout, layout
from tgrad.op import Kernel
from tgrad.ops import creation, pointwise as p
from tgrad.ops.bounds import extremes, outside
from tgrad.ops.indexing import _index
from tgrad.ops.places import get_launch, get_op, number, put_op, spread_op, write_places
from tgrad.ops.statistics import vector_norm
from tgrad.ops.views import reshape
from tgrad.tensor import Tensor


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Zeros with a 1 at each class.

    Shape: any; the result has one more dimension, of num_classes (-1: one more than the greatest class).
    Dtype: int64.
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
    if found is None:
        outside("one_hot", tensor, num_classes, negative=False)
    classes = reshape(creation.arange(num_classes), (*(1,) * tensor.ndim, num_classes))
    return p.cast(dtypes.int64)(p.eq(reshape(tensor, (*tensor.shape, 1)), classes))


# --- embedding -------------------------------------------------------------------------------------------------------
def _build_embedding(weight: Tensor, input: Tensor, padding: int, by_frequency: bool) -> tuple[list[Layout], Any]:
    out = layout(weight.dtype, (*input.shape, weight.shape[1]), None, compute)
    return [out], get_launch(weight.layout, input.layout, (0,), 0, out)


def _embedding_grad(g: Tensor, input: Tensor, *, padding: int, by_frequency: bool,
                    weight_shape: tuple[int, ...]) -> Tensor:  # fmt: skip
    column = reshape(input, (*input.shape, 1))
    if padding >= 0:
        g = p.where(p.eq(column, padding), 0, g)
    if by_frequency:
        ones = number(1, creation.empty((), dtype=dtypes.float32), tuple(input.shape))
        counts = spread_op(ones, input, dims=(0,), at=0, shape=weight_shape[:1])
        shared = p.div(g, reshape(get_op(counts, input, dims=(0,), at=0), (*input.shape, 1)))
        g = shared if shared.dtype is g.dtype else p.cast(g.dtype)(shared)
    return spread_op(g, input, dims=(0,), at=0, shape=weight_shape)


embedding_op: Kernel = Kernel(
    "embedding", ("weight", "input"), _build_embedding, {"weight": _embedding_grad},
    settings=("padding", "by_frequency"),
)  # fmt: skip


def _renorm(weight: Tensor, input: Tensor, max_norm: float, norm_type: float) -> None:
    """Scale the rows of weight that input names down to `max_norm`, in place, without recording it."""
    with modes.no_grad():
        index = reshape(input, (-1,))
        rows = get_op(weight.detach(), index, dims=(0,), at=0)
        norms = vector_norm(rows, norm_type, 1, True)
        scale = p.where(p.gt(norms, max_norm), p.div(max_norm, p.add(norms, 1e-7)), 1)
        write_places(put_op, weight.detach(), index, p.mul(rows, scale), (0,), 0)  # equal indices write equal rows


def refuse_sparse(name: str, sparse: bool) -> None:
    if sparse:
        raise NotImplementedError(f"{name}: sparse=True is not supported: gradients are dense tensors; leave it False")


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None,
              norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False) -> Tensor:  # fmt: skip
    """The rows of weight that input names.

    Args:
        padding_idx: a row that gets no gradient; negative ones count from the end.
        max_norm: rows that input names and whose norm, of order `norm_type`, is greater are first scaled to it, in
            place: weight itself is changed.
        scale_grad_by_freq: divide each row's gradient by how often input names it.
        sparse: not supported.

    Shape: input: any; weight: (classes, width); the result: (*input.shape, width).
    Dtype: input: int32 or int64; the result has weight's.
    Raises:
        IndexError: an index is out of range (CPU; on a GPU within `check_indices`, else its row is nan).
        RuntimeError: weight is no matrix; input is of another dtype.
        AssertionError: `padding_idx` is out of range.
        NotImplementedError: sparse.
    """
    refuse_sparse("embedding", sparse)
    _index("embedding", input)
    if weight.ndim != 2:
        raise RuntimeError("'weight' must be 2-D")
    classes = weight.shape[0]
    if padding_idx is not None and not -classes <= padding_idx < classes:
        raise AssertionError("Padding_idx must be within num_embeddings")
    if outside("embedding", input, classes, negative=False) is not None:
        raise IndexError("index out of range in self")
    if max_norm is not None and input.numel():
        _renorm(weight, input, max_norm, norm_type)
    padding = -1 if padding_idx is None else padding_idx % classes
    return embedding_op(weight, input, padding=padding, by_frequency=bool(scale_grad_by_freq))
