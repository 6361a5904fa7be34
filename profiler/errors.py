"""What the profiler raises for bad input: one line that says what came, what was expected and what to do."""

from __future__ import annotations


class ProfilerError(Exception):
    """A request that cannot be carried out; the message is one line, meant for the user."""


def one_line(error: BaseException) -> str:
    """`ValueError: text`, on one line of at most 300 characters."""
    text = " ".join(str(error).split())
    text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
