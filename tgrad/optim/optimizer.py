"""The base of optimisers: parameter groups, per-parameter state, saving and loading."""

from __future__ import annotations

import copy
import ctypes
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tgrad import dtypes, modes
from tgrad.device import cpu
from tgrad.layout import layout
from tgrad.nn.parameter import clear_grad, typename
from tgrad.ops import creation
from tgrad.tensor import Tensor

# Options that saved states of PyTorch carry, beside `foreach` and `fused` which only choose how it computes a step.
# These change what a step is: only False is supported.
UNSUPPORTED = ("capturable", "differentiable")


# Gives what calls an optimiser's `update_group`, while a CUDA graph is captured.
stepping: Callable[[Optimizer], Callable[[list[Tensor], dict[str, Any]], None]] | None = None


class _Required:
    def __repr__(self) -> str:
        return "<required parameter>"


required = _Required()


class Optimizer:
    """Base class. A subclass defines `update_group`, or `step` itself.

    Args:
        params: tensors, or dictionaries with "params" and options of their own, or (name, tensor) pairs.
        defaults: options of groups that do not give them.

    Attributes:
        param_groups: the groups, with all their options.
        state: what the optimiser keeps for each parameter.

    Raises:
        TypeError, ValueError: params is a tensor, is empty, or has something that cannot be optimised.
        RuntimeError: both `fused` and `foreach`.
    """

    _opt_called = False

    def __init__(self, params: Any, defaults: dict[str, Any]) -> None:
        if isinstance(params, Tensor):
            raise TypeError(
                "params argument given to the optimizer should be an iterable of Tensors or dicts, but got "
                + typename(params)
            )
        self.defaults = defaults
        self.state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        groups = list(params)
        if not groups:
            raise ValueError("optimizer got an empty parameter list")
        if not isinstance(groups[0], dict):
            groups = [{"params": groups}]
        for group in groups:
            self.add_param_group(group)
        if defaults.get("fused") and defaults.get("foreach"):
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Optimise more parameters, with the options given and the defaults of others.

        Raises:
            TypeError: not a dictionary, a set of parameters, or something that is no tensor.
            ValueError: a non-leaf, a parameter of another group, an option missing or not supported.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        group = param_group
        params, names = _split_names(group["params"])
        for p in params:
            if not isinstance(p, Tensor):
                raise TypeError("optimizer can only optimize Tensors, but one of the params is " + typename(p))
            if not (p.is_leaf or p.retains_grad):
                raise ValueError("can't optimize a non-leaf Tensor")
        group["params"] = params
        if names:
            group["param_names"] = names
        for name, default in self.defaults.items():
            if default is required and name not in group:
                raise ValueError(f"parameter group didn't specify a value of required optimization parameter {name}")
            group.setdefault(name, default)
        _check_supported(group)
        if len(params) != len(set(map(id, params))):
            warnings.warn(
                "optimizer contains a parameter group with duplicate parameters; in future, this will cause an error; "
                "see github.com/pytorch/pytorch/issues/40967 for more information",
                stacklevel=3,
            )
        for other in self.param_groups:
            if ("param_names" in group) != ("param_names" in other):
                kind = "with names" if "param_names" in group else "without names"
                raise ValueError(
                    "all optimizer param groups should be with/without names. cannot add param group "
                    f"{kind} to the optimizer"
                )
            if not set(map(id, params)).isdisjoint(map(id, other["params"])):
                raise ValueError("some parameters appear in more than one parameter group")
        self.param_groups.append(group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of all parameters, or set them to zero in place."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p._grad = None
                else:
                    clear_grad(p, set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient, in place and unseen by autograd.

        Args:
            closure: computes the loss and its gradients anew; it runs first, with grad mode on.

        Returns:
            What closure returned, or None.
        """
        loss = None
        update_group = self.update_group if stepping is None else stepping(self)
        self._opt_called = True  # schedulers warn if it was not
        with modes.no_grad():
            if closure is not None:
                with modes.enable_grad():
                    loss = closure()
            for group in self.param_groups:
                params = [p for p in group["params"] if p._grad is not None]
                if not _together(params, group):
                    for p in params:
                        update_group([p], group)
                elif params:
                    update_group(params, group)
        return loss

    def update_group(self, params: list[Tensor], group: dict[str, Any]) -> None:
        """Update parameters, which all have a gradient, by the options of their group."""
        raise NotImplementedError(f"Optimizer [{type(self).__name__}] defines neither step nor update_group")

    # --- saving and loading --------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """{"state": {number: ...}, "param_groups": [...]} with parameters as numbers, in order; shares the tensors."""
        numbers: dict[int, int] = {}
        groups = []
        for group in self.param_groups:
            for p in group["params"]:
                numbers.setdefault(id(p), len(numbers))
            packed = {k: v for k, v in group.items() if k != "params"}
            packed["params"] = [numbers[id(p)] for p in group["params"]]
            groups.append(packed)
        state = {numbers[id(k)] if isinstance(k, Tensor) else k: v for k, v in self.state.items()}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over state and options; tensors are converted to the dtypes and devices of the parameters.

        Raises:
            ValueError: groups differ in number or size, or have an option that is not supported.
        """
        saved = copy.deepcopy(state_dict["param_groups"])
        groups = self.param_groups
        if len(saved) != len(groups):
            raise ValueError("loaded state dict has a different number of parameter groups")
        if any(len(s["params"]) != len(g["params"]) for s, g in zip(saved, groups)):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's group"
            )
        for s in saved:
            _check_supported(s)
        numbered = {n: p for s, g in zip(saved, groups) for n, p in zip(s["params"], g["params"])}
        state: defaultdict[Any, dict[str, Any]] = defaultdict(dict)
        for key, value in state_dict["state"].items():
            p = numbered.get(key)
            state[key if p is None else p] = value if p is None else _converted(p, value)
        for s, g in zip(saved, groups):
            for name in ("params", "param_names"):
                if name in g:
                    s[name] = g[name]
            for name, default in self.defaults.items():
                s.setdefault(name, default)
        self.state, self.param_groups = state, saved

    def __repr__(self) -> str:
        text = type(self).__name__ + " ("
        for i, group in enumerate(self.param_groups):
            text += f"\nParameter Group {i}\n"
            text += "".join(f"    {key}: {group[key]}\n" for key in sorted(group) if key != "params")
        return text + ")"


def _together(params: list[Tensor], group: Mapping[str, Any]) -> bool:
    """Whether one kernel may update all these parameters: not if the user says no, or one of them is there twice."""
    refused = group.get("foreach") is False and not group.get("fused")
    return not refused and len(set(map(id, params))) == len(params)


def _split_names(params: Any) -> tuple[list[Any], list[str]]:
    if isinstance(params, Tensor):
        return [params], []
    if isinstance(params, set):
        raise TypeError(
            "optimizer parameters need to be organized in ordered collections, but the ordering of tensors in sets "
            "will change between runs. Please use a list instead."
        )
    listed = list(params)
    names = [entry[0] for entry in listed if isinstance(entry, tuple)]
    if names and len(names) != len(listed):
        raise ValueError("all optimizer params should be with/without names. Some param names are missing")
    return [entry[1] if isinstance(entry, tuple) else entry for entry in listed], names


def _check_supported(group: Mapping[str, Any]) -> None:
    for name in UNSUPPORTED:
        if group.get(name):
            raise ValueError(f"{name}={group[name]} is not supported: expected {name}=False")


def _converted(p: Tensor, value: Any, name: str = "") -> Any:
    """Saved state of p: tensors on its device and in its dtype, if that is floating; the step count on the host."""
    if not isinstance(value, Tensor) and hasattr(value, "__dlpack__") and hasattr(value, "detach"):  # PyTorch's
        value = creation.as_tensor(value.detach())
    if isinstance(value, Iterable) and not isinstance(value, (Tensor, str)):
        if isinstance(value, Mapping):
            return {k: _converted(p, v, k) for k, v in value.items()}
        return type(value)(_converted(p, v) for v in value)  # type: ignore[call-arg]
    if name == "step":
        return creation.tensor(float(value), dtype=dtypes.float32, device="cpu")
    if not isinstance(value, Tensor):
        return value
    return value.to(device=p.device, dtype=p.dtype if p.is_floating_point() else None)


_count_layout = layout(dtypes.float32, (), None, cpu)


def new_step_count() -> Tensor:
    """A count of steps: a float32 number on the CPU, where reading it costs no synchronisation."""
    return creation.tensor(0.0, dtype=dtypes.float32, device="cpu")


def count_step(count: Tensor, by: int = 1) -> float:
    """Add one in place (or `by`); returns the new count."""
    value: Any
    if count.layout is _count_layout:
        value = ctypes.c_float.from_address(count.ptr)  # a tenth of the time that an array over it takes
        value.value += by
        value = value.value
    else:
        value = count._array()
        value[...] += by
    if count.version is not None:
        count.version.value += 1
    return float(value)


def check_lr(lr: Any) -> None:
    """Refuse a learning rate below 0, or a tensor of several elements."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError("Tensor lr must be 1-element")
    if not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
