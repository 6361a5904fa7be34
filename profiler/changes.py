"""Changes that take less memory, applied to a model for the length of a block: what `whatif` predicts and then runs."""

from __future__ import annotations

import fnmatch
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import tgrad
from tgrad import graph
from tgrad.nn import Module
from tgrad.ops.transfer import convert
from tgrad.profiler.errors import ProfilerError
from tgrad.saved_hooks import saved_tensors_hooks
from tgrad.tensor import Tensor
from tgrad.utils.checkpoint import checkpoint as run_again

LOWER = ("bfloat16", "float16")


@dataclass(frozen=True)
class Change:
    """kind: `none`, `checkpoint`, `offload`, `lower`, `inplace`, or `together`; argument: the modules' pattern, or the
    dtype. parts: of `together`, what is done at once.
    """

    kind: str
    argument: str = ""
    parts: tuple[Change, ...] = ()

    def __str__(self) -> str:
        return {
            "none": "as it is",
            "checkpoint": f"checkpoint {self.argument or '(the model)'}",
            "offload": f"offload {self.argument or '(the model)'}",
            "lower": f"save as {self.argument}",
            "inplace": "activations in place",
            "together": " + ".join(map(str, self.parts)),
        }[self.kind]


NONE = Change("none")


def matching(model: Any, pattern: str, option: str = "--checkpoint") -> list[Module]:
    """The modules that a pattern means: paths such as `layers.*`, several by commas; a class's name; "": the model.

    Raises:
        ProfilerError: none match.
    """
    if not isinstance(model, Module):
        raise ProfilerError(f"{option}: the model is a function, not a tgrad.nn.Module: it has no modules to choose")
    parts = [p.strip() for p in pattern.split(",")]
    named = dict(model.named_modules())
    found = [
        m for path, m in named.items()
        if any(fnmatch.fnmatchcase(path, p) or (p and type(m).__name__ == p) for p in parts)
        and (path or pattern == "" or type(m).__name__ in parts)
    ]  # fmt: skip
    if not found:
        listed = ", ".join(list(named)[1:9]) or "none below the model"
        raise ProfilerError(
            f"{option} {pattern}: no module has such a path or class; there are {listed}"
            + (", ..." if len(named) > 9 else "")
        )
    return found


def in_place(model: Any) -> list[Module]:
    """The modules that could work in place and do not."""
    modules = model.modules() if isinstance(model, Module) else ()
    return [m for m in modules if getattr(m, "inplace", None) is False]


@contextmanager
def applied(change: Change, model: Any, modules: list[Any]) -> Iterator[None]:
    """Inside the block the model runs with the change.

    Args:
        modules: those that it concerns; of a `lower`, none; of `together`, a list for each part.
    """
    with ExitStack() as stack:
        for part, found in zip(change.parts, modules):
            stack.enter_context(applied(part, model, found))
        if change.kind == "offload":
            policy, patterns = tgrad.get_activation_memory(), graph.patterns.get()
            checkpoint = None if patterns is None else patterns.checkpoint
            stack.enter_context(tgrad.activation_memory(policy, checkpoint=checkpoint, offload=change.argument))
        if change.kind == "checkpoint":
            for module in _outermost(modules):
                stack.enter_context(_checkpointed(module))
        elif change.kind == "inplace":
            for module in modules:
                module.inplace = True
                stack.callback(setattr, module, "inplace", False)
        elif change.kind == "lower":
            stack.enter_context(lower_saves(change.argument, model))
        yield


def _outermost(modules: list[Module]) -> list[Module]:
    below = {id(inner) for m in modules for inner in m.modules() if inner is not m}
    return [m for m in modules if id(m) not in below]


@contextmanager
def _checkpointed(module: Module) -> Iterator[None]:
    had, inner = "forward" in vars(module), module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return run_again(inner, *args, use_reentrant=False, **kwargs)

    vars(module)["forward"] = forward
    try:
        yield
    finally:
        if had:
            vars(module)["forward"] = inner
        else:
            del vars(module)["forward"]


def own_storages(model: Any) -> set[int]:
    """Storages of a module's parameters and buffers, by id."""
    if not isinstance(model, Module):
        return set()
    return {t.storage.id for t in (*model.parameters(), *model.buffers())}


def is_lowered(dtype: Any, is_leaf: bool, is_own: bool, target: Any) -> bool:
    """Whether `lower_saves` packs a tensor: wide floats, but neither leaves nor the model's own memory."""
    return not is_leaf and not is_own and dtype.is_floating_point and dtype.itemsize > target.itemsize


def lower_saves(dtype: str, model: Any = None) -> saved_tensors_hooks:
    """Hooks that keep what is saved for backward in a narrower dtype, each tensor once however often it is saved.

    Parameters, buffers and leaves that require grad are live anyway and stay as they are.
    """
    target, own = getattr(tgrad, dtype), own_storages(model)
    packed: dict[tuple[Any, ...], weakref.ref[Tensor]] = {}

    def pack(t: Tensor) -> Any:
        leaf = t.requires_grad and t.node is None
        if not is_lowered(t.dtype, leaf, t.storage.id in own, target):
            return t.detach() if leaf is False else t
        assert t.version is not None
        key = t.storage.id, t.ptr, t.layout, t.version.value
        known = packed[key]() if key in packed else None
        if known is None:
            known = convert(t.detach(), target, copy=True)
            packed[key] = weakref.ref(known, lambda _: packed.pop(key, None))
        return known, t.dtype

    def unpack(given: Any) -> Tensor:
        return given if isinstance(given, Tensor) else convert(given[0], given[1])

    return saved_tensors_hooks(pack, unpack)
