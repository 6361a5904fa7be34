"""One workload's result in a sentence or two. Bytes first: they are exact on any machine."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from tgrad.profiler.units import percent_less, show_bytes


def sentence(runs: pd.DataFrame) -> str:
    """What the runs of one workload say, for a terminal line or a paragraph."""
    by_mode = {r["mode"]: r for _, r in runs.iterrows()}
    grad = by_mode.get("grad")
    others = [by_mode[m] for m in ("no_grad", "inference_mode", "set_grad_enabled_false") if m in by_mode]
    first = runs.iloc[0]
    if grad is None and not others:
        kept = ", ".join(f"{m} {show_bytes(r['graph_bytes'])}" for m, r in by_mode.items())
        return f"Kept for backward: {kept}. Peak {show_bytes(first['peak_bytes'])}."
    if grad is None:
        kept = show_bytes(max(r["graph_bytes"] for r in others))
        return f"{_names(others)}: {kept} kept for backward, peak {show_bytes(first['peak_bytes'])}."
    if int(grad["held"]) > 1:
        text = _loop(grad, others)
    else:
        text = f"grad keeps {show_bytes(grad['graph_bytes'])} for backward ({_parts(grad)})"
        if others:
            most = max(r["graph_bytes"] for r in others)
            text += f"; {_names(others)} {'keeps' if len(others) == 1 else 'keep'} {show_bytes(most)}"
    text += f". Peak {show_bytes(grad['peak_bytes'])} with backward, {show_bytes(grad['peak_forward_bytes'])} before it"
    if others:
        peak = max(r["peak_bytes"] for r in others)
        text += f"; {show_bytes(peak)} in {_names(others)} ({percent_less(peak, grad['peak_bytes'])})"
    return text + "."


def twin_sentence(twin: Any) -> str:
    """What a TwinRecord says."""
    text = f"PyTorch keeps {show_bytes(twin.graph_bytes)} for backward"
    if math.isnan(twin.mem_tracker_bytes):
        return f"{text} (MemTracker could not run beside the hooks)."
    if not twin.residual_bytes:
        return f"{text}; its MemTracker agrees to the byte."
    return f"{text}; its MemTracker counts {int(twin.residual_bytes):+,} bytes beside that."


def _loop(grad: pd.Series, others: list[pd.Series]) -> str:
    total = grad["live_after_bytes"] - grad["live_before_bytes"]
    outputs, extra = grad["outputs_held_bytes"], total - grad["outputs_held_bytes"]
    text = f"{int(grad['held'])} outputs with their graph hold {show_bytes(total)} ({int(total):,} bytes): "
    text += f"{show_bytes(outputs)} of outputs and {show_bytes(extra)} kept for backward ({_parts(grad)})"
    if others:
        least = max(r["live_after_bytes"] - r["live_before_bytes"] for r in others)
        text += f"; without it ({_names(others)}) {show_bytes(least)} ({int(least):,} bytes)"
    return text


def _parts(run: pd.Series) -> str:
    parts = [
        (run["intermediates_bytes"], "intermediates"),
        (run["inputs_held_bytes"], "inputs"),
        (run["outputs_saved_bytes"], "outputs"),
    ]
    found = [f"{show_bytes(n)} {name}" for n, name in parts if n]
    return ", ".join(found) or "nothing"


def _names(runs: list[pd.Series]) -> str:
    names = [str(r["mode"]) for r in runs]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 2 else names)
