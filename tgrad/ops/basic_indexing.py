"""Basic indexing: views by integers, slices, None and Ellipsis."""

from __future__ import annotations

from typing import Any

from tgrad.ops.views import alias_op, select, slice_op, unsqueeze_op
from tgrad.tensor import Tensor


def index(x: Tensor, key: Any) -> Tensor:
    """Basic indexing: integers, slices with a positive step, None and Ellipsis.

    Raises:
        IndexError: an index is out of range, or there are too many, or of a kind that only advanced indexing takes.
    """
    parts = key if isinstance(key, tuple) else (key,)
    used = sum(1 for k in parts if k is not None and k is not Ellipsis)
    if used > x.ndim:
        raise IndexError(f"too many indices for tensor of dimension {x.ndim}")
    if sum(1 for k in parts if k is Ellipsis) > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    out, dim = x, 0
    for k in parts:
        if k is None:
            out = unsqueeze_op(out, dim=dim)
            dim += 1
        elif k is Ellipsis:
            dim += x.ndim - used
        elif isinstance(k, slice):
            out = _slice(out, dim, k)
            dim += 1
        elif not isinstance(k, bool) and hasattr(k, "__index__") and not getattr(k, "ndim", 0):
            out = select(out, dim, k.__index__())
        else:
            raise IndexError(
                f"tensors take integers, slices, None and Ellipsis as indices, got {type(k).__name__}; indexing by "
                "tensors, lists and masks is not supported yet"
            )
    return alias_op(x) if out is x else out


def _slice(x: Tensor, dim: int, key: slice) -> Tensor:
    if key.step is not None and key.step <= 0:
        raise ValueError("step must be greater than zero")
    start, stop, step = key.indices(x.shape[dim])
    if (start, step) == (0, 1) and stop == x.shape[dim]:
        return x
    return slice_op(x, dim=dim, start=start, stop=max(start, stop), step=step)
