"""Which entries of torch's op database tgrad has, and how each is called here."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import tgrad


def database() -> list:
    """The OpInfos of torch's op database; importing it takes seconds.

    Raises:
        ModuleNotFoundError: expecttest is not installed (extra: test); torch's test utilities import it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db

    return op_db


@dataclass
class Entry:
    """An OpInfo and the forms of it that tgrad has.

    Attributes:
        forms: by name ("function", "method", "in-place", or an alias): (torch's callable, tgrad's).
    """

    info: Any
    forms: dict[str, tuple[Callable, Callable]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def full_name(self) -> str:
        variant = self.info.variant_test_name
        return f"{self.name}.{variant}" if variant else self.name


# Where the database's own callable is a lambda with its arguments in another order than torch's.
REORDERED: dict[tuple[str, str], Callable] = {
    ("where", ""): lambda input, condition, other: tgrad.where(condition, input, other),
    ("einsum", ""): lambda tensors, equation: tgrad.einsum(equation, tensors),
    ("nn.functional.embedding", ""): lambda weight, idx, **kw: tgrad.nn.functional.embedding(idx, weight, **kw),
    ("zero_", ""): lambda x: x.clone().zero_(),
    ("normal", "in_place"): lambda x, *args, **kw: x.normal_(*args, **kw),
    ("normal", "number_mean"): lambda std, mean, *args, **kw: tgrad.normal(mean, std, *args, **kw),
}


# Where torch leaves the order of equal elements open, tgrad keeps it: compared with torch's stable sort.
STABLE: dict[str, Callable] = {
    "sort": lambda x, dim=-1, descending=False, stable=True: torch.sort(x, dim=dim, descending=descending, stable=True),
    "argsort": lambda x, dim=-1, descending=False, stable=True: torch.sort(
        x, dim=dim, descending=descending, stable=True).indices,
    "msort": lambda x: torch.sort(x, dim=0, stable=True).values,
    "kthvalue": lambda x, k, dim=-1, keepdim=False: [
        part.narrow(dim, k - 1, 1) if x.ndim and keepdim else part.select(dim, k - 1) if x.ndim else part
        for part in torch.sort(x, dim=dim, stable=True)],
    "topk": lambda x, k, dim=-1, largest=True, sorted=True: [
        part.narrow(dim, 0, k) if x.ndim else part for part in torch.sort(x, dim=dim, descending=largest, stable=True)],
}  # fmt: skip


def lookup(path: str) -> Callable | None:
    """`tgrad.<path>`, or the Tensor's method or property of that name."""
    found: Any = tgrad
    for part in path.split("."):
        found = getattr(found, part, None)
    if callable(found) and not isinstance(found, type):
        return found
    member = None if "." in path else getattr(tgrad.Tensor, path, None)
    return member.fget if isinstance(member, property) else member


def _forms(info: Any, ours: Callable) -> Iterator[tuple[str, tuple[Callable, Callable] | None]]:
    yield "function", (STABLE.get(info.name, info.op), ours)
    for prefix, alias in (("", info), *((a.name + " ", a) for a in info.aliases)):
        if alias is not info:
            found = lookup(alias.name)
            yield alias.name, found and (alias.op, found)
        for form, theirs in (("method", alias.method_variant), ("in-place", alias.inplace_variant)):
            found = getattr(tgrad.Tensor, getattr(theirs, "__name__", "-"), None)
            yield prefix + form, found and (theirs, found)


def entry(info: Any) -> Entry | None:
    """What tgrad has of an OpInfo; None if nothing."""
    key = (info.name, info.variant_test_name)
    ours = REORDERED.get(key) or lookup(info.name)
    if ours is None:
        return None
    if isinstance(info.op, functools.partial):
        ours = functools.partial(ours, *info.op.args, **info.op.keywords)
    made, seen = Entry(info), set()
    for form, pair in _forms(info, ours):
        if pair and pair[1] not in seen:  # the same function under another name has nothing new to show
            seen.add(pair[1])
            made.forms[form] = pair
    return made
