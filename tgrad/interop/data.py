"""Batches of tensors by PyTorch's DataLoader: what its `default_collate` does with those of tgrad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data._utils.collate import default_collate_fn_map

from tgrad.ops.joining import stack
from tgrad.tensor import Tensor


def collate(batch: Sequence[Tensor], *, collate_fn_map: Any = None) -> Tensor:
    """The tensors stacked along a new first dimension.

    Raises:
        RuntimeError: shapes differ.
    """
    return stack(list(batch))


def install() -> None:
    """Make `torch.utils.data.default_collate` take tensors of tgrad."""
    default_collate_fn_map[Tensor] = collate
