"""Modules that hold modules: Sequential and ModuleList."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

from tgrad.nn.calls import entered, is_plain
from tgrad.nn.folded_activation import ACTIVATIONS, folded
from tgrad.nn.linear import Linear
from tgrad.nn.module import Module, indent


class _Numbered(Module):
    """What the two containers share: submodules in order, named by their position (unless given names)."""

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def add_module(self, name: str, module: Module | None) -> None:
        """Add a submodule.

        Raises:
            KeyError: the name is taken, empty or has a dot. TypeError: not a Module.
        """
        super().add_module(name, module)
        if module is not None:
            module.is_block = True

    def _key(self, index: int) -> str:
        n, index = len(self), operator.index(index)
        if not -n <= index < n:
            raise IndexError(f"index {index} is out of range")
        return list(self._modules)[index]

    def __setitem__(self, index: int, module: Module) -> None:
        setattr(self, self._key(index), module)
        module.is_block = True

    def __delitem__(self, index: int | slice) -> None:
        for key in list(self._modules)[index] if isinstance(index, slice) else [self._key(index)]:
            delattr(self, key)
        self._renumber(list(self))

    def _renumber(self, modules: list[Module]) -> None:
        self._modules.clear()
        self._modules.update({str(i): module for i, module in enumerate(modules)})
        for module in modules:
            module.is_block = True

    def append(self, module: Module) -> Any:
        """Add a module at the end; returns self."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        """Add modules at the end; returns self."""
        for module in list(modules):
            self.append(module)
        return self

    def pop(self, key: int | slice) -> Any:
        """Remove a module, or a slice, and return it."""
        popped = self[key]  # type: ignore[index]
        del self[key]
        return popped


class Sequential(_Numbered):
    """Runs modules one after another.

    A Linear and the ReLU, LeakyReLU, ELU, SiLU, GELU, Tanh or Sigmoid after it run as one kernel, with the same bits,
    where no hook on either, profiler, anomaly mode or hook on saved tensors would see the difference.

    Without a graph a block in it frees its own input as soon as its forward drops it. A block that your own forward
    calls cannot: CPython holds x until `block(x)` returns.

    Args:
        args: modules, or one OrderedDict of modules by name.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__()
        named = args[0].items() if len(args) == 1 and isinstance(args[0], OrderedDict) else enumerate(args)
        for name, module in named:
            self.add_module(str(name) if isinstance(name, int) else name, module)

    def forward(self, input: Any) -> Any:
        linear: Any = None  # that waits for what comes after it
        for module in self._modules.values():
            if linear is not None:
                result = folded(linear, module, input) if module.__class__ in ACTIVATIONS else None
                if result is None:
                    input = linear(input)
                else:
                    input, linear, result = result, None, None  # no name but `input` holds it
                    continue
                linear = None
            if module.__class__ is Linear:
                linear = module
            elif module._modules and is_plain(module):
                given, input = [input], None
                with entered(module):
                    input = module.forward(given.pop())  # nobody else holds it while it runs
            else:
                input = module(input)
        return input if linear is None else linear(input)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(OrderedDict(list(self._modules.items())[index]))
        return self._modules[self._key(index)]

    def insert(self, index: int, module: Module) -> Sequential:
        """Put a module before position `index`; returns self."""
        if not isinstance(module, Module):
            raise AssertionError(f"module should be of type: {Module}")
        n = len(self)
        if not -n <= index <= n:
            raise IndexError(f"Index out of range: {index}")
        modules = list(self)
        modules.insert(index, module)
        self._renumber(modules)
        return self

    def __add__(self, other: Sequential) -> Sequential:
        return Sequential(*self, *_sequential(other))

    def __iadd__(self, other: Sequential) -> Sequential:
        return self.extend(_sequential(other))

    def __mul__(self, times: int) -> Sequential:
        return Sequential(*list(self) * self._times(times))

    def __rmul__(self, times: int) -> Sequential:
        return self * times

    def __imul__(self, times: int) -> Sequential:
        return self.extend(list(self) * (self._times(times) - 1))

    def _times(self, times: Any) -> int:
        if not isinstance(times, int):
            raise TypeError(f"unsupported operand type(s) for *: {type(self)} and {type(times)}")
        if times <= 0:
            raise ValueError(f"Non-positive multiplication factor {times} for {type(self)}")
        return times


def _sequential(other: Any) -> Sequential:
    if not isinstance(other, Sequential):
        raise ValueError(f"add operator supports only objects of Sequential class, but {type(other)} is given.")
    return other


class ModuleList(_Numbered):
    """A list of modules. It has no forward."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        if modules is not None:
            self.extend(modules)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(list(self)[index])
        return self._modules[self._key(index)]

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        """Add modules at the end; returns self.

        Raises:
            TypeError: not an iterable.
        """
        if not isinstance(modules, Iterable):
            raise TypeError(f"ModuleList.extend should be called with an iterable, but got {type(modules).__name__}")
        return super().extend(modules)

    def insert(self, index: int, module: Module) -> None:
        """Put a module before position `index`."""
        modules = list(self)
        modules.insert(index, module)
        self._renumber(modules)

    def __add__(self, other: Iterable[Module]) -> ModuleList:
        return ModuleList([*self, *other])

    def __iadd__(self, modules: Iterable[Module]) -> ModuleList:
        return self.extend(modules)

    def __repr__(self) -> str:
        runs: list[tuple[str, list[int]]] = []  # neighbours of equal repr, written once
        for i, text in enumerate(map(repr, self)):
            if runs and runs[-1][0] == text:
                runs[-1][1].append(i)
            else:
                runs.append((text, [i]))
        lines = []
        for text, at in runs:
            lines.append(indent(f"({at[0]}): {text}" if len(at) == 1 else f"({at[0]}-{at[-1]}): {len(at)} x {text}"))
        return f"{self._get_name()}(" + ("\n  " + "\n  ".join(lines) + "\n" if lines else "") + ")"
