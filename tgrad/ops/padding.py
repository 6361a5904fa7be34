"""Padding: with one value, or with the tensor's own elements, reflected, repeated or taken round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tgrad.device import compute
from tgrad.kernels.launch import Launch
from tgrad.layout import Layout, layout
from tgrad.op import Kernel, pointwise_launch
from tgrad.ops import creation
from tgrad.ops.indexing import index_select
from tgrad.ops.views import COPY, fill_launch, narrow, slice_op
from tgrad.tensor import Tensor


# --- with its own elements -------------------------------------------------------------------------------------------
def _reflected(before: int, after: int, size: int) -> np.ndarray:
    return (size - 1) - np.abs((size - 1) - np.abs(np.arange(-before, size + after)))


def _repeated(before: int, after: int, size: int) -> np.ndarray:
    return np.clip(np.arange(-before, size + after), 0, size - 1)


def _taken_round(before: int, after: int, size: int) -> np.ndarray:
    kept = np.arange(max(0, -before), size - max(0, -after))  # what is cut off is not taken round
    return kept[np.arange(-max(0, before), len(kept) + max(0, after)) % max(1, len(kept))]


# Where each element of a padded dimension comes from.
MODES: dict[str, Callable[[int, int, int], np.ndarray]] = {
    "reflect": _reflected, "replicate": _repeated, "circular": _taken_round,
}  # fmt: skip


def _check(x: Tensor, d: int, before: int, after: int, mode: str) -> None:
    size = x.shape[d]
    most = {"reflect": size - 1, "circular": size}.get(mode)
    if most is not None and max(before, after) > most:
        raise RuntimeError(
            f"pad: mode {mode!r} takes at most {most} elements beside dimension {d} of size {size}, got padding "
            f"({before}, {after}) for input {list(x.shape)}"
        )
    if size + before + after < (0 if mode == "circular" else 1) or (size == 0 and (before > 0 or after > 0)):
        raise RuntimeError(f"pad: padding ({before}, {after}) of dimension {d} of size {size} leaves or reads nothing")


def _pad_with_own(input: Tensor, pad: Sequence[int], mode: str) -> Tensor:
    """`pad` in mode "reflect", "replicate" or "circular".

    Raises:
        NotImplementedError: `pad` names other dimensions than all but the first one or two. RuntimeError: more is asked
            for than the dimension has.
    """
    dims = len(pad) // 2
    if dims > 3 or input.ndim not in (dims + 1, dims + 2):
        raise NotImplementedError(
            f"Only 2D, 3D, 4D, 5D padding with non-constant padding are supported for now: pad: mode {mode!r} pads all "
            f"dimensions but the first one or two, got padding of length {len(pad)} for input of dimension {input.ndim}"
        )
    out = input
    for i in range(dims):
        d, before, after = input.ndim - 1 - i, int(pad[2 * i]), int(pad[2 * i + 1])
        _check(input, d, before, after, mode)
        if before or after:
            source = MODES[mode](before, after, input.shape[d])
            out = index_select(out, d, creation.tensor(source.astype(np.int64), device=compute))
    return out


# --- with one value --------------------------------------------------------------------------------------------------
def _build_pad(x: Tensor, value: float, pads: tuple[tuple[int, int], ...]) -> tuple[list[Layout], Launch]:
    shape = tuple(before + n + after for n, (before, after) in zip(x.shape, pads, strict=True))
    out = layout(x.dtype, shape, None, compute)
    skip = sum(before * s for (before, _), s in zip(pads, out.strides, strict=True)) * x.dtype.itemsize
    part = layout(x.dtype, tuple(x.shape), out.strides, compute, skip % 16 == 0)
    fill = fill_launch("pad", out) if out.numel else None
    copy = pointwise_launch("pad", COPY.lower(((x.dtype, 2),), [None]), [part], [x.layout])

    def launch(to: int, source: int, number: float) -> None:
        if fill is not None:
            fill(to, number)
            copy(to + skip, source)

    return [out], launch


def _unpad(g: Tensor, *, pads: tuple[tuple[int, int], ...]) -> Tensor:
    for d, (before, after) in enumerate(pads):
        if before or after:
            g = slice_op(g, dim=d, start=before, stop=g.shape[d] - after, step=1)
    return g


pad_op = Kernel("constant_pad_nd", ("x", "value"), _build_pad, {"x": _unpad}, settings=("pads",))


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Elements of one value put around the last dimensions: (before, after) of the last one, of the one before it, ...

    A negative number cuts elements off.

    Shape: each size plus what is put before and after it.
    Dtype: the input's.
    Raises:
        RuntimeError: an odd count of numbers, or more than two for each dimension; a size would be negative.
        NotImplementedError: an unknown mode.
        ValueError: `value` with another mode than "constant".
    """
    pad = list(pad)
    if mode != "constant" and mode not in MODES:
        raise NotImplementedError(f"Unrecognised padding mode {mode}: pad takes 'constant' and {sorted(MODES)}")
    if len(pad) % 2:
        raise RuntimeError("Padding length must be divisible by 2")
    if len(pad) > 2 * input.ndim:
        raise RuntimeError(
            f"Padding length should be less than or equal to two times the input dimension. Padding length {len(pad)}, "
            f"input of dimension {input.ndim}"
        )
    if mode != "constant":
        if value is not None:
            raise ValueError(f'Padding mode "{mode}" doesn\'t take in value argument')
        return _pad_with_own(input, pad, mode)
    out = input
    pairs = [(0, 0)] * (input.ndim - len(pad) // 2) + list(zip(pad[-2::-2], pad[-1::-2], strict=True))
    for d, (before, after) in enumerate(pairs):
        if input.shape[d] + before + after < 0:
            raise RuntimeError(
                f"The input size {input.shape[d]}, plus negative padding {before} and {after}, resulted in a negative "
                f"output size, which is invalid. Check dimension {d} of your input."
            )
        if before < 0 or after < 0:
            out = narrow(out, d, max(0, -before), out.shape[d] - max(0, -before) - max(0, -after))
    number: Any = 0 if value is None else value
    if input.dtype.category < 2:
        number = int(number)
    return pad_op(out, number, pads=tuple((max(0, a), max(0, b)) for a, b in pairs))
