"""The state of random numbers: a seed, and how many have been drawn."""

from __future__ import annotations

import os
import threading


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

    def take(self, count: int) -> tuple[int, int]:
        """(seed, offset) of the next `count` numbers."""
        with self._lock:
            at = self._offset
            self._offset += count
            return self._seed, at


default_generator = Generator()


def manual_seed(seed: int) -> Generator:
    """Restart the default stream: the same seed gives the same numbers, on a CPU and on a GPU."""
    return default_generator.manual_seed(seed)


def initial_seed() -> int:
    """The seed of the default stream."""
    return default_generator.initial_seed()
