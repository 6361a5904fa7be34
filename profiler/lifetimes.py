"""How long saved memory lies idle, what is live at the peak, and by how much the peak falls without a storage.

Pure functions on the frames of a report.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from tgrad.profiler.records import REST

IDLE = (
    "storage_id", "module", "op", "argument", "category", "shape", "file", "line", "bytes", "saved_at_ns",
    "used_at_ns", "idle_ms", "byte_ms", "lowers_peak_bytes",
)  # fmt: skip


def idle(saved: pd.DataFrame, events: pd.DataFrame, workload: str, mode: str = "grad") -> pd.DataFrame:
    """What could be offloaded or computed again: a row a storage that waits for backward, the most byte-ms first.

    idle_ms: from the last time it was saved to the first time that backward used it; byte_ms: bytes times that.
    lowers_peak_bytes: by how much the peak falls if its memory is free in between; less than its bytes where another
    moment becomes the peak. Parameters, and results that the caller holds, are left out.
    """
    mine = _of(saved, workload, mode)
    mine = mine[mine["category"].isin(("intermediate", "input")) & (mine["storage_id"] > 0)]
    live = _of(events, workload, mode)
    moments, sizes = live["t_ns"].to_numpy(), live["live_bytes"].to_numpy()
    words = ("module", "op", "argument", "category", "shape", "file", "line")
    cells = (mine[c].tolist() for c in ("storage_id", "storage_bytes", "saved_at_ns", "used_at_ns", *words))
    found: dict[int, list[Any]] = {}  # storage -> bytes, last saved, first used, words of the first
    for storage, size, saved_at, used_at, *first in zip(*cells):
        known = found.setdefault(storage, [size, saved_at, -1, first])
        known[1] = max(known[1], saved_at)
        known[2] = used_at if known[2] < 0 else known[2] if used_at < 0 else min(known[2], used_at)
    rows = []
    for storage, (size, begin, end, first) in found.items():
        waits = 0 <= begin <= end
        fall = _fall(moments, sizes, begin, end, size) if waits else 0
        ms = (end - begin) / 1e6 if waits else float("nan")
        rows.append((storage, *first, size, begin, end, ms, size * ms, fall))
    table = pd.DataFrame(rows, columns=list(IDLE))
    return table.sort_values("byte_ms", ascending=False, kind="stable").reset_index(drop=True)


def _fall(moments: Any, sizes: Any, begin: int, end: int, size: int) -> int:
    """By how much the most of `sizes` falls if those from `begin` to `end` are less by `size`. `moments` ascend."""
    if not len(sizes):
        return 0
    a, b = np.searchsorted(moments, (begin, end))
    outside = [part.max() for part in (sizes[:a], sizes[b:]) if len(part)]
    within = [sizes[a:b].max() - size] if b > a else []
    return int(sizes.max() - max([*outside, *within]))


PEAK = ("storage_id", "category", "bytes", "born_ns", "freed_ns", "module", "op", "argument", "shape")


def at_peak(saved: pd.DataFrame, events: pd.DataFrame, workload: str, mode: str = "grad") -> pd.DataFrame:
    """The storages of the run that are live when the most is: the largest first.

    What was live before the run, such as parameters, is not among them. module, op, argument and shape: of the tensor
    that saved the storage first; "" where none did. freed_ns is -1 of what is still live at the end. Storages too
    small to be listed are one row whose op is REST.
    """
    live = _of(events, workload, mode)
    if live.empty:
        return pd.DataFrame(columns=list(PEAK))
    sizes = live["live_bytes"].to_numpy()
    top = int(sizes.argmax())
    names = _of(saved, workload, mode).drop_duplicates("storage_id").set_index("storage_id")
    found: dict[int, list[Any]] = {}
    ends: dict[int, int] = {}
    columns = zip(*(live[c].tolist() for c in ("action", "storage_id", "category", "bytes", "t_ns")))
    for i, (action, number, category, size, at) in enumerate(columns):
        if i <= top and action == "alloc":
            found[number] = [number, category, size, at]
        elif action == "free":
            if i <= top:
                found.pop(number, None)
            else:
                ends.setdefault(number, at)
    rows = []
    for number, row in found.items():
        known = names.loc[number] if number in names.index else None
        words = [known[c] if known is not None else "" for c in ("module", "op", "argument", "shape")]
        rows.append((*row, ends.get(number, -1), *words))
    if live["action"].iloc[0] == "start":  # not all events are listed
        rest = int(sizes[top]) - int(sizes[0]) - sum(row[2] for row in rows)
        if rest:
            rows.append((0, "other", rest, -1, -1, "", REST, "", ""))
    table = pd.DataFrame(rows, columns=list(PEAK))
    return table.sort_values("bytes", ascending=False, kind="stable").reset_index(drop=True)


def _of(frame: pd.DataFrame, workload: str, mode: str) -> pd.DataFrame:
    return frame[(frame["workload"] == workload) & (frame["mode"] == mode)]
