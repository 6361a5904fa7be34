"""The memory pass: what one workload in one mode keeps, holds and needs at most, from the graph and from the ledger."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tgrad
from tgrad.autograd.graph import nodes
from tgrad.nn import Module
from tgrad.profiler.contexts import entered, has_graph
from tgrad.profiler.errors import ProfilerError, one_line
from tgrad.profiler.kept import Kept, Watch, held_leaves, kept_by
from tgrad.profiler.origins import recorded, shown
from tgrad.profiler.records import EventRow, SavedRow
from tgrad.profiler.workloads import Workload, tensors_in, where
from tgrad.storage import ALIGNMENT, Allocation, OutOfMemoryError, ledger
from tgrad.tensor import Tensor


@dataclass
class Memory:
    """figures: the byte columns of a RunRecord by name. saved, events: in order."""

    figures: dict[str, int]
    saved: list[SavedRow]
    events: list[EventRow]


class Timeline:
    """Listens to the ledger: every allocation and free with its time, and the phase it fell in."""

    def __init__(self) -> None:
        self.events: list[tuple[int, str, int, int, int, str]] = []
        self.phase = "forward"
        self.born: dict[int, int] = {}  # bytes of each storage allocated since, by id

    def allocated(self, storage: Allocation) -> None:
        self.born[storage.id] = storage.nbytes
        self._note("alloc", storage)

    def freed(self, storage: Allocation) -> None:
        self._note("free", storage)

    def _note(self, action: str, storage: Allocation) -> None:
        at = time.perf_counter_ns()
        self.events.append((at, action, storage.id, storage.nbytes, ledger.live_bytes, self.phase))

    def peak(self, before: int, phases: Iterable[str]) -> int:
        """The most bytes live in these phases, `before` included."""
        wanted = set(phases)
        return max([before, *(live for _, _, _, _, live, phase in self.events if phase in wanted)])


def parameters(model: Any) -> list[Tensor]:
    """The parameters of a module; of another callable, none."""
    return [p for _, p in model.named_parameters()] if isinstance(model, Module) else []


def buffers(model: Any) -> list[Tensor]:
    """The buffers of a module; of another callable, none."""
    return [b for _, b in model.named_buffers()] if isinstance(model, Module) else []


@contextmanager
def gradients_put_back(model: Any) -> Iterator[None]:
    """Inside the block parameters have no gradients; after it, those they had."""
    had = [(p, p.grad) for p in parameters(model)]
    clear_gradients(model)
    try:
        yield
    finally:
        for p, g in had:
            p.grad = g


def clear_gradients(model: Any) -> None:
    for p in parameters(model):
        p.grad = None


@contextmanager
def failures(workload: Workload, mode: str, phase: str) -> Iterator[None]:
    """Turn an error of a user's model into one line. Out of memory passes as it is."""
    try:
        yield
    except (ProfilerError, MemoryError, OutOfMemoryError):
        raise
    except Exception as error:
        raise ProfilerError(
            f"workload {workload.name}: the {phase} in mode {mode} failed: {one_line(error)}{where(error)}"
        ) from error


def roots_of(results: list[Tensor], workload: Workload) -> list[Tensor]:
    """Where backward starts: the loss, or every output that requires grad."""
    return [t for t in (results[-1:] if workload.loss is not None else results) if t.requires_grad]


def cotangents(roots: list[Tensor]) -> list[Tensor | None]:
    """A gradient for each root: 1 for scalars; one random tensor for all others of a shape and dtype."""
    made: dict[Any, Tensor] = {}
    found: list[Tensor | None] = []
    for t in roots:
        if t.numel() == 1:
            found.append(None)
            continue
        key = tuple(t.shape), t.dtype
        if key not in made:
            made[key] = tgrad.randn(*t.shape, dtype=t.dtype)
        found.append(made[key])
    return found


def run_forward(workload: Workload, mode: str, batch: tuple[tuple, tuple]) -> list[Tensor]:
    """The results of one batch.

    Raises:
        ProfilerError: the model or the loss failed, or gave no tensor.
    """
    with failures(workload, mode, "forward"):
        results = workload.forward(*batch)
    if not results or not all(isinstance(t, Tensor) for t in results):
        got = ", ".join(sorted({type(t).__name__ for t in results})) or "nothing"
        raise ProfilerError(f"workload {workload.name}: the model and loss gave {got}; expected tgrad tensors")
    if workload.loss is not None and results[-1].numel() != 1:
        raise ProfilerError(
            f"workload {workload.name}: the loss has shape {tuple(results[-1].shape)}; expected a single number: "
            "reduce it, with .mean() for instance"
        )
    return results


def make_batch(workload: Workload, mode: str) -> tuple[tuple, tuple]:
    """A fresh (inputs, targets)."""
    with failures(workload, mode, "making of a batch"):
        return workload.batch()


def run_backward(workload: Workload, roots: list[Tensor], gradients: list[Tensor | None], mode: str = "grad") -> None:
    """Backward from `roots`."""
    with failures(workload, mode, "backward"):
        tgrad.autograd.backward(roots, gradients)


def measure(workload: Workload, mode: str, run_id: str, on_batch: Callable[[], None] = lambda: None) -> Memory:
    """Run the workload's loop once in `mode`, with its backward in mode grad, and account for every byte.

    The caller drops each batch after its forward and keeps the results, as a training or evaluation loop does.

    Args:
        on_batch: called after each batch, for a progress bar.
    """
    model = workload.model
    with gradients_put_back(model):
        _warm_up(workload, mode)
        gc.collect()
        timeline, watch = Timeline(), Watch()
        before = ledger.live_bytes
        results: list[Tensor] = []
        roots: list[Tensor] = []
        batch_ids: set[int] = set()
        with ledger.subscribe(timeline), recorded(), watch.on(), entered(mode, model):
            for _ in range(workload.held):
                new, ids = _one(workload, mode)
                results += new
                roots += roots_of(new, workload)
                batch_ids |= ids
                del new
                on_batch()
            timeline.phase = "held"
            watch.listening = False
            after = ledger.live_bytes
            kept = kept_by(results)
            kept += held_leaves(results, {s.storage_id for s in kept} | {p.storage.id for p in parameters(model)})
            kinds = Kinds(model, batch_ids, results, kept, timeline)
            if has_graph(mode) and roots:
                timeline.phase = "backward"
                run_backward(workload, roots, cotangents(roots), mode)
                kinds.gradients = {p.grad.storage.id for p in parameters(model) if p.grad is not None}
            timeline.phase = "after"
            output_ids = {t.storage.id for t in results}
            count = len(nodes(*results))
            results.clear()
            roots.clear()
    figures = kinds.figures(kept, output_ids, before, after)
    other = figures["other_live_bytes"]
    figures |= {
        "nodes": count,
        "peak_forward_bytes": timeline.peak(before, ("forward", "held")) - other,
        "peak_bytes": timeline.peak(before, ("forward", "held", "backward", "after")) - other,
    }
    number = Numbering()
    start = timeline.events[0][0] if timeline.events else 0
    freed = {i: t for t, action, i, *_ in timeline.events if action == "free"}
    times = [tuple(v - start if v else -1 for v in (
        watch.saved.get(k.saved_id, 0), watch.used.get(k.saved_id, 0), freed.get(k.storage_id, 0)
    )) for k in kept]  # fmt: skip
    rows = _saved_rows(kept, times, kinds, (run_id, workload.name, mode), number)
    events = [
        EventRow(run_id, workload.name, mode, t - start, action, number(i), size, live, phase, kinds.of(i))
        for t, action, i, size, live, phase in timeline.events
    ]
    return Memory(figures, rows, events)


def _one(workload: Workload, mode: str) -> tuple[list[Tensor], set[int]]:
    """(results, storage ids of the batch) of one forward; the batch itself is dropped at the end."""
    batch = make_batch(workload, mode)
    ids = {t.storage.id for t in tensors_in(list(batch))}
    return run_forward(workload, mode, batch), ids


def _warm_up(workload: Workload, mode: str) -> None:
    """Plans, caches and lazily made state come into being here, not in what is measured."""
    with entered(mode, workload.model):
        results, _ = _one(workload, mode)
        roots = roots_of(results, workload)
        if has_graph(mode) and roots:
            run_backward(workload, roots, cotangents(roots), mode)
    clear_gradients(workload.model)


class Kinds:
    """What each storage is live for: of parameter, output, input and intermediate, the first that it is."""

    def __init__(
        self, model: Any, batch_ids: set[int], results: list[Tensor], kept: list[Kept], timeline: Timeline
    ) -> None:
        self.parameters = {p.storage.id: p.storage.nbytes for p in parameters(model)}
        self.buffers = {b.storage.id: b.storage.nbytes for b in buffers(model)}
        self.outputs = {t.storage.id: t.storage.nbytes for t in results}
        self.inputs = batch_ids
        self.kept = {s.storage_id: s.storage_bytes for s in kept}
        self.born = timeline.born
        self.gradients: set[int] = set()

    def of(self, i: int) -> str:
        """The category of storage `i`, one of records.CATEGORIES."""
        if i in self.parameters or i in self.buffers:
            return "parameter"
        if i not in self.born:
            return "constant" if i in self.kept else "other"
        if i in self.outputs:
            return "output"
        if i in self.inputs:
            return "input"
        if i in self.kept:
            return "intermediate"
        return "gradient" if i in self.gradients else "temporary"

    def figures(self, kept: list[Kept], output_ids: set[int], before: int, after: int) -> dict[str, int]:
        """The byte columns of a RunRecord, but for the peaks."""
        by_kind = {
            kind: {i: n for i, n in self.kept.items() if self.of(i) == kind}
            for kind in ("intermediate", "input", "output")
        }
        held = sum(n for i, n in self.outputs.items() if self.of(i) == "output")
        total = {kind: sum(sizes.values()) for kind, sizes in by_kind.items()}
        own = self.parameters | self.buffers
        ids = set().union(*by_kind.values())
        return {
            "parameters_bytes": sum(self.parameters.values()),
            "buffers_bytes": sum(n for i, n in self.buffers.items() if i not in self.parameters),
            "intermediates_bytes": total["intermediate"],
            "inputs_held_bytes": total["input"],
            "outputs_held_bytes": held,
            "outputs_saved_bytes": total["output"],
            "graph_bytes": sum(total.values()),
            "graph_logical_bytes": sum(s.logical_bytes for s in kept if s.storage_id in ids),
            "padding_bytes": sum(-n % ALIGNMENT for sizes in by_kind.values() for n in sizes.values()),
            "other_live_bytes": before - sum(own.values()),
            "live_before_bytes": before,
            "live_after_bytes": after,
            "residual_bytes": after - before - total["intermediate"] - total["input"] - held,
        }


class Numbering:
    """Small numbers for storages in the order they are met, so that two runs of one workload read alike."""

    def __init__(self) -> None:
        self.known: dict[int, int] = {}

    def __call__(self, i: int) -> int:
        return self.known.setdefault(i, len(self.known) + 1)


def _saved_rows(
    kept: list[Kept], times: list[tuple[int, ...]], kinds: Kinds, head: tuple[str, str, str], number: Numbering
) -> list[SavedRow]:
    charged: set[int] = set()
    rows = []
    for seq, (s, when) in enumerate(zip(kept, times)):
        shape = "x".join(map(str, s.shape)) or "()"
        category, file, size = kinds.of(s.storage_id), shown(s.file), s.storage_bytes
        rows.append(
            SavedRow(
                *head, seq, s.op, s.argument, category, s.module, file, s.line, s.function, shape, s.dtype,
                number(s.storage_id), s.is_leaf, s.logical_bytes, size, 0 if s.storage_id in charged else size,
                s.reason, s.kind, *when,
            )
        )  # fmt: skip
        charged.add(s.storage_id)
    return rows
