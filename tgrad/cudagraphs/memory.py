"""What a CUDA graph holds on to: its own memory, others' that it reads, and numbers that change by the replay."""

from __future__ import annotations

import ctypes
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Any

from tgrad import storage as memory
from tgrad.device import compute
from tgrad.dtypes import dtype, float64
from tgrad.kernels.words import COUNT, prepare_put
from tgrad.layout import layout
from tgrad.storage import Allocation, FreeList
from tgrad.tensor import Tensor, Version, make

GRAIN = 512  # bytes; blocks are multiples of it
SLOT = 16  # bytes of a Place: kernels may rely on addresses that are multiples of 16


class Pool:
    """Memory that a graph keeps for as long as it lives. What is freed while it is captured serves it again, since its
    launches keep their order; what is freed later serves nobody.
    """

    def __init__(self) -> None:
        self._blocks: list[tuple[int, int, Any]] = []  # address, size, the buffer
        self._free: dict[int, FreeList] = {}  # by size

    def give(self, storage: Allocation, nbytes: int) -> None:
        """Memory for a storage: the smallest free block, unless that is more than twice of what it takes."""
        if storage.device is not compute:
            storage._buffer, storage.ptr = memory._buffer(nbytes, storage.device)
            return
        size = max(GRAIN, -(-nbytes // GRAIN) * GRAIN)
        near = [n for n, free in self._free.items() if free and size <= n <= 2 * size]
        if near:
            storage.free = self._free[min(near)]
            storage.block = storage.free.pop()
        else:
            buffer, address = memory._buffer(size, compute)
            self._blocks.append((address, size, buffer))
            storage.free = self._free.setdefault(size, FreeList(size, compute))
            storage.block = address, buffer, 0
        storage.ptr, storage._buffer = storage.block[0], None

    def spans(self) -> list[tuple[int, int]]:
        """Begin and end of all its blocks."""
        return [(address, address + size) for address, size, _ in self._blocks]


class Touched:
    """The addresses that launches were given."""

    def __init__(self, addresses: Iterable[int]) -> None:
        self._sorted = sorted(set(addresses))

    def __contains__(self, storage: Allocation) -> bool:
        i = bisect_left(self._sorted, storage.ptr)
        return i < len(self._sorted) and self._sorted[i] < storage.ptr + max(storage.nbytes, 1)

    def outside(self, spans: Sequence[tuple[int, int]]) -> int | None:
        """One that lies in none of the spans, or None."""
        spans = sorted(spans)
        begins = [begin for begin, _ in spans]
        reach, furthest = [], 0
        for _, end in spans:
            furthest = max(furthest, end)
            reach.append(furthest)
        for address in self._sorted:
            i = bisect_right(begins, address) - 1
            if i < 0 or reach[i] <= address:
                return address
        return None


class Place:
    """16 bytes of a `Table`: two integers, or a float.

    Attributes:
        address: where they are on the device, once the table is put there.
    """

    __slots__ = ("address", "_storage", "_words")

    def __init__(self, storage: Allocation, offset: int, words: ctypes.Array) -> None:
        self.address, self._storage = storage.ptr + offset, storage
        self._words = (ctypes.c_char * SLOT).from_buffer(words, offset)

    def set_integers(self, first: int, second: int) -> None:
        """Both, for the next `put`."""
        (ctypes.c_int64 * 2).from_buffer(self._words)[:] = [first, second]

    def set_float(self, value: float, kind: dtype) -> None:
        """A float of type `kind`, float32 or float64, for the next `put`."""
        (ctypes.c_double if kind is float64 else ctypes.c_float).from_buffer(self._words).value = value

    def tensor(self, kind: dtype) -> Tensor:
        """The float, as a 0-dim tensor."""
        return make(layout(kind, (), None, compute), self._storage, self.address, Version.zero())


class Table:
    """Numbers that the host decides at each replay, in device memory: where random streams are, the rates of a step.

    Its memory is none of a Pool's: it is written before the graph runs, which would write over it what it keeps there.
    """

    def __init__(self) -> None:
        self._chunks: list[tuple[Allocation, ctypes.Array]] = []
        self._used = 0

    def place(self) -> Place:
        """A new place."""
        offset = self._used * SLOT % (8 * COUNT)
        if offset == 0:
            buffer, _ = memory._buffer(8 * COUNT, compute)
            self._chunks.append((memory.adopt(buffer), (ctypes.c_int64 * COUNT)()))
        self._used += 1
        storage, words = self._chunks[-1]
        return Place(storage, offset, words)

    def spans(self) -> list[tuple[int, int]]:
        """Begin and end of its memory."""
        return [(storage.ptr, storage.ptr + storage.nbytes) for storage, _ in self._chunks]

    def put(self) -> None:
        """Send all of it to the device, in order with other launches."""
        for storage, words in self._chunks:
            prepare_put()(storage.ptr, *words)
