"""Bins: where values belong in sorted bounds, and how many fall in each. Nothing here has a gradient."""

from __future__ import annotations

from typing import Any

from tgrad import dtypes, modes
from tgrad.device import compute
from tgrad.kernels.launch import Launch
from tgrad.kernels.search import prepare_search
from tgrad.layout import Layout, layout
from tgrad.op import Kernel
from tgrad.ops import creation, pointwise as p
from tgrad.ops.bounds import outside
from tgrad.ops.places import number, spread_op
from tgrad.ops.views import contiguous
from tgrad.tensor import Tensor


def _build_search(
    rows: Tensor, values: Tensor, order: Tensor | None, right: bool, small: bool
) -> tuple[list[Layout], Launch]:
    out = layout(dtypes.int32 if small else dtypes.int64, tuple(values.shape), None, compute)
    if not out.numel:
        return [out], lambda *addresses: None
    n = rows.shape[-1]
    single = rows.ndim == 1
    per_row = values.numel() if single else max(1, values.shape[-1])
    launch = prepare_search(
        rows.dtype.triton, out.dtype.triton, values.numel(), n, per_row, 0 if single else n, right=right,
        ordered=order is not None,
    )  # fmt: skip
    return [out], launch if order is not None else lambda to, bounds, given: launch(to, bounds, given, bounds)


search_op: Kernel = Kernel("searchsorted", ("rows", "values", "order"), _build_search, {}, settings=("right", "small"))


def searchsorted(
    sorted_sequence: Tensor, input: Any, *, out_int32: bool = False, right: bool = False, side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Where each value would be put to keep rows in order: before those equal to it or, with `right`, after them.

    Args:
        sorted_sequence: rows in order; not looked at whether they are.
        input: values, or a number.
        side: "left" or "right": `right` by another name.
        sorter: indices that put sorted_sequence in order, as `argsort` gives them.

    Shape: sorted_sequence: (N,), or (..., N) with (..., M) of input, whose shape the result has.
    Dtype: any but bool, promoted together; sorter: int64; the result is int64, or int32 with `out_int32`.
    Raises:
        RuntimeError: shapes or arguments do not fit; the dtype is bool; an index of sorter is out of range (CPU).
    """
    with modes.no_grad():
        rows = sorted_sequence.detach()
        values = input.detach() if isinstance(input, Tensor) else creation.tensor(input)
        if side not in (None, "left", "right"):
            raise RuntimeError(f"torch.searchsorted(): side can only be 'left' or 'right' but got {side}")
        if side == "left" and right:
            raise RuntimeError(
                "torch.searchsorted(): side and right can't be set to opposites, got side of left while right was True"
            )
        if dtypes.bool_ in (rows.dtype, values.dtype):
            raise RuntimeError("searchsorted: not implemented for bool tensors: convert them first, as in x.int()")
        _check_shapes(rows, values, sorter)
        number_given = not isinstance(input, Tensor) and values.dtype.category <= rows.dtype.category
        common = rows.dtype if number_given else dtypes.promote(rows.dtype, values.dtype)
        rows, values = (t if t.dtype is common else p.cast(common)(t) for t in (rows, values))
        if sorter is not None:
            bad = outside("searchsorted", sorter, rows.shape[-1], negative=False)
            if bad is not None:
                raise RuntimeError("torch.searchsorted(): sorter index out of range")
            sorter = contiguous(sorter)
        return search_op(
            contiguous(rows), contiguous(values), sorter, right=bool(right or side == "right"), small=bool(out_int32)
        )


def _check_shapes(rows: Tensor, values: Tensor, sorter: Tensor | None) -> None:
    if rows.ndim == 0 or rows.ndim != 1 and values.ndim == 0:
        raise RuntimeError(
            "torch.searchsorted(): input value can be a scalar only when boundaries tensor dimension is 1, but we got "
            f"boundaries tensor dim({rows.ndim}) and input value's dim({values.ndim}) numel({values.numel()})"
        )
    if rows.ndim != 1 and (values.ndim != rows.ndim or tuple(values.shape[:-1]) != tuple(rows.shape[:-1])):
        raise RuntimeError(
            "torch.searchsorted(): boundaries tensor should be 1 dimension or the first N-1 dimensions of boundaries "
            f"tensor and input value tensor must match, but we got boundaries tensor {list(rows.shape)} and input "
            f"value tensor {list(values.shape)}"
        )
    if sorter is None:
        return
    if tuple(sorter.shape) != tuple(rows.shape):
        raise RuntimeError(
            "torch.searchsorted(): boundary and sorter must have the same size, but got boundary tensor "
            f"{list(rows.shape)}and got sorter tensor {list(sorter.shape)}"
        )
    if sorter.dtype is not dtypes.int64:
        raise RuntimeError(
            f"torch.searchsorted(): sorter must be a tensor of long dtype but got dtype {sorter.dtype!r}"
        )


def bucketize(input: Any, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Tensor:
    """Between which boundaries each value lies: the number of those less than it or, with `right`, not greater.

    Shape: boundaries: (N,); the result has input's, () for a number.
    Dtype: any but bool, promoted together; the result is int64, or int32 with `out_int32`.
    Raises:
        RuntimeError: boundaries are no vector; the dtype is bool.
    """
    if boundaries.ndim != 1:
        raise RuntimeError(f"boundaries tensor must be 1 dimension, but got dim({boundaries.ndim})")
    return searchsorted(boundaries, input, out_int32=out_int32, right=right)


def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often each number from 0 to the greatest occurs, or the sum of the weights where it does.

    On a GPU it waits for the greatest number, and floats are added in any order.

    Shape: input: (N,); weights: (N,); the result: (max(input) + 1,), at least (minlength,).
    Dtype: input: int32, int64 or uint8; the result is int64; with weights float32 for float32, else float64.
    Raises:
        RuntimeError: input is no vector of non-negative integers; weights do not fit; minlength is negative.
    """
    if input.ndim != 1 or input.dtype not in (dtypes.int64, dtypes.int32, dtypes.uint8):
        raise RuntimeError(
            f"bincount only supports 1-d non-negative integral inputs, got {input.ndim} dimensions of {input.dtype!r}"
        )
    if minlength < 0:
        raise RuntimeError("minlength should be >= 0")
    if weights is not None and tuple(weights.shape) != tuple(input.shape):
        raise RuntimeError("weights should be 1-d and have the same length as input")
    kind = dtypes.int64 if weights is None else dtypes.float32 if weights.dtype is dtypes.float32 else dtypes.float64
    if not input.numel():
        return creation.zeros(minlength, dtype=dtypes.int64)
    least, greatest = int(input._array().min()), int(input._array().max())
    if least < 0:
        raise RuntimeError("bincount only supports 1-d non-negative integral inputs.")
    with modes.no_grad():
        index = input if input.dtype is not dtypes.uint8 else p.cast(dtypes.int64)(input)
        if weights is None:
            each = number(1, creation.empty((), dtype=kind), tuple(input.shape))
        else:
            each = weights.detach() if weights.dtype is kind else p.cast(kind)(weights.detach())
        return spread_op(each, index, dims=(0,), at=0, shape=(max(greatest + 1, minlength),))


BOTH = (bincount,)
FREE: dict[str, Any] = {"searchsorted": searchsorted, "bucketize": bucketize}
