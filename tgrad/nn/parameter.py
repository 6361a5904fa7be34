"""Parameters and buffers: the tensors that a Module registers when they are assigned to it."""

from __future__ import annotations

from typing import Any

from tgrad import dtypes, modes
from tgrad.ops import creation
from tgrad.tensor import Tensor, make


def typename(x: object) -> str:
    """What PyTorch's messages call `x`: "torch.FloatTensor" for a tensor, else its class."""
    if isinstance(x, Tensor):
        return f"torch.{'cuda.' if x.is_cuda else ''}{x.dtype.legacy}Tensor"
    kind = x if isinstance(x, type) else type(x)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _over(cls: type, data: Tensor | None, name: str) -> Any:
    """A tensor of class `cls`, without history, over the memory and write counter of `data`."""
    if data is None:
        data = creation.empty(0, dtype=dtypes.get_default_dtype())
    if not isinstance(data, Tensor):
        raise TypeError(f"{name}: expected data to be a Tensor, got {type(data).__name__}")
    t: Any = object.__new__(cls)
    plain = make(data.layout, data.storage, data.ptr, data.version)
    for slot in Tensor.__slots__:
        if hasattr(plain, slot) and slot != "__weakref__":
            setattr(t, slot, getattr(plain, slot))
    return t


class Parameter(Tensor):
    """A leaf tensor that a Module lists among its parameters. Operations on it give plain Tensors.

    Args:
        data: its values; memory and version counter are shared, history is not. None: no elements.

    Shape: any; that of `data`.
    Dtype: floating, or any with requires_grad=False; that of `data`.
    Raises:
        RuntimeError: gradients of an integer tensor, or of an inference tensor outside inference mode.
        TypeError: `data` is no Tensor.
    """

    def __new__(cls, data: Tensor | None = None, requires_grad: bool = True) -> Parameter:
        t = _over(cls, data, "Parameter")
        if requires_grad:
            if not t.layout.dtype.is_floating_point:
                raise RuntimeError("Only Tensors of floating point and complex dtype can require gradients")
            t.requires_grad_()
        return t

    def __deepcopy__(self, memo: dict) -> Parameter:
        copied = type(self)(self.detach().clone(), self._requires_grad)
        memo[id(self)] = copied
        return copied

    def __repr__(self) -> str:
        return "Parameter containing:\n" + super().__repr__()


class Buffer(Tensor):
    """A tensor that a Module registers as a buffer.

    Args:
        persistent: whether it is part of the module's state_dict.

    Shape: any; that of `data`.
    Dtype: any; that of `data`.
    Raises:
        TypeError: `data` is no Tensor.
    """

    persistent: bool

    def __new__(cls, data: Tensor | None = None, *, persistent: bool = True) -> Buffer:
        t = _over(cls, data, "Buffer")
        t.persistent = persistent
        t._requires_grad = data is not None and data._requires_grad
        return t

    def __deepcopy__(self, memo: dict) -> Buffer:
        with modes.no_grad():
            copied = type(self)(self.detach().clone(), persistent=self.persistent)
        copied._requires_grad = self._requires_grad
        memo[id(self)] = copied
        return copied


def clear_grad(p: Tensor, set_to_none: bool) -> None:
    """Drop p's gradient, or detach it and set it to zero in place."""
    g = p._grad
    if g is None or set_to_none:
        p._grad = None
        return
    if g.node is not None:
        g.detach_()
    else:
        g.requires_grad_(False)
    g.zero_()


__all__ = ["Buffer", "Parameter", "clear_grad", "typename"]
