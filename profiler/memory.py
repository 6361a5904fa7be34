"""The memory pass: what one workload in one mode keeps, holds and needs at most, from the graph and from the ledger."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import tgrad
from tgrad.autograd.graph import nodes
from tgrad.nn import Module
from tgrad.profiler import allocator
from tgrad.profiler.calls import Calls
from tgrad.profiler.contexts import entered, has_graph
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.kept import Kept, Watch, held_leaves, kept_by
from tgrad.profiler.optimizers import state_of, trainable, values_put_back
from tgrad.profiler.origins import recorded
from tgrad.profiler.records import EventRow, SavedRow
from tgrad.profiler.rows import Numbering, event_rows, saved_rows
from tgrad.profiler.timeline import Timeline
from tgrad.profiler.workloads import Workload, failures, tensors_in
from tgrad.storage import ALIGNMENT, ledger
from tgrad.tensor import Tensor


@dataclass
class Ledger:
    """What the pass met, under the engine's own ids of storages."""

    kept: list[Kept]
    kinds: Kinds
    timeline: Timeline
    watch: Watch


@dataclass
class Memory:
    """figures: the byte columns of a RunRecord by name. saved, events: in order. optimizer: its class; "" without.

    loss: the value of the last; None without a loss. ledger: what the rows were made from.
    """

    figures: dict[str, int]
    saved: list[SavedRow]
    events: list[EventRow]
    optimizer: str = ""
    loss: float | None = None
    ledger: Ledger | None = None


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


def gradients(model: Any) -> dict[int, int]:
    """Bytes of each storage that holds a gradient of a parameter, by id."""
    return {p.grad.storage.id: p.grad.storage.nbytes for p in parameters(model) if p.grad is not None}


def clear_gradients(model: Any) -> None:
    for p in parameters(model):
        p.grad = None


@contextmanager
def training(workload: Workload, mode: str) -> Iterator[Any]:
    """Yields the workload's optimiser, in modes that have a graph; None if there is nothing to step.

    After the block the parameters have their values from before, and the optimiser's state is gone.
    """
    mine = trainable(parameters(workload.model))
    if workload.optimizer is None or not mine or not has_graph(mode):
        yield None
        return
    with failures(workload, mode, "making of the optimiser"):
        optimizer = workload.optimizer(mine)
        if not callable(getattr(optimizer, "step", None)):
            raise ProfilerError(
                f"workload {workload.name}: the optimiser is of type {type(optimizer).__name__}, without a step(); "
                "return one of tgrad.optim"
            )
    with values_put_back(mine):
        yield optimizer


def run_step(workload: Workload, optimizer: Any, mode: str = "grad") -> None:
    """One step of the optimiser."""
    with failures(workload, mode, "optimiser's step"):
        optimizer.step()


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


def measure(
    workload: Workload, mode: str, run_id: str, on_batch: Callable[[], None] = lambda: None,
    calls: Calls | None = None, limit: int | None = None,
) -> Memory:  # fmt: skip
    """Run the workload's loop once in `mode`, with backward and the optimiser's step where there is a graph, and
    account for every byte.

    The caller drops each batch after its forward and keeps the results, as a training or evaluation loop does.

    Args:
        on_batch: called after each batch, for a progress bar.
        calls: notes the calls of modules while the forwards run.
        limit: events that are listed one by one; None: timeline.LIMIT.
    """
    model = workload.model
    with gradients_put_back(model), training(workload, mode) as optimizer:
        _warm_up(workload, mode, optimizer)
        gc.collect()
        timeline, watch = Timeline(limit), Watch()
        before, given_before = ledger.live_bytes, allocator.state()
        results: list[Tensor] = []
        roots: list[Tensor] = []
        batch_ids: set[int] = set()
        with ledger.subscribe(timeline), recorded(), watch.on(), entered(mode, model):
            with nullcontext() if calls is None else calls.on(model):
                for _ in range(workload.held):
                    new, ids = _one(workload, mode)
                    results += new
                    roots += roots_of(new, workload)
                    batch_ids |= ids
                    del new
                    on_batch()
            timeline.phase = "held"
            watch.listening = False
            after, given_after = ledger.live_bytes, allocator.state()
            kept = kept_by(results)
            kept += held_leaves(results, {s.storage_id for s in kept} | {p.storage.id for p in parameters(model)})
            kinds = Kinds(model, batch_ids, results, kept, timeline, state_of(optimizer))
            if has_graph(mode) and roots:
                timeline.phase = "backward"
                run_backward(workload, roots, cotangents(roots), mode)
                kinds.gradients = gradients(model)
                if optimizer is not None:
                    timeline.phase = "step"
                    run_step(workload, optimizer, mode)
                    kinds.states = state_of(optimizer)
            timeline.phase = "after"
            kinds.born = timeline.born  # with those that the backward made
            count = len(nodes(*results))
            loss = float(results[-1].item()) if workload.loss is not None else None
            results.clear()
            roots.clear()
    figures = kinds.figures(kept, before, after)
    other = figures["other_live_bytes"]
    figures |= allocator.figures(given_before, given_after, kinds.stays())
    figures |= {
        "nodes": count,
        "host_bytes": sum(k.host_bytes for k in kept),
        "peak_forward_bytes": timeline.peak(before, ("forward", "held")) - other,
        "peak_bytes": timeline.peak(before, ("forward", "held", "backward", "step", "after")) - other,
    }
    number, head = Numbering(), (run_id, workload.name, mode)
    start = timeline.start
    freed = {i: t for t, action, i, *_ in timeline.events if action == "free"}
    times = [tuple(v - start if v else -1 for v in (
        watch.saved.get(k.saved_id, 0), watch.used.get(k.saved_id, 0), freed.get(k.storage_id, 0)
    )) for k in kept]  # fmt: skip
    rows = saved_rows(kept, times, kinds.of, head, number)
    events = event_rows(timeline, kinds.of, head, number)
    return Memory(
        figures, rows, events, type(optimizer).__name__ if optimizer is not None else "", loss,
        Ledger(kept, kinds, timeline, watch),
    )  # fmt: skip


def _one(workload: Workload, mode: str) -> tuple[list[Tensor], set[int]]:
    """(results, storage ids of the batch) of one forward; the batch itself is dropped at the end."""
    batch = make_batch(workload, mode)
    ids = {t.storage.id for t in tensors_in(list(batch))}
    return run_forward(workload, mode, batch), ids


def _warm_up(workload: Workload, mode: str, optimizer: Any) -> None:
    """Plans, caches and lazily made state come into being here, not in what is measured."""
    with entered(mode, workload.model):
        results, _ = _one(workload, mode)
        roots = roots_of(results, workload)
        if has_graph(mode) and roots:
            run_backward(workload, roots, cotangents(roots), mode)
            if optimizer is not None:
                run_step(workload, optimizer, mode)
    clear_gradients(workload.model)


class Kinds:
    """What each storage is live for: of parameter, optimizer, output, input and intermediate, the first that it is."""

    def __init__(
        self, model: Any, batch_ids: set[int], results: list[Tensor], kept: list[Kept], timeline: Timeline,
        states: dict[int, int],
    ) -> None:  # fmt: skip
        self.parameters = {p.storage.id: p.storage.nbytes for p in parameters(model)}
        self.buffers = {b.storage.id: b.storage.nbytes for b in buffers(model)}
        self.outputs = {t.storage.id: t.storage.nbytes for t in results}
        self.inputs = batch_ids
        self.kept = {s.storage_id: s.storage_bytes for s in kept}
        self.born = timeline.born
        self.states = self.states_before = states
        self.gradients: dict[int, int] = {}

    def of(self, i: int) -> str:
        """The category of storage `i`, one of records.CATEGORIES."""
        if i in self.parameters or i in self.buffers:
            return "parameter"
        if i in self.states:
            return "optimizer"
        if i not in self.born:
            return "constant" if i in self.kept else "other"
        if i in self.outputs:
            return "output"
        if i in self.inputs:
            return "input"
        if i in self.kept:
            return "intermediate"
        return "gradient" if i in self.gradients else "temporary"

    def stays(self) -> list[int]:
        """Bytes of each storage that the forward made and that the graph or the caller keeps."""
        mine = {i: n for i, n in self.kept.items() if self.of(i) in ("intermediate", "input", "output")}
        mine |= {i: n for i, n in self.outputs.items() if self.of(i) == "output"}
        return list(mine.values())

    def figures(self, kept: list[Kept], before: int, after: int) -> dict[str, int]:
        """The byte columns of a RunRecord, but for the peaks."""
        by_kind = {
            kind: {i: n for i, n in self.kept.items() if self.of(i) == kind}
            for kind in ("intermediate", "input", "output")
        }
        held = sum(n for i, n in self.outputs.items() if self.of(i) == "output")
        total = {kind: sum(sizes.values()) for kind, sizes in by_kind.items()}
        own = self.parameters | self.buffers | self.states_before
        ids = set().union(*by_kind.values())
        return {
            "parameters_bytes": sum(self.parameters.values()),
            "buffers_bytes": sum(n for i, n in self.buffers.items() if i not in self.parameters),
            "gradients_bytes": sum(self.gradients.values()),
            "optimizer_bytes": sum(self.states.values()),
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
