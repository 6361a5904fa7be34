"""Where an op was called: the user's frames on the stack, those of tgrad itself left out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import NamedTuple

from tgrad.graph import Origin
from tgrad.nn.calls import current_path

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
OWN = (_PACKAGE + os.sep, *(os.path.realpath(os.path.join(_PACKAGE, n)) + os.sep for n in ("kernels", "profiler")))


class Line(NamedTuple):
    """A line being executed."""

    code: CodeType
    number: int


def frames(start: FrameType | None) -> Iterator[FrameType]:
    """The user's frames from `start` outwards."""
    while start is not None:
        if not start.f_code.co_filename.startswith(OWN):
            yield start
        start = start.f_back


def find() -> Origin:
    """The module path and the user's line that called, from wherever in tgrad this is called."""
    frame = next(frames(sys._getframe(1)), None)
    if frame is None:
        return Origin(current_path(), "", 0, "")
    code = frame.f_code
    return Origin(current_path(), code.co_filename, frame.f_lineno, code.co_name)


def stack() -> tuple[Line, ...]:
    """The user's lines that are being executed, outermost first."""
    return tuple(Line(f.f_code, f.f_lineno) for f in frames(sys._getframe(1)))[::-1]
