"""One workload's result in a sentence or two. Bytes first: they are exact on any machine."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from tgrad.profiler.records import POLICIES
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
    return (
        f"{text}; its MemTracker counts {int(twin.residual_bytes):+,} bytes beside that, which no formula needs: what "
        f"the model itself holds, workspaces, and inputs (by kind, with the model: {twin.mem_tracker_kinds})."
    )


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


KEEPERS = 4


def keepers(table: pd.DataFrame) -> str:
    """Which modules and ops keep the most, and what share that is; "" if nothing is kept.

    Args:
        table: `aggregate.saved_by_module`.
    """
    if table.empty:
        return ""
    sizes = table.sum(axis=1).sort_values(ascending=False, kind="stable")
    total = sizes.sum()
    named = [f"{name} {show_bytes(n)} ({100 * n / total:.0f} %)" for name, n in sizes.head(KEEPERS).items()]
    return f"Most is kept by {', '.join(named)}."


def change_sentence(row: pd.Series, interpreted: bool) -> str:
    """A row of `aggregate.mode_changes`: where the bytes of the difference are. Interpreter times are left out."""
    parts = []
    if row["graph_bytes_change"]:
        more = "more" if row["graph_bytes_change"] > 0 else "less"
        parts.append(f"the graph keeps {show_bytes(abs(row['graph_bytes_change']))} {more}")
    else:
        parts.append("the graph keeps the same bytes")
    instead = "saved instead" if row["tensors_gone"] else "saved as well"
    for which, verb in (("gone", "no longer saved"), ("new", instead)):
        if row[f"tensors_{which}"] or row[f"bytes_{which}"]:
            n = int(row[f"tensors_{which}"])
            parts.append(f"{n:,} tensor{'s' * (n != 1)} ({int(row[f'bytes_{which}']):,} bytes) {verb}")
    if row["nodes_change"]:
        n = int(row["nodes_change"])
        parts.append(f"{abs(n):,} node{'s' * (abs(n) != 1)} {'more' if n > 0 else 'fewer'} in the graph")
    peak = row["peak_bytes_change"]
    lower = f"the peak is {show_bytes(abs(peak))} {'higher' if peak > 0 else 'lower'}"
    parts.append(lower if peak else "the peak is the same")
    host = [row[f"host_us_per_op_{when}"] for when in ("before", "after")]
    if not interpreted and not any(map(math.isnan, host)):
        parts.append(f"an op takes {host[1]:.3g} us of the host's time instead of {host[0]:.3g}")
    again = int(row["recomputed_kernels_change"])
    if again:
        count = f"{abs(again):,} kernel{'s' * (abs(again) != 1)}"
        parts.append(f"backward runs {count} {'more' if again > 0 else 'fewer'} a second time")
    if not interpreted and row["mode"] in POLICIES and row["ms_before"]:
        change = 100 * (row["ms_after"] / row["ms_before"] - 1)
        parts.append(f"a forward and its backward take {abs(change):.1f} % {'more' if change >= 0 else 'less'} time")
    return f"{row['mode']} against {row['against']}: {'; '.join(parts)}."


def closed(run: pd.Series) -> str:
    """The sum of a run's ledger against the allocator's change."""
    parts = [
        (run["intermediates_bytes"], "intermediates"), (run["inputs_held_bytes"], "inputs held"),
        (run["outputs_held_bytes"], "outputs held"),
    ]  # fmt: skip
    grown = int(run["live_after_bytes"] - run["live_before_bytes"])
    residual = int(run["residual_bytes"])
    return (
        f"{' + '.join(f'{int(n):,} {name}' for n, name in parts)} = {int(sum(n for n, _ in parts)):,} bytes. The "
        f"allocator says that the forward left {grown:,} bytes live: a residual of {residual:,}."
    )


def law_sentence(scale: Any) -> str:
    """What a row of a batch costs in each mode, and the largest batch that fits, if that was asked for."""
    peaks = [x for x in scale.laws if x.figure == "peak_bytes"]
    if all(x.memory_bytes > 0 for x in peaks):
        each = ", ".join(f"{x.mode} {'any' if x.largest_batch < 0 else f'{x.largest_batch:,}'}" for x in peaks)
        return f"The largest batch that fits {show_bytes(peaks[0].memory_bytes)}: {each}."
    each = ", ".join(f"{show_bytes(round(x.per_row_bytes))} in {x.mode}" for x in peaks)
    return f"One more row of a batch raises the peak by {each}."


def law_sentences(scale: Any) -> list[str]:
    """What a Scale says: the largest batch of each mode, and how far to trust it."""
    found = [law_sentence(scale)]
    held = any(p.is_held_out for p in scale.points)
    found.append("The batch in the table had no part in the fit." if held else "Give four sizes to hold one out.")
    for x in scale.laws:
        if x.error > 0.02:
            found.append(
                f"{x.mode}: {x.figure} is no straight line over these sizes ({100 * x.error:.1f} % off at batch "
                f"{x.checked_batch}): give larger ones before you trust the largest batch."
            )
    return found
