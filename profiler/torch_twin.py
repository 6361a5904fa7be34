"""The same accounting for PyTorch: what its graph keeps for the same model, in the same columns.

Saved-tensor hooks see what is saved; storages count once; the model's own and the batch are told apart from the rest.
"""

from __future__ import annotations

import gc
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from tgrad.profiler.origins import inside, shown
from tgrad.profiler.records import SavedRow


@dataclass(frozen=True)
class TwinRecord:
    """Bytes kept by PyTorch's graph after a forward, in the columns of RunRecord of the same names.

    Storages count once, by their size; parameters and buffers of the model are left out.
    mem_tracker_bytes, mem_tracker_peak_bytes: all that PyTorch's MemTracker saw live after the forward, and at most
    until the end of the backward, without the model; NaN where it cannot run. residual_bytes: what it saw, less what
    the hooks and the results account for. mem_tracker_kinds: its bytes by what it takes them for, itemised.
    """

    intermediates_bytes: int
    inputs_held_bytes: int
    outputs_held_bytes: int
    outputs_saved_bytes: int
    graph_bytes: int
    graph_logical_bytes: int
    parameters_bytes: int
    workload: str = ""
    torch_version: str = torch.__version__
    mem_tracker_bytes: float = math.nan
    mem_tracker_peak_bytes: float = math.nan
    residual_bytes: float = math.nan
    mem_tracker_kinds: str = ""


@dataclass(frozen=True)
class Twin:
    """A model in PyTorch, with batches and a loss as a Workload has them."""

    model: torch.nn.Module
    batch: Callable[[], tuple[tuple[Any, ...], tuple[Any, ...]]]
    loss: Callable[..., torch.Tensor] | None = None
    held: int = 1


@dataclass
class _Kept:
    """One saved tensor: what the hook was handed, and where; its node's names are filled in later."""

    tensor: torch.Tensor
    module: str
    file: str
    line: int
    function: str
    op: str = ""
    argument: str = ""


@dataclass
class _Seen:
    kept: list[_Kept] = field(default_factory=list)
    results: list[torch.Tensor] = field(default_factory=list)
    inputs: list[torch.Tensor] = field(default_factory=list)


def measure(
    model: torch.nn.Module,
    batch: Callable[[], tuple[tuple[Any, ...], tuple[Any, ...]]],
    loss: Callable[..., torch.Tensor] | None = None,
    held: int = 1,
) -> TwinRecord:
    """Run `held` forwards, keep their results, and count what saved-tensor hooks saw.

    Args:
        model: on the device to measure on.
        batch: makes a fresh (inputs, targets), tuples of tensors.
        loss: loss(output, *targets); its value is one of the results.
        held: how many batches.
    """
    return profile(Twin(model, batch, loss, held), "", "")[0]


def profile(twin: Twin, workload: str, run_id: str) -> tuple[TwinRecord, list[SavedRow]]:
    """What PyTorch keeps for `twin`, as figures and tensor by tensor."""
    seen = _run(twin)
    own = _sizes([*twin.model.parameters(), *twin.model.buffers()])
    batch_ids, result_sizes = _sizes(seen.inputs), _sizes(seen.results)
    found: dict[str, dict[int, int]] = {"intermediate": {}, "input": {}, "output": {}}
    rows: list[SavedRow] = []
    numbers: dict[int, int] = {}
    logical = 0
    for k in seen.kept:
        t = k.tensor
        (i, nbytes), = _sizes([t]).items()  # fmt: skip
        kind = "parameter" if i in own else "output" if i in result_sizes else "input" if i in batch_ids else ""
        kind = kind or "intermediate"
        first = i not in numbers
        number = numbers.setdefault(i, len(numbers) + 1)
        size = t.numel() * t.element_size()
        rows.append(
            SavedRow(
                run_id, workload, "torch", len(rows), k.op, k.argument, kind, k.module, shown(k.file), k.line,
                k.function, "x".join(map(str, t.shape)) or "()", str(t.dtype).removeprefix("torch."), number,
                kind == "parameter", size, nbytes, nbytes if first else 0,
            )
        )  # fmt: skip
        if kind != "parameter":
            found[kind][i] = nbytes
            logical += size
    total = {kind: sum(sizes.values()) for kind, sizes in found.items()}
    held = sum(n for i, n in result_sizes.items() if i not in own)
    seen = _Seen()  # frees what the hooks held
    gc.collect()
    live, peak, kinds = tracked(twin)
    record = TwinRecord(
        intermediates_bytes=total["intermediate"],
        inputs_held_bytes=total["input"],
        outputs_held_bytes=held,
        outputs_saved_bytes=total["output"],
        graph_bytes=sum(total.values()),
        graph_logical_bytes=logical,
        parameters_bytes=sum(_sizes(twin.model.parameters()).values()),
        workload=workload,
        mem_tracker_bytes=live,
        mem_tracker_peak_bytes=peak,
        residual_bytes=live - total["intermediate"] - total["input"] - held,
        mem_tracker_kinds=kinds,
    )
    return record, rows


def _run(twin: Twin) -> _Seen:
    seen = _Seen()

    def pack(t: torch.Tensor) -> _Kept:
        # The storages are held until the end, so that no address recurs.
        k = _Kept(t.detach(), path[-1] if path else "", *_caller())
        seen.kept.append(k)
        return k

    def unpack(k: _Kept) -> torch.Tensor:
        asked.append(k)
        return k.tensor

    asked: list[_Kept] = []
    with _paths(twin.model) as path, torch.autograd.graph.saved_tensors_hooks(pack, unpack), torch.enable_grad():
        for _ in range(twin.held):
            results, batch = _forward(twin)
            seen.results += results
            seen.inputs += batch
    _name(seen.results, asked)
    return seen


def _forward(twin: Twin) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    arguments, targets = twin.batch()
    output = twin.model(*arguments)
    results = _tensors(output)
    if twin.loss is not None:
        results.append(twin.loss(output, *targets))
    return results, _tensors((arguments, targets))


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, (tuple, list)) else []


@contextmanager
def _paths(model: torch.nn.Module) -> Iterator[list[str]]:
    """Yields a stack of the paths of the modules that run."""
    stack: list[str] = []
    handles = []

    def leave(*_: Any) -> None:
        stack.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda m, a, name=name: stack.append(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield stack
    finally:
        for handle in handles:
            handle.remove()


def _caller() -> tuple[str, int, str]:
    """The user's line that runs: outside of PyTorch and of the profiler."""
    frame = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if not inside(file) and f"{'torch'}/" not in file.replace("\\", "/").rpartition("site-packages/")[2]:
            return file, frame.f_lineno, frame.f_code.co_name
        frame = frame.f_back  # type: ignore[assignment]
    return "", 0, ""


def _name(results: list[torch.Tensor], asked: list[_Kept]) -> None:
    """Give each saved tensor its node's op and its argument's name: to read an attribute of a node is to unpack it."""
    todo = [t.grad_fn for t in results if t.grad_fn is not None]
    seen = set(todo)
    while todo:
        node = todo.pop()
        op = node.name().removesuffix("0").removesuffix("Backward")
        for attribute in dir(node):
            if not attribute.startswith("_saved_") and attribute != "saved_tensors":
                continue
            asked.clear()
            try:
                getattr(node, attribute)
            except (RuntimeError, AttributeError):  # of a node without such a value
                continue
            for k in asked:
                k.op, k.argument = k.op or op, k.argument or attribute.removeprefix("_saved_")
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                todo.append(following)


def tracked(twin: Twin) -> tuple[float, float, str]:
    """Bytes that MemTracker sees live after the forwards, and at most with their backward, without the model; and what
    for.

    The bytes are NaN where this PyTorch has no MemTracker, or it fails.
    """
    try:
        from torch.distributed._tools.mem_tracker import MemTracker

        tracker = MemTracker()
        tracker.track_external(twin.model)
        had = [(p, p.grad) for p in twin.model.parameters()]
        for p, _ in had:
            p.grad = None
        try:
            own = sum(_sizes([*twin.model.parameters(), *twin.model.buffers()]).values())
            with warnings.catch_warnings(), tracker, torch.enable_grad():
                warnings.simplefilter("ignore")  # of modules that are gone by the time of their backward
                results: list[torch.Tensor] = []
                for i in range(twin.held):
                    if i:  # it follows one call of a module
                        tracker.reset_mod_stats()
                    results += _forward(twin)[0]
                gc.collect()
                current = tracker.get_tracker_snapshot("current")
                live, kinds = _total(current), _kinds(current)
                roots = results[-1:] if twin.loss is not None else results
                roots = [t for t in roots if t.requires_grad]
                torch.autograd.backward(roots, [torch.ones_like(t) for t in roots])
            return live - own, _total(tracker.get_tracker_snapshot("peak")) - own, kinds
        finally:
            for p, g in had:
                p.grad = g
    except Exception:  # a private tool of PyTorch: what it may raise is not known, and the hooks do without it
        return math.nan, math.nan, ""


def no_mem_tracker() -> str:
    """Why MemTracker cannot run; "" if it can."""
    live, *_ = tracked(Twin(torch.nn.Linear(2, 2), lambda: ((torch.randn(1, 2),), ())))
    return f"PyTorch {torch.__version__} has none that works here: mem_tracker_bytes is NaN" if math.isnan(live) else ""


def _kinds(snapshot: dict[Any, dict[Any, int]]) -> str:
    """What MemTracker takes live bytes for: "Activation 128, Temp 64"; its names."""
    sums: dict[str, int] = {}
    for kinds in snapshot.values():
        for kind, n in kinds.items():
            name = str(getattr(kind, "value", kind))
            if n and name != "Total":
                sums[name] = sums.get(name, 0) + n
    return ", ".join(f"{name} {n:,}" for name, n in sums.items())


def _total(snapshot: dict[Any, dict[Any, int]]) -> int:
    return sum(n for kinds in snapshot.values() for kind, n in kinds.items() if str(kind) == "Total")


def _sizes(tensors: Any) -> dict[int, int]:
    """Address of each distinct storage, and its bytes. An empty one has no address and no bytes."""
    found = {}
    for t in tensors:
        storage = t.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return found
