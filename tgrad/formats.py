"""Memory formats: the arguments that say how the strides of a copy are made."""

from __future__ import annotations

from tgrad.ops.views import contiguous
from tgrad.tensor import Tensor


class memory_format:
    """How elements lie in memory. `repr` reads as PyTorch's (`torch.contiguous_format`)."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"torch.{self.name}"


preserve_format = memory_format("preserve_format")  # the strides PyTorch gives a result of the input's shape
contiguous_format = memory_format("contiguous_format")  # row-major order


def formatted(t: Tensor, wanted: memory_format) -> Tensor:
    """t in a memory format.

    Raises:
        TypeError: it is none of `preserve_format` and `contiguous_format`.
    """
    if wanted is preserve_format:
        return t
    if wanted is not contiguous_format:
        raise TypeError(
            f"memory_format: expected tgrad.preserve_format or tgrad.contiguous_format, got {wanted!r}: tgrad has no "
            "channels-last strides"
        )
    return contiguous(t)
