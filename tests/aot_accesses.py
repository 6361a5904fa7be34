"""Programs whose kernels are limited by memory, tagged by how they are to move it: see aot_sweep.py, which runs them.

Tags: "vector", 16 bytes at a time; "once", each element read once; "odd", a size that 16 does not divide, of which all
but the last block goes 16 bytes at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

ODD = 65537


def programs() -> Iterator[Any]:
    """All of them; those in float32 are left to the full sweep."""
    import tgrad

    for dtype in (tgrad.bfloat16, tgrad.float32):
        full = dtype is tgrad.float32
        yield from broadcasts(dtype, full)
        yield from odd_sizes(dtype, full)
        yield from reductions(dtype, full)
        yield from rows(dtype, full)


def broadcasts(dtype: Any, full: bool) -> Iterator[Any]:
    """A matrix with a row, a column and one element; parts of rows; transposes."""
    from tests.aot_sweep import Program, pretended
    from tgrad.ops import pointwise as p

    def tensor(*shape: int, strides: tuple[int, ...] | None = None) -> Any:
        return pretended(shape, dtype, strides)

    cases: dict[str, Callable[[], Any]] = {
        "a row": lambda: p.add(tensor(512, 1000), tensor(1000)),
        "a column": lambda: p.add(tensor(512, 1000), tensor(512, 1)),
        "one element": lambda: p.add(tensor(512, 1000), tensor(1)),
        "a row and a column": lambda: p.mul(tensor(1000), tensor(512, 1)),
        "three dimensions": lambda: p.add(tensor(8, 100, 64), tensor(100, 1)),
        "parts of rows": lambda: p.exp(tensor(512, 1000, strides=(1024, 1))),
        "a transpose": lambda: tensor(512, 1000, strides=(1, 512)).contiguous(),
        "transposes of many": lambda: p.add(tensor(8, 96, 64), tensor(8, 96, 64, strides=(6144, 1, 96))),
    }
    for label, run in cases.items():
        yield Program(f"{label} {dtype.name}", run, ("vector",), full)


def odd_sizes(dtype: Any, full: bool) -> Iterator[Any]:
    import tgrad
    from tests.aot_sweep import Program, pretended
    from tgrad.kernels.bits import prepare_bits
    from tgrad.ops import pointwise as p

    def dense() -> None:
        x = pretended((ODD,), dtype)
        p.add(x, x)
        tgrad.sum(x)
        for kernel in ("pack", "unpack"):
            prepare_bits(kernel, dtype.triton, ODD)

    yield Program(f"an odd size {dtype.name}", dense, ("odd",), full)


def reductions(dtype: Any, full: bool) -> Iterator[Any]:
    import tgrad
    from tests.aot_sweep import Program, pretended

    def sums() -> None:
        for dim in (0, 1):
            tgrad.sum(pretended((512, 1000), dtype), dim)
            tgrad.sum(pretended((100_000, 8), dtype), dim)
            tgrad.sum(pretended((4096, 1000), dtype), dim)
        tgrad.sum(pretended((8, 16, 24, 24), dtype), (0, 2, 3))

    def searches() -> None:
        tgrad.argmax(pretended((512, 1000), dtype), 1)
        tgrad.cumsum(pretended((512, 1000), dtype), 1)

    yield Program(f"sums {dtype.name}", sums, ("vector",), full)
    yield Program(f"searches {dtype.name}", searches, ("vector",), full)


def rows(dtype: Any, full: bool) -> Iterator[Any]:
    import tgrad
    import tgrad.nn.functional as F
    from tests.aot_sweep import Program, backward, pretended

    def tensor(*shape: int) -> Any:
        return pretended(shape, dtype).requires_grad_()

    def loss(m: int, n: int) -> None:
        backward(F.cross_entropy(tensor(m, n), tgrad.tensor(np.zeros(m, np.int64))))

    def norm(n: int) -> None:
        backward(F.layer_norm(tensor(16384, n), (n,), tensor(n), tensor(n)))

    cases: dict[str, Callable[[], Any]] = {
        "softmax": lambda: backward(F.softmax(tensor(512, 1000), 1)),
        "longest softmax": lambda: backward(F.softmax(tensor(64, 16384), 1)),
        "longest log_softmax": lambda: F.log_softmax(tensor(64, 32768), 1),
        "cross_entropy": lambda: loss(512, 1000),
        "longest cross_entropy": lambda: loss(64, 32768),
        "layer_norm": lambda: norm(1000),
        "layer_norm of wide rows": lambda: norm(4096),
        "longest layer_norm of one pass": lambda: norm(8192),
        "longest layer_norm": lambda: norm(16384),
        "rms_norm": lambda: backward(F.rms_norm(tensor(16384, 1000), (1000,), tensor(1000))),
        "layer_norm without weights": lambda: backward(F.layer_norm(tensor(512, 1000), (1000,))),
    }
    for label, run in cases.items():
        yield Program(f"{label} {dtype.name}", run, ("once",), full or "longest" in label or "wide" in label)

    def sums() -> None:
        backward(F.layer_norm(pretended((512, 1000), dtype), (1000,), tensor(1000), tensor(1000)))
        backward(F.group_norm(tensor(32, 256), 32, tensor(256), tensor(256)))
        backward(F.group_norm(tensor(32, 256, 28, 28), 32, tensor(256), tensor(256)))

    yield Program(f"sums of norms {dtype.name}", sums, (), full)
    # By elements; but it is to fit into the registers.
    yield Program(f"longest odd softmax {dtype.name}", lambda: F.softmax(pretended((64, 16381), dtype), 1), (), full)
