"""One measurement in a process of its own, which begins with empty caches, an empty allocator and a cold engine.

Bytes do not depend on it. Peaks of the device's allocator, host times and the first launches do: what ran before in the
same process has left its mark.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tgrad
from tgrad.profiler.errors import ProfilerError, one_line
from tgrad.storage import OutOfMemoryError

BEGIN = "import sys; from tgrad.profiler.isolated import main; main(*sys.argv[1:])"


def call(task: str, **arguments: Any) -> Any:
    """The result of a task, `profile`, `twin` or `point`, with arguments that JSON can hold, in a new process.

    Raises:
        ProfilerError: the task failed, or its process died; the message is one line.
        tgrad.OutOfMemoryError: memory ran out in it.
    """
    root = str(Path(tgrad.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    with tempfile.TemporaryDirectory(prefix="tgrad-") as folder:
        file = Path(folder) / "result"
        done = subprocess.run(
            [sys.executable, "-c", BEGIN, task, json.dumps(arguments), str(file)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if not file.exists():
            last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no word")
            raise ProfilerError(f"--isolate: a process ended with exit code {done.returncode}: {last[:300]}")
        # Our own process wrote it, a moment ago, in a folder that nobody else can enter.
        kind, result = pickle.loads(file.read_bytes())
    if kind == "out of memory":
        raise OutOfMemoryError(result)
    if kind == "error":
        raise ProfilerError(result)
    return result


def profile(workload: str, mode: str, options: dict[str, Any]) -> Any:
    """(Records, about) of one workload in one mode."""
    from tgrad.profiler import api

    found = api.profile(workload, [mode], **options)
    return found.records, found.about


def twin(workload: str, options: dict[str, Any]) -> Any:
    """(Records, about) of the twin of a workload."""
    from tgrad.profiler import measure
    from tgrad.profiler.workloads import Options, make

    made = make(workload, Options(**options))
    return measure.twin(made), {made.name: made.about}


def point(workload: str, mode: str, held_out: bool, options: dict[str, Any]) -> Any:
    """A scale.Point."""
    from tgrad.profiler import scale
    from tgrad.profiler.workloads import Options, make

    return scale.point(make(workload, Options(**options)), mode, options["batch_size"], options["seed"], held_out)


TASKS: dict[str, Callable[..., Any]] = {"profile": profile, "twin": twin, "point": point}


def main(task: str, arguments: str, file: str) -> None:
    """In the new process: carry out a task, and leave what came of it."""
    try:
        found = "result", TASKS[task](**json.loads(arguments))
    except ProfilerError as error:
        found = "error", str(error)
    except (MemoryError, OutOfMemoryError) as error:
        found = "out of memory", one_line(error)
    partial = Path(f"{file}.partial")
    partial.write_bytes(pickle.dumps(found))
    partial.rename(file)

