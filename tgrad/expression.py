"""Pointwise expressions as values: traced from ordinary tgrad maths, differentiated, and lowered to a kernel's Program.

A formula such as `lambda g, out: g * (1 - out * out)` is traced by calling it with `Symbol`s; what the rows of the op
table then record is an `Expression`. Its derivative is another Expression, so second derivatives need no second rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tgrad import dtypes
from tgrad.dtypes import dtype
from tgrad.kernels.program import Program, program

if TYPE_CHECKING:
    from tgrad.op import Pointwise

# What an argument of a step is: ("input", index), ("step", index), or ("number", value).
Ref = tuple[str, Any]
Operand = tuple[dtype, int]  # dtype and rank in promotion


class Symbol:
    """A value inside an Expression under construction. Its operators are installed by the op table."""

    __slots__ = ("trace", "ref")

    def __init__(self, trace: Trace, ref: Ref) -> None:
        self.trace, self.ref = trace, ref


class Trace:
    """An Expression under construction; equal steps are recorded once."""

    def __init__(self, n_inputs: int) -> None:
        self.inputs = [Symbol(self, ("input", i)) for i in range(n_inputs)]
        self.steps: dict[tuple[Pointwise, tuple[Ref, ...]], Symbol] = {}

    def call(self, row: Pointwise, args: Sequence[Any]) -> Symbol:
        key = (row, tuple(self.lift(a) for a in args))
        if key not in self.steps:
            self.steps[key] = Symbol(self, ("step", len(self.steps)))
        return self.steps[key]

    def lift(self, value: Any) -> Ref:
        if isinstance(value, Symbol):
            if value.trace is not self:
                raise RuntimeError("a formula used a symbol of another formula")
            return value.ref
        if isinstance(value, (bool, int, float)):
            return ("number", value)
        raise TypeError(f"a pointwise formula takes symbols and numbers, got {type(value).__name__}")

    def expression(self, results: Sequence[Any]) -> Expression:
        return Expression(len(self.inputs), tuple(self.steps), tuple(self.lift(r) for r in results))


class Lowered(NamedTuple):
    """An Expression for given operand types: the Program and the Triton types of its operands."""

    program: Program
    tensors: tuple[str, ...]
    scalars: tuple[str, ...]
    results: tuple[dtype, ...]


class Expression:
    """A straight line of op table rows over inputs and numbers.

    Attributes:
        n_inputs: tensors or numbers it is called with.
        steps: (row, argument references).
        results: references.
    """

    def __init__(self, n_inputs: int, steps: tuple, results: tuple[Ref, ...]) -> None:
        self.n_inputs, self.steps, self.results = n_inputs, steps, results

    @staticmethod
    def of(function: Callable, n_inputs: int) -> Expression:
        """Trace a function of symbols that returns a symbol or a tuple of them."""
        trace = Trace(n_inputs)
        results = function(*trace.inputs)
        return trace.expression(results if isinstance(results, tuple) else (results,))

    def replay(self, trace: Trace, inputs: Sequence[Symbol]) -> list[Any]:
        """Record the steps into `trace`; returns the symbol of each."""
        done: list[Any] = []
        for row, args in self.steps:
            done.append(trace.call(row, [_value(a, inputs, done) for a in args]))
        return done

    def pruned(self, keep: Sequence[int]) -> tuple[Expression, tuple[int, ...]]:
        """The Expression over only the inputs that its results need (always those in `keep`), and which they are."""
        used: set[Ref] = set()
        pending = list(self.results)
        while pending:
            ref = pending.pop()
            if ref not in used:
                used.add(ref)
                if ref[0] == "step":
                    pending += self.steps[ref[1]][1]
        inputs = tuple(i for i in range(self.n_inputs) if i in keep or ("input", i) in used)
        trace = Trace(len(inputs))
        at = dict(zip(inputs, trace.inputs, strict=True))
        done: list[Any] = []
        for i, (row, args) in enumerate(self.steps):
            needed = ("step", i) in used
            done.append(trace.call(row, [_value(a, at, done) for a in args]) if needed else None)
        return trace.expression([_value(r, at, done) for r in self.results]), inputs

    def is_input(self, i: int) -> bool:
        """Whether its one result is its input `i`, unchanged."""
        return self.results == (("input", i),)

    def derivative(self, wanted: int, with_out: bool = False) -> Expression | None:
        """g times the derivative of the one result by input `wanted`, over (g, *inputs); None if it is zero.

        Reverse accumulation over the steps, each by its row's own formula.

        Args:
            with_out: take the result, which is a step, as one more input in place of computing it.
        """
        trace = Trace(1 + self.n_inputs + with_out)
        g, inputs = trace.inputs[0], trace.inputs[1:]
        done = self.replay(trace, inputs)
        if with_out:
            done[self.results[0][1]] = inputs[-1]
        depends: set[Ref] = {("input", wanted)}
        for i, (_, args) in enumerate(self.steps):
            if any(a in depends for a in args):
                depends.add(("step", i))
        adjoint: dict[Ref, Any] = {self.results[0]: g}
        for i in reversed(range(len(self.steps))):
            row, args = self.steps[i]
            arriving = adjoint.get(("step", i))
            if arriving is None or ("step", i) not in depends:
                continue
            values = {name: _value(a, inputs, done) for name, a in zip(row.inputs, args, strict=True)}
            values["out"] = done[i]
            for name, a in zip(row.inputs, args, strict=True):
                if a in depends and name in row.formulas:
                    part = row.formulas[name](arriving, *(values[n] for n in row.needs[name]))
                    adjoint[a] = part if a not in adjoint else adjoint[a] + part
        result = adjoint.get(("input", wanted))
        return None if result is None else trace.expression([result])

    def infer(self, operands: Sequence[Operand]) -> tuple[list[Operand], list[list[dtype]]]:
        """The type of each step's result, and the types its row wants its arguments in."""
        types: list[Operand] = []
        wants: list[list[dtype]] = []
        for row, args in self.steps:
            given = [_operand(a, operands, types) for a in args]
            arguments, out = row.types(given)
            wants.append(arguments)
            types.append(out)
        return types, wants

    def lower(self, operands: tuple[Operand, ...], results: Sequence[dtype | None]) -> Lowered:
        """The Program for operands of these types; rank NUMBER marks a run-time scalar.

        Args:
            results: the dtype to store each result in; None for the one it has.
        """
        types, wants = self.infer(operands)
        numbers = [i for i, (_, rank) in enumerate(operands) if rank == dtypes.NUMBER]
        tensors = [i for i, (_, rank) in enumerate(operands) if rank != dtypes.NUMBER]
        slots: dict[Ref, int] = {("input", i): k for k, i in enumerate([*tensors, *numbers])}
        constants: dict[tuple[Any, str, bool], int] = {}
        for (_, args), want in zip(self.steps, wants, strict=True):
            for a, w in zip(args, want, strict=True):
                if a[0] == "number":
                    constants.setdefault((a[1], w.triton, isinstance(a[1], bool)), len(operands) + len(constants))
        first = len(operands) + len(constants)
        steps = []
        for k, ((row, args), want) in enumerate(zip(self.steps, wants, strict=True)):
            slots[("step", k)] = first + k
            line: list[tuple[int, str | None]] = []
            for a, w in zip(args, want, strict=True):
                if a[0] == "number":
                    line.append((constants[(a[1], w.triton, isinstance(a[1], bool))], None))
                else:
                    line.append((slots[a], None if self._held(a, operands, types) is w else w.triton))
            steps.append((row.fn, tuple(line)))
        out: list[dtype] = []
        stored = []
        for ref, wanted in zip(self.results, results, strict=True):
            have = _operand(ref, operands, types)[0]
            out.append(wanted or have)
            if ref[0] == "number":
                raise NotImplementedError("an expression whose result is a constant")
            stored.append((slots[ref], out[-1].triton))
        scalar_types = tuple(self._scalar_type(i, operands[i][0], wants) for i in numbers)
        p = program(
            len(operands), tuple((v, t) for v, t, _ in constants), tuple(steps), tuple(stored)
        )  # fmt: skip
        return Lowered(p, tuple(operands[i][0].triton for i in tensors), scalar_types, tuple(out))

    def _held(self, ref: Ref, operands: Sequence[Operand], types: Sequence[Operand]) -> dtype | None:
        """The dtype in which a value is at hand inside the kernel, where that is known to be one the rows work in."""
        kind, i = ref
        if kind == "input":
            d, rank = operands[i]
            return None if rank == dtypes.NUMBER else d
        d = types[i][0]
        return None if d in (dtypes.float16, dtypes.bfloat16, dtypes.bool_) else d

    def _scalar_type(self, i: int, d: dtype, wants: Sequence[Sequence[dtype]]) -> str:
        if not d.is_floating_point:
            return "i64"
        used = [
            w
            for (_, args), want in zip(self.steps, wants, strict=True)
            for a, w in zip(args, want, strict=True)
            if a == ("input", i)
        ]
        return "fp64" if dtypes.float64 in used else "fp32"


def _value(ref: Ref, inputs: Any, done: Sequence[Any]) -> Any:
    kind, i = ref
    return inputs[i] if kind == "input" else done[i] if kind == "step" else i


def _operand(ref: Ref, operands: Sequence[Operand], types: Sequence[Operand]) -> Operand:
    kind, i = ref
    if kind == "number":
        return dtypes.of_number(i), dtypes.NUMBER
    return operands[i] if kind == "input" else types[i]


# --- type rules: operands -> (the type each argument is wanted in, the result's operand)
# -------------------------------
def promoting(operands: Sequence[Operand]) -> tuple[list[dtype], Operand]:
    """All arguments in their common type, which the result has."""
    common, rank = dtypes.result(list(operands))
    if rank == dtypes.NUMBER and common.is_floating_point:
        common = dtypes.float64  # Python's floats are doubles
    return [dtypes.accumulator(common)] * len(operands), (common, rank)


def counting(operands: Sequence[Operand]) -> tuple[list[dtype], Operand]:
    """As `promoting`, with bool made int64."""
    common, rank = dtypes.result(list(operands))
    return promoting([(dtypes.int64, rank)] * len(operands) if common is dtypes.bool_ else operands)


def floating(operands: Sequence[Operand]) -> tuple[list[dtype], Operand]:
    """As `promoting`, with integers made floating."""
    common, rank = dtypes.result(list(operands))
    if rank == dtypes.NUMBER:
        common = dtypes.float64  # Python's floats are doubles
    elif not common.is_floating_point:
        common = dtypes.get_default_dtype()
    return [dtypes.accumulator(common)] * len(operands), (common, rank)


def comparing(operands: Sequence[Operand]) -> tuple[list[dtype], Operand]:
    """Arguments in their common type; the result is bool."""
    common, rank = dtypes.result(list(operands))
    return [dtypes.accumulator(common)] * len(operands), (dtypes.bool_, rank)


def logical(operands: Sequence[Operand]) -> tuple[list[dtype], Operand]:
    """Arguments as truth values; the result is bool."""
    return [dtypes.bool_] * len(operands), (dtypes.bool_, max(rank for _, rank in operands))


def selecting(operands: Sequence[Operand]) -> tuple[list[dtype], Operand]:
    """A condition, then values in their common type."""
    common, rank = dtypes.result(list(operands[1:]))
    kind = dtypes.accumulator(common)
    return [dtypes.bool_, *[kind] * (len(operands) - 1)], (common, max(rank, operands[0][1]))


def casting(target: dtype) -> Callable[[Sequence[Operand]], tuple[list[dtype], Operand]]:
    """The one argument as it is; the result is of type `target`."""

    def rule(operands: Sequence[Operand]) -> tuple[list[dtype], Operand]:
        source, rank = operands[0]
        kind = target if target is dtypes.bool_ else dtypes.accumulator(target)
        return [kind], (target, rank)

    return rule
