"""When a fused function must be traced again: what a call of it depends on, besides the values of tensors."""

from __future__ import annotations

import dis
import math
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tgrad import autocasting, dtypes
from tgrad.modes import current
from tgrad.nn.module import Module
from tgrad.tensor import Tensor

# The most calls that one function remembers.
MAX_REMEMBERED = 1024

_CONSTANTS = (bool, int, float, str, bytes, dtypes.dtype, type(None))
_OF_MODULES = frozenset(vars(Module())) - {"training", "_parameters", "_buffers", "_modules"}

# Something that a function reads, and what it was: (look it up, object).
Guard = tuple[Callable[[], Any], Any]


class _Unseen(Exception):
    """A function reads what may change without notice."""


class Remembered:
    """The calls of a function that need not be traced again.

    Attributes:
        calls: what was made of them, by what they depend on.
        guards: what the function reads besides its arguments; None: something whose changes cannot be seen.
    """

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.calls: dict[tuple, Any] = {}
        self.guards: list[Guard] | None = []
        self.attributes: frozenset[str] = frozenset()
        self.looked = False

    def key(self, values: Sequence[Any], names: tuple[str, ...], tensors: list[Tensor]) -> tuple | None:
        """What to remember a call by; None: it must be traced. Adds the tensors of modules to `tensors`."""
        if not self.looked or (self.guards is not None and any(look() is not was for look, was in self.guards)):
            self._look()
        if self.guards is None or autocasting.region() is not None:
            return None
        parts: list[Any] = [names, current(), dtypes.get_default_dtype()]
        for v in values:
            if isinstance(v, Tensor):
                parts.append(v.layout)
            elif isinstance(v, _CONSTANTS):
                parts += (v.__class__, v or repr(v))  # 0.0 and -0.0 are equal
            elif not isinstance(v, Module) or not self._module(v, parts, tensors):
                return None
        return tuple(parts)

    def keep(self, key: tuple, call: Any) -> None:
        if len(self.calls) >= MAX_REMEMBERED:
            self.calls.clear()
        self.calls[key] = call

    def _module(self, module: Module, parts: list[Any], tensors: list[Tensor]) -> bool:
        """Add what a module's attributes are, if they are constants, parameters and buffers alone."""
        kind = type(module)
        if any(_written_in_python(kind, name) for name in self.attributes):
            return False
        parts.append(kind)
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers"):
                for label, t in value.items():
                    parts += (label, None if t is None else t.layout)
                    if t is not None:
                        tensors.append(t)
            elif name in _OF_MODULES:
                continue
            elif isinstance(value, _CONSTANTS):
                parts += (name, value.__class__, value or repr(value))
            elif value:  # submodules among them
                return False
        return True

    def _look(self) -> None:
        self.calls.clear()
        self.looked = True
        names: set[str] = set()
        try:
            self.guards = list(_reads(self.function, set(), names))
        except _Unseen:
            self.guards = None
        self.attributes = frozenset(names)


def _written_in_python(kind: type, name: str) -> bool:
    """Whether a class has an attribute of that name which is not tgrad's own."""
    for base in kind.__mro__:
        if name in vars(base):
            return not base.__module__.startswith("tgrad.") and base is not object
    return False


def _reads(function: Any, seen: set[int], names: set[str]) -> Iterator[Guard]:
    """What a function reads, and the functions that it calls; adds to `names` those of attributes.

    Raises:
        _Unseen: it may read more.
    """
    function = getattr(function, "__tgrad_fused__", function)
    if id(function) in seen:
        return
    seen.add(id(function))
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        raise _Unseen
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    if not all(isinstance(d, _CONSTANTS) for d in defaults):
        raise _Unseen
    found: list[Guard] = []
    for cell in function.__closure__ or ():
        try:
            found.append((lambda cell=cell: cell.cell_contents, cell.cell_contents))  # type: ignore[misc]
        except ValueError:
            raise _Unseen from None
    space = function.__globals__
    for name in _globals(function.__code__, names):
        if name in space:
            found.append((lambda name=name: space.get(name), space[name]))  # type: ignore[misc]
    for guard in found:
        yield guard
        value = guard[1]
        if isinstance(value, types.ModuleType):
            if value is not math and value.__name__.partition(".")[0] != "tgrad":
                raise _Unseen
        elif not isinstance(value, _CONSTANTS) and not str(getattr(value, "__module__", "")).startswith("tgrad."):
            yield from _reads(value, seen, names)


def _globals(code: types.CodeType, names: set[str]) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("IMPORT_NAME", "STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR", "LOAD_BUILD_CLASS"):
            raise _Unseen
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"):
            names.add(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant, names)
