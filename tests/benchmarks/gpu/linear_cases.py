"""Linear layers: forward, with relu, and backward with all three gradients. Shapes: (rows, out features, in features).

float32 is tgrad's "highest" beside PyTorch's. Errors are of the first 64 rows of a result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as TF

import tgrad
import tgrad.nn.functional as GF
from tests.benchmarks.gpu.bench import Bench, Contest
from tests.benchmarks.gpu.data import share

SOME = 64
LARGE = [(8192, 8192, 8192), (4096, 4096, 1024), (16384, 1024, 4096)]
SKINNY = [(16, 8192, 8192), (64, 4096, 16384), (256, 256, 65536), (8192, 16, 8192), (1, 4096, 4096)]
ODD = [(4095, 4097, 1023), (1000, 10, 784), (333, 777, 555)]
HALF, FULL = torch.bfloat16, torch.float32

# What tells most comes first; what does not fit into the time is said to be left out.
PLAN = [
    *[("large", HALF, size) for size in LARGE], *[("skinny", HALF, size) for size in SKINNY[:3]],
    ("odd", HALF, ODD[0]), *[("large", FULL, size) for size in LARGE], ("odd", FULL, ODD[1]),
    ("skinny", FULL, SKINNY[0]), ("large", torch.float16, LARGE[0]), *[("skinny", HALF, size) for size in SKINNY[3:]],
    *[("odd", HALF, size) for size in ODD[1:]], ("odd", FULL, ODD[0]), ("odd", FULL, ODD[2]),
    ("skinny", torch.float16, SKINNY[0]), ("odd", torch.float16, ODD[0]), *[("skinny", FULL, s) for s in SKINNY[1:]],
    *[("large", torch.float16, size) for size in LARGE[1:]],
]  # fmt: skip


def run(b: Bench) -> None:
    for family, dtype, size in b.pick(PLAN, PLAN[:1] + PLAN[7:8] + PLAN[12:13]):
        _layer(b, family, dtype, *b.size(*size))


def _goal(family: str, dtype: torch.dtype, what: str) -> str:
    if dtype == torch.float32:
        return f"linear {what} fp32"
    return {"large": f"linear {what}", "skinny": "linear skinny", "odd": "linear odd"}[family]


def _layer(b: Bench, family: str, dtype: torch.dtype, m: int, n: int, k: int) -> None:
    shape, flops = (m, n, k), 2.0 * m * n * k
    nbytes = (m * k + n * k + m * n) * dtype.itemsize

    def forward(relu: bool = False) -> Contest:
        (x, tx), (w, tw), (v, tv) = (b.pair(s, dtype) for s in ((m, k), (n, k), (n,)))

        def exact() -> list[torch.Tensor]:
            y = tx[:SOME].double() @ tw.double().t() + tv.double()
            return [y.relu() if relu else y]

        calls = {"tgrad": lambda: GF.linear(x, w, v), "torch": lambda: TF.linear(tx, tw, tv)}
        if relu:
            calls = {
                "tgrad": lambda: tgrad.relu(GF.linear(x, w, v)), "torch": lambda: torch.relu(TF.linear(tx, tw, tv)),
                "tgrad folded": _folded(x, w, v),
            }  # fmt: skip
        return Contest(calls, exact, lambda t: t[:SOME])

    def backward() -> Contest:
        values = [b.random(s, dtype) for s in ((m, k), (n, k), (n,), (m, n))]
        tx, tw, tv = (t.clone().requires_grad_() for t in values[:3])
        x, w, v = (share(t).requires_grad_() for t in values[:3])
        tg, g = values[3], share(values[3])
        y, ty = GF.linear(x, w, v), TF.linear(tx, tw, tv)

        def exact() -> list[torch.Tensor]:
            columns = tg[:, :SOME].double()
            return [tg[:SOME].double() @ values[1].double(), columns.t() @ values[0].double(), columns.sum(0)]

        return Contest(
            {
                "tgrad": lambda: tgrad.autograd.grad(y, (x, w, v), g, retain_graph=True),
                "torch": lambda: torch.autograd.grad(ty, (tx, tw, tv), tg, retain_graph=True),
            },
            exact,
            lambda t: t[:SOME],
        )

    more = {"flops": flops, "nbytes": nbytes}
    b.case(f"linear, {family}", dtype, shape, forward, goal=_goal(family, dtype, "forward"),
           graph=family == "skinny" and dtype == HALF, **more)  # fmt: skip
    b.case(f"linear backward, {family}", dtype, shape, backward, grad=True, goal=_goal(family, dtype, "backward"),
           flops=2 * flops, nbytes=2.0 * nbytes)  # fmt: skip
    b.case(f"linear + bias + relu, {family}", dtype, shape, lambda: forward(True),
           goal=_goal(family, dtype, "relu"), **more)  # fmt: skip


def _folded(x: tgrad.Tensor, w: tgrad.Tensor, v: tgrad.Tensor):
    """The activation in the product's own kernel, as nn.Sequential has it."""
    layer = tgrad.nn.Linear(x.shape[1], w.shape[0], dtype=x.dtype)
    layer.weight, layer.bias = tgrad.nn.Parameter(w), tgrad.nn.Parameter(v)
    model = tgrad.nn.Sequential(layer, tgrad.nn.ReLU())
    return lambda: model(x)
