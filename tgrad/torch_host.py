"""Memory of the host that a device's bytes are moved to and brought back from: pinned, by a stream of its own."""

from __future__ import annotations

from typing import Any

import torch

from tgrad import storage, torch_streams as streams
from tgrad.device import compute
from tgrad.storage import Allocation, ledger

_side: Any = None


def _streams() -> tuple[Any, Any]:
    """(the stream of all launches, the one that copies)."""
    global _side
    if _side is None:
        _side = streams.new_stream()
    return streams.main(), _side


class HostMemory:
    """A copy of all bytes of some device memory; on the CPU a copy too. The ledger counts it in `host_bytes`."""

    __slots__ = ("nbytes", "_buffer", "_ready")

    def __init__(self, source: Allocation) -> None:
        if storage.refuse is not None:
            storage.refuse("moves memory to the host")
        n = source.nbytes
        on_cuda = compute.type == "cuda"
        self._buffer = torch.empty(n, dtype=torch.uint8, pin_memory=on_cuda)
        self.nbytes = n
        ledger.host_bytes += n
        self._ready = _copy(self._buffer, source._bytes()[:n], source) if on_cuda else None
        if not on_cuda:
            self._buffer.copy_(source._bytes()[:n])

    def __del__(self) -> None:
        if hasattr(self, "nbytes"):
            ledger.host_bytes -= self.nbytes

    def bring(self, target: Allocation) -> Any:
        """Begin to copy the bytes into `target`; returns what `arrive` waits for."""
        memory = target._bytes()[: self.nbytes]
        if self._ready is None:
            memory.copy_(self._buffer)
            return None
        for stream in _streams():
            stream.wait_event(self._ready)
        return _copy(memory, self._buffer, target)


def arrive(event: Any) -> None:
    """Let what is launched from here on wait for a copy."""
    if event is not None:
        _streams()[0].wait_event(event)


def _copy(to: torch.Tensor, source: torch.Tensor, device_side: Allocation) -> Any:
    """Copy without waiting; returns the event at its end.

    Blocks of tgrad's free lists are reused in the order of launches alone, so they are copied in that order.
    """
    main, side = _streams()
    if device_side.block is not None:
        side = main
    else:
        side.wait_stream(main)
    with torch.cuda.stream(side):
        to.copy_(source, non_blocking=True)
    if side is not main:
        (to if to.is_cuda else source).record_stream(side)
    return side.record_event()
