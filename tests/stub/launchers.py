"""The launcher in Python beside the native one: `TGRAD_LAUNCH=driver python -m tests.stub.launchers REPORT.json`.

Each launch of a case is made by both, and the driver has to get the same from both. Further cases: launch hooks,
captures, and Tritons whose internals are others.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from tests.stub.outcomes import outcomes

CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


@contextlib.contextmanager
def launching(prepare: Callable[..., Any]) -> Iterator[None]:
    """Prepare every launch by `prepare`, a stand-in for `launch._driver_launch`."""
    from tgrad.kernels import launch

    before, launch._driver_launch = launch._driver_launch, prepare  # type: ignore[assignment]
    launch._prepare_anew()
    try:
        yield
    finally:
        launch._driver_launch = before
        launch._prepare_anew()


def in_python(compiled: Any, grid: tuple, runtime: tuple, fixed: tuple, constants: tuple) -> Any:
    """A launch by the launcher in Python."""
    from tgrad.kernels import launch, triton_launch

    launch.stream()
    compiled._init_handles()
    x, y, z = (*grid, 1, 1)[:3]
    plain = [(launch._type(v), v) for v in launch._leaves(fixed) if not isinstance(v, launch.Static)]
    scratch = launch.scratch if compiled.metadata.global_scratch_size else None
    return triton_launch.prepare(compiled, (x, y, z), runtime, plain, (*fixed, *constants), scratch)


def by_both(compiled: Any, grid: tuple, runtime: tuple, fixed: tuple, constants: tuple) -> Any:
    """A launch that is made twice: by the native launcher, then in Python."""
    native = NATIVE(compiled, grid, runtime, fixed, constants)
    assert type(native).__name__ == "Launcher", native
    python = in_python(compiled, grid, runtime, fixed, constants)

    def launch(*values: float) -> None:
        native(*values)
        python(*values)

    return launch


NATIVE: Any = None


@case
def same_as_native() -> None:
    """Addresses, i32, i64, fp32, fp64, tuples and constants; scratch memory; many tensors; in each number of values."""
    import tgrad
    import tgrad.nn.functional as F
    from tests.stub.driver import recording

    a, b, wide, whole = tgrad.ones(6, 5), tgrad.ones(5), tgrad.ones(7).double(), tgrad.ones(7, dtype=tgrad.int64)
    x, w, bias = tgrad.ones(33, 48), tgrad.ones(20, 48), tgrad.ones(20)
    half = tgrad.ones(1024, 1536, dtype=tgrad.bfloat16)
    params = [tgrad.ones(n, requires_grad=True) for n in (3, 16, 5)]
    for p in params:
        p.grad = tgrad.ones(p.shape)
    calls = [
        lambda: a.relu(), lambda: a + a, lambda: a + b, lambda: a * 2.5, lambda: wide * 0.1, lambda: whole + 2**62,
        lambda: tgrad.clamp(a, -0.5, 0.5), lambda: a.t() + 1, lambda: tgrad.where(a > 0, a, b),
        lambda: F.linear(x, w, bias), lambda: a.sum(), lambda: tgrad.softmax(a, 1),
        lambda: tgrad.arange(0.5, 2.0, 0.25), lambda: half @ half.t(), tgrad.optim.AdamW(params).step,
    ]  # fmt: skip
    with launching(by_both):
        for i, call in enumerate(calls):
            with recording() as found:
                call()
            assert found, f"call {i} launched nothing"
            assert found[0::2] == found[1::2], f"call {i}: {found}"


@case
def hooks_of_triton() -> None:
    from triton import knobs

    import tgrad

    a, seen = tgrad.ones(6, 5), []

    def enter(metadata: Any) -> None:
        seen.append(metadata.get()["name"])

    def leave(metadata: Any) -> None:
        seen.append("end")

    with launching(in_python):
        a + a
        knobs.runtime.launch_enter_hook.add(enter)
        a + a
        knobs.runtime.launch_exit_hook.add(leave)
        a + a
        knobs.runtime.launch_enter_hook.remove(enter)
        a + a
        knobs.runtime.launch_exit_hook.remove(leave)
        a + a
        assert seen == ["pointwise", "pointwise", "end", "end"], seen
        with knobs.runtime.scope():
            knobs.runtime.launch_enter_hook = enter
            a.relu()
        a.relu()
        assert seen[4:] == ["pointwise"], seen


@case
def streams_and_captures() -> None:
    import tgrad
    from tests.stub.driver import STREAM, recording
    from tgrad.kernels import launch

    a, addresses, errors = tgrad.ones(6, 5), [], []

    def elsewhere() -> None:
        try:
            a + a
        except RuntimeError as error:
            errors.append(str(error))

    with launching(in_python):
        a + a
        with recording() as found, launch.diverted(STREAM + 2, addresses):
            c = a * 2.0
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
        a + a
    assert addresses == [c.data_ptr(), a.data_ptr()], addresses
    assert len(errors) == 1 and "another thread is capturing" in errors[0], errors
    assert [x.stream for x in found] == [STREAM + 2], found


@case
def another_device_is_current() -> None:
    """Kernels are loaded for tgrad's device and launched on it, and the thread's current device stays what it is."""
    import tgrad
    from tests.stub.driver import STREAM, current_device, recording, second_of_two
    from tgrad.kernels import launch

    a, seen = tgrad.ones(6, 5), []
    a + a
    launch.device = 0

    def work() -> None:
        with second_of_two():
            a.asinh()  # loaded here
            seen.append(current_device())
            a.asinh()
            a + a  # loaded before
            seen.append(current_device())
        a.asinh()
        seen.append(current_device())

    try:
        launch._stream, before = None, launch.stream()
        with recording() as found:
            work()
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    finally:
        launch.device = None
    assert seen == [1, 1, 0] * 2 and len(found) == 8, (seen, found)
    assert {x.stream for x in found} == {STREAM} == {before}, found


@contextlib.contextmanager
def doctored(name: str, replacement: Any) -> Iterator[list]:
    """With another function in Triton's launcher, and nothing said yet; yields the warnings."""
    from triton.backends.nvidia.driver import CudaLauncher

    from tgrad.kernels import triton_launch

    before = getattr(CudaLauncher, name)
    setattr(CudaLauncher, name, replacement)
    triton_launch._told.clear()
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            yield told
    finally:
        setattr(CudaLauncher, name, before)


def another_triton(name: str, replacement: Any, said: str, way: str) -> None:
    """With another function in Triton's launcher all is launched as ever, and it is said once how, and why."""
    import tgrad
    from tests.stub.driver import recording

    a, b = tgrad.ones(6, 5), tgrad.ones(5)
    with launching(by_both), doctored(name, replacement) as told, recording() as found:
        a + a
        a + b
        a + a
    assert len(found) == 6 and found[0::2] == found[1::2], found
    messages = [str(w.message) for w in told]
    assert len(messages) == 1 and said in messages[0] and f"launched through `{way}`" in messages[0], messages


@case
def a_triton_with_another_order() -> None:
    from triton.backends.nvidia.driver import CudaLauncher

    call = CudaLauncher.__call__

    def turned(self: Any, x: int, y: int, z: int, stream: Any, function: Any, *rest: Any) -> None:
        launch = self.launch
        if launch.__name__ == "<lambda>":  # the recorder
            self.launch = lambda *given: launch(*given[3:5], *given[:3], *given[5:])
        call(self, x, y, z, stream, function, *rest)

    another_triton("__call__", turned, "does not take the grid, the stream and the kernel first", "CompiledKernel.run")


@case
def a_triton_with_more_arguments() -> None:
    from triton.backends.nvidia.driver import CudaLauncher

    call = CudaLauncher.__call__

    def more(self: Any, *given: Any) -> None:
        launch = self.launch
        if launch.__name__ == "<lambda>":
            self.launch = lambda *given: launch(*given[:5], None, *given[5:])
        call(self, *given)

    another_triton("__call__", more, "in an unknown order", "CompiledKernel.run")


@case
def a_triton_with_another_launcher() -> None:
    """Of which nothing is known but that `CompiledKernel[grid]` calls it."""
    from triton.backends.nvidia.driver import CudaLauncher

    call = CudaLauncher.__call__

    def strict(self: Any, x: int, y: int, z: int, stream: Any, function: Any, packed: Any, metadata: Any, enter: Any,
               leave: Any, *args: Any) -> None:  # fmt: skip
        if enter is None:
            raise TypeError("a hook is wanted")
        call(self, x, y, z, stream, function, packed, metadata, enter, leave, *args)

    import tgrad
    from tests.stub.driver import recording

    a = tgrad.ones(6, 5)
    with launching(in_python), doctored("__call__", strict) as told, recording() as found:
        a + a
    messages = [str(w.message) for w in told]
    assert len(found) == 1 and found[0].grid == (1, 1, 1), found
    assert len(messages) == 2 and "TypeError('a hook is wanted')" in messages[1], messages
    assert "launched through `CompiledKernel[grid]`" in messages[1], messages


def main(path: str) -> None:
    global NATIVE
    from tests.stub import driver

    driver.install()
    from tgrad.kernels import launch

    NATIVE = launch._driver_launch
    outcomes(CASES, path)


if __name__ == "__main__":
    main(sys.argv[1])
