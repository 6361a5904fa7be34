"""The state of random numbers: a seed, and how many have been drawn."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from tgrad import once

if TYPE_CHECKING:
    from tgrad.tensor import Tensor


class Generator:
    """A Philox stream: (seed, offset). A draw of n numbers moves the offset by n."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seed = 0
        self._offset = 0
        self.seed()

    def manual_seed(self, seed: int) -> Generator:
        """Restart the stream at `seed`, an integer that fits into 64 bits; returns the generator.

        Raises:
            RuntimeError: it does not fit.
        """
        if not -(2**63) <= int(seed) < 2**64:
            raise RuntimeError(f"manual_seed: expected an integer of at most 64 bits, got {seed}")
        with self._lock:
            seed = int(seed) % 2**64
            self._seed = seed - 2**64 if seed >= 2**63 else seed
            self._offset = 0
        return self

    def seed(self) -> int:
        """Restart at a seed that nobody chose; returns it."""
        seed = int.from_bytes(os.urandom(7), "little")
        self.manual_seed(seed)
        return seed

    def initial_seed(self) -> int:
        """The seed the stream was started with."""
        return self._seed % 2**64

    def get_state(self) -> Tensor:
        """The state as 16 bytes: seed and offset."""
        from tgrad.ops.creation import from_numpy

        with self._lock:
            words = np.array([self._seed, self._offset], np.int64)
        return from_numpy(words.view(np.uint8))

    def set_state(self, new_state: Tensor) -> None:
        """Go back to a state from `get_state`.

        Raises:
            TypeError: not a tensor of bytes. RuntimeError: of another length.
        """
        words = _words(new_state)
        with self._lock:
            self._seed, self._offset = words

    def take(self, count: int) -> tuple[int, int]:
        """(seed, offset) of the next `count` numbers."""
        if self is not default_generator:
            once.happened()
        with self._lock:
            seed, at = self._seed, self._offset
            self._offset += count
        return (seed, at) if in_memory is None else in_memory(self, seed, at)


# Says where in device memory a stream is, and how far from there a draw, while a CUDA graph is captured.
in_memory: Callable[[Generator, int, int], tuple[int, int]] | None = None


def _words(state: Any) -> tuple[int, int]:
    from tgrad.dtypes import uint8
    from tgrad.tensor import Tensor

    if not isinstance(state, Tensor) or state.dtype is not uint8:
        got = repr(state.dtype) if isinstance(state, Tensor) else type(state).__name__
        raise TypeError(f"RNG state must be a torch.ByteTensor, got {got}")
    if state.numel() != 16:
        raise RuntimeError(f"RNG state is wrong size: expected 16 bytes, got {state.numel()}")
    seed, offset = np.ascontiguousarray(state._values()).reshape(-1).view(np.int64)
    return int(seed), int(offset)


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Restart the default stream: the same seed gives the same numbers, on a CPU and on a GPU.

    Raises:
        RuntimeError: the seed does not fit into 64 bits.
    """
    return default_generator.manual_seed(seed)


def seed() -> int:
    """Restart the default stream at a seed that nobody chose; returns it."""
    return default_generator.seed()


def initial_seed() -> int:
    """The seed of the default stream."""
    return default_generator.initial_seed()


def get_rng_state() -> Tensor:
    """The state of the default stream, for `set_rng_state`.

    Shape: a vector of 16.
    Dtype: uint8.
    Raises: nothing.
    """
    return default_generator.get_state()


def set_rng_state(new_state: Tensor) -> None:
    """Put the default stream back to a state from `get_rng_state`.

    Shape: a vector of 16.
    Dtype: uint8.
    Raises:
        TypeError: no Tensor, or of another dtype.
        RuntimeError: of another length.
    """
    default_generator.set_state(new_state)


@contextmanager
def fork_rng(
    devices: Any = None, enabled: bool = True, _caller: str = "", _devices_kw: str = "", device_type: str = "cuda"
) -> Iterator[None]:
    """Restore the default stream's state at the end of the block, unless not `enabled`.

    tgrad has one stream for all devices: the other arguments, PyTorch's, change nothing.
    """
    before = default_generator.get_state() if enabled else None
    try:
        yield
    finally:
        if before is not None:
            default_generator.set_state(before)
