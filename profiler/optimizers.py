"""The optimiser of a workload: which ones have a name, what an optimiser keeps, and the parameters put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tgrad import optim
from tgrad.tensor import Tensor

RATE = 1e-3

# What --optimizer takes, beside `none`.
NAMED: dict[str, Callable[[Sequence[Tensor]], Any]] = {
    "sgd": lambda parameters: optim.SGD(parameters, lr=RATE),
    "momentum": lambda parameters: optim.SGD(parameters, lr=RATE, momentum=0.9),
    "adam": lambda parameters: optim.Adam(parameters, lr=RATE),
    "adamw": lambda parameters: optim.AdamW(parameters, lr=RATE),
    "rmsprop": lambda parameters: optim.RMSprop(parameters, lr=RATE),
    "adagrad": lambda parameters: optim.Adagrad(parameters, lr=RATE),
}
CHOICES = ("none", *NAMED)


def trainable(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Those that a step changes."""
    return [p for p in parameters if p.requires_grad]


@contextmanager
def values_put_back(parameters: Sequence[Tensor]) -> Iterator[None]:
    """After the block the parameters have the values that they had before; the copies are not in the ledger."""
    before = [(p, p.storage, p.storage.host_bytes(0, p.storage.nbytes).copy()) for p in parameters]
    try:
        yield
    finally:
        for p, storage, data in before:
            if p.storage is storage and data.size:
                storage.write(data)


def state_of(optimizer: Any) -> dict[int, int]:
    """Bytes of each storage that an optimiser keeps for its parameters, by id; of None, nothing."""
    found: dict[int, int] = {}
    for state in getattr(optimizer, "state", {}).values():
        found |= {t.storage.id: t.storage.nbytes for t in state.values() if isinstance(t, Tensor)}
    return found
