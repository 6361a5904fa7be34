"""Anomaly mode: nodes remember the stack of the call that made them, and gradients are searched for nan.

Like PyTorch's it is on or off for the whole process. While it is off it costs nothing.
"""

from __future__ import annotations

import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from tgrad import engine, graph
from tgrad.backward import Gradient
from tgrad.graph import Node, Origin
from tgrad.origins import Line, find, frames, stack

_check_nan = True
_find_before: Callable[[], Origin] | None = None


class Traced(Origin):
    """An Origin with the whole stack, and the node whose backward made this one (under `create_graph`).

    Attributes:
        lines: the user's, outermost first.
        parent: (name, origin) of that node, or None.
    """

    __slots__ = ("lines", "parent")

    lines: tuple[Line, ...]
    parent: tuple[str, Origin | None] | None


class _Running(threading.local):
    def __init__(self) -> None:
        self.nodes: list[Node] = []


_running = _Running()


def is_anomaly_enabled() -> bool:
    """Whether anomaly mode is on."""
    return graph.anomaly


def is_anomaly_check_nan_enabled() -> bool:
    """Whether anomaly mode, when it is on, looks for nan."""
    return _check_nan


def set_anomaly_enabled(enabled: bool, check_nan: bool = True) -> None:
    """Turn anomaly mode on or off.

    Raises:
        TypeError: not a bool.
    """
    global _check_nan, _find_before
    for name, value in (("enabled", enabled), ("check_nan", check_nan)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be a bool (got {type(value).__name__})")
    _check_nan = check_nan
    if enabled and not graph.anomaly:
        _find_before, graph.find_origin = graph.find_origin, _find
        engine.watch = _watch
    elif graph.anomaly and not enabled:
        if graph.find_origin is _find:
            graph.find_origin = _find_before
        engine.watch = _find_before = None
    graph.anomaly = enabled


class set_detect_anomaly:
    """Turn anomaly mode on or off: at once, and as a context manager until the end of the block."""

    def __init__(self, mode: bool, check_nan: bool = True) -> None:
        self.prev, self.prev_check_nan = graph.anomaly, _check_nan
        set_anomaly_enabled(mode, check_nan)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        set_anomaly_enabled(self.prev, self.prev_check_nan)


class detect_anomaly:
    """Inside the block, a failing backward says where in the forward its node was made, and nan is an error.

    The traceback comes as a UserWarning before the error. A gradient modified in place is named with the op, the module
    and the line that wrote it. It is slow.
    """

    def __init__(self, check_nan: bool = True) -> None:
        self.prev, self.prev_check_nan = graph.anomaly, _check_nan
        self.check_nan = check_nan
        warnings.warn(
            "Anomaly Detection has been enabled. This mode will increase the runtime and should only be enabled for "
            "debugging.",
            stacklevel=2,
        )

    def __enter__(self) -> None:
        set_anomaly_enabled(True, self.check_nan)

    def __exit__(self, *exception: object) -> None:
        set_anomaly_enabled(self.prev, self.prev_check_nan)


# --- in the forward ---------------------------------------------------------------------------------------------------
def _find() -> Origin:
    at = find()
    traced = Traced(at.module, at.file, at.line, at.function)
    traced.lines = stack()
    node = _running.nodes[-1] if _running.nodes else None
    traced.parent = None if node is None else (node.name(), node.origin)
    return traced


# --- in the backward --------------------------------------------------------------------------------------------------
def _watch(run: Callable[[Node, Any], list[Gradient]], node: Node, g: Any) -> list[Gradient]:
    _running.nodes.append(node)
    try:
        results = run(node, g)
        if _check_nan:
            _refuse_nan(node, results)
        return results
    except Exception:
        _warn(node)
        raise
    finally:
        _running.nodes.pop()


def _refuse_nan(node: Node, results: list[Gradient]) -> None:
    for i, (gradient, _) in zip(node.rule.wanted, results, strict=True):
        if isinstance(gradient, engine.Part):
            gradient = gradient.gradient
        if gradient is not None and np.isnan(gradient._values()).any():
            raise RuntimeError(f"Function '{node.name()}' returned nan values in its {_output(node, i)}th output.")


def _output(node: Node, i: int) -> int:
    """Which of the node's gradients belongs to input i: PyTorch counts tensors that can have one."""
    formulas = getattr(node.rule.op, "formulas", None)
    if not formulas:
        return i
    return sum(name in formulas for name in node.rule.op.inputs[:i])


_NO_FORWARD = " No forward pass information available. Enable detect anomaly during forward pass for more information."


def _warn(node: Node) -> None:
    origin = node.origin
    message = f"Error detected in {node.name()}."
    message += _stack(origin, " Traceback of forward call that caused the error:\n")
    _warn_user(message)
    parent = origin.parent if isinstance(origin, Traced) else None
    while parent is not None:
        name, origin = parent
        message = f"\n\nPrevious calculation was induced by {name}."
        message += _stack(origin, " Traceback of forward call that induced the previous calculation:\n")
        _warn_user(message)
        parent = origin.parent if isinstance(origin, Traced) else None


def _warn_user(message: str) -> None:
    """Warn at the line that called backward."""
    frame = next(frames(sys._getframe(1)), None)
    if frame is None:
        warnings.warn(message, UserWarning, stacklevel=2)
    else:
        registry = frame.f_globals.setdefault("__warningregistry__", {})
        file, module = frame.f_code.co_filename, frame.f_globals.get("__name__")
        warnings.warn_explicit(message, UserWarning, file, frame.f_lineno, module, registry)


def _stack(origin: Origin | None, title: str) -> str:
    if not isinstance(origin, Traced):
        return _NO_FORWARD
    lines = [(line.code.co_filename, line.number, line.code.co_name, None) for line in origin.lines]
    return title + "".join(traceback.StackSummary.from_list(lines).format())
