"""Models of PyTorch made of known layers, as models of tgrad."""

from __future__ import annotations

import inspect
from typing import Any

from tgrad.nn import functional as F
from tgrad.nn.module import Module
from tgrad.nn.parameter import Parameter
from tgrad.tensor import Tensor

# How constructor arguments follow from a layer, where an attribute of that name is something else.
_GIVEN = {"bias": lambda m: getattr(m, "bias", None) is not None, "_weight": lambda m: None, "_freeze": lambda m: False,
          "size_average": lambda m: None, "reduce": lambda m: None}  # fmt: skip
_HOLDERS = ("Sequential", "ModuleList", "ModuleDict", "TransformerEncoder")
_ALIASES = {"NonDynamicallyQuantizableLinear": "Linear"}


def from_torch(module: Any, share: bool = False) -> Module:
    """The tgrad twin of a torch.nn.Module made of layers that tgrad has; training mode and requires_grad are kept.

    Args:
        share: parameters and buffers over the memory of PyTorch's; else copies.

    Raises:
        TypeError: no torch.nn.Module, or a layer that has no twin; it is named by its path and class.
    """
    if not hasattr(module, "named_modules") or isinstance(module, Module):
        raise TypeError(f"from_torch: expected a torch.nn.Module, got {type(module).__name__}")
    return _convert(module, "", share)


def _convert(module: Any, path: str, share: bool) -> Module:
    from tgrad import nn

    name = _ALIASES.get(type(module).__name__, type(module).__name__)
    kind = getattr(nn, name, None)
    if kind is None or not type(module).__module__.startswith("torch.nn."):
        where = f"layer '{path}'" if path else "the module"
        raise TypeError(
            f"from_torch: {where} is a {type(module).__module__}.{type(module).__name__}, which has no twin in "
            "tgrad.nn: write it as a tgrad.nn.Module and load the state_dict, or bridge it with "
            "tgrad.interop.tgrad_function"
        )
    ours = _bare(kind) if name in _HOLDERS else kind(**_arguments(kind, module))
    if name == "TransformerEncoder":
        ours.num_layers = module.num_layers
        if module.norm is None:
            ours.norm = None
    for child, theirs in module.named_children():
        ours._modules[child] = _convert(theirs, f"{path}.{child}" if path else child, share)
    for key, p in module._parameters.items():
        ours._parameters[key] = None if p is None else Parameter(_tensor(p, share), p.requires_grad)
    for key, b in module._buffers.items():
        ours._buffers[key] = None if b is None else _tensor(b, share)
    if name == "ParameterList":
        ours._size = len(module)
    ours.training = module.training
    return ours


def _bare(kind: Any) -> Any:
    made = object.__new__(kind)
    Module.__init__(made)
    return made


def _arguments(kind: type, module: Any) -> dict[str, Any]:
    given: dict[str, Any] = {}
    if kind.__name__ == "MultiheadAttention":
        given = {"bias": module.in_proj_bias is not None, "add_bias_kv": module.bias_k is not None}
    elif kind.__name__ == "TransformerEncoderLayer":
        attention = module.self_attn
        given = {
            "d_model": attention.embed_dim, "nhead": attention.num_heads, "dropout": attention.dropout,
            "dim_feedforward": module.linear1.out_features, "layer_norm_eps": module.norm1.eps,
            "batch_first": attention.batch_first, "bias": module.linear1.bias is not None,
            "activation": _activation(module.activation),
        }  # fmt: skip
    for name, parameter in inspect.signature(kind).parameters.items():
        if name in given or name in ("device", "dtype") or parameter.kind in (
            parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD
        ):  # fmt: skip
            continue
        if name in _GIVEN:
            given[name] = _GIVEN[name](module)
        elif name in ("weight", "pos_weight"):
            given[name] = None  # a buffer: put in its place afterwards
        elif hasattr(module, name):
            given[name] = getattr(module, name)
    return given


def _activation(theirs: Any) -> Any:
    name = getattr(theirs, "__name__", "")
    if hasattr(theirs, "named_modules"):
        return _convert(theirs, "activation", False)
    if hasattr(F, name):
        return getattr(F, name)
    raise TypeError(f"from_torch: the activation {theirs!r} has no twin in tgrad.nn.functional")


def _tensor(t: Any, share: bool) -> Tensor:
    from tgrad.device import compute
    from tgrad.interop import from_torch as shared

    ours = shared(t.detach())
    return ours.to(device=compute) if share else ours.to(device=compute, copy=True)
