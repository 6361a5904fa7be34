"""Random integers, permutations and draws from distributions, all of Philox: the same seed gives the same numbers."""

from __future__ import annotations

from typing import Any

from tgrad import dtypes, modes
from tgrad.device import compute
from tgrad.dtypes import dtype
from tgrad.inplace import write
from tgrad.kernels.creation import prepare_creation, seed_type
from tgrad.kernels.launch import INTERPRET
from tgrad.kernels.random import prepare_choice
from tgrad.layout import broadcast_shapes
from tgrad.ops import creation, pointwise as p
from tgrad.ops.creation import draw_into
from tgrad.ops.reduce import expand
from tgrad.ops.sorting import argsort, topk
from tgrad.ops.views import _sizes, contiguous, reshape
from tgrad.random import Generator, default_generator
from tgrad.tensor import Tensor


def _integers_into(t: Tensor, low: int, high: int, generator: Generator | None) -> Tensor:
    """Fill t, which has no gaps, with integers from low to high - 1."""
    if high <= low:
        raise RuntimeError(f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}")
    if t.layout.device is not compute:
        raise RuntimeError(f"random numbers are drawn on {compute} only: draw there, then use .cpu()")
    if t.numel():
        seed, offset = (generator or default_generator).take(t.numel())
        launch = prepare_creation("integers", t.dtype.triton, (), (seed_type(seed), "i64", "i64", "i64"), t.numel())
        width = high - low
        launch(t.ptr, seed, offset, low, width if width < 2**63 else 0)
    return t


def randint(*args: Any, low: int | None = None, high: int | None = None, size: Any = None,
            generator: Generator | None = None, dtype: dtype | None = None, device: Any = None,
            requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Integers from low (0) to high - 1: randint(high, size) or randint(low, high, size).

    Shape: `size`.
    Dtype: `dtype`, by default int64.
    Raises:
        RuntimeError: `high` is not above `low`; a size is negative; the device is not the one that computes.
        TypeError: `high` or `size` is missing.
    """
    given = list(args)
    if size is None and given and isinstance(given[-1], (tuple, list)):
        size = given.pop()
    if len(given) == 2:
        low, high = given
    elif len(given) == 1:
        low, high = (low, given[0]) if high is None else (given[0], high)
    if high is None or size is None:
        raise TypeError("randint(): expected (high, size) or (low, high, size)")
    t = creation._new(_sizes((size,)), dtype or dtypes.int64, device, False)
    low = low or 0
    if high <= low:
        raise RuntimeError(f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}")
    _integers_into(t, int(low), int(high), generator)
    return t.requires_grad_() if requires_grad else t


def randint_like(input: Tensor, low: int, high: int | None = None, *, generator: Generator | None = None,
                 dtype: dtype | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Integers from low (0 if only one number is given) to high - 1.

    Shape: that of `input`.
    Dtype: `dtype`, by default that of `input`.
    Raises:
        RuntimeError: `high` is not above `low`; the device is not the one that computes.
    """
    low, high = (0, low) if high is None else (low, high)
    t = creation._like(input, dtype, device, False)
    _integers_into(t, low, high, generator)
    return t.requires_grad_() if requires_grad else t


def randperm(n: int, *, generator: Generator | None = None, dtype: dtype | None = None, device: Any = None,
             requires_grad: bool = False) -> Tensor:  # fmt: skip
    """The integers from 0 to n - 1 in random order: those that sort n random 62-bit keys.

    Shape: a vector of `n`.
    Dtype: `dtype`, by default int64.
    Raises:
        RuntimeError: `n` is negative; there is no such device.
    """
    if n < 0:
        raise RuntimeError(f"n must be non-negative, got {n}")
    keys = _integers_into(creation.empty(n, dtype=dtypes.int64), 0, 2**62, generator)
    order = argsort(keys).to(dtype=dtype or dtypes.int64, device=device)
    return order.requires_grad_() if requires_grad else order


def normal(mean: Any, std: Any = 1.0, size: Any = None, *, generator: Generator | None = None,
           dtype: dtype | None = None, device: Any = None, requires_grad: bool = False) -> Tensor:  # fmt: skip
    """Normal numbers: of a size, or for each element of mean and std, either of which may be a tensor; no gradient.

    Shape: `size`, or that to which mean and std broadcast.
    Dtype: `dtype`; with tensors, their common dtype. Floating.
    Raises:
        RuntimeError: `std` is negative; the dtype is not floating; shapes do not broadcast.
        TypeError: no size where both are numbers.
    """
    if not isinstance(std, Tensor) and std < 0:
        raise RuntimeError(f"normal expects std >= 0.0, but found std {float(std)}")
    tensors = [t for t in (mean, std) if isinstance(t, Tensor)]
    if not tensors:
        if size is None:
            raise TypeError("normal(): a size is needed where mean and std are numbers")
        t = creation._new(_sizes((size,)), dtype, device, requires_grad)
        with modes.no_grad():
            return draw_into(t, "normal", mean, std, generator)
    shape = broadcast_shapes(*(tuple(t.shape) for t in tensors))
    kind = tensors[0].dtype if len(tensors) == 1 else dtypes.promote(tensors[0].dtype, tensors[1].dtype)
    with modes.no_grad():
        drawn = draw_into(creation.empty(shape, dtype=kind), "normal", 0, 1, generator)
        return p.add(p.mul(drawn, std), mean)


def bernoulli(input: Tensor, p: Any = None, *, generator: Generator | None = None) -> Tensor:
    """Ones with the probabilities in input (or with probability p), else zeros. No gradient flows.

    Shape: that of `input`.
    Dtype: that of `input`; the probabilities are floating.
    Raises:
        RuntimeError: the probabilities are not floating, or `p` is not in [0, 1].
    """
    with modes.no_grad():
        return _coins(input, input.detach() if p is None else p, generator)


def _coins(like: Tensor, chance: Any, generator: Generator | None) -> Tensor:
    if not isinstance(chance, Tensor):
        if not 0 <= chance <= 1:
            raise RuntimeError(f"bernoulli_ expects p to be in [0, 1], but got p={chance}")
    elif not chance.dtype.is_floating_point:
        raise RuntimeError(f"bernoulli: expected floating probabilities, got {chance.dtype!r}")
    u = draw_into(creation.empty(tuple(like.shape), dtype=dtypes.float32), "uniform", 0, 1, generator)
    return p.cast(like.dtype)(p.lt(u, chance))


def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Categories drawn by their weights, one row of num_samples for each row of input (a vector or a matrix).

    Without replacement: those that come first in a race of exponential clocks, whose rates are the weights.

    Shape: (C,) gives (num_samples,); (N, C) gives (N, num_samples).
    Dtype: floating; the result is int64.
    Raises:
        RuntimeError: another number of dimensions; no sample; weights that are not floating, or (on the CPU) negative,
            not finite or all zero; too few categories.
    """
    if input.ndim not in (1, 2):
        raise RuntimeError("prob_dist must be 1 or 2 dim")
    if not input.dtype.is_floating_point:
        raise RuntimeError(f"multinomial only supports floating-point dtypes for input, got: {input.dtype!r}")
    if num_samples <= 0:
        raise RuntimeError("cannot sample n_sample <= 0 samples")
    n = input.shape[-1]
    if not replacement and num_samples > n:
        raise RuntimeError("cannot sample n_sample > prob_dist.size(-1) samples without replacement")
    with modes.no_grad():
        weights = contiguous(reshape(p.cast(dtypes.float64)(input.detach()), (-1, n)))
        if compute.type == "cpu" and INTERPRET:
            _check_weights(weights)
        rows = weights.shape[0]
        if replacement:
            out = creation.empty(rows, num_samples, dtype=dtypes.int64)
            if out.numel():
                seed, offset = (generator or default_generator).take(out.numel())
                prepare_choice(rows, num_samples, n, seed_type(seed))(out.ptr, weights.ptr, seed, offset)
        else:
            clocks = draw_into(creation.empty(rows, n, dtype=dtypes.float64), "exponential", 1, 0, generator)
            out = topk(p.div(weights, clocks), num_samples).indices
        return reshape(out, (num_samples,)) if input.ndim == 1 else out


def _check_weights(weights: Tensor) -> None:
    values = weights._array()
    if not ((values >= 0) & (values < float("inf"))).all():
        raise RuntimeError("probability tensor contains either `inf`, `nan` or element < 0")
    if values.size and not (values.sum(1) > 0).all():
        raise RuntimeError("invalid multinomial distribution (sum of probabilities <= 0)")


# --- in place --------------------------------------------------------------------------------------------------------
def random_(self: Tensor, low: int = 0, high: int | None = None, *, generator: Generator | None = None) -> Tensor:
    """Integers from low to high - 1; without bounds up to the greatest that the dtype holds exactly.

    With one number, from 0 to it.

    Shape: any; kept.
    Dtype: any; kept.
    Raises:
        RuntimeError: `high` is not above `low`; the write is refused.
    """
    if high is None:
        low, high = (0, low) if low else (0, _limit(self.dtype))
    with modes.no_grad():
        drawn = _integers_into(creation.empty(tuple(self.shape), dtype=self.dtype), low, high, generator)
    return write(p.copy, self, (drawn,))


def _limit(kind: dtype) -> int:
    exact = {"float16": 11, "bfloat16": 8, "float32": 24, "float64": 53}
    if kind.name in exact:
        return 2 ** exact[kind.name] + 1
    return {"bool": 2, "uint8": 256, "int32": 2**31, "int64": 2**63}[kind.name]


def bernoulli_(self: Tensor, p: Any = 0.5, *, generator: Generator | None = None) -> Tensor:
    """Ones with probability p, a number or a tensor that broadcasts, else zeros.

    Shape: kept; `p` broadcasts to it.
    Dtype: kept; `p` is a number or floating.
    Raises:
        RuntimeError: `p` is not floating, or not in [0, 1]; the write is refused.
    """
    with modes.no_grad():
        chance = expand(p.detach(), tuple(self.shape)) if isinstance(p, Tensor) else p
        drawn = _coins(self, chance, generator)
    return _write_drawn(self, drawn)


def exponential_(self: Tensor, lambd: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Exponential numbers of rate lambd.

    Shape: any; kept.
    Dtype: floating; kept.
    Raises:
        RuntimeError: `lambd` is not positive; the dtype is not floating; the write is refused.
    """
    if lambd <= 0:
        raise RuntimeError(f"exponential_ expects lambda > 0.0, but found lambda={lambd}")
    with modes.no_grad():
        drawn = draw_into(creation.empty(tuple(self.shape), dtype=self.dtype), "exponential", 1 / lambd, 0, generator)
    return _write_drawn(self, drawn)


def _write_drawn(target: Tensor, drawn: Tensor) -> Tensor:
    return write(p.copy, target, (drawn,))


FREE: dict[str, Any] = {f.__name__: f for f in (randint, randint_like, randperm, normal)}
BOTH = (bernoulli, multinomial)
IN_PLACE = (random_, bernoulli_, exponential_)
