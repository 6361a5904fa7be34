"""The plot of policies: bars per block, PyTorch at 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib
from matplotlib.figure import Figure

from tgrad.profiler.plots import MODE_COLOURS, STYLE, _panel
from tgrad.profiler.policies_text import CHECKPOINTED, by_block
from tgrad.profiler.records import POLICIES

if TYPE_CHECKING:
    from tgrad.profiler.policies import Policies

BARS = (*POLICIES, CHECKPOINTED)
COLOURS = {**MODE_COLOURS, CHECKPOINTED: "#B8BDC4"}
LABELS = {"lean": "lean (the default)"}


def draw(found: Policies) -> Figure:
    """A group of bars a block, in the narrowest dtype measured; a line where PyTorch is."""
    dtypes = list(dict.fromkeys(r.dtype for r in found.rows))
    dtype = "bfloat16" if "bfloat16" in dtypes else dtypes[0]
    table = by_block(found, dtype)
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(9.6, 0.62 * len(table) + 1.7), layout="constrained")
        ax = fig.subplots()
        height = 0.8 / len(BARS)
        for k, policy in enumerate(BARS):
            ratios = [mine[policy].saved_ratio for mine in table.values()]
            places = [i + (k - (len(BARS) - 1) / 2) * height for i in range(len(table))]
            label = policy if policy == CHECKPOINTED else f"tgrad, {LABELS.get(policy, policy)}"
            ax.barh(places, ratios, height=height * 0.92, color=COLOURS[policy], label=label)
            if policy == "lean":
                for y, ratio in zip(places, ratios):
                    ax.text(ratio + 0.008, y, f"{ratio:.2f}", va="center", fontsize=7.5, color=COLOURS[policy])
        ax.axvline(1.0, color="#1F2328", linewidth=1.2)
        ax.text(1.0, -0.75, "PyTorch", ha="center", va="bottom", fontsize=9)
        ax.set_yticks(range(len(table)), list(table))
        ax.set_ylim(len(table) - 0.45, -0.75)
        ax.set_xlim(0, 1.08)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(f"bytes kept for backward, PyTorch = 1 ({dtype}; gradients are the same bits under all policies)")
        fig.legend(loc="outside lower center", ncols=len(BARS), frameon=False, fontsize=9)
        _panel(fig, "Activation memory: what is kept for backward")
    return fig
