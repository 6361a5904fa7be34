"""The operations of `Tensor`: its methods and operators, by theme. `install` puts them on the class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tgrad import arithmetic, docstrings, dtypes, modes
from tgrad.arguments import Number, named, operand
from tgrad.autograd_methods import Autograd
from tgrad.dtypes import dtype
from tgrad.formats import formatted, memory_format, preserve_format
from tgrad.functions import BINARY, FUNCTIONS, NO_METHODS, UNARY, scaled
from tgrad.inplace import write
from tgrad.operators import Arithmetic
from tgrad.ops import advanced, creation, library, pointwise as p, reduce, views
from tgrad.ops.transfer import convert, copy_into
from tgrad.random import Generator
from tgrad.tensor import Tensor, Version, make


class Shape:
    """Views and copies."""

    view, contiguous, expand = views.view, views.contiguous, reduce.expand
    __getitem__, __setitem__ = advanced.getitem, advanced.setitem

    def view_as(self, other: Tensor) -> Tensor:
        """The tensor in other's shape. See `tgrad.Tensor.view`.

        Shape: other's.
        Dtype: the input's.
        Raises:
            RuntimeError: other has another number of elements, or only a copy could have its shape.
        """
        return views.view(self, *other.shape)  # type: ignore[arg-type]

    def reshape_as(self, other: Tensor) -> Tensor:
        """The tensor in other's shape. See `tgrad.reshape`.

        Shape: other's.
        Dtype: the input's.
        Raises:
            RuntimeError: other has another number of elements.
        """
        return views.reshape(self, *other.shape)  # type: ignore[arg-type]

    def expand_as(self, other: Tensor) -> Tensor:
        """The tensor expanded to other's shape. See `tgrad.Tensor.expand`.

        Shape: other's.
        Dtype: the input's.
        Raises:
            RuntimeError: another size than 1 would have to change.
        """
        return reduce.expand(self, *other.shape)  # type: ignore[arg-type]

    def where(self, condition: Tensor, other: Any) -> Tensor:
        """This tensor where condition, else `other`: see `tgrad.where`.

        Shape: the three broadcast.
        Dtype: the common dtype of this tensor and `other`; the condition is bool.
        Raises:
            RuntimeError: the condition is not bool; the shapes do not broadcast.
        """
        return FUNCTIONS["where"](condition, self, other)

    @property
    def T(self) -> Tensor:
        """The dimensions in reverse order. A view.

        Shape: the sizes in reverse.
        Dtype: the input's.
        Raises: nothing.
        """
        return views.permute(self, *reversed(range(self.ndim)))  # type: ignore[attr-defined, arg-type]

    @property
    def mT(self) -> Tensor:
        """The last two dimensions swapped. A view.

        Shape: (..., M, N) gives (..., N, M).
        Dtype: the input's.
        Raises:
            IndexError: fewer than two dimensions.
        """
        return views.transpose(self, -2, -1)  # type: ignore[arg-type]

    def clone(self, *, memory_format: memory_format = preserve_format) -> Tensor:
        """A copy, through which gradients flow.

        Shape: any; the result has the input's.
        Dtype: the input's.
        Raises: nothing.
        """
        return p.clone(self) if memory_format is preserve_format else formatted(p.clone(self), memory_format)

    def detach(self) -> Tensor:
        """The same memory without history; writes to either are seen, and counted, by both.

        Shape: any; the result has the input's.
        Dtype: the input's.
        Raises: nothing.
        """
        return _alias(self, self.version)  # type: ignore[attr-defined]

    @property
    def data(self) -> Tensor:
        """The same memory without history, with a write counter of its own: writes through it go unnoticed.

        Shape: any; the result has the input's.
        Dtype: the input's.
        Raises: nothing.
        """
        return _alias(self, None if self.version is None else Version.zero())  # type: ignore[attr-defined]

    def detach_(self) -> Tensor:
        """Forget the history of this tensor object.

        Shape: any; kept.
        Dtype: any; kept.
        Raises:
            RuntimeError: the tensor is a view.
        """
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


class Numpy:
    """What numpy's functions and operators do with tensors among their arguments."""

    __array_priority__ = 1000  # np.float64(2) * x is left to x

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        """What numpy's functions make of a tensor is a tensor, on the device that computes; bools become uint8.

        Shape: any.
        Dtype: the array's.
        Raises:
            TypeError: a dtype that tgrad lacks.
        """
        return creation.tensor(array.astype(np.uint8) if array.dtype == np.bool_ else array)


def _alias(t: Any, version: Any) -> Tensor:
    return make(t.layout, t.storage, t.ptr, version)


class Convert:
    """dtypes and devices."""

    def to(self, *args: Any, dtype: dtype | None = None, device: Any = None, copy: bool = False,
           memory_format: memory_format = preserve_format, **_: Any) -> Tensor:  # fmt: skip
        """Convert to a dtype, a device, or both (or to those of another tensor); self if nothing changes.

        Shape: any; the result has the input's.
        Dtype: the one asked for, else the tensor's.
        Raises:
            RuntimeError: there is no such device; on a CUDA machine, a CPU tensor that requires grad would change its
                dtype.
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
        converted = convert(self, dtype, device, copy)  # type: ignore[arg-type]
        return self if converted is self else formatted(converted, memory_format)  # type: ignore[return-value]

    def cpu(self) -> Tensor:
        """The tensor on the CPU; itself if it is there.

        Shape: any; the result has the input's.
        Dtype: the input's.
        Raises: nothing.
        """
        return convert(self, where="cpu")  # type: ignore[arg-type]

    def cuda(self, device: Any = None) -> Tensor:
        """The tensor on the CUDA device; itself if it is there.

        Shape: any; the result has the input's.
        Dtype: the input's.
        Raises:
            RuntimeError: there is no such device.
        """
        return convert(self, where="cuda" if device is None else device)  # type: ignore[arg-type]

    def type_as(self, other: Tensor) -> Tensor:
        """The tensor in other's dtype, on its device. See `tgrad.Tensor.to`.

        Shape: any; the result has the input's.
        Dtype: other's.
        Raises:
            RuntimeError: on a CUDA machine, a CPU tensor that requires grad would change its dtype.
        """
        return convert(self, other.dtype, other.device)  # type: ignore[arg-type]


_ROUNDS = (" What is not zero is True.", " Floats are rounded toward zero.", "")  # to bool, integers, floats


def _cast_method(kind: dtype) -> Callable[..., Tensor]:
    def method(self: Tensor, memory_format: memory_format = preserve_format) -> Tensor:
        converted = convert(self, kind)
        return self if converted is self else formatted(converted, memory_format)

    doc = f"""The values in {kind.name}; self if they are already.

    Shape: any; the result has the input's.
    Dtype: {kind.name}.{_ROUNDS[kind.category]}
    Raises: nothing.
    """
    return named(method, kind.name, doc)


CASTS = {"float": dtypes.float32, "double": dtypes.float64, "half": dtypes.float16, "bfloat16": dtypes.bfloat16,
         "int": dtypes.int32, "long": dtypes.int64, "bool": dtypes.bool_, "byte": dtypes.uint8}  # fmt: skip


# --- in place --------------------------------------------------------------------------------------------------------
class InPlace:
    """Methods that write into the tensor."""

    def copy_(self, source: Tensor) -> Tensor:
        """Write the values of `source`, broadcast and converted.

        Shape: kept; source broadcasts to it.
        Dtype: kept; source is converted.
        Raises:
            RuntimeError: source does not broadcast; the write is refused.
            TypeError: source is neither a Tensor nor a number.
        """
        return copy_into(self, source)  # type: ignore[arg-type]

    def fill_(self, value: Number) -> Tensor:
        """Write one value everywhere.

        Shape: any; kept.
        Dtype: kept; the number is converted.
        Raises:
            TypeError: value is neither a Tensor nor a number.
            RuntimeError: the write is refused.
        """
        return write(p.copy, self, (operand("fill_", value),))  # type: ignore[arg-type]

    def zero_(self) -> Tensor:
        """Write zeros.

        Shape: any; kept.
        Dtype: any; kept.
        Raises:
            RuntimeError: the write is refused.
        """
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
        """Draw uniform numbers in [low, high).

        Shape: any; kept.
        Dtype: floating; kept.
        Raises:
            RuntimeError: the dtype is not floating; the write is refused.
        """
        return _draw(self, "uniform", low, high - low, generator)  # type: ignore[arg-type]

    def normal_(self, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None) -> Tensor:
        """Draw normal numbers.

        Shape: any; kept.
        Dtype: floating; kept.
        Raises:
            RuntimeError: the dtype is not floating; the write is refused.
        """
        return _draw(self, "normal", mean, std, generator)  # type: ignore[arg-type]


def _draw(t: Tensor, kind: str, a: float, b: float, generator: Generator | None) -> Tensor:
    with modes.no_grad():
        drawn = creation.draw_into(creation.empty(*t.shape, dtype=t.dtype), kind, a, b, generator)
    return write(p.copy, t, (drawn,))


def _inplace_unary(row: p.Pointwise) -> Callable[[Tensor], Tensor]:
    doc = docstrings.in_place(docstrings.of_row(row))
    return named(lambda self: write(row, self, (self,)), row.name + "_", doc)


def _inplace_binary(row: p.Pointwise) -> Callable[[Tensor, Any], Tensor]:
    doc = docstrings.in_place(docstrings.of_row(row))
    return named(lambda self, other: write(row, self, (self, operand(row.name, other))), row.name + "_", doc)


INPLACE_ALIASES = {"divide": "div", "true_divide": "div", "multiply": "mul", "subtract": "sub", "negative": "neg",
                   "absolute": "abs", "clip": "clamp", "fix": "trunc", "arctan2": "atan2"}  # fmt: skip
THEMES = (Arithmetic, Shape, Pickle, Numpy, Convert, InPlace, Autograd)


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
    power = lambda self, exponent: write(p.pow, self, (self, operand("pow_", exponent)))
    Tensor.pow_ = named(power, "pow_", docstrings.in_place(FUNCTIONS["pow"].__doc__ or ""))  # type: ignore[attr-defined]
    for name in ("add", "sub", "clamp", "clamp_min", "clamp_max"):
        vars(InPlace)[name + "_"].__doc__ = docstrings.in_place(FUNCTIONS[name].__doc__ or "")
