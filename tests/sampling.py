"""What a row of the sample table is: inputs, the cases they are tried in, and the tensors made of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

import tgrad
from tests.compare import INTEGERS, pair, random
from tgrad.op import Op


# --- inputs ----------------------------------------------------------------------------------------------------------
def real(rng, shape):
    return rng.normal(size=shape) * 2


def positive(rng, shape):
    return np.exp(rng.normal(size=shape) * 0.7)


def nonzero(rng, shape):
    return rng.choice([-1.0, 1.0], size=shape) * positive(rng, shape)


def truth(rng, shape):
    return rng.random(size=shape) < 0.5


def classes(rng, shape):
    return rng.integers(0, 5, size=shape)


def ones(rng, shape):
    return np.ones(shape)


class Input(NamedTuple):
    """A tensor argument: where its values come from, whether it is differentiable, and its dtype if that is fixed."""

    domain: Callable = real
    grad: bool = True
    dtype: Any = None


CONDITION, CLASSES = Input(truth, False, tgrad.bool), Input(classes, False, tgrad.int64)


@dataclass(frozen=True)
class Case:
    """Shapes and arrangements of the inputs, and settings of the op. `length`: most numbers added up for one result."""

    id: str
    shapes: tuple[tuple[int, ...], ...]
    ways: tuple[str, ...]
    settings: dict = field(default_factory=dict)
    length: int = 1


def case(id: str, *shapes: tuple[int, ...], ways: str = "", length: int | None = None, **settings: Any) -> Case:
    """`ways`: names of arrangements separated by blanks; the rest are plain."""
    given = tuple(ways.split())
    whole = max(math.prod(s) for s in shapes)
    if length is None:  # a gradient that was broadcast is summed
        length = max(1, math.prod(np.broadcast_shapes(*shapes)) // max(1, min(math.prod(s) for s in shapes)))
    return Case(id, shapes, given + ("plain",) * (len(shapes) - len(given)), settings, length or whole)


UNARY = (
    case("scalar", ()), case("empty", (0, 3)), case("one", (1,)), case("odd", (5, 7)), case("size1", (1, 7, 1)),
    case("transposed", (5, 7), ways="transposed"), case("sliced", (5, 3), ways="sliced"),
    case("expanded", (5, 7), ways="expanded"), case("rotated", (3, 5, 7), ways="rotated"),
)  # fmt: skip
BINARY = (
    case("scalar", (), ()), case("empty", (0, 3), (0, 3)), case("empty-broadcast", (0, 3), (1, 3)),
    case("one", (1,), (7,)), case("odd", (5, 7), (5, 7)), case("broadcast", (5, 1, 7), (3, 1)),
    case("with-scalar", (), (5, 3)),
    case("row", (5, 7), (7,)), case("transposed", (5, 7), (5, 7), ways="transposed"),
    case("both-transposed", (5, 7), (5, 7), ways="transposed transposed"),
    case("sliced", (5, 3), (5, 3), ways="sliced"),
    case("expanded", (5, 7), (5, 7), ways="expanded sliced"),
    case("rotated", (3, 5, 7), (5, 1), ways="rotated transposed"),
)  # fmt: skip
TERNARY = (
    case("scalar", (), (), ()), case("empty", (0, 3), (1, 3), ()), case("odd", (5, 7), (5, 7), (5, 7)),
    case("broadcast", (5, 3, 7), (3, 1), ()),
    case("transposed", (5, 7), (5, 7), (5, 7), ways="transposed plain transposed"),
    case("sliced", (5, 3), (1, 3), (5, 3), ways="sliced plain expanded"),
)  # fmt: skip
# The cases that other dtypes than float64 are run on, and those a GPU compiles kernels for.
COMMON = ("odd", "broadcast", "transposed", "all", "batch")


@dataclass(frozen=True, eq=False)
class Sample:
    """A row of the table.

    Attributes:
        ours, ref: take the inputs as tensors, and a case's settings.
        points: values put in front of the random ones where all inputs have one shape: kinks and ties.
        integers: whether it is compared on integers and bools too (torch decides where it is defined).
        factor, scale: how far rounding may be magnified, see `assert_close`; `back_*`: in backward.
        bits: whether the recorded backward gives the same bits as the fused one.
        strides: whether the result's are torch's (torch.pow(number,
            tensor) alone of all is row-major whatever its input).
    """

    op: Op
    ours: Callable
    ref: Callable
    inputs: tuple[Input, ...]
    cases: tuple[Case, ...]
    points: tuple[tuple[float, ...], ...] = ()
    label: str = ""
    integers: bool = True
    factor: float = 1
    scale: float = 0
    back_factor: float = 2
    back_scale: float = 1
    bits: bool = True
    strides: bool = True

    @property
    def id(self) -> str:
        return self.label or self.op.name

    @property
    def differentiable(self) -> bool:
        return bool(self.op.formulas) and any(i.grad for i in self.inputs)

    @property
    def common(self) -> list[Case]:
        """Its common cases, or the first of all."""
        return [c for c in self.cases if c.id in COMMON] or list(self.cases[:1])

    def in_turn(self, k: int) -> Case:
        """A common case of the k-th sample: in a row of samples all arrangements come up."""
        return self.common[k // 2 % len(self.common)]

    def build(self, case: Case, dtype: Any, requires_grad: bool = True, points: bool = True) -> list[list]:
        """Arguments for `ours`, for `ref` in the same dtype and for `ref` in float64 (integers: as they are)."""
        rng = random(self.id, case.id, dtype.name)
        arguments = []
        for i, (spec, shape, way) in enumerate(zip(self.inputs, case.shapes, case.ways, strict=True)):
            kind = spec.dtype or dtype
            values = np.asarray(spec.domain(rng, shape))
            if kind in INTEGERS and spec.dtype is None:
                values = rng.integers(0 if kind is tgrad.uint8 else -4, 5, size=shape)
                values = values % 2 == 1 if kind is tgrad.bool else values
            elif points and spec.dtype is None and len(set(case.shapes)) == 1 and values.size >= len(self.points) > 0:
                values.reshape(-1)[: len(self.points)] = [point[i] for point in self.points]
            arguments.append(pair(values, kind, way, requires_grad and spec.grad and kind.is_floating_point))
        return [list(column) for column in zip(*arguments, strict=True)]


