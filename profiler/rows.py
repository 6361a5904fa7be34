"""From what the memory pass met to rows of saved.csv and events.csv: numbered, at most so many, sums exact."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tgrad.profiler.kept import Kept
from tgrad.profiler.origins import shown
from tgrad.profiler.records import REST, EventRow, SavedRow
from tgrad.profiler.timeline import Timeline

LIMIT = 5_000  # saved tensors listed one by one; of more, the smallest are added up

Head = tuple[str, str, str]  # run_id, workload, mode


class Numbering:
    """Small numbers for storages in the order they are met, so that two runs of one workload read alike."""

    def __init__(self) -> None:
        self.known: dict[int, int] = {}

    def __call__(self, i: int) -> int:
        return self.known.setdefault(i, len(self.known) + 1)


def saved_rows(
    kept: Sequence[Kept], times: Sequence[tuple[int, ...]], category: Callable[[int], str], head: Head,
    number: Numbering, limit: int | None = None,
) -> list[SavedRow]:  # fmt: skip
    """A row a saved tensor, in the order of the forward; of more than `limit`, those that are charged the most bytes,
    and a last row REST for each category, which is the sum of the others.

    Args:
        times: (saved, used, freed) of each.
        category: what a storage is live for, by its id.
    """
    limit = LIMIT if limit is None else limit
    charged: set[int] = set()
    charges = []
    for s in kept:
        charges.append(0 if s.storage_id in charged else s.storage_bytes)
        charged.add(s.storage_id)
    listed = set(sorted(range(len(kept)), key=lambda i: (-charges[i], i))[:limit])
    rows = []
    rest: dict[str, list[int]] = {}
    for seq, (s, when, charge) in enumerate(zip(kept, times, charges)):
        kind = "intermediate" if s.kind in ("recomputed", "offloaded") else category(s.storage_id)
        if seq not in listed:
            sums = rest.setdefault(kind, [0, 0, 0])
            sums[0], sums[1], sums[2] = sums[0] + 1, sums[1] + s.logical_bytes, sums[2] + charge
            continue
        shape = "x".join(map(str, s.shape)) or "()"
        rows.append(
            SavedRow(
                *head, seq, s.op, s.argument, kind, s.module, shown(s.file), s.line, s.function, shape, s.dtype,
                number(s.storage_id), s.is_leaf, s.logical_bytes, s.storage_bytes, charge, s.reason, s.kind,
                when[0], when[1], when[2], 1, s.host_bytes,
            )
        )  # fmt: skip
    for i, (kind, (count, logical, charge)) in enumerate(rest.items()):
        rows.append(
            SavedRow(
                *head, len(kept) + i, REST, "", kind, "", "", 0, "", "", "", 0, False, logical, charge, charge,
                "too small to be listed", "", tensors=count,
            )
        )  # fmt: skip
    return rows


def event_rows(timeline: Timeline, category: Callable[[int], str], head: Head, number: Numbering) -> list[EventRow]:
    """A row an event, in order.

    Of a timeline that did not list all: a first row that has the ledger before any; a row for each (phase, action) with
    the sums of the others, at the moment of the last; and one at the peak, if that is none of those listed.
    """
    start = timeline.start
    rows = [
        EventRow(*head, t - start, action, number(i), size, live, phase, category(i))
        for t, action, i, size, live, phase in timeline.events
    ]
    if not timeline.rest:
        return rows
    for (phase, action), rest in timeline.rest.items():
        rows.append(EventRow(
            *head, rest.t_ns - start, f"{action} (rest)", 0, rest.bytes, rest.live_bytes, phase, "other", rest.count
        ))  # fmt: skip
    top = timeline.top
    if top is not None and top not in timeline.events:
        rows.append(EventRow(*head, top[0] - start, "peak", 0, 0, top[4], top[5], "other", 0))
    first = EventRow(*head, 0, "start", 0, 0, timeline.before_bytes, "forward", "other", 0)
    return [first, *sorted(rows, key=lambda r: r.t_ns)]
