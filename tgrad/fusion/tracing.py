"""What a fused function is called with in place of tensors, and the record of what it does with them (fusion.py)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from tgrad import dtypes
from tgrad.device import compute, device
from tgrad.layout import Layout, layout
from tgrad.modes import Mode, current
from tgrad.tensor import Tensor

if TYPE_CHECKING:
    from tgrad.expression import Ref

# Where the tensors of a trace are: no plan is ever made for it, so none is found for them.
TRACE: Any = object.__new__(device)
TRACE.type, TRACE.index = "trace", None

REDUCTIONS = ("sum", "mean", "amax", "amin")


class Tracer(Tensor):
    """A tensor without memory: a value of a Recorder, or a reduction of one.

    Attributes:
        ref: ("input", i), ("step", i), or ("reduced", i).
    """

    __slots__ = ("recorder", "ref")

    recorder: Recorder
    ref: Ref

    @property
    def device(self) -> device:
        return compute

    @property
    def is_cuda(self) -> bool:
        return compute.type == "cuda"

    def __repr__(self) -> str:
        return f"<tensor in tgrad.fuse, shape {tuple(self.shape)}, {self.dtype!r}>"


class Reduction(NamedTuple):
    """The last step of a fused function: a reduction op of a step or input, its settings and its result's layout."""

    op: Any
    ref: Ref
    settings: tuple
    layout: Layout


class Recorder:
    """What one call of a fused function does.

    Attributes:
        mode: the grad mode that it is in; None once it is over.
        tensors: those that it was called with, then others that it met.
        given: how many it was called with.
        numbers: Python numbers that ops met, one for each place.
        steps: (row, argument references); references to numbers are ("number", index).
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = list(tensors)
        self.given = len(tensors)
        self.numbers: list[bool | int | float] = []
        self.steps: list[tuple[Any, tuple[Ref, ...]]] = []
        self.layouts: list[Layout] = []
        self.reductions: list[Reduction] = []
        self.mode: Mode | None = current()
        self.inputs = [self.tracer(t.layout, ("input", i)) for i, t in enumerate(tensors)]
        self.met = {id(t): ("input", i) for i, t in enumerate(tensors)}

    def close(self) -> None:
        """The call is over: hold no tensors, so that they are freed when nobody else does."""
        self.mode, self.tensors, self.inputs, self.met = None, [], [], {}

    def tracer(self, like: Layout, ref: Ref) -> Tracer:
        t = Tracer()
        t.layout = layout(like.dtype, tuple(like.shape), like.strides, TRACE, like.aligned)
        t.recorder, t.ref = self, ref
        t._requires_grad = False
        t.node = t._grad = t.alias = t.hooks = None
        return t

    def layout_of(self, ref: Ref) -> Layout:
        return self.tensors[ref[1]].layout if ref[0] == "input" else self.layouts[ref[1]]

    def call(self, row: Any, args: Sequence[Any]) -> Tracer:
        """Record a row, or the steps of an Expression."""
        self.check(row.name, args)
        fn = getattr(row, "fn", None)
        if fn is None or isinstance(fn, FunctionType):  # it is an Expression of others
            done: list[Any] = []
            for part, refs in row.expression.steps:
                values = [args[i] if kind == "input" else done[i] if kind == "step" else i for kind, i in refs]
                done.append(self.call(part, values))
            return done[row.expression.results[0][1]]
        refs = tuple(self.reference(row.name, a) for a in args)
        key = (row, *[self.layout_of(r) if r[0] != "number" else a.__class__ for r, a in zip(refs, args, strict=True)])
        found = _known.get(key)
        if found is None:
            if len(_known) >= 4096:
                _known.clear()
            found = _known[key] = _infer(row, key[1:])
        row, out, narrow = found
        self.steps.append((row, refs))
        self.layouts.append(out)
        result = self.tracer(out, ("step", len(self.steps) - 1))
        return result if narrow is None else self.call(narrow, (result,))

    def reference(self, name: str, value: Any) -> Ref:
        if value.__class__ is Tracer:
            return value.ref
        if isinstance(value, Tensor):
            ref = self.met.get(id(value))
            if ref is None:
                self.tensors.append(value)
                ref = self.met[id(value)] = "input", len(self.tensors) - 1
            return ref
        if isinstance(value, (bool, int, float)):
            self.numbers.append(value)
            return "number", len(self.numbers) - 1
        raise TypeError(f"{name}: expected a Tensor or a number, got {type(value).__name__}")

    def reduce(self, op: Any, x: Tracer, settings: tuple) -> Tracer:
        """Record a reduction."""
        self.check(op.name, (x,))
        from tgrad.ops.reduce import reduced_layout

        out = reduced_layout(op, self.layout_of(x.ref), settings)
        self.reductions.append(Reduction(op, x.ref, settings, out))
        return self.tracer(out, ("reduced", len(self.reductions) - 1))

    def check(self, name: str, args: Sequence[Any]) -> None:
        """Refuse what was not made in this call, comes after a reduction, or is in another grad mode."""
        for a in args:
            if a.__class__ is not Tracer:
                continue
            if a.recorder is not self or self.mode is None:
                raise RuntimeError(
                    f"tgrad.fuse: '{name}'{_where()} got a tensor of another call of a fused function: such tensors "
                    "have no values. Return what is needed outside."
                )
            if a.ref[0] == "reduced":
                done = self.reductions[a.ref[1]].op.name
                raise NotImplementedError(
                    f"tgrad.fuse: '{name}'{_where()} comes after '{done}', and a reduction must be the last step of a "
                    "fused function. Return the reduction, and go on outside."
                )
        if current() is not self.mode:
            raise NotImplementedError(
                f"tgrad.fuse: the grad mode changes inside the function, before '{name}'{_where()}. Change it outside."
            )


def _infer(row: Any, operands: tuple) -> tuple[Any, Layout, Any]:
    """The row to record, its result's layout, and a row that narrows the result if it is bool held as a number."""
    from tgrad.op import result_layout
    from tgrad.ops.pointwise import cast

    tensors = [x for x in operands if isinstance(x, Layout)]
    if row.check is not None:
        row.check([x.dtype if isinstance(x, Layout) else dtypes.of_number(x()) for x in operands])
    given = [
        (x.dtype, dtypes.TENSOR if x.shape else dtypes.SCALAR_TENSOR) if isinstance(x, Layout)
        else (dtypes.of_number(x()), dtypes.NUMBER)
        for x in operands
    ]  # fmt: skip
    wants, (result, _) = row.types(given)
    narrow = cast(dtypes.bool_) if result is dtypes.bool_ and dtypes.int32 in wants else None
    if narrow is not None and all(d is not dtypes.int32 for d, _ in given) and row.types.__name__ == "comparing":
        narrow = None
    if row.formulas and not result.is_floating_point:
        row = without_gradient(row)
    return row, result_layout(tensors, result), narrow


# What is known of rows, by the layouts of their operands and the types of their numbers.
_known: dict[tuple, tuple[Any, Layout, Any]] = {}
dtypes.default_changed.append(_known.clear)


@functools.cache
def without_gradient(row: Any) -> Any:
    """The row, through which no gradient flows: its result is not floating."""
    from tgrad.op import Pointwise

    return Pointwise(row.name, row.fn, row.types, grad_name=row.grad_name)


def intercept(op: Any, args: Sequence[Any], settings: tuple = ()) -> Any:
    """The result of an op in a trace, if one of `args` is of a trace; else None.

    Raises:
        NotImplementedError: it is neither pointwise nor a final reduction.
    """
    for a in args:
        if a.__class__ is Tracer:
            if hasattr(op, "types") or hasattr(op, "expression"):
                return a.recorder.call(op, args)
            if op.name in REDUCTIONS:
                return a.recorder.reduce(op, a, settings)
            raise refusal(op.name)
    return None


def _where() -> str:
    """The user's line, for messages."""
    from tgrad.origins import find

    origin = find()
    return f", called {origin}," if origin.file else ""


def refusal(name: str) -> NotImplementedError:
    """The error of an op that is not pointwise."""
    return NotImplementedError(
        f"tgrad.fuse: '{name}'{_where()} is not pointwise. A fused function is made of pointwise operations on tensors "
        f"and numbers, and may end with a reduction ({', '.join(REDUCTIONS)}): call '{name}' before or after it."
    )


def _valueless(name: str) -> Callable[..., Any]:
    def refuse(self: Tracer, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"tgrad.fuse: '{name}'{_where()} needs a tensor's values, memory or history, and there are none while the "
            "function is traced. Choose between values with tgrad.where; pass what is known before as a number."
        )

    return refuse


for _name in (
    "item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__", "__index__", "__format__", "detach",
    "detach_", "requires_grad_", "backward", "retain_grad", "register_hook", "data_ptr", "storage_offset", "__iter__",
    "__deepcopy__", "_values", "_array", "__dlpack__", "is_inference",
):  # fmt: skip
    setattr(Tracer, _name, _valueless(_name.strip("_")))
for _name in ("storage", "ptr", "data", "requires_grad", "grad", "grad_fn", "is_leaf", "_version"):
    setattr(Tracer, _name, property(_valueless(_name.strip("_"))))


def _no_version(self: Tracer) -> Any:
    raise NotImplementedError(
        f"tgrad.fuse: an operation{_where()} works in place. Use the one that returns a new tensor: x + y for x += y."
    )


setattr(Tracer, "version", property(_no_version))  # noqa: B010  what every write in place asks for first
