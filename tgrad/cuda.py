"""`torch.cuda`'s questions about the compute device, its streams, and CUDA graphs."""

from tgrad.cudagraphs.graphed import graphed
from tgrad.device import compute, is_available, memory_stats, synchronize
from tgrad.torch_streams import current_stream, new_stream as Stream, stream


def device_count() -> int:
    """CUDA devices this process computes on: 0 or 1."""
    return int(is_available())


def current_device() -> int:
    """The index of the CUDA device that this process computes on, whichever is PyTorch's current one.

    Raises:
        RuntimeError: there is none.
    """
    if compute.index is None:
        raise RuntimeError("current_device: this process computes on the CPU")
    return compute.index


__all__ = [
    "Stream", "current_device", "current_stream", "device_count", "graphed", "is_available", "memory_stats", "stream",
    "synchronize",
]  # fmt: skip
