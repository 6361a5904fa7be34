"""Running a module: forward hooks, and where in the model the program is."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tgrad.graph import patterns, policy
from tgrad.hooks import RemovableHandle
from tgrad.nn.backward_hooks import BackwardHooks

if TYPE_CHECKING:
    from tgrad.nn.module import Module


class _Running(threading.local):
    """The modules that run in this thread, outermost first, as [module, its path or None until someone asks]."""

    def __init__(self) -> None:
        self.stack: list[list[Any]] = []


_running = _Running()

# Runs a module that may be a block of the policy "leanest", checkpointed or offloaded; set by blocks.py, which stands
# above this module.
run_block: Any = None  # (module, args, kwargs) -> result


def current_path() -> str:
    """The path of the running module, relative to the outermost one: "layers.0"; "" in the outermost and outside.

    A module that is not below the one that called it goes by the name of its class.
    """
    stack = _running.stack
    path, outer = "", None
    for frame in stack:
        if frame[1] is None:
            frame[1] = "" if outer is None else _step(path, outer, frame[0])
        outer, path = frame
    return path


def _step(path: str, outer: Module, inner: Module) -> str:
    name = _name_within(outer, inner)
    return f"{path}.{name}" if path and name else path or name


def _name_within(outer: Module, inner: Module) -> str:
    if inner is outer:
        return ""
    for name, module in outer._modules.items():
        if module is inner:
            return name
    for name, module in outer.named_modules():  # below a container that is not itself called, as in self.layers[0](x)
        if module is inner:
            return name
    return type(inner).__name__


class entered:
    """A context in which `module` is the running one, as in its __call__, for who calls its `forward` in its place."""

    __slots__ = ("module",)

    def __init__(self, module: Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        _running.stack.append([self.module, None])

    def __exit__(self, *exception: object) -> None:
        _running.stack.pop()


def is_plain(module: Module) -> bool:
    """Whether a call of `module` does no more than its `forward`: no hooks, no policy, no __call__ of its own.

    CPython holds the arguments of `module(x)` until it returns, whatever the module does. A call of a Python function,
    as in `module.forward(given.pop())`, moves x into the function's frame: it is freed where that drops it.
    """
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    chosen = patterns.get() is not None or (module.is_block and policy.get() == "leanest")
    return not chosen and type(module).__call__ is _CALL


class Calls:
    """A Module's __call__ and its hooks."""

    forward: Callable[..., Any]
    is_block = False  # a direct child of a ModuleList or Sequential

    if TYPE_CHECKING:
        _forward_hooks: dict[int, Callable]
        _forward_pre_hooks: dict[int, Callable]
        _forward_hooks_with_kwargs: dict[int, bool]
        _forward_hooks_always_called: dict[int, bool]
        _forward_pre_hooks_with_kwargs: dict[int, bool]
        _backward_hooks: dict[int, Callable]
        _backward_pre_hooks: dict[int, Callable]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pre-hooks, `forward` and the hooks."""
        stack = _running.stack
        stack.append([self, None])
        try:
            if self._forward_hooks or self._forward_pre_hooks or self._backward_hooks or self._backward_pre_hooks:
                return self._call_with_hooks(args, kwargs)
            if patterns.get() is not None or (self.is_block and policy.get() == "leanest"):
                return run_block(self, args, kwargs)
            return self.forward(*args, **kwargs)
        finally:
            stack.pop()

    def register_forward_pre_hook(
        self, hook: Callable, *, prepend: bool = False, with_kwargs: bool = False
    ) -> RemovableHandle:
        """Call hook(module, args) before forward; what it returns, if not None, replaces args.

        Args:
            prepend: run it before the hooks registered so far.
            with_kwargs: call hook(module, args, kwargs), which returns None or (args, kwargs).
        """
        flags = (self._forward_pre_hooks_with_kwargs,) if with_kwargs else ()
        return RemovableHandle(hook, self._forward_pre_hooks, *flags, prepend=prepend)

    def register_forward_hook(
        self, hook: Callable, *, prepend: bool = False, with_kwargs: bool = False, always_call: bool = False
    ) -> RemovableHandle:
        """Call hook(module, args, output) after forward; what it returns, if not None, replaces the output.

        Args:
            prepend: run it before the hooks registered so far.
            with_kwargs: call hook(module, args, kwargs, output).
            always_call: run it also when forward or another hook raises.
        """
        flags = [self._forward_hooks_with_kwargs] if with_kwargs else []
        flags += [self._forward_hooks_always_called] if always_call else []
        return RemovableHandle(hook, self._forward_hooks, *flags, prepend=prepend)

    def register_full_backward_pre_hook(self, hook: Callable, prepend: bool = False) -> RemovableHandle:
        """Call hook(module, grad_output) when backward reaches the module; it may return another grad_output.

        Args:
            prepend: run it before the hooks registered so far.
        """
        return RemovableHandle(hook, self._backward_pre_hooks, prepend=prepend)

    def register_full_backward_hook(self, hook: Callable, prepend: bool = False) -> RemovableHandle:
        """Call hook(module, grad_input, grad_output) when the gradients of the module's inputs have been computed.

        Both are tuples as long as the positional inputs and the outputs, with None where there is no gradient. What the
        hook returns, if not None, replaces grad_input; the gradients of the parameters are not affected. The forward
        gets, and the caller too, views of the tensors that must not be written in place.

        Args:
            prepend: run it before the hooks registered so far.
        """
        return RemovableHandle(hook, self._backward_hooks, prepend=prepend)

    def register_backward_hook(self, hook: Callable) -> RemovableHandle:
        """PyTorch's deprecated form, which tgrad does not have: use `register_full_backward_hook`.

        Raises:
            RuntimeError: the module has a full backward hook. NotImplementedError: otherwise.
        """
        if self._backward_hooks:
            raise RuntimeError(
                "Cannot use both regular backward hooks and full backward hooks on a single Module. Please use only "
                "one of them."
            )
        raise NotImplementedError(
            "register_backward_hook is deprecated in PyTorch, and its grad_input is that of the last op alone: use "
            "register_full_backward_hook"
        )

    def _call_with_hooks(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        result: Any = None
        called: set[int] = set()
        try:
            args, kwargs = self._run_pre_hooks(args, kwargs)
            around = None
            if self._backward_hooks or self._backward_pre_hooks:
                around = BackwardHooks(self, [*self._backward_hooks.values()], [*self._backward_pre_hooks.values()])  # type: ignore[arg-type]
                args = around.around_inputs(args)
            if patterns.get() is None:
                result = self.forward(*args, **kwargs)
            else:
                result = run_block(self, args, kwargs)
            for key, hook in list(self._forward_hooks.items()):
                called.add(key)
                changed = self._run_hook(key, hook, args, kwargs, result)
                result = result if changed is None else changed
            if around is not None:
                result = around.around_outputs(result)
        except Exception:
            self._run_remaining_hooks(called, args, kwargs, result)
            raise
        return result

    def _run_pre_hooks(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        for key, hook in list(self._forward_pre_hooks.items()):
            if key in self._forward_pre_hooks_with_kwargs:
                changed = hook(self, args, kwargs)
                if changed is None:
                    continue
                if not isinstance(changed, tuple) or len(changed) != 2:
                    raise RuntimeError(
                        f"forward pre-hook must return None or a tuple of (new_args, new_kwargs), but got {changed}."
                    )
                args, kwargs = changed
            else:
                changed = hook(self, args)
                if changed is not None:
                    args = changed if isinstance(changed, tuple) else (changed,)
        return args, kwargs

    def _run_hook(self, key: int, hook: Callable, args: tuple, kwargs: dict[str, Any], result: Any) -> Any:
        if key in self._forward_hooks_with_kwargs:
            return hook(self, args, kwargs, result)
        return hook(self, args, result)

    def _run_remaining_hooks(self, called: set[int], args: tuple, kwargs: dict[str, Any], result: Any) -> None:
        for key, hook in list(self._forward_hooks.items()):
            if key not in self._forward_hooks_always_called or key in called:
                continue
            try:
                changed = self._run_hook(key, hook, args, kwargs, result)
                result = result if changed is None else changed
            except Exception as error:
                warnings.warn(
                    "module forward hook with ``always_call=True`` raised an exception that was silenced as another "
                    f"error was raised in forward: {error}",
                    stacklevel=2,
                )


_CALL = Calls.__call__
