"""The public names of tgrad: which there are, what each is, and what their docstrings say."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import types
from dataclasses import dataclass
from typing import Any

import tgrad

MODULES = {
    "tgrad": "Functions, factories, dtypes, grad modes",
    "tgrad.Tensor": "Methods, properties and operators of a tensor",
    "tgrad.linalg": "Linear algebra",
    "tgrad.special": "Special functions",
    "tgrad.nn": "Layers",
    "tgrad.nn.functional": "Layers as functions",
    "tgrad.nn.init": "Initial values of parameters",
    "tgrad.nn.utils": "Parameters and gradients of a model",
    "tgrad.optim": "Optimisers",
    "tgrad.optim.lr_scheduler": "Learning rates that change",
    "tgrad.autograd": "Gradients",
    "tgrad.autograd.functional": "Jacobians, Hessians and products with them",
    "tgrad.autograd.graph": "The graph, and what it keeps",
    "tgrad.autograd.gradcheck": "Derivatives against differences",
    "tgrad.amp": "Mixed precision",
    "tgrad.random": "Random numbers",
    "tgrad.cuda": "The compute device",
    "tgrad.interop": "Memory and gradients shared with PyTorch",
    "tgrad.serialization": "Weights in files",
    "tgrad.utils.checkpoint": "Memory for time",
    "tgrad.profiler": "Where memory and time go",
}
SECTION = re.compile(r"^(Args|Attributes|Returns|Shape|Dtype|Raises|Source|Note|Example)s?:[ \t]*(.*)$")
# What a class has from Python, and what pickling, copying and printing call.
PLUMBING = {
    "__abstractmethods__", "__annotations__", "__array_wrap__", "__class__", "__class_getitem__", "__deepcopy__",
    "__delattr__", "__dict__", "__dir__", "__doc__", "__format__", "__getattr__", "__getstate__", "__hash__",
    "__init__", "__init_subclass__", "__module__", "__new__", "__reduce__", "__reduce_ex__", "__repr__",
    "__setattr__", "__setstate__", "__slots__", "__static_attributes__", "__firstlineno__", "__str__",
    "__weakref__",
}  # fmt: skip


@dataclass(frozen=True)
class Name:
    """A public name: its module, its own name, and the object."""

    module: str
    name: str
    value: Any

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


def exported(module: types.ModuleType) -> list[str]:
    """What a module offers: its `__all__`; else what it defines or imports as itself (`from a import b as b`)."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    if module is tgrad:  # much is put there by tables
        return [n for n in vars(module) if n != "annotations" and not isinstance(vars(module)[n], types.ModuleType)]
    found = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, ast.ImportFrom):
            found += [a.name for a in node.names if a.asname == a.name]
    return found


def members(cls: type) -> dict[str, Any]:
    """The public methods, properties and operators of a class: its own, and those of bases that are not public."""
    others = [value for value in public_classes() if value is not cls and issubclass(cls, value)]
    public = {base for value in others for base in value.__mro__}
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base in public or not base.__module__.startswith("tgrad"):
            continue
        for name, value in vars(base).items():
            special = name.startswith("__") and name.endswith("__") and name not in PLUMBING
            documented = callable(value) or isinstance(value, (property, classmethod, staticmethod))
            if documented and (special or not name.startswith("_")):
                found.setdefault(name, value)
    return dict(sorted(found.items(), key=lambda item: (item[0].strip("_").lower(), item[0])))


def names(module: str) -> list[Name]:
    """The public names of one of MODULES, sorted."""
    if module == "tgrad.Tensor":
        return [Name(module, n, value) for n, value in members(tgrad.Tensor).items()]
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as missing:
        if missing.name != module:
            raise
        return []
    public = {n: getattr(found, n) for n in exported(found) if not n.startswith("_")}
    kept = [Name(module, n, value) for n, value in public.items() if not isinstance(value, types.ModuleType)]
    return sorted(kept, key=lambda x: (x.name.lower(), x.name))


@functools.cache
def public_classes() -> list[type]:
    """The classes among the public names."""
    everything = [x.value for module in MODULES if module != "tgrad.Tensor" for x in names(module)]
    return [value for value in everything if isinstance(value, type)]


def doc(value: Any) -> str:
    """The docstring of a name, dedented; of an instance (a dtype), none."""
    if isinstance(value, (property, classmethod, staticmethod)) or callable(value):
        return inspect.cleandoc(value.__doc__ or "")
    return ""


def sections(text: str) -> dict[str, str]:
    """A docstring in parts: "" for what comes first, then "Args", "Shape", "Dtype", "Raises", ..."""
    parts: dict[str, list[str]] = {"": []}
    current = ""
    for line in text.splitlines():
        head = SECTION.match(line)
        if head:
            current = head[1]
            parts.setdefault(current, []).append(head[2])
        elif current and line and not line.startswith(" ") and not parts[current][-1]:
            current = ""  # a plain paragraph after a section
            parts[current].append(line)
        else:
            parts[current].append(line)
    texts = {name: "\n".join(lines) for name, lines in parts.items()}
    return {name: inspect.cleandoc(text).strip() if name else text.strip("\n") for name, text in texts.items()}


def entries(text: str) -> list[tuple[str, str]]:
    """The (name, description) lines of an Args or Raises section; one without a name is ("", description)."""
    found: list[tuple[str, str]] = []
    for line in re.sub(r"\. (?=\w+Error: )", ".\n", text).splitlines():
        head = re.match(r"^([\w*][\w.*, ]*?): (.*)$", line) or re.match(r"^([\w.*, ]+):()$", line)
        if head:
            found.append((head[1], head[2]))
        elif found and line.strip():
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        elif line.strip():
            found.append(("", line.strip()))
    return found


def signature(value: Any, method: bool = False) -> str:
    """(arguments, with, defaults=1) as a user writes them: no types; without the first, of a method."""
    plain = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    if plain is tgrad.Tensor or (isinstance(plain, type) and issubclass(plain, BaseException)):
        return ""
    parameters = list(inspect.signature(plain).parameters.values())
    if method and not isinstance(value, staticmethod):
        parameters = parameters[1:]
    shown = [p.replace(annotation=p.empty, default=_Shown.of(p.default)) for p in parameters if p.name[0] != "_"]
    return str(inspect.Signature(shown))


class _Shown:
    """A default value under the name that a user would write."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text

    @staticmethod
    def of(value: Any) -> Any:
        """`value`, or what stands for it: functions have no address; dtypes, whose repr is PyTorch's, are tgrad's."""
        if repr(value).startswith("torch."):
            return _Shown(repr(value).replace("torch.", "tgrad.", 1))
        return _Shown(value.__name__) if inspect.isfunction(value) else value
