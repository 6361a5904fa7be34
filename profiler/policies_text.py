"""The comparison of policies in tables and words: summary.md and what the command prints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tgrad.profiler.records import POLICIES
from tgrad.profiler.units import show_bytes

if TYPE_CHECKING:
    from tgrad.profiler.policies import Kept, Policies

TORCH, CHECKPOINTED, FUSED = "PyTorch", "PyTorch + checkpoint", "PyTorch, fused attention"
HEADINGS = (TORCH, "keep", "lean", "leanest", CHECKPOINTED, FUSED)
ORDER = (TORCH, *POLICIES, CHECKPOINTED, FUSED)


def rows(found: Policies, dtype: str) -> list[tuple[str, list[str]]]:
    """(block, a cell under each of HEADINGS): bytes kept, and their ratio to PyTorch's."""
    return [
        (block, [_cell(mine[name]) if name in mine else "" for name in ORDER])
        for block, mine in by_block(found, dtype).items()
    ]


def by_block(found: Policies, dtype: str) -> dict[str, dict[str, Kept]]:
    """By block, then by policy."""
    table: dict[str, dict[str, Kept]] = {}
    for r in found.rows:
        if r.dtype == dtype:
            table.setdefault(r.block, {})[r.policy] = r
    return table


def _cell(r: Kept) -> str:
    if r.policy == TORCH:
        return show_bytes(r.saved_bytes)
    goal = "" if math.isnan(r.saved_goal) else f" (goal {r.saved_goal:g}{', missed' if 'saved' in r.missed else ''})"
    return f"{r.saved_ratio:.3f}{goal}"


def _peak_cell(r: Kept) -> str:
    if r.policy == TORCH or math.isnan(r.peak_ratio):
        return "n/a" if math.isnan(r.peak_bytes) else show_bytes(r.peak_bytes)
    goal = "" if math.isnan(r.peak_goal) else f" (goal {r.peak_goal:g}{', missed' if 'peak' in r.missed else ''})"
    return f"{r.peak_ratio:.3f}{goal}"


def sentences(found: Policies) -> list[str]:
    """What came out, in words: gradients, goals reached and missed, and why."""
    ours = [r for r in found.rows if r.engine == "tgrad"]
    wrong = [f"{r.block} ({r.dtype}, {r.policy})" for r in ours if not r.same_bits]
    said = [
        "Results and gradients are the same bits under keep, lean and leanest in every row."
        if not wrong else f"Results or gradients DIFFER from keep's in {', '.join(wrong)}: this is an error."
    ]  # fmt: skip
    goals = sum(not math.isnan(g) for r in ours for g in (r.saved_goal, r.peak_goal))
    missed = [(r, name) for r in ours for name in r.missed]
    said.append(f"{goals - len(missed)} of {goals} goals are reached.")
    for r, name in missed:
        goal, ratio = (r.saved_goal, r.saved_ratio) if name == "saved" else (r.peak_goal, r.peak_ratio)
        said.append(f"Missed: {r.block}, {r.dtype}, {r.policy}: {name} {ratio:.3f}, goal {goal:g}.")
    if any(r.block.startswith("encoder") for r in ours):
        said.append(ENCODER)
    higher = [r for r in ours if r.policy == "lean" and r.peak_ratio > 1.005]
    if higher:
        names = ", ".join(f"{r.block} ({r.dtype}, {r.peak_ratio:.2f})" for r in higher)
        said.append(f"The peak of a step is above PyTorch's in {names}: backward makes temporaries of its own there.")
    return said


ENCODER = (
    "What lean keeps of an encoder are results of matrix products, which it does not run again: the block's input and "
    "the stream between its halves, q, k, v, the hidden layer before GELU: 9 tensors of the stream's size; and the "
    "result of attention, which it makes again where that is cheap beside the projections: where 4 times the length is "
    "at most the width. The attention map is never stored, by any policy: a number for each of its rows is kept "
    "(FlashAttention-2, Dao 2023, arXiv 2307.08691). PyTorch's composed attention keeps 17.5 (19 in bfloat16) and the "
    "map twice, with a bool mask."
)

NOTES = """\
How it is measured:

- PyTorch: eager, on the CPU, with what its CUDA kernels save: a bool mask of dropout (`torch.native_dropout`),
  float32 statistics, RMSNorm as one op. Saved-tensor hooks; each storage counts once. Its peak is what its MemTracker
  sees, with the temporaries of the CPU's kernels, but of RMSNorm, whose fused op the CPU does not have, without any.
- tgrad: what the graph keeps, and the most live in a forward and its backward, both from the ledger, to the byte.
- Both: kept bytes are without parameters, buffers and the batch, and peaks without parameters and buffers, but with
  gradients and the batch. Statistics and seeds stand apart (statistics_bytes in table.csv).
- Each block is fed by a Linear, so that its input is an intermediate; in an MLP that is its own first Linear. A
  `leanest` block is a direct child of a Sequential that has modules of its own: the encoders and the stacks.
- Encoders: pre-norm, 4 heads, hidden layer 4 D, dropout 0.1, GELU. Their attention in PyTorch is composed: matmul,
  scale, softmax, dropout, matmul. The column of fused attention is by formula: the flash kernel keeps q, k, v, its
  result, which the projection behind it keeps anyway, a log-sum-exp a row and a seed.
- PyTorch + checkpoint: `torch.utils.checkpoint` of all behind the feeding Linear, of a stack block by block; its states
  of random numbers, some kilobytes of host memory a block, are not counted.
- Exact bytes do not depend on the machine.
"""


def page(found: Policies) -> str:
    """summary.md."""
    s = found.sizes
    lines = [
        "# Activation memory: what is kept for backward, as a share of PyTorch's", "",
        f"{s.rows} rows or tokens, D = {s.width}, stacks of {s.depth} blocks. `lean` is the default.", "",
        "![bytes kept for backward, as a share of PyTorch's](plot.png)", "",
        *(f"- {line}" for line in sentences(found)), "",
    ]  # fmt: skip
    for dtype in dict.fromkeys(r.dtype for r in found.rows):
        lines += [f"## {dtype}: kept for backward", "", *_table(rows(found, dtype))]
        peaks = [
            (block, [_peak_cell(mine[name]) if name in mine else "" for name in ORDER[:-1]])
            for block, mine in by_block(found, dtype).items()
        ]
        lines += [f"## {dtype}: peak of live bytes over the step", "", *_table(peaks)]
        lines += [f"## {dtype}: what it costs", "", *_table(_costs(found, dtype), ("keep", "lean", "leanest"))]
    return "\n".join([*lines, NOTES])


def _costs(found: Policies, dtype: str) -> list[tuple[str, list[str]]]:
    """Kernels run again in backward, and the time of a step against keep's where it was measured."""
    table = []
    for block, mine in by_block(found, dtype).items():
        cells = []
        for policy in POLICIES:
            r, keep = mine[policy], mine["keep"]
            time = "" if math.isnan(r.step_ms) else f", {r.step_ms:.3g} ms ({r.step_ms / keep.step_ms:.2f} x)"
            cells.append(f"{r.recomputed_kernels} kernels again{time}")
        table.append((block, cells))
    return table


def _table(body: list[tuple[str, list[str]]], headings: tuple[str, ...] = HEADINGS) -> list[str]:
    shown = headings[: len(body[0][1])] if body else headings
    lines = ["| block | " + " | ".join(shown) + " |", "|---|" + "---:|" * len(shown)]
    return [*lines, *(f"| {name} | " + " | ".join(cells) + " |" for name, cells in body), ""]
