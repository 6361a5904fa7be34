"""What the device's allocator holds beside what was asked of it: rounding, item by item.

On a CUDA device tgrad takes small storages from free lists, whose blocks are powers of two cut from slabs, and others
from PyTorch's caching allocator, which rounds to 512 bytes. On the CPU the ledger is all there is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tgrad import storage
from tgrad.device import memory_stats

TORCH_ROUNDS_TO = 512  # bytes; c10/cuda/CUDACachingAllocator.cpp, kMinBlockSize


@dataclass(frozen=True)
class State:
    """At one moment: bytes that the device's allocator has given out, and those of them in free blocks of tgrad."""

    allocated_bytes: int
    free_bytes: int


def state() -> State:
    """Now. Without a CUDA device: the ledger, and no free blocks."""
    stats = memory_stats()
    if not stats:
        return State(storage.ledger.live_bytes, 0)
    return State(stats["allocated_bytes"], sum(len(blocks) * blocks.size for blocks in storage._free_lists.values()))


def rounded(nbytes: int, pooled: bool) -> int:
    """What a storage of `nbytes` takes of a CUDA device: a block of a free list, or of PyTorch's allocator."""
    if pooled and nbytes <= storage.LARGEST:
        return max(storage.SMALLEST, 1 << (nbytes - 1).bit_length()) if nbytes else storage.SMALLEST
    aligned = -(-nbytes // storage.ALIGNMENT) * storage.ALIGNMENT
    return -(-aligned // TORCH_ROUNDS_TO) * TORCH_ROUNDS_TO


def figures(before: State, after: State, sizes: Iterable[int], has_stats: bool | None = None) -> dict[str, int]:
    """The allocator's columns of a RunRecord.

    Args:
        sizes: bytes of each storage that came between the two and is still there; nothing of before may be gone.
        has_stats: whether states are a CUDA allocator's; None: as on this machine.
    """
    change = after.allocated_bytes - before.allocated_bytes
    asked = list(sizes)
    cuda = bool(memory_stats()) if has_stats is None else has_stats
    rounding = sum(rounded(n, storage.POOLING) - n for n in asked) if cuda else 0
    blocks = after.free_bytes - before.free_bytes
    return {
        "allocator_bytes": change,
        "rounding_bytes": rounding,
        "free_blocks_bytes": blocks,
        "allocator_residual_bytes": change - sum(asked) - rounding - blocks,
    }
