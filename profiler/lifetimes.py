"""How long saved memory lies idle, what is live at the peak, and by how much the peak falls without a storage.

Pure functions on the frames of a report.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

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
    mine = mine[mine["category"].isin(("intermediate", "input"))]
    live = _of(events, workload, mode)
    moments, sizes = live["t_ns"].to_numpy(), live["live_bytes"].to_numpy()
    rows = []
    for storage, group in mine.groupby("storage_id", sort=False):
        first = group.iloc[0]
        begin, ends = int(group["saved_at_ns"].max()), group.loc[group["used_at_ns"] >= 0, "used_at_ns"]
        end = int(ends.min()) if len(ends) else -1
        size = int(first["storage_bytes"])
        waits = 0 <= begin <= end
        fall = _fall(moments, sizes, begin, end, size) if waits else 0
        ms = (end - begin) / 1e6 if waits else float("nan")
        where = [first[c] for c in ("module", "op", "argument", "category", "shape", "file", "line")]
        rows.append((storage, *where, size, begin, end, ms, size * ms, fall))
    table = pd.DataFrame(rows, columns=list(IDLE))
    return table.sort_values("byte_ms", ascending=False, kind="stable").reset_index(drop=True)


def _fall(moments: Any, sizes: Any, begin: int, end: int, size: int) -> int:
    """By how much the most of `sizes` falls if those from `begin` to `end` are less by `size`."""
    if not len(sizes):
        return 0
    inside = (moments >= begin) & (moments < end)
    return int(sizes.max() - np.where(inside, sizes - size, sizes).max())


PEAK = ("storage_id", "category", "bytes", "born_ns", "freed_ns", "module", "op", "argument", "shape")


def at_peak(saved: pd.DataFrame, events: pd.DataFrame, workload: str, mode: str = "grad") -> pd.DataFrame:
    """The storages of the run that are live when the most is: the largest first.

    What was live before the run, such as parameters, is not among them. module, op, argument and shape: of the tensor
    that saved the storage first; "" where none did. freed_ns is -1 of what is still live at the end.
    """
    live = _of(events, workload, mode)
    if live.empty:
        return pd.DataFrame(columns=list(PEAK))
    top = int(live["live_bytes"].to_numpy().argmax())
    names = _of(saved, workload, mode).drop_duplicates("storage_id").set_index("storage_id")
    found: dict[int, list[Any]] = {}
    ends: dict[int, int] = {}
    for i, (_, e) in enumerate(live.iterrows()):
        number = int(e["storage_id"])
        if i <= top and e["action"] == "alloc":
            found[number] = [number, e["category"], int(e["bytes"]), int(e["t_ns"])]
        elif e["action"] == "free":
            if i <= top:
                found.pop(number, None)
            else:
                ends.setdefault(number, int(e["t_ns"]))
    rows = []
    for number, row in found.items():
        known = names.loc[number] if number in names.index else None
        words = [known[c] if known is not None else "" for c in ("module", "op", "argument", "shape")]
        rows.append((*row, ends.get(number, -1), *words))
    table = pd.DataFrame(rows, columns=list(PEAK))
    return table.sort_values("bytes", ascending=False, kind="stable").reset_index(drop=True)


def _of(frame: pd.DataFrame, workload: str, mode: str) -> pd.DataFrame:
    return frame[(frame["workload"] == workload) & (frame["mode"] == mode)]
