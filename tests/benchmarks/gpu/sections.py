"""All sections, in the order in which they run: what tells most comes first."""

from __future__ import annotations

from typing import NamedTuple


class Section(NamedTuple):
    """A module `<name>_cases` of this package, and its time limit: what one leaves over goes to those after it."""

    name: str
    seconds: float
    about: str


SECTIONS = (
    Section("ceilings", 14, "copy bandwidth, cuBLAS"),
    Section("linear", 62, "linear layers, forward and backward"),
    Section("training", 48, "MLP training steps"),
    Section("memory", 34, "activation memory of training steps"),
    Section("row", 44, "reductions, softmax, norms, cross-entropy"),
    Section("pointwise", 38, "pointwise operations and chains"),
    Section("host", 14, "host time of small operations"),
    Section("optimizer", 12, "optimizers' steps"),
    Section("attention", 16, "attention, forward and backward"),
    Section("classes", 12, "linear + cross-entropy of 128k classes"),
)
BUDGET = 245.0  # seconds in all, below their sum and starting times: sections that end early make up for it
