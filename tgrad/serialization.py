"""Saving and loading tensors by name, in the safetensors format, through the library of that name.

A file that is read is mapped, not copied: each tensor goes from the file to where it is wanted.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from tgrad import dtypes
from tgrad.dtypes import dtype
from tgrad.interop.memory import dtype_of, to_torch
from tgrad.ops import creation
from tgrad.tensor import Tensor

CODES: dict[str, dtype] = {
    "F16": dtypes.float16, "BF16": dtypes.bfloat16, "F32": dtypes.float32, "F64": dtypes.float64, "I32": dtypes.int32,
    "I64": dtypes.int64, "U8": dtypes.uint8, "BOOL": dtypes.bool_,
}  # fmt: skip
_LONGEST_HEADER = 100_000_000  # bytes: the format's own limit


def _library(asking: str) -> Any:
    """The package safetensors, of which nothing else needs to be installed for the rest of tgrad to work."""
    try:
        import safetensors
    except ImportError:
        raise ImportError(
            f"{asking} needs the package safetensors, which is not installed: pip install 'safetensors>=0.8'"
        ) from None
    return safetensors


def save(tensors: Mapping[str, Tensor], path: str | os.PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Write a state_dict, or another dictionary of tensors, to a safetensors file, which is replaced whole.

    Values are written in row-major order; history and memory that tensors share are not. Contiguous tensors on the CPU
    are written from where they are; others are copied to the host first, all of them.

    Shape: any of each.
    Dtype: any of the eight.
    Raises:
        TypeError: no mapping of names to tensors.
        ValueError: a tensor is named "__metadata__".
        ImportError: the package safetensors is missing.
        OSError: the file cannot be written.
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"save: expected a dictionary of tensors, got {type(tensors).__name__}")
    for name, t in tensors.items():
        if not isinstance(name, str) or not isinstance(t, Tensor):
            raise TypeError(f"save: expected names and tensors, got {name!r}: {type(t).__name__}")
        if name == "__metadata__":
            raise ValueError('save: "__metadata__" is no name for a tensor')
    library = _library("save")
    arrays = {name: np.ascontiguousarray(t.detach()._array()) for name, t in tensors.items()}
    specs = {
        name: library.TensorSpec(
            dtype=t.dtype.name, shape=tuple(t.shape), data_ptr=arrays[name].ctypes.data, data_len=t.nbytes
        )
        for name, t in tensors.items()
    }
    part = f"{os.fspath(path)}.part"
    try:
        library.serialize_file(specs, part, dict(metadata) if metadata else None)
        os.replace(part, path)
    except library.SafetensorError as error:
        raise OSError(f"save: '{os.fspath(path)}' cannot be written: {error}") from None
    finally:
        if os.path.exists(part):
            os.remove(part)


def load(path: str | os.PathLike, device: Any = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on `device` (None: the one that computes).

    Shape: as in the file.
    Dtype: as in the file, one of the eight.
    Raises:
        ValueError: the file is truncated or wrong; it says which tensor and why.
        OSError: it cannot be read.
        ImportError: the package safetensors is missing.
    """
    tensors = {}
    for name, theirs in mapped(path).items():
        tensors[name] = creation.empty(tuple(theirs.shape), dtype=dtype_of(theirs), device=device)
        to_torch(tensors[name]).copy_(theirs)
    return tensors


def mapped(path: str | os.PathLike) -> dict[str, Any]:
    """The tensors of a safetensors file by name, as PyTorch's, over the memory that the file is mapped to.

    Raises:
        ValueError: as of `tgrad.load`.
        IsADirectoryError: the path is that of a folder.
    """
    library, file = _library("load"), os.fspath(path)
    if os.path.isdir(file):
        raise IsADirectoryError(f"load: '{file}' is a directory, not a safetensors file")
    try:
        with library.safe_open(file, framework="pt") as opened:
            names = sorted(opened.keys())
            for name in names:
                code = opened.get_slice(name).get_dtype()
                if code not in CODES:
                    raise ValueError(_unsupported(f"load: '{file}': tensor '{name}'", code))
            found = {name: opened.get_tensor(name) for name in names}
    except library.SafetensorError as error:
        raise ValueError(_fault(file) or f"load: '{file}' is no safetensors file: {error}") from None
    return {name: t if t.data_ptr() % t.element_size() == 0 else t.clone() for name, t in found.items()}


# --- what is wrong with a file that the library refuses --------------------------------------------------------------
def _unsupported(where: str, code: Any) -> str:
    return f"{where} has dtype {code}, which is not supported: expected one of {list(CODES)}"


def _fault(file: str) -> str | None:
    """Which tensor does not fit and why, which the library mostly leaves out; None: it is not a single tensor."""
    with open(file, "rb") as opened:
        there = os.fstat(opened.fileno()).st_size
        start = opened.read(8)
        size = int.from_bytes(start, "little")
        if start[:4] == b"PK\x03\x04":
            return f"load: '{file}' is a zip, as torch.save writes: pass torch.load's state_dict to load_state_dict"
        if there < 8:
            return f"load: '{file}' is no safetensors file: it has {there} bytes, no header"
        if size > _LONGEST_HEADER:
            return None
        if 8 + size > there:
            return f"load: '{file}' is truncated in its header: {8 + size} bytes expected, {there} there"
        try:
            header = json.loads(opened.read(size))
        except ValueError as error:
            return f"load: '{file}' is no safetensors file: its header is no JSON ({error})"
    if not isinstance(header, dict):
        return f"load: '{file}' is no safetensors file: its header is no JSON object"
    faults = (_misfit(f"load: '{file}': tensor '{k}'", v, there - 8 - size) for k, v in header.items())
    return next((fault for fault in faults if fault), None)


def _misfit(where: str, entry: Any, there: int) -> str | None:
    """What is wrong with a tensor's entry in the header, of a file with `there` bytes of data."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        return None if where.endswith("'__metadata__'") else f"{where} has no dtype, shape or data_offsets"
    if entry["dtype"] not in CODES:
        return _unsupported(where, entry["dtype"])
    shape, offsets = entry["shape"], entry["data_offsets"]
    whole = lambda values: isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)
    if not whole(shape) or not whole(offsets) or len(offsets) != 2:
        return f"{where} has shape {shape} and data_offsets {offsets}: expected integers of at least 0"
    needed, (begin, end) = math.prod(shape) * CODES[entry["dtype"]].itemsize, offsets
    if end - begin != needed:
        return f"{where} of shape {shape} needs {needed} bytes, data_offsets {offsets} give {end - begin}"
    if end > there:
        return f"{where} is truncated: it ends at byte {end} of the data, of which there are {there}"
    return None
