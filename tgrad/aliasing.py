"""Views and in-place writes: how a write through a view reaches its base's history, and the other way round.

A view is (shape, strides, offset) relative to its base, so its history can always be made anew from the base's. That is
done when the view is next asked for it, if its version counter has moved since it was made.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tgrad import dispatch, graph, modes
from tgrad.device import compute
from tgrad.kernels.launch import Launch
from tgrad.layout import Layout, layout, may_overlap_itself, numel
from tgrad.op import Kernel, Op, View, pointwise_launch
from tgrad.ops.reduce import sum_op
from tgrad.ops.views import COPY, fill_launch
from tgrad.rules import FormulaRule
from tgrad.tensor import DEFAULT, IN_FUNCTION, INFERENCE, MULTI_OUTPUT, NO_GRAD, Tensor

Geometry = tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides, offset from the base's first element


# --- a view as one op of its base
# --------------------------------------------------------------------------------------
def _build_as_strided(x: Layout, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Geometry:
    return shape, strides, offset


def _as_strided_grad(
    g: Tensor, *, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, x_shape: tuple, x_strides: tuple
) -> Tensor:
    moving = [(n, s) for n, s in zip(shape, strides, strict=True) if s]
    within = offset >= 0 and offset + _reach(shape, strides) <= _reach(x_shape, x_strides)
    if not within or may_overlap_itself([n for n, _ in moving], [s for _, s in moving]):
        return _added_up(g, shape, strides, offset, x_shape, x_strides)
    repeated = tuple(d for d, (n, s) in enumerate(zip(shape, strides, strict=True)) if s == 0 and n > 1)
    if repeated:
        g = sum_op(g, dims=repeated, keepdim=True, out_dtype=g.dtype)
    return _embed_op(g, shape=x_shape, strides=x_strides, part=(tuple(g.shape), strides, offset))


def _reach(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    return 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) if numel(shape) else 0


def _added_up(g: Tensor, shape: tuple, strides: tuple, offset: int, x_shape: tuple, x_strides: tuple) -> Tensor:
    """The gradient through a view whose elements overlap, or lie outside its base: what is for one place is added up,
    what is for none is dropped.
    """
    from tgrad.ops.creation import tensor
    from tgrad.ops.places import spread_op

    extent = _reach(x_shape, x_strides)
    places = np.full(shape, offset, np.int64)
    for d, s in enumerate(strides):
        places += (np.arange(shape[d]) * s).reshape(-1, *(1,) * (len(shape) - 1 - d))
    places[(places < 0) | (places >= extent)] = extent
    memory = spread_op(g, tensor(places, device=compute), dims=(0,), at=0, shape=(extent + 1,))
    return as_strided_op(memory, shape=x_shape, strides=x_strides, offset=0)


as_strided_op = View(
    "as_strided", _build_as_strided, _as_strided_grad, settings=("shape", "strides", "offset"), grad_name="AsStrided"
)


def _build_embed(g: Tensor, shape: tuple, strides: tuple, part: Geometry) -> tuple[list[Layout], Launch]:
    """Zeros with g in one part of them."""
    out = layout(g.dtype, shape, strides, compute)
    zeros, copy, skip = fill_launch("zeros", out), *_copy_launch(out, part, g.layout)

    def launch(to: int, source: int) -> None:
        zeros(to, 0)
        copy(to + skip, source)

    return [out], launch


def _copy_launch(out: Layout, part: Geometry, source: Layout) -> tuple[Launch, int]:
    shape, strides, offset = part
    skip = offset * out.dtype.itemsize
    region = layout(out.dtype, shape, strides, compute, skip % 16 == 0)
    return pointwise_launch("as_strided_backward", COPY.lower(((source.dtype, 2),), [None]), [region], [source]), skip


_embed_op = Kernel(
    "as_strided_backward", ("g",), _build_embed,
    {"g": lambda g, *, shape, strides, part: _part(g, strides, part)}, settings=("shape", "strides", "part"),
)  # fmt: skip


def _build_in_layout(x: Tensor, strides: tuple[int, ...]) -> tuple[list[Layout], Launch]:
    out = layout(x.dtype, tuple(x.shape), strides, compute)
    return [out], pointwise_launch("clone", COPY.lower(((x.dtype, 2),), [None]), [out], [x.layout])


_in_layout_op = Kernel("in_layout", ("x",), _build_in_layout, {"x": lambda g: g}, settings=("strides",))


def _part(g: Tensor, strides: tuple[int, ...], part: Geometry) -> Tensor:
    """The part of g, taken as if g were strided as the base is."""
    if g.layout.strides != strides:
        g = _in_layout_op(g, strides=strides)
    shape, part_strides, offset = part
    return as_strided_op(g, shape=shape, strides=part_strides, offset=offset)


def _build_without(g: Tensor, strides: tuple[int, ...], part: Geometry) -> tuple[list[Layout], Launch]:
    """g with zeros in one part of it."""
    out = layout(g.dtype, tuple(g.shape), strides, compute)
    copy = pointwise_launch("clone", COPY.lower(((g.dtype, 2),), [None]), [out], [g.layout])
    shape, part_strides, offset = part
    skip = offset * g.dtype.itemsize
    zeros = fill_launch("zeros", layout(g.dtype, shape, part_strides, compute, skip % 16 == 0))

    def launch(to: int, source: int) -> None:
        copy(to, source)
        zeros(to + skip, 0)

    return [out], launch


_without_op: Kernel = Kernel(
    "without_part", ("g",), _build_without,
    {"g": lambda g, *, strides, part: _without_op(g, strides=strides, part=part)}, settings=("strides", "part"),
)  # fmt: skip


# --- histories ----------------------------------------------------------------------------------------------------
_COPY_SLICES = Op(
    "copy_slices", ("base", "part"), {"base": lambda g: g, "part": lambda g: g},
    node_name="torch::autograd::CopySlices",
)  # fmt: skip


def geometry(view: Tensor) -> Geometry:
    """A view as (shape, strides, offset in elements) relative to its base."""
    assert view.alias is not None
    offset = (view.ptr - view.alias.base.ptr) // view.layout.dtype.itemsize
    return tuple(view.layout.shape), view.layout.strides, offset


def refresh(t: Tensor) -> None:
    """Bring a view's history up to date with its base's.

    Raises:
        RuntimeError: it was made without grad, in inference mode, or as one of several results, and its base was
            written.
    """
    alias = t.alias
    if alias is None or t.version is None or alias.seen == t.version.value:
        return
    base = alias.base
    if t.node is None and not base._requires_grad:
        return
    if alias.creation != DEFAULT:
        raise RuntimeError(_refusal(t, "its base or another view of its base has been modified inplace"))
    _remake(t)


def _remake(t: Tensor) -> None:
    assert t.alias is not None and t.version is not None
    shape, strides, offset = geometry(t)
    before = modes.current()
    modes.set_mode(modes.GRAD)
    try:
        fresh = as_strided_op(t.alias.base, shape=shape, strides=strides, offset=offset)
    finally:
        modes.set_mode(before)
    old = t.node
    t.node, t._requires_grad = fresh.node, fresh._requires_grad
    t.alias.seen = t.version.value
    _move_retained(old, t.node)


def wants_grad(t: Any) -> bool:
    """`t.requires_grad` as checks see it: a view requires grad if its base does."""
    return isinstance(t, Tensor) and (t._requires_grad or (t.alias is not None and t.alias.base._requires_grad))


def refuse_tracked_write(t: Tensor) -> None:
    """Refuse a write that would have to be recorded and cannot be.

    Raises:
        RuntimeError: on a leaf that requires grad or a view of one, and on views whose history cannot follow the write.
    """
    alias = t.alias
    if alias is not None:
        if alias.creation != DEFAULT:
            raise RuntimeError(_refusal(t, "is being modified inplace"))
        if alias.base._requires_grad and alias.base.node is None:
            raise RuntimeError(
                "a view of a leaf Variable that requires grad is being used in an in-place operation."
            )
    elif t._requires_grad and t.node is None:
        raise RuntimeError("a leaf Variable that requires grad is being used in an in-place operation.")


def rebase(view: Tensor) -> None:
    """Make the history of a view that was just written part of its base's, and the view a view of the new base."""
    assert view.alias is not None
    base = view.alias.base
    part, strides = geometry(view), base.layout.strides
    wanted = (0, 1) if base._requires_grad else (1,)
    rule = FormulaRule(_COPY_SLICES, wanted, (), ())
    rule.names = ()
    calls: list[Any] = [
        (base.layout, lambda g: _without_op(g, strides=strides, part=part), None, (), {}),
        (view.layout, lambda g: _part(g, strides, part), None, (), {}),
    ]
    rule.calls = [calls[i] for i in wanted]
    record_over(base, rule, (base, view))
    _remake(view)


def record_over(t: Tensor, rule: Any, args: tuple[Any, ...]) -> None:
    """Record a new value of t; what retains its gradient moves from the old history to the new one."""
    old = t.node
    graph.record(t, rule, args, (t,))
    _move_retained(old, t.node)


def _move_retained(old: Any, new: Any) -> None:
    if old is not None and old.retains is not None and new is not None:
        new.retains, old.retains = old.retains, None


_CLARIFY = (
    "Given that this use case is ambiguous and error-prone, it is forbidden. You can clarify your code by moving "
    "both the "
    "view and the inplace either both inside the {} block (if you don't want the inplace to be tracked) or both "
    "outside (if "
    "you want the inplace to be tracked)."
)


def _refusal(t: Tensor, what: str) -> str:
    assert t.alias is not None
    creation = t.alias.creation
    if creation == NO_GRAD:
        return f"A view was created in no_grad mode and {what} with grad mode enabled. " + _CLARIFY.format("no_grad")
    if creation == INFERENCE:
        return f"A view was created in inference mode and {what} in normal mode. " + _CLARIFY.format("inference_mode")
    if t.node is None:
        start = f"A view was created in no_grad mode and {what} with grad mode enabled. "
    else:
        op, index = t.alias.output
        start = f"Output {index} of {op or t.node.rule.op.grad_name} is a view and {what}. "
    if creation == MULTI_OUTPUT:
        return start + (
            "This view is the output of a function that returns multiple views. Such functions do not allow the "
            "output views to be modified inplace. You should replace the inplace operation by an out-of-place one."
        )
    assert creation == IN_FUNCTION
    return start + (
        "This view was created inside a custom Function (or because an input was returned as-is) and the autograd "
        "logic to handle view+inplace would override the custom backward associated with the custom Function, "
        "leading to incorrect gradients. This behavior is forbidden. You can fix this by cloning the output of the "
        "custom Function."
    )


dispatch.refresh = refresh
