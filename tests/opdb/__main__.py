"""`python -m tests.opdb`: run torch's op database, print a row per op, exit with 1 if anything failed."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.compare import TORCH
from tests.opdb import jobs, names, summary

DTYPES = {str(d).removeprefix("torch."): d for d in TORCH.values()}
QUICK = ("float64",)  # `--quick`: one sample of each op in these


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.opdb", description=__doc__)
    parser.add_argument("--ops", help="names in the database, separated by commas; default: all that tgrad has")
    parser.add_argument("--dtypes", help=f"of {', '.join(DTYPES)}; default: all")
    parser.add_argument("--quick", action="store_true", help=f"the first sample of each op in {' and '.join(QUICK)}")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default: one per core")
    parser.add_argument("--csv", type=Path, help="write the table there")
    parser.add_argument("--markdown", type=Path, help="write a page there")
    options = parser.parse_args(argv)
    chosen = options.dtypes.split(",") if options.dtypes else QUICK if options.quick else list(DTYPES)
    unknown = [d for d in chosen if d not in DTYPES]
    if unknown:
        parser.error(f"--dtypes: {', '.join(unknown)} is none of {', '.join(DTYPES)}")
    options.dtypes = [DTYPES[d] for d in chosen]
    return options


def main(argv: list[str]) -> int:
    options = arguments(argv)
    database, entries = names.database(), jobs.entries()
    only = set(options.ops.split(",")) if options.ops else None
    unknown = sorted((only or set()) - {info.name for info in database})
    if unknown:
        print(f"--ops: not in the database: {', '.join(unknown)}", file=sys.stderr)
        return 2
    chosen = [jobs.Job(i, options.dtypes, options.quick) for i, e in entries.items() if only is None or e.name in only]
    outcomes = jobs.run_all(chosen, options.jobs)
    summary.show(outcomes)
    if options.csv:
        summary.write_csv(outcomes, options.csv)
    if options.markdown:
        lacking = sorted({info.name for info in database} - {e.name for e in entries.values()})
        summary.write_markdown(outcomes, lacking, " ".join(["python -m tests.opdb", *argv]), options.markdown)
    return int(any(o.failed for o in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
