"""The operations of `Tensor`: its methods and operators, by theme. `install` puts them on the class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from tgrad import dtypes
from tgrad import engine, modes
from tgrad.device import compute as compute_device
from tgrad.device import resolve
from tgrad.dtypes import dtype
from tgrad.graph import Node
from tgrad.inplace import refuse, write
from tgrad.layout import layout
from tgrad.ops import creation, matmul, reduce, views
from tgrad.ops import pointwise as p
from tgrad.tensor import Tensor, empty, make

Number = bool | int | float


def _operand(name: str, value: Any) -> Any:
    if isinstance(value, (Tensor, bool, int, float)):
        return value
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a numpy scalar
        return value.item()
    raise TypeError(f"{name}: expected a Tensor or a number, got {type(value).__name__}")


def _binary_operator(row: p.Pointwise, reflected: bool = False) -> Callable:
    def operator(self: Tensor, other: Any) -> Any:
        if not isinstance(other, (Tensor, bool, int, float)):
            if not (hasattr(other, "item") and getattr(other, "ndim", None) == 0):
                return NotImplemented
            other = other.item()
        return row(other, self) if reflected else row(self, other)

    return operator


def _inplace_operator(row: p.Pointwise) -> Callable:
    def operator(self: Tensor, other: Any) -> Any:
        return write(row, self, (self, _operand(row.name, other)))

    return operator


class Arithmetic:
    """Operators and arithmetic methods."""

    __add__, __radd__ = _binary_operator(p.add), _binary_operator(p.add, True)
    __sub__, __rsub__ = _binary_operator(p.sub), _binary_operator(p.sub, True)
    __mul__, __rmul__ = _binary_operator(p.mul), _binary_operator(p.mul, True)
    __truediv__, __rtruediv__ = _binary_operator(p.div), _binary_operator(p.div, True)
    __iadd__, __isub__ = _inplace_operator(p.add), _inplace_operator(p.sub)
    __imul__, __itruediv__ = _inplace_operator(p.mul), _inplace_operator(p.div)
    __eq__, __ne__ = _binary_operator(p.eq), _binary_operator(p.ne)  # type: ignore[assignment]
    __lt__, __le__ = _binary_operator(p.lt), _binary_operator(p.le)
    __gt__, __ge__ = _binary_operator(p.gt), _binary_operator(p.ge)

    def __pow__(self, exponent: Any) -> Any:
        return _power(self, exponent) if isinstance(exponent, (Tensor, bool, int, float)) else NotImplemented

    def __rpow__(self, base: Any) -> Any:
        return p.pow(base, self) if isinstance(base, (bool, int, float)) else NotImplemented

    def __neg__(self) -> Tensor:
        return p.neg(self)

    def __pos__(self) -> Tensor:
        return self  # type: ignore[return-value]

    def __abs__(self) -> Tensor:
        return p.abs(self)

    def __matmul__(self, other: Any) -> Any:
        return matmul.matmul(self, other) if isinstance(other, Tensor) else NotImplemented  # type: ignore[arg-type]

    def __invert__(self) -> Tensor:
        if self.dtype is not dtypes.bool_:  # type: ignore[attr-defined]
            raise TypeError(f"~: expected a bool tensor, got {self.dtype!r}")  # type: ignore[attr-defined]
        return p.logical_not(self)

    def __and__(self, other: Any) -> Any:
        return _bitwise(p.logical_and, "&", self, other)

    def __or__(self, other: Any) -> Any:
        return _bitwise(p.logical_or, "|", self, other)

    def __xor__(self, other: Any) -> Any:
        return _bitwise(p.logical_xor, "^", self, other)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__


def _bitwise(row: p.Pointwise, sign: str, a: Any, b: Any) -> Any:
    for x in (a, b):
        kind = x.dtype if isinstance(x, Tensor) else type(x)
        if kind not in (dtypes.bool_, bool):
            raise TypeError(f"{sign}: expected bool tensors, got {kind!r}")
    return row(a, b)


def _power(base: Any, exponent: Any) -> Any:
    if isinstance(base, Tensor) and isinstance(exponent, int) and not base.is_floating_point() and exponent < 0:
        raise RuntimeError("Integers to negative integer powers are not allowed.")
    return p.pow(base, exponent)


def _scaled(row: p.Pointwise, input: Any, other: Any, alpha: Number) -> tuple:
    other = _operand(row.name, other)
    return input, other if alpha == 1 else other * alpha


# --- functions, which are methods too ------------------------------------------------------------------------------------
def add(input: Tensor, other: Any, *, alpha: Number = 1) -> Tensor:
    """input + alpha * other."""
    return p.add(*_scaled(p.add, input, other, alpha))


def sub(input: Tensor, other: Any, *, alpha: Number = 1) -> Tensor:
    """input - alpha * other."""
    return p.sub(*_scaled(p.sub, input, other, alpha))


def mul(input: Tensor, other: Any) -> Tensor:
    """input * other."""
    return p.mul(input, _operand("mul", other))


def div(input: Tensor, other: Any) -> Tensor:
    """input / other; integers are divided as floats."""
    return p.div(input, _operand("div", other))


def pow(input: Any, exponent: Any) -> Tensor:
    """input ** exponent.

    Raises:
        RuntimeError: an integer tensor to a negative integer power.
    """
    return _power(_operand("pow", input), _operand("pow", exponent))


def clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """input limited to [min, max]; either may be None, a number or a tensor."""
    if min is None and max is None:
        raise RuntimeError("torch.clamp: At least one of 'min' or 'max' must not be None")
    if min is None:
        return p.clamp_max(input, _operand("clamp", max))
    if max is None:
        return p.clamp_min(input, _operand("clamp", min))
    return p.clamp(input, _operand("clamp", min), _operand("clamp", max))


def where(condition: Tensor, input: Any, other: Any) -> Tensor:
    """input where condition, else other.

    Raises:
        RuntimeError: the condition is not bool.
    """
    if not isinstance(condition, Tensor) or condition.dtype is not dtypes.bool_:
        got = repr(condition.dtype) if isinstance(condition, Tensor) else type(condition).__name__
        raise RuntimeError(f"where expected condition to be a boolean tensor, but got {got}")
    return p.where(condition, _operand("where", input), _operand("where", other))


def _unary(row: p.Pointwise) -> Callable[[Tensor], Tensor]:
    def function(input: Tensor) -> Tensor:
        return row(_tensor(row.name, input))

    return _named(function, row.name)


def _binary(row: p.Pointwise) -> Callable[[Tensor, Any], Tensor]:
    def function(input: Tensor, other: Any) -> Tensor:
        return row(_tensor(row.name, input), _operand(row.name, other))

    return _named(function, row.name)


def _tensor(name: str, x: Any) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}(): argument 'input' must be Tensor, not {type(x).__name__}")
    return x


def _named(function: Callable, name: str) -> Callable:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"`torch.{name}`, elementwise."
    return function


UNARY = ("neg", "abs", "exp", "log", "sqrt", "rsqrt", "reciprocal", "square", "sin", "cos", "tanh", "erf", "sigmoid", "relu", "logical_not")
BINARY = ("maximum", "minimum", "eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor")
FUNCTIONS: dict[str, Callable] = {name: _unary(p.TABLE[name]) for name in UNARY}
FUNCTIONS |= {name: _binary(p.TABLE[name]) for name in BINARY}
FUNCTIONS |= {f.__name__: f for f in (add, sub, mul, div, pow, clamp, where)}
FUNCTIONS |= {
    "negative": FUNCTIONS["neg"], "subtract": sub, "multiply": mul, "divide": div, "true_divide": div, "clip": clamp,
    "absolute": FUNCTIONS["abs"],
}  # fmt: skip
FUNCTIONS |= {f.__name__: f for f in (reduce.sum, reduce.mean, reduce.amax, reduce.amin, matmul.matmul, matmul.mm, matmul.bmm)}
VIEWS = ("reshape", "flatten", "permute", "transpose", "t", "squeeze", "unsqueeze", "select", "narrow", "unbind", "split")
FUNCTIONS |= {name: getattr(views, name) for name in VIEWS}


class Shape:
    """Views and copies."""

    view, contiguous, expand = views.view, views.contiguous, reduce.expand
    __getitem__ = views.index

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

    def __setitem__(self, key: Any, value: Any) -> None:
        part = views.index(self, key)  # type: ignore[arg-type]
        _copy_into(part, _operand("setitem", value) if not isinstance(value, (list, tuple)) else creation.tensor(value))

    def clone(self) -> Tensor:
        """A copy, through which gradients flow."""
        return p.clone(self)

    def detach(self) -> Tensor:
        """The same memory without history; writes to either are seen, and counted, by both."""
        return _alias(self, self.version)  # type: ignore[attr-defined]

    @property
    def data(self) -> Tensor:
        """The same memory without history, with a write counter of its own: writes through it go unnoticed."""
        from tgrad.tensor import Version

        return _alias(self, None if self.version is None else Version())  # type: ignore[attr-defined]

    def detach_(self) -> Tensor:
        """Forget the history of this tensor object."""
        t: Any = self
        if t.base is not None:
            raise RuntimeError("Can't detach views in-place. Use detach() instead. ")
        t.node, t._requires_grad = None, False
        return t


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
        return _convert(self, dtype, device, copy)  # type: ignore[arg-type]

    def cpu(self) -> Tensor:
        return _convert(self, None, "cpu", False)  # type: ignore[arg-type]

    def cuda(self, device: Any = None) -> Tensor:
        return _convert(self, None, "cuda" if device is None else device, False)  # type: ignore[arg-type]

    def type_as(self, other: Tensor) -> Tensor:
        return _convert(self, other.dtype, other.device, False)  # type: ignore[arg-type]

    @property
    def is_leaf_cpu(self) -> bool:
        return self.device.type == "cpu"  # type: ignore[attr-defined]


def _convert(t: Tensor, kind: dtype | None, where: Any, copy: bool) -> Tensor:
    target = t.device if where is None else resolve(where)
    kind = kind or t.dtype
    if target is t.device:
        if kind is not t.dtype:
            if target is not compute_device:
                return creation.from_numpy(creation._encode(t._values(), kind)) if kind is not dtypes.bfloat16 else _host_cast(t, kind)
            return p.cast(kind)(t)
        return p.clone(t) if copy else t
    if kind is not t.dtype and t.device is compute_device:
        t = p.cast(kind)(t)
    moved = _move_op(t.device, target)(views.contiguous(t) if t.device is compute_device else t)
    return moved if kind is moved.dtype else _convert(moved, kind, None, False)


def _host_cast(t: Tensor, kind: dtype) -> Tensor:
    out = empty(layout(kind, tuple(t.shape), None, t.device), modes.current().inference)
    out.storage.write(creation._encode(t._values(), kind))
    return out


@functools.cache
def _move_op(source: Any, target: Any) -> Callable[[Tensor], Tensor]:
    """Copies a tensor's bytes to another device. Its gradient goes back the same way."""

    def move(t: Tensor) -> Tensor:
        out = empty(layout(t.dtype, tuple(t.shape), t.layout.strides, target), modes.current().inference)
        if t.layout.extent:
            out.storage.copy_range(t.storage, t.ptr - t.storage.ptr, out.storage.nbytes)
        if t._requires_grad and modes.current().record:
            raise RuntimeError(f"moving a tensor that requires grad from {source} to {target} is not recorded: detach() it first")
        return out

    return move


def _cast_method(kind: dtype) -> Callable[[Tensor], Tensor]:
    def method(self: Tensor) -> Tensor:
        return _convert(self, kind, None, False)

    return _named(method, kind.name)


CASTS = {"float": dtypes.float32, "double": dtypes.float64, "half": dtypes.float16, "bfloat16": dtypes.bfloat16,
         "int": dtypes.int32, "long": dtypes.int64, "bool": dtypes.bool_, "byte": dtypes.uint8}  # fmt: skip


# --- in place --------------------------------------------------------------------------------------------------------
def _copy_into(target: Tensor, source: Any) -> Tensor:
    if isinstance(source, Tensor) and source.device is not target.device:
        source = source.to(device=target.device)
    if target.device is not compute_device:
        refuse(target, modes.current(), False)
        target._array()[...] = creation._encode(source._values() if isinstance(source, Tensor) else source, target.dtype)
        target.version.value += 1  # type: ignore[union-attr]
        return target
    if target.layout.numel == 0:
        return target
    return write(p.copy, target, (source,))


class InPlace:
    """Methods that write into the tensor."""

    def copy_(self, source: Tensor) -> Tensor:
        """Write the values of `source`, broadcast and converted."""
        return _copy_into(self, source)  # type: ignore[arg-type]

    def fill_(self, value: Number) -> Tensor:
        return write(p.copy, self, (_operand("fill_", value),))  # type: ignore[arg-type]

    def zero_(self) -> Tensor:
        return write(p.copy, self, (0,))  # type: ignore[arg-type]

    def add_(self, other: Any, *, alpha: Number = 1) -> Tensor:
        return write(p.add, self, _scaled(p.add, self, other, alpha))  # type: ignore[arg-type]

    def sub_(self, other: Any, *, alpha: Number = 1) -> Tensor:
        return write(p.sub, self, _scaled(p.sub, self, other, alpha))  # type: ignore[arg-type]

    def clamp_(self, min: Any = None, max: Any = None) -> Tensor:
        if min is None:
            return write(p.clamp_max, self, (self, _operand("clamp_", max)))  # type: ignore[arg-type]
        if max is None:
            return write(p.clamp_min, self, (self, _operand("clamp_", min)))  # type: ignore[arg-type]
        return write(p.clamp, self, (self, _operand("clamp_", min), _operand("clamp_", max)))  # type: ignore[arg-type]

    def uniform_(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        return _draw(self, "uniform", low, high - low)  # type: ignore[arg-type]

    def normal_(self, mean: float = 0.0, std: float = 1.0) -> Tensor:
        return _draw(self, "normal", mean, std)  # type: ignore[arg-type]


def _draw(t: Tensor, kind: str, a: float, b: float) -> Tensor:
    with modes.no_grad():
        drawn = creation.draw_into(creation.empty(*t.shape, dtype=t.dtype), kind, a, b)
    return write(p.copy, t, (drawn,))


def _inplace_unary(row: p.Pointwise) -> Callable[[Tensor], Tensor]:
    return _named(lambda self: write(row, self, (self,)), row.name + "_")


def _inplace_binary(row: p.Pointwise) -> Callable[[Tensor, Any], Tensor]:
    return _named(lambda self, other: write(row, self, (self, _operand(row.name, other))), row.name + "_")


# --- autograd --------------------------------------------------------------------------------------------------------
class Handle:
    """Removes a hook; removing twice does nothing."""

    def __init__(self, hooks: list, hook: Callable) -> None:
        self._hooks, self._hook = hooks, hook

    def remove(self) -> None:
        if self._hook in self._hooks:
            self._hooks.remove(self._hook)

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


class Autograd:
    """Backward, hooks and retained gradients."""

    def backward(self, gradient: Tensor | None = None, retain_graph: bool | None = None, create_graph: bool = False,
                 inputs: Tensor | Sequence[Tensor] | None = None) -> None:  # fmt: skip
        """Accumulate the gradient of this tensor into the leaves. See `tgrad.autograd.backward`."""
        engine.backward(self, None if gradient is None else [gradient], retain_graph, create_graph, inputs)  # type: ignore[arg-type]

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Handle:
        """Call hook(grad) with the total gradient of each backward; what it returns (if not None) goes on instead.

        Raises:
            RuntimeError: the tensor does not require grad.
        """
        t: Any = self
        if not t._requires_grad:
            raise RuntimeError("cannot register a hook on a tensor that doesn't require gradient")
        holder = t if t.node is None else t.node
        if holder.hooks is None:
            holder.hooks = []
        holder.hooks.append(hook)
        return Handle(holder.hooks, hook)

    def retain_grad(self) -> None:
        """Keep the gradient of this non-leaf in `.grad`."""
        t: Any = self
        if not t._requires_grad:
            raise RuntimeError("can't retain_grad on Tensor that has requires_grad=False")
        if t.node is None or t.node.retains is not None:
            return
        import weakref

        reference = weakref.ref(t)

        def keep(g: Tensor) -> None:
            alive = reference()
            if alive is not None:
                alive._grad = p.clone(g) if alive._grad is None else p.add(alive._grad, g)

        node: Node = t.node
        node.retains = keep


THEMES = (Arithmetic, Shape, Convert, InPlace, Autograd)


def install() -> None:
    """Put every method on Tensor."""
    for theme in THEMES:
        for name, member in vars(theme).items():
            if name not in ("__module__", "__doc__", "__dict__", "__weakref__", "__qualname__", "__hash__", "__annotations__"):
                setattr(Tensor, name, member)
    for name, function in FUNCTIONS.items():
        setattr(Tensor, name, function)
    for name, kind in CASTS.items():
        setattr(Tensor, name, _cast_method(kind))
    for name in UNARY:
        if name != "logical_not":
            setattr(Tensor, name + "_", _inplace_unary(p.TABLE[name]))
    for name in ("mul", "div"):
        setattr(Tensor, name + "_", _inplace_binary(p.TABLE[name]))
    Tensor.pow_ = lambda self, exponent: write(p.pow, self, (self, _operand("pow_", exponent)))  # type: ignore[attr-defined]
