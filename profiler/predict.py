"""What a change would give, from the ledger of the model as it is: no code of the model runs here.

Bytes that the graph keeps are exact. The peak is a replay of the allocations with other lifetimes, and the time a share
of what was measured: both leave out what only a run shows, such as temporaries of a second forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tgrad
from tgrad.graph import SMALLEST_RECIPE
from tgrad.nn import Module
from tgrad.profiler.calls import Call, Calls
from tgrad.profiler.changes import Change, is_lowered
from tgrad.profiler.kept import Kept
from tgrad.profiler.memory import Memory
from tgrad.random import default_generator

GRAPH = ("intermediate", "input", "output")


@dataclass(frozen=True)
class Times:
    """Medians of the model as it is, in ms. conversion_ms: of one tensor of so many elements, there and back.
    ms_per_byte: to move a byte to the host, or back.
    """

    forward_ms: float
    backward_ms: float
    conversion_ms: Callable[[int, str], float] = lambda numel, dtype: 0.0
    ms_per_byte: Callable[[], float] = lambda: 0.0


@dataclass
class Prediction:
    """What a change is expected to give.

    graph_bytes, peak_bytes: as in a RunRecord. ms: of forward and backward. modules: those that it concerns. left_out:
    the others that it could concern, and why it does not. sizes: bytes of each storage that the graph would keep.
    host_bytes: of what is offloaded.
    """

    graph_bytes: int
    peak_bytes: int
    ms: float
    modules: list[Any] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    host_bytes: int = 0


class Base:
    """The model as it is: one measured run with the calls of its modules, and its times."""

    def __init__(self, found: Memory, calls: Calls, times: Times) -> None:
        assert found.ledger is not None
        self.figures, self.calls, self.times = found.figures, calls, times
        self.kept, self.kinds = found.ledger.kept, found.ledger.kinds
        watch, events = found.ledger.watch, found.ledger.timeline.events
        self.saved_ns = [watch.saved.get(k.saved_id, 0) for k in self.kept]
        self.used_ns = [watch.used.get(k.saved_id, 0) for k in self.kept]
        self.born = {i: t for t, action, i, *_ in events if action == "alloc"}
        self.freed = {i: t for t, action, i, *_ in events if action == "free"}
        self.bytes = {i: n for _, _, i, n, _, _ in events}
        self.end = max((e[0] for e in events), default=0) + 1
        self.listed_all = not found.ledger.timeline.rest

    def is_kept(self, storage: int) -> bool:
        """Whether a storage counts as the graph's if the graph keeps it: not a parameter, and not live before."""
        kind = self.kinds.of(storage)
        return kind in (*GRAPH, "temporary", "gradient")

    def graph(self, sizes: dict[int, int]) -> dict[int, int]:
        """Of storages that nodes would keep, those that count."""
        return {i: n for i, n in sizes.items() if self.is_kept(i)}

    def peak(self, lives: dict[int, list[tuple[int, int, int]]]) -> int:
        """The peak if storages live at other times: storage id -> its (begin, end, bytes), several or none."""
        changes: list[tuple[int, int, int]] = []
        for i, born in self.born.items():
            if i not in lives:
                changes += _span(born, self.freed.get(i, self.end), self.bytes[i])
        for i, freed in self.freed.items():  # live before, and gone on the way
            if i not in self.born and i not in lives:
                changes.append((freed, 1, -self.bytes[i]))
        for spans in lives.values():
            for begin, end, size in spans:
                changes += _span(begin, end, size)
        live = most = self.figures["live_before_bytes"] - self.figures["other_live_bytes"]
        for _, _, change in sorted(changes):
            live += change
            most = max(most, live)
        return most


def _span(begin: int, end: int, size: int) -> list[tuple[int, int, int]]:
    # At one moment what comes stands before what goes: 0 sorts before 1.
    return [(begin, 0, size), (max(begin, end), 1, -size)]


def predict(base: Base, change: Change, modules: list[Any]) -> Prediction:
    """What `change` gives; `modules`: those that match, or could work in place; of several at once, a list for each."""
    if change.kind == "inplace":
        return _inplace(base, modules)
    parts = list(zip(change.parts, modules)) if change.parts else [(change, modules)]
    chosen = lambda kind: [m for part, found in parts if part.kind == kind for m in found]
    lower = next((part.argument for part, _ in parts if part.kind == "lower"), None)
    if lower is not None:
        return _lower(base, lower, chosen("checkpoint"))
    return kept_elsewhere(base, chosen("checkpoint"), chosen("offload"))


@dataclass
class _Save:
    """One thing that the graph would keep: a tensor, or an input of a checkpoint.

    held_ns: until when it is on the device whatever becomes of it; used_ns: when backward first needs it, 0: never.
    """

    storage: int
    size: int
    saved_ns: int
    held_ns: int
    used_ns: int
    is_leaf: bool = False


class _SecondRuns:
    """The calls that are run again, and what is kept beside what they save."""

    def __init__(self, base: Base, modules: list[Module]) -> None:
        self.calls = base.calls.outermost(modules)
        self.within = [_call_at(self.calls, ns) for ns in base.saved_ns]
        self.saving = [c for c in self.calls if any(c is w for w in self.within)]
        self.random = default_generator.get_state().storage.nbytes if modules else 0
        self.begin = {
            id(c): min((u for u, w in zip(base.used_ns, self.within) if w is c and u), default=base.end)
            for c in self.saving
        }

    def lives(self, base: Base, kept: set[int]) -> dict[int, list[tuple[int, int, int]]]:
        """Of the states of random numbers, and of what is saved within the calls alone: from the call on it is gone,
        and made again with the second run. kept: storages that are kept.
        """
        lives: dict[int, list[tuple[int, int, int]]] = {
            -1 - i: [(c.begin_ns, self.begin[id(c)], self.random)] for i, c in enumerate(self.saving)
        }
        for k, call in zip(base.kept, self.within):
            storage = k.storage_id
            if call is None or storage in kept or storage in lives or storage not in base.born:
                continue
            first = max(call.end_ns, base.born[storage]) if base.kinds.of(storage) != "output" else base.end
            lives[storage] = [
                (base.born[storage], first, k.storage_bytes),
                *_again(self.begin[id(call)], base.freed.get(storage, base.end), k.storage_bytes),
            ]
        return lives


def kept_elsewhere(base: Base, checkpoint: list[Module], offload: list[Module]) -> Prediction:
    """Some modules are run again in backward from their inputs; what is saved inside others moves to the host, from its
    last save to its first use. Of modules that are both the inputs move. Copies and second runs take their time.
    """
    again, regions = _SecondRuns(base, checkpoint), base.calls.outermost(offload)
    saves = [
        _Save(k.storage_id, k.storage_bytes, ns, ns, used, k.kind == "leaf")
        for k, w, ns, used in zip(base.kept, again.within, base.saved_ns, base.used_ns) if w is None
    ]  # fmt: skip
    for c in again.saving:  # a module's own frame holds its arguments
        saves += [_Save(i, size, c.begin_ns, c.end_ns, again.begin[id(c)]) for i, size in c.inputs.items()]
    moved: dict[int, list[_Save]] = {}
    stay: dict[int, list[_Save]] = {}
    for s in saves:
        moves = s.size >= SMALLEST_RECIPE and not s.is_leaf and base.is_kept(s.storage)
        moves = moves and _call_at(regions, s.saved_ns) is not None
        (moved if moves else stay).setdefault(s.storage, []).append(s)
    lives = again.lives(base, {*moved, *stay})
    for storage, rows in moved.items():
        if storage in stay or storage not in base.born or base.kinds.of(storage) == "output":
            continue
        uses, size = [s.used_ns for s in rows if s.used_ns], rows[0].size
        lives[storage] = [
            (base.born[storage], max(s.held_ns for s in rows), size),
            *(_again(min(uses), base.freed.get(storage, base.end), size) if uses else []),
        ]
    inputs = {i for c in again.saving for i in c.inputs}
    for storage, rows in stay.items():
        if storage in inputs and storage in base.born:
            end = max(*(s.used_ns for s in rows), base.freed.get(storage, base.end), base.born[storage])
            lives[storage] = [(base.born[storage], end, rows[0].size)]
    sizes = [*base.graph({i: rows[0].size for i, rows in stay.items()}).values(), *[again.random] * len(again.saving)]
    host = sum(rows[0].size for rows in moved.values())
    ms = _total(base) + _share(base, again.saving) * base.times.forward_ms + 2 * host * base.times.ms_per_byte()
    concerned = list({id(c.module): c.module for c in (*again.calls, *regions)}.values())
    left_out = [
        f"{c.path or 'the model'}: it keeps nothing for backward"
        for c in again.calls if not any(c is s for s in again.saving)
    ]  # fmt: skip
    return Prediction(sum(sizes), base.peak(lives), ms, concerned, left_out, sizes, host)


def _again(begin: int, end: int, size: int) -> list[tuple[int, int, int]]:
    return [(begin, end, size)] if end > begin else []


def _share(base: Base, calls: list[Call]) -> float:
    """The share of the forward that these calls take."""
    whole = sum(c.end_ns - c.begin_ns for c in base.calls.all if c.depth == 0)
    return sum(c.end_ns - c.begin_ns for c in calls) / whole if whole else 0.0


def _call_at(calls: list[Call], ns: int) -> Call | None:
    return next((c for c in calls if c.covers(ns)), None)


def _total(base: Base) -> float:
    return base.times.forward_ms + base.times.backward_ms


def _lower(base: Base, dtype: str, checkpoint: list[Module]) -> Prediction:
    """Wide tensors become copies of their own, one a tensor however often it is saved; the others stay. Modules that
    are run again keep their inputs alone, lowered too.
    """
    target, again = getattr(tgrad, dtype), _SecondRuns(base, checkpoint)
    stay: dict[int, int] = {}
    copies: dict[tuple[object, ...], int] = {}
    conversions = 0.0
    seen = {k.storage_id: k for k in base.kept}
    saves = [(k, ns) for k, ns, w in zip(base.kept, base.saved_ns, again.within) if w is None]
    for c in again.saving:
        saves += [(seen[i], c.begin_ns) for i in c.inputs if i in seen]
        stay |= {i: size for i, size in c.inputs.items() if i not in seen}
    spans: dict[int, list[tuple[int, int, int]]] = {}
    for k, saved in saves:
        own = k.storage_id in base.kinds.parameters or k.storage_id in base.kinds.buffers
        if not is_lowered(getattr(tgrad, k.dtype), k.kind in ("leaf", "held"), own, target):
            stay[k.storage_id] = k.storage_bytes
            continue
        size = _numel(k) * target.itemsize
        key = (k.storage_id, *k.place)
        if key not in copies:
            copies[key] = size
            conversions += base.times.conversion_ms(_numel(k), k.dtype)
            spans[-len(copies) - len(again.saving)] = [(saved, base.freed.get(k.storage_id, base.end), size)]
    lives = again.lives(base, {*stay, *(k.storage_id for k, _ in saves)}) | spans
    for k, _ in saves:
        i = k.storage_id
        if i in stay or i not in base.born or base.kinds.of(i) == "output":
            continue
        uses = [u for o, u in zip(base.kept, base.used_ns) if o.storage_id == i and u]
        last = max(s for o, s in saves if o.storage_id == i)
        lives[i] = [
            (base.born[i], last, base.bytes[i]),
            *(_again(min(uses), base.freed.get(i, base.end), k.storage_bytes) if uses else []),
        ]
    sizes = [*base.graph(stay).values(), *copies.values(), *[again.random] * len(again.saving)]
    ms = _total(base) + conversions + _share(base, again.saving) * base.times.forward_ms
    return Prediction(sum(sizes), base.peak(lives), ms, [], [], sizes)


def _numel(k: Kept) -> int:
    n = 1
    for d in k.shape:
        n *= d
    return n


def _inplace(base: Base, modules: list[Module]) -> Prediction:
    """The result takes the memory of the argument, where nobody else keeps that for backward."""
    chosen: list[Module] = []
    left_out: list[str] = []
    kept = {k.storage_id: k for k in base.kept}
    merged: dict[int, int] = {}  # storage of a result -> that of the argument it is written into
    for module in modules:
        calls = [c for c in base.calls.all if c.module is module]
        why = "it was not called" if not calls else next(filter(None, (_obstacle(base, c, kept) for c in calls)), "")
        if why:
            left_out.append(f"{(calls[0].path if calls else '') or type(module).__name__}: {why}")
            continue
        chosen.append(module)
        for c in calls:
            merged[next(iter(c.outputs))] = next(iter(c.inputs))
    new: dict[int, int] = {}
    lives: dict[int, list[tuple[int, int, int]]] = {}
    for k in base.kept:
        new[_root(merged, k.storage_id)] = k.storage_bytes
    groups: dict[int, list[int]] = {}
    for result, argument in merged.items():
        groups.setdefault(_root(merged, argument), []).append(result)
    for argument, results in groups.items():
        end = max(base.freed.get(i, base.end) for i in (argument, *results))
        lives[argument] = [(base.born[argument], end, base.bytes[argument])]
        lives |= {i: [] for i in results}
    sizes = list(base.graph(new).values())
    return Prediction(sum(sizes), base.peak(lives), _total(base), chosen, left_out, sizes)


def _root(merged: dict[int, int], storage: int) -> int:
    while storage in merged:
        storage = merged[storage]
    return storage


def _obstacle(base: Base, call: Call, kept: dict[int, Kept]) -> str:
    """Why a module cannot write its result over its argument; "" if it can."""
    if len(call.inputs) != 1 or len(call.outputs) != 1:
        return "it takes or gives more than one tensor"
    (argument, size), (result, other) = next(iter(call.inputs.items())), next(iter(call.outputs.items()))
    if argument == result:
        return "it gives its argument back"
    if argument in kept:
        k = kept[argument]
        return f"its argument is kept for the {k.reason or 'backward'} ({k.op} in {k.module or 'the top level'})"
    if argument not in base.born or base.kinds.of(argument) in ("input", "output"):
        return "its argument is the caller's"
    if size != other:
        return "its argument is a view, or of another size"
    return ""
