"""Time of a launch through tgrad's interpreter as a fraction of Triton's own: `python tests/benchmarks/interpreter.py`.

Rounds of the two alternate; each figure is the median over rounds of the ratio of their best times.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ["TRITON_INTERPRET"] = "1"
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import triton
import triton.language as tl

from tgrad.kernels.interpret import prepare, prepare_plain


@triton.jit
def add(a, b):
    return a + b


@triton.jit
def mul(a, b):
    return a * b


@triton.constexpr_function
def steps(program):
    return len(program)


@triton.constexpr_function
def step(program, i):
    return program[i]


@triton.jit
def pointwise(outs, ins, n, PROGRAM: tl.constexpr, BLOCK: tl.constexpr):
    """PROGRAM: (function, slot, slot) per step; its last value is stored."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n
    values = ()
    for i in tl.static_range(len(ins)):
        values = values + (tl.load(ins[i] + index, mask=mask, other=0.0),)
    for i in tl.static_range(steps(PROGRAM)):
        f, a, b = step(PROGRAM, i)
        values = values + (f(values[a], values[b]),)
    tl.store(outs[0] + index, values[-1], mask=mask)


@triton.jit
def softmax(out, x, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.arange(0, COLUMNS)
    mask = (i[:, None] < rows) & (j[None, :] < columns)
    at = i[:, None] * columns + j[None, :]
    v = tl.load(x + at, mask=mask, other=float("-inf"))
    v = tl.exp(v - tl.max(v, axis=1)[:, None])
    tl.store(out + at, v / tl.sum(v, axis=1)[:, None], mask=mask)


@triton.jit
def matmul(c, a, b, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for start in range(0, K, BK):
        k = start + tl.arange(0, BK)
        x = tl.load(a + m[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0.0)
        y = tl.load(b + k[:, None] * N + n[None, :], mask=(k[:, None] < K) & (n[None, :] < N), other=0.0)
        acc = tl.dot(x, y, acc)
    tl.store(c + m[:, None] * N + n[None, :], acc, mask=(m[:, None] < M) & (n[None, :] < N))


def compare(name: str, seconds: float, check: Callable, arrays: list[np.ndarray], *signature) -> None:
    """Spends about `seconds` on it."""
    launches = prepare(*signature), prepare_plain(*signature)
    addresses = [a.ctypes.data for a in arrays]
    best: list[list[float]] = [[], []]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(best[1]) < 3:
        for launch, times in zip(launches, best, strict=True):
            launch(*addresses)  # patches or undoes the patch
            check()
            found = []
            for _ in range(5):
                start = time.perf_counter()
                launch(*addresses)
                found.append(time.perf_counter() - start)
            times.append(min(found))
    ratio = median(a / b for a, b in zip(*best, strict=True))
    print(f"{name:44} {ratio:6.3f}   {median(best[0]) * 1e3:9.3f} ms of {median(best[1]) * 1e3:9.3f} ms")


def compare_training_step(rounds: int = 5) -> None:
    """One step of an MLP 64-256-256-10 on a batch of 256: forward, backward and SGD, by tgrad's kernels and blocks."""
    import gc

    import tgrad
    from tgrad import nn, op, updates
    from tgrad.kernels import creation, interpret
    from tgrad.ops import views

    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimiser = tgrad.optim.SGD(model.parameters(), lr=0.01)
    x, y = tgrad.randn(256, 64), tgrad.zeros(256, dtype=tgrad.int64)
    loss = nn.CrossEntropyLoss()

    def train() -> None:
        optimiser.zero_grad()
        loss(model(x), y).backward()
        optimiser.step()

    kinds = (op.Pointwise, op.Composed, op.Kernel, op.View)

    def forget_plans() -> None:
        for found in gc.get_objects():
            if type(found) in kinds:
                found.plans.clear()
        updates._plans.clear()
        creation.prepare_creation.cache_clear()
        views.fill_launch.cache_clear()

    best: list[list[float]] = [[], []]
    for _ in range(rounds):
        for way, times in zip((prepare, prepare_plain), best, strict=True):
            interpret.prepare = way
            forget_plans()
            train()
            found = []
            for _ in range(3):
                start = time.perf_counter()
                train()
                found.append(time.perf_counter() - start)
            times.append(min(found))
    interpret.prepare = prepare
    ratio = median(a / b for a, b in zip(*best, strict=True))
    print(f"{'MLP training step':44} {ratio:6.3f}   {median(best[0]) * 1e3:9.3f} ms of {median(best[1]) * 1e3:9.3f} ms")


def main() -> None:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, np.float32)

    kinds = ("*fp32",), ("*fp32", "*fp32")
    a, b, out = normal(10), normal(10), np.zeros(10, np.float32)
    check = lambda: np.testing.assert_allclose(out, a + b)
    compare("add, 10 elements", 2, check, [out, a, b], pointwise, (1,), kinds, (10,),
            {"PROGRAM": ((add, 0, 1),), "BLOCK": 16})  # fmt: skip

    chain = ((mul, 0, 1), (add, 2, 0), (mul, 3, 3), (add, 4, 1), (mul, 5, 0))
    for n, block in ((1_000_000, 2**20), (1_000_000, 2**18), (10_000, 1024)):
        p, q, r = normal(n), normal(n), np.zeros(n, np.float32)
        check = lambda p=p, q=q, r=r: np.testing.assert_allclose(r, ((p * q + p) ** 2 + q) * p, rtol=1e-5)
        compare(f"chain of 5, {n} elements, BLOCK {block}", 3, check, [r, p, q], pointwise, (-(-n // block),), kinds,
                (n,), {"PROGRAM": chain, "BLOCK": block})  # fmt: skip

    for size, rows in ((10, 32), (1000, 64)):
        count = 32 if size == 10 else 1000
        x, y = normal(count, size), np.zeros((count, size), np.float32)

        def check(x=x, y=y):
            e = np.exp(x - x.max(1, keepdims=True))
            np.testing.assert_allclose(y, e / e.sum(1, keepdims=True), rtol=1e-5)

        columns = triton.next_power_of_2(size)
        compare(f"softmax, {count} x {size}, {rows} rows a program", 3, check, [y, x], softmax, (-(-count // rows),),
                ("*fp32", "*fp32"), (count, size), {"ROWS": rows, "COLUMNS": columns})  # fmt: skip

    x, y, z = normal(128, 128), normal(128, 128), np.zeros((128, 128), np.float32)
    check = lambda: np.testing.assert_allclose(z, x @ y, rtol=1e-4, atol=1e-4)
    for tile in ((64, 64, 32), (128, 128, 128)):
        grid = (128 // tile[0], 128 // tile[1])
        compare(f"matmul, 128^3, tiles of {tile}", 2, check, [z, x, y], matmul, grid, ("*fp32",) * 3, (128, 128, 128),
                dict(zip(("BM", "BN", "BK"), tile, strict=True)))  # fmt: skip
    compare_training_step()


if __name__ == "__main__":
    main()
