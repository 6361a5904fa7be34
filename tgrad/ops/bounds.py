"""Whether indices are in range: the one check that every operation which takes indices makes.

On the CPU each call looks, and raises. On a GPU looking would stop the queue, so by default nobody looks: kernels touch
no memory for an index out of range (floats read there are nan, integers 0; writes are dropped). Inside `check_indices`
a kernel looks for the first one before the operation runs, and the operation raises, with the line that called it.
"""

from __future__ import annotations

import os
from contextlib import ContextDecorator
from contextvars import ContextVar, Token

import numpy as np

from tgrad.device import compute, cpu
from tgrad.kernels.indexing import NOWHERE, prepare_first_outside
from tgrad.kernels.launch import INTERPRET
from tgrad.layout import collapse
from tgrad.storage import workspace
from tgrad.tensor import Tensor

# Whether the values of every index are at hand on the host, without waiting.
host: bool = compute.type == "cpu" and INTERPRET
_checking: ContextVar[bool] = ContextVar(
    "tgrad_check_indices", default=os.environ.get("TGRAD_CHECK_INDICES", "0") not in ("", "0")
)


class check_indices(ContextDecorator):
    """Inside the block, or the decorated function, an index out of range raises on a GPU too, before anything is
    written: the error names the operation, the index, its position and the line of the call.

    Each operation that takes indices then waits for the device, so it is for finding a mistake; it cannot be used
    while a CUDA graph is captured. On the CPU every index is checked anyway. The environment variable
    TGRAD_CHECK_INDICES=1 turns it on from the start.

    Args:
        mode: False turns it off within another.

    Raises:
        TypeError: mode is no bool.
    """

    def __init__(self, mode: bool = True) -> None:
        if not isinstance(mode, bool):
            raise TypeError(f"check_indices(): argument 'mode' must be bool, not {type(mode).__name__}")
        self.mode = mode
        self._tokens: list[Token] = []

    def __enter__(self) -> check_indices:
        self._tokens.append(_checking.set(self.mode))
        return self

    def __exit__(self, *exception: object) -> None:
        _checking.reset(self._tokens.pop())


def outside(op: str, index: Tensor, size: int, negative: bool = True, ignored: int | None = None) -> int | None:
    """Of a CPU tensor, a value of `index` that is out of range for `size` elements, or None. On a GPU always None.

    Args:
        op: the name to report.
        negative: whether -size to -1 count from the end.
        ignored: a value that is allowed all the same.

    Raises:
        IndexError: within `check_indices`, on a GPU.
    """
    low = -size if negative else 0
    if host or _aside(index):
        return _on_host(index, low, size, ignored)
    if _checking.get() and index.numel():
        position = _on_device(index, low, size, ignored)
        if position < index.numel():
            raise IndexError(_report(op, index, position, low, size))
    return None


def _aside(index: Tensor) -> bool:
    """Whether it is a CPU tensor on a machine whose GPU computes."""
    return compute is not cpu and index.layout.device is cpu


def extremes(index: Tensor) -> tuple[int, int] | None:
    """Least and greatest value, where looking at them costs no wait: on the CPU."""
    if not (host or _aside(index)) or not index.numel():
        return None
    values = index._array()
    return int(values.min()), int(values.max())


def _on_host(index: Tensor, low: int, size: int, ignored: int | None) -> int | None:
    found = extremes(index)
    if found is None or low <= found[0] and found[1] < size:
        return None
    if ignored is None:
        return found[0] if found[0] < low else found[1]
    values = index._array()
    wrong = values[((values < low) | (values >= size)) & (values != ignored)]
    return int(wrong.flat[0]) if wrong.size else None


def _on_device(index: Tensor, low: int, size: int, ignored: int | None) -> int:
    """The row-major position of the first index out of range; NOWHERE if all are in range."""
    if size <= 0 and ignored is None:
        return 0
    shape, (strides,) = collapse(tuple(index.shape), [index.layout.strides])
    wide = max(index.layout.extent, index.numel()) >= 2**31
    launch = prepare_first_outside(index.dtype.triton, shape or (1,), strides or (0,), wide=wide)
    word = workspace(8)
    word.write(np.array([NOWHERE], np.int64))
    launch(word.ptr, index.ptr, low, size, low if ignored is None else ignored)
    return int(np.frombuffer(word.host_bytes(0, 8).tobytes(), np.int64)[0])


def _report(op: str, index: Tensor, position: int, low: int, size: int) -> str:
    from tgrad.origins import find

    place = tuple(int(i) for i in np.unravel_index(position, tuple(index.shape)))
    value = int(index._array()[place])
    line = find()
    called = f"; called {line}" if line.file else ""
    what = f"index {value}" + (f", at {place} of the indices of shape {tuple(index.shape)}," if place else "")
    return f"{op}: {what} is out of range: expected {low} to {size - 1} for {size} elements{called}"
