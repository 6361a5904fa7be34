"""A Linear and the activation after it as one product, as Sequential runs them where nobody looks in between.

The result has the bits of the two one after the other: the product is rounded to its dtype before the activation, whose
arithmetic is not contracted. Where gradients are recorded, only what goes backward from its result alone is folded
(relu, tanh, sigmoid): the linear layer's result is then never stored, and the graph has the same nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tgrad import autocasting, dispatch as path, dtypes, graph
from tgrad.device import compute
from tgrad.fusion.fused import wanted
from tgrad.kernels.launch import holders
from tgrad.layout import Layout, numel
from tgrad.modes import current
from tgrad.nn.activation import ELU, GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from tgrad.nn.linear import Linear
from tgrad.nn.module import Module
from tgrad.ops import pointwise as p
from tgrad.ops.matmul import activated_op, linear_op
from tgrad.ops.views import owned, reshape, view_op
from tgrad.rules import Plan, Rule
from tgrad.tensor import Tensor, Version, make

_Chosen = tuple[p.Pointwise, tuple[float, ...]]
_RELU, _SILU, _TANH, _SIGMOID, _GELU, _GELU_TANH = [
    (row, ()) for row in (p.relu, p.silu, p.tanh, p.sigmoid, p.gelu, p.gelu_tanh)
]

# What each module computes: a row, and the numbers it takes after the input.
ACTIVATIONS: dict[type, Callable[[Any], _Chosen]] = {
    ReLU: lambda m: _RELU,
    LeakyReLU: lambda m: (p.leaky_relu, (float(m.negative_slope),)),
    ELU: lambda m: (p.elu, (float(m.alpha),)),
    SiLU: lambda m: _SILU,
    GELU: lambda m: _GELU if m.approximate == "none" else _GELU_TANH,
    Tanh: lambda m: _TANH,
    Sigmoid: lambda m: _SIGMOID,
}
# Those whose gradient needs their result alone: the only ones folded where gradients are recorded.
FROM_RESULT = frozenset((ReLU, Tanh, Sigmoid))

_FORWARDS: dict[type, Any] = {kind: vars(kind)["forward"] for kind in (Linear, *ACTIVATIONS)}

# float64 products are contracted, since they run on plain multiply-adds.
_IN_FLOAT64 = (p.relu, p.leaky_relu)


def folded(linear: Linear, activation: Any, input: Any) -> Tensor | None:
    """activation(linear(input)) as one product; None where that cannot be, or somebody would see the difference.

    Hooks on either module see it; so do a profiler, anomaly mode and hooks on saved tensors, which are told of each op.
    In grad mode, the activation is to be one of `FROM_RESULT`.
    """
    if path.observer is not None or graph.find_origin is not None or graph.on_save is not None:
        return None
    if _watched(linear) or _watched(activation):
        return None
    parameters = linear._parameters
    try:
        weight, bias = parameters["weight"], parameters["bias"]
        if autocasting.region() is not None:
            input, weight, bias = autocasting.low(input, weight, bias)
        chosen = ACTIVATIONS[activation.__class__](activation)
        key = (chosen, input.layout, weight.layout, None if bias is None else bias.layout)  # type: ignore[union-attr]
    except (KeyError, AttributeError, TypeError):  # the plain way says what is wrong
        return None
    fold = _folds.get(key)
    if fold is None:
        if len(_folds) >= path.MAX_PLANS:
            _folds.clear()
        fold = _folds[key] = Fold(*key)
    if fold.op is None:
        return None
    inplace = activation.__dict__.get("inplace", False)
    mask = wanted((input, weight, bias)) if current().record else 0
    if mask and (inplace or graph.pack_hooks.get() or graph.policy.get() == "leanest"):
        return None
    flat = input if fold.shape is None else reshape(input, (numel(input.shape[:-1]), input.shape[-1]))
    args = (flat, weight, bias)
    out = path.dispatch(fold.op, args)[0]
    if mask:
        return fold.record(args, out)
    if fold.shape is not None:
        out = owned(view_op(out, shape=fold.shape))
    if inplace and out.version is not None:
        out.version.value += 1
    return out


def _watched(module: Module) -> bool:
    """Whether a module's call does more than its class's forward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
        or "forward" in module.__dict__ or module.__class__.forward is not _FORWARDS[module.__class__]
    )  # fmt: skip


class Fold:
    """What is decided once for an activation and the layouts of input, weight and bias.

    Attributes:
        op: the two as one; None where they cannot be.
        shape: of the result, where it is not a matrix.
    """

    def __init__(self, chosen: _Chosen, input: Layout, weight: Layout, bias: Layout | None) -> None:
        self.row, numbers = chosen
        self.op = activated_op(self.row, numbers) if self._fits(input, weight, bias) else None
        self.shape = None if len(input.shape) == 2 else (*input.shape[:-1], weight.shape[0])
        self.plans: tuple[Plan, ...] = ()

    def _fits(self, input: Layout, weight: Layout, bias: Layout | None) -> bool:
        """Whether linear takes these, and they are floating tensors of the compute device."""
        layouts = [input, weight] if bias is None else [input, weight, bias]
        if not all(l.dtype is input.dtype and l.device is compute for l in layouts):
            return False
        if not input.dtype.is_floating_point or (input.dtype is dtypes.float64 and self.row not in _IN_FLOAT64):
            return False
        if len(input.shape) == 0 or len(weight.shape) != 2 or input.shape[-1] != weight.shape[1]:
            return False
        return bias is None or tuple(bias.shape) == (weight.shape[0],)

    def record(self, args: tuple, out: Tensor) -> Tensor:
        """Give `out` the nodes of linear, of a view if it is no matrix, and of the activation.

        What lies between has no memory: none of these nodes keeps it.
        """
        if not self.plans:
            self.plans = self._plan(args, out.layout)
        linear, *view, activation = self.plans
        between = _absent(out.layout)
        path.record(linear, args, (between,))
        for plan in view:
            matrix, between = between, _absent(plan.out)
            path.record(plan, (matrix,), (between,))
            out = make(plan.out, out.storage, out.ptr, out.version)
        path.record(activation, (between,), (out,))
        return out

    def _plan(self, args: tuple, matrix: Layout) -> tuple[Plan, ...]:
        """Plans of ops that are recorded and not run."""
        view = [] if self.shape is None else [view_op.build((_absent(matrix),), (self.shape,))]
        result = view[0].out if view else matrix

        def rule(mask: int) -> Rule | None:
            found = self.row.rule(mask, [True], [result], result)
            if found is not None:
                found.source, found.edged = None, False  # it cannot be run again
            return found

        return Plan((matrix,), None, linear_op.rule_of(args, ())), *view, Plan((result,), None, rule)


def _absent(layout: Layout) -> Tensor:
    """A result that nobody keeps and nobody sees."""
    return make(layout, None, 0, Version.zero())  # type: ignore[arg-type]


_folds: dict[tuple, Fold] = {}
holders.append(_folds.clear)
