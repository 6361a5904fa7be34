"""The native forms of what every eager op pays: a new tensor, the end of its memory, its node, its dispatch (eager.c).

Where it cannot be built, or the environment variable TGRAD_NATIVE is 0, the Python forms serve, which do the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from tgrad import storage
from tgrad.kernels import native
from tgrad.layout import Layout
from tgrad.modes import Mode, mode_variable
from tgrad.rules import Plan


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
    storage.slow = module.slow
    return made


def install_record(graph: Any, rule: type) -> None:
    """Give the graph its native `record`."""
    module = _module() if storage.POOLING else None
    if module is not None:
        graph.record = module.setup_record(
            graph.Node, graph.Saved, rule, vars(graph), graph.saver, graph._ITSELF, graph.next_key, graph.record
        )


def install_dispatch(python: Callable[..., Any], module: dict[str, Any]) -> Callable[..., Any]:
    """The function to use for `dispatch`.

    Args:
        module: the names of dispatch.py, which are looked up at each call.
    """
    built = _module() if storage.POOLING else None
    return python if built is None else built.setup_dispatch(Plan, Mode, module, mode_variable, python)


@functools.cache
def _module() -> ModuleType | None:
    return native.build(Path(__file__).with_name("eager.c"), "tgrad_eager", what="each op")
