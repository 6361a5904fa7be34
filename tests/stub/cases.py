"""What tgrad hands the CUDA driver, launch by launch: `TGRAD_LAUNCH=driver python -m tests.stub.cases REPORT.json`.

Each case runs ops over the stub driver and compares the launches with what is written here by hand. Beside that, every
launch of every case is held to what tgrad asked for (`Witness`): the values of its run-time parameters, then those of
the fixed ones that are not compile-time constants, each in the width that the machine code reads.
"""

from __future__ import annotations

import math
import os
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

from tests.stub.outcomes import outcomes
from tests.stub.witness import Run, Witness, at, i32, i64, pack, values

CASES: dict[str, Callable[[Any], None]] = {}


def case(function: Callable[[Any], None]) -> Callable[[Any], None]:
    CASES[function.__name__] = function
    return function


# --- pointwise -------------------------------------------------------------------------------------------------------
@case
def dense(run: Run) -> None:
    import tgrad

    for dtype in (tgrad.float32, tgrad.float64, tgrad.bfloat16, tgrad.float16, tgrad.int64):
        block = 2048 if dtype.itemsize == 2 else 1024
        a, b = tgrad.ones(100, 41, dtype=dtype), tgrad.ones(100, 41, dtype=dtype)
        c, launch = run.one(lambda: a + b)
        assert values(launch) == at(c, a, b) + i32(4100), dtype
        assert (launch.grid, launch.threads) == ((-(-4100 // block), 1, 1), 128), dtype


@case
def scalars(run: Run) -> None:
    import tgrad

    x = tgrad.ones(7)
    for number in (0.1, 2, -3.5, True, math.inf, -math.inf, 1e300, 5e-324):
        y, launch = run.one(lambda: x * number)
        kind = "i64" if isinstance(number, int) else "fp32"
        assert values(launch) == [*at(y, x), pack(kind, number), *i32(7)], number
    y, launch = run.one(lambda: x * math.nan)
    assert math.isnan(struct.unpack("<f", launch.values[2])[0])
    wide = tgrad.ones(7, dtype=tgrad.float64)
    y, launch = run.one(lambda: wide * 0.1)
    assert values(launch) == [*at(y, wide), pack("fp64", 0.1), *i32(7)]
    whole = tgrad.ones(7, dtype=tgrad.int64)
    for number in (2**62, -(2**63), -1):
        y, launch = run.one(lambda: whole + number)
        assert values(launch) == [*at(y, whole), *i64(number), *i32(7)]
    half = tgrad.ones(7, dtype=tgrad.bfloat16)
    y, launch = run.one(lambda: tgrad.clamp(half, -0.3, 0.7))
    assert values(launch) == [*at(y, half), pack("fp32", -0.3), pack("fp32", 0.7), *i32(7)]


@case
def broadcast(run: Run) -> None:
    import tgrad

    x, row, column = tgrad.ones(6, 5), tgrad.ones(5), tgrad.ones(6, 1)
    y, launch = run.one(lambda: x + row)
    assert values(launch) == at(y, x, row) + i32(30) + i32(6, 5) + i32(0)  # the row's strides (0, 1), 1 compiled in
    y, launch = run.one(lambda: x * column)
    assert values(launch) == at(y, x, column) + i32(30) + i32(6, 5) + i32(1)  # (1, 0), 0 compiled in
    y, launch = run.one(lambda: tgrad.maximum(row, column))
    assert values(launch) == at(y, row, column) + i32(30) + i32(6, 5) + i32(0) + i32(1)


@case
def strided(run: Run) -> None:
    import tgrad

    base = tgrad.ones(6, 10)
    view = base[1:, 2::3]
    y, launch = run.one(lambda: -view)
    assert view.data_ptr() == base.data_ptr() + 4 * 12
    assert values(launch) == at(y, view) + i32(15) + i32(5, 3) + i32(10, 3)
    row = tgrad.ones(6)
    y, launch = run.one(lambda: base.t() + row)
    assert y.stride() == (1, 10)
    assert values(launch) == at(y, base, row) + i32(60) + i32(6, 10) + i32(1)
    cube = tgrad.ones(3, 4, 5).permute(2, 0, 1)
    y, launch = run.one(lambda: tgrad.exp(cube))
    assert values(launch) == at(y, cube) + i32(60)  # dense in another order


@case
def in_place(run: Run) -> None:
    import tgrad

    x, y = tgrad.ones(4, 4), tgrad.ones(4)
    _, launch = run.one(lambda: x.add_(y))
    assert values(launch) == at(x, x, y) + i32(4) + i32(4, 1) + i32(0)  # sizes count groups of four
    part = x[1]
    _, launch = run.one(lambda: part.fill_(3))
    assert launch.values[0] == at(x.data_ptr() + 16)[0] and launch.values[1] == i64(3)[0]


@case
def several_results(run: Run) -> None:
    import tgrad

    a, b = (tgrad.ones(9, requires_grad=True) for _ in range(2))
    c, g = a * b, tgrad.ones(9)
    _, launch = run.one(lambda: c.backward(g))
    assert values(launch) == at(a.grad, b.grad, g, b, a) + i32(9) or values(launch) == at(
        a.grad, b.grad, g, a, b
    ) + i32(9)


@case
def nothing(run: Run) -> None:
    import tgrad

    x = tgrad.ones(0, 3)
    _, found = run.launches(lambda: (x + x, x.exp(), x.t().contiguous(), tgrad.softmax(x, 1), tgrad.zeros(0)))
    assert found == []


# --- reductions and rows ---------------------------------------------------------------------------------------------
@case
def reductions(run: Run) -> None:
    import tgrad

    x = tgrad.ones(300, 7)
    y, launch = run.one(lambda: x.sum(1))
    assert values(launch) == at(y, x) + i32(300, 7, 8) + i32(300) + i32(7)
    y, launch = run.one(lambda: x.mean(1))
    assert values(launch) == [*at(y, x), pack("fp32", 7.0), *i32(300, 7, 8), *i32(300), *i32(7)]
    y, launch = run.one(lambda: x.t().amax(0))
    assert values(launch) == at(y, x) + i32(300, 7, 8) + i32(300) + i32(7)
    one = tgrad.ones(())
    scalar, launch = run.one(lambda: one.sum())
    assert launch.values[:2] == (*at(scalar, one),)


@case
def two_passes(run: Run) -> None:
    import tgrad

    x = tgrad.ones(1_000_003)
    y, (first, second) = run.launches(lambda: x.mean())
    assert first.values[1] == at(x)[0] and second.values[0] == at(y)[0]
    assert first.values[0] == second.values[1]  # the partial results
    assert second.values[2] == pack("fp32", 1_000_003.0)
    pieces = first.grid[1]
    chunk = struct.unpack("<i", first.values[4])[0]
    assert first.values[2:5] == (*i32(1, 1_000_003, chunk),) and pieces * chunk >= 1_000_003


@case
def beyond_31_bits(run: Run) -> None:
    import tgrad

    n = 2**32 + 5
    x = tgrad.ones(1).expand(n)  # no memory
    _, (first, _) = run.launches(lambda: x.sum())
    assert first.values[3] == i64(n)[0]
    column = tgrad.ones(3, 1).expand(3, 2**30)
    _, found = run.launches(lambda: column.sum(1))
    assert found[0].values[2:4] == (*i32(3, 2**30),)


@case
def rows(run: Run) -> None:
    import tgrad

    x = tgrad.ones(6, 10, requires_grad=True)
    y, launch = run.one(lambda: tgrad.softmax(x, 1))
    assert values(launch) == at(y, x) + i32(6, 10) + i32(6) + i32(10) + i32(10)
    z, launch = run.one(lambda: tgrad.softmax(x, 0))
    assert values(launch)[2:6] == i32(10, 6) + i32(10, 10)  # rows of 6, whose elements lie 10 apart
    g = tgrad.ones(6, 10)
    _, launch = run.one(lambda: y.backward(g))
    assert values(launch) == at(x.grad, g, y) + i32(6, 10) + i32(6) + i32(10) * 3


@case
def cross_entropy(run: Run) -> None:
    import tgrad
    import tgrad.nn.functional as F
    from tgrad.ops import softmax

    softmax._check_classes = lambda *_: None  # nothing computes here: the classes are whatever the memory held
    x = tgrad.ones(6, 10, requires_grad=True)
    target = tgrad.zeros(6, dtype=tgrad.int64)
    loss, found = run.launches(lambda: F.cross_entropy(x, target, ignore_index=-7))
    assert values(found[0])[2:4] == at(x, target)
    assert values(found[0])[4:7] == i32(6, 10, -7)
    assert any(v == at(loss)[0] for v in found[-1].values)
    _, found = run.launches(lambda: loss.backward())
    assert values(found[-1])[0] == at(x.grad)[0] and values(found[-1])[2:4] == at(x, target)


# --- products --------------------------------------------------------------------------------------------------------
@case
def products(run: Run) -> None:
    import tgrad

    a, b = tgrad.ones(33, 48, dtype=tgrad.bfloat16), tgrad.ones(48, 80, dtype=tgrad.bfloat16)
    c, launch = run.one(lambda: a @ b)
    assert values(launch) == at(c, a, b) + i32(33, 80, 48, 0) + i32(48, 80)  # inner strides of 1 are compiled in
    d, launch = run.one(lambda: b.t() @ a.t())
    assert values(launch) == at(d, b, a) + i32(80, 33, 48, 0) + i32(80, 48)


@case
def linear(run: Run) -> None:
    import tgrad
    import tgrad.nn.functional as F

    for dtype in (tgrad.float32, tgrad.float16, tgrad.float64):
        x, w, b = tgrad.ones(33, 48, dtype=dtype), tgrad.ones(20, 48, dtype=dtype), tgrad.ones(20, dtype=dtype)
        for t in (x, w, b):
            t.requires_grad_()
        y, launch = run.one(lambda: F.linear(x, w, b))
        assert values(launch) == at(y, x, w, b) + i32(33, 20, 48, 0) + i32(48, 48) + i32(0)
        g = tgrad.ones(33, 20, dtype=dtype)
        _, found = run.launches(lambda: y.backward(g))
        outs = {v.values[0]: values(v) for v in found}
        assert outs[at(x.grad)[0]][1:] == at(g, w) + i32(33, 48, 20, 0) + i32(20, 48)
        assert outs[at(w.grad)[0]][1:] == at(b.grad, g, x) + i32(20, 48, 33, 0) + i32(20, 48)


@case
def bulk(run: Run) -> None:
    """A persistent product, with scratch memory for its descriptors: each stream has its own."""
    import tgrad
    from tests.stub.driver import STREAM
    from tgrad.kernels import launch as launching

    a, b = (tgrad.ones(1024, 1536, dtype=tgrad.bfloat16) for _ in range(2))
    c, launch = run.one(lambda: a @ b.t())
    assert launch.kernel == "matmul_tma" and launch.grid[0] <= 132
    assert values(launch, scratch=True) == at(c, a, b) + i32(1024, 1024, 1536, 0) + i32(1536, 1536)
    assert struct.unpack("<Q", launch.values[-2])[0] % 128 == 0
    try:
        launching.set_stream(STREAM + 1)
        a @ b.t()
        other = launching.scratch(1)
    finally:
        launching.set_stream(STREAM)
    _, again = run.one(lambda: a @ b.t())
    assert again.values[-2] == launch.values[-2] != at(other)[0]


@case
def pieces(run: Run) -> None:
    """A product whose K is cut: the parts go to a workspace, which a second kernel adds."""
    import tgrad
    import tgrad.nn.functional as F

    x, w, b = (tgrad.ones(*shape, dtype=tgrad.bfloat16) for shape in ((64, 4096), (48, 4096), (48,)))
    y, (first, second) = run.launches(lambda: F.linear(x, w, b))
    assert (first.kernel, second.kernel) == ("matmul", "combine") and first.grid[0] > 1
    (workspace,) = struct.unpack("<Q", first.values[0])
    assert values(second) == at(y, workspace, b) + i32(64, 48) + i32(0)


@case
def batched(run: Run) -> None:
    import tgrad

    a, b = tgrad.ones(3, 1, 5, 7), tgrad.ones(4, 7, 6)
    c, launch = run.one(lambda: a @ b)
    assert c.shape == (3, 4, 5, 6)
    assert values(launch) == at(c, a, b) + i32(5, 6, 7, 0) + i32(7, 6) + i32(3, 4) + i32(35, 0) + i32(0, 42)
    assert launch.grid[0] * launch.grid[1] >= 12


@case
def many_products(run: Run) -> None:
    """More products than a grid's second dimension may have (65,535)."""
    import tgrad

    a = tgrad.ones(70_000, 1, 2)
    run.one(lambda: a.bmm(a.transpose(1, 2)))


# --- made from nothing -----------------------------------------------------------------------------------------------
@case
def creation(run: Run) -> None:
    import tgrad

    x, launch = run.one(lambda: tgrad.full((5,), 2.5))
    assert values(launch) == [*at(x), pack("fp64", 2.5), *i32(5)]
    x, launch = run.one(lambda: tgrad.arange(3, 20, 4))
    assert values(launch) == at(x) + i64(3, 4) + i32(5)
    x, launch = run.one(lambda: tgrad.arange(0.5, 2.0, 0.25))
    assert values(launch) == [*at(x), pack("fp64", 0.5), pack("fp64", 0.25), *i32(6)]
    x, launch = run.one(lambda: tgrad.eye(3, 4))
    assert values(launch) == at(x) + i32(12, 4)
    for seed, passed in ((7, 7), (2**64 - 1, -1), (-5, -5)):
        tgrad.manual_seed(seed)
        x, launch = run.one(lambda: tgrad.rand(5))
        assert values(launch) == [*at(x), *i64(passed, 0), pack("fp32", 0.0), pack("fp32", 1.0), *i32(5)]
        x, launch = run.one(lambda: tgrad.randn(6, dtype=tgrad.float64))
        assert values(launch) == [*at(x), *i64(passed, 5), pack("fp64", 0.0), pack("fp64", 1.0), *i32(6)]


@case
def dropout(run: Run) -> None:
    import tgrad
    import tgrad.nn.functional as F

    tgrad.manual_seed(3)
    x = tgrad.ones(12)
    y, launch = run.one(lambda: F.dropout(x, 0.25))
    assert values(launch) == [*at(y, x), *i64(3, 0), pack("fp32", 0.25), pack("fp32", 4 / 3), *i32(12)]


# --- the whole -------------------------------------------------------------------------------------------------------
@case
def training_step(run: Run) -> None:
    import tgrad
    import tgrad.nn as nn

    tgrad.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 20), nn.BatchNorm1d(20), nn.GELU(), nn.Dropout(0.5), nn.Linear(20, 3))
    for optimizer in (
        tgrad.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        tgrad.optim.AdamW(model.parameters(), lr=0.1),
    ):
        for _ in range(2):

            def step() -> None:
                optimizer.zero_grad()
                nn.functional.mse_loss(model(tgrad.ones(16, 12)), tgrad.ones(16, 3)).backward()
                optimizer.step()

            _, found = run.launches(step)
            assert len(found) > 10


@case
def steps_of_many(run: Run) -> None:
    import tgrad

    params = [tgrad.nn.Parameter(tgrad.ones(n)) for n in (2000, 5, 1024)]
    for p in params:
        p.grad = tgrad.ones_like(p)
    _, launch = run.one(tgrad.optim.SGD(params, lr=0.1).step)
    rows = [t for p in (*params, params[-1]) for t in (p, p.grad)]  # filled up to a power of two
    numbers = [pack("fp32", v) for v in (0.1, 0, 0, 1)]
    assert values(launch) == [*at(*rows), *numbers, *i32(2000, 5, 1024, 0), *i32(0, 2, 3, 4)]
    assert (launch.grid, launch.threads) == ((4, 1, 1), 128)

    params = [tgrad.nn.Parameter(tgrad.ones(3)) for _ in range(17)]  # as many as a launch takes, and one
    for p in params:
        p.grad = tgrad.ones_like(p)
    optimizer = tgrad.optim.RMSprop(params, momentum=0.9, centered=True)
    optimizer.step()
    _, found = run.launches(optimizer.step)
    assert [x.grid for x in found] == [(16, 1, 1), (1, 1, 1)]


@case
def other_thread(run: Run) -> None:
    import tgrad

    x = tgrad.ones(5, requires_grad=True)
    y, failures = x.exp(), []

    def work() -> None:
        try:
            y.backward(tgrad.ones(5))
        except BaseException as error:
            failures.append(error)

    def go() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    _, found = run.launches(go)
    assert not failures and len(found) == 2, failures


@case
def kernel_prepared_by_a_thread_without_a_context(run: Run) -> None:
    """It is compiled and loaded already, so nothing but the launch gives the thread its context."""
    import tgrad

    five, seven = tgrad.ones(5), tgrad.ones(7)
    five.exp()
    kept, failures = [], []

    def work(x: tgrad.Tensor) -> None:
        try:
            kept.append(x.exp())
        except BaseException as error:
            failures.append(error)

    def go() -> None:
        for x in (seven, five):  # each in a thread of its own
            thread = threading.Thread(target=work, args=(x,))
            thread.start()
            thread.join()

    _, found = run.launches(go)
    assert not failures and len(found) == 2, failures


@case
def second_derivative(run: Run) -> None:
    import tgrad

    x = tgrad.ones(5, requires_grad=True)
    _, found = run.launches(lambda: tgrad.autograd.grad(
        tgrad.autograd.grad((x * x * x).sum(), x, create_graph=True)[0].sum(), x))  # fmt: skip
    assert found


@case
def sample_table(run: Run) -> None:
    """Forward and backward of every op, on one of its common cases; on all of them in a thorough run."""
    import tgrad
    from tests.samples import SAMPLES

    failed = []
    for k, sample in enumerate(SAMPLES):
        for c in sample.common if os.environ.get("TGRAD_THOROUGH") == "1" else [sample.in_turn(k)]:
            arguments = sample.build(c, tgrad.float32)[0]

            def both() -> None:
                out = sample.ours(*arguments, **c.settings)
                if out.requires_grad:
                    out.backward(tgrad.ones_like(out))

            try:
                run.launches(both)
            except Exception:
                failed.append(f"{sample.id}, {c.id}:\n{traceback.format_exc()}")
    assert not failed, "\n".join(failed)


def main(report: str, *names: str) -> None:
    os.environ["TGRAD_LAUNCH"] = "driver"
    from tests.stub import driver

    driver.install()
    run = Run(Witness())
    outcomes(CASES, report, names, run)


if __name__ == "__main__":
    main(*sys.argv[1:])
