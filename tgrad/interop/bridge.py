"""The bridges that gradients cross: a function of tgrad as one node of PyTorch's graph, and the other way round.

A node keeps the inner graph, from copies of the inputs over the same memory (its leaves) to the results. Its backward
is such a node again, over the inputs and the arriving gradients: so it can be differentiated, to any order. The engine
of the caller decides whether gradients are recorded; the other follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tgrad import autograd, engine, modes, torch_streams as streams
from tgrad.function import Function
from tgrad.interop.memory import from_torch, share
from tgrad.interop.twins import Twins, flat_arguments, results_of, sync_all, tgrad_mode, torch_mode
from tgrad.nn.module import Module
from tgrad.nn.parameter import Parameter
from tgrad.tensor import Tensor

_FREED = (
    "Trying to backward through the graph a second time: what the function inside {} kept was freed by the first. "
    "Specify retain_graph=True in the first backward"
)
_FIXED = 4  # arguments of the two forwards before the values


# --- a tgrad function inside PyTorch ---------------------------------------------------------------------------------
class _InTorch(torch.autograd.Function):
    """run(*values) of tgrad.

    known: for each given value, its twins where there are some already; shared: whether the graph that `run` makes
    continues another node's, so that a backward through it must not free what that one keeps.
    """

    @staticmethod
    def forward(ctx: Any, run: Callable, recording: bool, shared: bool, known: list[Twins | None],
                *given: Any) -> Any:  # fmt: skip
        ctx.set_materialize_grads(False)
        pairs: list[Twins | None] = []
        with tgrad_mode(recording):
            for x, pair, wants in zip(given, known, ctx.needs_input_grad[_FIXED:], strict=True):
                if pair is None and isinstance(x, torch.Tensor):
                    pair = Twins(from_torch(x.detach()).requires_grad_(recording and wants), x.detach())
                pairs.append(pair)
            sync_all(pairs)
            both = [pair.theirs for pair in pairs if pair is not None]
            streams.tgrad_waits(*both)
            returned = run(*(x if pair is None else pair.ours for x, pair in zip(given, pairs, strict=True)))
            streams.torch_waits(*both)
            values, many = results_of("torch_function", returned, Tensor)
            sync_all(pairs)  # what run wrote
        taken = {id(pair.ours.storage) for pair in pairs if pair is not None}
        results: list[Any] = []
        for o in values:
            result = share(o.detach()) if isinstance(o, Tensor) else o
            if isinstance(o, Tensor):  # views of the inputs, or of one another, would hide writes from PyTorch
                results.append(result.clone() if id(o.storage) in taken else result)
                taken.add(id(o.storage))
            else:
                results.append(o)
        if recording:
            ctx.inner, ctx.shared = (given, pairs, values), shared
            ctx.results = [Twins(o, r.detach()) if isinstance(o, Tensor) and r.data_ptr() == o.ptr else None
                           for o, r in zip(values, results, strict=True)]  # fmt: skip
            ctx.mark_non_differentiable(
                *(r for o, r in zip(values, results, strict=True) if isinstance(o, Tensor) and not o.requires_grad)
            )
        return tuple(results) if many else results[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple:
        if ctx.inner is None:
            raise RuntimeError(_FREED.format("torch_function"))
        given, pairs, values = ctx.inner
        sync_all([*pairs, *ctx.results])
        again = torch.is_grad_enabled()
        keep = again or _keeps_graph()
        ctx.shared = ctx.shared or again
        arrived = [i for i, g in enumerate(grads) if g is not None and _differentiable(values[i])]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[_FIXED:]) if needed]
        found: Any = [None] * len(wanted)
        if arrived and wanted:

            def vjp(*leaves: Any) -> Any:
                return autograd.grad(
                    [values[i] for i in arrived], [leaves[i] for i in wanted], list(leaves[len(given) :]),
                    retain_graph=keep or ctx.shared, create_graph=modes.current().record, allow_unused=True,
                )  # fmt: skip

            found = _enter_torch(vjp, [*pairs, *[None] * len(arrived)], [*given, *(grads[i] for i in arrived)], True)
        if not keep:
            ctx.inner = None
        result: list[Any] = [None] * (_FIXED + len(given))
        for i, g in zip(wanted, found, strict=True):
            result[_FIXED + i] = g
        return tuple(result)


def _enter_torch(run: Callable, known: list[Twins | None], given: list[Any], shared: bool = False) -> Any:
    recording = torch.is_grad_enabled() and any(isinstance(x, torch.Tensor) and x.requires_grad for x in given)
    return _InTorch.apply(run, recording, shared, known, *given)


def _differentiable(x: Any) -> bool:
    return isinstance(x, (Tensor, torch.Tensor)) and x.requires_grad


def _keeps_graph() -> bool:
    """Whether the backward of PyTorch that runs was asked to retain the graph; True where PyTorch does not say."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or bool(ask())


def torch_function(function: Any) -> Any:
    """A tgrad function or Module as one of PyTorch's: it takes and gives torch tensors, and gradients flow through.

    A Module becomes a torch.nn.Module whose parameters and buffers share its memory, under the same names, so that
    PyTorch's optimisers train it. Gradients can be differentiated again (create_graph). Writes in place between forward
    and backward are seen across. PyTorch's grad mode decides what is recorded, in tgrad too.

    Args:
        function: takes tensors and other values, by position or name, and returns a tensor or a tuple of tensors and
            other values; a result that is a view of an input is copied.

    Raises:
        TypeError: when called, of tensors inside lists or dictionaries; of a tensor of the other library where
            gradients would be lost.
        RuntimeError: a parameter no longer shares its memory, as after `.to(dtype)`.
    """
    if isinstance(function, Module):
        return _TorchModule(function)

    def call(*args: Any, **kwargs: Any) -> Any:
        given, run = flat_arguments("torch_function", torch.Tensor, args, kwargs, function)
        return _enter_torch(run, [None] * len(given), given)

    return call


class _TorchModule(torch.nn.Module):
    """A tgrad Module as PyTorch's."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self._module = [module]  # in a list: hidden from torch
        made: dict[int, torch.nn.Parameter] = {}
        self._pairs: list[tuple[str, Twins]] = []
        for name, p in module.named_parameters(remove_duplicate=False):
            if id(p) not in made:
                made[id(p)] = torch.nn.Parameter(share(p.detach()), p.requires_grad)
                self._pairs.append((name, Twins(p, made[id(p)])))
            owner, last = _owner(self, name, torch.nn.Module)
            owner.register_parameter(last, made[id(p)])
        for name, b in module.named_buffers(remove_duplicate=False):
            owner, last = _owner(self, name, torch.nn.Module)
            inner = module.get_submodule(name.rpartition(".")[0])
            owner.register_buffer(last, share(b.detach()), last not in inner._non_persistent_buffers_set)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module[0]
        given, run = flat_arguments("torch_function", torch.Tensor, args, kwargs, module)
        here = dict(self.named_parameters())
        for name, pair in self._pairs:
            q = here[name]
            if q is not pair.theirs or q.data_ptr() != pair.ours.data_ptr() and q.numel():
                raise RuntimeError(_apart("torch_function", name, "tgrad"))
            if pair.ours.requires_grad != q.requires_grad:
                pair.ours.requires_grad_(q.requires_grad)
        twins = [pair for _, pair in self._pairs]
        result = _enter_torch(run, [*[None] * len(given), *twins], [*given, *(pair.theirs for pair in twins)])
        for name, b in module.named_buffers(remove_duplicate=False):  # those that the module put others in place of
            owner, last = _owner(self, name, torch.nn.Module)
            if b.numel() and owner._buffers[last].data_ptr() != b.data_ptr():
                owner._buffers[last] = share(b.detach())
        return result

    def train(self, mode: bool = True) -> _TorchModule:
        super().train(mode)
        self._module[0].train(mode)
        return self


def _owner(module: Any, name: str, kind: type) -> tuple[Any, str]:
    """The submodule that a dotted name leads to, made where it is missing, and the last part of the name."""
    *path, last = name.split(".")
    for step in path:
        if not hasattr(module, step):
            module.add_module(step, kind())
        module = getattr(module, step)
    return module, last


def _apart(name: str, parameter: str, inner: str) -> str:
    return (
        f"{name}: parameter '{parameter}' no longer shares memory with the {inner} module's, as after .to(), .half() "
        f"or load_state_dict(assign=True): convert the {inner} module first, and bridge it then"
    )


# --- a PyTorch function inside tgrad ---------------------------------------------------------------------------------
class _InTgrad(Function):
    """run(*values) of PyTorch. known, shared: as of `_InTorch`."""

    @staticmethod
    def forward(ctx: Any, run: Callable, recording: bool, shared: bool, known: list[Twins | None],
                *given: Any) -> Any:  # fmt: skip
        ctx.set_materialize_grads(False)
        pairs: list[Twins | None] = []
        with torch_mode(recording):
            for x, pair, wants in zip(given, known, ctx.needs_input_grad[_FIXED:], strict=True):
                if pair is None and isinstance(x, Tensor):
                    pair = Twins(x.detach(), share(x.detach()).requires_grad_(recording and wants))
                pairs.append(pair)
            sync_all(pairs)
            both = [pair.theirs for pair in pairs if pair is not None]
            streams.torch_waits(*both)
            returned = run(*(x if pair is None else pair.theirs for x, pair in zip(given, pairs, strict=True)))
            streams.tgrad_waits(*both)
            values, many = results_of("tgrad_function", returned, torch.Tensor)
            sync_all(pairs)  # what run wrote
            taken = {pair.theirs.untyped_storage().data_ptr() for pair in pairs if pair is not None}
            results: list[Any] = []
            for o in values:
                if isinstance(o, torch.Tensor):  # views of the inputs, or of one another, would hide writes from tgrad
                    place = o.untyped_storage().data_ptr()
                    results.append(from_torch(o.detach().clone() if place in taken else o.detach()))
                    taken.add(place)
                else:
                    results.append(o)
        if recording:
            ctx.inner, ctx.shared = (given, pairs, values), shared
            ctx.results = [
                Twins(r.detach(), o.detach()) if isinstance(o, torch.Tensor) and r.data_ptr() == o.data_ptr() else None
                for o, r in zip(values, results, strict=True)
            ]
            ctx.mark_non_differentiable(*(
                r for o, r in zip(values, results, strict=True) if isinstance(o, torch.Tensor) and not o.requires_grad
            ))  # fmt: skip
        return tuple(results) if many else results[0]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple:
        if ctx.inner is None:
            raise RuntimeError(_FREED.format("tgrad_function"))
        given, pairs, values = ctx.inner
        sync_all([*pairs, *ctx.results])
        walk = engine.innermost_walk()
        again = modes.current().record
        keep = again or walk is None or walk.retain
        ctx.shared = ctx.shared or again
        arrived = [i for i, g in enumerate(grads) if g is not None and _differentiable(values[i])]
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[_FIXED:]) if needed]
        found: Any = [None] * len(wanted)
        if arrived and wanted:

            def vjp(*leaves: Any) -> Any:
                return torch.autograd.grad(
                    [values[i] for i in arrived], [leaves[i] for i in wanted], list(leaves[len(given) :]),
                    retain_graph=keep or ctx.shared, create_graph=torch.is_grad_enabled(), allow_unused=True,
                )  # fmt: skip

            found = _enter_tgrad(vjp, [*pairs, *[None] * len(arrived)], [*given, *(grads[i] for i in arrived)], True)
        if not keep:
            ctx.inner = None
        result: list[Any] = [None] * (_FIXED + len(given))
        for i, g in zip(wanted, found, strict=True):
            result[_FIXED + i] = g
        return tuple(result)


def _enter_tgrad(run: Callable, known: list[Twins | None], given: list[Any], shared: bool = False) -> Any:
    recording = modes.current().record and any(isinstance(x, Tensor) and x.requires_grad for x in given)
    return _InTgrad.apply(run, recording, shared, known, *given)


def tgrad_function(function: Any) -> Any:
    """A PyTorch function or module as one of tgrad's: it takes and gives tgrad tensors, and gradients flow through.

    A torch.nn.Module becomes a tgrad Module whose parameters and buffers share its memory, under the same names, so
    that tgrad's optimisers train it. Gradients can be differentiated again (create_graph). Writes in place between
    forward and backward are seen across. tgrad's grad mode decides what is recorded, in PyTorch too.

    Args:
        function: takes tensors and other values, by position or name, and returns a tensor or a tuple of tensors and
            other values; a result that is a view of an input is copied.

    Raises:
        As `torch_function`.
    """
    if isinstance(function, torch.nn.Module):
        return _TgradModule(function)

    def call(*args: Any, **kwargs: Any) -> Any:
        given, run = flat_arguments("tgrad_function", Tensor, args, kwargs, function)
        return _enter_tgrad(run, [None] * len(given), given)

    return call


class _TgradModule(Module):
    """A PyTorch module as tgrad's."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self._module = [module]
        made: dict[int, Parameter] = {}
        self._pairs: list[tuple[str, Twins]] = []
        for name, q in module.named_parameters(remove_duplicate=False):
            if id(q) not in made:
                made[id(q)] = Parameter(from_torch(q.detach()), q.requires_grad)
                self._pairs.append((name, Twins(made[id(q)], q)))
            owner, last = _owner(self, name, Module)
            owner.register_parameter(last, made[id(q)])
        for name, b in module.named_buffers(remove_duplicate=False):
            owner, last = _owner(self, name, Module)
            inner = module.get_submodule(name.rpartition(".")[0])
            owner.register_buffer(last, from_torch(b.detach()), last not in inner._non_persistent_buffers_set)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        module = self._module[0]
        given, run = flat_arguments("tgrad_function", Tensor, args, kwargs, module)
        here = dict(self.named_parameters())
        for name, pair in self._pairs:
            p = here[name]
            if p is not pair.ours or p.data_ptr() != pair.theirs.data_ptr() and p.numel():
                raise RuntimeError(_apart("tgrad_function", name, "PyTorch"))
            if pair.theirs.requires_grad != p.requires_grad:
                pair.theirs.requires_grad_(p.requires_grad)
        twins = [pair for _, pair in self._pairs]
        result = _enter_tgrad(run, [*[None] * len(given), *twins], [*given, *(pair.ours for pair in twins)])
        for name, b in module.named_buffers(remove_duplicate=False):  # those that the module put others in place of
            owner, last = _owner(self, name, Module)
            if b.numel() and owner._buffers[last].data_ptr() != b.data_ptr():
                owner._buffers[last] = from_torch(b.detach())
        return result

    def train(self, mode: bool = True) -> _TgradModule:
        super().train(mode)
        self._module[0].train(mode)
        return self
