"""The modes: under which context a forward runs, whether it has a backward, and what runs in the model's place."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import tgrad
from tgrad.nn import Module, Sequential
from tgrad.profiler.records import GRAPH_MODES, POLICIES
from tgrad.saved_hooks import save_on_cpu
from tgrad.utils.checkpoint import checkpoint, checkpoint_sequential


@contextmanager
def _on_cpu() -> Iterator[None]:
    with tgrad.enable_grad(), save_on_cpu():
        yield


@contextmanager
def _policy(name: str) -> Iterator[None]:
    with tgrad.enable_grad(), tgrad.activation_memory(name):
        yield


CONTEXTS: dict[str, Callable[[], AbstractContextManager]] = {
    "grad": tgrad.enable_grad,
    "no_grad": tgrad.no_grad,
    "inference_mode": tgrad.inference_mode,
    "set_grad_enabled_false": lambda: tgrad.set_grad_enabled(False),
    "grad+checkpoint": tgrad.enable_grad,
    "grad+save_on_cpu": _on_cpu,
    **{name: functools.partial(_policy, name) for name in POLICIES},
}


def has_graph(mode: str) -> bool:
    """Whether a forward in this mode can be followed by a backward."""
    return mode in GRAPH_MODES


@contextmanager
def entered(mode: str, model: Any) -> Iterator[None]:
    """Run in `mode`: its context, and in grad+checkpoint `model` checkpointed."""
    with CONTEXTS[mode](), checkpointed(model) if mode == "grad+checkpoint" else _nothing():
        yield


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def checkpointed(model: Any) -> Iterator[None]:
    """Inside the block the forward of a module is checkpointed: a Sequential in segments, any other as a whole.

    The modules in it keep their paths. A callable that is no module stays as it is.
    """
    if not isinstance(model, Module):
        yield
        return
    had, inner = "forward" in vars(model), model.forward

    def whole(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(inner, *args, use_reentrant=False, **kwargs)

    def by_segments(input: Any) -> Any:
        return checkpoint_sequential(model, segments(len(list(model.children()))), input, use_reentrant=False)

    vars(model)["forward"] = by_segments if type(model) is Sequential and len(list(model.children())) > 3 else whole
    try:
        yield
    finally:
        if had:
            vars(model)["forward"] = inner
        else:
            del vars(model)["forward"]


def segments(layers: int) -> int:
    """Into how many segments to cut: the square root, where what is kept and what is run again are in balance."""
    return max(2, round(math.sqrt(layers)))
