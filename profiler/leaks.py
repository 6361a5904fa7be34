"""Leaks: bytes that stay from iteration to iteration, the variable and line that hold them, and graphs never used."""

from __future__ import annotations

import gc
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from typing import Any

from tgrad.engine import Walk
from tgrad.graph import Node
from tgrad.profiler import fit
from tgrad.profiler.errors import ProfilerError, one_line
from tgrad.profiler.garbage import collected_apart
from tgrad.profiler.origins import inside, recorded, shown
from tgrad.profiler.units import show_bytes
from tgrad.profiler.workloads import where
from tgrad.storage import Allocation, OutOfMemoryError, ledger
from tgrad.tensor import Tensor


@dataclass(frozen=True)
class Holder:
    """What keeps a tensor that one iteration made alive after it.

    name: the variable, such as `losses[3]` or `self.history`; file, line: where its op was called; frame: the function
    or module whose variable it is. graph_bytes: what the graph behind the tensor pins.
    """

    name: str
    frame: str
    file: str
    line: int
    shape: tuple[int, ...]
    op: str
    graph_bytes: int

    def sentence(self) -> str:
        """Who holds what, and what to do about it."""
        place = f"{self.file}:{self.line}" if self.file else "a line that was not recorded"
        shape, stem = "x".join(map(str, self.shape)) or "scalar", self.name.partition("[")[0]
        return (
            f"{self.name} in {self.frame} holds a {shape} tensor made by {self.op} at {place}, and with its graph "
            f"{show_bytes(self.graph_bytes)}: keep {stem} free of graphs with .item() or .detach()."
        )


@dataclass(frozen=True)
class Leaks:
    """What `leaks` found.

    Attributes:
        live_bytes: the ledger after each iteration, garbage collected, from before the first that counts.
        slope_bytes, slope_ci_bytes: bytes an iteration, and half the 95 % interval.
        holders: the variables that hold what leaks; of a list its last tensors.
        unused_graphs: iterations whose forward recorded a graph although no backward ran.
    """

    live_bytes: list[int]
    slope_bytes: float
    slope_ci_bytes: float
    holders: list[Holder] = field(default_factory=list)
    unused_graphs: int = 0
    unused_at: str = ""

    @property
    def found(self) -> bool:
        """Whether memory grows: the interval of the slope lies above 0."""
        return self.slope_bytes - self.slope_ci_bytes > 0

    @property
    def iterations(self) -> int:
        """How many were counted."""
        return len(self.live_bytes) - 1

    def sentences(self) -> list[str]:
        """What was found, in words."""
        lines = []
        ci = show_bytes(round(self.slope_ci_bytes))
        if self.found:
            lines.append(
                f"Leak: {show_bytes(round(self.slope_bytes))} (±{ci}) stay after each of {self.iterations} iterations."
            )
            lines += [h.sentence() for h in self.holders]
        else:
            lines.append(f"No leak: memory is the same after each of {self.iterations} iterations.")
        if self.unused_graphs:
            lines.append(
                f"In {self.unused_graphs} of {self.iterations} iterations this forward recorded a graph that was never "
                f"used ({self.unused_at}): wrap it in no_grad."
            )
        return lines

    def _repr_html_(self) -> str:
        """A notebook shows the words."""
        return "".join(f"<p>{escape(line)}</p>" for line in self.sentences())


class Births:
    """Storages made since, by id."""

    def __init__(self) -> None:
        self.live: dict[int, int] = {}

    def allocated(self, storage: Allocation) -> None:
        self.live[storage.id] = storage.nbytes

    def freed(self, storage: Allocation) -> None:
        self.live.pop(storage.id, None)


class _Graphs:
    """Counts nodes made and backward walks begun, in an iteration."""

    def __init__(self) -> None:
        self.nodes = self.walks = 0
        self.at = ""


def leaks(fn: Callable[..., Any], *, iterations: int = 8, warmup: int = 2) -> Leaks:
    """Run `fn` again and again, and see whether memory grows.

    Args:
        fn: one iteration of a training or evaluation loop; given the iteration's number if it takes one argument.
        iterations: those that count, after `warmup` in which plans and caches come into being.

    Raises:
        ProfilerError: fn failed, or the numbers make no sense.
    """
    if iterations < 3 or warmup < 0:
        raise ProfilerError("leaks: a slope and its interval take at least 3 iterations, and warmup is at least 0")
    call = _caller(fn)
    births, live, unused, unused_at = Births(), [], 0, ""
    with ledger.subscribe(births), recorded():
        with collected_apart():
            for i in range(warmup + iterations):
                if i == warmup:
                    gc.collect()
                    live.append(ledger.live_bytes)
                    births.live.clear()
                with _counted() as graphs:
                    _run(call, i)
                gc.collect()
                if i >= warmup:
                    live.append(ledger.live_bytes)
                    if graphs.nodes and not graphs.walks:
                        unused, unused_at = unused + 1, graphs.at
        slope = fit.line(range(len(live)), live)
        found = Leaks(live, slope.slope, slope.slope_ci, [], unused, unused_at)
        held = holders(set(births.live)) if found.found else []
    return Leaks(live, slope.slope, slope.slope_ci, held, unused, unused_at)


def _caller(fn: Callable[..., Any]) -> Callable[[int], Any]:
    code = getattr(fn, "__code__", None)
    bound = 1 if hasattr(fn, "__self__") else 0
    needed = 0 if code is None else code.co_argcount - bound - len(getattr(fn, "__defaults__", None) or ())
    return fn if needed == 1 else lambda i: fn()


def _run(call: Callable[[int], Any], i: int) -> None:
    try:
        call(i)
    except (ProfilerError, MemoryError, OutOfMemoryError):
        raise
    except Exception as error:
        raise ProfilerError(f"leaks: iteration {i} failed: {one_line(error)}{where(error)}") from error


class _counted:
    """Inside the block, recorded nodes and backward walks are counted."""

    def __enter__(self) -> _Graphs:
        from tgrad import graph

        counts = self.counts = _Graphs()
        self.before, self.init = graph.find_origin, Walk.__init__
        find, init = self.before, self.init

        def noted() -> Any:
            origin = find() if find is not None else None
            counts.nodes += 1
            counts.at = f"{shown(origin.file)}:{origin.line}" if origin is not None and origin.file else counts.at
            return origin

        def begun(walk: Walk, *args: Any, **kwargs: Any) -> None:
            counts.walks += 1
            init(walk, *args, **kwargs)

        graph.find_origin, Walk.__init__ = noted, begun  # type: ignore[assignment,method-assign]
        return counts

    def __exit__(self, *exception: object) -> None:
        from tgrad import graph

        graph.find_origin, Walk.__init__ = self.before, self.init  # type: ignore[method-assign]


# issubclass(type(x), ...): isinstance would ask strangers for their __class__, and some of them warn.
# --- who holds it ----------------------------------------------------------------------------------------------------
MOST = 5  # holders that are named


def holders(born: set[int]) -> list[Holder]:
    """Variables that hold tensors with a graph, or with memory, that the iterations made."""
    gc.collect()
    tensors = [t for t in gc.get_objects() if issubclass(type(t), Tensor) and _leaked(t, born)]
    found: dict[str, Holder] = {}
    for t in reversed(tensors):
        name, frame = _name(t, tensors)
        stem = f"{frame}:{name.partition('[')[0]}"
        if not name or stem in found:
            continue
        node = t.node
        origin = node.origin if isinstance(node, Node) else None
        found[stem] = Holder(
            name, frame, shown(origin.file) if origin else "", origin.line if origin else 0, tuple(t.shape),
            node.name().removesuffix("Backward0") if isinstance(node, Node) else "a leaf", _graph_bytes(t),
        )  # fmt: skip
        if len(found) == MOST:
            break
    return sorted(found.values(), key=lambda h: -h.graph_bytes)


def _leaked(t: Tensor, born: set[int]) -> bool:
    try:
        return t.storage.id in born
    except AttributeError:  # half made
        return False


def _graph_bytes(t: Tensor) -> int:
    from tgrad.profiler.kept import kept_by

    sizes = {s.storage_id: s.storage_bytes for s in kept_by([t]) if s.kind != "leaf"}
    return sum((sizes | {t.storage.id: t.storage.nbytes}).values())


def _name(target: Any, ignored: list[Any], depth: int = 4) -> tuple[str, str]:
    """(variable, whose it is) of an object, by what refers to it; ("", "") if nothing with a name does."""
    own = {id(ignored), id(sys._getframe().f_locals)}
    level: list[tuple[Any, str]] = [(target, "")]
    seen = {id(target)}
    for _ in range(depth):
        following: list[tuple[Any, str]] = []
        for thing, path in level:
            for holder in gc.get_referrers(thing):
                if id(holder) in seen or id(holder) in own or holder is level or holder is following:
                    continue
                seen.add(id(holder))
                named = _in_holder(holder, thing, path)
                if named is not None:
                    return named
                step = _step(holder, thing)
                if step is not None:
                    following.append((holder, step + path))
        level = following
    return "", ""


def _in_holder(holder: Any, thing: Any, path: str) -> tuple[str, str] | None:
    """The variable, if `holder` is a namespace: a frame, a module's globals, a closure's cell."""
    if issubclass(type(holder), types.FrameType):
        if inside(holder.f_code.co_filename):
            return None
        for name, value in holder.f_locals.items():
            if value is thing:
                place = "the module" if holder.f_code.co_name == "<module>" else f"{holder.f_code.co_name}()"
                return name + path, place
        return None
    if issubclass(type(holder), types.CellType):
        for function in gc.get_objects():
            if type(function) is types.FunctionType and any(c is holder for c in function.__closure__ or ()):
                index = [c is holder for c in function.__closure__ or ()].index(True)
                return function.__code__.co_freevars[index] + path, f"the closure of {function.__name__}()"
        return None
    if issubclass(type(holder), dict) and "__name__" in holder and "__builtins__" in holder:
        for name, value in list(holder.items()):
            if value is thing and not str(holder["__name__"]).startswith("tgrad"):
                return str(name) + path, f"module {str(holder['__name__']).removeprefix('_tgrad_workload_')}"
    return None


def _step(holder: Any, thing: Any) -> str | None:
    """How `holder`, a container or an object, leads to `thing`: "[3]", "['loss']", ".history"; None if it does not."""
    if issubclass(type(holder), (list, tuple)):
        return next((f"[{i}]" for i, v in enumerate(holder) if v is thing), None)
    if issubclass(type(holder), dict):
        for key, value in list(holder.items()):
            if value is thing:
                return f"[{key!r}]"
        return None
    if issubclass(type(holder), (Node, Tensor, types.FrameType, types.CellType, types.ModuleType)):
        return None
    found: Any = getattr(holder, "__dict__", None)
    if issubclass(type(found), dict):
        return next((f".{k}" for k, v in list(found.items()) if v is thing), None)
    return None
