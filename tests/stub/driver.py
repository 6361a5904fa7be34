"""Makes a pretended sm_90 device Triton's active driver: kernels are compiled, loaded and launched, and nothing runs.

    install()                       before tgrad is imported, in a process with TGRAD_LAUNCH=driver
    with recording() as launches:   every launch inside, as the CUDA driver would get it

Results are undefined: no memory is written. The library is libcuda.c, built with gcc into a cache folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("libcuda.c")
CAPABILITY = 90
STREAM = 7  # what the pretended current stream is, so that a launch on another one shows

_CALLBACK = ctypes.CFUNCTYPE(
    None, ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint), ctypes.c_uint, ctypes.c_uint, ctypes.c_uint64,
    ctypes.POINTER(ctypes.c_void_p),
)  # fmt: skip


def why_not() -> str | None:
    """Why the stub cannot be built here; None where it can."""
    return None if shutil.which("gcc") else "the stub driver needs gcc"


def build() -> Path:
    """The folder with the built `libcuda.so.1`; built once per source, compiler and Triton."""
    import triton

    include = Path(triton.__file__).parent / "backends/nvidia/include"
    key = hashlib.sha256(SOURCE.read_bytes() + triton.__version__.encode()).hexdigest()[:16]
    folder = Path(os.environ.get("TRITON_CACHE_DIR", Path.home() / ".triton/cache")) / f"tgrad-stub-{key}"
    library = folder / "libcuda.so.1"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:  # renamed when whole: several processes may build
            made = Path(scratch) / library.name
            command = [
                "gcc",
                "-shared",
                "-fPIC",
                "-O2",
                f"-I{include}",
                "-o",
                str(made),
                str(SOURCE),
                f"-Wl,-soname,{library.name}",
            ]
            subprocess.run(command, check=True)
            made.rename(library)
        link = folder / "libcuda.so"  # what the linker looks for
        with contextlib.suppress(FileExistsError):
            link.symlink_to(library.name)
    return folder


@dataclass(frozen=True)
class Recorded:
    """One launch: `values` are the kernel's parameters, each as the bytes its machine code reads."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    stream: int
    values: tuple[bytes, ...]


@dataclass(frozen=True)
class _Loaded:
    name: str
    sizes: tuple[int, ...]


_library: Any = None
_loaded: dict[int, _Loaded] = {}


def install() -> None:
    """Load the stub and make it Triton's active driver.

    Raises:
        subprocess.CalledProcessError: gcc failed.
    """
    global _library
    folder = build()
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    _library = ctypes.CDLL(str(folder / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
    _library.stub_launches.restype = ctypes.c_size_t

    import torch
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import driver as nvidia
    from triton.runtime.driver import driver

    class StubDriver(nvidia.CudaDriver):
        """CudaDriver without torch.cuda."""

        def __init__(self) -> None:
            self.utils = nvidia.CudaUtils()
            self.launcher_cls = nvidia.CudaLauncher
            self.get_device_capability = lambda device=None: divmod(CAPABILITY, 10)
            self.get_current_device = current_device
            self.get_current_stream = lambda device: STREAM + device
            self.set_current_device = lambda device: _library.cuCtxSetCurrent(ctypes.c_void_p(device + 1))

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", CAPABILITY, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        @staticmethod
        def is_active() -> bool:
            return True

    stub = StubDriver()
    load = stub.utils.load_binary

    def load_binary(name: str, image: bytes, shared: int, device: int) -> tuple:
        handles = load(name, image, shared, device)
        sizes = parameter_sizes(image, name)
        _loaded[handles[1]] = _Loaded(name, sizes)
        _library.stub_parameters(ctypes.c_size_t(handles[1]), len(sizes), (ctypes.c_int * len(sizes))(*sizes))
        return handles

    stub.utils.load_binary = load_binary
    driver.set_active(stub)


def current_device() -> int:
    """The one whose context the thread has; of a thread without one, the first."""
    context = ctypes.c_void_p()
    _library.cuCtxGetCurrent(ctypes.byref(context))
    return (context.value or 1) - 1


@contextlib.contextmanager
def second_of_two() -> Iterator[None]:
    """Inside the block there are two devices, of which the second is this thread's current one."""
    _library.stub_devices(2)
    _library.cuCtxSetCurrent(ctypes.c_void_p(2))
    try:
        yield
    finally:
        _library.cuCtxSetCurrent(ctypes.c_void_p(1))
        _library.stub_devices(1)


def launches() -> int:
    """How many launches reached the stub."""
    return _library.stub_launches()


@contextlib.contextmanager
def recording() -> Iterator[list[Recorded]]:
    """Yields a list that every launch inside the block is appended to."""
    found: list[Recorded] = []

    def on_launch(function: int, grid: Any, threads: int, shared: int, stream: int, params: Any) -> None:
        loaded = _loaded[function]
        values = tuple(ctypes.string_at(params[i], size) for i, size in enumerate(loaded.sizes))
        found.append(Recorded(loaded.name, tuple(grid[:3]), threads, shared, stream or 0, values))

    callback = _CALLBACK(on_launch)
    _library.stub_on_launch(callback)
    try:
        yield found
    finally:
        _library.stub_on_launch(_CALLBACK())


def fail_capture(error: int) -> None:
    """Let the next capture end with an error of the driver."""
    _library.stub_fail_capture(error)


# --- what a kernel's machine code takes ------------------------------------------------------------------------------
PARAMETER = 0x17  # EIATTR_KPARAM_INFO, and its later form
PARAMETER_V2 = 0x45


def parameter_sizes(cubin: bytes, kernel: str) -> tuple[int, ...]:
    """Bytes of each parameter, in order, as the `.nv.info.<kernel>` section of a cubin (an ELF file) states them.

    Raises:
        ValueError: there is no such section.
    """
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    width, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + i * width) for i in range(count)]
    strings = headers[names][4]
    for name, _, _, _, offset, size, *_ in headers:
        end = cubin.index(b"\0", strings + name)
        if cubin[strings + name : end].decode() == f".nv.info.{kernel}":
            return _sizes(cubin[offset : offset + size])
    raise ValueError(f"no .nv.info.{kernel} in the cubin")


def _sizes(section: bytes) -> tuple[int, ...]:
    found, at = {}, 0
    while at < len(section):
        form, attribute, size = struct.unpack_from("<BBH", section, at)
        at += 4
        if form != 4:  # a value inside the header: no payload
            continue
        if attribute == PARAMETER:
            _, ordinal, _, packed = struct.unpack_from("<IHHI", section, at)
            found[ordinal] = packed >> 18
        at += size
    return tuple(found[i] for i in range(len(found)))
