"""Dropout."""

from __future__ import annotations

from tgrad.nn import functional as F
from tgrad.nn.module import Module
from tgrad.tensor import Tensor


class Dropout(Module):
    """In training, zeroes elements with probability p and scales the others by 1 / (1 - p) (Srivastava et al., 2014);
    else returns its input.

    Shape: any; the result has the input's.
    Dtype: floating; the result has the input's.
    Raises:
        ValueError: `p` is not in [0, 1].
        RuntimeError: in training, the dtype is not floating.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        if p < 0 or p > 1:
            raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
        self.p = p
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return F.dropout(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"
