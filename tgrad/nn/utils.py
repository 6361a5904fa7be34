"""Gradients by their norm or size, and parameters as one vector."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

from tgrad import dtypes, modes
from tgrad.kernels import scalar
from tgrad.ops import pointwise as p, reduce as r_
from tgrad.ops.creation import zeros
from tgrad.ops.joining import cat, stack
from tgrad.tensor import Tensor
from tgrad.totals import total as total_of
from tgrad.updates import update


def _listed(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def get_total_norm(
    tensors: Tensor | Iterable[Tensor], norm_type: float = 2.0, error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:  # fmt: skip
    """The norm of all elements of `tensors` as if they were one vector; `norm_type` may be inf.

    Shape: any of each; the result is 0-dim.
    Dtype: floating; the result has their common dtype.
    Raises:
        RuntimeError: it is not finite, and error_if_nonfinite.
    """
    given = _listed(tensors)
    if not given:
        return zeros(())
    order = float(norm_type)
    with modes.no_grad():
        if 0 < order < math.inf and all(t.is_floating_point() for t in given):
            total = _root(given, order)
        else:
            total = _norm(stack([_norm(t.detach(), order) for t in given]), order)
    if error_if_nonfinite and not math.isfinite(float(total)):
        raise RuntimeError(
            f"The total norm of order {float(norm_type)} for gradients from `parameters` is non-finite, so it cannot "
            "be clipped. To disable this error and scale the gradients by the non-finite norm anyway, set "
            "`error_if_nonfinite=False`"
        )
    return total


def _root(tensors: list[Tensor], order: float) -> Tensor:
    """The norm of a finite order above 0, summed over the elements of all tensors at once."""
    kind = functools.reduce(dtypes.promote, [t.dtype for t in tensors])
    if order == 2.0:
        return total_of("norm", _square, tensors, then=((scalar.sqrt, None),), kind=kind)
    return total_of("norm", _power, tensors, (order,), then=((scalar.pow, 1.0 / order),), kind=kind)


def _square(t: Any) -> Any:
    return t * t


def _power(t: Any, order: Any) -> Any:
    return p.pow(p.abs(t), order)


def _norm(t: Tensor, order: float) -> Tensor:
    if math.isinf(order):
        return r_.amax(p.abs(t)) if order > 0 else r_.amin(p.abs(t))
    if order == 0.0:
        return r_.sum(p.ne(t, 0)).to(t.dtype)
    return p.pow(r_.sum(p.pow(p.abs(t), order)), 1.0 / order)


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0, error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:  # fmt: skip
    """Scale the gradients in place so that the norm of all together is at most max_norm; returns the norm before.

    Nothing waits for the device: the kernel that scales reads the norm. (Pascanu, Mikolov and Bengio, 2013)

    Shape: any of each; the result is 0-dim.
    Dtype: floating; the result has the gradients' common dtype.
    Raises:
        RuntimeError: the norm is not finite, and error_if_nonfinite.
    """
    grads = [t._grad for t in _listed(parameters) if t._grad is not None]
    total = get_total_norm(grads, norm_type, error_if_nonfinite)
    if grads:
        with modes.no_grad():
            update("clip_grad_norm_", _clipped, (0,), [(g,) for g in grads], (float(max_norm),), shared=(total,))
    return total


def _clipped(g: Any, norm: Any, most: Any) -> tuple:
    return (g * p.clamp_max(most / (norm + 1e-6), 1.0),)


def clip_grad_value_(
    parameters: Tensor | Iterable[Tensor], clip_value: float, foreach: bool | None = None
) -> None:
    """Limit each element of the gradients to [-clip_value, clip_value], in place.

    Shape: any of each; kept.
    Dtype: floating; kept.
    Raises: nothing.
    """
    with modes.no_grad():
        for t in _listed(parameters):
            if t._grad is not None:
                t._grad.clamp_(-float(clip_value), float(clip_value))


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements of `parameters` as one vector, through which gradients flow.

    Shape: any of each; the result is a vector of all elements.
    Dtype: their common dtype.
    Raises:
        ValueError: none are given.
    """
    return cat([t.reshape(-1) for t in parameters], 0)


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Write the elements of `vec` into `parameters`, in their order.

    Shape: `vec`: (N,), as many elements as the parameters have together.
    Dtype: kept; `vec` is converted.
    Raises:
        TypeError: `vec` is no Tensor.
        RuntimeError: `vec` has too few elements.
    """
    if not isinstance(vec, Tensor):
        raise TypeError(f"expected torch.Tensor, but got: {type(vec).__name__}")
    at = 0
    with modes.no_grad():
        for t in parameters:
            n = t.numel()
            t.copy_(vec[at : at + n].detach().reshape(tuple(t.shape)))
            at += n


__all__ = [
    "clip_grad_norm_", "clip_grad_value_", "get_total_norm", "parameters_to_vector", "vector_to_parameters",
]  # fmt: skip
