"""The subcommands `whatif`, `policies`, `run` and `doctor`, and `profile --fit`: arguments, and what they print."""

from __future__ import annotations

import argparse
import json
import math
import sys
from typing import TYPE_CHECKING, Any

from tgrad.profiler.commands import OK, REGRESSION, console, table
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.units import show_bytes, show_ms

if TYPE_CHECKING:
    from tgrad.profiler.doctor import Diagnosis
    from tgrad.profiler.planner import Fit
    from tgrad.profiler.whatif import WhatIf


FIGURES = (
    ("kept for backward", "graph_bytes", show_bytes), ("on the host", "host_bytes", show_bytes),
    ("peak", "peak_bytes", show_bytes),
    ("forward + backward", "ms", show_ms),
)  # fmt: skip


def add(commands: Any) -> None:
    """Add the subcommands to `tgrad`'s, as `commands.add` does."""
    p = commands.add_parser(
        "whatif", help="bytes and time that a change would give, predicted, then run",
        description="Predict from the ledger what changes to a model would give, run each, and set both side by side. "
        "Without a change named, those that suit the model are tried.",
        epilog="example:\n  tgrad whatif mlp --checkpoint 0,2,4 --lower bfloat16 --out whatif/",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("workload", metavar="WORKLOAD", help="a name, or file.py:factory")
    p.add_argument(
        "--checkpoint", action="append", default=[], metavar="PATTERN",
        help="checkpoint the modules of these paths (layers.*; several by commas) or of this class; '' is the whole "
        "model; may be given several times",
    )  # fmt: skip
    p.add_argument(
        "--offload", action="append", default=[], metavar="PATTERN",
        help="move what modules of these paths or classes save to host memory; may be given several times",
    )  # fmt: skip
    p.add_argument("--lower", action="append", default=[], metavar="DTYPE", help="save as bfloat16 or float16")
    p.add_argument("--together", action="store_true", help="try also all that is named at once")
    p.add_argument("--inplace-activations", action="store_true", help="let activations write over their argument")
    p.add_argument("--batch-size", type=int, metavar="N", help="rows of a batch (default: the workload's own)")
    p.add_argument("--dtype", default="float32", help="float16, bfloat16, float32 (the default) or float64")
    p.add_argument("--width", type=int, metavar="N", help="width of mlp's hidden layers")
    p.add_argument("--depth", type=int, metavar="N", help="number of mlp's hidden layers")
    p.add_argument("--repeats", type=int, default=5, metavar="N", help="timed runs of each change (default: 5)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and data (default: 0)")
    p.add_argument("--out", metavar="DIR", help="write whatif.csv and a plot of bytes against time into this folder")
    p.add_argument("--force", action="store_true", help="replace what is in DIR")
    p.add_argument("--json", action="store_true", help="print the outcomes as JSON")
    p.set_defaults(run=_whatif)
    p = commands.add_parser(
        "policies", help="activation memory under keep, lean and leanest, beside PyTorch",
        description="Run blocks of models under each policy of tgrad.activation_memory and in PyTorch, with and "
        "without checkpoints; compare what the graph keeps and the peak of a step, and assert that gradients are the "
        "same bits. Exit code 1: they are not.",
        epilog="example:\n  tgrad policies --out reports/activation_memory --force",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("blocks", nargs="*", metavar="BLOCK", help="parts of names: gelu, norm, encoder (default: all)")
    p.add_argument("--rows", type=int, default=256, metavar="N", help="rows of a batch, or tokens (default: 256)")
    p.add_argument("--width", type=int, default=64, metavar="N", help="of the stream (default: 64)")
    p.add_argument("--depth", type=int, default=6, metavar="N", help="blocks of a stack (default: 6)")
    p.add_argument("--dtype", action="append", metavar="DTYPE", help="float32 or bfloat16 (default: both)")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and data (default: 0)")
    p.add_argument("--out", metavar="DIR", help="write summary.md, table.csv and the plot into this folder")
    p.add_argument("--force", action="store_true", help="replace what is in DIR")
    p.add_argument("--json", action="store_true", help="print the rows as JSON")
    p.set_defaults(run=_policies)
    p = commands.add_parser(
        "run", help="run a script under the profiler",
        description="Run a Python script as it is, and report what it took: what it prints, and its exit code, are "
        "its own. The report is written also if the script raises or is interrupted.",
        epilog="example:\n  tgrad run --out report/ train.py -- --epochs 3",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("--out", metavar="DIR", help="write report.html, CSV files and plots into this new folder")
    p.add_argument("--force", action="store_true", help="replace the report that is in DIR")
    p.add_argument("script", metavar="SCRIPT.PY", help="the script")
    p.add_argument("arguments", nargs="*", metavar="-- ARGUMENT", help="its arguments, after --")
    p.set_defaults(run=_run)
    p = commands.add_parser(
        "doctor", help="check the profiler against models whose bytes are known, and this machine",
        description="Replay models whose bytes are known by hand, in tgrad and in PyTorch, and say what this machine "
        "can measure. Exit code 1: the ledger, the hand, the hooks and MemTracker disagree.",
    )  # fmt: skip
    p.add_argument("models", nargs="*", metavar="MODEL", help="tutorial, digits, mlp, normed, expanded (default: all)")
    p.add_argument("--json", action="store_true", help="print what was found as JSON")
    p.set_defaults(run=_doctor)


def _whatif(given: argparse.Namespace) -> int:
    from tgrad.profiler import output
    from tgrad.profiler.changes import Change
    from tgrad.profiler.whatif import whatif

    if given.out is not None:
        output.check(given.out, given.force)
    changes = [
        Change(kind, value)
        for kind in ("checkpoint", "offload", "lower") for value in getattr(given, kind)
    ]  # fmt: skip
    if given.inplace_activations:
        changes.append(Change("inplace"))
    if len(set(changes)) < len(changes):
        raise ProfilerError("a change is given twice; name each once")
    if given.together:
        if len(changes) < 2:
            raise ProfilerError("--together: name two changes or more, such as --checkpoint 0 --offload 1")
        changes.append(Change("together", parts=tuple(changes)))
    found = whatif(
        given.workload, changes, batch_size=given.batch_size, dtype=given.dtype, width=given.width, depth=given.depth,
        repeats=given.repeats, seed=given.seed,
    )  # fmt: skip
    if given.out is not None:
        found.save(given.out, given.force)
    if given.json:
        print(json.dumps(json.loads(found.frame.to_json(orient="records")), indent=2))
        return OK
    _show_whatif(found)
    if given.out is not None:
        print(f"The plot is in {given.out}/whatif.png")
    return OK


def _show_whatif(found: WhatIf) -> None:
    from rich.text import Text

    from tgrad.profiler.environment import INTERPRETED

    out = console()
    for name, figure, show in FIGURES:
        if figure == "host_bytes" and not any(o.predicted_host_bytes for o in found.outcomes):
            continue
        shown = table(name, "predicted", "measured", "off")
        for o in found.outcomes:
            off = o.error(figure)
            shown.add_row(
                o.change, show(getattr(o, f"predicted_{figure}")), show(getattr(o, f"measured_{figure}")),
                "n/a" if math.isnan(off) else "exact" if not off else f"{100 * off:.1f} %",
            )  # fmt: skip
        out.print(shown)
        out.print()
    if found.is_interpreted:
        out.print(Text(f"forward + backward: {INTERPRETED}", style="yellow"))
    for line in found.sentences():
        out.print(line)
    names = ", ".join(o.change for o in found.front)
    out.print(f"None is better in both bytes and time than: {names}.")


def _policies(given: argparse.Namespace) -> int:
    from tgrad.profiler import output, policies_text
    from tgrad.profiler.policies import DTYPES, policies

    if given.out is not None:
        output.check(given.out, given.force)
    found = policies(
        given.blocks, rows=given.rows, width=given.width, depth=given.depth, dtypes=given.dtype or DTYPES,
        seed=given.seed,
    )  # fmt: skip
    if given.out is not None:
        found.save(given.out, given.force)
    if given.json:
        print(json.dumps(json.loads(found.frame.to_json(orient="records")), indent=2))
    else:
        out = console()
        for dtype in dict.fromkeys(r.dtype for r in found.rows):
            shown = table(dtype, *policies_text.HEADINGS)
            for name, cells in policies_text.rows(found, dtype):
                shown.add_row(name, *cells)
            out.print(shown)
            out.print()
        for line in policies_text.sentences(found):
            out.print(line)
        if given.out is not None:
            print(f"The table and the plot are in {given.out}")
    return OK if found.ok else REGRESSION


def fit(given: argparse.Namespace) -> int:
    """`profile --fit`: a plan for each workload; 1 if one has none."""
    from tgrad.profiler.planner import fit as plan

    for name in ("out", "vs", "batch_sizes", "memory", "isolate"):
        if getattr(given, name):
            raise ProfilerError(f"--fit prints a plan and takes no --{name.replace('_', '-')}; leave one of them out")
    if not given.workloads:
        raise ProfilerError("--fit: name the workload that is to fit, such as mlp")
    found = [
        plan(
            w, given.fit, batch_size=given.batch_size, dtype=given.dtype, width=given.width, depth=given.depth,
            seed=given.seed, optimizer=given.optimizer,
        )
        for w in given.workloads
    ]  # fmt: skip
    if given.json:
        print(json.dumps([f.as_json() for f in found], indent=2))
    elif not given.quiet:
        _show_fits(found)
    return OK if all(f.chosen is not None for f in found) else REGRESSION


def _show_fits(found: list[Fit]) -> None:
    from rich.text import Text

    from tgrad.profiler.environment import INTERPRETED

    out = console()
    for f in found:
        shown = table("plan", "predicted peak", "measured", "on the host", "predicted time", "measured")
        for c in f.candidates:
            cells = [show_bytes(c.predicted_peak_bytes), show_bytes(c.peak_bytes), show_bytes(c.host_bytes)]
            shown.add_row(Text(str(c.plan)), *cells, show_ms(c.predicted_ms), show_ms(c.ms))
        out.print(shown)
        if f.is_interpreted:
            out.print(Text(f"times: {INTERPRETED}", style="yellow"))
        for line in f.sentences():
            out.print(Text(line))
        out.print()


def _run(given: argparse.Namespace) -> int:
    from tgrad.profiler.script import run

    return run(given.script, given.arguments, given.out, given.force)


def _doctor(given: argparse.Namespace) -> int:
    from tgrad.profiler.doctor import doctor

    found = doctor(given.models)
    if given.json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        _show_doctor(found)
    return OK if found.ok else REGRESSION


def _show_doctor(found: Diagnosis) -> None:
    from rich.text import Text

    out = console()
    shown = table("model", "by hand", "graph", "ledger", "hooks", "torch's hooks", "MemTracker", "")
    for r in found.replays:
        values = (r.hand_bytes, r.graph_bytes, r.ledger_bytes, r.hooks_bytes, r.torch_bytes, r.mem_tracker_bytes)
        cells = ["n/a" if math.isnan(v) else f"{v:,.0f} B" for v in values]
        shown.add_row(r.model, *cells, Text("agree", "green") if r.ok else Text("DISAGREE", "bold red"))
    out.print("Bytes that the graph keeps after a forward, counted in ways that have nothing in common:")
    out.print(shown)
    for r in found.replays:
        for why in r.why:
            out.print(Text(f"{r.model}: {why}", style="bold red"))
    for why in found.skipped:
        out.print(Text(f"left out: {why}", style="yellow"))
    out.print()
    for f in found.machine:
        out.print(Text(f"{'yes' if f.can else 'no ':3} ", "green" if f.can else "yellow"), f"{f.what}: {f.why}", sep="")
    out.print()
    print("All agree." if found.ok else "The profiler's figures cannot be trusted here.", file=sys.stdout)
