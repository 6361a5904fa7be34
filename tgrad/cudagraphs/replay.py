"""A captured step that is run again: when it may be, what is set before and what has changed after it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from tgrad import graph, modes
from tgrad.cudagraphs.capture import Captured, Later, Mismatch, Refused, Run, capture, numbered, renumber
from tgrad.cudagraphs.memory import Touched
from tgrad.cudagraphs.snapshot import Snapshot, living, options
from tgrad.nn.module import Module
from tgrad.optim.optimizer import Optimizer
from tgrad.recompute import Recipe
from tgrad.tensor import Tensor, Version
from tgrad.updates import update


def _copied(to: Any, source: Any) -> tuple:
    return (source,)


def copy(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy the second of each pair into the first, of the same shape and dtype."""
    by_dtype: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    for to, source in pairs:
        if to.layout.numel and (to.ptr != source.ptr or to.layout is not source.layout):
            by_dtype.setdefault(to.layout.dtype, []).append((to, source))
    with modes.inference_mode():
        for rows in by_dtype.values():
            update("copy_", _copied, (0,), rows)


class Leaf:
    """A leaf that the graph touches, and what was in `.grad` when it was captured.

    Attributes:
        begin: the gradient there was, if the graph reads or writes it; `absent`: there was none.
        end: the gradient after the step.
    """

    __slots__ = ("tensor", "ptr", "layout", "begin", "absent", "end")

    def __init__(self, tensor: Tensor, before: Tensor | None, touched: bool) -> None:
        self.tensor, self.ptr, self.layout = tensor, tensor.ptr, tensor.layout
        self.begin, self.absent, self.end = before if touched else None, before is None, tensor._grad

    def fits(self) -> bool:
        t = self.tensor
        if t.ptr != self.ptr or t.layout is not self.layout:
            return False
        g = t._grad
        if self.absent:
            return g is None
        return self.begin is None or (g is not None and g.layout is self.begin.layout)


class Step:
    """A captured step.

    Raises:
        Refused, Later, DriverError: it cannot be captured, or not yet.
        Exception: what the function raises.
    """

    def __init__(
        self, function: Callable[[Sequence[Tensor]], Any], inputs: Sequence[Tensor], snapshot: Snapshot
    ) -> None:
        """Capture function(inputs), whose result is (what to return, the tensors in it), and run it.

        On an error the engine's state is to be put back by the snapshot, which was taken before.
        """
        self.inputs = inputs
        run = Run(rehearsal=False, streams=snapshot.generators)
        taken = capture(run, lambda: function(inputs))
        self._check(taken, snapshot)
        self.graph, self.run, self.pool = taken.graph, run, taken.pool
        self.result, outputs = taken.result
        self._keep(taken, snapshot, outputs)
        self.run.table.put()
        self.graph.launch()

    def _check(self, taken: Captured, snapshot: Snapshot) -> None:
        if snapshot.began_state():
            raise Later("an optimiser began its state in this step")
        option = snapshot.changed_option()
        if option is not None:
            raise Refused(f"it sets {option}: call schedulers outside of it")
        written = {id(v) for v, before in snapshot.versions if v.value != before}
        for i, t in enumerate(self.inputs):
            if id(t.version) in written:
                raise Refused(f"it writes to its tensor argument {i}: let the function find that tensor by itself")
        moved = next((x for x in snapshot.generators if (x._seed, x._offset) != snapshot.generators[x]
                      and x not in taken.run.streams), None)  # fmt: skip
        if moved is not None:
            raise Refused("it restarts a random stream")

    def _keep(self, taken: Captured, snapshot: Snapshot, outputs: Sequence[Tensor]) -> None:
        touched = Touched(taken.addresses)
        self.held = [s for s in snapshot.storages if s in touched]
        spans = [(s.ptr, s.ptr + max(s.nbytes, 1)) for s in self.held]
        spans += taken.pool.spans() + taken.run.table.spans()
        if touched.outside(spans) is not None:
            raise Refused("it computes with memory that nobody else holds, such as values from the host")
        self.written: list[tuple[Tensor, Version, int]] = []
        counted: set[int] = set()
        before = {id(v): value for v, value in snapshot.versions}
        self.leaves: list[Leaf] = []
        for t, grad in snapshot.tensors:
            version = t.version
            if version is not None and id(version) not in counted:
                counted.add(id(version))
                delta = version.value - before.get(id(version), version.value)
                if delta and t.storage in touched:
                    self.written.append((t, version, delta))
            if t.node is None and (t._requires_grad and t.storage in touched or t._grad is not grad):
                self.leaves.append(Leaf(t, grad, grad is not None and grad.storage in touched))
        for t in (*outputs, *[x.end for x in self.leaves if x.end is not None]):
            if t.version is not None and id(t.version) not in before and id(t.version) not in counted:
                counted.add(id(t.version))
                self.written.append((t, t.version, 1))
        self.modules = [(weakref.ref(m), training) for m, training in snapshot.modules]
        done = {id(u.optimizer) for u in self.run.updates}
        self.optimizers = [
            (u.optimizer, u.group, [(p, u.optimizer.state.get(p)) for p in u.params]) for u in self.run.updates
        ]
        mine = {id(leaf.tensor) for leaf in self.leaves}
        self.frozen: list[tuple[weakref.ref[Optimizer], list[dict[str, Any]]]] = [
            (weakref.ref(o), options(o)) for o in snapshot.optimizers
            if id(o) not in done and not (numbered(o) and type(o).step is Optimizer.step)
            and any(id(p) in mine for g in o.param_groups for p in g["params"])
        ]  # fmt: skip

    def fits(self) -> bool:
        """Whether a replay would do what the function would do now."""
        for leaf in self.leaves:
            if not leaf.fits():
                return False
        for reference, training in self.modules:
            module: Module | None = reference()
            if module is not None and module.training is not training:
                return False
        for optimizer, group, kept in self.optimizers:
            if not any(g is group for g in optimizer.param_groups):
                return False
            state = optimizer.state
            for p, of_it in kept:
                if state.get(p) is not of_it:
                    return False
        for other, before in self.frozen:
            optimizer_ = other()
            if optimizer_ is not None and options(optimizer_) != before:
                return False
        return True

    def replay(self, arguments: Sequence[Tensor]) -> Any:
        """Run it on other values of its arguments; returns the same tensors as ever.

        Raises:
            Mismatch: the optimisers would do something else now; nothing has been done.
            DriverError: the driver fails.
        """
        renumber(self.run.updates)
        copy([*zip(self.inputs, arguments, strict=True),
              *[(x.begin, x.tensor._grad) for x in self.leaves if x.begin is not None]])  # type: ignore[list-item]  # fmt: skip
        for generator, stream in self.run.streams.items():
            with generator._lock:
                stream.place.set_integers(generator._seed, generator._offset)
                generator._offset += stream.drawn
        key = graph.next_key()
        for t, _, _ in self.written:
            if graph.before_write is not None or getattr(t.storage, "readers", None):
                graph.announce_write(t)
            else:
                t.storage.changed = key
        self.run.table.put()
        self.graph.launch()
        for _, version, delta in self.written:
            version.value += delta
        for leaf in self.leaves:
            leaf.tensor._grad = leaf.end
        return self.result


def settle() -> None:
    """Run now what would be recomputed for a backward pass yet to come: a replay writes what it reads."""
    for recipe in living((Recipe,)):
        if not recipe.settled and recipe.tensors and recipe.users > 0:
            recipe.settle()


__all__ = ["Later", "Mismatch", "Refused", "Step", "copy", "settle"]
