"""CUDA graphs through the driver: launches are captured on a stream of their own, and launched again all at once.

The driver is used directly, as the launchers do, not `torch.cuda.CUDAGraph`: launches go to a stream that is tgrad's,
all memory comes from one place that can set it apart by itself, a replay is one call, and the stub driver of the tests
runs the same code. The capture stream is one that the legacy default stream waits for, so that work which somebody
puts on the default stream meanwhile, and which the graph would lack, is an error of the driver. Graphs are launched on
the stream that all launches go to, in order with them.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tgrad.kernels import launch

RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: memory may be allocated and kernels loaded meanwhile
INVALID_CONTEXT = 201
NEEDED = (
    "cuStreamCreate", "cuStreamBeginCapture_v2", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphLaunch",
    "cuGraphExecDestroy", "cuGraphDestroy", "cuGetErrorString", "cuCtxGetCurrent", "cuCtxSetCurrent",
)  # fmt: skip


class DriverError(RuntimeError):
    """A call of the CUDA driver failed."""


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")


@functools.cache
def why_not() -> str | None:
    """Why graphs cannot be captured in this process; None where they can."""
    if launch.COMPILE_ONLY is not None:
        return "kernels are compiled and not launched"
    if launch.INTERPRET:
        return "there is no CUDA device: kernels run through the interpreter"
    try:
        driver = _driver()
    except OSError as error:
        return f"the CUDA driver could not be loaded ({error})"
    lacking = [name for name in NEEDED if not hasattr(driver, name)]
    return f"the CUDA driver lacks {lacking[0]}: a later one is needed (12.0 or newer)" if lacking else None


def _call(name: str, *arguments: Any) -> None:
    driver = _driver()
    error = getattr(driver, name)(*arguments)
    if error:
        text = ctypes.c_char_p()
        driver.cuGetErrorString(error, ctypes.byref(text))
        raise DriverError(f"CUDA error {error} of {name}: {(text.value or b'unknown error').decode()}")


class Graph:
    """Captured launches, ready to be launched again on the stream that all launches go to."""

    def __init__(self, handle: ctypes.c_void_p) -> None:
        """`handle`: a CUgraph, which is not needed afterwards.

        Raises:
            DriverError: the driver cannot make it ready.
        """
        self._ready: ctypes.c_void_p | None = None
        self._driver = _driver()
        self._context = ctypes.c_void_p()
        _call("cuCtxGetCurrent", ctypes.byref(self._context))
        ready = ctypes.c_void_p()
        _call("cuGraphInstantiateWithFlags", ctypes.byref(ready), handle, ctypes.c_ulonglong(0))
        self._ready = ready

    def launch(self) -> None:
        """Run it after everything launched so far.

        Raises:
            DriverError: the driver refuses.
        """
        if launch.elsewhere():
            with launch.on_device():
                self.launch()
            return
        stream = ctypes.c_void_p(launch.stream())
        error = self._driver.cuGraphLaunch(self._ready, stream)
        if error == INVALID_CONTEXT:  # a thread that has not used CUDA yet
            self._driver.cuCtxSetCurrent(self._context)
        if error:
            _call("cuGraphLaunch", self._ready, stream)

    def __del__(self) -> None:
        if self._ready is not None:
            self._driver.cuGraphExecDestroy(self._ready)  # the driver waits until it has run


@functools.cache
def _stream() -> int:
    stream = ctypes.c_void_p()
    _call("cuStreamCreate", ctypes.byref(stream), ctypes.c_uint(0))
    return int(stream.value or 0)


class Capture:
    """What a capture gives.

    Attributes:
        graph: set at the end of the block.
        addresses: of each launch, in order, those it was given.
    """

    def __init__(self) -> None:
        self.graph: Graph | None = None
        self.addresses: list[int] = []


@contextmanager
def capturing() -> Iterator[Capture]:
    """Inside the block, what this thread launches is captured and does not run; other threads' launches are refused.

    Raises:
        DriverError: the driver cannot begin, or what came between cannot be captured.
    """
    capture = Capture()
    with launch.on_device():
        stream = ctypes.c_void_p(_stream())
        with launch.diverted(_stream(), capture.addresses):
            _call("cuStreamBeginCapture_v2", stream, ctypes.c_int(RELAXED))
            handle = ctypes.c_void_p()
            try:
                yield capture
            except BaseException:
                _driver().cuStreamEndCapture(stream, ctypes.byref(handle))
                if handle:
                    _driver().cuGraphDestroy(handle)
                raise
            _call("cuStreamEndCapture", stream, ctypes.byref(handle))
        try:
            capture.graph = Graph(handle)
        finally:
            _driver().cuGraphDestroy(handle)
