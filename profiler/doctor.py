"""Doctor: replays models whose bytes are known, and fails if the ledger, the hand, hooks or MemTracker disagree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import tgrad
from tgrad.profiler import known, machine, memory
from tgrad.profiler.changes import own_storages
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.workloads import Workload
from tgrad.saved_hooks import saved_tensors_hooks
from tgrad.tensor import Tensor

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Replay:
    """Bytes that the graph of one model keeps after its forward, counted in ways that have nothing in common.

    hand_bytes: computed from shapes. graph_bytes: from the nodes of the graph. hooks_bytes: distinct storages that
    saved-tensor hooks saw, without the model's own. ledger_bytes: from the allocator's change, less what the caller
    holds. torch_bytes, mem_tracker_bytes: of the same model in PyTorch, from its hooks and from its MemTracker (less
    what the caller holds); NaN where they cannot be had. why: what differs, and from what; empty if all agree.
    """

    model: str
    hand_bytes: int
    graph_bytes: int
    hooks_bytes: int
    ledger_bytes: int
    torch_bytes: float
    mem_tracker_bytes: float
    how: str
    why: list[str]

    @property
    def ok(self) -> bool:
        """Whether all agree."""
        return not self.why


@dataclass(frozen=True)
class Diagnosis:
    """What `doctor` found: the replays, models that could not be replayed and why, and what the machine can do."""

    replays: list[Replay]
    skipped: list[str]
    machine: list[machine.Fact]

    @property
    def ok(self) -> bool:
        """Whether every replay agrees with itself."""
        return bool(self.replays) and all(r.ok for r in self.replays)

    @property
    def frame(self) -> pd.DataFrame:
        """A row a replay."""
        import pandas as pd

        return pd.DataFrame([asdict(r) for r in self.replays])

    def as_json(self) -> dict[str, Any]:
        """For --json; NaN is null."""
        rows = [{k: None if v != v else v for k, v in asdict(r).items()} for r in self.replays]
        return {
            "ok": self.ok, "replays": rows, "skipped": self.skipped, "machine": [asdict(f) for f in self.machine],
        }  # fmt: skip

    def _repr_html_(self) -> str:
        """A notebook shows the replays and the machine."""
        import pandas as pd

        facts = pd.DataFrame([asdict(f) for f in self.machine])
        return self.frame.to_html(index=False) + facts.to_html(index=False)


def doctor(models: Sequence[str] = (), progress: Callable[[str, int, int], None] | None = None) -> Diagnosis:
    """Replay the known models, or those named, and look at the machine.

    Raises:
        ProfilerError: there is no such model.
    """
    names = list(models) or list(known.ALL)
    for name in names:
        if name not in known.ALL:
            raise ProfilerError(f"doctor: unknown model '{name}'; choose from {', '.join(known.ALL)}")
    replays, skipped = [], []
    for i, name in enumerate(names):
        if progress is not None:
            progress(name, i, len(names))
        tgrad.manual_seed(0)
        try:
            made = known.ALL[name]()
        except ProfilerError as error:  # digits without scikit-learn
            skipped.append(str(error))
            continue
        replays.append(replay(made))
    return Diagnosis(replays, skipped, machine.facts())


def replay(made: known.Known) -> Replay:
    """Count one model in every way."""
    workload = made.workload
    found = memory.measure(workload, "grad", "").figures
    graph = found["graph_bytes"]
    ledger = found["live_after_bytes"] - found["live_before_bytes"] - found["outputs_held_bytes"]
    ledger += found["outputs_saved_bytes"]
    hooks = _hooked(workload)
    why = []
    if graph != made.graph_bytes:
        why.append(f"by hand it is {made.graph_bytes:,} ({made.how}), the graph says {graph:,}")
    if ledger != graph:
        why.append(f"the ledger grew by {ledger:,} for the graph, whose nodes keep {graph:,}")
    if hooks != graph:
        why.append(f"saved-tensor hooks saw {hooks:,}, the graph says {graph:,}")
    if found["allocator_residual_bytes"]:
        why.append(f"{found['allocator_residual_bytes']:,} bytes of the device's allocator are no rounding")
    torch_bytes, tracked = math.nan, math.nan
    if workload.twin is not None:
        from tgrad.profiler import measure

        twin = measure.twin(workload).twins[0]
        torch_bytes = float(twin.graph_bytes)
        tracked = twin.mem_tracker_bytes - twin.outputs_held_bytes + twin.outputs_saved_bytes
        if twin.residual_bytes:  # NaN, too, but without a MemTracker there is nothing to disagree with
            if not math.isnan(twin.residual_bytes):
                why.append(f"PyTorch's hooks saw {torch_bytes:,.0f}, its MemTracker {tracked:,.0f}")
        if twin.parameters_bytes != found["parameters_bytes"]:
            own = found["parameters_bytes"]
            why.append(f"the parameters are {own:,} bytes here and {twin.parameters_bytes:,} in PyTorch")
    return Replay(workload.name, made.graph_bytes, graph, hooks, ledger, torch_bytes, tracked, made.how, why)


def _hooked(workload: Workload) -> int:
    """Distinct memory that saved-tensor hooks see, without the model's own; everything is held until it is counted."""
    own = own_storages(workload.model)
    seen: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        seen.append(t.detach())
        return seen[-1]

    results = []
    with tgrad.enable_grad(), saved_tensors_hooks(pack, lambda t: t):
        for _ in range(workload.held):
            results += memory.run_forward(workload, "grad", memory.make_batch(workload, "grad"))
    sizes = {t.storage.id: t.storage.nbytes for t in seen if t.storage.id not in own}
    return sum(sizes.values())


