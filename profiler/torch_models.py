"""The workloads that come with tgrad, in PyTorch; and a user's own PyTorch model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tgrad.profiler import digits
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.torch_twin import Twin

EXPECTED = "expected (model, example_input) or (model, example_input, loss_fn) of PyTorch"


def tutorial(rows: int, dtype: str, held: int) -> Twin:
    """Linear(1000, 1000)."""
    of = getattr(torch, dtype)
    return Twin(nn.Linear(1000, 1000, dtype=of), lambda: ((torch.randn(rows, 1000, dtype=of),), ()), None, held)


def digits_(rows: int, dtype: str, data: digits.Digits) -> Twin:
    """The MLP 64-64-10."""
    of = getattr(torch, dtype)
    model = nn.Sequential(nn.Linear(64, 64, dtype=of), nn.ReLU(), nn.Linear(64, 10, dtype=of))

    def batch() -> tuple[tuple, tuple]:
        images = torch.tensor(data.train_images[:rows]).to(of).clone()
        return (images,), (torch.tensor(data.train_labels[:rows]),)

    return Twin(model, batch, nn.CrossEntropyLoss())


def mlp(rows: int, dtype: str, width: int, depth: int) -> Twin:
    """`depth` hidden layers."""
    of = getattr(torch, dtype)
    hidden = [m for _ in range(depth) for m in (nn.Linear(width, width, dtype=of), nn.ReLU())]
    model = nn.Sequential(*hidden, nn.Linear(width, 10, dtype=of))
    return Twin(
        model, lambda: ((torch.randn(rows, width, dtype=of),), (torch.arange(rows) % 10,)), nn.CrossEntropyLoss()
    )


def normed(rows: int) -> Twin:
    """Linear 6-5, BatchNorm1d, ReLU."""
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU())
    return Twin(model, lambda: ((torch.randn(rows, 6),), ()))


def expanded(rows: int, columns: int) -> Twin:
    """A product of an expanded view with a parameter."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1, columns))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.expand(rows, columns) * self.scale

    return Twin(Net(), lambda: ((torch.randn(1, columns),), ()))


def is_model(value: Any) -> bool:
    """Whether it is a PyTorch module."""
    return isinstance(value, nn.Module)


def of_user(made: Any, label: str) -> Twin:
    """The twin that a user's function returned: a Twin, (model, example_input) or (model, example_input, loss_fn).

    Raises:
        ProfilerError: it is something else.
    """
    if isinstance(made, Twin):
        return made
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not is_model(made[0]):
        raise ProfilerError(f"{label}: got {type(made).__name__}; {EXPECTED}")
    inputs = made[1] if isinstance(made[1], tuple) else (made[1],)
    if not any(isinstance(t, torch.Tensor) for t in inputs):
        raise ProfilerError(
            f"{label}: the example input is of type {type(made[1]).__name__}, not PyTorch's tensor; {EXPECTED}"
        )
    loss = made[2] if len(made) == 3 else None
    if loss is not None and not callable(loss):
        raise ProfilerError(f"{label}: loss_fn is of type {type(loss).__name__}, which cannot be called; {EXPECTED}")

    def fresh(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().clone().requires_grad_(value.requires_grad)

    return Twin(made[0], lambda: (tuple(map(fresh, inputs)), ()), loss)


def rows_of(made: Any) -> int:
    """The rows of a user's example input."""
    inputs = made[1] if isinstance(made[1], tuple) else (made[1],)
    return next((t.shape[0] for t in inputs if isinstance(t, torch.Tensor) and t.ndim), 1)
