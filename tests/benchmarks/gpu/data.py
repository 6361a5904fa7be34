"""One memory, two libraries; and the distance of a result from what is right."""

from __future__ import annotations

from typing import Any

import torch

from tgrad.interop import memory as torch_memory

share = torch_memory.from_torch  # a tgrad tensor over a torch tensor's memory
as_torch = torch_memory.share  # a torch tensor over a tgrad tensor's memory, whether or not it requires grad


def results(out: Any) -> list[torch.Tensor]:
    """The tensors of what a contender returned, as torch tensors without history."""
    if out is None:
        return []
    if isinstance(out, (tuple, list)):
        return [t for part in out for t in results(part)]
    return [out.detach() if isinstance(out, torch.Tensor) else as_torch(out)]


def error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """||out - reference|| / ||reference|| in float64; nan where a nan is."""
    if out.shape != reference.shape:
        raise ValueError(f"the result has shape {tuple(out.shape)}, expected {tuple(reference.shape)}")
    size = float(reference.double().norm())
    off = float((out.double() - reference.double()).norm())
    return off / size if size else off
