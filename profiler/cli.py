"""The `tgrad` command. Results go to stdout, progress and errors to stderr.

Exit codes: EXIT_CODES.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from tgrad.profiler.errors import ProfilerError, one_line

if TYPE_CHECKING:
    from tgrad.profiler.api import Progress
    from tgrad.profiler.report import Report
    from tgrad.profiler.tables import Column

OK, USAGE, INTERRUPTED = 0, 2, 130

EXIT_CODES = """\
exit codes:
  0    done
  1    compare: a regression; leaks: memory grows; doctor: figures disagree; policies: gradients differ;
       profile --fit: no plan fits
  2    the request was wrong or could not be carried out; nothing was written
  130  interrupted (Ctrl-C); nothing was written, but by run, which still writes its report
  run ends with the script's own exit code: 1 if it raised
"""

WORKLOADS = """\
workloads:
  tutorial          PyTorch's no_grad tutorial: 100 outputs of Linear(1000, 1000), with their graph and without
  digits            an MLP 64-64-10 on scikit-learn's 1,797 images of digits
  mlp               a deep MLP; --width and --depth
  file.py:factory   your own: factory() returns (model, example_input), (model, example_input, loss_fn) or a Workload;
                    with --vs torch a function torch_twin() beside it returns the same of PyTorch; if factory()
                    returns a torch.nn.Module, PyTorch alone is profiled

examples:
  tgrad profile tutorial
  tgrad profile mlp --depth 16 --modes grad,inference_mode --out report/
"""


class _Parser(argparse.ArgumentParser):
    """Errors are one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        print(f"tgrad: error: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(USAGE)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    import tgrad
    from tgrad.profiler.api import REPEATS
    from tgrad.profiler.optimizers import CHOICES
    from tgrad.profiler.records import ALL_MODES, MODES

    top = _Parser(
        prog="tgrad", description="Profile models on tgrad: what each grad mode costs, in bytes and time.",
        epilog=EXIT_CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    top.add_argument("--version", action="version", version=f"tgrad {tgrad.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)
    p = commands.add_parser(
        "profile", help="compare grad, no_grad and inference_mode", epilog=WORKLOADS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    p.add_argument(
        "workloads", nargs="*", metavar="WORKLOAD", help="what to profile; tutorial, digits and mlp if left out"
    )
    p.add_argument(
        "--modes", default=",".join(MODES), metavar="A,B",
        help=f"modes, by commas, or all: {', '.join(ALL_MODES)} (default: the first three)",
    )  # fmt: skip
    p.add_argument("--batch-size", type=_whole, metavar="N", help="rows of a batch (default: the workload's own)")
    p.add_argument("--dtype", default="float32", help="float16, bfloat16, float32 (the default) or float64")
    p.add_argument("--device", default="auto", help="auto (the default: CUDA if there is one), cpu or cuda")
    p.add_argument("--width", type=_whole, metavar="N", help="width of mlp's hidden layers (default: 256)")
    p.add_argument("--depth", type=_whole, metavar="N", help="number of mlp's hidden layers (default: 8)")
    p.add_argument(
        "--repeats", type=_whole, default=REPEATS, metavar="N", help=f"timed runs of each mode (default: {REPEATS})"
    )
    p.add_argument(
        "--optimizer", default="sgd", metavar="NAME",
        help=f"whose step follows the backward of a workload with a loss: {', '.join(CHOICES)} (default: sgd)",
    )  # fmt: skip
    p.add_argument("--seed", type=_whole, default=0, metavar="N", help="of weights and data (default: 0)")
    p.add_argument(
        "--out", metavar="DIR", help="write report.html, summary.md, CSV files and plots into this new folder"
    )
    p.add_argument("--force", action="store_true", help="replace the report that is in DIR")
    p.add_argument(
        "--batch-sizes", metavar="A,B,C", help="measure the scale law at these batch sizes too: 32,64,128,256"
    )
    p.add_argument("--memory", metavar="SIZE", help="with --batch-sizes: what a batch must fit, such as 24GiB")
    p.add_argument(
        "--isolate", action="store_true", help="measure each engine and mode in a process of its own (slower)"
    )
    p.add_argument(
        "--fit", metavar="SIZE",
        help="say which policy of activation memory makes a step fit into so much, such as 24GiB, with the least time, "
        "and verify it by running",
    )  # fmt: skip
    p.add_argument("--vs", metavar="torch", help="measure the same model in PyTorch too, and set it beside")
    p.add_argument("--json", action="store_true", help="print the summary as JSON, and nothing else, on stdout")
    p.add_argument("--quiet", action="store_true", help="no progress, and no tables")
    from tgrad.profiler import commands as others, subcommands

    others.add(commands)
    subcommands.add(commands)
    e = commands.add_parser("env", help="print versions, device and machine")
    e.add_argument("--json", action="store_true", help="as JSON")
    return top


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a whole number, got '{text}'") from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (by default, the process's own); returns the exit code."""
    try:
        return _run(argv)
    except SystemExit as stop:  # argparse: --help, --version, usage errors
        return stop.code if isinstance(stop.code, int) else OK if stop.code is None else USAGE
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was written", INTERRUPTED)
    except ProfilerError as error:
        return _fail(str(error), USAGE)
    except BrokenPipeError:  # the reader of stdout went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except MemoryError as error:
        return _fail(f"out of memory: {one_line(error)}; use a smaller --batch-size, --width or --depth", USAGE)
    except RuntimeError as error:
        from tgrad.storage import OutOfMemoryError

        if isinstance(error, OutOfMemoryError):
            return _fail(f"{' '.join(str(error).split())} (--batch-size, --width, --depth)", USAGE)
        raise


def _fail(message: str, code: int) -> int:
    print(f"tgrad: error: {message}" if code != INTERRUPTED else f"tgrad: {message}", file=sys.stderr)
    return code


def _run(argv: Sequence[str] | None) -> int:
    given = _parse(sys.argv[1:] if argv is None else list(argv))
    if given.command == "env":
        return _env(given.json)
    if given.command == "profile":
        return _profile(given, own_process=argv is None)
    if given.command is not None:
        return given.run(given)
    parser().print_help(sys.stderr)
    return USAGE


def _parse(argv: list[str]) -> argparse.Namespace:
    """The arguments; those of a script that is run come after -- and are not looked at."""
    if argv[:1] != ["run"] or "--" not in argv:
        return parser().parse_args(argv)
    at = argv.index("--")
    given = parser().parse_args(argv[:at])
    given.arguments += argv[at + 1 :]
    return given


def _env(as_json: bool) -> int:
    from tgrad.profiler.environment import environment

    found = environment()
    if as_json:
        print(json.dumps(found, indent=2))
        return OK
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items() if v not in (None, "")) or "none"
        elif isinstance(value, list):
            value = " ".join(value)
        print(f"{key:15} {value}")
    return OK


def _profile(given: argparse.Namespace, own_process: bool) -> int:
    from tgrad.device import compute
    from tgrad.profiler import datafiles
    from tgrad.profiler.api import profile
    from tgrad.profiler.scale import parse_sizes

    if given.device == "cpu" and compute.type != "cpu" and own_process:
        # The device was chosen when tgrad was imported: begin again with the other one.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tgrad.profiler", *sys.argv[1:]],
            {**os.environ, "TRITON_INTERPRET": "1"},
        )
    if given.fit is not None:
        from tgrad.profiler import subcommands

        return subcommands.fit(given)
    modes = [m.strip() for m in given.modes.split(",") if m.strip()]
    sizes, memory = parse_sizes(given.batch_sizes, given.memory)
    with _progress(given.quiet or given.json) as progress:
        report = profile(
            given.workloads or ["tutorial", "digits", "mlp"], modes, batch_size=given.batch_size, dtype=given.dtype,
            device=given.device, width=given.width, depth=given.depth, repeats=given.repeats, seed=given.seed,
            optimizer=given.optimizer, out=given.out, force=given.force, vs=given.vs,
            batch_sizes=sizes, memory_bytes=memory, isolate=given.isolate, progress=progress,
        )  # fmt: skip
    if given.json:
        print(json.dumps(summary(report), indent=2))
    elif not given.quiet:
        show(report)
        if given.out is not None:
            print(f"The report is in {os.path.join(given.out, 'report.html')}")
            if not datafiles.has_parquet():
                print(datafiles.NO_PARQUET)
        else:
            print("Add --out DIR for a report with plots and data files.")
    return OK


def summary(report: Report) -> dict[str, Any]:
    """What --json prints: the summary's rows, in words as well, and the environment. NaN is null."""
    rows = [
        {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()}
        for row in report.summary.to_dict("records")
    ]
    if report.records.twins:
        twins = json.loads(report.twins.to_json(orient="records"))
        return {"runs": rows, "twins": twins, "in_words": report.sentences(), "environment": report.environment}
    return {"runs": rows, "in_words": report.sentences(), "environment": report.environment}


@contextmanager
def _progress(off: bool) -> Iterator[Progress | None]:
    """A bar on stderr, where that is a terminal."""
    if off or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress as Bar, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    # Drawn between steps and not by a thread of its own, which would run while something is timed.
    with Bar(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task, drawn = bar.add_task("preparing", total=1), 0.0

        def update(name: str, done: int, total: int) -> None:
            nonlocal drawn
            now = time.monotonic()
            bar.update(task, description=f"profiling {name}", completed=done, total=total)
            if now - drawn > 0.1 or done == total:
                bar.refresh()
                drawn = now

        bar.refresh()
        yield update


def show(report: Report) -> None:
    """Print a table and a sentence for each workload."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from tgrad.profiler import tables
    from tgrad.profiler.aggregate import saved_by_module
    from tgrad.profiler.environment import INTERPRETED
    from tgrad.profiler.records import MODES
    from tgrad.profiler.words import keepers, law_sentence

    console = Console(highlight=False)
    # A table that is piped into a file is not cut to 80 columns.
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    interpreted = report.environment["is_interpreted"]
    sentences = report.sentences()
    colours = {"grad": "deep_pink3", "no_grad": "deep_sky_blue3", "inference_mode": "spring_green4"}
    columns = tables.columns(report.runs)
    for name in report.workloads:
        console.print(Text(name, style="bold"), Text(report.about.get(name, ""), style="dim"))
        runs = [run for _, run in report.runs[report.runs["workload"] == name].iterrows()]
        for part in _parts(columns, runs, console.width) if runs else ():
            table = Table(show_edge=False, pad_edge=False, header_style="bold")
            table.add_column("mode", no_wrap=True)
            for c in part:
                table.add_column(c.heading, justify="right", no_wrap=True)
            for run in runs:
                mode = Text(run["mode"], style=colours.get(run["mode"], ""))
                table.add_row(mode, *(c.cell(run)[0] for c in part))
            console.print()
            console.print(table)
        if interpreted and runs:
            console.print(Text(f"forward, backward, host us/op: {INTERPRETED}", style="yellow"))
        if not set(report.runs["mode"]) <= set(MODES):
            table = Table(show_edge=False, pad_edge=False, header_style="bold")
            for i, heading in enumerate(tables.CHANGE_HEADINGS):
                table.add_column(heading, justify="left" if i < 2 else "right")
            changes = report.mode_changes
            for _, row in changes[changes["workload"] == name].iterrows():
                table.add_row(*tables.change_cells(row))
            console.print()
            console.print(table)
        if len(report.twins):
            from tgrad.profiler.commands import show_twin

            show_twin(console, report, name)
        console.print()
        console.print(sentences[name])
        kept = keepers(saved_by_module(report.saved, name))
        if kept:
            console.print(kept)
        for law in (s for s in report.scales if s.workload == name):
            console.print(law_sentence(law))
        console.print()


def _parts(columns: Sequence[Column], runs: Sequence[Any], width: int) -> list[list[Column]]:
    """The columns as one table, or as several of at most `width` characters: bytes and times apart."""
    from tgrad.profiler import tables

    def wide(column: Column) -> int:
        return 3 + max(len(column.heading), *(len(column.cell(run)[0]) for run in runs))

    first = 1 + max(len("mode"), *(len(run["mode"]) for run in runs))
    if first + sum(map(wide, columns)) <= width:
        return [list(columns)]
    parts: list[list[Column]] = []
    for group in (tables.BYTES, [c for c in columns if c not in tables.BYTES]):
        room = 0
        for column in group:
            if room < wide(column):
                parts.append([])
                room = width - first
            parts[-1].append(column)
            room -= wide(column)
    return parts


if __name__ == "__main__":
    sys.exit(main())
