"""A fused pointwise kernel as a value.

A `Program` is a straight line of scalar functions. The pointwise template, a matmul's epilogue and a reduction's
prologue take it as a `tl.constexpr` and run it at compile time; no source is generated.
"""

from __future__ import annotations

import threading
from typing import Any

import triton
import triton.language as tl

TYPES = {
    "fp16": tl.float16, "bf16": tl.bfloat16, "fp32": tl.float32, "fp64": tl.float64,
    "i32": tl.int32, "i64": tl.int64, "u8": tl.uint8, "i1": tl.int1,
}  # fmt: skip


class Program:
    """A straight line of scalar functions; interned, so identity is equality.

    Slots number the values: first the inputs (tensors, then run-time scalars), then the constants, then the results of
    the steps.

    Attributes:
        n_inputs: number of tensors and run-time scalars.
        constants: (value, type name) of each compile-time number.
        steps: (scalar function, ((slot, type name the function wants it in, or None to leave it), ...)).
        results: (slot, type name) of each result; the type is that of the buffer it is stored in.
        cache_key: what Triton's cache of compiled kernels is keyed with. It holds the functions' own keys: with their
            names alone, an edited scalar function would silently reuse the stale binary.
    """

    __slots__ = ("n_inputs", "constants", "steps", "results", "cache_key")

    def __init__(self, n_inputs: int, constants: tuple, steps: tuple, results: tuple) -> None:
        self.n_inputs, self.constants, self.steps, self.results = n_inputs, constants, steps, results
        functions = [(getattr(f, "cache_key", None) or f"{f.__module__}.{f.__name__}", args) for f, args in steps]
        self.cache_key = repr((n_inputs, constants, functions, results))

    def __repr__(self) -> str:
        return f"Program({' -> '.join(f.__name__ for f, _ in self.steps) or 'copy'})"


_interned: dict[tuple, Program] = {}
_interning = threading.Lock()


def program(n_inputs: int, constants: tuple, steps: tuple, results: tuple) -> Program:
    """The one Program with these parts."""
    key: tuple[Any, ...] = (n_inputs, constants, steps, results)
    found = _interned.get(key)
    if found is None:
        with _interning:
            found = _interned.setdefault(key, Program(*key))
    return found


def copy_program(source: str, target: str) -> Program:
    """One input of type `source`, stored as `target`."""
    return program(1, (), (), ((0, target),))


@triton.constexpr_function
def n_constants(p):
    return len(p.constants)


@triton.constexpr_function
def constant(p, i):
    return p.constants[i][0]


@triton.constexpr_function
def constant_type(p, i):
    return TYPES[p.constants[i][1]]


@triton.constexpr_function
def n_steps(p):
    return len(p.steps)


@triton.constexpr_function
def function(p, i):
    return p.steps[i][0]


@triton.constexpr_function
def n_args(p, i):
    return len(p.steps[i][1])


@triton.constexpr_function
def slot(p, i, j):
    return p.steps[i][1][j][0]


@triton.constexpr_function
def arg_type(p, i, j):
    name = p.steps[i][1][j][1]
    return None if name is None else TYPES[name]


@triton.constexpr_function
def n_results(p):
    return len(p.results)


@triton.constexpr_function
def result_slot(p, k):
    return p.results[k][0]


@triton.constexpr_function
def result_type(p, k):
    return TYPES[p.results[k][1]]


@triton.jit
def convert(x, TYPE: tl.constexpr):
    """x as TYPE; a number is true if it is not zero. TYPE None: x as it is."""
    if TYPE is None:
        y = x
    elif TYPE == tl.int1:
        y = x if x.dtype == tl.int1 else x != 0
    elif TYPE == tl.bfloat16 or TYPE == tl.float16:
        y = x.to(tl.float32).to(TYPE)  # float64 and integers round twice, as in PyTorch
    else:
        y = x.to(TYPE)
    return y


@triton.jit
def run(values, PROGRAM: tl.constexpr):
    """Run PROGRAM on `values` (its inputs); returns its results, converted to their types."""
    for i in tl.static_range(n_constants(PROGRAM)):
        values = values + (tl.full((), constant(PROGRAM, i), constant_type(PROGRAM, i)),)
    for i in tl.static_range(n_steps(PROGRAM)):
        args = ()
        for j in tl.static_range(n_args(PROGRAM, i)):
            args = args + (convert(values[slot(PROGRAM, i, j)], arg_type(PROGRAM, i, j)),)
        values = values + (function(PROGRAM, i)(*args),)
    results = ()
    for k in tl.static_range(n_results(PROGRAM)):
        results = results + (convert(values[result_slot(PROGRAM, k)], result_type(PROGRAM, k)),)
    return results
