"""Whether a result of tgrad is torch's: exactly, or as near to float64's as the dtype allows.

An element of float16, bfloat16 or float32 agrees if it is torch's of the same dtype, or is as near to torch's result of
the same values in float64 as `tolerance` (tests/compare.py) has it, plus twice the error that torch's own result has in
that dtype at its worst element (the measure of how ill-conditioned a sample is), plus ABSOLUTE of the greatest element,
in float32's units. An element of float64 agrees with torch's to RELATIVE of itself and ABSOLUTE of the greatest one.
Everything else, dtypes, shapes, integers, bools, nan and infinity, agrees exactly. Where torch has no gradient (None),
zeros agree with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

import tgrad
from tests.compare import EPS, TORCH, tolerance, values

RELATIVE, ABSOLUTE = 1e-12, 1e-14
FACTOR = 2.0  # a formula of a few steps
LEAST = ABSOLUTE / EPS[tgrad.float64]  # float64's ABSOLUTE, in units of the type that accumulates


def _array(t: torch.Tensor) -> np.ndarray:
    t = t.new_zeros(t.shape) if t._is_zerotensor() else t.detach().resolve_neg()
    return (t.double() if t.is_floating_point() else t).numpy()


def _floats(have: np.ndarray, dtype: Any, native: torch.Tensor, wide: torch.Tensor | None, like: Any) -> np.ndarray:
    """Where the elements disagree."""
    theirs = _array(native)
    same = (have == theirs) | (np.isnan(have) & np.isnan(theirs))
    with np.errstate(invalid="ignore", over="ignore"):
        if native.dtype is torch.float64 or wide is None:
            greatest = max(1.0, np.abs(theirs[np.isfinite(theirs)]).max(initial=0))
            units = EPS[like] / EPS[tgrad.float64]
            return ~(same | (np.abs(have - theirs) <= units * (RELATIVE * np.abs(theirs) + ABSOLUTE * greatest)))
        want = _array(wide)
        rounded = _array(wide.detach().to(TORCH[dtype]))
        finite = np.isfinite(rounded)
        off = np.abs(theirs - want)[finite & np.isfinite(theirs)].max(initial=0)
        greatest = max(1.0, np.abs(want[finite]).max(initial=0))
        allowed = tolerance(dtype, factor=FACTOR) * np.abs(want) + 2 * off + LEAST * EPS[tgrad.float32] * greatest
        near = finite & (np.abs(have - want) <= allowed)
        special = ~finite & ((have == rounded) | (np.isnan(have) & np.isnan(rounded)))
        return ~(same | near | special)


def difference(got: Any, native: Any, wide: Any, what: str, like: Any = None) -> str | None:
    """The first difference between tgrad's result and torch's, of the same dtype and in float64 (or None).

    Args:
        like: the dtype whose precision is expected, where torch's own code does not keep the result's.
    """
    if isinstance(native, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(got) != len(native):
            return f"{what}: {type(got).__name__} instead of {len(native)} results"
        wides = wide if wide is not None else [None] * len(native)
        parts = (difference(g, n, w, f"{what}[{i}]", like)
                 for i, (g, n, w) in enumerate(zip(got, native, wides, strict=True)))  # fmt: skip
        return next((p for p in parts if p), None)
    if native is None and isinstance(got, tgrad.Tensor):
        return f"{what}: torch has none" if values(got).any() else None
    if not isinstance(native, torch.Tensor):
        same = type(got) is type(native) and (got == native or (got != got and native != native))
        return None if same else f"{what}: {got!r}, torch has {native!r}"
    if not isinstance(got, tgrad.Tensor):
        return f"{what}: {type(got).__name__}, torch has a Tensor"
    if TORCH[got.dtype] is not native.dtype:
        return f"{what}: dtype {got.dtype!r}, torch has {native.dtype}"
    if tuple(got.shape) != tuple(native.shape):
        return f"{what}: shape {tuple(got.shape)}, torch has {tuple(native.shape)}"
    have = values(got)
    if got.dtype.is_floating_point:
        have = have.astype(np.float64)
        bad = _floats(have, got.dtype, native, wide, like or got.dtype)
    else:
        bad = have != _array(native)
    if not bad.any():
        return None
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    exact = "" if wide is None else f" ({_array(wide)[at]!r} in float64)"
    return (f"{what}: {np.count_nonzero(bad)} of {bad.size} elements differ, first {have[at]!r} at {at}, "
            f"torch has {_array(native)[at]!r}{exact}")  # fmt: skip
