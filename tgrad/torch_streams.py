"""The CUDA stream that is tgrad's, for its launches, its copies and its memory; its order with PyTorch's current one.

All launches of the process go to one stream (kernels/launch.py). PyTorch has a current stream of each thread, and its
copies and allocations go there; the two are the same until somebody enters `torch.cuda.stream`. Launches do not follow:
asking PyTorch at each costs a call, and free lists and scratch memory rely on the order of all launches. So tgrad's own
copies and allocations are made on its stream (`ours`), and where memory passes between tgrad and PyTorch, the stream of
the one that takes it waits for that of the one that gives it (`tgrad_waits`, `torch_waits`).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tgrad.device import compute
from tgrad.kernels import launch

ON_CUDA = compute.type == "cuda"
launch.device = compute.index


def _address_of_current(index: int) -> int:
    return torch.cuda.current_stream(index).cuda_stream


# The address of PyTorch's current stream: 0.1 us where PyTorch has it as a number (as Triton asks for it), else 2 us.
_current: Any = getattr(torch._C, "_cuda_getCurrentRawStream", _address_of_current)


def apart() -> bool:
    """Whether PyTorch's current stream is another than tgrad's."""
    return ON_CUDA and _current(compute.index) != launch.stream()


@functools.cache
def _at(address: int) -> Any:
    if not address:
        return torch.cuda.default_stream(compute.index)
    return torch.cuda.ExternalStream(address, device=compute.index)


def main() -> Any:
    """tgrad's stream, as PyTorch has streams."""
    return _at(launch.stream())


_SAME: Any = contextlib.nullcontext()


def ours(on_device: bool = True) -> Any:
    """Inside the block, what PyTorch copies and allocates is on tgrad's stream; nothing where all is `on_device` False:
    processes that load data are forked, and may not ask CUDA anything.
    """
    return torch.cuda.stream(main()) if on_device and apart() else _SAME


def tgrad_waits(*shared: torch.Tensor) -> None:
    """What tgrad launches from here on waits for what PyTorch has on its current stream. `shared` is memory that both
    use from here on: once it is free, PyTorch's allocator waits for both streams before it gives it away.
    """
    if apart():
        theirs = torch.cuda.current_stream(compute.index)
        main().wait_stream(theirs)
        _share(shared, main(), theirs)


def torch_waits(*shared: torch.Tensor) -> None:
    """What PyTorch puts on its current stream from here on waits for what tgrad has launched. `shared`: as above."""
    if apart():
        theirs = torch.cuda.current_stream(compute.index)
        theirs.wait_stream(main())
        _share(shared, main(), theirs)


def _share(shared: tuple[torch.Tensor, ...], *streams: Any) -> None:
    for t in shared:
        if t.is_cuda and t.numel():
            for stream in streams:
                t.record_stream(stream)


def new_stream(priority: int = 0) -> Any:
    """A further stream of the compute device.

    Raises:
        RuntimeError: tgrad computes on the CPU, which has no streams.
    """
    if not ON_CUDA:
        raise RuntimeError("Stream: tgrad computes on the CPU, which has no streams")
    return torch.cuda.Stream(compute.index, priority=priority)


def current_stream() -> Any:
    """The stream that tgrad launches on, as a `torch.cuda.Stream`; whatever it should wait for, or what should wait for
    it, goes by that class's `wait_stream`, `wait_event` and `record_event`.

    Raises:
        RuntimeError: tgrad computes on the CPU, which has no streams.
    """
    if not ON_CUDA:
        raise RuntimeError("current_stream: tgrad computes on the CPU, which has no streams")
    return main()


@contextmanager
def stream(stream: Any) -> Iterator[None]:
    """Inside the block, everything tgrad launches and copies goes to another stream, and PyTorch's current stream is
    that one too. As `torch.cuda.stream`, with two differences.

    The stream is tgrad's one stream meanwhile, of all threads: enter and leave while no other thread computes. And
    order is kept: it waits for what tgrad launched before the block, and what comes after waits for it. So tgrad's own
    work never overlaps; it overlaps with what PyTorch and others run on other streams.

    Args:
        stream: a `torch.cuda.Stream` of the compute device, as `tgrad.cuda.Stream()` makes one; None: nothing changes.

    Raises:
        TypeError: something else.
        RuntimeError: a stream of another device, or tgrad computes on the CPU.
    """
    if stream is None:
        yield
        return
    if not hasattr(stream, "cuda_stream"):
        raise TypeError(f"stream: expected a torch.cuda.Stream or None, got {type(stream).__name__}")
    before = current_stream()
    if stream.device.index != compute.index:
        raise RuntimeError(f"stream: expected one of {compute}, which tgrad computes on, got one of {stream.device}")
    from tgrad import storage  # which imports this module

    if storage.refuse is not None:
        storage.refuse("switches to another stream")
    _switch(before, stream)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        _switch(stream, before)


def _switch(old: Any, new: Any) -> None:
    new.wait_stream(old)
    launch.set_stream(new.cuda_stream)


class Timer:
    """Milliseconds between `start` and `stop` on the compute device's own clock: CUDA events on tgrad's stream."""

    def __init__(self) -> None:
        if not ON_CUDA:
            raise RuntimeError("Timer: device time exists on CUDA devices only; use time.perf_counter on the CPU")
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def start(self) -> None:
        self._events[0].record(main())

    def stop(self) -> None:
        self._events[1].record(main())

    def milliseconds(self) -> float:
        self._events[1].synchronize()
        return self._events[0].elapsed_time(self._events[1])
