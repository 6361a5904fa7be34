"""Sorting: sort, argsort, msort, topk. Gradients go back to where the values came from."""

from __future__ import annotations

from typing import Any, NamedTuple

from tgrad import dtypes, modes
from tgrad.aliasing import _in_layout_op
from tgrad.device import compute
from tgrad.dispatch import dispatch
from tgrad.kernels.launch import Launch
from tgrad.kernels.sort import prepare_sort
from tgrad.layout import Layout, layout, wrap_dim
from tgrad.op import Kernel, result_layout
from tgrad.ops import creation, pointwise as p
from tgrad.ops.joining import cat
from tgrad.ops.places import get_op, spread_op
from tgrad.ops.views import contiguous, narrow, owned, reshape, transpose
from tgrad.storage import workspace
from tgrad.tensor import Tensor


class Sorted(NamedTuple):
    """Values, and their indices along the sorted dimension."""

    values: Tensor
    indices: Tensor


def _build_sort(x: Tensor, descending: bool) -> tuple[list[Layout], Launch]:
    if not x.layout.contiguous or not x.ndim:
        raise RuntimeError("sort: expected contiguous rows")
    shape = tuple(x.shape)
    outs = [layout(x.dtype, shape, None, compute), layout(dtypes.int64, shape, None, compute)]
    if not x.numel():
        return outs, lambda *addresses: None
    first, *passes = prepare_sort(x.dtype.triton, x.numel() // shape[-1], shape[-1], descending)

    def launch(values: int, places: int, source: int) -> None:
        ends = [(values, places)]
        if passes:  # written in turn, so that the last pass writes the results
            scratch = [workspace(o.nbytes) for o in outs]
            ends.append((scratch[0].ptr, scratch[1].ptr))
        at = len(passes) % 2
        first(*ends[at], source)
        for merge in passes:
            merge(*ends[1 - at], *ends[at])
            at = 1 - at

    return outs, launch


sort_op: Kernel = Kernel(
    "sort", ("x",), _build_sort,
    {"x": lambda g, indices, *, x_shape: spread_op(g, indices, dims=(len(x_shape) - 1,), at=None, shape=x_shape)},
    settings=("descending",), results=("out", "indices"),
)  # fmt: skip


def sort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Sorted:
    """Values in order along `dim`, and the indices they had there; equal ones keep their order. nan is the greatest.

    Shape: two tensors of the input's.
    Dtype: values: the input's; indices: int64.
    Raises:
        IndexError: `dim` is out of range.
    """
    d = wrap_dim(dim, input.ndim)
    if not input.ndim:
        return Sorted(p.clone(input), creation.zeros((), dtype=dtypes.int64))
    rows = contiguous(transpose(input, d, -1))
    values, indices = dispatch(sort_op, (rows,), (bool(descending),))
    return Sorted(_laid_out(values, d, input), _laid_out(indices, d, input))


def _laid_out(rows: Tensor, d: int, like: Tensor) -> Tensor:
    """Rows back in dimension d, with PyTorch's strides."""
    strides = result_layout([like.layout], rows.dtype).strides
    out = rows if d == like.ndim - 1 else owned(transpose(rows, d, -1))
    return out if out.layout.strides == strides else _in_layout_op(out, strides=strides)


def argsort(input: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """The indices that sort input along `dim`.

    Shape: any; the result has the input's.
    Dtype: any; the result is int64.
    Raises:
        IndexError: `dim` is out of range.
    """
    return sort(input, dim, descending, stable).indices


def msort(input: Tensor) -> Tensor:
    """Values in order along the first dimension.

    Shape: any; the result has the input's.
    Dtype: the input's.
    Raises: nothing.
    """
    return sort(input, 0).values


def topk(input: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Sorted:
    """The k greatest (or least) values along `dim` and their indices, in order whether `sorted` or not.

    Shape: two tensors of the input's, with size `k` at `dim`.
    Dtype: values: the input's, any but bool; indices: int64.
    Raises:
        RuntimeError: `k` is negative or greater than the dimension; the dtype is bool.
        IndexError: `dim` is out of range.
    """
    d = wrap_dim(dim, input.ndim)
    if not 0 <= k <= (input.shape[d] if input.ndim else 1):
        raise RuntimeError("selected index k out of range")
    if input.dtype is dtypes.bool_:
        raise RuntimeError("topk: not implemented for bool tensors: convert them first, as in x.int()")
    return _pruned(input, k, d, largest) if input.ndim else sort(input, d, largest)


def _run(k: int) -> int:
    """The length of the pieces that `_pruned` sorts."""
    return max(64, 4 << max(0, k - 1).bit_length())


def _pruned(input: Tensor, k: int, d: int, largest: bool) -> Sorted:
    """`topk` of rows: of each piece of a long row only its own first k can be among the first k of all.

    Keeps the k indices for backward.
    """
    rows = contiguous(transpose(input, d, -1))
    run = _run(k)
    with modes.no_grad():
        left, places = rows.detach(), None
        while left.shape[-1] >= 4 * run:
            kept = _firsts(left, k, run, largest)
            places = kept if places is None else get_op(places, kept, dims=(left.ndim - 1,), at=None)
            left = get_op(left, kept, dims=(left.ndim - 1,), at=None)
        last = contiguous(narrow(sort(left, -1, largest).indices, -1, 0, k))
        indices = last if places is None else get_op(places, last, dims=(left.ndim - 1,), at=None)
    values = get_op(rows, indices, dims=(rows.ndim - 1,), at=None)
    if d == input.ndim - 1:
        return Sorted(values, indices)
    return Sorted(contiguous(transpose(values, d, -1)), contiguous(transpose(indices, d, -1)))


def _firsts(x: Tensor, k: int, run: int, largest: bool) -> Tensor:
    """Where the first k of each piece of `run` elements are, and of the rest that is shorter; pieces in order."""
    lead, n = tuple(x.shape[:-1]), x.shape[-1]
    whole = n // run
    pieces = reshape(narrow(x, -1, 0, whole * run), (*lead, whole, run))
    found = narrow(sort(pieces, -1, largest).indices, -1, 0, k)
    found = reshape(p.add(found, reshape(creation.arange(0, whole * run, run), (whole, 1))), (*lead, whole * k))
    if n == whole * run:
        return found
    rest = sort(narrow(x, -1, whole * run, n - whole * run), -1, largest).indices
    rest = p.add(narrow(rest, -1, 0, min(k, rest.shape[-1])), whole * run)
    return cat([found, rest], -1)


BOTH: tuple[Any, ...] = (sort, argsort, msort, topk)
