"""The operators of `Tensor`: +, -, *, /, //, %, **, @, comparisons, bits, and their in-place forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tgrad import arithmetic, dispatch
from tgrad.arguments import operand
from tgrad.functions import FUNCTIONS, power
from tgrad.inplace import write
from tgrad.ops import matmul, pointwise as p
from tgrad.ops.creation import as_tensor
from tgrad.tensor import Tensor


def _binary_operator(row: p.Pointwise, reflected: bool = False) -> Callable:
    def operator(self: Tensor, other: Any) -> Any:
        if not isinstance(other, (Tensor, bool, int, float)):
            if not (hasattr(other, "item") and getattr(other, "ndim", None) == 0):
                if reflected or not isinstance(other, np.ndarray):
                    return NotImplemented
                other = as_tensor(other)
            else:
                other = other.item()
        return row(other, self) if reflected else row(self, other)

    if reflected and row not in COMMUTATIVE:
        return operator
    return dispatch.binary(row, operator)


COMMUTATIVE = (p.add, p.mul)


def _inplace_operator(row: p.Pointwise) -> Callable:
    def operator(self: Tensor, other: Any) -> Any:
        return write(row, self, (self, operand(row.name, other)))

    return operator


class Arithmetic:
    """Operators and arithmetic methods."""

    __add__, __radd__ = _binary_operator(p.add), _binary_operator(p.add, True)
    __sub__, __rsub__ = _binary_operator(p.sub), _binary_operator(p.sub, True)
    __mul__, __rmul__ = _binary_operator(p.mul), _binary_operator(p.mul, True)
    __truediv__, __rtruediv__ = _binary_operator(p.div), _binary_operator(p.div, True)
    __rdiv__ = __rtruediv__
    __iadd__, __isub__ = _inplace_operator(p.add), _inplace_operator(p.sub)
    __imul__, __itruediv__ = _inplace_operator(p.mul), _inplace_operator(p.div)
    __eq__, __ne__ = _binary_operator(p.eq), _binary_operator(p.ne)
    __lt__, __le__ = _binary_operator(p.lt), _binary_operator(p.le)
    __gt__, __ge__ = _binary_operator(p.gt), _binary_operator(p.ge)

    def __pow__(self, exponent: Any) -> Any:
        return power(self, exponent) if isinstance(exponent, (Tensor, bool, int, float)) else NotImplemented

    def __rpow__(self, base: Any) -> Any:
        return p.pow(base, self) if isinstance(base, (Tensor, bool, int, float)) else NotImplemented

    def __neg__(self) -> Tensor:
        return p.neg(self)

    def __pos__(self) -> Tensor:
        return self  # type: ignore[return-value]

    def __abs__(self) -> Tensor:
        return p.abs(self)

    def __matmul__(self, other: Any) -> Any:
        return matmul.matmul(self, other) if isinstance(other, Tensor) else NotImplemented  # type: ignore[arg-type]

    def __invert__(self) -> Tensor:
        if self.dtype.is_floating_point:  # type: ignore[attr-defined]
            raise TypeError("~ (operator.invert) is only implemented on integer and Boolean-type tensors")
        return FUNCTIONS["bitwise_not"](self)

    def __floordiv__(self, other: Any) -> Any:
        return _function_operator("floor_divide", self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return _function_operator("floor_divide", other, self)

    def __mod__(self, other: Any) -> Any:
        return _function_operator("remainder", self, other)

    def __rmod__(self, other: Any) -> Any:
        return _function_operator("remainder", other, self)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __ifloordiv__(self, other: Any) -> Any:
        return arithmetic.IN_PLACE["floor_divide_"](self, other)

    def __imod__(self, other: Any) -> Any:
        return arithmetic.IN_PLACE["remainder_"](self, other)

    def __ipow__(self, other: Any) -> Any:
        return write(p.pow, self, (self, operand("pow", other)))  # type: ignore[arg-type]

    __and__, __rand__ = _binary_operator(p.TABLE["bitwise_and"]), _binary_operator(p.TABLE["bitwise_and"], True)
    __or__, __ror__ = _binary_operator(p.TABLE["bitwise_or"]), _binary_operator(p.TABLE["bitwise_or"], True)
    __xor__, __rxor__ = _binary_operator(p.TABLE["bitwise_xor"]), _binary_operator(p.TABLE["bitwise_xor"], True)
    __lshift__ = _binary_operator(p.TABLE["bitwise_left_shift"])
    __rlshift__ = _binary_operator(p.TABLE["bitwise_left_shift"], True)
    __rshift__ = _binary_operator(p.TABLE["bitwise_right_shift"])
    __rrshift__ = _binary_operator(p.TABLE["bitwise_right_shift"], True)
    __iand__, __ior__ = _inplace_operator(p.TABLE["bitwise_and"]), _inplace_operator(p.TABLE["bitwise_or"])
    __ixor__ = _inplace_operator(p.TABLE["bitwise_xor"])
    __ilshift__ = _inplace_operator(p.TABLE["bitwise_left_shift"])
    __irshift__ = _inplace_operator(p.TABLE["bitwise_right_shift"])


def _function_operator(name: str, a: Any, b: Any) -> Any:
    if not all(isinstance(x, (Tensor, bool, int, float)) for x in (a, b)):
        return NotImplemented
    return FUNCTIONS[name](a, b)


# What the docstrings say: the symbol, and the function that does the same.
SYMBOLS = {
    "add": ("+", "add"), "sub": ("-", "sub"), "mul": ("*", "mul"), "truediv": ("/", "div"), "div": ("/", "div"),
    "floordiv": ("//", "floor_divide"), "mod": ("%", "remainder"), "pow": ("**", "pow"), "matmul": ("@", "matmul"),
    "and": ("&", "bitwise_and"), "or": ("|", "bitwise_or"), "xor": ("^", "bitwise_xor"),
    "lshift": ("<<", "bitwise_left_shift"), "rshift": (">>", "bitwise_right_shift"), "eq": ("==", "eq"),
    "ne": ("!=", "ne"), "lt": ("<", "lt"), "le": ("<=", "le"), "gt": (">", "gt"), "ge": (">=", "ge"),
}  # fmt: skip


def _describe() -> None:
    for name, (symbol, function) in SYMBOLS.items():
        for prefix, text in (
            ("", f"x {symbol} other. See `tgrad.{function}`."), ("r", f"other {symbol} x. See `tgrad.{function}`."),
            ("i", f"x {symbol}= other, in place. See `tgrad.Tensor.{function}_`."),
        ):  # fmt: skip
            operator = vars(Arithmetic).get(f"__{prefix}{name}__")
            if operator is not None:
                operator.__doc__ = text
    for name, text in {
        "neg": "-x. See `tgrad.neg`.",
        "pos": "+x: x itself.\n\nShape: any; the result has the input's.\nDtype: the input's.\nRaises: nothing.",
        "abs": "abs(x). See `tgrad.abs`.",
        "invert": "~x; TypeError of a floating tensor. See `tgrad.bitwise_not`.",
        "divmod": "(x // other, x % other). See `tgrad.floor_divide`.",
        "rdivmod": "(other // x, other % x). See `tgrad.floor_divide`.",
    }.items():  # fmt: skip
        vars(Arithmetic)[f"__{name}__"].__doc__ = text


_describe()
