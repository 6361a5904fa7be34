"""The Tensor: a layout over a storage, and its place in the autograd graph. Its operations are in methods.py."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from tgrad import modes, printing
from tgrad.device import compute, device
from tgrad.dtypes import bfloat16, dtype
from tgrad.eager import install
from tgrad.layout import Layout, Size
from tgrad.storage import Allocation, allocate, ledger

if TYPE_CHECKING:
    from tgrad.graph import Node


class Version:
    """How often a storage was written in place; one object shared by a tensor, its views and its `detach()`.

    Attributes:
        written: (value after it, op, Origin) of the last write made while somebody listens; unset before.
    """

    __slots__ = ("value", "written")

    value: int
    written: tuple[int, str, Any]

    @staticmethod
    def zero() -> Version:
        """A new counter."""
        version = Version()
        version.value = 0
        return version


# How a view was made, which decides what a write to it or to its base may do.
DEFAULT, NO_GRAD, INFERENCE, MULTI_OUTPUT, IN_FUNCTION = range(5)


class Alias:
    """What a view knows of its base.

    Attributes:
        base: the tensor that is no view itself.
        creation: how the view was made.
        seen: the version at which its history was made.
        output: (op, index) of a view that is one of several results.
    """

    __slots__ = ("base", "creation", "seen", "output")

    def __init__(self, base: Tensor, creation: int, seen: int) -> None:
        self.base, self.creation, self.seen = base, creation, seen
        self.output = ("", 0)


class Tensor:
    """A multi-dimensional array. Make one with `tgrad.tensor`, `tgrad.zeros`, ...

    Attributes:
        layout, storage, ptr: dtype, shape and strides; the memory; the address of the first element.
        version: the write counter; None for an inference tensor.
        requires_grad: whether gradients flow to it.
        node: what made it, if recorded (`grad_fn`).
        alias: what it is a view of, and how.
    """

    __slots__ = (
        "layout", "storage", "ptr", "version", "_requires_grad", "node", "_grad", "alias", "hooks", "__weakref__",
    )  # fmt: skip

    layout: Layout
    storage: Allocation
    ptr: int
    version: Version | None
    _requires_grad: bool
    node: Node | None
    _grad: Tensor | None
    alias: Alias | None
    hooks: Any  # hooks.LeafHooks of a leaf, or None

    if TYPE_CHECKING:  # methods.py installs the operations

        def __getattr__(self, name: str) -> Any: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...

    # --- what it is ------------------------------------------------------------------------------
    @property
    def shape(self) -> Size:
        """The sizes of its dimensions."""
        return self.layout.shape

    @property
    def dtype(self) -> dtype:
        """The type of its elements."""
        return self.layout.dtype

    @property
    def device(self) -> device:
        """Where its memory is."""
        return self.layout.device

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.layout.shape)

    @property
    def is_cuda(self) -> bool:
        """Whether its memory is on a CUDA device."""
        return self.layout.device.type == "cuda"

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.layout.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Logical bytes: elements times their size."""
        return self.layout.nbytes

    def size(self, dim: int | None = None) -> Any:
        """The shape, or the size of one dimension; IndexError out of range."""
        return self.layout.shape if dim is None else self.layout.shape[dim]

    def stride(self, dim: int | None = None) -> Any:
        """Strides in elements, or that of one dimension; IndexError out of range."""
        return self.layout.strides if dim is None else self.layout.strides[dim]

    def dim(self) -> int:
        """The number of dimensions."""
        return len(self.layout.shape)

    def numel(self) -> int:
        """The number of elements."""
        return self.layout.numel

    nelement = numel

    def element_size(self) -> int:
        """Bytes of one element."""
        return self.layout.dtype.itemsize

    def storage_offset(self) -> int:
        """Elements between the storage's first byte and the tensor's first element."""
        return (self.ptr - self.storage.ptr) // self.layout.dtype.itemsize

    def data_ptr(self) -> int:
        """Address of the first element."""
        return self.ptr

    def is_contiguous(self) -> bool:
        """Whether its elements lie in row-major order, without gaps."""
        return self.layout.contiguous

    def is_floating_point(self) -> bool:
        """Whether its dtype is floating."""
        return self.layout.dtype.is_floating_point

    def __len__(self) -> int:
        """The size of the first dimension; TypeError of a 0-dim tensor."""
        if not self.layout.shape:
            raise TypeError("len() of a 0-d tensor")
        return self.layout.shape[0]

    __hash__ = object.__hash__

    # --- autograd --------------------------------------------------------------------------------
    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Set whether gradients flow to this leaf; returns it.

        Shape: any; kept.
        Dtype: floating; kept.
        Raises:
            RuntimeError: the dtype is not floating; a non-leaf is switched off; an inference tensor outside inference
                mode.
        """
        if requires_grad and not self.layout.dtype.is_floating_point:
            raise RuntimeError("only Tensors of floating point dtype can require gradients")
        if not requires_grad and self.node is not None:
            raise RuntimeError(
                "you can only change requires_grad flags of leaf variables. If you want to use a computed variable "
                "in a subgraph that doesn't require differentiation use var_no_grad = var.detach()."
            )
        if requires_grad and self.version is None and not modes.current().inference:
            raise RuntimeError("Setting requires_grad=True on inference tensor outside InferenceMode is not allowed.")
        self._requires_grad = bool(requires_grad)
        return self

    @property
    def _version(self) -> int:
        if self.version is None:
            raise RuntimeError("Inference tensors do not track version counter.")
        return self.version.value

    @property
    def _base(self) -> Tensor | None:
        return None if self.alias is None else self.alias.base

    def is_inference(self) -> bool:
        """Whether it was made in inference mode."""
        return self.version is None

    @property
    def grad(self) -> Tensor | None:
        """The accumulated gradient of a leaf (or of a tensor that retains it).

        Shape: the tensor's.
        Dtype: the tensor's.
        Raises:
            RuntimeError: another shape or dtype is assigned, or the tensor itself.
            TypeError: what is assigned is neither a Tensor nor None.
        """
        if self._grad is None and self.node is not None and not self.retains_grad:
            warnings.warn(
                "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed. Its .grad attribute "
                "won't be populated during autograd.backward(). If you indeed want the .grad field to be populated "
                "for a non-leaf Tensor, use .retain_grad() on the non-leaf Tensor.",
                UserWarning,
                stacklevel=2,
            )
        return self._grad

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if value is not None:
            if not isinstance(value, Tensor):
                raise TypeError(
                    f"assigned grad expected to be a Tensor or None but got grad of type {type(value).__name__}"
                )
            if value is self:
                raise RuntimeError("can't assign Variable as its own grad")
            if value.layout.dtype is not self.layout.dtype:
                raise RuntimeError(
                    f"attempting to assign a gradient with dtype '{value.dtype.legacy.lower()}' to a tensor with "
                    f"grad_dtype '{self.dtype.legacy}'. Please ensure that the gradient and the tensor have the same "
                    "dtype"
                )
            if value.layout.shape != self.layout.shape:
                raise RuntimeError(
                    f"attempting to assign a gradient of size '{list(value.shape)}' to a tensor of size "
                    f"'{list(self.shape)}'. Please ensure that the gradient and the tensor are the same size"
                )
        self._grad = value

    @grad.deleter
    def grad(self) -> None:
        self._grad = None

    @property
    def retains_grad(self) -> bool:
        """Whether it is no leaf and keeps its gradient: see `tgrad.Tensor.retain_grad`."""
        return self.node is not None and self.node.retains is not None

    # --- values, on the host -----------------------------------------------------------------------
    def _array(self) -> np.ndarray:
        """The values as a strided array; shares memory on the CPU. bfloat16 as its bits."""
        kind = self.layout.dtype.numpy
        if self.layout.numel == 0:
            return np.empty(self.layout.shape, kind)
        data = self.storage.host_bytes(self.ptr - self.storage.ptr, self.layout.extent * kind.itemsize)
        byte_strides = tuple(s * kind.itemsize for s in self.layout.strides)
        return np.ndarray(self.layout.shape, kind, data, 0, byte_strides)

    def _values(self) -> np.ndarray:
        """The values in a dtype that numpy computes with: bfloat16 widened to float32."""
        array = self._array()
        if self.layout.dtype is bfloat16:
            return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return array

    def numpy(self) -> np.ndarray:
        """The values as a numpy array that shares the tensor's memory.

        Raises:
            RuntimeError: the tensor requires grad, while grad mode is on.
            TypeError: it is on a CUDA device, or bfloat16, which numpy lacks.
        """
        if self._requires_grad and modes.current().grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        if self.layout.device.type != "cpu":
            raise TypeError(
                f"can't convert {self.layout.device} device type tensor to numpy. Use Tensor.cpu() to copy the "
                "tensor to host memory first."
            )
        if self.layout.dtype is bfloat16:
            raise TypeError("Got unsupported ScalarType BFloat16: numpy has no bfloat16, convert with .float() first")
        return self._array()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """What numpy calls. See `tgrad.Tensor.numpy`."""
        array = self.numpy()
        return array.astype(dtype) if dtype is not None else array

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        return self._values().tolist()

    def item(self) -> bool | int | float:
        """The one value.

        Raises:
            RuntimeError: there is not exactly one.
        """
        if self.layout.numel != 1:
            raise RuntimeError(f"a Tensor with {self.layout.numel} elements cannot be converted to Scalar")
        return self._values().reshape(-1)[0].item()

    def __float__(self) -> float:
        """The one value as a float. See `tgrad.Tensor.item`."""
        return float(self.item())

    def __int__(self) -> int:
        """The one value as an int. See `tgrad.Tensor.item`."""
        return int(self.item())

    def __index__(self) -> int:
        """The one value as an index; TypeError unless it is an integer or bool."""
        if self.layout.dtype.is_floating_point or self.layout.numel != 1:
            raise TypeError("only integer tensors of a single element can be converted to an index")
        return int(self.item())

    def __bool__(self) -> bool:
        """Whether the one value is not zero; RuntimeError unless there is exactly one."""
        if self.layout.numel == 0:
            raise RuntimeError("Boolean value of Tensor with no values is ambiguous")
        if self.layout.numel > 1:
            raise RuntimeError("Boolean value of Tensor with more than one value is ambiguous")
        return bool(self.item())

    def __format__(self, spec: str) -> str:
        if not self.layout.shape and spec:
            return format(self.item(), spec)
        return format(repr(self), spec) if spec else repr(self)

    def __iter__(self) -> Iterator[Tensor]:
        """The parts along the first dimension; TypeError of a 0-dim tensor. See `tgrad.unbind`."""
        if not self.layout.shape:
            raise TypeError("iteration over a 0-d tensor")
        return iter(self.unbind(0))

    def __repr__(self) -> str:
        return printing.format_tensor(
            self._values(),
            dtype=self.layout.dtype.name,
            shape=tuple(self.layout.shape),
            requires_grad=self._requires_grad,
            grad_fn=self._history_name(),
            device=None if self.layout.device is compute else str(self.layout.device),
        )

    def _history_name(self) -> str | None:
        try:
            node = self.grad_fn
        except RuntimeError:  # a view whose base was written since: see aliasing.refresh
            return "Invalid"
        return None if node is None else node.name()

    def __deepcopy__(self, memo: dict) -> Tensor:
        if self.node is not None:
            raise RuntimeError(
                "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol at the "
                "moment."
            )
        copied = self.detach().to(self.layout.device, copy=True)  # a CPU tensor too, on a CUDA machine
        copied._requires_grad = self._requires_grad
        memo[id(self)] = copied
        if self._grad is not None:
            copied._grad = self._grad.__deepcopy__(memo)
        return copied


def make(layout: Layout, storage: Allocation, ptr: int, version: Version | None) -> Tensor:
    """A plain tensor (no gradient, no history) over memory that exists."""
    t = Tensor()
    t.layout = layout
    t.storage = storage
    t.ptr = ptr
    t.version = version
    t._requires_grad = False
    t.node = t._grad = t.alias = t.hooks = None
    return t


def empty(layout: Layout, inference: bool) -> Tensor:
    """An uninitialised tensor with a storage of its own."""
    free = layout.free
    if free is None or ledger.watched:
        storage = allocate(layout.allocation, layout.device)
        ptr = storage.ptr
    else:  # storage.allocate, without the calls
        storage = Allocation()
        try:
            block = free.pop()
        except IndexError:
            block = free.grow()
        storage.ptr = ptr = block[0]
        storage.block = block
        storage.free = free
        storage.device = free.device
        storage._buffer = None
        storage.nbytes = nbytes = layout.allocation
        ledger.allocations += 1
        live = ledger.live_bytes = ledger.live_bytes + nbytes
        if live > ledger.peak_bytes:
            ledger.peak_bytes = live
    t = Tensor()
    t.layout = layout
    t.storage = storage
    t.ptr = ptr
    if inference:
        t.version = None
    else:
        t.version = version = Version()  # Version.zero(), without the call
        version.value = 0
    t._requires_grad = False
    t.node = t._grad = t.alias = t.hooks = None
    return t


empty = install(Tensor, Version, empty)
