"""Running extremes: cummax and cummin. Their values are read from the input, where their gradients go."""

from __future__ import annotations

from tgrad import dtypes, modes
from tgrad.layout import wrap_dim
from tgrad.op import Kernel
from tgrad.ops import creation, pointwise as p
from tgrad.ops.places import get_op
from tgrad.ops.scan import build_scan
from tgrad.ops.sorting import Sorted
from tgrad.ops.views import reshape
from tgrad.tensor import Tensor

cummax_op, cummin_op = (
    Kernel(f"cum{kind}", ("x",), build_scan(kind), {}, settings=("dim", "reverse", "out_dtype"))
    for kind in ("max", "min")
)


def _running(op: Kernel, input: Tensor, dim: int) -> Sorted:
    d = wrap_dim(dim, input.ndim)
    if not input.ndim:
        return Sorted(p.clone(input), creation.zeros((), dtype=dtypes.int64))
    with modes.no_grad():
        x = input.detach()
        best = op(x, dim=d, reverse=False, out_dtype=x.dtype)
        new = p.logical_or(p.eq(x, best), p.ne(x, x))  # where the extreme is met, or met again
        shape = tuple(n if k == d else 1 for k, n in enumerate(x.shape))
        places = p.where(new, reshape(creation.arange(x.shape[d]), shape), -1)
        index = cummax_op(places, dim=d, reverse=False, out_dtype=dtypes.int64)
    return Sorted(get_op(input, index, dims=(d,), at=None), index)


def cummax(input: Tensor, dim: int) -> Sorted:
    """The greatest elements so far along `dim`, and where they are, the last of equal ones. From a nan on, nan.

    Shape: two tensors of the input's.
    Dtype: values: the input's; indices: int64.
    Raises:
        IndexError: there is no such dimension.
    """
    return _running(cummax_op, input, dim)


def cummin(input: Tensor, dim: int) -> Sorted:
    """The least elements so far along `dim`, and where they are, the last of equal ones. From a nan on, nan.

    Shape: two tensors of the input's.
    Dtype: values: the input's; indices: int64.
    Raises:
        IndexError: there is no such dimension.
    """
    return _running(cummin_op, input, dim)


BOTH = (cummax, cummin)
