"""Between tgrad and PyTorch: tensors over one memory, DLPack, and functions of one inside a graph of the other.

Memory is shared, history is not: a tensor that requires grad is refused, and `torch_function` and `tgrad_function` are
the two bridges that gradients cross. Write counters are not shared either: neither library sees the other's writes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tgrad import autograd, dtypes, modes
from tgrad.device import compute, cpu
from tgrad.function import Function, once_differentiable
from tgrad.layout import layout
from tgrad.nn.module import Module
from tgrad.nn.parameter import Parameter
from tgrad.storage import adopt
from tgrad.tensor import Tensor, Version, make

_TORCH = {
    dtypes.float16: torch.float16, dtypes.bfloat16: torch.bfloat16, dtypes.float32: torch.float32,
    dtypes.float64: torch.float64, dtypes.int32: torch.int32, dtypes.int64: torch.int64, dtypes.uint8: torch.uint8,
    dtypes.bool_: torch.bool,
}  # fmt: skip
_TGRAD = {theirs: ours for ours, theirs in _TORCH.items()}


def is_torch(x: object) -> bool:
    """Whether x is a tensor of PyTorch."""
    return isinstance(x, torch.Tensor)


def from_torch(t: torch.Tensor) -> Tensor:
    """A tensor over the memory of a PyTorch one: the same dtype, shape, strides, offset and device.

    Raises:
        TypeError: no torch.Tensor, a dtype tgrad lacks, or not dense. RuntimeError: it requires grad (detach it first,
            and call requires_grad_ on the result, or use `tgrad_function`), or lives on another device.
    """
    if not isinstance(t, torch.Tensor):
        raise TypeError(f"from_torch: expected a torch.Tensor, got {type(t).__name__}")
    if t.requires_grad:
        raise RuntimeError(
            "from_torch: the tensor requires grad, and its history does not come along. Use from_torch(t.detach()), "
            "with .requires_grad_() for a new leaf, or tgrad.interop.tgrad_function for gradients across"
        )
    if t.dtype not in _TGRAD:
        raise TypeError(f"from_torch: dtype {t.dtype} is not supported: expected one of {list(_TGRAD)}")
    if t.layout is not torch.strided or t.is_conj() or t.is_neg():
        raise TypeError(f"from_torch: expected a dense tensor, got one of layout {t.layout}")
    where = cpu if t.device.type == "cpu" else compute
    if t.device.type not in ("cpu", compute.type) or (t.device.type == "cuda" and t.device.index != compute.index):
        raise RuntimeError(f"from_torch: the tensor is on {t.device}, tgrad computes on {compute}")
    storage = adopt(torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage()))
    ptr = t.data_ptr()
    to = layout(_TGRAD[t.dtype], tuple(t.shape), tuple(t.stride()), where, ptr % 16 == 0)
    return make(to, storage, ptr, None if modes.current().inference else Version.zero())


def to_torch(t: Tensor) -> torch.Tensor:
    """A PyTorch tensor over the memory of `t`: the same dtype, shape, strides, offset and device.

    Raises:
        TypeError: no Tensor. RuntimeError: it requires grad, while grad mode is on (detach it first, or use
            `torch_function`); an address that is no multiple of the element's size.
    """
    if not isinstance(t, Tensor):
        raise TypeError(f"to_torch: expected a tgrad.Tensor, got {type(t).__name__}")
    if t.requires_grad and modes.current().grad:
        raise RuntimeError(
            "to_torch: the tensor requires grad, and its history does not come along. Use to_torch(t.detach()), with "
            ".requires_grad_() for a new leaf, or tgrad.interop.torch_function for gradients across"
        )
    return _share(t)


def _share(t: Tensor) -> torch.Tensor:
    buffer = t.storage.buffer
    offset, rest = divmod(int(buffer.storage_offset()) + t.ptr - t.storage.ptr, t.itemsize)
    if rest:
        raise RuntimeError("to_torch: the address is no multiple of the element's size: clone() the tensor first")
    out = torch.empty(0, dtype=_TORCH[t.dtype], device=buffer.device)
    if t.numel() == 0:
        return out.new_empty(0).as_strided(tuple(t.shape), t.layout.strides)
    return out.set_(buffer.untyped_storage(), offset, tuple(t.shape), t.layout.strides)


def from_dlpack(x: Any) -> Tensor:
    """A tensor over the memory of any object with `__dlpack__`, such as a tensor of another library.

    Raises:
        TypeError: no such object, or a dtype tgrad lacks. RuntimeError: it requires grad, or lives on another device.
    """
    if isinstance(x, Tensor):
        return x.detach()
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"from_dlpack: expected an object with __dlpack__, got {type(x).__name__}")
    return from_torch(x if isinstance(x, torch.Tensor) else torch.from_dlpack(x))


def _dlpack(self: Tensor, **options: Any) -> Any:
    """The memory as a DLPack capsule.

    Raises:
        BufferError: the tensor requires grad.
    """
    if self.requires_grad:
        raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
    return _share(self).__dlpack__(**options)


def _dlpack_device(self: Tensor) -> tuple[int, int]:
    """(1, 0) on the CPU, (2, index) on a CUDA device."""
    return (2, self.device.index or 0) if self.is_cuda else (1, 0)


def _cuda_array_interface(self: Tensor) -> dict[str, Any]:
    """The memory as other CUDA libraries take it.

    Raises:
        AttributeError: a CPU tensor. RuntimeError: it requires grad.
    """
    if not self.is_cuda:
        raise AttributeError(
            f"Can't get __cuda_array_interface__ on non-CUDA tensor type: {self.dtype!r} If CUDA data is required use "
            "tensor.cuda() to copy tensor to device memory."
        )
    if self.requires_grad:
        raise RuntimeError(
            "Can't get __cuda_array_interface__ on Variable that requires grad. If gradients aren't required, use "
            "var.detach() to get Variable that doesn't require grad."
        )
    return _share(self).__cuda_array_interface__


def install() -> None:
    """Put the protocols on Tensor."""
    Tensor.__dlpack__ = _dlpack  # type: ignore[attr-defined]
    Tensor.__dlpack_device__ = _dlpack_device  # type: ignore[attr-defined]
    Tensor.__cuda_array_interface__ = property(_cuda_array_interface)  # type: ignore[attr-defined]


# --- a tgrad function inside PyTorch ---------------------------------------------------------------------------
class _InTorch(torch.autograd.Function):
    """run(*inputs) of tgrad, whose leaves are the inputs and then the parameters."""

    @staticmethod
    def forward(ctx: Any, run: Callable, parameters: list[Tensor], count: int, *given: Any) -> Any:
        ours: list[Any] = []
        for i, x in enumerate(given[:count]):
            if isinstance(x, torch.Tensor):
                x = from_torch(x.detach())
                x = x.requires_grad_() if ctx.needs_input_grad[i + 3] else x
            ours.append(x)
        recording = any(ctx.needs_input_grad)
        with modes.enable_grad() if recording else modes.no_grad():
            outputs = run(*ours)
        many = isinstance(outputs, (tuple, list))
        ctx.outputs = tuple(outputs) if many else (outputs,)
        ctx.leaves = [*ours, *parameters]
        results = tuple(_share(o.detach()) if isinstance(o, Tensor) else o for o in ctx.outputs)
        return results if many else results[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple:
        pairs = [(o, g) for o, g in zip(ctx.outputs, grads, strict=True)
                 if g is not None and isinstance(o, Tensor) and o.requires_grad]  # fmt: skip
        wanted = [i for i, x in enumerate(ctx.leaves) if ctx.needs_input_grad[i + 3]]
        found = autograd.grad(
            [o for o, _ in pairs], [ctx.leaves[i] for i in wanted], [from_torch(g.contiguous()) for _, g in pairs],
            allow_unused=True,
        ) if pairs else [None] * len(wanted)  # fmt: skip
        result: list[Any] = [None] * len(ctx.leaves)
        for i, g in zip(wanted, found, strict=True):
            result[i] = None if g is None else _share(g.detach())
        return (None, None, None, *result)


def torch_function(function: Any) -> Any:
    """A tgrad function or Module as one of PyTorch's: it takes and gives torch tensors, and gradients flow through.

    A Module becomes a torch.nn.Module whose parameters share its parameters' memory, under the same names, so that
    PyTorch's optimisers train it. Gradients are not differentiable again.

    Args:
        function: takes positional tensors (and other values), returns a tensor or a tuple of tensors.
    """
    if not isinstance(function, Module):
        return lambda *given: _InTorch.apply(function, [], len(given), *given)
    return _TorchModule(function)


class _TorchModule(torch.nn.Module):
    """A tgrad Module as PyTorch's."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self._module = [module]  # in a list: hidden from torch
        for name, p in module.named_parameters():
            *path, last = name.split(".")
            owner: Any = self
            for step in path:
                if not hasattr(owner, step):
                    owner.add_module(step, torch.nn.Module())
                owner = getattr(owner, step)
            owner.register_parameter(last, torch.nn.Parameter(_share(p.detach()), p.requires_grad))

    def forward(self, *given: Any) -> Any:
        module = self._module[0]
        theirs, ours = [], []
        for (_, p), q in zip(module.named_parameters(), self.parameters(), strict=True):
            theirs.append(q)
            ours.append(p)
        return _InTorch.apply(module, ours, len(given), *given, *theirs)

    def train(self, mode: bool = True) -> _TorchModule:
        super().train(mode)
        self._module[0].train(mode)
        return self


# --- a PyTorch function inside tgrad ---------------------------------------------------------------------------
class _InTgrad(Function):
    """run(*inputs) of PyTorch, whose leaves are the inputs and then the parameters."""

    @staticmethod
    def forward(ctx: Any, run: Callable, parameters: list[Any], count: int, *given: Any) -> Any:
        theirs: list[Any] = []
        for i, x in enumerate(given[:count]):
            if isinstance(x, Tensor):
                x = _share(x.detach()).detach()
                x = x.requires_grad_() if ctx.needs_input_grad[i + 3] else x
            theirs.append(x)
        with torch.set_grad_enabled(any(ctx.needs_input_grad)):
            outputs = run(*theirs)
        many = isinstance(outputs, (tuple, list))
        ctx.outputs = tuple(outputs) if many else (outputs,)
        ctx.leaves = [*theirs, *parameters]
        results = tuple(from_torch(o.detach()) if isinstance(o, torch.Tensor) else o for o in ctx.outputs)
        return results if many else results[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        pairs = [(o, g) for o, g in zip(ctx.outputs, grads, strict=True)
                 if g is not None and isinstance(o, torch.Tensor) and o.requires_grad]  # fmt: skip
        wanted = [i for i, x in enumerate(ctx.leaves) if ctx.needs_input_grad[i + 3]]
        found = torch.autograd.grad(
            [o for o, _ in pairs], [ctx.leaves[i] for i in wanted], [_share(g.detach()) for _, g in pairs],
            allow_unused=True,
        ) if pairs else [None] * len(wanted)  # fmt: skip
        result: list[Any] = [None] * len(ctx.leaves)
        for i, g in zip(wanted, found, strict=True):
            result[i] = None if g is None else from_torch(g.detach())
        return (None, None, None, *result)


def tgrad_function(function: Any) -> Any:
    """A PyTorch function or module as one of tgrad's: it takes and gives tgrad tensors, and gradients flow through.

    A torch.nn.Module becomes a tgrad Module whose parameters share its parameters' memory, under the same names, so
    that tgrad's optimisers train it. Gradients are not differentiable again.

    Args:
        function: takes positional tensors (and other values), returns a tensor or a tuple of tensors.
    """
    if not isinstance(function, torch.nn.Module):
        return lambda *given: _InTgrad.apply(function, [], len(given), *given)
    return _TgradModule(function)


class _TgradModule(Module):
    """A PyTorch module as tgrad's."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self._module = [module]
        for name, q in module.named_parameters():
            *path, last = name.split(".")
            owner: Any = self
            for step in path:
                if not hasattr(owner, step):
                    owner.add_module(step, Module())
                owner = getattr(owner, step)
            owner.register_parameter(last, Parameter(from_torch(q.detach()), q.requires_grad))

    def forward(self, *given: Any) -> Any:
        module = self._module[0]
        theirs = list(module.parameters())
        return _InTgrad.apply(module, theirs, len(given), *given, *self.parameters())

    def train(self, mode: bool = True) -> _TgradModule:
        super().train(mode)
        self._module[0].train(mode)
        return self


__all__ = ["from_dlpack", "from_torch", "is_torch", "tgrad_function", "to_torch", "torch_function"]
