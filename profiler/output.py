"""A folder that appears complete or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tgrad.profiler.errors import ProfilerError

# What a report consists of: with `force`, a folder that holds anything else is not replaced.
FILES = ("report.html", "summary.md", "runs.csv", "samples.csv", "saved.csv", "events.csv", "env.json")
# Those that only some have: of a twin, of a scale law, and exports beside a report.
OPTIONAL = (
    "twins.csv", "twin_saved.csv", "scale.csv", "laws.csv", "scale.png", "scale.svg", "trace.json.gz",
    "snapshot.pickle", "saved.speedscope.json", "bench.json",
    *(f"{name}.parquet" for name in ("runs", "samples", "saved", "events", "twins", "twin_saved", "scale", "laws")),
    "compare.html", "compare.md", "compare.json", "leaks.csv", "leaks.parquet", "leaks.png", "leaks.svg",
    "whatif.csv", "whatif.parquet", "whatif.png", "whatif.svg", "iterations.csv", "iterations.parquet",
    "table.csv", "plot.png", "plot.svg",
)  # fmt: skip
FOLDERS = ("plots",)
PLOTS = (".png", ".svg")


def check(out: str | os.PathLike, force: bool) -> Path:
    """The folder to write, resolved, once it is sure that a report may be put there.

    Raises:
        ProfilerError: it exists and `force` is off; it is a file; it holds other files; it cannot be written.
    """
    try:
        path = Path(out).expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise ProfilerError(f"--out {out}: {error}; name another folder") from None
    try:
        if path.exists():
            _check_existing(path, out, force)
        parent = next(p for p in path.parents if p.exists())
    except PermissionError as error:
        raise ProfilerError(f"--out {out}: {error.strerror or error}; name a folder that you can write to") from None
    if not parent.is_dir():
        raise ProfilerError(f"--out {out}: {parent} is a file, not a folder; name another folder")
    probe = parent / f".tgrad-{os.getpid()}.probe"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise ProfilerError(
            f"--out {out}: {parent} cannot be written to ({error.strerror or error}); "
            "name a folder that you can write to"
        ) from None
    return path


def _check_existing(path: Path, out: str | os.PathLike, force: bool) -> None:
    if not path.is_dir():
        raise ProfilerError(f"--out {out}: this is a file, and a report is a folder; name another folder")
    if not any(path.iterdir()):
        return
    if not force:
        raise ProfilerError(
            f"--out {out}: the folder exists and is not empty; add --force to replace it, or name another"
        )
    for found in path.iterdir():
        known = found.is_file() and found.name in (*FILES, *OPTIONAL) or found.is_dir() and found.name in FOLDERS
        if not known or found.is_dir() and any(p.suffix not in PLOTS for p in found.iterdir()):
            raise ProfilerError(
                f"--out {out}: the folder holds {found.name}, which is not part of a report, so --force does not "
                "replace it; name another folder"
            )


@contextmanager
def folder(out: str | os.PathLike, force: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `out` to write into; it becomes `out` at the end, or disappears if the block fails.

    Raises:
        ProfilerError: as `check`, before anything is made; or writing failed.
    """
    path = check(out, force)
    made = [p for p in path.parents if not p.exists()]
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    replaced = path.with_name(f".{path.name}.{os.getpid()}.replaced")
    done = False
    try:
        partial.mkdir(parents=True)
        yield partial
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
        done = True
    except OSError as error:
        raise ProfilerError(f"--out {out}: writing failed: {error.strerror or error}; name another folder") from error
    finally:
        if not done:
            if replaced.exists() and not path.exists():
                replaced.rename(path)
            shutil.rmtree(partial, ignore_errors=True)
            for parent in made:  # innermost first
                try:
                    parent.rmdir()
                except OSError:
                    break
        shutil.rmtree(replaced, ignore_errors=True)
