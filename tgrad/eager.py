"""The native forms of what every eager op pays: a new tensor, the end of its memory, its node, its dispatch (eager.c),
its way back, the gradients of one node (backward.c) and the walk from node to node (engine.c), and what an optimiser's
step does for each tensor (writes.c). All are one module.

Where it cannot be built, or the environment variable TGRAD_NATIVE is 0, the Python forms serve, which do the same.
"""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tgrad import storage
from tgrad.kernels import native
from tgrad.layout import Layout
from tgrad.modes import Mode, mode_variable
from tgrad.rules import FormulaRule, Plan, PointwiseRule


def install(tensor: type, version: type, empty: Callable[..., Any]) -> Callable[..., Any]:
    """The function to use for `empty`; also gives Allocation its native end. Only where small blocks are pooled."""
    if not storage.POOLING:
        return empty
    module = _module()
    if module is None:
        return empty
    made, storage.Allocation.__del__ = module.setup(  # type: ignore[method-assign]
        tensor, storage.Allocation, version, storage.FreeList, Layout, storage.ledger, empty
    )
    storage.native_slow = module.slow
    return made


def install_record(graph: Any, rule: type) -> None:
    """Give the graph its native `record` and `announce_writes`."""
    module = _module() if storage.POOLING else None
    if module is not None:
        graph.record = module.setup_record(
            graph.Node, graph.Saved, rule, vars(graph), graph.saver, graph._ITSELF, graph.next_key, graph.record
        )
        graph.announce_writes = module.setup_writes(graph.announce_writes)


def install_dispatch(python: Callable[..., Any], module: dict[str, Any]) -> Callable[..., Any]:
    """The function to use for `dispatch`.

    Args:
        module: the names of dispatch.py, which are looked up at each call.
    """
    built = _module() if storage.POOLING else None
    return python if built is None else built.setup_dispatch(Plan, Mode, module, mode_variable, python)


def install_backward(*python: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The functions to use for `_pointwise` and `_formulas` of backward.py.

    Args:
        python: their Python forms, `_plan` and `_fit`.
    """
    module = _module() if storage.POOLING else None
    if module is None:
        return python[0], python[1]
    return module.setup_backward(PointwiseRule, FormulaRule, *python)


def install_engine(
    walk: type, survey: Callable[..., Any], advance: Callable[..., Any], names: dict[str, Any], lock: Any
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The functions to use for `survey` and `advance` of engine.py, whose Python forms are given.

    Args:
        names: of engine.py, which are looked up at each use.
        lock: held while a leaf gets its gradient.
    """
    module = _module() if storage.POOLING else None
    if module is None:
        return survey, advance
    return module.setup_engine(walk, names, heapq.heappop, heapq.heappush, lock.acquire, lock.release)


@functools.cache
def _module() -> ModuleType | None:
    parts = [Path(__file__).with_name(name) for name in ("eager.c", "writes.c", "backward.c", "engine.c")]
    return native.build(parts, "tgrad_eager", what="each op")
