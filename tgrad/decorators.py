"""Running a function in a mode: entered at each call, and at each resumption of what is suspended and resumed.

A generator, coroutine or async generator is in the mode whenever its body runs, and its caller never is.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager
from typing import Any

Fresh = Callable[[], AbstractContextManager]


def decorate(function: Any, fresh: Fresh, *, stacklevel: int = 3) -> Callable:
    """`function` with its body run in a context of its own at each call, so that it may recurse and run in threads.

    What is not callable is accepted, and fails when it is called. A class becomes a function that makes objects of it:
    only their construction runs in the mode.

    Args:
        fresh: makes the context.
        stacklevel: of the warning about classes; 3 is the caller's caller.
    """
    if inspect.isclass(function):
        warnings.warn(
            "Decorating classes is deprecated and will be disabled in future versions. You should only decorate "
            "functions or methods. To preserve the current behavior of class decoration, you can directly decorate "
            "the `__init__` method and nothing else.",
            FutureWarning,
            stacklevel=stacklevel,
        )
        return functools.wraps(function, updated=())(_call(function, fresh))
    if inspect.isgeneratorfunction(function):
        wrapper = _generator(function, fresh)
    elif inspect.iscoroutinefunction(function):
        wrapper = _coroutine(function, fresh)
    elif inspect.isasyncgenfunction(function):
        wrapper = _async_generator(function, fresh)
    else:
        wrapper = _call(function, fresh)
    return functools.wraps(function)(wrapper)


def _call(function: Any, fresh: Fresh) -> Callable:
    def call(*args: Any, **kwargs: Any) -> Any:
        with fresh():
            return function(*args, **kwargs)

    return call


def _generator(function: Any, fresh: Fresh) -> Callable:
    def generate(*args: Any, **kwargs: Any) -> Any:
        return (yield from _resume(function(*args, **kwargs), fresh))

    return generate


def _coroutine(function: Any, fresh: Fresh) -> Callable:
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await _Resumed(function(*args, **kwargs), fresh)

    return call


def _async_generator(function: Any, fresh: Fresh) -> Callable:
    async def generate(*args: Any, **kwargs: Any) -> Any:
        inner = function(*args, **kwargs)
        try:
            value = await _Resumed(inner.asend(None), fresh)
            while True:
                try:
                    got = yield value
                except GeneratorExit:
                    await _Resumed(inner.aclose(), fresh)
                    raise
                except BaseException as error:
                    value = await _Resumed(inner.athrow(error), fresh)
                else:
                    value = await _Resumed(inner.asend(got), fresh)
        except StopAsyncIteration:
            return

    return generate


class _Resumed(Awaitable):
    """What awaits a coroutine, or a step of an async generator, in the mode."""

    def __init__(self, inner: Any, fresh: Fresh) -> None:
        self.inner, self.fresh = inner, fresh

    def __await__(self) -> Generator[Any, Any, Any]:
        return _resume(self.inner, self.fresh)


def _resume(inner: Any, fresh: Fresh) -> Generator[Any, Any, Any]:
    """Hand on what comes out of `inner` and what goes in, each time it runs in a new context; returns its value."""
    try:
        with fresh():
            value = inner.send(None)
        while True:
            try:
                got = yield value
            except GeneratorExit:
                with fresh():
                    inner.close()
                raise
            except BaseException as error:
                with fresh():
                    value = inner.throw(error)
            else:
                with fresh():
                    value = inner.send(got)
    except StopIteration as stop:
        return stop.value
