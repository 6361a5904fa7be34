"""Saving and loading tensors by name, in the safetensors format.

A file is the length of a header (8 bytes), the header (JSON: dtype, shape and the place of each tensor) and the bytes.
Everything is checked before anything is made.
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
from tgrad.ops import creation
from tgrad.tensor import Tensor

CODES: dict[str, dtype] = {
    "F16": dtypes.float16, "BF16": dtypes.bfloat16, "F32": dtypes.float32, "F64": dtypes.float64, "I32": dtypes.int32,
    "I64": dtypes.int64, "U8": dtypes.uint8, "BOOL": dtypes.bool_,
}  # fmt: skip
_CODE_OF = {kind: code for code, kind in CODES.items()}
_LONGEST_HEADER = 100_000_000  # bytes: the format's own limit


def save(tensors: Mapping[str, Tensor], path: str | os.PathLike, metadata: Mapping[str, str] | None = None) -> None:
    """Write a state_dict, or another dictionary of tensors, to a safetensors file, which is replaced whole.

    Values are written in row-major order; history and memory that tensors share are not.

    Raises:
        TypeError: no mapping of names to tensors. ValueError: a tensor is named "__metadata__".
    """
    if not isinstance(tensors, Mapping):
        raise TypeError(f"save: expected a dictionary of tensors, got {type(tensors).__name__}")
    header: dict[str, Any] = {}
    if metadata:
        header["__metadata__"] = dict(metadata)
    at = 0
    listed = sorted(tensors.items(), key=lambda item: -item[1].itemsize if isinstance(item[1], Tensor) else 0)
    for name, t in listed:  # the widest first: every tensor is aligned
        if not isinstance(name, str) or not isinstance(t, Tensor):
            raise TypeError(f"save: expected names and tensors, got {name!r}: {type(t).__name__}")
        if name == "__metadata__":
            raise ValueError('save: "__metadata__" is no name for a tensor')
        header[name] = {"dtype": _CODE_OF[t.dtype], "shape": list(t.shape), "data_offsets": [at, at + t.nbytes]}
        at += t.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    part = f"{os.fspath(path)}.part"
    try:
        with open(part, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, t in listed:
                file.write(np.ascontiguousarray(t.detach()._array()).tobytes())
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.remove(part)


def load(path: str | os.PathLike, device: Any = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on `device` (None: the one that computes).

    Raises:
        ValueError: the file is truncated or wrong; it says which tensor and why. OSError: it cannot be read.
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        data = file.read()
    header, start = _header(name, data)
    found = {k: _place(name, k, entry, len(data) - start) for k, entry in header.items() if k != "__metadata__"}
    tensors = {}
    for k, (kind, shape, begin, end) in found.items():
        values = np.frombuffer(data, np.uint8, end - begin, start + begin)
        t = creation.empty(shape, dtype=kind, device=device)
        if values.size:
            t.storage.write(values)
        tensors[k] = t
    return tensors


def _header(name: str, data: bytes) -> tuple[dict[str, Any], int]:
    if len(data) < 8:
        raise ValueError(f"load: '{name}' is no safetensors file: it has {len(data)} bytes, no header")
    size = int.from_bytes(data[:8], "little")
    if size > _LONGEST_HEADER:
        raise ValueError(f"load: '{name}' is no safetensors file: its header would have {size} bytes")
    if 8 + size > len(data):
        raise ValueError(f"load: '{name}' is truncated in its header: {8 + size} bytes expected, {len(data)} there")
    try:
        header = json.loads(data[8 : 8 + size])
    except ValueError as error:
        raise ValueError(f"load: '{name}' is no safetensors file: its header is no JSON ({error})") from None
    if not isinstance(header, dict):
        raise ValueError(f"load: '{name}' is no safetensors file: its header is no JSON object")
    return header, 8 + size


def _place(file: str, name: str, entry: Any, there: int) -> tuple[dtype, tuple[int, ...], int, int]:
    """(dtype, shape, first byte, byte after the last) of a tensor."""
    where = f"load: '{file}': tensor '{name}'"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise ValueError(f"{where} has no dtype, shape or data_offsets")
    if entry["dtype"] not in CODES:
        raise ValueError(f"{where} has dtype {entry['dtype']}, which is not supported: expected one of {list(CODES)}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    whole = lambda values: isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)
    if not whole(shape) or not whole(offsets) or len(offsets) != 2:
        raise ValueError(f"{where} has shape {shape} and data_offsets {offsets}: expected integers of at least 0")
    kind, (begin, end) = CODES[entry["dtype"]], offsets
    needed = math.prod(shape) * kind.itemsize
    if end - begin != needed:
        raise ValueError(f"{where} of shape {shape} needs {needed} bytes, data_offsets {offsets} give {end - begin}")
    if end > there:
        raise ValueError(f"{where} is truncated: it ends at byte {end} of the data, of which there are {there}")
    return kind, tuple(shape), begin, end
