"""Gradients against central differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from tgrad.differentiate import grad
from tgrad.dtypes import float64
from tgrad.modes import enable_grad
from tgrad.ops.creation import randn, tensor, zeros, zeros_like
from tgrad.ops.views import reshape, transpose
from tgrad.tensor import Tensor

__all__ = ["GradcheckError", "gradcheck", "gradgradcheck"]


class GradcheckError(RuntimeError):
    """A gradient differs from the differences, or a backward breaks a rule."""


def gradcheck(
    func: Callable,
    inputs: Any,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_batched_forward_grad: bool = False,
    check_forward_ad: bool = False,
    check_backward_ad: bool = True,
    fast_mode: bool = False,
    masked: bool | None = None,
) -> bool:
    """Compare the Jacobian of func by backward with the one by central differences, element by element.

    Args:
        func: of tensors, returns a tensor or a tuple with tensors.
        inputs: a tensor or a tuple; the check is of those that require grad, which should be float64. Their elements
            are moved by eps in place and put back.
        eps: the step of the differences.
        atol, rtol: |numerical - analytical| <= atol + rtol * |numerical|.
        raise_exception: raise rather than return False.
        nondet_tol: how much two backward passes may differ.
        check_undefined_grad: with several outputs, check that backward takes gradients for some of them only.
        check_grad_dtypes: check that gradients have the dtype of their input.
        check_batched_grad, check_batched_forward_grad, check_forward_ad: there is no vmap and no forward mode: refused.
        check_backward_ad: must be True.
        fast_mode: accepted; the whole Jacobian is compared all the same.
        masked: accepted; there are no sparse tensors.

    Returns:
        Whether they agree.

    Raises:
        GradcheckError: they do not.
        ValueError: no input requires grad.
        AssertionError: check_backward_ad is False.
        NotImplementedError: see above.
    """
    if not (check_forward_ad or check_backward_ad):
        raise AssertionError("Expected at least one of check_forward_ad or check_backward_ad to be True")
    if check_batched_grad or check_batched_forward_grad:
        raise NotImplementedError("gradcheck: batched gradients need vmap, which tgrad does not have")
    if check_forward_ad:
        raise NotImplementedError("gradcheck: tgrad has no forward mode to check")
    args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    _check_inputs(args)
    try:
        with enable_grad():
            check = _Check(func, args, eps, atol, rtol)
            check.jacobians(nondet_tol)
            check.grad_outputs(check_grad_dtypes)
            if check_undefined_grad:
                check.undefined()
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def gradgradcheck(
    func: Callable,
    inputs: Any,
    grad_outputs: Any = None,
    *,
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    gen_non_contig_grad_outputs: bool = False,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    check_undefined_grad: bool = True,
    check_grad_dtypes: bool = False,
    check_batched_grad: bool = False,
    check_fwd_over_rev: bool = False,
    check_rev_over_rev: bool = True,
    fast_mode: bool = False,
    masked: bool = False,
) -> bool:
    """Check the gradient of func, as a function of the inputs and of the gradients of its outputs, with `gradcheck`.

    Args:
        grad_outputs: a tensor or tuple, one for each differentiable output; None: random ones.
        gen_non_contig_grad_outputs: make the random ones non-contiguous.
        check_fwd_over_rev: there is no forward mode: refused.
        check_rev_over_rev: must be True.

    The others, the result and the errors are those of `tgrad.autograd.gradcheck`.

    Raises:
        AssertionError: check_rev_over_rev is False.
        NotImplementedError: check_fwd_over_rev, or as of `tgrad.autograd.gradcheck`.
        GradcheckError, ValueError: as of `tgrad.autograd.gradcheck`.
    """
    if not (check_fwd_over_rev or check_rev_over_rev):
        raise AssertionError("Expected at least one of check_fwd_over_rev or check_rev_over_rev to be True")
    if check_fwd_over_rev:
        raise NotImplementedError("gradgradcheck: tgrad has no forward mode to check")
    args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    _check_inputs(args)
    if grad_outputs is None:
        outputs = _differentiable(func(*args))
        seeds = tuple(_random_like(o, gen_non_contig_grad_outputs) for o in outputs)
    else:
        seeds = tuple(grad_outputs) if isinstance(grad_outputs, (tuple, list)) else (grad_outputs,)
    count = len(seeds)

    def first_derivative(*both: Any) -> tuple[Tensor, ...]:
        args = both[:-count] if count else both
        wanted = [a for a in args if _wants(a)]
        outputs = _differentiable(func(*args))
        found = grad(outputs, wanted, both[len(args) :], create_graph=True, allow_unused=True)
        return tuple(g for g in found if g is not None)

    return gradcheck(
        first_derivative, args + seeds, eps=eps, atol=atol, rtol=rtol, raise_exception=raise_exception,
        nondet_tol=nondet_tol, check_undefined_grad=check_undefined_grad, check_grad_dtypes=check_grad_dtypes,
        check_batched_grad=check_batched_grad, fast_mode=fast_mode, masked=masked,
    )  # fmt: skip


def _wants(t: Any) -> bool:
    return isinstance(t, Tensor) and t.requires_grad


def _check_inputs(args: tuple) -> None:
    for i, t in enumerate(args):
        if not _wants(t):
            continue
        if t.dtype is not float64:
            warnings.warn(
                f"Input #{i} requires gradient and is not a double precision floating point or complex. This check "
                "will likely fail if all the inputs are not of double precision floating point or complex. ",
                UserWarning,
                stacklevel=3,
            )
        if any(stride == 0 and size > 1 for stride, size in zip(t.stride(), t.shape, strict=True)):
            raise RuntimeError(
                f"The {i}th input has a dimension with stride 0. gradcheck only supports inputs that are "
                "non-overlapping to be able to compute the numerical gradients correctly. You should call "
                ".contiguous on the input before passing it to gradcheck."
            )
        if t.is_leaf is False:
            t.retain_grad()
    if not any(map(_wants, args)):
        raise ValueError(
            "gradcheck expects at least one input tensor to require gradient, but none of them have requires_grad=True."
        )


def _differentiable(returned: Any) -> tuple[Tensor, ...]:
    outputs = returned if isinstance(returned, (tuple, list)) else (returned,)
    return tuple(o for o in outputs if _wants(o))


def _random_like(out: Tensor, non_contiguous: bool) -> Tensor:
    if non_contiguous and out.ndim > 1:
        swapped = (*out.shape[:-2], out.shape[-1], out.shape[-2])
        return transpose(randn(*swapped, dtype=out.dtype), -2, -1).requires_grad_()
    return randn(*out.shape, dtype=out.dtype, requires_grad=True)


class _Check:
    """The checks of one function at one point.

    Attributes:
        wanted: (index, tensor) of the inputs that require grad.
    """

    def __init__(self, func: Callable, args: tuple, eps: float, atol: float, rtol: float) -> None:
        self.func, self.args, self.eps, self.atol, self.rtol = func, args, eps, atol, rtol
        self.wanted = [(i, t) for i, t in enumerate(args) if _wants(t)]

    def outputs(self) -> tuple[Tensor, ...]:
        return _differentiable(self.func(*self.args))

    def values(self) -> list[np.ndarray]:
        """The outputs of floating dtype, as flat arrays in float64."""
        returned = self.func(*self.args)
        outputs = returned if isinstance(returned, (tuple, list)) else (returned,)
        floats = [o for o in outputs if isinstance(o, Tensor) and o.dtype.is_floating_point]
        return [o._values().astype(np.float64).ravel() for o in floats]

    def numerical(self, t: Tensor) -> list[np.ndarray]:
        """For each floating output its Jacobian by central differences, a row for each element of t."""
        rows: list[list[np.ndarray]] = []
        for element in np.ndindex(*t.shape):
            part = t.data[element]
            at = part.item()
            ends = []
            try:
                for step in (-self.eps, self.eps):
                    part.copy_(tensor(at + step, dtype=t.dtype))
                    ends.append(self.values())
            finally:
                part.copy_(tensor(at, dtype=t.dtype))
            rows.append([(b - a) / (2 * self.eps) for a, b in zip(*ends, strict=True)])
        return [np.stack(column) for column in zip(*rows, strict=True)]

    def analytical(self, out: Tensor) -> list[np.ndarray]:
        """The Jacobian of an output by backward, for each wanted input, laid out as `numerical`."""
        tensors = [t for _, t in self.wanted]
        columns: list[list[np.ndarray]] = [[] for _ in tensors]
        for k in range(out.numel()):
            seed = zeros(out.numel(), dtype=out.dtype)
            seed[k] = 1.0
            found = grad(out, tensors, reshape(seed, tuple(out.shape)), retain_graph=True, allow_unused=True)
            for column, t, g in zip(columns, tensors, found, strict=True):
                column.append(np.zeros(t.numel()) if g is None else g._values().astype(np.float64).ravel())
        return [np.stack(c, axis=1) if c else np.zeros((t.numel(), 0)) for c, t in zip(columns, tensors, strict=True)]

    def jacobians(self, nondet_tol: float) -> None:
        by_input = [self.numerical(t) for _, t in self.wanted]
        returned = self.func(*self.args)
        several = returned if isinstance(returned, (tuple, list)) else (returned,)
        floats = [o for o in several if isinstance(o, Tensor) and o.dtype.is_floating_point]
        place = -1
        for k, out in enumerate(floats):
            if not out.requires_grad:
                if any(np.abs(columns[k]).max(initial=0.0) > 1e-12 for columns in by_input if columns):
                    raise GradcheckError("Numerical gradient for function expected to be zero")
                continue
            place += 1
            first, second = self.analytical(out), self.analytical(out)
            for j, ((_, t), a, again) in enumerate(zip(self.wanted, first, second, strict=True)):
                numerical = by_input[j][k] if by_input[j] else np.zeros((t.numel(), out.numel()))
                self._compare(place, j, numerical, a)
                if not np.allclose(a, again, rtol=0.0, atol=nondet_tol, equal_nan=True):
                    raise GradcheckError(
                        "Backward is not reentrant, i.e., running backward with same input and grad_output multiple "
                        "times gives different values, although analytical gradient matches numerical gradient.The "
                        f"tolerance for nondeterminism was {nondet_tol}."
                    )

    def _compare(self, i: int, j: int, numerical: np.ndarray, analytical: np.ndarray) -> None:
        if not np.allclose(analytical, numerical, rtol=self.rtol, atol=self.atol, equal_nan=True):
            raise GradcheckError(
                f"Jacobian mismatch for output {i} with respect to input {j},\nnumerical:{numerical}\nanalytical:"
                f"{analytical}\n"
            )

    def grad_outputs(self, check_dtypes: bool) -> None:
        """Gradients of zero give zero, in the shape (and dtype) of the inputs."""
        outputs = self.outputs()
        if not outputs:
            return
        tensors = [t for _, t in self.wanted]
        found = grad(outputs, tensors, [zeros_like(o) for o in outputs], allow_unused=True)
        for t, g in zip(tensors, found, strict=True):
            if g is None:
                continue
            if (g._values() != 0).any():
                raise GradcheckError("backward not multiplied by grad_output")
            if check_dtypes and g.dtype is not t.dtype:
                raise GradcheckError("grad is incorrect type")
            if g.shape != t.shape:
                raise GradcheckError("grad is incorrect size")

    def undefined(self) -> None:
        """Where there are several outputs, backward takes the gradient of one and none for the others."""
        count = len(self.outputs())
        tensors = [t for _, t in self.wanted]
        for k in range(count if count > 1 else 0):
            out = self.outputs()[k]
            try:
                found = grad(out, tensors, zeros_like(out), allow_unused=True)
                fine = all(g is None or not (g._values() != 0).any() for g in found)
            except Exception as error:
                raise GradcheckError(_UNDEFINED) from error
            if not fine:
                raise GradcheckError(_UNDEFINED)


_UNDEFINED = (
    "Expected backward function to handle undefined output grads: a gradient for one output and none for the others "
    "must give None or zero where nothing is passed on"
)
