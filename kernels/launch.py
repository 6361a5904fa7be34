"""Launching kernels: the one place that knows whether they are interpreted or run on a GPU.

`prepare` fixes everything about a launch that can be fixed and returns a callable that takes the rest: addresses, as
integers, and run-time scalars. Each signature is compiled once per process (and cached on disk by Triton).

The environment variable TGRAD_LAUNCH overrides the choice, for tests:
    interpret    Triton's interpreter, on host memory
    driver       Triton's active driver, whatever it is
    compile:90   compile for sm_90 and launch nothing: results are undefined, but every kernel has met the compiler
"""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tgrad.kernels import native, triton_launch

INTERPRET: bool = bool(knobs.runtime.interpret)
_mode = os.environ.get("TGRAD_LAUNCH", "interpret" if INTERPRET else "driver")
COMPILE_ONLY: GPUTarget | None = None
if _mode.startswith("compile:"):
    COMPILE_ONLY = GPUTarget("cuda", int(_mode.removeprefix("compile:")), 32)

Launch = Callable[..., None]

# Below this, elements and rows are counted in 32 bits. A loop over n of them ends beyond n: by up to a block, and where
# it is cut into pieces of whole blocks by up to one for each, some 500 of at most 2^15 elements.
NARROW = 2**31 - 2**25


class Static(int):
    """An integer argument that the kernel is compiled for: an inner stride of 0 or 1."""


VECTOR = 8  # elements: 16 bytes of a half type, and more of others


class Multiple(int):
    """An integer argument that the kernel takes for a multiple of `of`: VECTOR, or half of it."""

    of: int

    def __new__(cls, value: int, of: int) -> Multiple:
        new = super().__new__(cls, value)
        new.of = of
        return new


def multiples(values: tuple[int, ...]) -> tuple[int, ...]:
    """The values as `Multiple`s of one number, if they are, so that a kernel has three variants and not 3^n."""
    for of in (VECTOR, VECTOR // 2):
        if all(v % of == 0 for v in values):
            return tuple(Multiple(v, of) for v in values)
    return values


def multiple(value: int) -> int:
    """The value, as a `Multiple` if it is one."""
    return multiples((value,))[0]


def strides(values: tuple[int, ...]) -> tuple[int, ...]:
    """Strides as kernel arguments. The kernel is specialised on an inner stride of 0 or 1, on what all others are
    multiples of, and on no other value.
    """
    if values and values[-1] in (0, 1):
        return (*multiples(values[:-1]), Static(values[-1]))
    return multiples(values)


def prepare(
    kernel: Any,
    grid: tuple[int, ...],
    runtime: tuple,
    fixed: tuple,
    constexprs: dict[str, Any],
    *,
    name: str | None = None,
    warps: int = 4,
    stages: int = 2,
    aligned: bool = True,
    contract: bool = False,
    registers: int | None = None,
) -> Launch:
    """A launch of `kernel` with all but its leading arguments fixed.

    Args:
        kernel: a `@triton.jit` function whose parameters are, in order, the run-time ones, the fixed ones and
            constants.
        grid: number of programs, one to three dimensions.
        runtime: a Triton type ("*fp32", "fp32", "i64", ...) or a tuple of them for each run-time parameter.
        fixed: the value of each fixed parameter: an int or a nested tuple of ints.
        constexprs: the compile-time constants by name.
        name: what a listener is told was launched; the kernel's own name if None.
        warps, stages: compiler options, unused by the interpreter.
        aligned: whether every address is a multiple of 16.
        contract: whether a * b + c may become one fused multiply-add. Off, so that the same formula gives the same bits
            in every kernel; on for matrix products.
        registers: how many a thread may have at most; None: as the compiler thinks best.

    Returns:
        A callable that takes the run-time values, flat and in order.
    """
    if INTERPRET and COMPILE_ONLY is None:
        from tgrad.kernels import interpret

        call = interpret.prepare(kernel, grid, runtime, fixed, constexprs)
    else:
        compiled = compile(kernel, runtime, fixed, constexprs, warps, stages, aligned, contract, registers)
        if COMPILE_ONLY:
            call = _skip
        else:
            with on_device():  # where kernels are loaded
                call = _driver_launch(compiled, grid, runtime, fixed, (*constexprs.values(),))
    return call if _listener is None else _told(call, name or kernel.__name__)


def _told(call: Launch, label: str) -> Launch:
    def launch(*values: int | float) -> None:
        if _listener is not None:
            _listener(label)
        call(*values)

    return launch


@contextmanager
def listen(listener: Callable[[str], None]) -> Iterator[None]:
    """Inside the block, tell `listener` the name of every kernel that is launched.

    Launches are prepared anew at the block's beginning and end, so that they cost nothing while nobody listens.
    """
    global _listener
    before, _listener = _listener, listener
    _prepare_anew()
    try:
        yield
    finally:
        _listener = before
        _prepare_anew()


def _prepare_anew() -> None:
    for forget in holders:
        forget()


_listener: Callable[[str], None] | None = None

# Called to forget all prepared launches: whoever keeps some adds a function here.
holders: list[Callable[[], None]] = []


def _skip(*values: int | float) -> None:
    pass


_compiled: dict[tuple, Any] = {}
_compiling = threading.Lock()


def compile(
    kernel: Any, runtime: tuple, fixed: tuple, constexprs: dict, warps: int, stages: int, aligned: bool, contract: bool,
    registers: int | None = None,
) -> Any:  # fmt: skip
    """The compiled kernel of a signature: types, alignment of addresses, divisibility of fixed integers."""
    static = [v if isinstance(v, Static) else (_type(v), getattr(v, "of", 1)) for v in _leaves(fixed)]
    divisible = tuple(type(v) is int and v % 16 == 0 for v in fixed)
    chip = target()
    key = (
        kernel,
        runtime,
        _shape(fixed),
        tuple(static),
        divisible,
        *constexprs.values(),
        *(warps, stages, aligned, contract, registers),
        chip,
    )
    found = _compiled.get(key)
    if found is not None:
        return found
    with _compiling:
        if key not in _compiled:
            source = signature(kernel, runtime, fixed, constexprs, aligned)
            options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": contract, "maxnreg": registers}
            options["enable_reflect_ftz"] = False  # or libdevice's float32 functions flush subnormals, unlike PyTorch's
            _compiled[key] = triton.compile(source, target=chip, options=options)
        return _compiled[key]


# The index of the device that kernels are loaded for and run on; None: the current one. The engine sets it.
device: int | None = None


def elsewhere() -> bool:
    """Whether another device is this thread's current one."""
    return device is not None and triton.runtime.driver.active.get_current_device() != device


@contextmanager
def on_device() -> Iterator[None]:
    """Inside the block, the device that kernels run on is this thread's current one."""
    if not elsewhere():
        yield
        return
    driver = triton.runtime.driver.active
    before = driver.get_current_device()
    driver.set_current_device(device)
    try:
        yield
    finally:
        driver.set_current_device(before)


def target() -> GPUTarget:
    """What kernels are compiled for."""
    if COMPILE_ONLY is not None:
        return COMPILE_ONLY
    with on_device():
        return triton.runtime.driver.active.get_current_target()


# For how many of them reductions are cut into pieces, on every chip, so that they give the same bits: an H200's.
MULTIPROCESSORS = 132


@functools.cache
def multiprocessors() -> int | None:
    """How many the device has that launches go to; None where kernels are only compiled."""
    if COMPILE_ONLY is not None:
        return None
    driver = triton.runtime.driver.active
    with on_device():
        return driver.utils.get_device_properties(driver.get_current_device())["multiprocessor_count"]


def signature(kernel: Any, runtime: tuple, fixed: tuple, constexprs: dict[str, Any], aligned: bool) -> ASTSource:
    """What Triton compiles. Types are given, never inferred: inferred, a Python float would pass as float32."""
    names = kernel.arg_names
    types: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list] = {}
    for i, given in enumerate(runtime):
        types[names[i]] = given
        if aligned:
            for path, leaf in _walk(given, (i,)):
                if leaf.startswith("*"):
                    attributes[path] = [["tt.divisibility", 16]]
    for i, value in enumerate(fixed, len(runtime)):
        types[names[i]] = _type(value)
        for path, leaf in _walk(value, (i,)):
            if isinstance(leaf, Static):
                constants[path] = int(leaf)
            elif isinstance(leaf, Multiple):
                attributes[path] = [["tt.divisibility", leaf.of]]
        if type(value) is int and value % 16 == 0:
            attributes[(i,)] = [["tt.divisibility", 16]]
    for name, value in constexprs.items():
        types[name] = "constexpr"
        constants[(names.index(name),)] = value
    return ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=attributes)


def _type(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_type, value))
    if isinstance(value, Static):
        return "constexpr"
    return "i32" if -(2**31) <= value < NARROW else "i64"


def _shape(value: Any) -> Any:
    return tuple(map(_shape, value)) if isinstance(value, tuple) else None


def _leaves(value: Any) -> Any:
    if isinstance(value, tuple):
        for v in value:
            yield from _leaves(v)
    else:
        yield value


def _walk(value: Any, path: tuple[int, ...]) -> Any:
    if isinstance(value, tuple):
        for i, v in enumerate(value):
            yield from _walk(v, (*path, i))
    else:
        yield path, value


def set_stream(address: int) -> None:
    """The CUDA stream, by its address, that launches go to from now on. At first it is the driver's current one."""
    global _stream
    _stream = address
    for launcher in _launchers():
        launcher.set_stream(address)
    if _scratch:
        scratch(max(size for _, size in _scratch.values()))


def _launchers() -> list[Any]:
    """All that launch: they are told where to."""
    built = native.module()
    return [triton_launch] if built is None else [triton_launch, built]


_stream: int | None = None


def stream() -> int:
    """The address of the stream that launches go to."""
    if _stream is None:
        driver = triton.runtime.driver.active
        set_stream(driver.get_current_stream(driver.get_current_device() if device is None else device))
    assert _stream is not None
    return _stream


@contextmanager
def diverted(to: int, addresses: list[int]) -> Iterator[None]:
    """Inside the block, launches go to another stream, and the addresses that each is given are added to a list.

    Another thread's launch raises RuntimeError meanwhile. Scratch memory is that of the usual stream: what is captured
    here runs there.
    """
    usual = stream()
    if usual in _scratch:
        _scratch[to] = _scratch[usual]
    set_stream(to)
    for launcher in _launchers():
        launcher.note(addresses)
    try:
        yield
    finally:
        for launcher in _launchers():
            launcher.note(None)
        if to in _scratch:
            _scratch[usual] = _scratch[to]
        set_stream(usual)


# Gives the address of device memory for `nbytes` bytes, a multiple of 128, that stays for as long as the process runs.
# The engine, which owns all memory, sets it.
allocate: Callable[[int], int] | None = None
_scratch: dict[int, tuple[int, int]] = {}  # stream -> address and size
LEAST_SCRATCH = 1 << 17


def scratch(nbytes: int) -> int:
    """Scratch memory of the current stream, at least `nbytes` bytes: for what a kernel keeps for itself while it runs.

    All launches of a stream share it, since they run one after another. Memory that grew too small is kept: a CUDA
    graph may hold its address.
    """
    assert _stream is not None
    address, size = _scratch.get(_stream, (0, 0))
    if size < nbytes:
        if allocate is None:
            raise RuntimeError("a kernel needs scratch memory, and nothing was set to allocate it (launch.allocate)")
        size = max(LEAST_SCRATCH, triton.next_power_of_2(nbytes))
        address = allocate(size)
        _scratch[_stream] = address, size
    built = native.module()
    if built is not None:
        built.set_scratch(address)
    return address


def _driver_launch(compiled: Any, grid: tuple[int, ...], runtime: tuple, fixed: tuple, constants: tuple) -> Launch:
    stream()
    compiled._init_handles()
    needs_scratch = bool(getattr(compiled.metadata, "global_scratch_size", 0))
    if needs_scratch:
        scratch(math.prod(grid) * compiled.metadata.global_scratch_size)
    x, y, z = (*grid, 1, 1)[:3]
    blocks = x, y, z
    kinds = list(_leaves(runtime))
    plain = [(_type(v), v) for v in _leaves(fixed) if not isinstance(v, Static)]
    built = native.module() if native.fits(compiled.metadata) else None
    if built is not None and native.agrees(compiled, len(kinds) + len(plain)):
        return native.prepare(built, compiled, blocks, kinds, plain)
    memory = scratch if needs_scratch else None
    return triton_launch.prepare(compiled, blocks, runtime, plain, (*fixed, *constants), memory)
