"""The subcommands beside `profile` and `env`: their arguments, and what they print."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from tgrad.profiler.units import show_bytes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from tgrad.profiler.report import Report

OK, REGRESSION = 0, 1


def add(commands: Any) -> None:
    """Add the subcommands to `tgrad`'s; each sets `run`, which takes the parsed arguments and returns the exit code."""
    p = commands.add_parser(
        "compare", help="compare two reports, and fail on a regression",
        description="Compare report B with report A: bytes exactly, times by a rank test. Exit code 1: a regression.",
        epilog="example:\n  tgrad compare before/ after/ --fail-on saved_bytes:0 --fail-on forward_ms:5%",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument("a", metavar="A", help="folder of the report from before")
    p.add_argument("b", metavar="B", help="folder of the report from after")
    p.add_argument(
        "--fail-on", action="append", default=[], metavar="FIGURE:LIMIT",
        help="exit with 1 if FIGURE grew by more than LIMIT: saved_bytes:0, peak_bytes:1MiB, forward_ms:5%%; times "
        "must differ by the rank test (p < 0.05) as well; may be given several times",
    )  # fmt: skip
    p.add_argument("--by", choices=("module", "op", "line"), default="module", help="group saved bytes by this")
    p.add_argument("--out", metavar="DIR", help="write compare.html, compare.md, compare.json and plots into DIR")
    p.add_argument("--force", action="store_true", help="replace the comparison that is in DIR")
    p.add_argument("--json", action="store_true", help="print the comparison as JSON")
    p.set_defaults(run=_compare)
    p = commands.add_parser(
        "scale", help="bytes against batch size, and the largest batch that fits",
        description="Measure a workload at several batch sizes, fit a line in each mode, and check it on the largest.",
    )  # fmt: skip
    p.add_argument("workload", metavar="WORKLOAD", help="a name, or file.py:factory with a parameter batch_size")
    p.add_argument("--batch-sizes", default="32,64,128,256", metavar="A,B,C", help="default: 32,64,128,256")
    p.add_argument("--memory", metavar="SIZE", help="what must fit, such as 24GiB")
    p.add_argument("--modes", default="grad,no_grad,inference_mode", metavar="A,B", help="as for profile")
    p.add_argument("--dtype", default="float32", help="float16, bfloat16, float32 (the default) or float64")
    p.add_argument("--width", type=int, metavar="N", help="width of mlp's hidden layers")
    p.add_argument("--depth", type=int, metavar="N", help="number of mlp's hidden layers")
    p.add_argument("--isolate", action="store_true", help="measure each size and mode in a process of its own")
    p.add_argument("--out", metavar="DIR", help="write scale.csv, laws.csv and the plot into this new folder")
    p.add_argument("--force", action="store_true", help="replace what is in DIR")
    p.add_argument("--json", action="store_true", help="print the laws as JSON")
    p.set_defaults(run=_scale)
    p = commands.add_parser("export", help="write a report for Perfetto, memory_viz, speedscope or pytest-benchmark")
    p.add_argument("report", metavar="REPORT", help="folder of a report")
    p.add_argument("--to", required=True, metavar="FORMAT", help="perfetto, memviz, speedscope or pytest-benchmark")
    p.add_argument("--file", metavar="FILE", help="write here (default: a file in the report's folder)")
    p.set_defaults(run=_export)
    p = commands.add_parser(
        "leaks", help="does memory grow, and which variable holds it?",
        description="Run one iteration of a loop again and again. Exit code 1: memory grows.",
    )  # fmt: skip
    p.add_argument("script", metavar="FILE.PY:FUNCTION", help="a function that runs one iteration")
    p.add_argument("--iterations", type=int, default=8, metavar="N", help="iterations that count (default: 8)")
    p.add_argument("--out", metavar="DIR", help="write leaks.csv and the plot into this new folder")
    p.add_argument("--force", action="store_true", help="replace what is in DIR")
    p.add_argument("--json", action="store_true", help="print what was found as JSON")
    p.set_defaults(run=_leaks)


def console() -> Console:
    """Where tables go: not cut to 80 columns when piped into a file."""
    from rich.console import Console

    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=200)


def table(*headings: str, left: int = 1) -> Table:
    """An empty table; its first `left` columns hold words, the others numbers."""
    from rich.table import Table

    made = Table(show_edge=False, pad_edge=False, header_style="bold")
    for i, heading in enumerate(headings):
        made.add_column(heading, justify="left" if i < left else "right", no_wrap=i >= left)
    return made


def _compare(given: argparse.Namespace) -> int:
    from tgrad.profiler import compare_output as show, output
    from tgrad.profiler.compare import compare, parse_limit
    from tgrad.profiler.reading import load

    limits = [parse_limit(text) for text in given.fail_on]
    if given.out is not None:
        output.check(given.out, given.force)
    a, b = load(given.a), load(given.b)
    found = compare(a, b, limits, given.by)
    if given.out is not None:
        show.save(found, a, b, bool(limits), given.out, given.force)
    if given.json:
        print(json.dumps(show.as_json(found), indent=2))
    else:
        show.show(console(), found, bool(a.environment.get("is_interpreted")), bool(limits))
        if given.out is not None:
            print(f"The comparison is in {given.out}/compare.html")
    return REGRESSION if found.failed else OK


def show_twin(out: Console, report: Report, workload: str) -> None:
    """tgrad and PyTorch, side by side: figures, then modules, then what only one of them saves."""
    from tgrad.profiler import twins

    shown = table("engine", *(heading for heading, _ in twins.columns()))
    for engine, values in twins.rows(report.runs, report.twins, workload):
        shown.add_row(engine, *("—" if v is None else show_bytes(v) for v in values))
    out.print()
    out.print(shown)
    ours = report.saved[(report.saved["workload"] == workload) & (report.saved["mode"] == "grad")]
    theirs = report.twin_saved[report.twin_saved["workload"] == workload]
    if not len(theirs):
        return
    by_module = twins.beside(ours, theirs)
    if not len(ours):
        by_module = by_module[["module", "torch_bytes", "torch_tensors"]]
    shown = table(*(c.replace("_", " ") for c in by_module.columns))
    for _, row in by_module.iterrows():
        values = row.iloc[1:].items()
        shown.add_row(row["module"] or "(top level)", *(show_bytes(v) if "bytes" in c else f"{v:,}" for c, v in values))
    out.print()
    out.print(shown)
    if len(ours):
        for line in twins.sentences(twins.only(ours, theirs)):
            out.print(line)


def _scale(given: argparse.Namespace) -> int:
    from dataclasses import asdict

    from tgrad.profiler import output, tables, words
    from tgrad.profiler.records import ALL_MODES
    from tgrad.profiler.scale import parse_sizes, scale

    if given.out is not None:
        output.check(given.out, given.force)
    sizes, memory = parse_sizes(given.batch_sizes, given.memory)
    modes = ALL_MODES if given.modes == "all" else [m.strip() for m in given.modes.split(",") if m.strip()]
    found = scale(
        given.workload, sizes or [], modes, memory_bytes=memory, dtype=given.dtype, width=given.width,
        depth=given.depth, isolate=given.isolate,
    )  # fmt: skip
    if given.out is not None:
        found.save(given.out, given.force)
    if given.json:
        print(json.dumps([{k: None if v != v else v for k, v in asdict(x).items()} for x in found.laws], indent=2))
        return OK
    out = console()
    shown = table(*tables.law_headings(-1 if memory is None else memory), left=2)
    for x in found.laws:
        shown.add_row(*tables.law_cells(x))
    out.print(shown)
    for line in words.law_sentences(found):
        out.print(line)
    if given.out is not None:
        out.print(f"The plot is in {given.out}/scale.png")
    return OK


def _export(given: argparse.Namespace) -> int:
    from tgrad.profiler.exports import export
    from tgrad.profiler.reading import load

    print(f"Wrote {export(load(given.report), given.to, given.file)}")
    return OK


def _leaks(given: argparse.Namespace) -> int:
    from dataclasses import asdict

    from tgrad.profiler import leak_plot, output
    from tgrad.profiler.leaks import leaks
    from tgrad.profiler.workloads import function

    if given.out is not None:
        output.check(given.out, given.force)
    found = leaks(function(given.script), iterations=given.iterations)
    if given.out is not None:
        leak_plot.save(found, given.out, given.force)
    if given.json:
        print(json.dumps({**asdict(found), "found": found.found}, indent=2))
    else:
        for line in found.sentences():
            print(line)
        if given.out is not None:
            print(f"The plot is in {given.out}/leaks.png")
    return REGRESSION if found.found else OK
