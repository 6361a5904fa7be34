"""Devices: what tensors live on, the one that computes, and waiting for it.

One device computes in a process: CUDA if there is one, else the CPU through Triton's interpreter. Of several CUDA
devices it is the one that is PyTorch's current one when tgrad is imported: that of `torch.cuda.set_device`, if it was
called before, else the first. It stays that one, in all threads, whatever is current later. On a CUDA machine CPU
tensors store, copy and convert only.
"""

from __future__ import annotations

import os
from typing import Any

import torch


class device:
    """`device("cpu")`, `device("cuda")`, `device("cuda", 0)`, `device("cuda:0")`.

    Raises:
        RuntimeError: a string that names no device.
    """

    __slots__ = ("type", "index")

    type: str
    index: int | None

    def __new__(cls, type: str | device, index: int | None = None) -> device:
        if isinstance(type, device):
            return type
        if not isinstance(type, str):
            raise TypeError(f"device: expected a string such as 'cpu' or 'cuda:0', got {type!r}")
        name, _, number = type.partition(":")
        if name not in ("cpu", "cuda") or (number and not number.isdigit()):
            raise RuntimeError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got '{type}'")
        if number:
            index = int(number)
        found = _devices.get((name, index))
        if found is None:
            found = object.__new__(cls)
            found.type, found.index = name, index
            found = _devices.setdefault((name, index), found)
        return found

    def __repr__(self) -> str:
        return f"device(type='{self.type}'" + (")" if self.index is None else f", index={self.index})")

    def __str__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"

    def __reduce__(self) -> tuple:
        return device, (self.type, self.index)


_devices: dict[tuple[str, int | None], device] = {}

cpu = device("cpu")


def _choose() -> device:
    # TGRAD_LAUNCH (see kernels/launch.py) runs or compiles GPU kernels over host memory, for tests.
    if "TGRAD_LAUNCH" in os.environ or os.environ.get("TRITON_INTERPRET") == "1" or not torch.cuda.is_available():
        return cpu
    # Asking for the current device would begin CUDA, which a forked process cannot use; until somebody has, it is 0.
    return device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)


compute = _choose()


def resolve(given: str | device | None) -> device:
    """The device a factory's `device=` argument means; None is the compute device.

    Raises:
        RuntimeError: there is no such device, or it is not this process's.
    """
    if given is None or given is compute:
        return compute
    asked = device(given)
    if asked.type == "cpu":
        return cpu
    if compute.type != "cuda":
        raise RuntimeError(
            f"device '{asked}' was asked for, but this process has no CUDA device (torch.cuda.is_available() is "
            f"{torch.cuda.is_available()}): use device='cpu' or leave device out"
        )
    if asked.index not in (None, compute.index):
        raise RuntimeError(
            f"device '{asked}' was asked for, but this process computes on '{compute}', one device a process: to have "
            f"another, call torch.cuda.set_device({asked.index}) before importing tgrad, or set CUDA_VISIBLE_DEVICES"
        )
    return compute


def is_available() -> bool:
    """Whether tensors compute on a CUDA device."""
    return compute.type == "cuda"


def synchronize() -> None:
    """Wait until the compute device has finished everything launched so far, on every stream; on the CPU nothing ever
    pends.
    """
    if compute.type == "cuda":
        torch.cuda.synchronize(compute.index)


def memory_stats() -> dict[str, int]:
    """Bytes of the CUDA allocator: allocated and reserved, now and at most. Empty on the CPU."""
    if compute.type != "cuda":
        return {}
    stats: dict[str, Any] = torch.cuda.memory_stats(compute.index)
    return {
        "allocated_bytes": stats["allocated_bytes.all.current"],
        "allocated_peak_bytes": stats["allocated_bytes.all.peak"],
        "reserved_bytes": stats["reserved_bytes.all.current"],
        "reserved_peak_bytes": stats["reserved_bytes.all.peak"],
    }


def describe() -> dict[str, str]:
    """What identifies the compute device and the versions beneath it in a report."""
    facts = {"device": str(compute), "torch": torch.__version__, "cuda": torch.version.cuda or ""}
    if compute.type == "cuda":
        properties = torch.cuda.get_device_properties(compute.index)
        facts |= {
            "gpu": properties.name,
            "gpu_memory_bytes": str(properties.total_memory),
            "multiprocessors": str(properties.multi_processor_count),
            "capability": f"{properties.major}.{properties.minor}",
        }
    return facts
