"""Between tgrad and PyTorch: tensors over one memory, DLPack, and functions of one inside a graph of the other."""

from __future__ import annotations

from tgrad.interop.bridge import tgrad_function, torch_function
from tgrad.interop.memory import from_dlpack, from_torch, is_torch, to_torch

__all__ = ["from_dlpack", "from_torch", "is_torch", "tgrad_function", "to_torch", "torch_function"]
