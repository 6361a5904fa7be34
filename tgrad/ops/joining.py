"""Tensors joined and cut: cat, stack and their kin, and the pieces of tensor_split."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from tgrad import dtypes, host_copies
from tgrad.device import compute
from tgrad.kernels.joining import MOST_ELEMENTS, MOST_PIECES, prepare_join, slots
from tgrad.kernels.launch import Launch
from tgrad.layout import Layout, broadcast_shapes, contiguous_strides, layout, numel, wrap_dim
from tgrad.op import Kernel, Op, pointwise_launch
from tgrad.ops import pointwise as p
from tgrad.ops.reduce import expand
from tgrad.ops.views import COPY, _as_outputs, narrow, reshape, slice_op, split_op, unsqueeze
from tgrad.rules import FormulaRule, Rule
from tgrad.tensor import Tensor


class Joining(Kernel):
    """An op of any number of tensors, each of which is a slice of the result."""

    def rule_of(self, args: Sequence[Any], settings: tuple, again: bool = False) -> Callable[[int], Rule | None]:
        (dim,) = settings
        layouts = [a.layout for a in args]
        ends = list(itertools.accumulate((a.shape[dim] for a in layouts), initial=0))

        def rule(mask: int) -> Rule | None:
            wanted = tuple(i for i in range(len(layouts)) if mask >> i & 1)
            made = FormulaRule(_described(len(layouts)), wanted, (), ())
            made.names = ()
            made.calls = [(layouts[i], _slice, None, (), {"dim": dim, "start": ends[i], "stop": ends[i + 1]})
                          for i in wanted]  # fmt: skip
            return made

        return rule


@functools.cache
def _described(n: int) -> Op:
    """What the graph says of a node with n inputs."""
    names = [f"tensor{i}" for i in range(n)]
    return Op("cat", names, {name: lambda g: g for name in names})


def _slice(g: Tensor, *, dim: int, start: int, stop: int) -> Tensor:
    return slice_op(g, dim=dim, start=start, stop=stop, step=1)


def _build_cat(*args: Any) -> tuple[list[Layout], Launch]:
    *tensors, dim = args
    kind = tensors[0].dtype
    shape = list(tensors[0].shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    out = layout(kind, tuple(shape), None, compute)
    stride = contiguous_strides(shape)[dim]
    starts = itertools.accumulate((t.shape[dim] for t in tensors), initial=0)
    pieces = [(i, start * stride, t.layout) for i, (start, t) in enumerate(zip(starts, tensors)) if t.numel()]
    if out.numel <= MOST_ELEMENTS and all(l.contiguous for _, _, l in pieces):
        return [out], _joined(out, numel(shape[:dim]), pieces)
    copies = []
    for i, at, l in pieces:
        skip = at * kind.itemsize
        part = layout(kind, tuple(l.shape), out.strides, compute, skip % 16 == 0)
        copies.append((pointwise_launch("cat", COPY.lower(((kind, 2),), [None]), [part], [l]), skip, i))

    def launch(to: int, *sources: int) -> None:
        for copy, skip, i in copies:
            copy(to + skip, sources[i])

    return [out], launch


def _joined(out: Layout, rows: int, pieces: list[tuple[int, int, Layout]]) -> Launch:
    """One kernel for every MOST_PIECES dense pieces: (which argument, its first column among `rows` rows, layout)."""
    launches = []
    for k in range(0, len(pieces), MOST_PIECES):
        some = pieces[k : k + MOST_PIECES]
        which = [i for i, _, _ in some]
        unused = [which[0]] * (slots(len(some)) - len(some))
        run = prepare_join(
            out.dtype.itemsize, rows, out.numel // rows, [l.numel // rows for _, _, l in some],
            [at for _, at, _ in some], aligned=all(l.aligned for _, _, l in some), name="cat",
        )  # fmt: skip
        launches.append((run, (*which, *unused)))

    def launch(to: int, *sources: int) -> None:
        for run, which in launches:
            run(to, *[sources[i] for i in which])

    return launch


cat_op = Joining("cat", ("tensors",), _build_cat, {"tensors": lambda g: g}, settings=("dim",))
cat_op.on_host = host_copies.cat


def cat(tensors: Sequence[Tensor], dim: int = 0, *, axis: int | None = None) -> Tensor:
    """The tensors one after the other along `dim` (or `axis`, its other name).

    Shape: the sizes at `dim` are added up, all others agree. Empty vectors, of shape (0,), go with any other shape.
    Dtype: the common dtype of all.
    Raises:
        RuntimeError: shapes do not fit, or a tensor is 0-dimensional.
        ValueError: none are given.
        TypeError: one is no Tensor.
        IndexError: `dim` is out of range.
    """
    tensors = list(tensors)
    if not tensors:
        raise ValueError("torch.cat(): expected a non-empty list of Tensors")
    for i, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            raise TypeError(f"expected Tensor as element {i} in argument 0, but got {type(t).__name__}")
        if not t.ndim:
            raise RuntimeError(f"zero-dimensional tensor (at position {i}) cannot be concatenated")
    kind = tensors[0].dtype
    for t in tensors:
        kind = dtypes.promote(kind, t.dtype)
    first = next((t for t in tensors if tuple(t.shape) != (0,)), tensors[0])
    d = wrap_dim(dim if axis is None else axis, first.ndim)
    none = (*first.shape[:d], 0, *first.shape[d + 1 :])
    kept = [reshape(t, none) if tuple(t.shape) == (0,) else t for t in tensors]
    for i, t in enumerate(kept):
        if t.ndim != first.ndim:
            raise RuntimeError(f"Tensors must have same number of dimensions: got {first.ndim} and {t.ndim}")
        if any(a != b for k, (a, b) in enumerate(zip(first.shape, t.shape, strict=True)) if k != d):
            k = next(k for k in range(t.ndim) if k != d and t.shape[k] != first.shape[k])
            raise RuntimeError(
                f"Sizes of tensors must match except in dimension {d}. Expected size {first.shape[k]} but got size "
                f"{t.shape[k]} for tensor number {i} in the list."
            )
    return cat_op(*(t if t.dtype is kind else p.cast(kind)(t) for t in kept), dim=d)


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The tensors along a new dimension.

    Shape: all alike; the result has one more dimension, at `dim`, as long as there are tensors.
    Dtype: the common dtype of all.
    Raises:
        RuntimeError: none are given, or their shapes differ.
        IndexError: `dim` is out of range.
    """
    tensors = list(tensors)
    if not tensors:
        raise RuntimeError("stack expects a non-empty TensorList")
    d = wrap_dim(dim, tensors[0].ndim + 1)
    for i, t in enumerate(tensors):
        if t.shape != tensors[0].shape:
            raise RuntimeError(
                f"stack expects each tensor to be equal size, but got {list(tensors[0].shape)} at entry 0 and "
                f"{list(t.shape)} at entry {i}"
            )
    return cat([unsqueeze(t, d) for t in tensors], d)


def atleast_1d(x: Tensor) -> Tensor:
    """x, or a vector of its one element."""
    return x if x.ndim else reshape(x, (1,))


def hstack(tensors: Sequence[Tensor]) -> Tensor:
    """Joined along the second dimension; vectors along their only one.

    Shape: all alike but for the second size (the first of vectors); 0-dim tensors count as (1,).
    Dtype: the common dtype of all.
    Raises:
        RuntimeError: shapes do not fit.
        ValueError: none are given.
    """
    tensors = [atleast_1d(t) for t in tensors]
    return cat(tensors, 0 if tensors and tensors[0].ndim == 1 else 1)


def vstack(tensors: Sequence[Tensor]) -> Tensor:
    """Joined along the first dimension; vectors are rows.

    Shape: all alike but for the first size; vectors (N,) count as (1, N).
    Dtype: the common dtype of all.
    Raises:
        RuntimeError: shapes do not fit.
        ValueError: none are given.
    """
    return cat([unsqueeze(atleast_1d(t), 0) if t.ndim < 2 else t for t in tensors], 0)


def tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of parts along a dimension: as many as said, of nearly equal size, or cut at the indices given.

    Shape: the input's, except at `dim`.
    Dtype: the input's.
    Raises:
        RuntimeError: the tensor is 0-dimensional, or fewer than one part.
        IndexError: `dim` is out of range.
    """
    if not input.ndim:
        raise RuntimeError("tensor_split expected at least a 1-dimensional tensor, but got a tensor with 0 dims")
    d = wrap_dim(dim, input.ndim)
    n = input.shape[d]
    if isinstance(indices_or_sections, Tensor):
        indices_or_sections = indices_or_sections.tolist()
    if isinstance(indices_or_sections, int):
        parts = indices_or_sections
        if parts < 1:
            raise RuntimeError(f"number of sections must be larger than 0, got {parts}")
        ends = list(itertools.accumulate((n // parts + (i < n % parts) for i in range(parts)), initial=0))
    else:
        ends = [0, *(min(max(k + n if k < 0 else k, 0), n) for k in indices_or_sections), n]
    pieces = [split_op(input, dim=d, start=a, stop=max(a, b), step=1) for a, b in itertools.pairwise(ends)]
    return _as_outputs("TensorSplit", pieces)


def broadcast_tensors(*tensors: Any) -> tuple[Tensor, ...]:
    """Views of the tensors expanded to their common shape.

    Shape: each result has the shape that all broadcast to.
    Dtype: each its own.
    Raises:
        RuntimeError: the shapes do not broadcast.
    """
    given = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors
    shape = broadcast_shapes(*(tuple(t.shape) for t in given))
    return tuple(expand(t, shape) for t in given)


def meshgrid(*tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
    """Views of vectors expanded over the grid they span; indexing "xy" swaps the first two dimensions.

    Shape: vectors of N, M, ... give tensors of (N, M, ...); with "xy" of (M, N, ...).
    Dtype: each its own.
    Raises:
        RuntimeError: a tensor of more than one dimension, or another indexing.
    """
    given = list(tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)) else tensors)
    if indexing not in ("ij", "xy"):
        raise RuntimeError(f'torch.meshgrid: indexing must be one of "xy" or "ij", but received: {indexing}')
    for t in given:
        if t.ndim > 1:
            raise RuntimeError(f"torch.meshgrid: Expected 0D or 1D tensor in the tensor list but got: {t.ndim}D")
    swap = indexing == "xy" and len(given) > 1
    if swap:
        given[0], given[1] = given[1], given[0]
    sizes = [t.numel() for t in given]
    grids = [
        expand(reshape(t, [n if k == i else 1 for k in range(len(given))]), sizes)
        for i, (t, n) in enumerate(zip(given, sizes, strict=True))
    ]
    if swap:
        grids[0], grids[1] = grids[1], grids[0]
    return tuple(grids)


def roll(input: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """Elements moved along dimensions, those pushed out coming in again; without dims as one vector.

    Shape: any; the result has the input's.
    Dtype: the input's.
    Raises:
        RuntimeError: another number of shifts than of dims.
        IndexError: a dimension is out of range.
    """
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    dims = [] if dims is None else [dims] if isinstance(dims, int) else list(dims)
    if not dims and len(shifts) == 1:
        return reshape(roll(reshape(input, (-1,)), shifts, 0), tuple(input.shape))
    if len(shifts) != len(dims) or not shifts:
        raise RuntimeError(f"shifts and dimensions must align. shifts: {len(shifts)}, dims:{len(dims)}")
    out = input
    for shift, dim in zip(shifts, dims, strict=True):
        d = wrap_dim(dim, input.ndim)
        n = input.shape[d] if input.ndim else 1
        shift = shift % n if n else 0
        if shift:
            out = cat([narrow(out, d, n - shift, shift), narrow(out, d, 0, n - shift)], d)
    return p.clone(out) if out is input else out


FREE: dict[str, Any] = {f.__name__: f for f in (cat, stack, hstack, vstack, broadcast_tensors, meshgrid)}
FREE |= {"concat": cat, "concatenate": cat}
BOTH = (tensor_split, roll)
