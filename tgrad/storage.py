"""Storage: the one owner of memory, and the ledger of it.

Everything tgrad computes lives in a `Storage`, a torch buffer of bytes; nothing else in the engine allocates. Each
allocation and free passes the ledger, so whoever listens there sees every byte.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch

from tgrad import torch_streams as streams
from tgrad.device import compute, cpu, device
from tgrad.kernels import launch

ALIGNMENT = 16  # bytes; a storage's end is padded to it, so that the widest access of a kernel stays inside


class OutOfMemoryError(RuntimeError):
    """Allocation for a tensor could not be had."""


class Listener(Protocol):
    """What may subscribe to the ledger."""

    def allocated(self, storage: Allocation) -> None: ...

    def freed(self, storage: Allocation) -> None: ...


class Ledger:
    """Bytes of all live storages, as requested (padding apart), and who wants to hear of each.

    Attributes:
        live_bytes, peak_bytes: now, and the most since the process began or `reset_peak`.
        allocations: how many there were.
        host_bytes: what was moved to host memory, apart from the others.
        watched: whether somebody listens, or gives memory in place of torch (`allocator`).
    """

    __slots__ = ("live_bytes", "peak_bytes", "allocations", "listeners", "host_bytes", "watched")

    def __init__(self) -> None:
        self.live_bytes = self.peak_bytes = self.allocations = self.host_bytes = 0
        self.listeners: tuple[Listener, ...] = ()
        self.watched = False

    def reset_peak(self) -> None:
        """Let the peak start from what is live now."""
        self.peak_bytes = self.live_bytes

    @contextmanager
    def subscribe(self, listener: Listener) -> Iterator[Listener]:
        """Tell `listener` of every allocation and free inside the block, in this and every other thread."""
        self.listeners = (*self.listeners, listener)
        self.watched = True
        try:
            yield listener
        finally:
            self.listeners = tuple(x for x in self.listeners if x is not listener)
            self.watched = bool(self.listeners) or allocator is not None


ledger = Ledger()


# Small blocks are kept in free lists, since torch's allocator costs more host time than a whole op may. Not on the CPU,
# where the interpreter's time hides it; off while memory is guarded, and with TGRAD_POOL=0, for sanitizers: a block's
# neighbours hide accesses out of range.
# TGRAD_POOL=1 has them, and what eager.c does, on the CPU too: for tests.
POOLING = os.environ.get("TGRAD_POOL") != "0" and (
    compute.type == "cuda" or os.environ.get("TGRAD_LAUNCH") == "driver" or os.environ.get("TGRAD_POOL") == "1"
)
LARGEST = 1 << 20  # bytes; larger storages come from torch
SMALLEST = 512
SLAB = 1 << 21

Block = tuple[int, torch.Tensor, int]  # address, the slab it lies in, offset there


class FreeList(list[Block]):
    """Free blocks of one size on one device. One stream uses them, so that a block may be reused at once."""

    __slots__ = ("size", "device")

    def __init__(self, size: int, device: device) -> None:
        self.size, self.device = size, device

    def grow(self) -> Block:
        """Cut a new slab into blocks; returns one of them."""
        count = max(1, min(64, SLAB // self.size))
        slab, first = _buffer(count * self.size, self.device)
        self += [(first + k * self.size, slab, k * self.size) for k in range(count)]
        return self.pop()


_free_lists: dict[tuple[int, device], FreeList] = {}


def free_list(nbytes: int, device: device) -> FreeList | None:
    """Where a storage of `nbytes` bytes comes from and goes to; None: from torch."""
    if not POOLING or nbytes > LARGEST or device is not compute:
        return None
    size = max(SMALLEST, 1 << (nbytes - 1).bit_length()) if nbytes else SMALLEST
    return _free_lists.setdefault((size, device), FreeList(size, device))


class Allocation:
    """Bytes that something owns: a `Storage`, or a block of a free list (`tensor.empty` takes those).

    Attributes:
        ptr: the address of the first byte, a multiple of 16 (not so for `adopt`ed memory).
        nbytes: as requested.
        changed, readers: set by recompute.py: when it was last written, and who wants to know before it is.
        free, block: the free list the memory goes back to and its place there, if it came from one.
    """

    __slots__ = ("ptr", "nbytes", "device", "free", "block", "_buffer", "_id", "changed", "readers", "__weakref__")

    ptr: int
    nbytes: int
    device: device
    free: FreeList | None
    block: Block | None
    _buffer: torch.Tensor | None
    _id: int
    changed: int
    readers: list

    def __del__(self) -> None:
        try:
            nbytes = self.nbytes
        except AttributeError:  # its allocation failed
            return
        free = self.free
        if free is not None:
            free.append(self.block)  # type: ignore[arg-type]
        ledger.live_bytes -= nbytes
        if ledger.listeners:
            for listener in ledger.listeners:
                listener.freed(self)

    @property
    def id(self) -> int:
        """A number that no other storage of the process has."""
        try:
            return self._id
        except AttributeError:
            self._id = next_id()
            return self._id

    @property
    def buffer(self) -> torch.Tensor:
        """The memory as a torch buffer of bytes. Who asks may keep it, so the memory then goes back to no free list."""
        if refuse is not None and self.device is compute:
            refuse("gives memory away, to PyTorch or numpy")
        self.free = None
        return self._bytes()

    def _bytes(self) -> torch.Tensor:
        if self._buffer is None:
            _, slab, offset = self.block  # type: ignore[misc]
            self._buffer = slab[offset : offset + max(self.nbytes, 1)]
        return self._buffer

    def host_bytes(self, offset: int, nbytes: int) -> np.ndarray:
        """`nbytes` bytes from byte `offset` on, as uint8: the memory itself on the CPU, a copy from a CUDA device."""
        if refuse is not None and self.device is compute:
            refuse("reads a value on the host")
        if self.device.type != "cuda":
            return self.buffer[offset : offset + nbytes].numpy()
        with streams.ours():
            return self._bytes()[offset : offset + nbytes].cpu().numpy()

    def copy_from(self, source: Allocation) -> None:
        """Copy all bytes of `source`, which may be on another device."""
        self._refuse_copy(source)
        with streams.ours(compute in (self.device, source.device)):
            self._bytes()[: self.nbytes].copy_(source._bytes()[: source.nbytes])

    def copy_range(self, source: Allocation, offset: int, nbytes: int) -> None:
        """Copy `nbytes` bytes of `source`, from byte `offset` on, to the front."""
        self._refuse_copy(source)
        with streams.ours(compute in (self.device, source.device)):
            self._bytes()[:nbytes].copy_(source._bytes()[offset : offset + nbytes])

    def write(self, data: np.ndarray) -> None:
        """Copy the bytes of a C-contiguous array to the front."""
        if refuse is not None and self.device is compute:
            refuse("makes a tensor of values on the host")
        writeable = data if data.flags.writeable else data.copy()  # torch warns of arrays that are not
        flat = torch.from_numpy(writeable.reshape(-1).view(np.uint8))
        with streams.ours(self.device is compute):
            self._bytes()[: flat.numel()].copy_(flat)

    def _refuse_copy(self, source: Allocation) -> None:
        if refuse is not None and (self.device is compute or source.device is compute):
            alike = self.device is source.device
            refuse("copies memory without a kernel" if alike else "moves a tensor between devices")


class Storage(Allocation):
    """`nbytes` bytes on `device`, uninitialised, from torch.

    Raises:
        OutOfMemoryError: says what was asked for and what is free.
    """

    __slots__ = ()

    def __init__(self, nbytes: int, device: device) -> None:
        self.free = self.block = None
        self.device = device
        size = -(-nbytes // ALIGNMENT) * ALIGNMENT
        if allocator is None:
            self._buffer, self.ptr = _buffer(size, device)
        else:
            allocator(self, size)
        enter(self, nbytes)


def enter(storage: Allocation, nbytes: int) -> None:
    """Put a new storage into the books."""
    storage.nbytes = nbytes
    ledger.allocations += 1
    live = ledger.live_bytes = ledger.live_bytes + nbytes
    if live > ledger.peak_bytes:
        ledger.peak_bytes = live
    if ledger.listeners:
        for listener in ledger.listeners:
            listener.allocated(storage)


def workspace(nbytes: int) -> Allocation:
    """Memory on the compute device for as long as an op runs."""
    return allocate(nbytes, compute)


def allocate(nbytes: int, device: device) -> Allocation:
    """Memory from a free list where there is one; `tensor.empty` has this written out."""
    free = None if allocator is not None else free_list(nbytes, device)
    if free is None:
        return Storage(nbytes, device)
    storage = Allocation()
    try:
        block = free.pop()
    except IndexError:
        block = free.grow()
    storage.ptr, storage.block, storage.free, storage.device, storage._buffer = block[0], block, free, device, None
    enter(storage, nbytes)
    return storage


next_id = itertools.count(1).__next__


def adopt(memory: torch.Tensor) -> Allocation:
    """Storage over a torch buffer of bytes that exists already (1-D, uint8), which it keeps alive."""
    storage = Allocation()
    storage._buffer, storage.ptr = memory, memory.data_ptr()
    storage.free = storage.block = None
    storage.device = cpu if memory.device.type == "cpu" else compute
    enter(storage, memory.numel())
    return storage


def adopt_array(array: np.ndarray) -> Allocation:
    """Storage over the memory of a C-contiguous, writable array."""
    return adopt(torch.from_numpy(array.reshape(-1).view(np.uint8)))


def _buffer(size: int, where: device) -> tuple[torch.Tensor, int]:
    try:
        if where is cpu:
            buffer = torch.empty(size, dtype=torch.uint8)
        else:
            with streams.ours() if _serving is None else torch.cuda.stream(_serving):
                buffer = torch.empty(size, dtype=torch.uint8, device=str(where))
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error) or isinstance(error, MemoryError):
            raise OutOfMemoryError(_no_memory(size, where)) from None
        raise
    return buffer, buffer.data_ptr()


# The stream that torch's allocator serves inside `apart`; None: tgrad's.
_serving: Any = None


@contextmanager
def apart() -> Iterator[None]:
    """Inside the block, memory is taken for a stream that is not the default one: for the capture of a CUDA graph.

    Before torch takes memory from the driver, it asks whether its stream is being captured; of the default stream CUDA
    refuses to say while one that it waits for is (cudaErrorStreamCaptureImplicit). Launches go where they always go,
    and their order makes it safe to use freed memory again, whichever stream torch took it for.
    """
    global _serving
    _serving = _other_stream() if compute.type == "cuda" else None
    try:
        yield
    finally:
        _serving = None


@functools.cache
def _other_stream() -> Any:
    return torch.cuda.Stream(compute.index)


_scratch: list[torch.Tensor] = []


def _allocate_scratch(nbytes: int) -> int:
    """For `launch.scratch`: memory that stays, and is nobody's in the ledger."""
    buffer, address = _buffer(nbytes + 128, compute)
    _scratch.append(buffer)
    return -(-address // 128) * 128


launch.allocate = _allocate_scratch


def _no_memory(size: int, where: device) -> str:
    held = f"tgrad holds {ledger.live_bytes:,} bytes"
    if where.type == "cuda":
        free, total = torch.cuda.mem_get_info(compute.index)
        held += f", {free:,} of {total:,} bytes are free"
    return f"out of memory on {where}: {size:,} bytes were asked for; {held}. Free tensors, or use smaller batches"


# Gives a storage its memory in place of torch: while tests guard memory, and while a CUDA graph is captured. Whoever
# sets it calls `slow`.
allocator: Callable[[Allocation, int], None] | None = None
# Refuses, while a CUDA graph is captured, what a replay would not do again.
refuse: Callable[[str], None] | None = None


# Lets every allocation ask Python; eager.py sets it.
native_slow: Callable[[bool], None] | None = None


def slow(on: bool) -> None:
    """Whether every allocation asks `allocator`."""
    ledger.watched = on or bool(ledger.listeners)
    if native_slow is not None:
        native_slow(on)


MARGIN = 256  # bytes before and behind a guarded storage
GUARD = 0xFF  # a nan in every floating dtype


@contextmanager
def guarded() -> Iterator[list[Any]]:
    """For tests: fill new memory with nan, between margins of nan.

    A kernel that leaves an element out, or reads outside its operands, then gives nan; one that writes outside breaks a
    margin, which raises AssertionError at the end. Yields the list of guarded buffers.
    """
    global allocator
    before, buffers = allocator, []

    def allocate(storage: Allocation, size: int) -> None:
        whole, ptr = _buffer(size + 2 * MARGIN, storage.device)
        whole.fill_(GUARD)
        buffers.append((whole, size))
        storage._buffer, storage.ptr = whole[MARGIN : MARGIN + size], ptr + MARGIN

    allocator = allocate
    slow(True)
    try:
        yield buffers
        for whole, size in buffers:
            low, high = whole[:MARGIN], whole[MARGIN + size :]
            if not (bool((low == GUARD).all()) and bool((high == GUARD).all())):
                raise AssertionError(f"a kernel wrote outside a storage of {size} bytes")
    finally:
        allocator = before
        slow(before is not None)
