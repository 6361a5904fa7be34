"""Storage: the one owner of memory, and the ledger of it.

Everything tgrad computes lives in a `Storage`, a torch buffer of bytes; nothing else in the engine allocates. Each
allocation and free passes the ledger, so whoever listens there sees every byte.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from tgrad.device import compute, cpu, device

ALIGNMENT = 16  # bytes; a storage's end is padded to it, so that the widest access of a kernel stays inside


class OutOfMemoryError(RuntimeError):
    """Memory for a tensor could not be had."""


class Listener(Protocol):
    """What may subscribe to the ledger."""

    def allocated(self, storage: Storage) -> None: ...

    def freed(self, storage: Storage) -> None: ...


class Ledger:
    """Bytes of all live storages, as requested (padding apart), and who wants to hear of each.

    Attributes:
        live_bytes, peak_bytes: now, and the most since the process began or `reset_peak`.
        allocations, frees: how many there were.
    """

    __slots__ = ("live_bytes", "peak_bytes", "allocations", "frees", "listeners")

    def __init__(self) -> None:
        self.live_bytes = self.peak_bytes = self.allocations = self.frees = 0
        self.listeners: tuple[Listener, ...] = ()

    def reset_peak(self) -> None:
        """Let the peak start from what is live now."""
        self.peak_bytes = self.live_bytes

    @contextmanager
    def subscribe(self, listener: Listener) -> Iterator[Listener]:
        """Tell `listener` of every allocation and free inside the block, in this and every other thread."""
        self.listeners = (*self.listeners, listener)
        try:
            yield listener
        finally:
            self.listeners = tuple(x for x in self.listeners if x is not listener)


ledger = Ledger()


class Storage:
    """`nbytes` bytes on `device`, uninitialised.

    Attributes:
        ptr: the address of the first byte, a multiple of 16 (not so for `adopt`ed memory).
        nbytes: as requested.
        id: a number no other storage of the process has.

    Raises:
        OutOfMemoryError: says what was asked for and what is free.
    """

    __slots__ = ("buffer", "ptr", "nbytes", "device", "id", "__weakref__")

    def __init__(self, nbytes: int, device: device) -> None:
        self.buffer, self.ptr = _allocate(nbytes, device)
        self.nbytes = nbytes
        self.device = device
        self.id = next_id()
        ledger.allocations += 1
        ledger.live_bytes += nbytes
        if ledger.live_bytes > ledger.peak_bytes:
            ledger.peak_bytes = ledger.live_bytes
        for listener in ledger.listeners:
            listener.allocated(self)

    def __del__(self) -> None:
        try:
            nbytes = self.nbytes
        except AttributeError:  # its allocation failed
            return
        ledger.frees += 1
        ledger.live_bytes -= nbytes
        for listener in ledger.listeners:
            listener.freed(self)

    def host_bytes(self, offset: int, nbytes: int) -> np.ndarray:
        """`nbytes` bytes from byte `offset` on, as uint8: the memory itself on the CPU, a copy from a CUDA device."""
        return self.buffer[offset : offset + nbytes].cpu().numpy()

    def copy_from(self, source: Storage) -> None:
        """Copy all bytes of `source`, which may be on another device."""
        self.buffer[: self.nbytes].copy_(source.buffer[: source.nbytes])

    def copy_range(self, source: Storage, offset: int, nbytes: int) -> None:
        """Copy `nbytes` bytes of `source`, from byte `offset` on, to the front."""
        self.buffer[:nbytes].copy_(source.buffer[offset : offset + nbytes])

    def write(self, data: np.ndarray) -> None:
        """Copy the bytes of a C-contiguous array to the front."""
        writeable = data if data.flags.writeable else data.copy()  # torch warns of arrays that are not
        flat = torch.from_numpy(writeable.reshape(-1).view(np.uint8))
        self.buffer[: flat.numel()].copy_(flat)


next_id = itertools.count(1).__next__


def adopt(memory: torch.Tensor) -> Storage:
    """A Storage over a torch buffer of bytes that exists already (1-D, uint8), which it keeps alive."""
    storage = Storage.__new__(Storage)
    storage.buffer, storage.ptr = memory, memory.data_ptr()
    storage.device = cpu if memory.device.type == "cpu" else compute
    storage.id = next_id()
    storage.nbytes = memory.numel()
    ledger.allocations += 1
    ledger.live_bytes += storage.nbytes
    ledger.peak_bytes = max(ledger.peak_bytes, ledger.live_bytes)
    for listener in ledger.listeners:
        listener.allocated(storage)
    return storage


def adopt_array(array: np.ndarray) -> Storage:
    """A Storage over the memory of a C-contiguous, writable array."""
    return adopt(torch.from_numpy(array.reshape(-1).view(np.uint8)))


def _allocate(nbytes: int, where: device) -> tuple[torch.Tensor, int]:
    size = -(-nbytes // ALIGNMENT) * ALIGNMENT
    if _debugging is not None:
        return _debugging(size, where)
    return _buffer(size, where)


def _buffer(size: int, where: device) -> tuple[torch.Tensor, int]:
    try:
        buffer = torch.empty(size, dtype=torch.uint8, device=str(where))
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error) or isinstance(error, MemoryError):
            raise OutOfMemoryError(_no_memory(size, where)) from None
        raise
    return buffer, buffer.data_ptr()


def _no_memory(size: int, where: device) -> str:
    held = f"tgrad holds {ledger.live_bytes:,} bytes"
    if where.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        held += f", {free:,} of {total:,} bytes are free"
    return f"out of memory on {where}: {size:,} bytes were asked for; {held}. Free tensors, or use smaller batches"


_debugging: Callable[[int, device], tuple[torch.Tensor, int]] | None = None
MARGIN = 256  # bytes before and behind a guarded storage
GUARD = 0xFF  # a nan in every floating dtype


@contextmanager
def guarded() -> Iterator[list[Any]]:
    """For tests: fill new memory with nan, between margins of nan.

    A kernel that leaves an element out, or reads outside its operands, then gives nan; one that writes outside breaks a
    margin, which raises AssertionError at the end. Yields the list of guarded buffers.
    """
    global _debugging
    before, buffers = _debugging, []

    def allocate(size: int, where: device) -> tuple[torch.Tensor, int]:
        whole, ptr = _buffer(size + 2 * MARGIN, where)
        whole.fill_(GUARD)
        buffers.append((whole, size))
        return whole[MARGIN : MARGIN + size], ptr + MARGIN

    _debugging = allocate
    try:
        yield buffers
        for whole, size in buffers:
            low, high = whole[:MARGIN], whole[MARGIN + size :]
            if not (bool((low == GUARD).all()) and bool((high == GUARD).all())):
                raise AssertionError(f"a kernel wrote outside a storage of {size} bytes")
    finally:
        _debugging = before
