"""Writes docs/howto.md: `python -m docs.howto`. Each question's commands are run, and what they print is put down."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "howto.md"

HEAD = """\
# How to ask the profiler

Five questions, each with the command that answers it and what it prints. The commands run as they stand in a checkout
where `tgrad` is installed, with or without a GPU. Bytes do not depend on the machine; times do, and those of Triton's
interpreter say nothing about a GPU. `python -m docs.howto` writes this page again.
"""

QUESTIONS = (
    (
        "Which layer keeps the memory?",
        """\
The line *Most is kept by* names the modules and ops that keep the most for backward. The report in `out/` goes down to
the line of code (`out/report.html`), and holds the same as CSV (`out/saved.csv`).""",
        ("tgrad profile examples/profiled.py:model --modes grad --out out",),
    ),
    (
        "What does no_grad save me?",
        """\
The sentence below the tables has the bytes that are no longer kept, and the peak of each mode. `--modes all` adds
`inference_mode`, checkpointing and the others; each is explained as the difference from one before it.""",
        ("tgrad profile examples/profiled.py:model --modes grad,no_grad",),
    ),
    (
        "How large a batch fits?",
        """\
A line through the peaks of the smaller sizes, checked on the largest, which has no part in the fit. The last column
counts the rows that fit: those of `grad` in training, those of `no_grad` in evaluation.""",
        (
            "tgrad scale examples/profiled.py:model --modes grad,no_grad --batch-sizes 64,128,192,256 --memory 24GiB",
        ),
    ),
    (
        "Did my change make it worse?",
        """\
Profile before and after, then compare: bytes exactly, times by a rank test. The exit code is 1 if a limit is broken, so
the last line guards a pull request; `--out DIR` writes the comparison as HTML and Markdown. The change here is a wider
model, and the note says so.""",
        (
            "tgrad profile examples/profiled.py:model --modes grad --quiet --out before",
            "tgrad profile examples/profiled.py:model --modes grad --width 48 --quiet --out after",
            "tgrad compare before after --by op --fail-on saved_bytes:0 --fail-on peak_bytes:5%",
        ),
    ),
    (
        "Where is my leak?",
        """\
`step` is one iteration of a loop. The exit code is 1 if memory grows; the second line says which variable holds it and
where the tensor was made. `--out DIR` draws the bytes after each iteration.""",
        ("tgrad leaks examples/profiled.py:step",),
    ),
)


def run(command: str, folder: str) -> list[str]:
    """The lines that a command prints, run in `folder`.

    Raises:
        RuntimeError: it failed, or said something on stderr.
    """
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "tgrad.profiler", *command.split()[1:]]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or done.stderr:
        raise RuntimeError(f"{command}: exit code {done.returncode}\n{done.stderr}")
    return [line.rstrip() for line in done.stdout.strip().splitlines()]


def main() -> None:
    """Write the page."""
    parts = [HEAD]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "examples").symlink_to(ROOT / "examples")
        for question, text, commands in QUESTIONS:
            lines = [line for command in commands for line in (f"$ {command}", *run(command, folder))]
            parts.append("\n".join([f"## {question}", "", text, "", "```console", *lines, "```", ""]))
    PAGE.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
