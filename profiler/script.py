"""`tgrad run`: a user's script under the profiler, its output and exit code its own, and a report at the end."""

from __future__ import annotations

import builtins
import datetime
import math
import os
import sys
import time
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tgrad
from tgrad.device import compute
from tgrad.kernels import launch
from tgrad.profiler import output
from tgrad.profiler.environment import environment
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.measure import Records
from tgrad.profiler.origins import shown
from tgrad.profiler.records import RunRecord, SampleRecord, SavedRow, columns
from tgrad.profiler.report import Report
from tgrad.profiler.rows import Numbering, event_rows
from tgrad.profiler.units import show_bytes
from tgrad.profiler.watching import Key, Watcher
from tgrad.storage import ledger

if TYPE_CHECKING:
    import pandas as pd

FAILED, INTERRUPTED = 1, 130
NAMED = 3  # lines that a sentence on unused graphs names


def run(script: str, arguments: Sequence[str] = (), out: str | None = None, force: bool = False) -> int:
    """Run a Python file as `python script arguments...` does, watch it, and write a report of it.

    What the script prints and how it ends are its own. At the end, also if it raised or was interrupted, a few words on
    what it took go to stderr, and the report into the folder `out`, whole or not at all.

    Returns:
        The script's exit code; 1 if it raised, 130 if it was interrupted.

    Raises:
        ProfilerError: there is no such script, or the report cannot be written.
    """
    path = Path(script)
    if not path.is_file():
        raise ProfilerError(f"run: there is no file {script}; give the path of a Python script")
    if out is not None:
        output.check(out, force)  # before the script runs
    watcher = Watcher()
    main = types.ModuleType("__main__")
    main.__file__ = script
    main.__dict__["__builtins__"] = builtins
    began = time.perf_counter()
    code = _execute(path, main, [script, *arguments], watcher)
    report = make_report(watcher, path.name, (time.perf_counter() - began) * 1e3, code, _holders(watcher))
    for text in report.records.notes[path.name]:
        print(f"tgrad: {text}", file=sys.stderr)
    if out is not None:
        report.save(out, force)
        print(f"tgrad: the report is in {os.path.join(out, 'report.html')}", file=sys.stderr)
    return code


def _execute(path: Path, main: types.ModuleType, argv: list[str], watcher: Watcher) -> int:
    """Run the script; returns its exit code."""
    had = sys.argv, sys.path[:], sys.modules.get("__main__")
    sys.argv, sys.path[0:0] = argv, [str(path.parent.resolve())]
    sys.modules["__main__"] = main
    try:
        with watcher.on():
            exec(compile(path.read_bytes(), str(path), "exec"), main.__dict__)
        return 0
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        traceback.print_exc(limit=-_below(sys.exc_info()[2]))
        return INTERRUPTED
    except BaseException as error:  # as Python itself ends a script that raises
        traceback.print_exception(error, limit=-_below(error.__traceback__))
        return FAILED
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.argv, sys.path[:] = had[0], had[1]
        if had[2] is not None:
            sys.modules["__main__"] = had[2]


def _below(tb: types.TracebackType | None) -> int:
    """How many frames of a traceback are the script's own, below this file's."""
    frames = traceback.extract_tb(tb)
    return max(1, len(frames) - 1)


def _holders(watcher: Watcher) -> list[str]:
    """If memory grew, the variables that hold it, in words."""
    slope, ci = watcher.iterations.slope()
    if math.isnan(slope) or slope - ci <= 0:
        return []
    from tgrad.profiler.leaks import holders

    live = {i for i in watcher.timeline.born if i not in watcher.parameters and i not in watcher.states}
    found = holders(live - watcher.gradients)
    # A plain variable holds one tensor, which the next iteration replaces: what grows is a container.
    growing = [h for h in found if not h.name.isidentifier()]
    return [h.sentence() for h in growing or found]


def make_report(watcher: Watcher, name: str, wall_ms: float, code: int, holders: Sequence[str] = ()) -> Report:
    """A report of one run, under the name of the script and mode grad."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    head = f"{now}/{name}/grad", name, "grad"
    watcher.look()
    records, number = Records(), Numbering()
    records.runs.append(_run_record(watcher, head, now))
    records.samples.append(SampleRecord(*head, "run", 0, False, wall_ms, wall_ms, math.nan))
    records.saved = _saved_rows(watcher, head, number)
    records.events = event_rows(watcher.timeline, watcher.category, head, number)
    for text in [*_sentences(watcher, code), *holders]:
        records.note(name, text)
    ended = {0: "It ended well", INTERRUPTED: "It was interrupted"}.get(code, f"It ended with exit code {code}")
    report = Report(records, environment(), {name: f"The script {name}, watched as it ran. {ended}."})
    report.extra["iterations"] = iterations_frame(watcher)
    return report


def iterations_frame(watcher: Watcher) -> pd.DataFrame:
    """The ledger after each iteration."""
    import pandas as pd

    found = watcher.iterations
    return pd.DataFrame({"iteration": found.numbers, "live_bytes": found.live_bytes}, dtype="int64")


def _run_record(watcher: Watcher, head: tuple[str, str, str], now: str) -> RunRecord:
    values: dict[str, object] = {
        name: math.nan if kind == "float" else "" if kind == "str" else 0
        for name, kind in ((c, RunRecord.__annotations__[c]) for c in columns(RunRecord))
    }
    before, own = watcher.before_bytes, sum(watcher.parameters.values())
    peak = watcher.timeline.peak(before, ("forward", "backward", "step"))
    values |= {
        "run_id": head[0], "created_at": now, "workload": head[1], "mode": head[2], "engine": "tgrad",
        "engine_version": tgrad.__version__, "device": str(compute), "is_interpreted": launch.INTERPRET,
        "optimizer": watcher.optimizer, "held": 1, "repeats": watcher.iterations.count,
        "parameters": watcher.elements, "parameters_bytes": own,
        "gradients_bytes": watcher.gradients_bytes, "optimizer_bytes": sum(watcher.states.values()),
        "intermediates_bytes": watcher.at_peak_bytes, "graph_bytes": watcher.at_peak_bytes, "nodes": watcher.nodes,
        "other_live_bytes": before, "live_before_bytes": before, "live_after_bytes": ledger.live_bytes,
        "peak_bytes": peak - before, "peak_forward_bytes": watcher.timeline.peak(before, ("forward",)) - before,
        **{f"{phase}_kernels": n for phase, n in watcher.kernels.items()},
        **{f"{phase}_ops": n for phase, n in watcher.ran.items()},
    }  # fmt: skip
    return RunRecord(**values)  # type: ignore[arg-type]


def _saved_rows(watcher: Watcher, head: tuple[str, str, str], number: Numbering) -> list[SavedRow]:
    """What was saved at the peak, a row a source; each storage counts once."""
    sums: dict[Key, list[int]] = {}
    for key, size in watcher.at_peak.values():
        found = sums.setdefault(key, [0, 0])
        found[0], found[1] = found[0] + 1, found[1] + size
    rows = []
    for seq, (key, (count, size)) in enumerate(sums.items()):
        source = watcher.sources[key]
        used = "used by backward" if source.used else "never used"
        rows.append(SavedRow(
            *head, seq, key.op, key.argument, "intermediate", key.module, shown(key.file), key.line, key.function,
            key.shape, key.dtype, number(-1 - seq), False, size, size, size, used, "sum", tensors=count,
        ))  # fmt: skip
    return rows


def _sentences(watcher: Watcher, code: int) -> list[str]:
    ops = ", ".join(f"{n:,} in {mode}" for mode, n in watcher.ops.items() if n) or "none"
    peak = watcher.timeline.peak(watcher.before_bytes, ("forward", "backward", "step")) - watcher.before_bytes
    found = [
        f"peak {show_bytes(peak)}; at most {show_bytes(watcher.at_peak_bytes)} saved for backward; ops: {ops}; "
        f"{watcher.walks:,} backwards, {watcher.steps:,} steps of the optimiser."
    ]
    slope, ci = watcher.iterations.slope()
    if not math.isnan(slope):
        each = f"over {watcher.iterations.count:,} iterations"
        found.append(
            f"Leak: {show_bytes(round(slope))} (±{show_bytes(round(ci))}) stay after each iteration, {each}."
            if slope - ci > 0 else f"No leak: memory does not grow {each}."
        )  # fmt: skip
    unused = watcher.unused() if not code else []  # cut short, a backward may have been to come
    by_line: dict[str, list[int]] = {}
    for key, source in unused:
        sums = by_line.setdefault(f"{shown(key.file)}:{key.line}" if key.file else "an unknown line", [0, 0])
        sums[0], sums[1] = sums[0] + source.saved, sums[1] + source.logical_bytes
    for place, (count, size) in list(by_line.items())[:NAMED]:
        found.append(
            f"This forward recorded a graph that was never used: {place} saved {count:,} tensors ({show_bytes(size)}) "
            "that no backward took: wrap it in no_grad."
        )
    if len(by_line) > NAMED:
        found.append(f"{len(by_line) - NAMED} more lines saved what no backward took.")
    return found

