"""Reductions, and what works on rows, forward and backward: softmax, the norms, cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as TF

import tgrad
import tgrad.nn.functional as GF
from tests.benchmarks.gpu import peers
from tests.benchmarks.gpu.bench import Bench, Contest
from tests.benchmarks.gpu.data import share

HALF, FULL = torch.bfloat16, torch.float32
EPS = 1e-5


def run(b: Bench) -> None:
    for dtype in (HALF, FULL):
        _rows(b, "softmax", dtype, b.size(8192, 8192), lambda xp, F, x: xp.softmax(x, 1))
        _cross_entropy(b, dtype, *b.size(8192, 32000))
        _layer_norm(b, dtype, *b.size(16384, 4096))
        _rms_norm(b, dtype, *b.size(16384, 4096))
    for dtype in (HALF, FULL):
        for shape in ((8192, 8192), (1 << 20, 64), (64, 1 << 20)):
            _reductions(b, dtype, b.size(*shape))
    _rows(b, "softmax", HALF, b.size(256, 262144), lambda xp, F, x: xp.softmax(x, 1))
    _rows(b, "log_softmax", HALF, b.size(8192, 32000), lambda xp, F, x: xp.log_softmax(x, 1))


def _reductions(b: Bench, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    cases: dict[str, Callable[[Any, Any], Any]] = {
        "sum of rows": lambda xp, x: xp.sum(x, 1), "sum of columns": lambda xp, x: xp.sum(x, 0),
        "sum of all": lambda xp, x: xp.sum(x), "amax of rows": lambda xp, x: xp.amax(x, 1),
    }  # fmt: skip
    for name, function in cases.items():

        def build(function: Any = function) -> Contest:
            x, tx = b.pair(shape, dtype)
            calls = {"tgrad": lambda: function(tgrad, x), "torch": lambda: function(torch, tx)}
            return Contest(calls, lambda: [function(torch, tx.double())])

        b.case(name, dtype, shape, build, nbytes=shape[0] * shape[1] * dtype.itemsize, goal="reduction", seconds=0.2)


def _both_ways(b: Bench, leaves: list[torch.Tensor], g: torch.Tensor | None, functions: dict[str, Any]) -> Contest:
    """Forward and backward of functions of the leaves; "tgrad" gets tgrad tensors over copies of the same values."""
    theirs = [t.clone().requires_grad_() for t in leaves]
    ours = [share(t.clone()).requires_grad_() for t in leaves]
    cotangent = None if g is None else share(g)

    def exact() -> list[torch.Tensor]:
        wide = [t.double().requires_grad_() for t in leaves]
        with torch.enable_grad():
            out = functions["exact"](*wide)
        return list(torch.autograd.grad(out, wide, None if g is None else g.double()))

    def call(name: str, function: Any) -> Callable[[], Any]:
        if name == "tgrad":
            return lambda: tgrad.autograd.grad(function(*ours), ours, cotangent)
        return lambda: torch.autograd.grad(function(*theirs), theirs, g)

    return Contest({name: call(name, f) for name, f in functions.items() if name != "exact"}, exact)


def _rows(b: Bench, name: str, dtype: torch.dtype, shape: tuple[int, ...], function: Any) -> None:
    nbytes = shape[0] * shape[1] * dtype.itemsize

    def forward() -> Contest:
        x, tx = b.pair(shape, dtype)
        calls = {"tgrad": lambda: function(tgrad, GF, x), "torch": lambda: function(torch, TF, tx)}
        return Contest(calls, lambda: [function(torch, TF, tx.double())])

    def both() -> Contest:
        theirs = lambda x: function(torch, TF, x)
        functions = {"tgrad": lambda x: function(tgrad, GF, x), "torch": theirs, "exact": theirs}
        if dtype == HALF:
            functions["torch.compile"] = b.compiled(theirs)
        return _both_ways(b, [b.random(shape, dtype)], b.random(shape, dtype), functions)

    b.case(name, dtype, shape, forward, nbytes=2 * nbytes, goal="row op forward")
    b.case(f"{name}, both ways", dtype, shape, both, nbytes=5 * nbytes, grad=True, goal="row op both ways")


def _cross_entropy(b: Bench, dtype: torch.dtype, m: int, n: int) -> None:
    nbytes = m * n * dtype.itemsize

    def forward() -> Contest:
        (x, tx), (classes, target) = b.pair((m, n), dtype), b.integers(n, (m,))
        calls = {"tgrad": lambda: GF.cross_entropy(x, classes), "torch": lambda: TF.cross_entropy(tx, target)}
        return Contest(calls, lambda: [TF.cross_entropy(tx.double(), target)])

    def both() -> Contest:
        classes, target = b.integers(n, (m,))
        theirs = lambda x: TF.cross_entropy(x, target)
        functions = {"tgrad": lambda x: GF.cross_entropy(x, classes), "torch": theirs, "exact": theirs}
        if dtype == HALF:
            functions["torch.compile"] = b.compiled(theirs)
            if liger := peers.liger("cross_entropy"):  # writes its gradient over the logits: a copy is given
                functions["liger"] = lambda x: liger(x.clone(), target)
        return _both_ways(b, [b.random((m, n), dtype)], None, functions)

    b.case("cross_entropy", dtype, (m, n), forward, nbytes=nbytes, goal="row op forward")
    b.case("cross_entropy, both ways", dtype, (m, n), both, nbytes=3 * nbytes, grad=True, goal="row op both ways")


def _layer_norm(b: Bench, dtype: torch.dtype, m: int, n: int) -> None:
    def both() -> Contest:
        theirs = lambda x, w, v: TF.layer_norm(x, (n,), w, v, EPS)
        functions = {"tgrad": lambda x, w, v: GF.layer_norm(x, (n,), w, v, EPS), "torch": theirs, "exact": theirs}
        if dtype == HALF:
            functions["torch.compile"] = b.compiled(theirs)
            if liger := peers.liger("layer_norm"):
                functions["liger"] = lambda x, w, v: liger(x, w, v, EPS)
        leaves = [b.random(s, dtype) for s in ((m, n), (n,), (n,))]
        return _both_ways(b, leaves, b.random((m, n), dtype), functions)

    nbytes = 5 * m * n * dtype.itemsize
    b.case("layer_norm, both ways", dtype, (m, n), both, nbytes=nbytes, grad=True, goal="row op both ways")


def _rms_norm(b: Bench, dtype: torch.dtype, m: int, n: int) -> None:
    def both() -> Contest:
        theirs = lambda x, w: TF.rms_norm(x, (n,), w, EPS)
        functions = {"tgrad": lambda x, w: GF.rms_norm(x, (n,), w, EPS), "torch": theirs, "exact": theirs}
        if dtype == HALF:
            functions["torch.compile"] = b.compiled(theirs)
            if liger := peers.liger("rms_norm"):
                functions["liger"] = lambda x, w: liger(x, w, EPS)
        leaves = [b.random(s, dtype) for s in ((m, n), (n,))]
        return _both_ways(b, leaves, b.random((m, n), dtype), functions)

    nbytes = 5 * m * n * dtype.itemsize
    b.case("rms_norm, both ways", dtype, (m, n), both, nbytes=nbytes, grad=True, goal="row op both ways")
