"""Flatten and Unflatten."""

from __future__ import annotations

from collections.abc import Sequence

from tgrad.layout import wrap_dim
from tgrad.nn.module import Module
from tgrad.ops.views import flatten, reshape
from tgrad.tensor import Tensor


class Flatten(Module):
    """Joins dimensions start_dim to end_dim.

    Shape: (N, A, B) gives (N, A * B).
    Dtype: the input's.
    Raises:
        RuntimeError: `start_dim` comes after `end_dim`.
        IndexError: a dimension is out of range.
    """

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim = start_dim
        self.end_dim = end_dim

    def forward(self, input: Tensor) -> Tensor:
        return flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"


class Unflatten(Module):
    """Splits a dimension.

    Shape: (N, A * B) with dim 1 and sizes (A, B) gives (N, A, B). One size may be -1.
    Dtype: the input's.
    Raises:
        TypeError: dim is no integer, or the sizes are no integers.
        RuntimeError: the sizes do not multiply to the dimension.
        IndexError: `dim` is out of range.
    """

    def __init__(self, dim: int, unflattened_size: Sequence[int]) -> None:
        super().__init__()
        if not isinstance(dim, int):
            raise TypeError(f"unflatten: expected an integer dim, got {type(dim).__name__}: dimensions have no names")
        sizes = tuple(unflattened_size)
        for i, n in enumerate(sizes):
            if not isinstance(n, int):
                raise TypeError(
                    f"unflattened_size must be tuple of ints, but found element of type {type(n).__name__} at pos {i}"
                )
        self.dim, self.unflattened_size = dim, sizes

    def forward(self, input: Tensor) -> Tensor:
        d = wrap_dim(self.dim, input.ndim)
        return reshape(input, (*input.shape[:d], *self.unflattened_size, *input.shape[d + 1 :]))

    def extra_repr(self) -> str:
        return f"dim={self.dim}, unflattened_size={self.unflattened_size}"
