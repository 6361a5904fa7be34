"""Where an op was called, with the profiler's own workloads counted as a user's code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tgrad
from tgrad import graph
from tgrad.nn.module import current_path

_TGRAD = Path(tgrad.__file__).resolve().parent
_HERE = Path(__file__).resolve().parent
# The engine and the profiler, by whichever name they were imported: the links' or what they lead to.
_OWN = tuple({f"{p}{os.sep}" for p in (Path(tgrad.__file__).parent, _TGRAD, (_TGRAD / "kernels").resolve(), _HERE)})
_USERS = ("workloads.py", "digits.py")


@contextmanager
def recorded() -> Iterator[None]:
    """Inside the block, nodes remember the module path and source line they come from."""
    before = graph.find_origin
    graph.find_origin = _find
    try:
        yield
    finally:
        graph.find_origin = before


def _find() -> graph.Origin:
    frame = sys._getframe(1)
    while frame is not None and _is_own(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    if frame is None:
        return graph.Origin(current_path(), "", 0, "")
    code = frame.f_code
    return graph.Origin(current_path(), code.co_filename, frame.f_lineno, code.co_name)


def inside(file: str) -> bool:
    """Whether a source file is a part of tgrad."""
    return file.startswith(_OWN)


def _is_own(file: str) -> bool:
    if not inside(file):
        return False
    folder, name = os.path.split(file)
    return not (name in _USERS and os.path.basename(folder) == "profiler")


def shown(file: str) -> str:
    """A file as reports name it: from the working folder, or from the package; else as it is."""
    if not file:
        return ""
    path = Path(file)
    for base, prefix in ((_HERE, "tgrad/profiler"), (_TGRAD, "tgrad"), (Path.cwd(), "")):
        for candidate in (path, path.resolve()):
            if candidate.is_relative_to(base):
                return os.path.join(prefix, candidate.relative_to(base)) if prefix else str(candidate.relative_to(base))
    return file
