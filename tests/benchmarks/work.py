"""The work that a call gives a GPU, tgrad's beside PyTorch eager's: kernels, and bytes of memory that they touch.

    python -m tests.benchmarks.work [--out FOLDER]

Nothing is timed. A kernel's bytes are the distinct bytes it reads plus those it writes, which is the least that can
pass between it and memory. tgrad's come from Triton's interpreter, access by access: a GPU cuts sums into more
pieces, which adds partial sums and a small kernel here and there. PyTorch's come from the operations that its
dispatcher runs, each taken for one kernel over its whole operands (some are more: a cross-entropy's gradient is
filled with zeros before it is written, a large AdamW is cut into several launches).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the interpreter counts, on a machine with a GPU too

import numpy as np
import pandas as pd
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tgrad
from tgrad.kernels import interpret_memory, launch

ROWS, WIDTH, HEADS, LENGTH, CLASSES = 256, 64, 4, 32, 1000

Step = Callable[[], Any]


@dataclass
class Work:
    """What was launched, in order: a name, and bytes read and written, for each kernel."""

    kernels: list[tuple[str, int]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return sum(n for _, n in self.kernels)


# --- tgrad -----------------------------------------------------------------------------------------------------------
class _Accesses:
    """Stands where the interpreter keeps a launch's bounds, and is told of each access."""

    def __init__(self) -> None:
        self.work = Work()
        self.name: str | None = None
        self.seen: dict[tuple[str, int], list[np.ndarray]] = {}

    def begin(self, name: str) -> None:
        self.end()
        self.name = name

    def check(self, what: str, addresses: Any, size: int) -> None:
        self.seen.setdefault((what, size), []).append(np.asarray(addresses, np.uint64).reshape(-1))

    def end(self) -> None:
        if self.name is not None:
            touched = sum(size * np.unique(np.concatenate(blocks)).size for (_, size), blocks in self.seen.items())
            self.work.kernels.append((self.name, touched))
        self.name, self.seen = None, {}


def ours(step: Step) -> Work:
    """The work of one call of `step`, after one that warms up."""
    accesses = _Accesses()
    with launch.listen(accesses.begin):
        step()
        accesses.end()
        accesses.work = Work()
        with _in_place_of_bounds(accesses):
            step()
        accesses.end()
    return accesses.work


@contextmanager
def _in_place_of_bounds(accesses: Any) -> Iterator[None]:
    before, interpret_memory.bounds = interpret_memory.bounds, accesses
    try:
        yield
    finally:
        interpret_memory.bounds = before


# --- PyTorch ---------------------------------------------------------------------------------------------------------
# What launches nothing: allocations, views that the dispatcher does not call views, marks for profilers.
_NOTHING = (
    "empty", "new_empty", "_unsafe_view", "detach", "alias", "lift_fresh", "_reshape_alias", "set_", "_record_function",
)  # fmt: skip
_ONLY_WRITTEN = ("zero_", "fill_", "copy_")


class _Dispatched(TorchDispatchMode):
    """Counts operations that compute or copy; views and allocations are none."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if not func.is_view and not name.startswith(_NOTHING):
            given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            if name in _ONLY_WRITTEN:
                given = given[1:]
            written = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
            written += self._changed(func, args, written)
            self.work.kernels.append((name, sum(map(_distinct, given)) + sum(map(_distinct, written))))
        return out

    @staticmethod
    def _changed(func: Any, args: Any, out: list[torch.Tensor]) -> list[torch.Tensor]:
        """Operands that are written, and not returned."""
        found: list[torch.Tensor] = []
        for declared, value in zip(func._schema.arguments, args, strict=False):
            if declared.alias_info is not None and declared.alias_info.is_write:
                found += [t for t in tree_leaves(value) if isinstance(t, torch.Tensor) and not any(t is o for o in out)]
        return found


def _distinct(t: torch.Tensor) -> int:
    """Bytes of its distinct elements: of an expanded dimension there is one."""
    return t.itemsize * int(np.prod([n for n, s in zip(t.shape, t.stride(), strict=True) if s or n == 0], initial=1))


def theirs(step: Step) -> Work:
    """The work of one call of `step`, after one that warms up."""
    step()
    with _Dispatched() as counted:
        step()
    return counted.work


# --- what is compared ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """`make(xp)` gives the call for tgrad or torch; `fused`, if there is one, is tgrad's only."""

    name: str
    make: Callable[[Any], Step]
    fused: Callable[[Any], Step] | None = None


def _functional(xp: Any) -> Any:
    return tgrad.nn.functional if xp is tgrad else torch.nn.functional


def _forward_backward(module: Callable[[Any], Callable], *shape: int) -> Callable[[Any], Step]:
    """y = f(x), and its gradient from one of y's shape."""

    def make(xp: Any) -> Step:
        f = module(xp)
        x = xp.randn(*shape).requires_grad_()
        with xp.no_grad():
            g = xp.randn(*f(x).shape)
        parameters = f.parameters() if hasattr(f, "parameters") else ()
        leaves = [x, *parameters]

        def step() -> None:
            f(x).backward(g)
            for leaf in leaves:
                leaf.grad = None

        return step

    return make


def _gate(x: Any) -> Any:
    return ((x * 1.5).sigmoid() * x + 0.5).tanh()


def _losses(xp: Any) -> Step:
    F = _functional(xp)
    x, target = xp.randn(ROWS, CLASSES).requires_grad_(), xp.zeros(ROWS, dtype=xp.int64)

    def step() -> None:
        F.cross_entropy(x, target).backward()
        x.grad = None

    return step


def _attention(xp: Any) -> Step:
    F = _functional(xp)
    shape = ROWS // LENGTH, HEADS, LENGTH, WIDTH // HEADS
    q, k, v = (xp.randn(*shape).requires_grad_() for _ in range(3))
    g = xp.randn(*shape)

    def step() -> None:
        F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(g)
        q.grad = k.grad = v.grad = None

    return step


def _adamw(xp: Any) -> Step:
    parameters = [xp.nn.Parameter(xp.randn(WIDTH, n)) for n in (WIDTH, 1) * 8]
    for p in parameters:
        p.grad = xp.randn(*p.shape)
    return xp.optim.AdamW(parameters, lr=1e-3, fused=True).step


def _clip(xp: Any) -> Step:
    parameters = [xp.nn.Parameter(xp.randn(WIDTH, n)) for n in (WIDTH, 1) * 8]
    for p in parameters:
        p.grad = xp.randn(*p.shape)
    return lambda: xp.nn.utils.clip_grad_norm_(parameters, 1.0)


def _training(model: Callable[[Any], Any], *shape: int) -> Callable[[Any], Step]:
    """Forward, backward and a step of AdamW."""

    def make(xp: Any) -> Step:
        net = model(xp.nn)
        x, target = xp.randn(*shape), xp.randn(*shape[:-1], WIDTH)
        optimizer = xp.optim.AdamW(net.parameters(), lr=1e-3, fused=True)

        def step() -> None:
            optimizer.zero_grad()
            _functional(xp).mse_loss(net(x), target).backward()
            optimizer.step()

        return step

    return make


def _mlp(nn: Any, activation: str = "ReLU") -> Any:
    act = getattr(nn, activation)
    return nn.Sequential(
        nn.Linear(WIDTH, 4 * WIDTH), act(), nn.Linear(4 * WIDTH, 4 * WIDTH), act(), nn.Linear(4 * WIDTH, WIDTH)
    )


def _encoder(nn: Any) -> Any:
    return nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", norm_first=True, batch_first=True
    )


FLAT = ROWS, WIDTH
CASES = (
    Case("x -> tanh(sigmoid(1.5 x) x + 0.5)", _forward_backward(lambda xp: _gate, ROWS, CLASSES),
         _forward_backward(lambda xp: tgrad.fuse(_gate), ROWS, CLASSES)),
    Case("Linear", _forward_backward(lambda xp: xp.nn.Linear(WIDTH, 4 * WIDTH), *FLAT)),
    Case("Linear on sequences",
         _forward_backward(lambda xp: xp.nn.Linear(WIDTH, 4 * WIDTH), ROWS // LENGTH, LENGTH, WIDTH)),
    Case("Linear, ReLU, Linear", _forward_backward(
        lambda xp: xp.nn.Sequential(xp.nn.Linear(WIDTH, 4 * WIDTH), xp.nn.ReLU(), xp.nn.Linear(4 * WIDTH, WIDTH)),
        *FLAT)),
    Case("Linear, GELU, Linear", _forward_backward(
        lambda xp: xp.nn.Sequential(xp.nn.Linear(WIDTH, 4 * WIDTH), xp.nn.GELU(), xp.nn.Linear(4 * WIDTH, WIDTH)),
        *FLAT)),
    Case("softmax", _forward_backward(lambda xp: lambda x: xp.softmax(x, -1), ROWS, CLASSES)),
    Case("LayerNorm", _forward_backward(lambda xp: xp.nn.LayerNorm(CLASSES), ROWS, CLASSES)),
    Case("BatchNorm1d", _forward_backward(lambda xp: xp.nn.BatchNorm1d(CLASSES), ROWS, CLASSES)),
    Case("cross_entropy", _losses),
    Case("causal attention", _attention),
    Case("AdamW step of 16 parameters", _adamw),
    Case("clip_grad_norm_ of 16 gradients", _clip),
    Case("training step of an MLP with ReLU", _training(_mlp, *FLAT)),
    Case("training step of an MLP with GELU", _training(lambda nn: _mlp(nn, "GELU"), *FLAT)),
    Case("training step of an encoder block", _training(_encoder, ROWS // LENGTH, LENGTH, WIDTH)),
)  # fmt: skip


def measure(cases: tuple[Case, ...] = CASES) -> pd.DataFrame:
    """Columns: case, engine (tgrad, tgrad fused or torch), kernels, bytes, and the names of the kernels in order."""
    rows = []
    for case in cases:
        given: list[tuple[str, Callable[[Step], Work], Step]] = [("tgrad", ours, case.make(tgrad))]
        if case.fused is not None:
            given.append(("tgrad fused", ours, case.fused(tgrad)))
        given.append(("torch", theirs, case.make(torch)))
        for engine, count, step in given:
            work = count(step)
            names = " ".join(name for name, _ in work.kernels)
            rows.append((case.name, engine, len(work.kernels), work.nbytes, names))
    return pd.DataFrame(rows, columns=["case", "engine", "kernels", "bytes", "names"])


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder to write work.csv to")
    parser.add_argument("--names", action="store_true", help="print the names of the kernels too")
    options = parser.parse_args(arguments)
    frame = measure()
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        frame.to_csv(options.out / "work.csv", index=False)
    print(f"{'call':36} {'engine':12} {'kernels':>7} {'KiB':>9}  of torch's: kernels, bytes")
    for name, rows in frame.groupby("case", sort=False):
        torchs = rows[rows.engine == "torch"].iloc[0]
        for row in rows.itertuples():
            ratios = f"  {row.kernels / torchs.kernels:.2f} {row.bytes / torchs.bytes:.2f}"
            print(f"{name:36} {row.engine:12} {row.kernels:7} {row.bytes / 1024:9.1f}{ratios}")
            if options.names:
                print(f"    {row.names}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
