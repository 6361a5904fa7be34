"""The ledger's events while a workload runs: each with its time and phase, in bounded memory, with exact sums."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from tgrad.storage import Allocation, ledger

LIMIT = 20_000  # events listed one by one; of more, those of the smallest storages are added up

Event = tuple[int, str, int, int, int, str]  # time in ns, action, storage id, bytes, live bytes after it, phase


@dataclass
class Rest:
    """Events of one kind that are not listed: how many, their bytes, and the moment of the last."""

    count: int = 0
    bytes: int = 0
    t_ns: int = 0
    live_bytes: int = 0

    def add(self, event: Event) -> None:
        """Count one more."""
        self.count += 1
        self.bytes += event[3]
        if event[0] >= self.t_ns:
            self.t_ns, self.live_bytes = event[0], event[4]


class Timeline:
    """Listens to the ledger: every allocation and free with its time, and the phase it fell in.

    At most `limit` events are listed. Beyond it the least storages go, with their allocation and their free alike,
    whether those are past or to come; `rest` counts them. The peaks are those of all events.

    Attributes:
        events: those that are listed, in order.
        rest: (phase, action) -> the sums of the others.
        top: the event after which the most was live; None before the first.
        before_bytes, start: the ledger when this was made, and the time of the first event.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = LIMIT if limit is None else limit
        self.events: list[Event] = []
        self.rest: dict[tuple[str, str], Rest] = {}
        self.phase = "forward"
        self.start = 0
        self.before_bytes = ledger.live_bytes
        self.top: Event | None = None
        self._least = (-1, 0)  # storages up to this key are not listed
        self._peaks: dict[str, int] = {}
        self._made: set[int] = set()

    def allocated(self, storage: Allocation) -> None:
        """Told by the ledger."""
        if self.phase == "forward":
            self._made.add(storage.id)
        self._note("alloc", storage)

    def freed(self, storage: Allocation) -> None:
        """Told by the ledger."""
        if self.phase == "forward":
            self._made.discard(storage.id)
        self._note("free", storage)

    def _note(self, action: str, storage: Allocation) -> None:
        event = time.perf_counter_ns(), action, storage.id, storage.nbytes, ledger.live_bytes, self.phase
        self.start = self.start or event[0]
        live = event[4]
        if live > self._peaks.get(self.phase, -1):
            self._peaks[self.phase] = live
            if self.top is None or live > self.top[4]:
                self.top = event
        if _key(event) <= self._least:
            self._drop(event)
            return
        self.events.append(event)
        if len(self.events) > self.limit:
            self._thin()

    def _thin(self) -> None:
        """List half as many."""
        keys = sorted(map(_key, self.events))
        self._least = keys[len(keys) // 2]
        for event in self.events:
            if _key(event) <= self._least:
                self._drop(event)
        self.events = [e for e in self.events if _key(e) > self._least]

    def _drop(self, event: Event) -> None:
        self.rest.setdefault((event[5], event[1]), Rest()).add(event)

    @property
    def born(self) -> set[int]:
        """Storages allocated since, by id: those that are listed, and those that outlived the forward."""
        return self._made | {i for _, action, i, *_ in self.events if action == "alloc"}

    def peak(self, before: int, phases: Iterable[str]) -> int:
        """The most bytes live in these phases, `before` included."""
        return max([before, *(self._peaks.get(phase, 0) for phase in phases)])


def _key(event: Event) -> tuple[int, int]:
    """By bytes; storages of one size in an order that has nothing to do with time."""
    return event[3], event[2] * 0x9E3779B1 & 0xFFFFFFFF
