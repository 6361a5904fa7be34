"""The text of a tensor, character for character what PyTorch prints.

The rules, as torch 2.x applies them:

* one format is chosen for the whole tensor, from its finite non-zero elements: scientific when max/min > 1000,
  max > 1e8 or min < 1e-4; else, when all are integral, integers with a trailing dot; else fixed point;
* elements are padded to the widest finite non-zero element, so `nan`, `inf`, `-inf` and `-0.` may stick out;
* above `threshold` elements only `edgeitems` elements are read at either end of each dimension, and the format is
  chosen from those alone;
* int64, bool, the default dtype and its complex partner go without a `dtype=` suffix, except in an empty tensor, where
  only the default dtype does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

__all__ = ["edge_indices", "format_tensor", "get_printoptions", "printoptions", "set_printoptions"]


@dataclasses.dataclass
class _Options:
    """The settings of `set_printoptions`; the defaults are torch's."""

    precision: int = 4
    threshold: float = 1000
    edgeitems: int = 3
    linewidth: int = 80
    sci_mode: bool | None = None


_PROFILES: dict[str, dict[str, float]] = {
    "default": {"precision": 4, "threshold": 1000, "edgeitems": 3, "linewidth": 80},
    "short": {"precision": 2, "threshold": 1000, "edgeitems": 2, "linewidth": 80},
    "full": {"precision": 4, "threshold": math.inf, "edgeitems": 3, "linewidth": 80},
}

_options = _Options()


def set_printoptions(
    precision: int | None = None,
    threshold: float | None = None,
    edgeitems: int | None = None,
    linewidth: int | None = None,
    profile: str | None = None,
    sci_mode: bool | None = None,
) -> None:
    """Set how tensors print; an option left at None keeps its value, except `sci_mode`, which every call replaces.

    Args:
        precision: digits after the decimal point (4).
        threshold: number of elements above which a tensor is summarised (1000).
        edgeitems: elements shown at either end of a summarised dimension (3).
        linewidth: columns before a line breaks (80).
        profile: "default", "short" or "full", applied before the other options; another name changes nothing.
        sci_mode: True or False forces the notation of floats; None lets the values choose.
    """
    given = {"precision": precision, "threshold": threshold, "edgeitems": edgeitems, "linewidth": linewidth}
    chosen = _PROFILES.get(profile, {}) if profile is not None else {}
    for name, value in (*chosen.items(), *given.items()):
        if value is not None:
            setattr(_options, name, value)
    _options.sci_mode = sci_mode


def get_printoptions() -> dict[str, Any]:
    """The current options, as keyword arguments for `set_printoptions`."""
    return dataclasses.asdict(_options)


@contextlib.contextmanager
def printoptions(**kwargs: Any) -> Iterator[None]:
    """`set_printoptions(**kwargs)` within a `with` block."""
    before = get_printoptions()
    set_printoptions(**kwargs)
    try:
        yield
    finally:
        set_printoptions(**before)


# --- elements ------------------------------------------------------------------------------------------------------

_Format = Callable[[Any], str]


def _longest(texts: Iterator[str]) -> int:
    return max(map(len, texts), default=1)


def _float_format(values: np.ndarray) -> tuple[_Format, int]:
    """The common format of real floating `values`, and the width it pads to."""
    counted = values[np.isfinite(values) & (values != 0)]
    integral, scientific, width = True, False, 1
    precision = _options.precision
    if counted.size:
        magnitudes = np.abs(counted)  # exact in every dtype; the thresholds are compared in double
        low, high = float(magnitudes.min()), float(magnitudes.max())
        integral = bool(np.all(counted == np.ceil(counted)))
        scientific = high / low > 1000.0 or high > 1e8 or low < 1e-4
        if _options.sci_mode is not None:
            scientific = _options.sci_mode
    if scientific:
        spec, dot = f".{precision}e", ""
    elif integral:
        spec, dot = ".0f", "."
    else:
        spec, dot = f".{precision}f", ""
    if counted.size:
        width = _longest(format(value, spec) + dot for value in counted.tolist())

    def form(value: float) -> str:
        return (format(value, spec) + (dot if math.isfinite(value) else "")).rjust(width)

    return form, width


def _complex_format(values: np.ndarray) -> tuple[_Format, int]:
    """The format of complex `values`: real and imaginary parts each choose their own."""
    real, real_width = _float_format(values.real)
    imaginary, imaginary_width = _float_format(values.imag)

    def form(value: complex) -> str:
        tail = imaginary(value.imag).lstrip() + "j"
        return real(value.real) + ("" if tail[0] in "+-" else "+") + tail

    return form, real_width + imaginary_width + 1


def _element_format(values: np.ndarray) -> tuple[_Format, int]:
    """The common format of a flat array, and the width of one element."""
    if values.dtype.kind == "f":
        return _float_format(values)
    if values.dtype.kind == "c":
        return _complex_format(values)
    width = _longest(str(value) for value in values.tolist())
    return lambda value: str(value).rjust(width), width


# --- brackets ------------------------------------------------------------------------------------------------------


def _summarised(shape: Sequence[int]) -> bool:
    return math.prod(shape) > _options.threshold


def edge_indices(shape: Sequence[int]) -> list[np.ndarray] | None:
    """Per dimension, the indices that printing a tensor of `shape` reads; None when it reads every element.

    A caller whose data is costly to read gathers `values[np.ix_(*edge_indices(shape))]` and hands on only that.
    """
    if not shape or not _summarised(shape):
        return None
    edge = _options.edgeitems
    return [np.r_[:edge, size - edge : size] if size > 2 * edge else np.arange(size) for size in shape]


def _brackets(items: Any, cuts: Sequence[bool], indent: int, form: _Format, width: int) -> str:
    """Nested brackets around `items`, a list nested len(cuts) deep; `cuts` says which dimensions were summarised.

    `width` is that of one element; `indent` is the column of the opening bracket.
    """
    if not cuts:
        return form(items)
    depth, edge = len(cuts), _options.edgeitems
    if depth == 1:
        cells = [form(item) for item in items]
        if cuts[0]:
            cells.insert(edge, " ...")
        per_line = max(1, int((_options.linewidth - indent) // (width + 2)))
        parts = [", ".join(cells[start : start + per_line]) for start in range(0, len(cells), per_line)]
    else:
        parts = [_brackets(item, cuts[1:], indent + 1, form, width) for item in items]
        if cuts[0]:
            parts.insert(edge, "...")
    separator = "," + "\n" * max(1, depth - 1) + " " * (indent + 1)
    return "[" + separator.join(parts) + "]"


def _contents(values: np.ndarray, shape: tuple[int, ...], indent: int) -> str:
    """The text between the parentheses, before any suffix."""
    count = math.prod(shape)
    if count == 0:
        return "[]"
    indices = edge_indices(shape)
    if indices is not None and not _options.edgeitems:
        return "[...]"
    if values.size == count:
        values = values.reshape(shape)
        if indices is not None:
            values = values[np.ix_(*indices)]
    elif indices is None or values.shape != tuple(map(len, indices)):
        raise ValueError(f"values of shape {values.shape} are neither the data nor the edges of a tensor of {shape}")
    cuts = [indices is not None and size > 2 * _options.edgeitems for size in shape]
    form, width = _element_format(values.reshape(-1))
    return _brackets(values.tolist(), cuts, indent, form, width)


# --- the whole -----------------------------------------------------------------------------------------------------


def _shows_dtype(dtype: str, default_dtype: str, empty: bool) -> bool:
    """Whether `dtype=` is printed: not where the text alone already implies it."""
    if dtype == default_dtype:
        return False
    return empty or dtype not in ("int64", "bool", "complex128" if default_dtype == "float64" else "complex64")


def _append(text: str, suffixes: Sequence[str], indent: int) -> str:
    """`text` with its suffixes, each on a new line if the current one would pass `linewidth`.

    As in torch the last line of `text` counts one column more than it has, two if it is also the first.
    """
    column = len(text) - text.rfind("\n") + 1
    for suffix in suffixes:
        if column + len(suffix) + 2 > _options.linewidth:
            text += ",\n" + " " * indent + suffix
            column = indent + len(suffix)
        else:
            text += ", " + suffix
            column += len(suffix) + 2
    return text + ")"


def format_tensor(
    values: np.ndarray,
    *,
    dtype: str,
    shape: tuple[int, ...],
    requires_grad: bool = False,
    grad_fn: str | None = None,
    device: str | None = None,
    default_dtype: str = "float32",
    prefix: str = "tensor",
) -> str:
    """What `repr` shows of a tensor.

    Args:
        values: the elements, whole or (see `edge_indices`) only those a summary reads; bfloat16 comes as float32.
        dtype: the name of the tensor's dtype, which `values.dtype` need not be.
        shape: the tensor's shape.
        requires_grad: shown as `requires_grad=True`, unless there is a `grad_fn`.
        grad_fn: the class name of the node that made the tensor, "MulBackward0"; None for a leaf.
        device: the device to show; None where it is the default one, which is not shown.
        default_dtype: the dtype of a tensor made from Python floats.
        prefix: the name before the parenthesis.
    """
    shape = tuple(int(size) for size in shape)
    indent = len(prefix) + 1
    empty = math.prod(shape) == 0
    suffixes = []
    if device is not None:
        suffixes.append(f"device='{device}'")
    if len(shape) != 1 if empty else not _options.edgeitems:
        suffixes.append(f"size={shape}")
    if _shows_dtype(dtype, default_dtype, empty):
        suffixes.append(f"dtype=torch.{dtype}")
    if grad_fn is not None:
        suffixes.append(f"grad_fn=<{grad_fn}>")
    elif requires_grad:
        suffixes.append("requires_grad=True")
    return _append(f"{prefix}(" + _contents(np.asarray(values), shape, indent), suffixes, indent)
