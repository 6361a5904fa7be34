"""Conversions: to another dtype, to another device, and into existing memory."""

from __future__ import annotations

from typing import Any

from tgrad import graph, modes
from tgrad.device import compute, device, resolve
from tgrad.dtypes import dtype
from tgrad.inplace import write
from tgrad.layout import layout
from tgrad.op import Op
from tgrad.ops import pointwise as p
from tgrad.ops.creation import encode
from tgrad.ops.views import contiguous
from tgrad.rules import FormulaRule
from tgrad.tensor import Tensor, empty

_TO_DEVICE = Op("to_device", ("x",), {"x": lambda g: g}, grad_name="ToCopy")


def convert(t: Tensor, kind: dtype | None = None, where: Any = None, copy: bool = False) -> Tensor:
    """t as dtype `kind` on device `where`; t itself if nothing changes and no `copy` is asked for.

    Raises:
        RuntimeError: there is no such device.
    """
    target = t.device if where is None else resolve(where)
    kind = kind or t.dtype
    if target is t.device and kind is t.dtype:
        if not copy:
            return t
        return p.clone(t) if target is compute else _move(t, target)
    if kind is not t.dtype:
        t = p.cast(kind)(t) if t.device is compute else _host_cast(t, kind)
    return t if target is t.device else _move(t, target)


def _move(t: Tensor, target: device) -> Tensor:
    """The bytes of t on another device; its gradient goes back the same way."""
    if t.device is compute:
        t = contiguous(t)
    out = empty(layout(t.dtype, tuple(t.shape), t.layout.strides, target), modes.current().inference)
    if t.layout.extent:
        out.storage.copy_range(t.storage, t.ptr - t.storage.ptr, out.storage.nbytes)
    if t._requires_grad and modes.current().record:
        source = t.device
        rule = FormulaRule(_TO_DEVICE, (0,), (), ())
        rule.names = ()
        rule.calls = [(t.layout, lambda g: _move(g, source), None, (), {})]
        graph.record(out, rule, (t,), (out,))
    return out


def _host_cast(t: Tensor, kind: dtype) -> Tensor:
    """A CPU tensor on a CUDA machine: converted by numpy, since kernels run on the GPU alone."""
    if t._requires_grad and modes.current().record:
        raise RuntimeError(f"a CPU tensor that requires grad converts on {compute} only: move it there first")
    out = empty(layout(kind, tuple(t.shape), None, t.device), modes.current().inference)
    out.storage.write(encode(t._values(), kind))
    return out


def copy_into(target: Tensor, source: Any) -> Tensor:
    """Write `source`, a tensor or number, into `target`, broadcast and converted; returns it."""
    if isinstance(source, Tensor) and source.device is not target.device:
        source = convert(source, where=target.device)
    return write(p.copy, target, (source,))
