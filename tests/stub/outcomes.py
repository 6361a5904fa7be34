"""What became of cases that run in a process of their own: a report for the test that asked for them."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any


def outcomes(cases: Mapping[str, Callable[..., Any]], report: str, names: Iterable[str] = (), *given: Any) -> None:
    """Run cases on what is `given` (those named, or all) and write to the file `report`: by name, "" or a traceback."""
    results = {}
    for name in names or cases:
        try:
            cases[name](*given)
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
    Path(report).write_text(json.dumps(results))
