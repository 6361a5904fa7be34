"""Arguments of interpreted kernels: Triton's scalars and pointers, of Python numbers and addresses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter

from tgrad.kernels import interpret_memory as memory


def leaves(value: Any) -> list:
    """What a nested tuple holds, flat."""
    return [leaf for v in value for leaf in leaves(v)] if isinstance(value, tuple) else [value]


def makers(runtime: tuple, of_address: Callable) -> tuple[list[Callable], list[int | slice]]:
    """For each run-time value a function that makes an argument of it, and for each parameter which values it takes."""
    functions = [of_address(given) if given.startswith("*") else number(given) for given in leaves(runtime)]
    spans: list[int | slice] = []
    at = 0
    for given in runtime:
        width = len(given) if isinstance(given, tuple) else 1
        spans.append(slice(at, at + width) if isinstance(given, tuple) else at)
        at += width
    return functions, spans


def _copies(ty: Any) -> Callable[[Any], Any]:
    """A function that makes a scalar tensor of the type around a handle; all but the handle is computed once."""
    new, cls = object.__new__, tl.tensor
    fields = vars(tl.tensor(None, ty))

    def tensor(handle: Any) -> Any:
        made = new(cls)
        made.__dict__.update(fields)
        made.handle = handle
        return made

    return tensor


def pointer(given: str) -> Callable[[int], Any]:
    """Makes a pointer of an address; `given` is its type, as "*fp32"."""
    ty = tl.str_to_ty(given, None)
    tensor, pointers = _copies(ty), memory.Pointers
    return lambda address: tensor(pointers(int(address), None, (1,), ty))


def number(given: str) -> Callable[[int | float], Any]:
    """Makes a scalar of exactly the type `given` of a number. Its array has shape (1,), as Triton's."""
    ty = tl.str_to_ty(given, None)
    tensor, handle = _copies(ty), triton_interpreter.TensorHandle
    dtype = triton_interpreter._get_np_dtype(ty)
    return lambda value: tensor(handle(np.array([value], dtype), ty))


def fixed(value: Any) -> Any:
    """The argument for an int or a nested tuple of ints. It serves many launches, so its array is read-only."""
    if isinstance(value, tuple):
        return tuple(map(fixed, value))
    made = number("i32" if -(2**31) <= value < 2**31 else "i64")(value)
    made.handle.data.flags.writeable = False
    return made


def plain_fixed(value: Any) -> Any:
    """What to pass to Triton's own launch for an int or a nested tuple of ints."""
    if isinstance(value, tuple):
        return tuple(map(plain_fixed, value))
    return int(value) if -(2**31) <= value < 2**31 else number("i64")(value)  # an int from 2^31 on would be uint32


class _Address:
    """As much of a torch tensor on the host as Triton's interpreter asks of an argument."""

    def __init__(self, dtype: str, address: int) -> None:
        self.dtype = dtype
        self._address = address

    def data_ptr(self) -> int:
        return self._address

    def untyped_storage(self) -> _Address:
        return self

    def cpu(self) -> _Address:
        return self

    def new_empty(self, *args: Any, **kwargs: Any) -> _Address:
        return self

    def set_(self, *args: Any) -> None: ...
    def copy_(self, *args: Any) -> None: ...
    def storage_offset(self) -> None: ...
    def size(self) -> None: ...
    def stride(self) -> None: ...


def plain_pointer(given: str) -> Callable[[int], Any]:
    """Makes what Triton's own launch takes for a pointer of an address."""
    return lambda address: _Address(given[1:], int(address))
