"""`torch.cuda`'s questions about the compute device."""

from tgrad.device import is_available, memory_stats, synchronize
from tgrad.graphed import graphed


def device_count() -> int:
    """CUDA devices this process computes on: 0 or 1."""
    return int(is_available())


__all__ = ["device_count", "graphed", "is_available", "memory_stats", "synchronize"]
