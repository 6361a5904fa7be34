"""What each policy of activation memory keeps, and the peak of a step, beside PyTorch with and without checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import tgrad
from tgrad.kernels import launch
from tgrad.profiler import latency, memory, output
from tgrad.profiler.contexts import entered
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.optimizers import values_put_back
from tgrad.profiler.policies_text import CHECKPOINTED, FUSED, TORCH
from tgrad.profiler.policy_models import BLOCKS, Block, Sizes, shape, workload
from tgrad.profiler.records import POLICIES
from tgrad.profiler.workloads import Workload

if TYPE_CHECKING:
    import pandas as pd

DTYPES = ("float32", "bfloat16")
STATISTICS = ("mean", "rstd", "logsumexp", "random state")  # saved under these names: a number a row or channel, seeds
REPEATS = 7  # timed steps of a policy, on a device


@dataclass(frozen=True)
class Kept:
    """One block in one engine under one policy: a row of table.csv.

    saved_bytes: storages that the graph keeps beside parameters and the batch, without statistics_bytes: statistics of
    normalisations and softmax, and states of random numbers. peak_bytes: the most live at any time of a forward and its
    backward, without parameters and buffers; NaN: not known. saved_ratio, peak_ratio: to PyTorch's. saved_goal,
    peak_goal: what they are to be at most; NaN: nothing. recomputed_kernels: run again in backward. step_ms: of a
    forward and its backward, the median; NaN in the interpreter. same_bits: whether results and gradients are those of
    "keep".
    """

    block: str
    dtype: str
    engine: str
    policy: str
    saved_bytes: int
    statistics_bytes: int
    peak_bytes: float
    saved_ratio: float
    peak_ratio: float
    saved_goal: float = math.nan
    peak_goal: float = math.nan
    recomputed_kernels: int = 0
    step_ms: float = math.nan
    same_bits: bool = True

    @property
    def missed(self) -> list[str]:
        """The goals that it does not reach."""
        pairs = (("saved", self.saved_ratio, self.saved_goal), ("peak", self.peak_ratio, self.peak_goal))
        return [name for name, ratio, goal in pairs if not math.isnan(goal) and not ratio <= goal]


@dataclass(frozen=True)
class Policies:
    """All rows, and the sizes that they were measured with."""

    rows: list[Kept]
    sizes: Sizes

    @property
    def frame(self) -> pd.DataFrame:
        """A row a block, dtype, engine and policy."""
        import pandas as pd

        return pd.DataFrame([asdict(r) for r in self.rows])

    @property
    def ok(self) -> bool:
        """Whether results and gradients are the same bits under every policy."""
        return all(r.same_bits for r in self.rows)

    def save(self, out: str | os.PathLike, force: bool = False) -> Path:
        """Write the folder `out`: summary.md, table.csv, and the plot as PNG and SVG.

        Raises:
            ProfilerError: the folder cannot be written, or may not be replaced.
        """
        from tgrad.profiler import plots, policies_plot, policies_text

        with output.folder(out, force) as folder:
            self.frame.to_csv(folder / "table.csv", index=False)
            (folder / "summary.md").write_text(policies_text.page(self), encoding="utf-8")
            figure = policies_plot.draw(self)
            (folder / "plot.png").write_bytes(plots.png(figure))
            text = plots.svg(figure, "Activation memory kept for backward, as a share of PyTorch's")
            (folder / "plot.svg").write_text(plots.for_file(text), encoding="utf-8")
        return Path(out).expanduser().resolve()


def policies(
    blocks: Sequence[str] = (),
    *,
    rows: int = Sizes.rows,
    width: int = Sizes.width,
    depth: int = Sizes.depth,
    dtypes: Sequence[str] = DTYPES,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Policies:
    """Run blocks under each policy of `tgrad.activation_memory`, and in PyTorch on the CPU.

    Args:
        blocks: names, or parts of names, of `policy_models.BLOCKS`; none: all.
        rows: of flat batches, and tokens of those that are sequences.
        width: D; hidden layers have four times as much, and attention four heads.
        depth: blocks of a stack.

    Raises:
        ProfilerError: no such block, or sizes that cannot be.
    """
    _check(rows, width, depth, dtypes)
    chosen = [b for b in BLOCKS if not blocks or any(name.lower() in b.name.lower() for name in blocks)]
    if not chosen:
        raise ProfilerError(f"no block is called {', '.join(blocks)}; there are {', '.join(b.name for b in BLOCKS)}")
    sizes, found = Sizes(rows, width, depth), []
    for i, block in enumerate(chosen):
        for k, dtype in enumerate(dtypes):
            if progress is not None:
                progress(f"{block.name}, {dtype}", i * len(dtypes) + k, len(chosen) * len(dtypes))
            found += compare(block, sizes, dtype, seed)
    return Policies(found, sizes)


def _check(rows: int, width: int, depth: int, dtypes: Sequence[str]) -> None:
    if min(rows, width, depth) < 1:
        raise ProfilerError(f"rows, width and depth are whole numbers of at least 1, got {rows}, {width} and {depth}")
    if width % 8:
        raise ProfilerError(f"--width: expected a multiple of 8, for heads and lengths, got {width}")
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ProfilerError(f"--dtype: unknown dtype '{dtype}'; choose from {', '.join(DTYPES)}")


def compare(block: Block, sizes: Sizes, dtype: str, seed: int = 0) -> list[Kept]:
    """The rows of one block: PyTorch, PyTorch + checkpoint, then tgrad under each policy."""
    from tgrad.profiler import torch_blocks

    size = shape(block, sizes)
    known = [torch_blocks.kept(block.name, size, dtype, sizes.depth, again) for again in (False, True)]
    saved, statistics, peak = known[0]
    found = [
        Kept(block.name, dtype, "torch", name, *k, k[0] / saved, k[2] / peak)
        for name, k in zip((TORCH, CHECKPOINTED), known)
    ]
    if block.length:
        count = len([m for m in block.make(sizes, tgrad.float32).modules() if hasattr(m, "self_attn")])
        less, more = torch_blocks.fused_attention_change(size, getattr(tgrad, dtype).itemsize)
        fused = saved + count * less
        found.append(Kept(block.name, dtype, "torch", FUSED, fused, statistics + count * more, math.nan, fused / saved,
                          math.nan))  # fmt: skip
    tgrad.manual_seed(seed)
    made = workload(block, sizes, dtype)
    bits = {policy: _results(made, policy, seed) for policy in POLICIES}
    times = _times(made, seed)
    for policy in POLICIES:
        tgrad.manual_seed(seed)
        ran = memory.measure(made, policy, "")
        mine = [r for r in ran.saved if r.category in ("intermediate", "output")]
        apart = sum(r.charged_bytes for r in mine if r.argument in STATISTICS)
        kept = sum(r.charged_bytes for r in mine) - apart
        most = _peak(ran.figures)
        lean = (block.lean or {}).get(dtype) if policy == "lean" else block.leanest if policy == "leanest" else None
        least = block.peak if policy == "leanest" else None
        found.append(Kept(
            block.name, dtype, "tgrad", policy, kept, apart, most, kept / saved, most / peak,
            math.nan if lean is None else lean, math.nan if least is None else least,
            latency.counts(made, policy)["recomputed_kernels"], times[policy],
            bits[policy] == bits["keep"],
        ))  # fmt: skip
    return found


def _peak(figures: dict[str, int]) -> int:
    return figures["peak_bytes"] - figures["parameters_bytes"] - figures["buffers_bytes"]


def _results(made: Workload, policy: str, seed: int) -> list[bytes]:
    """The bits of the results, of the gradients of all parameters, and of the buffers."""
    tgrad.manual_seed(seed)
    buffers = memory.buffers(made.model)
    with memory.gradients_put_back(made.model), values_put_back(buffers):
        batch = memory.make_batch(made, policy)
        with entered(policy, made.model):
            results = memory.run_forward(made, policy, batch)
            memory.run_backward(made, results, memory.cotangents(results), policy)
        tensors = [*results, *[p.grad for p in memory.parameters(made.model) if p.grad is not None], *buffers]
        return [t.detach().double().cpu().numpy().tobytes() for t in tensors]


def _times(made: Workload, seed: int) -> dict[str, float]:
    """Medians of a forward and its backward, in ms; the policies take turns. NaN in the interpreter."""
    if launch.INTERPRET:
        return dict.fromkeys(POLICIES, math.nan)
    tgrad.manual_seed(seed)
    taken: dict[str, list[float]] = {p: [] for p in POLICIES}
    with memory.gradients_put_back(made.model):
        for repeat in range(-2, REPEATS):
            for policy in POLICIES:
                ms = sum(t.wall_ms for _, t in latency.step(made, policy))
                if repeat >= 0:
                    taken[policy].append(ms)
    return {policy: median(ms) for policy, ms in taken.items()}


