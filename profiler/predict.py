"""What a change would give, from the ledger of the model as it is: no code of the model runs here.

Bytes that the graph keeps are exact. The peak is a replay of the allocations with other lifetimes, and the time a share
of what was measured: both leave out what only a run shows, such as temporaries of a second forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

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
    """Medians of the model as it is, in ms. conversion_ms: of one tensor of so many elements, there and back."""

    forward_ms: float
    backward_ms: float
    conversion_ms: Callable[[int, str], float] = lambda numel, dtype: 0.0


@dataclass
class Prediction:
    """What a change is expected to give.

    graph_bytes, peak_bytes: as in a RunRecord. ms: of forward and backward. modules: those that it concerns. left_out:
    the others that it could concern, and why it does not. sizes: bytes of each storage that the graph would keep.
    """

    graph_bytes: int
    peak_bytes: int
    ms: float
    modules: list[Module] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


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

    def kept_in(self, modules: list[Module]) -> dict[str, int]:
        """Bytes that the graph keeps inside the calls of these modules, by their path."""
        found: dict[str, int] = {}
        seen: set[int] = set()
        calls = self.calls.outermost(modules)
        for k, ns in zip(self.kept, self.saved_ns):
            call = _call_at(calls, ns)
            if call is not None and k.storage_id not in seen and self.is_kept(k.storage_id):
                seen.add(k.storage_id)
                found[call.path] = found.get(call.path, 0) + k.storage_bytes
        return found

    def recomputed_in(self, modules: list[Module]) -> dict[str, int]:
        """Bytes of the largest tensor that is recomputed for the calls of these modules, by their path."""
        found: dict[str, int] = {}
        calls = self.calls.outermost(modules)
        for k, ns in zip(self.kept, self.saved_ns):
            call = _call_at(calls, ns) if k.kind == "recomputed" else None
            if call is not None:
                found[call.path] = max(found.get(call.path, 0), k.logical_bytes)
        return found

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


def predict(base: Base, change: Change, modules: list[Module]) -> Prediction:
    """What `change` gives; `modules`: those that match, or could work in place."""
    if change.kind == "checkpoint":
        return checkpointed(base, modules)
    if change.kind == "lower":
        return _lower(base, change.argument)
    if change.kind == "inplace":
        return _inplace(base, modules)
    t = base.times
    sizes = base.graph({k.storage_id: k.storage_bytes for k in base.kept})
    return Prediction(
        base.figures["graph_bytes"], base.figures["peak_bytes"], t.forward_ms + t.backward_ms, [], [],
        list(sizes.values()),
    )  # fmt: skip


def checkpointed(base: Base, modules: list[Module]) -> Prediction:
    """Inside the calls nothing is kept but their inputs and the state of the random numbers; all runs a second time."""
    calls = base.calls.outermost(modules)
    within = [_call_at(calls, ns) for ns in base.saved_ns]
    new = {k.storage_id: k.storage_bytes for k, call in zip(base.kept, within) if call is None}
    saving = [c for c in calls if any(c is w for w in within)]
    random = default_generator.get_state().storage.nbytes
    lives: dict[int, list[tuple[int, int, int]]] = {}
    for i, c in enumerate(saving):
        rows = [k for k, w in enumerate(within) if w is c]
        again = min((base.used_ns[k] for k in rows if base.used_ns[k]), default=base.end)
        for storage, size in c.inputs.items():
            new[storage] = size
            if storage in base.born and storage not in lives:
                end = max(again, base.freed.get(storage, base.end))
                lives[storage] = [(base.born[storage], end, size)]
        lives[-1 - i] = [(c.begin_ns, again, random)]
    for k, call in zip(base.kept, within):
        storage = k.storage_id
        if call is None or storage in new or storage in lives or storage not in base.born:
            continue
        again = min((u for u, w in zip(base.used_ns, within) if w is call and u), default=base.end)
        first = max(call.end_ns, base.born[storage]) if base.kinds.of(storage) != "output" else base.end
        lives[storage] = [
            (base.born[storage], first, k.storage_bytes),
            *_again(again, base.freed.get(storage, base.end), k.storage_bytes),
        ]
    sizes = [*base.graph(new).values(), *[random] * len(saving)]
    return Prediction(
        sum(sizes), base.peak(lives), _total(base) + _share(base, saving) * base.times.forward_ms,
        list({id(c.module): c.module for c in calls}.values()), _nothing_kept(calls, saving), sizes,
    )  # fmt: skip


def offloaded(base: Base, modules: list[Module], ms_per_byte: float) -> Prediction:
    """What is saved inside the calls lies on the host from its last save to its first use; copies take their time."""
    calls = base.calls.outermost(modules)
    inside: dict[int, list[int]] = {}  # storages that move -> their rows
    stay: dict[int, int] = {}
    for i, (k, ns) in enumerate(zip(base.kept, base.saved_ns)):
        small = k.storage_bytes < SMALLEST_RECIPE
        if _call_at(calls, ns) is None or k.kind == "leaf" or small or not base.is_kept(k.storage_id):
            stay[k.storage_id] = k.storage_bytes
        else:
            inside.setdefault(k.storage_id, []).append(i)
    lives: dict[int, list[tuple[int, int, int]]] = {}
    moved = 0
    for storage, rows in inside.items():
        size = base.kept[rows[0]].storage_bytes
        moved += size
        if storage in stay or storage not in base.born or base.kinds.of(storage) == "output":
            continue
        uses = [base.used_ns[i] for i in rows if base.used_ns[i]]
        freed = base.freed.get(storage, base.end)
        lives[storage] = [
            (base.born[storage], max(base.saved_ns[i] for i in rows), size),
            *(_again(min(uses), freed, size) if uses else []),
        ]
    sizes = list(base.graph(stay).values())
    return Prediction(sum(sizes), base.peak(lives), _total(base) + 2 * moved * ms_per_byte, modules, [], sizes)


def _again(begin: int, end: int, size: int) -> list[tuple[int, int, int]]:
    return [(begin, end, size)] if end > begin else []


def _nothing_kept(calls: Iterable[Call], saving: list[Call]) -> list[str]:
    return [
        f"{c.path or 'the model'}: it keeps nothing for backward" for c in calls if not any(c is s for s in saving)
    ]


def _share(base: Base, calls: list[Call]) -> float:
    """The share of the forward that these calls take."""
    whole = sum(c.end_ns - c.begin_ns for c in base.calls.all if c.depth == 0)
    return sum(c.end_ns - c.begin_ns for c in calls) / whole if whole else 0.0


def _call_at(calls: list[Call], ns: int) -> Call | None:
    return next((c for c in calls if c.covers(ns)), None)


def _total(base: Base) -> float:
    return base.times.forward_ms + base.times.backward_ms


def _lower(base: Base, dtype: str) -> Prediction:
    """Wide tensors become copies of their own, one a tensor however often it is saved; the others stay."""
    target = getattr(tgrad, dtype)
    stay: dict[int, int] = {}
    copies: dict[tuple[object, ...], int] = {}
    conversions = 0.0
    lives: dict[int, list[tuple[int, int, int]]] = {}
    for k, saved in zip(base.kept, base.saved_ns):
        own = k.storage_id in base.kinds.parameters or k.storage_id in base.kinds.buffers
        if not is_lowered(getattr(tgrad, k.dtype), k.kind in ("leaf", "held"), own, target):
            stay[k.storage_id] = k.storage_bytes
            continue
        size = _numel(k) * target.itemsize
        key = (k.storage_id, *k.place)
        if key not in copies:
            copies[key] = size
            conversions += base.times.conversion_ms(_numel(k), k.dtype)
            lives[-len(copies)] = [(saved, base.freed.get(k.storage_id, base.end), size)]
    for k in base.kept:
        i = k.storage_id
        if i in stay or i not in base.born or base.kinds.of(i) == "output":
            continue
        uses = [u for o, u in zip(base.kept, base.used_ns) if o.storage_id == i and u]
        last = max(s for o, s in zip(base.kept, base.saved_ns) if o.storage_id == i)
        lives[i] = [
            (base.born[i], last, base.bytes[i]),
            *(_again(min(uses), base.freed.get(i, base.end), k.storage_bytes) if uses else []),
        ]
    sizes = [*base.graph(stay).values(), *copies.values()]
    return Prediction(sum(sizes), base.peak(lives), _total(base) + conversions, [], [], sizes)


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
