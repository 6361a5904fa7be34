"""`torch.cuda`'s questions about the compute device, and CUDA graphs."""

from tgrad.cudagraphs.graphed import graphed
from tgrad.device import is_available, memory_stats, synchronize


def device_count() -> int:
    """CUDA devices this process computes on: 0 or 1."""
    return int(is_available())


__all__ = ["device_count", "graphed", "is_available", "memory_stats", "synchronize"]
