"""Tensors over memory that PyTorch, or another library by DLPack, holds as well.

Memory is shared, history is not: a tensor that requires grad is refused. Write counters are not shared either: neither
library sees the other's writes, except across the bridges of bridge.py. Where PyTorch's current CUDA stream is another
than tgrad's, whoever takes memory waits for what the other has been given to do so far (torch_streams.py); what either
does to it later is ordered by the user, as between two streams of PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch

from tgrad import dtypes, modes, storage, torch_streams as streams
from tgrad.device import compute, cpu
from tgrad.layout import layout
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


def dtype_of(t: torch.Tensor) -> dtypes.dtype:
    """The dtype of ours that a PyTorch tensor has.

    Raises:
        TypeError: there is none.
    """
    if t.dtype not in _TGRAD:
        raise TypeError(f"from_torch: dtype {t.dtype} is not supported: expected one of {list(_TGRAD)}")
    return _TGRAD[t.dtype]


def from_torch(t: torch.Tensor) -> Tensor:
    """A tensor over the memory of a PyTorch one: the same dtype, shape, strides, offset and device.

    Shape: any; the result has the input's.
    Dtype: one of the eight; the result has the input's.
    Raises:
        TypeError: no torch.Tensor, a dtype tgrad lacks, or not dense.
        RuntimeError: it requires grad (detach it first, and call requires_grad_ on the result, or use
            `tgrad_function`), or lives on another device.
    """
    if not isinstance(t, torch.Tensor):
        raise TypeError(f"from_torch: expected a torch.Tensor, got {type(t).__name__}")
    if t.requires_grad:
        raise RuntimeError(
            "from_torch: the tensor requires grad, and its history does not come along. Use from_torch(t.detach()), "
            "with .requires_grad_() for a new leaf, or tgrad.interop.tgrad_function for gradients across"
        )
    kind = dtype_of(t)
    if t.layout is not torch.strided or t.is_conj() or t.is_neg():
        raise TypeError(f"from_torch: expected a dense tensor, got one of layout {t.layout}")
    where = cpu if t.device.type == "cpu" else compute
    if t.device.type not in ("cpu", compute.type) or (t.device.type == "cuda" and t.device.index != compute.index):
        raise RuntimeError(f"from_torch: the tensor is on {t.device}, tgrad computes on {compute}")
    if where is compute and storage.refuse is not None:
        storage.refuse("takes memory of PyTorch")
    held = torch.empty(0, dtype=torch.uint8, device=t.device).set_(t.untyped_storage())
    if where.type == "cuda":
        streams.tgrad_waits(held)
    ptr = t.data_ptr()
    to = layout(kind, tuple(t.shape), tuple(t.stride()), where, ptr % 16 == 0)
    return make(to, storage.adopt(held), ptr, None if modes.current().inference else Version.zero())


def to_torch(t: Tensor) -> torch.Tensor:
    """A PyTorch tensor over the memory of `t`: the same dtype, shape, strides, offset and device.

    Shape: any; the result has the input's.
    Dtype: the input's.
    Raises:
        TypeError: no Tensor.
        RuntimeError: it requires grad, while grad mode is on (detach it first, or use `torch_function`); an address
            that is no multiple of the element's size.
    """
    if not isinstance(t, Tensor):
        raise TypeError(f"to_torch: expected a tgrad.Tensor, got {type(t).__name__}")
    if t.requires_grad and modes.current().grad:
        raise RuntimeError(
            "to_torch: the tensor requires grad, and its history does not come along. Use to_torch(t.detach()), with "
            ".requires_grad_() for a new leaf, or tgrad.interop.torch_function for gradients across"
        )
    return share(t)


def share(t: Tensor) -> torch.Tensor:
    """`to_torch`, whether or not `t` requires grad."""
    buffer = t.storage.buffer
    if t.is_cuda:
        streams.torch_waits(buffer)
    offset, rest = divmod(int(buffer.storage_offset()) + t.ptr - t.storage.ptr, t.itemsize)
    if rest:
        raise RuntimeError("to_torch: the address is no multiple of the element's size: clone() the tensor first")
    out = torch.empty(0, dtype=_TORCH[t.dtype], device=buffer.device)
    if t.numel() == 0:
        return out.new_empty(0).as_strided(tuple(t.shape), t.layout.strides)
    return out.set_(buffer.untyped_storage(), offset, tuple(t.shape), t.layout.strides)


def from_dlpack(x: Any) -> Tensor:
    """A tensor over the memory of any object with `__dlpack__`, such as a tensor of another library.

    Shape: that of `x`.
    Dtype: that of `x`, one of the eight.
    Raises:
        TypeError: no such object, or a dtype tgrad lacks.
        RuntimeError: it requires grad, or lives on another device.
    """
    if isinstance(x, Tensor):
        return x.detach()
    if not hasattr(x, "__dlpack__"):
        raise TypeError(f"from_dlpack: expected an object with __dlpack__, got {type(x).__name__}")
    return from_torch(x if isinstance(x, torch.Tensor) else torch.from_dlpack(x))


def _dlpack(self: Tensor, **options: Any) -> Any:
    """The memory as a DLPack capsule.

    Shape: any; the capsule has it.
    Dtype: the tensor's.
    Raises:
        BufferError: the tensor requires grad.
    """
    if self.requires_grad:
        raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
    return share(self).__dlpack__(**options)


def _dlpack_device(self: Tensor) -> tuple[int, int]:
    """(1, 0) on the CPU, (2, index) on a CUDA device.

    Shape: any.
    Dtype: any.
    Raises: nothing.
    """
    return (2, self.device.index or 0) if self.is_cuda else (1, 0)


def _cuda_array_interface(self: Tensor) -> dict[str, Any]:
    """The memory as other CUDA libraries take it.

    Shape: any; the interface has it.
    Dtype: the tensor's.
    Raises:
        AttributeError: a CPU tensor.
        RuntimeError: it requires grad.
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
    return share(self).__cuda_array_interface__


def install() -> None:
    """Put the protocols on Tensor."""
    Tensor.__dlpack__ = _dlpack  # type: ignore[attr-defined]
    Tensor.__dlpack_device__ = _dlpack_device  # type: ignore[attr-defined]
    Tensor.__cuda_array_interface__ = property(_cuda_array_interface)  # type: ignore[attr-defined]
