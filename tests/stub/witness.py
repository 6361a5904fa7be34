"""What tgrad asks of a launch, beside what reaches the driver, and the bytes that a kernel's parameters are."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

FORMATS = {"i32": "<i", "i64": "<q", "fp32": "<f", "fp64": "<d"}
SCRATCH = [bytes(8), bytes(8)]  # Triton's own two last parameters, of a kernel that needs no scratch memory


def pack(kind: str, value: float) -> bytes:
    """A parameter's bytes. A float that float32 cannot hold is infinite, as in C."""
    if kind.startswith("*"):
        return struct.pack("<Q", value)
    if kind == "fp32":
        import numpy as np

        with np.errstate(over="ignore"):
            return np.float32(value).tobytes()
    return struct.pack(FORMATS[kind], value)


def i32(*values: int) -> list[bytes]:
    return [pack("i32", v) for v in values]


def i64(*values: int) -> list[bytes]:
    return [pack("i64", v) for v in values]


def at(*tensors: Any) -> list[bytes]:
    """The addresses of tensors (or addresses themselves)."""
    return [pack("*", t if isinstance(t, int) else t.data_ptr()) for t in tensors]


class Witness:
    """Notes what each launch was asked to do, next to what the stub received."""

    def __init__(self) -> None:
        from tgrad.kernels import launch

        self.expected: list[tuple[str, tuple[int, ...], int, int, list[bytes]]] = []
        prepare = launch._driver_launch

        def watched(
            compiled: Any, grid: tuple[int, ...], runtime: tuple, fixed: tuple, constants: tuple
        ) -> Callable:
            call = prepare(compiled, grid, runtime, fixed, constants)
            rest = (*fixed, *constants)
            kinds = [k for given in runtime for k in (given if isinstance(given, tuple) else (given,))]
            types = list(compiled.src.signature.values())
            assert len(runtime) + len(rest) == len(types) == len(compiled.src.fn.arg_names)
            passed = [v for v, t in zip(rest, types[len(runtime) :], strict=True) if t != "constexpr"]
            tail = _fixed(tuple(passed), launch.Static)
            metadata = compiled.metadata

            def watched_call(*values: float) -> None:
                assert len(values) == len(kinds), f"{compiled.name}: {len(values)} values for parameters {kinds}"
                head = [pack(k, v) for k, v in zip(kinds, values, strict=True)]
                shape = (*grid, 1, 1)[:3]
                needs = math.prod(shape) * metadata.global_scratch_size
                own = pack("*", launch.scratch(needs)) if needs else bytes(8)
                asked = [*head, *tail, own, bytes(8)]
                self.expected.append((compiled.name, shape, 32 * metadata.num_warps, metadata.shared, asked))
                call(*values)

            return watched_call

        launch._driver_launch = watched

    def check(self, launches: list) -> None:
        from tests.stub.driver import STREAM

        got = [(x.kernel, x.grid, x.threads, x.shared, list(x.values)) for x in launches]
        assert len(got) == len(self.expected), f"{len(got)} launches, {len(self.expected)} were asked for"
        for have, want in zip(got, self.expected, strict=True):
            assert have == want, f"launched {have}\nasked for {want}"
        assert {x.stream for x in launches} <= {STREAM}
        for x in launches:
            limits = zip(x.grid, (2**31 - 1, 65535, 65535), strict=True)
            assert all(0 < n <= limit for n, limit in limits), f"grid {x.grid}"


def _fixed(value: Any, static: type) -> list[bytes]:
    """The parameters that a fixed argument becomes."""
    if isinstance(value, tuple):
        return [b for v in value for b in _fixed(v, static)]
    if isinstance(value, static):
        return []
    return [pack("i32" if -(2**31) <= value < 2**31 else "i64", value)]


class Run:
    """What a case gets: `launches(f)` runs f and returns its result and the launches it made."""

    def __init__(self, witness: Witness) -> None:
        self.witness = witness

    def launches(self, function: Callable[[], Any]) -> tuple[Any, list]:
        from tests.stub.driver import recording

        self.witness.expected.clear()
        with recording() as found:
            result = function()
        self.witness.check(found)
        return result, found

    def one(self, function: Callable[[], Any]) -> tuple[Any, Any]:
        """Of a function that launches once: its result and that launch."""
        result, found = self.launches(function)
        assert len(found) == 1, f"{len(found)} launches: {found}"
        return result, found[0]


def values(launch: Any, scratch: bool = False) -> list[bytes]:
    """All but Triton's own two; `scratch`: whether the kernel is given scratch memory."""
    assert (launch.values[-2] != SCRATCH[0]) is scratch and launch.values[-1] == SCRATCH[1]
    return list(launch.values[:-2])
