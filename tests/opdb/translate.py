"""A sample's arguments, made again: for tgrad, for torch, and for torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import tgrad
from tests.compare import TORCH
from tgrad.nn.linear_cross_entropy import LinearCrossEntropyOptions

FORMATS = {torch.preserve_format: tgrad.preserve_format, torch.contiguous_format: tgrad.contiguous_format}
OURS = {theirs: ours for ours, theirs in TORCH.items()}


class Untranslatable(Exception):
    """tgrad has no such value; the text says which."""


def leaves(tree: Any) -> list:
    """What is not a list, tuple or dict in a tree of them, in order."""
    if isinstance(tree, dict):
        return [x for v in tree.values() for x in leaves(v)]
    if isinstance(tree, (list, tuple)) and not isinstance(tree, torch.Size):
        return [x for v in tree for x in leaves(v)]
    return [tree]


def rebuild(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """The same tree with each leaf (slices are looked into) put through `leaf`."""
    if isinstance(tree, dict):
        return {k: rebuild(v, leaf) for k, v in tree.items()}
    if isinstance(tree, slice):
        return slice(*(rebuild(x, leaf) for x in (tree.start, tree.stop, tree.step)))
    if isinstance(tree, torch.Size):
        return leaf(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(rebuild(x, leaf) for x in tree)
    return leaf(tree)


def memory(t: torch.Tensor) -> torch.Tensor:
    """The whole storage that t lies in, copied, as a vector."""
    return torch.empty(0, dtype=t.dtype).set_(t.untyped_storage()).clone()


class Translation:
    """Values made once for each object of a sample, so that what is one tensor there is one here.

    Attributes:
        tensors: the tensors made, in order of appearance; those of two translations of a sample match.
        inputs: those of them that want a gradient.
    """

    def __init__(self, make: Callable[[torch.Tensor], Any], other: Callable[[Any], Any], grad: bool) -> None:
        self.make, self.other, self.grad = make, other, grad
        self.made: dict[int, Any] = {}
        self.inputs: list = []

    @property
    def tensors(self) -> list:
        return list(self.made.values())

    def __call__(self, tree: Any) -> Any:
        return rebuild(tree, self.leaf)

    def leaf(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return self.other(value)
        if id(value) not in self.made:
            made = self.make(value.detach())
            if self.grad and value.requires_grad:
                self.inputs.append(made.requires_grad_())
            self.made[id(value)] = made
        return self.made[id(value)]


def _tgrad_tensor(t: torch.Tensor) -> Any:
    if t.layout is not torch.strided:
        raise Untranslatable("sparse layout")
    if t.dtype not in OURS:
        raise Untranslatable(_kind(t.dtype))
    flat = memory(t.resolve_neg())
    flat = tgrad.tensor((flat.double() if flat.is_floating_point() else flat).numpy(), dtype=OURS[t.dtype])
    return tgrad.as_strided(flat, tuple(t.shape), t.stride(), t.storage_offset()).detach()


def _kind(dtype: torch.dtype) -> str:
    return "complex dtype" if dtype.is_complex else f"dtype {str(dtype).removeprefix('torch.')}"


def _tgrad_other(value: Any) -> Any:
    if isinstance(value, torch.dtype):
        if value not in OURS:
            raise Untranslatable(_kind(value))
        return OURS[value]
    if isinstance(value, complex):
        raise Untranslatable("complex number")
    if isinstance(value, torch.layout):
        raise Untranslatable("layout=")
    if isinstance(value, torch.memory_format):
        if value not in FORMATS:
            raise Untranslatable("channels-last")
        return FORMATS[value]
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, torch.Generator):
        return tgrad.Generator().manual_seed(value.initial_seed())
    if type(value).__name__ == "LinearCrossEntropyOptions":
        return LinearCrossEntropyOptions(value.batch_chunk_size)
    return tuple(value) if isinstance(value, torch.Size) else value


def _torch_tensor(wide: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    def make(t: torch.Tensor) -> torch.Tensor:
        if t.layout is not torch.strided:
            return t.clone()
        flat = memory(t)
        flat = flat.double() if wide and flat.is_floating_point() else flat
        return flat.as_strided(t.shape, t.stride(), t.storage_offset())

    return make


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def to_tgrad(grad: bool) -> Translation:
    return Translation(_tgrad_tensor, _tgrad_other, grad)


def to_torch(grad: bool, wide: bool = False) -> Translation:
    """`wide`: floating tensors, and floating dtypes among the arguments, become float64."""
    return Translation(_torch_tensor(wide), _widened if wide else lambda value: value, grad)
