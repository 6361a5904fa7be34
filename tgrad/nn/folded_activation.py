"""A Linear and the activation after it as one product, as Sequential runs them where nobody looks in between.

The result has the bits of the two one after the other: the product is rounded to its dtype before the activation, whose
arithmetic is not contracted. Where gradients are recorded, the graph has the same nodes and keeps the same: what goes
backward from its result alone (relu, tanh, sigmoid) has linear's result never stored; for others, which keep it, the
one kernel stores both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tgrad import autocasting, dispatch as path, dtypes, graph
from tgrad.device import compute
from tgrad.fusion.fused import wanted
from tgrad.kernels.launch import holders
from tgrad.layout import Layout
from tgrad.modes import current
from tgrad.nn.activation import ELU, GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Tanh
from tgrad.nn.linear import Linear
from tgrad.nn.module import Module
from tgrad.ops import pointwise as p
from tgrad.ops.linear import activated_op, linear_op
from tgrad.ops.matmul import by_rows
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
# Rows whose gradient needs their result alone.
FROM_RESULT = frozenset((p.relu, p.tanh, p.sigmoid))

_FORWARDS: dict[type, Any] = {kind: vars(kind)["forward"] for kind in (Linear, *ACTIVATIONS)}

# float64 products are contracted, since they run on plain multiply-adds.
_IN_FLOAT64 = (p.relu, p.leaky_relu)


def folded(linear: Linear, activation: Any, input: Any) -> Tensor | None:
    """activation(linear(input)) as one product; None where that cannot be, or somebody would see the difference.

    Hooks on either module see it; so do a profiler, anomaly mode and hooks on saved tensors, which are told of each op.
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
    if mask and (inplace or graph.pack_hooks.get() or graph.policy.get() == "leanest" or graph.patterns.get()):
        return None
    args = (by_rows(input), weight, bias)
    if mask:
        return fold.record(args)
    out = path.dispatch(fold.op, args)[0]
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
        both: the same, with linear's result beside the activation's; None where that is not kept.
        linear: a plan that is recorded and not run; so is `alone`, the activation's where there is no `both`.
    """

    def __init__(self, chosen: _Chosen, input: Layout, weight: Layout, bias: Layout | None) -> None:
        self.row, self.numbers = chosen
        fits = self._fits(input, weight, bias)
        self.op = activated_op(*chosen) if fits else None
        self.both = activated_op(*chosen, both=True) if fits and self.row not in FROM_RESULT else None
        self.linear: Plan | None = None
        self.alone: Plan | None = None

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

    def record(self, args: tuple) -> Tensor:
        """The result, with the nodes of linear and of the activation."""
        if self.both is not None:
            between, out = path.dispatch(self.both, args)
            key = (between.layout, *[n.__class__ for n in self.numbers])
            activation = self.row.plans.get(key)
            if activation is None:
                activation = path.keep_plan(self.row, key, self.row.build((between, *self.numbers), ()))
        else:
            (out,) = path.dispatch(self.op, args)  # type: ignore[arg-type]
            between = _absent(out.layout)
            activation = self.alone = self.alone or self._alone(out.layout)
        if self.linear is None:
            self.linear = Plan((out.layout,), None, linear_op.rule_of(args, ()))
        path.record(self.linear, args, (between,))
        path.record(activation, (between, *self.numbers), (out,))
        return out

    def _alone(self, result: Layout) -> Plan:
        """The activation's plan where what it takes has no memory: it cannot be run again."""

        def rule(mask: int) -> Rule | None:
            found = self.row.rule(mask, [True], [result], result)
            if found is not None:
                found.source, found.edged = None, False
            return found

        return Plan((result,), None, rule)


def _absent(layout: Layout) -> Tensor:
    """A result that nobody keeps and nobody sees."""
    return make(layout, None, 0, Version.zero())  # type: ignore[arg-type]


_folds: dict[tuple, Fold] = {}
holders.append(_folds.clear)
