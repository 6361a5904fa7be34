"""Products with Jacobians and Hessians, and those matrices themselves, of functions of tensors.

Everything is made of backward passes: `jvp` and `hvp` differentiate a backward with respect to its incoming gradient
(the double-backward trick). There is no vmap: `vectorize=True` and forward mode are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tgrad.differentiate import grad
from tgrad.function import Function
from tgrad.inplace import write
from tgrad.modes import enable_grad, is_grad_enabled, set_grad_enabled
from tgrad.ops import pointwise as p, views
from tgrad.ops.creation import empty, zeros_like
from tgrad.tensor import Tensor

__all__ = ["hessian", "hvp", "jacobian", "jvp", "vhp", "vjp"]

Tensors = tuple[Tensor, ...]
Maybe = tuple[Tensor | None, ...]


def vjp(func: Callable, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple:
    """(func(*inputs), v times its Jacobian), the product in the structure of `inputs`.

    Args:
        inputs: a tensor or a tuple of them.
        v: of the shape of func's result; None for a result of one element means 1.
        create_graph: make the results differentiable.
        strict: raise where a result does not depend on an input; otherwise that gives zeros.

    Shape: v: that of the outputs; the product: that of the inputs.
    Dtype: floating; the product has the inputs'.
    Raises:
        RuntimeError: v does not fit; in strict mode, an independence.
        TypeError: something is no tensor.
    """
    with enable_grad():
        several, xs = _as_tuple(inputs, "inputs", "vjp")
        xs = _own(xs, create_graph, True)
        several_out, outputs = _as_tuple(func(*xs), "outputs of the user-provided function", "vjp")
        _require_grad(outputs, "outputs", strict)
        if v is not None:
            v = _vector(v, outputs, several_out, create_graph, "vjp")
        elif len(outputs) != 1 or outputs[0].numel() != 1:
            raise RuntimeError(
                "The vector v can only be None if the user-provided function returns a single Tensor with a single "
                "element."
            )
    with set_grad_enabled(create_graph or is_grad_enabled()):
        found = _grad(outputs, xs, v, create_graph=create_graph)
        product = _zeros_for_none(found, xs, strict, create_graph, "back")
    return _result(outputs, create_graph, several_out), _result(product, create_graph, several)


def jvp(func: Callable, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple:
    """(func(*inputs), its Jacobian times v), the product in the structure of func's result.

    Args:
        inputs: a tensor or a tuple of them.
        v: of the shape of the inputs; None for an input of one element means 1.
        create_graph, strict: as in `vjp`.

    Shape: v: that of the inputs; the product: that of the outputs.
    Dtype: floating; the product has the outputs'.
    Raises:
        RuntimeError: v does not fit; in strict mode, an independence.
        TypeError: something is no tensor.
    """
    with enable_grad():
        several, xs = _as_tuple(inputs, "inputs", "jvp")
        xs = _own(xs, create_graph, True)
        v = _vector_of_inputs(v, xs, several, create_graph, "jvp")
        several_out, outputs = _as_tuple(func(*xs), "outputs of the user-provided function", "jvp")
        _require_grad(outputs, "outputs", strict)
        weights = tuple(zeros_like(out, requires_grad=True) for out in outputs)
        pulled = _grad(outputs, xs, weights, create_graph=True)
        _require_grad(pulled, "grad_inputs", strict)
    with set_grad_enabled(create_graph or is_grad_enabled()):
        found = _grad(pulled, weights, v, create_graph=create_graph)
        product = _zeros_for_none(found, outputs, strict, create_graph, "back_trick")
    return _result(outputs, create_graph, several_out), _result(product, create_graph, several_out)


def jacobian(
    func: Callable, inputs: Any, create_graph: bool = False, strict: bool = False, vectorize: bool = False,
    strategy: str = "reverse-mode",
) -> Any:  # fmt: skip
    """The Jacobian of func: for each output and input (tuples where those are) a tensor of shape output + input.

    One backward for each element of the outputs.

    Args:
        inputs: a tensor or a tuple of them.
        create_graph, strict: as in `vjp`.
        vectorize, strategy: only False and "reverse-mode".

    Shape: of an output (*M) and an input (*N): (*M, *N).
    Dtype: floating; a part has its output's.
    Raises:
        NotImplementedError: vectorize or forward mode.
        RuntimeError: in strict mode, an independence.
    """
    _refuse(strategy, vectorize, "strategy")
    with enable_grad():
        several, xs = _as_tuple(inputs, "inputs", "jacobian")
        xs = _own(xs, create_graph, True)
        several_out, outputs = _as_tuple(func(*xs), "outputs of the user-provided function", "jacobian")
        _require_grad(outputs, "outputs", strict)
        rows = tuple(_rows(i, out, xs, create_graph, strict) for i, out in enumerate(outputs))
        if not create_graph:
            rows = tuple(tuple(t.detach() for t in row) for row in rows)
    found = [row if several else row[0] for row in rows]
    return tuple(found) if several_out else found[0]


def _rows(i: int, out: Tensor, xs: Tensors, create_graph: bool, strict: bool) -> Tensors:
    """The Jacobian of one output with respect to each input."""
    rows: list[list[Tensor]] = [[] for _ in xs]
    flat = views.reshape(out, -1)
    for j in range(out.numel()):
        found = _grad((views.select(flat, 0, j),), xs, None, create_graph=create_graph, retain_graph=True)
        for k, (g, x) in enumerate(zip(found, xs, strict=True)):
            if g is None and strict:
                raise RuntimeError(
                    f"Output {i} of the user-provided function is independent of input {k}. This is not allowed in "
                    "strict mode."
                )
            if g is not None and strict and create_graph and not g.requires_grad:
                raise RuntimeError(
                    f"The jacobian of the user-provided function is independent of input {i}. This is not allowed in "
                    "strict mode when create_graph=True."
                )
            rows[k].append(zeros_like(x) if g is None else g)
    return tuple(_stacked(row, tuple(out.shape), x) for row, x in zip(rows, xs, strict=True))


def hessian(
    func: Callable, inputs: Any, create_graph: bool = False, strict: bool = False, vectorize: bool = False,
    outer_jacobian_strategy: str = "reverse-mode",
) -> Any:  # fmt: skip
    """The Hessian of func, whose result has one element: a tensor of shape input + input for each pair of inputs.

    Args:
        inputs: a tensor or a tuple of them.
        create_graph, strict: as in `vjp`.
        vectorize, outer_jacobian_strategy: only False and "reverse-mode".

    Shape: of inputs (*M) and (*N): (*M, *N).
    Dtype: floating; a part has the inputs'.
    Raises:
        NotImplementedError: vectorize or forward mode.
        RuntimeError: func does not return a single element; in strict mode, an independence.
    """
    several, xs = _as_tuple(inputs, "inputs", "hessian")
    _refuse(outer_jacobian_strategy, vectorize, "outer_jacobian_strategy")

    def single(*args: Tensor) -> Tensor:
        return views.reshape(_single(func(*args), "hessian", strict), ())

    def first(*args: Tensor) -> Any:
        found = jacobian(single, args, create_graph=True)
        _require_grad(found, "jacobian", strict)
        return found

    found = jacobian(first, xs, create_graph=create_graph, strict=strict)
    return found if several else found[0][0]


def vhp(func: Callable, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple:
    """(func(*inputs), v times its Hessian); func's result has one element. Arguments as of `jvp`.

    Shape: v and the product: that of the inputs; the output has one element.
    Dtype: floating; the product has the inputs'.
    Raises:
        RuntimeError: func does not return a single element; v does not fit; in strict mode, an independence.
        TypeError: inputs or outputs are no tensors.
    """
    with enable_grad():
        several, xs, v, out = _prepared(func, inputs, v, create_graph, strict, "vhp")
        first = _grad((out,), xs, None, create_graph=True)
        _require_grad(first, "jacobian", strict)
    with set_grad_enabled(create_graph or is_grad_enabled()):
        found = _grad(first, xs, v, create_graph=create_graph)
        product = _zeros_for_none(found, xs, strict, create_graph, "double_back")
    return _result((out,), create_graph, False), _result(product, create_graph, several)


def hvp(func: Callable, inputs: Any, v: Any = None, create_graph: bool = False, strict: bool = False) -> tuple:
    """(func(*inputs), its Hessian times v); slower than `vhp`, which is the same for twice differentiable functions.

    Arguments as of `jvp`.

    Shape: v and the product: that of the inputs; the output has one element.
    Dtype: floating; the product has the inputs'.
    Raises:
        RuntimeError: func does not return a single element; v does not fit; in strict mode, an independence.
        TypeError: inputs or outputs are no tensors.
    """
    with enable_grad():
        several, xs, v, out = _prepared(func, inputs, v, create_graph, strict, "hvp")
        first = _grad((out,), xs, None, create_graph=True)
        _require_grad(first, "jacobian", strict)
        weights = tuple(zeros_like(x, requires_grad=True) for x in xs)
        second = _grad(first, xs, weights, create_graph=True)
        _require_grad(first, "hessian", strict)
    with set_grad_enabled(create_graph or is_grad_enabled()):
        found = _grad(second, weights, v, create_graph=create_graph)
        product = _zeros_for_none(found, xs, strict, create_graph, "double_back_trick")
    return _result((out,), create_graph, False), _result(product, create_graph, several)


# --- what they share --------------------------------------------------------------------------------------------------
def _prepared(func: Callable, inputs: Any, v: Any, create_graph: bool, strict: bool, name: str) -> tuple:
    several, xs = _as_tuple(inputs, "inputs", name)
    xs = _own(xs, create_graph, True)
    v = _vector_of_inputs(v, xs, several, create_graph, name)
    return several, xs, v, _single(func(*xs), name, strict)


def _single(returned: Any, name: str, strict: bool) -> Tensor:
    several, outputs = _as_tuple(returned, "outputs of the user-provided function", name)
    _require_grad(outputs, "outputs", strict)
    if several:
        raise RuntimeError(f"The function given to {name} should return a single Tensor")
    if outputs[0].numel() != 1:
        raise RuntimeError(f"The Tensor returned by the function given to {name} should contain a single element")
    return outputs[0]


def _refuse(strategy: str, vectorize: bool, argument: str) -> None:
    if strategy not in ("forward-mode", "reverse-mode"):
        raise AssertionError('Expected strategy to be either "forward-mode" or "reverse-mode".')
    if strategy == "forward-mode":
        raise NotImplementedError(f'{argument}="forward-mode": tgrad has no forward mode, use "reverse-mode"')
    if vectorize:
        raise NotImplementedError("vectorize=True needs vmap, which tgrad does not have: use vectorize=False")


def _as_tuple(value: Any, what: str, name: str) -> tuple[bool, Tensors]:
    """(whether it is a tuple, it as one)."""
    several = isinstance(value, tuple)
    values = value if several else (value,)
    for i, t in enumerate(values):
        if not isinstance(t, Tensor):
            which = f"the value at index {i}" if several else f"the given {what}"
            raise TypeError(
                f"The {what} given to {name} must be either a Tensor or a tuple of Tensors but {which} has type "
                f"{type(t)}."
            )
    return several, values


def _own(tensors: Tensors, create_graph: bool, requires_grad: bool) -> Tensors:
    """New objects, so that the gradient with respect to them is of this function alone."""
    return tuple(
        views.view(t, *t.shape) if create_graph and t.requires_grad else t.detach().requires_grad_(requires_grad)
        for t in tensors
    )


def _vector_of_inputs(v: Any, xs: Tensors, several: bool, create_graph: bool, name: str) -> Tensors | None:
    if v is not None:
        return _vector(v, xs, several, create_graph, name)
    if len(xs) != 1 or xs[0].numel() != 1:
        raise RuntimeError(
            "The vector v can only be None if the input to the user-provided function is a single Tensor with a "
            "single element."
        )
    return None


def _vector(v: Any, like: Tensors, several: bool, create_graph: bool, name: str) -> Tensors:
    vs = _own(_as_tuple(v, "v", name)[1], create_graph, False)
    if len(vs) != len(like):
        if several:
            raise RuntimeError(f"v is a tuple of invalid length: should be {len(like)} but got {len(vs)}.")
        raise RuntimeError("The given v should contain a single Tensor.")
    for i, (a, b) in enumerate(zip(vs, like, strict=True)):
        if a.shape != b.shape:
            entry = f"Entry {i} in " if several else ""
            raise RuntimeError(f"{entry}v has invalid size: should be {b.shape} but got {a.shape}.")
    return vs


def _grad(
    outputs: Sequence[Tensor | None], inputs: Tensors, weights: Tensors | None, *, create_graph: bool,
    retain_graph: bool | None = None,
) -> Maybe:  # fmt: skip
    """autograd.grad with what requires grad; None for inputs without a gradient."""
    given = weights or (None,) * len(outputs)
    pairs = [(o, w) for o, w in zip(outputs, given, strict=True) if o is not None and o.requires_grad]
    if not pairs:
        return (None,) * len(inputs)
    roots, seeds = zip(*pairs, strict=True)
    return grad(roots, inputs, seeds, retain_graph, create_graph, allow_unused=True)


_INDEPENDENT = {
    "hessian": "The hessian of the user-provided function with respect to input {i} is independent of the input. This "
    "is not allowed in strict mode. You should ensure that your function is thrice differentiable and that the "
    "hessian depends on the inputs.",
    "jacobian": "While computing the hessian, found that the jacobian of the user-provided function with respect to "
    "input {i} is independent of the input. This is not allowed in strict mode. You should ensure that your function "
    "is twice differentiable and that the jacobian depends on the inputs (this would be violated by a linear function "
    "for example).",
    "grad_inputs": "The gradient with respect to input {i} is independent of the inputs of the user-provided "
    "function. This is not allowed in strict mode.",
    "outputs": "Output {i} of the user-provided function does not require gradients. The outputs must be computed in "
    "a differentiable manner from the input when running in strict mode.",
}
_MISSING = {
    "back": "The output of the user-provided function is independent of input {i}.",
    "back_trick": "The gradient with respect to the input is independent of entry {i} in the grad_outputs when using "
    "the double backward trick to compute forward mode gradients.",
    "double_back": "The jacobian of the user-provided function is independent of input {i}.",
    "double_back_trick": "The hessian of the user-provided function is independent of entry {i} in the grad_jacobian.",
}


def _require_grad(tensors: Any, what: str, strict: bool) -> None:
    if not strict:
        return
    for i, t in enumerate(tensors):
        if t is None:
            raise RuntimeError(
                f"The output of the user-provided function is independent of input {i}. This is not allowed in "
                "strict mode."
            )
        if not t.requires_grad:
            raise RuntimeError(_INDEPENDENT[what].format(i=i))


def _zeros_for_none(found: Maybe, like: Tensors, strict: bool, create_graph: bool, stage: str) -> Tensors:
    results = []
    for i, (g, t) in enumerate(zip(found, like, strict=True)):
        if g is None and strict:
            raise RuntimeError(_MISSING[stage].format(i=i) + " This is not allowed in strict mode.")
        if g is not None and strict and create_graph and not g.requires_grad:
            what = "hessian" if "double" in stage else "jacobian"
            raise RuntimeError(
                f"The {what} of the user-provided function is independent of input {i}. This is not allowed in strict "
                "mode when create_graph=True."
            )
        results.append(zeros_like(t) if g is None else g)
    return tuple(results)


def _result(tensors: Tensors, create_graph: bool, several: bool) -> Any:
    kept = tensors if create_graph else tuple(t.detach() for t in tensors)
    return kept if several else kept[0]


class _Stack(Function):
    """Tensors of one shape, one after the other along a new first dimension."""

    @staticmethod
    def forward(ctx: Any, *rows: Tensor) -> Tensor:
        out = empty(len(rows), *rows[0].shape, dtype=rows[0].dtype)
        for i, row in enumerate(rows):
            write(p.copy, views.select(out, 0, i), (row,))
        return out

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensors:
        return tuple(views.select(g, 0, i) for i in range(g.shape[0]))


def _stacked(rows: list[Tensor], shape: tuple[int, ...], x: Tensor) -> Tensor:
    whole = (*shape, *x.shape)
    return views.view(_Stack.apply(*rows), *whole) if rows else empty(*whole, dtype=x.dtype)
