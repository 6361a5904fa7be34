"""The operations of `Tensor`: its methods and operators, by theme. `install` puts them on the class."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from tgrad import arithmetic, dtypes, engine, modes
from tgrad.aliasing import refresh
from tgrad.arguments import Number, named, operand
from tgrad.dtypes import dtype
from tgrad.functions import BINARY, FUNCTIONS, NO_METHODS, UNARY, scaled
from tgrad.graph import Node
from tgrad.hooks import RemovableHandle, leaf_hooks
from tgrad.inplace import write
from tgrad.operators import Arithmetic
from tgrad.ops import advanced, creation, library, pointwise as p, reduce, views
from tgrad.ops.transfer import convert, copy_into
from tgrad.random import Generator
from tgrad.tensor import INFERENCE, NO_GRAD, Tensor, Version, make


class Shape:
    """Views and copies."""

    view, contiguous, expand = views.view, views.contiguous, reduce.expand
    __getitem__, __setitem__ = advanced.getitem, advanced.setitem

    def view_as(self, other: Tensor) -> Tensor:
        return views.view(self, *other.shape)  # type: ignore[arg-type]

    def reshape_as(self, other: Tensor) -> Tensor:
        return views.reshape(self, *other.shape)  # type: ignore[arg-type]

    def expand_as(self, other: Tensor) -> Tensor:
        return reduce.expand(self, *other.shape)  # type: ignore[arg-type]

    @property
    def T(self) -> Tensor:
        return views.permute(self, *reversed(range(self.ndim)))  # type: ignore[attr-defined, arg-type]

    @property
    def mT(self) -> Tensor:
        return views.transpose(self, -2, -1)  # type: ignore[arg-type]

    def clone(self) -> Tensor:
        """A copy, through which gradients flow."""
        return p.clone(self)

    def detach(self) -> Tensor:
        """The same memory without history; writes to either are seen, and counted, by both."""
        return _alias(self, self.version)  # type: ignore[attr-defined]

    @property
    def data(self) -> Tensor:
        """The same memory without history, with a write counter of its own: writes through it go unnoticed."""
        return _alias(self, None if self.version is None else Version.zero())  # type: ignore[attr-defined]

    def detach_(self) -> Tensor:
        """Forget the history of this tensor object."""
        t: Any = self
        if t.alias is not None:
            raise RuntimeError("Can't detach views in-place. Use detach() instead. ")
        t.node, t._requires_grad = None, False
        return t


def _rebuild(cls: type[Tensor], data: Any, kind: dtypes.dtype, device: Any, requires_grad: bool) -> Tensor:
    t = creation.empty(*data.shape, dtype=kind, device=device if device.type == "cpu" else None)
    t.storage.write(data)
    if cls is not Tensor:
        return cls(t, requires_grad)  # type: ignore[call-arg]
    return t.requires_grad_(requires_grad)


class Pickle:
    """Pickling: the values travel, in row-major order; history and memory shared with other tensors do not."""

    def __reduce_ex__(self, protocol: Any) -> tuple:
        t: Any = self
        if t.requires_grad and t.grad_fn is not None:
            raise RuntimeError("a tensor with history cannot be pickled: detach() it first")
        return _rebuild, (type(t), t._array().copy(order="C"), t.dtype, t.device, t.requires_grad)


def _alias(t: Any, version: Any) -> Tensor:
    return make(t.layout, t.storage, t.ptr, version)


class Convert:
    """dtypes and devices."""

    def to(self, *args: Any, dtype: dtype | None = None, device: Any = None, copy: bool = False, **_: Any) -> Tensor:
        """Convert to a dtype, a device, or both (or to those of another tensor); self if nothing changes.

        Raises:
            RuntimeError: there is no such device.
        """
        for a in args:
            if isinstance(a, dtypes.dtype):
                dtype = a
            elif isinstance(a, Tensor):
                dtype, device = a.dtype, a.device
            elif isinstance(a, bool):
                copy = copy or a
            elif a is not None:
                device = a
        return convert(self, dtype, device, copy)  # type: ignore[arg-type]

    def cpu(self) -> Tensor:
        return convert(self, where="cpu")  # type: ignore[arg-type]

    def cuda(self, device: Any = None) -> Tensor:
        return convert(self, where="cuda" if device is None else device)  # type: ignore[arg-type]

    def type_as(self, other: Tensor) -> Tensor:
        return convert(self, other.dtype, other.device)  # type: ignore[arg-type]


def _cast_method(kind: dtype) -> Callable[[Tensor], Tensor]:
    def method(self: Tensor) -> Tensor:
        return convert(self, kind)

    return named(method, kind.name)


CASTS = {"float": dtypes.float32, "double": dtypes.float64, "half": dtypes.float16, "bfloat16": dtypes.bfloat16,
         "int": dtypes.int32, "long": dtypes.int64, "bool": dtypes.bool_, "byte": dtypes.uint8}  # fmt: skip


# --- in place --------------------------------------------------------------------------------------------------------
class InPlace:
    """Methods that write into the tensor."""

    def copy_(self, source: Tensor) -> Tensor:
        """Write the values of `source`, broadcast and converted."""
        return copy_into(self, source)  # type: ignore[arg-type]

    def fill_(self, value: Number) -> Tensor:
        return write(p.copy, self, (operand("fill_", value),))  # type: ignore[arg-type]

    def zero_(self) -> Tensor:
        return write(p.copy, self, (0,))  # type: ignore[arg-type]

    def add_(self, other: Any, *, alpha: Number = 1) -> Tensor:
        return write(p.add, self, scaled(p.add, self, other, alpha))  # type: ignore[arg-type]

    def sub_(self, other: Any, *, alpha: Number = 1) -> Tensor:
        return write(p.sub, self, scaled(p.sub, self, other, alpha))  # type: ignore[arg-type]

    def clamp_(self, min: Any = None, max: Any = None) -> Tensor:
        if min is None:
            return write(p.clamp_max, self, (self, operand("clamp_", max)))  # type: ignore[arg-type]
        if max is None:
            return write(p.clamp_min, self, (self, operand("clamp_", min)))  # type: ignore[arg-type]
        return write(p.clamp, self, (self, operand("clamp_", min), operand("clamp_", max)))  # type: ignore[arg-type]

    def clamp_min_(self, min: Any) -> Tensor:
        return self.clamp_(min=min)

    def clamp_max_(self, max: Any) -> Tensor:
        return self.clamp_(max=max)

    def uniform_(self, low: float = 0.0, high: float = 1.0, *, generator: Generator | None = None) -> Tensor:
        return _draw(self, "uniform", low, high - low, generator)  # type: ignore[arg-type]

    def normal_(self, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None) -> Tensor:
        return _draw(self, "normal", mean, std, generator)  # type: ignore[arg-type]


def _draw(t: Tensor, kind: str, a: float, b: float, generator: Generator | None) -> Tensor:
    with modes.no_grad():
        drawn = creation.draw_into(creation.empty(*t.shape, dtype=t.dtype), kind, a, b, generator)
    return write(p.copy, t, (drawn,))


def _inplace_unary(row: p.Pointwise) -> Callable[[Tensor], Tensor]:
    return named(lambda self: write(row, self, (self,)), row.name + "_")


def _inplace_binary(row: p.Pointwise) -> Callable[[Tensor, Any], Tensor]:
    return named(lambda self, other: write(row, self, (self, operand(row.name, other))), row.name + "_")


# --- autograd --------------------------------------------------------------------------------------------------------
class Autograd:
    """What the graph knows of a tensor; backward, hooks and retained gradients."""

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to it. A view of a tensor that requires grad does, unless it was made without grad."""
        t: Any = self
        alias = t.alias
        return t._requires_grad or (
            alias is not None and alias.creation not in (NO_GRAD, INFERENCE) and alias.base._requires_grad
        )

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)  # type: ignore[attr-defined]

    @property
    def grad_fn(self) -> Node | None:
        """The node that made it; None for a leaf.

        Raises:
            RuntimeError: it is a view made without grad, or one of several, and its base has been written since.
        """
        t: Any = self
        if t.alias is not None:
            refresh(t)
        return None if t.node is None else t.node.target()[0]

    @property
    def is_leaf(self) -> bool:
        return self.grad_fn is None

    def backward(self, gradient: Tensor | None = None, retain_graph: bool | None = None, create_graph: bool = False,
                 inputs: Tensor | Sequence[Tensor] | None = None) -> None:  # fmt: skip
        """Accumulate the gradient of this tensor into the leaves. See `tgrad.autograd.backward`."""
        engine.backward(self, None if gradient is None else [gradient], retain_graph, create_graph, inputs)  # type: ignore[arg-type]

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
        """Call hook(grad) with the total gradient of each backward; what it returns (if not None) goes on instead.

        Raises:
            RuntimeError: the tensor does not require grad.
        """
        t: Any = self
        if t.alias is not None:
            refresh(t)
        if not t._requires_grad:
            raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
        if t.node is None:
            return RemovableHandle(hook, leaf_hooks(t).tensor)
        if t.node.hooks is None:
            t.node.hooks = {}
        return RemovableHandle(hook, t.node.hooks)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> RemovableHandle:
        """Call hook(leaf) after each backward that changed `.grad`.

        Raises:
            RuntimeError: the tensor does not require grad, or is no leaf.
        """
        t: Any = self
        if not t._requires_grad:
            raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
        if t.node is not None:
            raise RuntimeError("post accumulate grad hooks cannot be registered on non-leaf tensors")
        return RemovableHandle(hook, leaf_hooks(t).accumulated)

    def retain_grad(self) -> None:
        """Keep the gradient of this non-leaf in `.grad`."""
        t: Any = self
        if t.alias is not None:
            refresh(t)
        if not t._requires_grad:
            raise RuntimeError("can't retain_grad on Tensor that has requires_grad=False")
        if t.node is None or t.node.retains is not None:
            return
        reference = weakref.ref(t)

        def keep(g: Tensor) -> None:
            alive = reference()
            if alive is not None:
                alive._grad = p.clone(g) if alive._grad is None else p.add(alive._grad, g)

        node: Node = t.node
        node.retains = keep


INPLACE_ALIASES = {"divide": "div", "true_divide": "div", "multiply": "mul", "subtract": "sub", "negative": "neg",
                   "absolute": "abs", "clip": "clamp", "fix": "trunc", "arctan2": "atan2"}  # fmt: skip
THEMES = (Arithmetic, Shape, Pickle, Convert, InPlace, Autograd)


def install() -> None:
    """Put every method on Tensor."""
    for theme in THEMES:
        for name, member in vars(theme).items():
            if name not in (
                "__module__",
                "__doc__",
                "__dict__",
                "__weakref__",
                "__qualname__",
                "__hash__",
                "__annotations__",
            ):
                setattr(Tensor, name, member)
    for name, function in (*FUNCTIONS.items(), *library.METHODS.items()):
        if name not in NO_METHODS:
            setattr(Tensor, name, function)
    for name, kind in CASTS.items():
        setattr(Tensor, name, _cast_method(kind))
    for name in UNARY:
        setattr(Tensor, name + "_", _inplace_unary(p.TABLE[name]))
    for name in ("mul", *(n for n in BINARY if n not in ("maximum", "minimum")), *arithmetic.BITWISE):
        setattr(Tensor, name + "_", _inplace_binary(p.TABLE[name]))
    for name, method in arithmetic.IN_PLACE.items():
        setattr(Tensor, name, method)
    for alias, name in INPLACE_ALIASES.items():
        setattr(Tensor, alias + "_", getattr(Tensor, name + "_"))
    Tensor.pow_ = lambda self, exponent: write(p.pow, self, (self, operand("pow_", exponent)))  # type: ignore[attr-defined]
