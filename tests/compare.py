"""The same tensors in tgrad and in torch, and how far results may differ."""

import zlib

import numpy as np
import torch

import tgrad

TORCH = {
    tgrad.float16: torch.float16, tgrad.bfloat16: torch.bfloat16, tgrad.float32: torch.float32,
    tgrad.float64: torch.float64, tgrad.int32: torch.int32, tgrad.int64: torch.int64, tgrad.uint8: torch.uint8,
    tgrad.bool: torch.bool,
}  # fmt: skip
FLOATS = [tgrad.float16, tgrad.bfloat16, tgrad.float32, tgrad.float64]
INTEGERS = [tgrad.int32, tgrad.int64, tgrad.uint8, tgrad.bool]
EPS = {d: torch.finfo(TORCH[d]).eps for d in FLOATS}

# Whether torch's texts and arguments are those of the version that constraints.txt names; a GPU's machine may have an
# older one, which lacks some.
NEWEST = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)

# How far a result may be from float64's, in units of EPS: ULPS[dtype] for the arithmetic of one element, and, where n
# elements are added, n more in the type that accumulates (the bound for any order of summation).
ULPS = {tgrad.float64: 4, tgrad.float32: 4, tgrad.float16: 1, tgrad.bfloat16: 1}


def tolerance(dtype, length=1, factor=1.0):
    """The greatest relative error of a result of `length` summands; `factor` for formulas of several steps."""
    total = tgrad.float64 if dtype is tgrad.float64 else tgrad.float32
    return factor * ULPS[dtype] * EPS[dtype] + (length - 1) * EPS[total]


def random(*key):
    """A numpy generator that is a function of `key`."""
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


# --- arrangements in memory: the shape of the base, and the view of it that is the operand ---------------------------
def _sliced(shape):
    return tuple(2 * n + 1 for n in shape), lambda t: t[tuple(slice(1, None, 2) for _ in shape)]


WAYS = {
    "plain": lambda shape: (shape, lambda t: t),
    "transposed": lambda shape: (shape[::-1], lambda t: t.permute(*reversed(range(len(shape))))),
    "rotated": lambda shape: ((shape[-1], *shape[:-1]), lambda t: t.permute(*range(1, len(shape)), 0)),
    "sliced": _sliced,
    "expanded": lambda shape: ((1, *shape[1:]), lambda t: t.expand(*shape)),
}


def pair(values, dtype, way="plain", requires_grad=False):
    """(tgrad tensor, torch's of `dtype`, torch's in float64 or integers), leaves of the same values and strides.

    `values` are those of the view, except for "expanded", where they are repeated from its first row.
    """
    shape = tuple(values.shape)
    base_shape, view = WAYS[way](shape)
    exact = torch.tensor(values).to(TORCH[dtype])
    base = torch.full(base_shape, 7, dtype=TORCH[dtype])
    if way == "expanded":
        base.copy_(exact[:1] if shape and shape[0] else 7)
    elif 0 not in shape:
        view(base).copy_(exact)
    wide = base.double() if dtype in FLOATS else base
    ours = tgrad.tensor(wide.numpy(), dtype=dtype)
    results = [view(t).detach() for t in (ours, base, wide)]
    if requires_grad:
        for t in results:
            t.requires_grad_()
    return results


def values(t):
    """A tgrad tensor's values as a numpy array; bfloat16 as float32."""
    return t.detach().cpu()._values()


def assert_close(got, want, *, length=1, factor=1.0, scale=0.0, what="result"):
    """`got`, of tgrad, is `want`, of torch in float64, up to `tolerance` of the greater of |want| and `scale`."""
    dtype = got.dtype
    assert tuple(got.shape) == tuple(want.shape), f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    have, want = values(got).astype(np.float64), want.detach()
    rounded = want.to(TORCH[dtype]).double().numpy()
    want = want.double().numpy()
    special = ~np.isfinite(rounded)
    assert np.array_equal(have[special], rounded[special], equal_nan=True), (
        f"{what}: {have[special][:8]}, expected {rounded[special][:8]}"
    )
    have, want = have[~special], want[~special]
    allowed = tolerance(dtype, length, factor) * np.maximum(np.abs(want),
        scale) + float(torch.finfo(TORCH[dtype]).tiny) * EPS[dtype]
    error = np.abs(have - want)
    wrong = ~(error <= allowed)
    if wrong.any():
        i = np.argmax(np.where(np.isnan(error), np.inf, error / allowed))
        raise AssertionError(
            f"{what} ({dtype!r}): {np.count_nonzero(wrong)} of {wrong.size} elements differ; worst {have[i]!r}, "
            f"expected {want[i]!r}, {error[i] / (allowed[i] or 1):.3g} times the tolerance"
        )


def assert_same(got, want, what="result"):
    """`got`, a tgrad tensor, is exactly `want`, a torch tensor: dtype, shape and bits (any nan is any other)."""
    assert TORCH[got.dtype] == want.dtype, f"{what}: {got.dtype!r}, expected {want.dtype}"
    assert tuple(got.shape) == tuple(want.shape), f"{what}: shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    have = values(got)
    want = (want.float() if want.dtype == torch.bfloat16 else want).detach().numpy()
    assert np.array_equal(have, want, equal_nan=want.dtype.kind == "f"), f"{what}: {have}, expected {want}"


def same_bits(a, b):
    """Whether two tgrad tensors have the same values, to the bit; any nan is any other."""
    x, y = values(a), values(b)
    if x.dtype.kind != "f":
        return np.array_equal(x, y)
    return np.array_equal(x, y, equal_nan=True) and np.array_equal(np.signbit(x)[x == 0], np.signbit(y)[x == 0])
