"""The pointwise rows of division that rounds, of bits, and of products that are added."""

from __future__ import annotations

from typing import Any

from tgrad import dtypes
from tgrad.dtypes import dtype
from tgrad.expression import promoting
from tgrad.kernels import scalar_arithmetic as scalar
from tgrad.op import Pointwise
from tgrad.ops.math import _no_bool as _no_bools, flat
from tgrad.ops.pointwise import TABLE, _no_bool, rows


def _integers_only(name: str, bools: bool = True) -> Any:
    def check(operands: list[dtype]) -> None:
        if any(d.is_floating_point for d in operands):
            kind = next(d for d in operands if d.is_floating_point)
            raise RuntimeError(f"{name}: dtype {kind.name} is not supported; cast to an integer dtype")
        if not bools and all(d is dtypes.bool_ for d in operands):
            raise RuntimeError(f"{name}: dtype bool is not supported; cast to an integer dtype")

    return check


def _no_integer_division(operands: list[dtype]) -> None:
    if not any(d.is_floating_point for d in operands[:3]):
        raise RuntimeError("addcdiv: integer division is not supported; cast the tensors to a floating dtype")


def _same(operands: list[dtype]) -> None:
    kinds = {d.name for d in operands[:2]}
    if not operands[0].is_floating_point:
        raise RuntimeError(f"lerp: dtype {operands[0].name} is not supported; cast to a floating dtype")
    if len(kinds) > 1:
        raise RuntimeError(f"lerp: expected dtype {operands[0].name} for `end` but got dtype {operands[1].name}")


# --- division --------------------------------------------------------------------------------------------------------
div_trunc: Pointwise = Pointwise(
    "div_trunc", scalar.div_trunc, promoting, {"a": flat, "b": flat}, grad_name="Div",
    check=_no_bool("div", "logical_and"),
)  # fmt: skip
div_floor: Pointwise = Pointwise(
    "div_floor", scalar.floor_divide, promoting, {"a": flat, "b": flat}, grad_name="Div",
    check=_no_bool("div", "logical_and"),
)  # fmt: skip
floor_divide: Pointwise = Pointwise(
    "floor_divide", scalar.floor_divide, promoting, check=_no_bool("floor_divide", "logical_and")
)
remainder: Pointwise = Pointwise("remainder", scalar.remainder, promoting, {
    "a": lambda g: g, "b": lambda g, a, b: -g * div_floor(a, b),
}, check=_no_bool("remainder", "logical_and"))  # fmt: skip
fmod: Pointwise = Pointwise("fmod", scalar.fmod, promoting, {
    "a": lambda g: g, "b": lambda g, a, b: -g * div_trunc(a, b),
}, check=_no_bool("fmod", "logical_and"))  # fmt: skip

# --- bits ------------------------------------------------------------------------------------------------------------
bitwise_and: Pointwise = Pointwise("bitwise_and", scalar.bitwise_and, promoting, check=_integers_only("bitwise_and"))
bitwise_or: Pointwise = Pointwise("bitwise_or", scalar.bitwise_or, promoting, check=_integers_only("bitwise_or"))
bitwise_xor: Pointwise = Pointwise("bitwise_xor", scalar.bitwise_xor, promoting, check=_integers_only("bitwise_xor"))
bitwise_not: Pointwise = Pointwise(
    "bitwise_not", scalar.bitwise_not, promoting, check=_integers_only("bitwise_not", bools=False)
)
bitwise_left_shift: Pointwise = Pointwise(
    "bitwise_left_shift", scalar.left_shift, promoting, check=_integers_only("bitwise_left_shift", bools=False)
)
bitwise_right_shift: Pointwise = Pointwise(
    "bitwise_right_shift", scalar.right_shift, promoting, check=_integers_only("bitwise_right_shift", bools=False)
)

# --- products that are added -----------------------------------------------------------------------------------------
lerp: Pointwise = Pointwise("lerp", scalar.lerp, promoting, {
    "a": lambda g, weight: g * (1 - weight), "b": lambda g, weight: g * weight,
    "weight": lambda g, a, b: g * (b - a),
}, check=_same)  # fmt: skip
addcmul: Pointwise = Pointwise("addcmul", scalar.addcmul, promoting, {
    "x": lambda g: g, "a": lambda g, b, value: g * (b * value), "b": lambda g, a, value: g * (a * value),
}, check=_no_bools("addcmul"))  # fmt: skip
addcdiv: Pointwise = Pointwise("addcdiv", scalar.addcdiv, promoting, {
    "x": lambda g: g, "a": lambda g, b, value: g * (value / b),
    "b": lambda g, a, b, value: -g * (value * (a / (b * b))),
}, check=_no_integer_division)  # fmt: skip

TABLE.update(rows(globals()))
