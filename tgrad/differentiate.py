"""What users call to go backward: `backward` and `grad`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

from tgrad import modes
from tgrad.aliasing import refresh
from tgrad.device import compute
from tgrad.edges import AccumulateGrad, GradientEdge
from tgrad.engine import Walk
from tgrad.kernels.launch import Launch, holders
from tgrad.layout import Layout, layout
from tgrad.ops import pointwise as p
from tgrad.ops.views import fill_launch
from tgrad.tensor import Tensor, empty

_warned_create_graph = False

Tensors = Tensor | Sequence[Tensor]


def backward(
    tensors: Tensors,
    grad_tensors: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Tensors | None = None,
) -> None:
    """Accumulate the gradients of `tensors` into the leaves' `.grad` (or into those of `inputs` alone).

    Args:
        tensors: roots.
        grad_tensors: the gradient of each root, of its shape; None for roots of one element means 1.
        retain_graph: keep what nodes saved; by default, if `create_graph`.
        create_graph: record the backward pass, so that gradients can be differentiated.
        inputs: accumulate into these only, and run only what leads to them.

    Shape: a gradient has its root's; `.grad` has the leaf's.
    Dtype: a gradient has its root's; `.grad` has the leaf's.
    Raises:
        RuntimeError: PyTorch's errors, such as a root without a graph, a gradient of another shape, a freed graph.
    """
    roots = _tuple(tensors)
    given = (None,) * len(roots) if grad_tensors is None else _tuple(grad_tensors)
    if len(given) < len(roots):
        raise RuntimeError(f"got {len(roots)} tensors and {len(given)} gradients")
    targets = None if inputs is None else _tuple(inputs)
    if targets == ():
        raise RuntimeError("`inputs` argument to `backward()` cannot be empty.")
    pairs = _seed(roots, given)
    retain = create_graph if retain_graph is None else retain_graph
    if create_graph:
        _warn_create_graph()
    if targets is None:
        Walk(retain, create_graph, None, accumulate=True).run(pairs)
        return
    for t in targets:
        t.retain_grad()
    Walk(retain, create_graph, {id(t.node or t) for t in targets}, accumulate=True).run(pairs)


def grad(
    outputs: Tensors,
    inputs: Any,
    grad_outputs: Tensor | Sequence[Tensor | None] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> Any:
    """The gradients of `outputs` with respect to `inputs`, as a tuple; `.grad` is not touched.

    Shape: a gradient has its input's.
    Dtype: a gradient has its input's.
    Raises:
        RuntimeError: a root or an input without history; a gradient of another shape; a freed graph; an input that the
            outputs do not depend on, unless `allow_unused`.
        ValueError: `materialize_grads` with `allow_unused=False`.
        NotImplementedError: `is_grads_batched`.
    """
    if isinstance(inputs, dict):
        names = list(inputs)
        found = grad(
            outputs, [inputs[n] for n in names], grad_outputs, retain_graph, create_graph, only_inputs, allow_unused,
            is_grads_batched, materialize_grads,
        )  # fmt: skip
        return dict(zip(names, found, strict=True))
    if is_grads_batched:
        raise NotImplementedError(
            "autograd.grad: is_grads_batched needs vmap, which tgrad does not have: loop over the batch"
        )
    if materialize_grads and allow_unused is False:
        raise ValueError(
            "Expected allow_unused to be True or not passed when materialize_grads=True, but got: allow_unused=False."
        )
    roots, targets = _tuple(outputs), _several(inputs)
    given = (None,) * len(roots) if grad_outputs is None else _tuple(grad_outputs)
    if not targets:
        raise RuntimeError("`inputs` argument to `grad()` cannot be empty.")
    if len(given) < len(roots):
        raise RuntimeError(f"got {len(roots)} tensors and {len(given)} gradients")
    pairs = _seed(roots, given)
    for t in _tuple(targets):
        if isinstance(t, Tensor) and not t._requires_grad:
            raise RuntimeError("One of the differentiated Tensors does not require grad")
    places = [id(_place(t)) for t in targets]
    retain = create_graph if retain_graph is None else retain_graph
    walk = Walk(retain, create_graph, set(places), accumulate=False)
    walk.run(pairs)
    results: list[Tensor | None] = []
    for i, t in enumerate(targets):
        g = walk.captured.get(places[i])
        if isinstance(g, list):  # of a node with several results, named by a GradientEdge
            g = g[t.output_nr]
        if g is None and materialize_grads:
            from tgrad.ops.creation import zeros_like

            g = zeros_like(t)
        if g is None and not allow_unused:
            raise RuntimeError(
                f"The differentiated Tensor at index {i} appears to not have been used in the graph. Set "
                "allow_unused=True if this is the desired behavior."
            )
        results.append(g)
    return tuple(results)


def _place(target: Tensor | GradientEdge) -> Any:
    """Where in the graph the gradient of `target` is met: a node, or a leaf."""
    if isinstance(target, Tensor):
        return target.node or target
    return target.node.variable if isinstance(target.node, AccumulateGrad) else target.node


def _several(tensors: Any) -> tuple:
    return (tensors,) if isinstance(tensors, (Tensor, GradientEdge)) else tuple(tensors)


def _tuple(tensors: Any) -> tuple:
    """One tensor or several, as a tuple; the histories of views are brought up to date."""
    several = _several(tensors)
    for t in several:
        if isinstance(t, Tensor) and t.alias is not None:
            refresh(t)
    return several


def _one(root: Tensor) -> Tensor:
    """The gradient of a root of one element: 1."""
    if root.layout.contiguous and root.layout.device is compute:  # as `ones_like`, decided once
        row_major, fill = _filled(root.layout)
        t = empty(row_major, inference=False)
        fill(t.ptr, 1)
        return t
    from tgrad.ops.creation import ones_like

    before = modes.current()
    modes.set_mode(modes.NO_GRAD)
    try:
        return ones_like(root)
    finally:
        modes.set_mode(before)


@functools.cache
def _filled(like: Layout) -> tuple[Layout, Launch]:
    row_major = layout(like.dtype, tuple(like.shape), None, compute)
    return row_major, fill_launch("fill", row_major)


holders.append(_filled.cache_clear)


def _seed(roots: tuple[Tensor, ...], given: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
    pairs = []
    for i, (t, g) in enumerate(zip(roots, given, strict=False)):
        if not t._requires_grad:
            raise RuntimeError(f"element {i} of tensors does not require grad and does not have a grad_fn")
        if g is None:
            if t.numel() != 1:
                raise RuntimeError("grad can be implicitly created only for scalar outputs")
            g = _one(t)
        elif not isinstance(g, Tensor):
            raise TypeError(f"gradients can be either Tensors or None, but got {type(g).__name__}")
        elif g.layout.shape != t.layout.shape:
            raise RuntimeError(
                f"Mismatch in shape: grad_output[{i}] has a shape of {g.shape} and output[{i}] has a shape of "
                f"{t.shape}."
            )
        if g.layout.dtype is not t.layout.dtype:
            g = p.cast(t.layout.dtype)(g)
        pairs.append((t, g))
    return pairs


def _warn_create_graph() -> None:
    global _warned_create_graph
    if not _warned_create_graph:
        _warned_create_graph = True
        warnings.warn(
            "Using backward() with create_graph=True will create a reference cycle between the parameter and its "
            "gradient which can cause a memory leak. We recommend using autograd.grad when creating the graph to "
            "avoid this. If you have to use this function, make sure to reset the .grad fields of your parameters "
            "to None after use to break the cycle and avoid the leak.",
            UserWarning,
            stacklevel=3,
        )
