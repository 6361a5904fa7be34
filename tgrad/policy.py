"""The policy of activation memory: what may be recomputed or moved to the host instead of kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from tgrad import graph
from tgrad.decorators import decorate

POLICIES = ("keep", "lean", "leanest")


def get_activation_memory() -> str:
    """The policy in force: "keep", "lean" or "leanest"."""
    return graph.policy.get()


def set_activation_memory(policy: str, *, checkpoint: str | None = None, offload: str | None = None) -> None:
    """Set the policy of this thread from here on; see `activation_memory`.

    Raises:
        ValueError: another name, or a pattern without a name in it.
        TypeError: a pattern that is no string.
    """
    _check(policy, checkpoint=checkpoint, offload=offload)
    _set(policy, _patterns(checkpoint, offload))


class Patterns:
    """Which modules are checkpointed and offloaded.

    Attributes:
        unmatched: (argument, pattern) of those that meant no module so far.
        looked: whether a module ran at all.
    """

    __slots__ = ("checkpoint", "offload", "unmatched", "looked")

    def __init__(self, checkpoint: str | None, offload: str | None) -> None:
        self.checkpoint, self.offload, self.looked = checkpoint, offload, False
        given = (("checkpoint", checkpoint), ("offload", offload))
        self.unmatched = {(name, part.strip()) for name, text in given if text for part in text.split(",")}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Patterns) and (self.checkpoint, self.offload) == (other.checkpoint, other.offload)

    def __hash__(self) -> int:
        return hash((self.checkpoint, self.offload))

    def look(self, path: str, module: object) -> None:
        """Strike off what means this module, which runs."""
        self.looked = True
        self.unmatched = {(name, part) for name, part in self.unmatched if not matches(part, path, module)}


def _patterns(checkpoint: str | None, offload: str | None) -> Patterns | None:
    return None if checkpoint is None and offload is None else Patterns(checkpoint, offload)


def _set(policy: str, patterns: Patterns | None) -> None:
    graph.policy.set(policy)
    graph.patterns.set(patterns)
    graph.choose_saver()


def _check(policy: str, **patterns: str | None) -> None:
    if policy not in POLICIES:
        hint = "; as a decorator it takes a policy too: @activation_memory('leanest')" if callable(policy) else ""
        raise ValueError(f"activation_memory: expected one of {', '.join(map(repr, POLICIES))}, got {policy!r}{hint}")
    for name, pattern in patterns.items():
        if pattern is None:
            continue
        if not isinstance(pattern, str):
            raise TypeError(
                f"activation_memory: {name} is of type {type(pattern).__name__}; expected a pattern of module paths, "
                "such as 'layers.*'"
            )
        if pattern and not all(p.strip() for p in pattern.split(",")):
            raise ValueError(f"activation_memory: {name}={pattern!r} has an empty pattern in it; '' alone is the model")


class activation_memory:
    """What forward keeps for backward inside the block or the decorated function; gradients are the same to the bit.

    "keep": what the formulas name, as PyTorch does. "lean", the default: what cheap kernels (pointwise, dropout, row
    and batch normalisation) make again from what is kept anyway is made again in backward. "leanest": moreover each
    block, a direct child of a ModuleList or Sequential, keeps its inputs alone, and backward runs it again, as
    `utils.checkpoint` does (Chen et al. 2016, arXiv 1604.06174).

    Patterns choose modules by path ("layers.*", as fnmatch has it and the profiler prints it, relative to the outermost
    module that runs) or by class; several are separated by commas, and "" is the outermost module itself. Of modules
    within modules the outermost counts. Nothing is chosen inside saved-tensor hooks. At the end of the block a warning
    tells of a pattern that meant no module that ran.

    Args:
        policy: "keep", "lean" or "leanest".
        checkpoint: modules that keep their inputs alone, as blocks of "leanest" do. One that calls a custom Function,
            draws from a generator that the user holds, or has hooks in it, keeps what it would have.
        offload: modules whose saved tensors move to host memory, pinned and by a stream of its own on a CUDA device,
            and come back for backward, those of the module before ahead of use; on the CPU they are copied. What is
            recomputed, small, or of parameters is not moved. Of a checkpointed module its inputs are.

    Raises:
        ValueError: another name, or a pattern without a name in it.
        TypeError: a pattern that is no string.
    """

    def __init__(self, policy: str, *, checkpoint: str | None = None, offload: str | None = None) -> None:
        _check(policy, checkpoint=checkpoint, offload=offload)
        self.policy, self.checkpoint, self.offload = policy, checkpoint, offload
        self._before: list[tuple[str, Any]] = []

    def __enter__(self) -> None:
        self._before.append((graph.policy.get(), graph.patterns.get()))
        _set(self.policy, _patterns(self.checkpoint, self.offload))

    def __exit__(self, *exception: object) -> None:
        patterns = graph.patterns.get()
        _set(*self._before.pop())
        if patterns is not None and patterns.looked and patterns.unmatched and exception[0] is None:
            said = ", ".join(f"{name}={part!r}" for name, part in sorted(patterns.unmatched))
            warnings.warn(
                f"activation_memory: no module that ran has the path or class of {said}; paths are as in "
                "model.named_modules(), relative to the outermost module that runs",
                stacklevel=2,
            )

    def __repr__(self) -> str:
        named = {"checkpoint": self.checkpoint, "offload": self.offload}
        given = [repr(self.policy), *(f"{name}={text!r}" for name, text in named.items() if text is not None)]
        return f"activation_memory({', '.join(given)})"

    def __call__(self, function: Callable) -> Callable:
        again = lambda: activation_memory(self.policy, checkpoint=self.checkpoint, offload=self.offload)
        return decorate(function, again)


def matches(pattern: str | None, path: str, module: object) -> bool:
    """Whether a module at `path` is one that the pattern means."""
    if pattern is None or pattern == "":
        return pattern == path
    parts = [p.strip() for p in pattern.split(",")]
    return any((path and fnmatchcase(path, p)) or type(module).__name__ == p for p in parts)
