"""Embedding: a table of rows."""

from __future__ import annotations

from typing import Any

from tgrad import modes
from tgrad.dtypes import dtype
from tgrad.nn import init
from tgrad.nn.module import Module
from tgrad.nn.parameter import Parameter
from tgrad.ops import creation
from tgrad.ops.classes import embedding, refuse_sparse
from tgrad.tensor import Tensor


class Embedding(Module):
    """The rows of weight (num_embeddings, embedding_dim) that the input names.

    Args:
        padding_idx: a row that starts at zero and gets no gradient.
        max_norm: rows that are used and whose norm, of order `norm_type`, is greater are scaled to it, in place.
        scale_grad_by_freq: divide each row's gradient by how often the input names it.
        sparse: not supported.

    Shape: any; the result has one more dimension, of `embedding_dim`.
    Dtype: int32 or int64; the result has weight's: `dtype`.
    Raises:
        AssertionError: padding_idx, or the given weight, does not fit.
        NotImplementedError: sparse.
        IndexError: an index is out of range (CPU).
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None, max_norm: float | None = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False, _weight: Tensor | None = None,
        _freeze: bool = False, device: Any = None, dtype: dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        refuse_sparse("Embedding", sparse)
        if padding_idx is not None:
            if not -num_embeddings <= padding_idx < num_embeddings:
                raise AssertionError("Padding_idx must be within num_embeddings")
            padding_idx %= num_embeddings
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.max_norm, self.norm_type = max_norm, norm_type
        self.scale_grad_by_freq, self.sparse = scale_grad_by_freq, sparse
        if _weight is None:
            new = creation.empty(num_embeddings, embedding_dim, device=device, dtype=dtype)
            self.weight = Parameter(new, requires_grad=not _freeze)
            self.reset_parameters()
        else:
            if list(_weight.shape) != [num_embeddings, embedding_dim]:
                raise AssertionError("Shape of weight does not match num_embeddings and embedding_dim")
            self.weight = Parameter(_weight, requires_grad=not _freeze)

    @classmethod
    def from_pretrained(
        cls, embeddings: Tensor, freeze: bool = True, padding_idx: int | None = None, max_norm: float | None = None,
        norm_type: float = 2.0, scale_grad_by_freq: bool = False, sparse: bool = False,
    ) -> Embedding:  # fmt: skip
        """An Embedding over a table (num_embeddings, embedding_dim); `freeze`: it is not trained."""
        if embeddings.ndim != 2:
            raise AssertionError("Embeddings parameter is expected to be 2-dimensional")
        rows, columns = embeddings.shape
        return cls(
            rows, columns, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse, embeddings, _freeze=freeze
        )

    def reset_parameters(self) -> None:
        """Draw the table anew from the normal distribution; the padding row is zero."""
        init.normal_(self.weight)
        if self.padding_idx is not None:
            with modes.no_grad():
                self.weight[self.padding_idx].fill_(0)

    def forward(self, input: Tensor) -> Tensor:
        return embedding(
            input, self.weight, self.padding_idx, self.max_norm, self.norm_type, self.scale_grad_by_freq, self.sparse
        )

    def extra_repr(self) -> str:
        padding = f", padding_idx={self.padding_idx}" if self.padding_idx is not None else ""
        shown = f"{self.num_embeddings}, {self.embedding_dim}{padding}"
        for name, usual in (("max_norm", None), ("norm_type", 2), ("scale_grad_by_freq", False)):
            value = getattr(self, name)
            shown += "" if value == usual else f", {name}={value}"
        return shown
