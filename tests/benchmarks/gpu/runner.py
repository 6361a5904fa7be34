"""Sections in processes of their own, each with a time limit: a crash or a hang takes no other section along."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks.gpu.rows import Journal, Row
from tests.benchmarks.gpu.sections import Section

STARTS = 3  # of one section's process: after a crash the next begins with the case after the one that crashed
LEAST = 6.0  # seconds: with less left no process is started again
GRACE = 4.0  # seconds beyond a section's limit: the case that runs then may end
Command = Callable[[str, Path], list[str]]


def command(section: str, journal: Path) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.gpu.worker", section, str(journal)]


def run(
    sections: Sequence[Section],
    journal: Journal,
    budget: float,
    said: Callable[[str], None],
    command: Command = command,
) -> list[str]:
    """Run the sections one by one; (what failed). Each process is started, and imports, while the one before works."""
    failures: list[str] = []
    deadline = time.monotonic() + budget
    scale = min(1.0, budget / sum(s.seconds for s in sections))
    spare = 0.0
    coming = _start(command(sections[0].name, journal.path)) if sections else None
    try:
        for i, section in enumerate(sections):
            current, coming = coming, None
            limit = min(section.seconds * scale + spare, deadline - time.monotonic() - GRACE)
            began = time.monotonic()
            if limit <= 1:
                journal.add(Row(section.name, "section", note="left out: no time left"))
                _end(current)
                continue
            # Not beside the measuring of host time.
            early = i + 1 < len(sections) and section.name != "host"
            if early:
                coming = _start(command(sections[i + 1].name, journal.path))
            _section(section.name, current, journal, limit, failures, command)
            if i + 1 < len(sections) and coming is None:
                coming = _start(command(sections[i + 1].name, journal.path))
            took = time.monotonic() - began
            spare = max(0.0, section.seconds * scale + spare - took)
            said(f"{section.name}: {took:.0f} s")
    finally:
        _end(coming)
    return failures


def _section(
    name: str, process: subprocess.Popen | None, journal: Journal, limit: float, failures: list[str], command: Command
) -> None:
    end = time.monotonic() + limit
    for _ in range(STARTS):
        process = process or _start(command(name, journal.path))
        left = end - time.monotonic()
        try:
            process.communicate(f"{left}\n", timeout=left + GRACE)
            wrong = "" if process.returncode == 0 else _exit(process.returncode)
        except subprocess.TimeoutExpired:
            wrong = f"stopped: it ran past its limit of {limit:.0f} s"
        finally:
            _end(process)
        process = None
        if not wrong:
            return
        at = [mark for mark in journal.read("begin") if mark.startswith(name + "|")]
        where = at[-1].split("|", 1)[1] if at else "its beginning"
        failures.append(f"{name}, at {where}: {wrong}")
        journal.add(Row(name, "section", note=f"FAILED: {wrong}, at {where}"))
        if not at or end - time.monotonic() < LEAST:
            return


def _exit(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"


def _start(command: list[str]) -> subprocess.Popen:
    # In a session of its own, so that the compilers it starts end with it.
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr, text=True, start_new_session=True)


def _end(process: subprocess.Popen | None) -> None:
    """End a process and what it started."""
    if process is None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(BrokenPipeError):
        if process.stdin and not process.stdin.closed:
            process.stdin.close()
    process.wait()
