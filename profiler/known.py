"""Models whose bytes are computed by hand: what `doctor` replays, and what the tests hold every workload against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import tgrad
from tgrad import nn
from tgrad.profiler.workloads import Options, Workload, make

# Bytes of a float32, of a class, and of the number of rows that cross-entropy divides by.
F, CLASS, COUNT = 4, 8, 4


@dataclass(frozen=True)
class Known:
    """A workload, and what its graph keeps after the forward, by hand. how: the sum in words."""

    workload: Workload
    graph_bytes: int
    how: str


def tutorial(rows: int = 2, held: int = 3) -> Known:
    """Linear(1000, 1000) keeps its input, for the gradient of its weight: no other is wanted."""
    made = make("tutorial", Options(batch_size=rows))
    workload = replace(made, held=held, twin=lambda: replace(made.twin(), held=held))  # type: ignore[misc]
    return Known(workload, held * rows * 1000 * F, f"{held} inputs of {rows} x 1000")


def digits(rows: int = 4) -> Known:
    """Linear 64-64, ReLU, Linear 64-10 and cross-entropy."""
    keeps = rows * (64 + 64 + 10) * F + rows * CLASS + COUNT
    return Known(
        make("digits", Options(batch_size=rows)), keeps,
        f"{rows} x (input 64 + hidden 64 + scores 10), {rows} targets, the number of rows",
    )  # fmt: skip


def mlp(rows: int = 5, width: int = 12, depth: int = 3) -> Known:
    """A Linear keeps its input; a ReLU keeps its result, which is the next Linear's input: once. Cross-entropy keeps
    the scores, the targets and their number.
    """
    keeps = rows * (width * (1 + depth) + 10) * F + rows * CLASS + COUNT
    return Known(
        make("mlp", Options(batch_size=rows, width=width, depth=depth)), keeps,
        f"{rows} x (input {width} + {depth} hidden of {width} + scores 10), {rows} targets, the number of rows",
    )  # fmt: skip


def normed(rows: int = 7) -> Known:
    """Linear 6-5, BatchNorm1d, ReLU: an input of each of the first two, a mean and an rstd, and ReLU's result."""
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU())

    def twin() -> object:
        from tgrad.profiler import torch_models

        return torch_models.normed(rows)

    workload = Workload("normed", model, lambda: ((tgrad.randn(rows, 6),), ()), None, 1, rows, "", twin)
    return Known(
        workload, rows * (6 + 5 + 5) * F + 2 * 5 * F, f"{rows} x (input 6 + before the norm 5 + result 5), mean, rstd"
    )


def expanded(rows: int = 4096, columns: int = 3) -> Known:
    """A product with an expanded view keeps the few bytes beneath it, not those that it seems to have."""
    scale = nn.Parameter(tgrad.ones(1, columns))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: tgrad.Tensor) -> tgrad.Tensor:
            return x.expand(rows, columns) * self.scale

    def twin() -> object:
        from tgrad.profiler import torch_models

        return torch_models.expanded(rows, columns)

    workload = Workload("expanded", Net(), lambda: ((tgrad.randn(1, columns),), ()), None, 1, 1, "", twin)
    return Known(workload, columns * F, f"a view of {rows} x {columns} over {columns} numbers")


ALL: dict[str, Callable[[], Known]] = {
    "tutorial": tutorial, "digits": digits, "mlp": mlp, "normed": normed, "expanded": expanded,
}  # fmt: skip
