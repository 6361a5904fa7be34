"""Batches of tensors by PyTorch's DataLoader: what its `default_collate` does with those of tgrad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data._utils.collate import default_collate_fn_map

from tgrad.device import compute
from tgrad.ops import creation
from tgrad.ops.joining import stack
from tgrad.tensor import Tensor


def collate(batch: Sequence[Tensor], *, collate_fn_map: Any = None) -> Tensor:
    """The tensors stacked along a new first dimension.

    Raises:
        RuntimeError: shapes differ.
    """
    if batch[0].device is compute:
        return stack(list(batch))
    shapes = {tuple(t.shape) for t in batch}
    if len(shapes) > 1:
        raise RuntimeError(f"stack expects each tensor to be equal size, but got {sorted(shapes)}")
    out = creation.empty(len(batch), *batch[0].shape, dtype=batch[0].dtype, device=batch[0].device)
    for i, t in enumerate(batch):
        out[i].copy_(t.detach())
    return out


def install() -> None:
    """Make `torch.utils.data.default_collate` take tensors of tgrad."""
    default_collate_fn_map[Tensor] = collate
