"""Kernels on host memory: launches through Triton's interpreter, several times cheaper than its own, and as on a GPU.

Triton's interpreter (`TRITON_INTERPRET=1`) runs a kernel as Python on numpy arrays. Per launch, and again per call of
a device function, it patches `triton.language`, inspects signatures and copies arguments. Here the patch is made once,
at the first `prepare`, with `interpret_memory` (loads and stores), `interpret_numeric` (arithmetic, reductions) and
`interpret_types` (shortcuts) in it; a self-test follows. Where that fails, Triton's internals being others, all is
undone and launches are Triton's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import triton
import triton.language as tl
import triton.runtime.interpreter as triton_interpreter

from tgrad.kernels import (
    interpret_arguments as arguments,
    interpret_memory as memory,
    interpret_numeric as numeric,
    interpret_types as shortcuts,
)
from tgrad.kernels.interpret_numeric import elementwise, register_reduce

__all__ = ["checked", "elementwise", "prepare", "prepare_plain", "register_reduce", "repair_library"]

Spans = Iterable[tuple[int, int]]

_lock = threading.RLock()  # the grid index and the language are global to the process: one kernel at a time
_usable: bool | None = None  # None: not tried yet
_installed: contextlib.ExitStack | None = None  # undoes the patch
_buffers: Callable[[], Spans] | None = None  # given by checked()


# --- launches ------------------------------------------------------------------------------------------------------


def prepare(
    kernel: Any, grid: tuple[int, ...], runtime: tuple, fixed: tuple, constexprs: dict[str, Any]
) -> Callable[..., None]:
    """A launch of `kernel` over `grid` with all but its leading arguments fixed.

    Args:
        kernel: a `@triton.jit` function whose parameters are, in order, the run-time, the fixed and the constant ones.
        grid: number of programs, one to three dimensions.
        runtime: a Triton type ("*bf16", "fp32", "i64", ...) or a tuple of them for each run-time parameter.
        fixed: an int or a nested tuple of ints for each of the next parameters. An int is int32 if it fits, else int64.
        constexprs: the other parameters by name.

    Returns:
        A callable that takes the run-time values, flat and in order: addresses and numbers. Numbers take exactly the
        declared type.
    """
    _check_signature(kernel, runtime, fixed, constexprs)
    if not _usable_here():
        return prepare_plain(kernel, grid, runtime, fixed, constexprs)
    with _lock:
        if _installed is None:
            _install()
    function = kernel.rewrite()
    name = kernel.__name__
    x, y, z = (*grid, 1, 1)[:3]
    makers, spans = arguments.makers(runtime, arguments.pointer)
    count = len(makers)
    pointers = [i for i, given in enumerate(arguments.leaves(runtime)) if given.startswith("*")]
    # Shared by all launches: nothing in a kernel writes to an argument's array (they are read-only), and what Triton
    # notes on a handle (tl.multiple_of) its interpreter does not read.
    kept = tuple(map(arguments.fixed, fixed))
    builder = triton_interpreter.interpreter_builder

    def launch(*values: int | float) -> None:
        if len(values) != count:
            raise TypeError(f"{name}: {len(values)} run-time values given, {count} expected")
        with _lock, np.errstate(all="ignore"):  # a GPU does not warn
            if _installed is None:
                _install()
            flat = [maker(value) for maker, value in zip(makers, values)]
            args = [flat[span] if type(span) is int else tuple(flat[span]) for span in spans]
            axes = range(x), range(y), range(z)
            outer = memory.bounds
            if _buffers is not None:
                memory.bounds = memory.Bounds(name, _buffers(), [int(values[i]) for i in pointers])
                axes = range(x)[::-1], range(y)[::-1], range(z)[::-1]
            builder.grid_dim = (x, y, z)
            try:
                for program in itertools.product(*axes):
                    builder.grid_idx = program
                    function(*args, *kept, **constexprs)
            except Exception as error:
                failure = _cause(error)
                failure.add_note(f"in kernel {name}, program {program}")
            else:
                return
            finally:
                memory.bounds = outer
        try:
            raise failure
        finally:
            del failure  # or this frame and the error hold each other, and what the kernel's frames hold

    return launch


def prepare_plain(
    kernel: Any, grid: tuple[int, ...], runtime: tuple, fixed: tuple, constexprs: dict[str, Any]
) -> Callable[..., None]:
    """`prepare`, with launches that are Triton's own `kernel[grid](...)`, unpatched."""
    _check_signature(kernel, runtime, fixed, constexprs)
    makers, spans = arguments.makers(runtime, arguments.plain_pointer)
    count = len(makers)
    kept = tuple(map(arguments.plain_fixed, fixed))

    def launch(*values: int | float) -> None:
        if len(values) != count:
            raise TypeError(f"{kernel.__name__}: {len(values)} run-time values given, {count} expected")
        with _lock, np.errstate(all="ignore"):
            if _buffers is not None:
                raise RuntimeError(f"{kernel.__name__}: a launch by Triton itself is not checked")
            _uninstall()
            flat = [maker(value) for maker, value in zip(makers, values)]
            args = [flat[span] if type(span) is int else tuple(flat[span]) for span in spans]
            kernel[grid](*args, *kept, **constexprs)

    return launch


def _check_signature(kernel: Any, runtime: tuple, fixed: tuple, constexprs: dict[str, Any]) -> None:
    if not hasattr(kernel, "rewrite"):
        raise TypeError(f"{kernel!r} is not interpreted: TRITON_INTERPRET=1 must be set before a kernel is decorated")
    rest = kernel.arg_names[len(runtime) + len(fixed) :]
    if set(rest) != set(constexprs) or len(runtime) + len(fixed) + len(rest) != len(kernel.arg_names):
        raise TypeError(
            f"{kernel.__name__}{tuple(kernel.arg_names)}: {len(runtime)} run-time and {len(fixed)} fixed arguments "
            f"and {sorted(constexprs)} given"
        )


def _cause(error: Exception) -> Exception:
    """What was raised first: Triton wraps an error once per device function it passes through."""
    while type(error).__name__ == "InterpreterError" and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


# --- checks, for tests ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def checked(buffers: Callable[[], Spans]) -> Iterator[None]:
    """Launches inside are checked, and run their programs in reverse order, which shows races between them.

    Raises: IndexError for an access outside the buffers that the launch's pointer arguments point into; OverflowError
    for an integer operation that wraps; AssertionError for `tl.device_assert`. What a masked load of floats leaves
    undefined, `other` not being given, is NaN.

    Args:
        buffers: gives the first and the end address of each live buffer; called at each launch.
    """
    global _buffers
    if not _usable_here():
        raise RuntimeError("checked() needs tgrad's interpreter, and Triton's own runs the kernels here")
    builder, semantic = triton_interpreter.interpreter_builder, triton_interpreter.interpreter_semantic
    with _lock:
        if _installed is None:
            _install()
        outer = _buffers, builder.options, semantic.binary_op_sanitize_overflow_impl
        _buffers = buffers
        builder.options = dataclasses.replace(builder.options, sanitize_overflow=True, debug=True)
        semantic.binary_op_sanitize_overflow_impl = types.MethodType(numeric.overflow_check, semantic)
    try:
        yield
    finally:
        with _lock:
            _buffers, builder.options, semantic.binary_op_sanitize_overflow_impl = outer


# --- Triton's internals --------------------------------------------------------------------------------------------


def _patch(undo: contextlib.ExitStack) -> None:
    """Everything that leans on Triton's internals. Raises if one of them is missing; `undo` takes all of it back."""
    interpreter = triton_interpreter
    builder, semantic = interpreter.interpreter_builder, interpreter.interpreter_semantic

    def put(where: Any, name: str, value: Any) -> None:
        if name in vars(where):
            undo.callback(setattr, where, name, vars(where)[name])
        else:
            undo.callback(delattr, where, name)
        setattr(where, name, value)

    def put_method(where: Any, function: Callable, name: str | None = None) -> None:
        getattr(where, name or function.__name__)  # raises where Triton has no such method
        put(where, name or function.__name__, types.MethodType(function, where))

    # Triton's own launches leave builtins patched: back to what they were.
    for where in (tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base):
        for name, value in list(vars(where).items()):
            was = (getattr(value, "__kwdefaults__", None) or {}).get("member")
            if tl.core.is_builtin(was):
                setattr(where, name, was)

    # Builtins get the interpreter's semantic. Triton's wrapper of each does so in three calls, this in one.
    def patch_builtin(where: Any, name: str, member: Callable, builder: Any, scope: Any) -> None:
        inner = getattr(member, "__wrapped__", member)

        def builtin(*args: Any, _semantic: Any = None, **kwargs: Any) -> Any:
            return inner(*args, _semantic=semantic, **kwargs)

        scope.set_attr(where, name, builtin)

    slow_patch_attr = interpreter._patch_attr
    interpreter._patch_attr = patch_builtin
    try:
        for language in (tl, tl.core):
            undo.callback(interpreter._patch_lang(types.SimpleNamespace(__globals__={"tl": language})).restore)
    finally:
        interpreter._patch_attr = slow_patch_attr
    # Triton patches again on every launch and on every call of a device function: once is enough.
    nothing = types.SimpleNamespace(restore=lambda: None)
    put(interpreter, "_patch_lang", lambda fn: nothing)
    put(tl.tensor, "__index__", lambda self: int(self.handle.data.squeeze()))  # Triton 3.6's fails with numpy 2.4
    # Triton computes integer overflow on every operation, then drops the answer unless options.debug.
    put(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))

    for method in (*memory.METHODS, *numeric.METHODS):
        put_method(builder, method)
    for name in ("create_srem", "create_urem"):
        put_method(builder, numeric.create_rem, name)
    put(builder, "get_bf16", types.MethodType(numeric.get_bf16, builder))
    numeric.register_library()
    put(tl, "reduce", numeric.make_reduce(tl.reduce))
    put(tl.core, "reduce", tl.reduce)
    _ = semantic.binary_op_sanitize_overflow_impl  # checked() replaces it

    # Triton builds a dict of 19 dtypes per question.
    slow_np_dtype, known = interpreter._get_np_dtype, {}

    def np_dtype(ty: Any) -> np.dtype:
        ty = ty.scalar
        if ty.name not in known:
            known[ty.name] = slow_np_dtype(ty)
        return known[ty.name]

    put(interpreter, "_get_np_dtype", np_dtype)

    core = tl.core
    put(core, "_unwrap_if_constexpr", shortcuts.make_unwrap(core._unwrap_if_constexpr))
    put(core.dtype, "__eq__", shortcuts.make_equal(core.dtype.__eq__))
    put(core.block_type, "__init__", shortcuts.make_block_type(core.block_type.__init__))
    put(core.tensor, "__init__", shortcuts.make_tensor(core.tensor.__init__))
    put(semantic, "broadcast_impl_value", shortcuts.make_broadcast(semantic.broadcast_impl_value))
    checking = shortcuts.make_type_checking(semantic.binary_op_type_checking_impl)
    put(semantic, "binary_op_type_checking_impl", checking)


def _install() -> None:
    global _installed
    undo = contextlib.ExitStack()
    try:
        _patch(undo)
    except BaseException:
        undo.close()
        raise
    _installed = undo


def _uninstall() -> None:
    global _installed
    if _installed is not None:
        _installed.close()
        _installed = None


@triton.jit
def _probe(out, x, half, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + i, mask=i < n, other=2.0).to(tl.float32)
    for _ in range(0, n, B):
        v += half + half
    v = v / tl.sum(v, axis=0)
    tl.store(out + (n - 1 - i) // 1, v.to(tl.bfloat16), mask=i < n)


def _self_test() -> None:
    n, block = 6, 4
    x, out = np.arange(n, dtype=np.float32), np.zeros(n, np.uint16)
    launch = prepare(_probe, (2,), ("*bf16", "*fp32", "fp32"), (n,), {"B": block})
    launch(*(a.__array_interface__["data"][0] for a in (out, x)), 0.5)
    v = np.array([*x, 2, 2], np.float32).reshape(2, block) + np.float32(2)
    v = numeric.to_bfloat16(v / v.sum(1, keepdims=True)).reshape(-1)[:n][::-1]
    if not np.array_equal(out, v):
        raise ArithmeticError(f"the self-test gave {out}, not {v}")


def _usable_here() -> bool:
    global _usable
    with _lock:
        if _usable is None:
            _usable = True  # the self-test launches
            try:
                _install()
                _self_test()
            except Exception as error:
                _usable = False
                _uninstall()
                warnings.warn(
                    f"Triton {triton.__version__}: kernels run in Triton's own interpreter, slowly and with its "
                    f"bfloat16 ({error!r})",
                    stacklevel=3,
                )
        return _usable


def repair_library() -> None:
    """Makes Triton's library interpretable where Triton was imported before TRITON_INTERPRET=1 was set.

    `triton.language` then holds compiled functions, which kernels that are interpreted cannot call.
    """
    message = "import tgrad before triton (constructing a torch optimizer imports it): "
    if not triton.knobs.runtime.interpret:
        raise RuntimeError(message + "TRITON_INTERPRET is not set")
    try:
        compiled = triton.runtime.jit.JITFunction
        made: dict[int, Any] = {}
        modules = [m for name, m in list(sys.modules.items()) if name.split(".")[:2] == ["triton", "language"]]
        for module in modules:
            for name, value in list(vars(module).items()):
                if isinstance(value, compiled):
                    if id(value) not in made:
                        made[id(value)] = triton_interpreter.InterpretedFunction(value.fn)
                    setattr(module, name, made[id(value)])
        for name, value in list(vars(tl.tensor).items()):
            if isinstance(value, compiled):  # a method must be a plain function: only that binds its tensor
                method = made[id(value)]
                setattr(tl.tensor, name, lambda *args, f=method, **kwargs: f(*args, **kwargs))
    except Exception as error:
        raise RuntimeError(message + f"Triton {triton.__version__} could not be repaired ({error!r})") from error
