"""The launcher in Python, where the native one (native.py) cannot be built: through what Triton has compiled itself.

Three ways, the first that works for a kernel:

- raw: Triton's C function, called as Triton's own launcher calls it, without the Python around it; 0.5 us of host time.
  How it is called is not written down here: Triton's launcher is run once with a recorder in the place of that
  function. A call of a form that is not known, or that fails on an empty grid, is not used.
- run: Triton's launcher object, `CompiledKernel.run`; 1.6 us.
- `CompiledKernel[grid]`, which needs nothing but Triton's public interface; 2 us.

Triton's launch hooks fire in all of them.
"""

from __future__ import annotations

import copy
import functools
import threading
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import triton
from triton import knobs

Launch = Callable[..., None]

stream: int | None = None
_noted: tuple[list[int], int] | None = None  # a list for addresses, and the thread that may launch


def set_stream(address: int) -> None:
    """The stream, by its address, that all launches go to."""
    global stream
    stream = address


def note(addresses: list[int] | None) -> None:
    """Add the addresses of launches, of this thread alone, to a list; None: no more."""
    global _noted
    _noted = None if addresses is None else (addresses, threading.get_ident())


# As in launcher.c.
OTHER_THREAD = "another thread is capturing a CUDA graph: nothing else can be launched until it has"


def _calls(hook: str) -> Any:
    """What Triton calls at each launch: a list that it adds to, or None where it is kept otherwise."""
    return getattr(getattr(knobs.runtime, hook, None), "calls", None)


# Each is empty while there are no launch hooks; the last holds what was set by assignment, other settings too.
_entering, _leaving, _assigned = _calls("launch_enter_hook"), _calls("launch_exit_hook"), vars(knobs.runtime)


def prepare(
    compiled: Any, grid: tuple[int, int, int], runtime: tuple, plain: list[tuple[str, int]], rest: tuple,
    scratch: Callable[[int], int] | None,
) -> Launch:  # fmt: skip
    """A launch of a compiled kernel.

    Args:
        runtime: Triton types of the run-time parameters, nested as in the signature.
        plain: type and value of the fixed parameters of the compiled code, flat.
        rest: all fixed parameters and constants, nested as in the signature.
        scratch: gives the address of scratch memory, where the kernel needs some.
    """
    kinds = [k for given in runtime for k in (given if isinstance(given, tuple) else (given,))]
    careful = _Careful(compiled, grid, runtime, kinds, rest, scratch)
    try:
        if scratch is None:  # kernels with scratch memory take longer than their launch anyway
            return _raw(compiled, grid, kinds, plain, careful)
    except _Unknown as unknown:
        _warn(str(unknown), "`CompiledKernel.run`, which costs about 1 us more of host time")
    try:
        careful.try_run()
    except Exception as error:
        _warn(f"its launcher object raises {error!r}", "`CompiledKernel[grid]`, which costs 1.5 us more of host time")
        return careful
    return careful.run


class _Unknown(Exception):
    """This Triton launches in a way that is not known here."""


_told: set[str] = set()


def _warn(found: str, way: str) -> None:
    if way not in _told:
        _told.add(way)
        warnings.warn(f"Triton {triton.__version__}: {found}. Kernels are launched through {way}", stacklevel=6)


class _Careful:
    """Launches with arguments nested as in the signature, constants among them: for whatever is unusual."""

    def __init__(
        self, compiled: Any, grid: tuple[int, int, int], runtime: tuple, kinds: list[str], rest: tuple,
        scratch: Callable[[int], int] | None,
    ) -> None:  # fmt: skip
        self.compiled, self.grid, self.kinds, self.rest, self.scratch = compiled, grid, kinds, rest, scratch
        self.spans: list[slice | int] = []  # an index gives the value, a slice the tuple of them
        at = 0
        for given in runtime:
            width = len(given) if isinstance(given, tuple) else 1
            self.spans.append(slice(at, at + width) if isinstance(given, tuple) else at)
            at += width

    def _args(self, values: tuple) -> tuple:
        return (*[values[span] for span in self.spans], *self.rest)

    def __call__(self, *values: int | float) -> None:
        """Through `CompiledKernel[grid]`."""
        if _noted is not None:
            addresses, thread = _noted
            if threading.get_ident() != thread:
                raise RuntimeError(OTHER_THREAD)
            addresses += [v for v, kind in zip(values, self.kinds, strict=True) if kind.startswith("*")]  # type: ignore
        if self.scratch is not None:
            triton.set_allocator(_Scratch(self.scratch))  # every time: Triton keeps it for the thread
        self.compiled[self.grid](*self._args(values), stream=stream)

    def run(self, *values: int | float) -> None:
        """Through `CompiledKernel.run`."""
        if _noted is not None or _entering or _leaving or _assigned:
            return self(*values)
        if self.scratch is not None:
            triton.set_allocator(_Scratch(self.scratch))
        compiled = self.compiled
        compiled.run(
            *self.grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *self._args(values)
        )

    def try_run(self) -> None:
        """Raise what an empty grid raises."""
        if self.scratch is not None:
            triton.set_allocator(_Scratch(self.scratch))
        compiled, args = self.compiled, self._args(_samples(self.kinds))
        compiled.run(0, *self.grid[1:], stream, compiled.function, compiled.packed_metadata, None, None, None, *args)


class _Scratch:
    """What Triton's own launcher takes for an allocator, and for memory."""

    def __init__(self, scratch: Callable[[int], int]) -> None:
        self.scratch = scratch

    def __call__(self, nbytes: int, alignment: int, stream: int | None) -> _Scratch:
        self.address = self.scratch(nbytes)
        return self

    def data_ptr(self) -> int:
        return self.address


def _samples(kinds: Sequence[str]) -> tuple:
    return tuple(0.0 if kind in ("fp32", "fp64") else 0 for kind in kinds)


def _raw(
    compiled: Any, grid: tuple[int, int, int], kinds: list[str], plain: list[tuple[str, int]], careful: _Careful
) -> Launch:
    """A launch by Triton's C function.

    A launcher of Triton's is made for the flat signature, without constants: it costs less to call.

    Raises:
        _Unknown: it is called in a way that is not known here.
    """
    flat = (*kinds, *(kind for kind, _ in plain))
    tail = tuple(value for _, value in plain)
    try:
        launcher = _flat_launcher(compiled, flat)
        raw, marks = launcher.launch, tuple(object() for _ in flat)
        given = _recorded(launcher, (*grid, _STREAM, compiled.function, compiled.packed_metadata), marks)
    except Exception as error:
        raise _Unknown(f"its launcher object cannot be used as in 3.6 and 3.7 ({error!r})") from error
    make: Callable[..., Launch]
    if given[-1] == marks and len(given) == 16:  # 3.7
        make, fixed, sample = _tuple_launch, given[5:-1], (_samples(flat),)
    elif given[-len(marks) :] == marks and len(given) == 13 + len(marks):  # 3.6
        make, fixed, sample = _spread_launch, given[5 : -len(marks)], _samples(flat)
    else:
        raise _Unknown(f"its C function takes {len(flat)} parameters as {len(given)} arguments, in an unknown order")
    if given[:5] != (*grid, _STREAM, compiled.function):
        raise _Unknown("its C function does not take the grid, the stream and the kernel first")
    try:
        raw(0, *grid[1:], stream, compiled.function, *fixed, *sample)  # a grid of none: nothing is launched
    except Exception as error:
        raise _Unknown(f"its C function refuses {len(flat)} parameters ({error!r})") from error
    return make(raw, *grid, compiled.function, fixed, len(kinds), tail, careful)


@functools.cache
def _flat_launcher(compiled: Any, flat: tuple[str, ...]) -> Any:
    return type(compiled.run)(types.SimpleNamespace(signature=dict(enumerate(flat))), compiled.metadata)


_STREAM: Any = object()


def _recorded(launcher: Any, head: tuple, marks: tuple) -> tuple:
    """What a launcher of Triton's calls its C function with."""
    calls: list[tuple] = []
    recorder = copy.copy(launcher)
    recorder.launch = lambda *given: calls.append(given)
    recorder(*head, None, None, None, *marks)
    (given,) = calls
    return given


# In the launches below all but run-time values is in cells of a closure, which is the cheapest place. What pointwise
# ops of one and two operands on dense memory need (one fixed value, the size) is written out; a closure for any number
# of values costs 0.03 us more. While somebody captures or has set hooks, `careful` launches.


def _tuple_launch(
    raw: Any, x: int, y: int, z: int, function: int, fixed: tuple, count: int, tail: tuple, careful: _Careful
) -> Launch:
    a, b, c, d, e, f, g, h, i, j = fixed
    last = tail[0] if tail else 0

    def launch2(p: float, q: float) -> None:
        if _noted is not None or _entering or _leaving or _assigned:
            return careful(p, q)
        raw(x, y, z, stream, function, a, b, c, d, e, f, g, h, i, j, (p, q, last))

    def launch3(p: float, q: float, r: float) -> None:
        if _noted is not None or _entering or _leaving or _assigned:
            return careful(p, q, r)
        raw(x, y, z, stream, function, a, b, c, d, e, f, g, h, i, j, (p, q, r, last))

    def launch(*values: float) -> None:
        if _noted is not None or _entering or _leaving or _assigned:
            return careful(*values)
        raw(x, y, z, stream, function, a, b, c, d, e, f, g, h, i, j, values + tail)

    written: dict[int, Launch] = {2: launch2, 3: launch3} if len(tail) == 1 else {}
    return written.get(count, launch)


def _spread_launch(
    raw: Any, x: int, y: int, z: int, function: int, fixed: tuple, count: int, tail: tuple, careful: _Careful
) -> Launch:
    a, b, c, d, e, f, g, h = fixed
    last = tail[0] if tail else 0

    def launch2(p: float, q: float) -> None:
        if _noted is not None or _entering or _leaving or _assigned:
            return careful(p, q)
        raw(x, y, z, stream, function, a, b, c, d, e, f, g, h, p, q, last)

    def launch3(p: float, q: float, r: float) -> None:
        if _noted is not None or _entering or _leaving or _assigned:
            return careful(p, q, r)
        raw(x, y, z, stream, function, a, b, c, d, e, f, g, h, p, q, r, last)

    def launch(*values: float) -> None:
        if _noted is not None or _entering or _leaving or _assigned:
            return careful(*values)
        raw(x, y, z, stream, function, a, b, c, d, e, f, g, h, *values, *tail)

    written: dict[int, Launch] = {2: launch2, 3: launch3} if len(tail) == 1 else {}
    return written.get(count, launch)
