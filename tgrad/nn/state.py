"""A module's state as a dictionary of tensors: saving and loading."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from tgrad import modes
from tgrad.nn.parameter import Parameter
from tgrad.tensor import Tensor


class StateDict(OrderedDict):
    """An OrderedDict that also carries the versions of the modules it was taken from."""

    _metadata: dict[str, dict[str, Any]]


class _Keys(NamedTuple):
    missing_keys: list[str]
    unexpected_keys: list[str]


class _IncompatibleKeys(_Keys):
    """What load_state_dict found missing and unexpected."""

    __slots__ = ()

    def __repr__(self) -> str:
        if not self.missing_keys and not self.unexpected_keys:
            return "<All keys matched successfully>"
        return super().__repr__()

    __str__ = __repr__


class State:
    """The part of Module that saves and loads."""

    _version: int = 1  # of the layout of this class's state

    if TYPE_CHECKING:
        _parameters: dict[str, Parameter | None]
        _buffers: dict[str, Tensor | None]
        _modules: dict[str, Any]
        _non_persistent_buffers_set: set[str]

    def state_dict(self, *, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """Parameters and persistent buffers by name, sharing memory with the module.

        Args:
            destination: a dictionary to add to.
            prefix: what to put before each name.
            keep_vars: give the parameters themselves in place of detached tensors.
        """
        if destination is None:
            destination = StateDict()
            destination._metadata = OrderedDict()
        if hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]] = {"version": self._version}
        self._save_to_state_dict(destination, prefix, keep_vars)
        for name, module in self._modules.items():
            if module is not None:
                module.state_dict(destination=destination, prefix=f"{prefix}{name}.", keep_vars=keep_vars)
        return destination

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Add this module's own tensors, without those of its children."""
        for name, t in self._own_state().items():
            destination[prefix + name] = t if keep_vars else t.detach()

    def _own_state(self) -> dict[str, Tensor]:
        own: dict[str, Tensor] = {n: p for n, p in self._parameters.items() if p is not None}
        for name, buffer in self._buffers.items():
            if buffer is not None and name not in self._non_persistent_buffers_set:
                own[name] = buffer
        return own

    def load_state_dict(
        self, state_dict: Mapping[str, Any] | str | os.PathLike, strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """Copy values into the parameters and buffers, in place and converted to their dtypes.

        Args:
            state_dict: tensors by name, PyTorch's too; or the path of a safetensors file, all of which must fit before
                anything is loaded.
            strict: refuse missing and unexpected names.
            assign: put the given tensors into the module instead; parameters keep only their requires_grad.

        Returns:
            (missing_keys, unexpected_keys).

        Raises:
            TypeError: not a mapping.
            RuntimeError: names (if strict) or sizes do not fit; what fits has been loaded (of a file, nothing).
            ValueError: the file is truncated or wrong.
        """
        if isinstance(state_dict, (str, os.PathLike)):
            from tgrad.serialization import load, mapped

            state_dict = load(state_dict) if assign else mapped(state_dict)  # mapped: no second copy of the weights
            self._check_fits(state_dict, strict)
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"Expected state_dict to be dict-like, got {type(state_dict)}.")
        metadata = getattr(state_dict, "_metadata", None)
        missing: list[str] = []
        unexpected: list[str] = []
        errors: list[str] = []
        _load(self, dict(state_dict), "", metadata or {}, assign, missing, unexpected, errors)
        if strict:
            if missing:
                errors.insert(0, f"Missing key(s) in state_dict: {_quoted(missing)}. ")
            if unexpected:
                errors.insert(1 if missing else 0, f"Unexpected key(s) in state_dict: {_quoted(unexpected)}. ")
        if errors:
            listed = "\n\t".join(errors)
            raise RuntimeError(f"Error(s) in loading state_dict for {type(self).__name__}:\n\t{listed}")
        return _IncompatibleKeys(missing, unexpected)

    def _check_fits(self, given: Mapping[str, Any], strict: bool) -> None:
        """Raise what loading would, before it."""
        own = self.state_dict()
        errors = []
        missing, unexpected = [k for k in own if k not in given], [k for k in given if k not in own]
        if strict and unexpected:
            errors.append(f"Unexpected key(s) in state_dict: {_quoted(unexpected)}. ")
        if strict and missing:
            errors.insert(0, f"Missing key(s) in state_dict: {_quoted(missing)}. ")
        errors += [
            f"size mismatch for {k}: copying a param with shape {given[k].shape} from checkpoint, the shape in current "
            f"model is {t.shape}."
            for k, t in own.items() if k in given and tuple(given[k].shape) != tuple(t.shape)
        ]  # fmt: skip
        if errors:
            listed = "\n\t".join(errors)
            raise RuntimeError(f"Error(s) in loading state_dict for {type(self).__name__}:\n\t{listed}")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        """Load this module's own tensors, without those of its children."""
        own = self._own_state()
        assign = local_metadata.get("assign_to_params_buffers", False)
        for name, t in own.items():
            key = prefix + name
            if key not in state_dict:
                if strict:
                    missing_keys.append(key)
                continue
            problem = self._load_one(name, key, t, state_dict[key], assign)
            if problem:
                error_msgs.append(problem)
        if strict:
            for key in state_dict:
                if key.startswith(prefix):
                    first, *rest = key[len(prefix) :].split(".", 1)
                    if first not in (self._modules if rest else own):
                        unexpected_keys.append(key)

    def _load_one(self, name: str, key: str, t: Tensor, given: Any, assign: bool) -> str | None:
        """Load one tensor; returns what is wrong with it."""
        if not isinstance(given, Tensor) and hasattr(given, "__dlpack__") and hasattr(given, "detach"):
            from tgrad.ops.creation import as_tensor

            given = as_tensor(given.detach())
        if not isinstance(given, Tensor):
            return (
                f'While copying the parameter named "{key}", expected torch.Tensor or Tensor-like object from '
                f"checkpoint but received {type(given)}"
            )
        if t.ndim == 0 and given.shape == (1,):
            given = given[0]
        if given.shape != t.shape:
            return (
                f"size mismatch for {key}: copying a param with shape {given.shape} from checkpoint, the shape in "
                f"current model is {t.shape}."
            )
        try:
            with modes.no_grad():
                if not assign:
                    t.copy_(given)
                elif not isinstance(t, Parameter):
                    setattr(self, name, given)
                elif isinstance(given, Parameter):
                    setattr(self, name, given.requires_grad_(t.requires_grad))
                else:
                    setattr(self, name, Parameter(given, t.requires_grad))
        except Exception as error:
            return (
                f'While copying the parameter named "{key}", whose dimensions in the model are {t.size()} and whose '
                f"dimensions in the checkpoint are {given.size()}, an exception occurred : {error.args}."
            )
        return None


def _load(
    module: Any, state: dict[str, Any], prefix: str, metadata: dict[str, dict], assign: bool,
    missing: list[str], unexpected: list[str], errors: list[str],
) -> None:  # fmt: skip
    local = dict(metadata.get(prefix[:-1], {}), assign_to_params_buffers=assign)
    module._load_from_state_dict(state, prefix, local, True, missing, unexpected, errors)
    for name, child in module._modules.items():
        if child is not None:
            below = f"{prefix}{name}."
            part = {k: v for k, v in state.items() if k.startswith(below)}
            _load(child, part, below, metadata, assign, missing, unexpected, errors)


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{n}"' for n in names)
