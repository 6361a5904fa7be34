"""Layout arithmetic in plain Python: shapes, strides, broadcasting, views.

A `Layout` is everything about a tensor that a launch plan may depend on. Layouts are interned, so that plans are found
by identity. Strides are in elements, and always PyTorch's.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from tgrad.device import device
from tgrad.dtypes import dtype
from tgrad.storage import FreeList, free_list


class Size(tuple):
    """A shape; reads as PyTorch's `torch.Size([2, 3])`."""

    __slots__ = ()

    def numel(self) -> int:
        """Number of elements."""
        return numel(self)

    def __repr__(self) -> str:
        return f"torch.Size([{', '.join(map(str, self))}])"

    def __getitem__(self, key):
        got = tuple.__getitem__(self, key)
        return Size(got) if isinstance(key, slice) else got

    def __add__(self, other: tuple) -> Size:
        return Size(tuple.__add__(self, tuple(other)))


class Layout:
    """dtype, shape, strides, device, and whether the first element's address is a multiple of 16 bytes."""

    __slots__ = (
        "dtype",
        "shape",
        "strides",
        "device",
        "aligned",
        "numel",
        "nbytes",
        "contiguous",
        "extent",
        "allocation",
        "free",
        "__weakref__",
    )

    dtype: dtype
    shape: Size
    strides: tuple[int, ...]
    device: device
    aligned: bool
    numel: int
    nbytes: int  # logical bytes: elements times their size, however they are strided
    contiguous: bool  # row-major without gaps
    extent: int  # elements from the first to the last one in memory, both included
    allocation: int  # bytes of a storage of its own
    free: FreeList | None  # where such a storage comes from

    def __repr__(self) -> str:
        return f"Layout({self.dtype.name}, {tuple(self.shape)}, strides {self.strides})"


_layouts: dict[tuple, Layout] = {}
_interning = threading.Lock()


def layout(
    dtype: dtype, shape: tuple[int, ...], strides: tuple[int, ...] | None, device: device, aligned: bool = True
) -> Layout:
    """The Layout with these parts; `strides` None: row-major."""
    key = (dtype, shape, strides, device, aligned)
    found = _layouts.get(key)
    if found is not None:
        return found
    row_major = contiguous_strides(shape)
    new = Layout()
    new.dtype, new.shape, new.device, new.aligned = dtype, Size(shape), device, aligned
    new.strides = row_major if strides is None else strides
    new.numel = numel(shape)
    new.nbytes = new.numel * dtype.itemsize
    new.contiguous = is_contiguous(shape, new.strides)
    new.extent = 0 if new.numel == 0 else 1 + sum((n - 1) * s for n, s in zip(shape, new.strides, strict=True))
    new.allocation = new.extent * dtype.itemsize
    new.free = free_list(new.allocation, device)
    with _interning:
        new = _layouts.setdefault((dtype, shape, new.strides, device, aligned), new)
        if strides is None:
            _layouts[key] = new
    return new


def numel(shape: Iterable[int]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    if 0 in shape:
        return True
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1:
            if stride != step:
                return False
            step *= size
    return True


def may_overlap_itself(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether two elements may share an address: sorted by stride, each stride must clear those below it."""
    if 0 in shape:
        return False
    reach = 0
    for stride, size in sorted((st, n) for n, st in zip(shape, strides, strict=True) if n > 1):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def is_gapless(x: Layout) -> bool:
    """Whether the elements fill the memory from the first to the last one, each place once."""
    return x.extent == x.numel and not may_overlap_itself(x.shape, x.strides)


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all `shapes` expand to.

    Raises:
        RuntimeError: two sizes differ and neither is 1.
    """
    if len(set(shapes)) == 1:
        return shapes[0]
    ndim = max(map(len, shapes))
    out = [1] * ndim
    for shape in shapes:
        for d in range(ndim - 1, ndim - len(shape) - 1, -1):  # from the last: PyTorch names that one
            size = shape[d - ndim]
            if size == 1 or size == out[d]:
                continue
            if out[d] != 1:
                raise RuntimeError(
                    f"The size of tensor a ({out[d]}) must match the size of tensor b ({size}) at non-singleton "
                    f"dimension {d} (shapes {' and '.join(str(tuple(s)) for s in shapes)})"
                )
            out[d] = size
    return tuple(out)


def broadcast_strides(shape: tuple[int, ...], strides: tuple[int, ...], to: tuple[int, ...]) -> tuple[int, ...]:
    """Strides with which an operand of `shape` reads as one of shape `to`: 0 where it is repeated."""
    lead = len(to) - len(shape)
    return (0,) * lead + tuple(
        0 if have == 1 and want != 1 else s for have, want, s in zip(shape, to[lead:], strides, strict=True)
    )


def order_by_stride(shape: tuple[int, ...], operands: list[tuple[int, ...]]) -> list[int]:
    """Dimensions of `shape` from the outermost in memory to the innermost, as its operands' strides suggest.

    PyTorch's TensorIterator::reorder_dimensions, so that results have PyTorch's strides.
    """

    def inner_first(a: int, b: int) -> int:
        """1 if a belongs outside b, -1 if inside, 0 if nothing tells."""
        for strides in operands:
            if strides[a] == 0 or strides[b] == 0:
                continue
            if strides[a] != strides[b]:
                return -1 if strides[a] < strides[b] else 1
            if shape[a] > shape[b]:
                return 1
        return 0

    order = list(reversed(range(len(shape))))
    for i in range(1, len(order)):
        moving = i
        for j in reversed(range(i)):
            verdict = inner_first(order[j], order[moving])
            if verdict > 0:
                order[j], order[moving] = order[moving], order[j]
                moving = j
            elif verdict < 0:
                break
    return order[::-1]


def strides_in_order(shape: tuple[int, ...], order: list[int]) -> tuple[int, ...]:
    """Gapless strides for dimensions nested in `order`, outermost first."""
    strides, step = [0] * len(shape), 1
    for d in reversed(order):
        strides[d] = step
        step *= max(shape[d], 1)
    return tuple(strides)


def collapse(shape: Sequence[int], operands: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """The fewest dimensions that address the same elements: drops size 1, and merges neighbours that are one run in
    every operand."""
    sizes: list[int] = []
    rows: list[list[int]] = [[] for _ in operands]
    for d, size in enumerate(shape):
        if size == 1:
            continue
        here = [op[d] for op in operands]
        if sizes and all(row[-1] == h * size for row, h in zip(rows, here, strict=True)):
            sizes[-1] *= size
            for row, h in zip(rows, here, strict=True):
                row[-1] = h
        else:
            sizes.append(size)
            for row, h in zip(rows, here, strict=True):
                row.append(h)
    return tuple(sizes), [tuple(row) for row in rows]


def infer_size(shape: Sequence[int], count: int) -> tuple[int, ...]:
    """`shape` with its one -1 filled in so that it holds `count` elements.

    Raises:
        RuntimeError: it cannot.
    """
    sizes = [int(s) for s in shape]
    if sizes.count(-1) > 1:
        raise RuntimeError("only one dimension can be inferred")
    if any(s < -1 for s in sizes):
        raise RuntimeError(f"invalid shape dimension {min(sizes)}")
    known = numel(s for s in sizes if s != -1)
    if -1 in sizes:
        if known == 0:
            raise RuntimeError(
                f"cannot reshape tensor of {count} elements into shape {list(shape)} because the unspecified "
                "dimension size -1 can be any value and is ambiguous"
            )
        if count % known == 0:
            sizes[sizes.index(-1)] = count // known
            return tuple(sizes)
    elif known == count:
        return tuple(sizes)
    raise RuntimeError(f"shape '{list(shape)}' is invalid for input of size {count}")


def view_strides(shape: tuple[int, ...], strides: tuple[int, ...], to: tuple[int, ...]) -> tuple[int, ...] | None:
    """Strides that read the same elements in shape `to`, or None if only a copy could.

    PyTorch: ATen/TensorUtils.cpp, `computeStride`.
    """
    if numel(shape) == 0:
        return strides if tuple(shape) == to else contiguous_strides(to)
    out = [0] * len(to)
    at = len(to) - 1
    run_stride = strides[-1] if strides else 1
    have = want = 1
    for d in reversed(range(len(shape))):
        have *= shape[d]
        if d == 0 or (shape[d - 1] != 1 and strides[d - 1] != have * run_stride):
            while at >= 0 and (want < have or to[at] == 1):
                out[at] = want * run_stride
                want *= to[at]
                at -= 1
            if want != have:
                return None
            if d > 0:
                run_stride, have, want = strides[d - 1], 1, 1
    if not shape:
        out = [1] * len(to)
        at = -1
    return tuple(out) if at == -1 else None


def wrap_dim(dim: int, ndim: int) -> int:
    """`dim` counted from the front.

    Raises:
        IndexError: out of range.
    """
    if not isinstance(dim, int):
        raise TypeError(f"dim must be an int, got {type(dim).__name__}")
    bound = max(ndim, 1)
    if not -bound <= dim < bound:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-bound}, {bound - 1}], but got {dim})")
    return dim % bound


def wrap_dims(dims: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """Distinct dimensions in ascending order; None or () means all.

    Raises:
        IndexError: out of range.
        RuntimeError: one is given twice.
    """
    if dims is None or (not isinstance(dims, int) and len(dims) == 0):
        return tuple(range(ndim))
    wrapped = [wrap_dim(d, ndim) for d in ([dims] if isinstance(dims, int) else dims)]
    if len(set(wrapped)) != len(wrapped):
        twice = next(d for d in wrapped if wrapped.count(d) > 1)
        raise RuntimeError(f"dim {twice} appears multiple times in the list of dims")
    return tuple(sorted(d for d in wrapped if ndim))
