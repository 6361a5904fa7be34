"""Steps that cannot be captured: they run as without one, and a warning says why. For the GPU, and for graphs.py."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

from tests.stub.graph_steps import STEPS, WARMUP, Training, falls_back

CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def after(what: Callable[[Any], Any]) -> Callable[[Training], Callable]:
    """A whole step, which does something with its loss at its end."""

    def make(t: Training) -> Callable:
        def step(x: Any, target: Any) -> Any:
            loss = t.step(x, target)
            what(loss)
            return loss

        return step

    return make


@case
def refusals() -> None:
    import tgrad
    from tgrad.autograd.graph import save_on_cpu

    line = sys._getframe().f_lineno + 1
    falls_back(f"reads a value on the host ({__file__}:{line}", after(lambda loss: loss.item()))
    falls_back("reads a value on the host", after(lambda loss: 1 if loss > 0 else 2))
    falls_back("reads a value on the host", after(repr))
    falls_back("moves a tensor between devices", after(lambda loss: loss.detach().cpu()))
    falls_back("makes a tensor of values on the host", after(lambda loss: loss + tgrad.tensor(1.0)))
    falls_back("gives memory away", after(lambda loss: tgrad.interop.to_torch(loss.detach()) if hasattr(
        tgrad, "interop") else loss.detach().storage.buffer))
    falls_back("random stream", after(lambda loss: tgrad.manual_seed(3) and tgrad.rand(2)))
    falls_back("random stream", after(lambda loss: tgrad.rand(2, generator=tgrad.Generator().manual_seed(3))))

    def zeroed_at_the_end(t: Training) -> Callable:
        def step(x: Any, target: Any) -> Any:
            loss = t.loss(x, target)
            loss.backward()
            t.optimizer.step()
            loss.item()  # the gradients that the capture made must not stay
            t.optimizer.zero_grad()
            return loss

        return step

    falls_back("reads a value on the host", zeroed_at_the_end)

    def caught(loss: Any) -> None:
        try:
            loss.item()
        except RuntimeError:
            return

    falls_back("reads a value on the host", after(caught))

    class Doubled(tgrad.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return tgrad.tensor(x.detach().cpu().numpy() * 2)

        @staticmethod
        def backward(ctx: Any, g: Any) -> Any:
            return g * 2

    def custom(t: Training) -> Callable:
        def step(x: Any, target: Any) -> Any:
            t.optimizer.zero_grad()
            loss = Doubled.apply(t.loss(x, target))
            loss.backward()
            t.optimizer.step()
            return loss

        return step

    falls_back("moves a tensor between devices", custom)

    def offloaded(t: Training) -> Callable:
        def step(x: Any, target: Any) -> Any:
            with save_on_cpu():
                return t.step(x, target)

        return step

    falls_back("moves a tensor between devices", offloaded)

    def scheduled(t: Training) -> Callable:
        scheduler = tgrad.optim.lr_scheduler.StepLR(t.optimizer, 1, 0.5)

        def step(x: Any, target: Any) -> Any:
            loss = t.step(x, target)
            scheduler.step()
            return loss

        return step

    falls_back("AdamW's lr", scheduled)

    def scaled(t: Training) -> Callable:
        scaler = tgrad.amp.GradScaler(init_scale=4.0)

        def step(x: Any, target: Any) -> Any:
            t.optimizer.zero_grad()
            loss = t.loss(x, target)
            scaler.scale(loss).backward()
            scaler.step(t.optimizer)
            scaler.update()
            return loss

        return step

    falls_back("reads a value on the host", scaled)

    def writes(t: Training) -> Callable:
        def step(x: Any, target: Any) -> Any:
            x.mul_(2.0)
            return t.step(x, target)

        return step

    falls_back("writes to its tensor argument 0", writes)


@case
def unfit_arguments() -> None:
    import tgrad

    for x, says in ((tgrad.ones(2, requires_grad=True), "requires grad"), (tgrad.ones(2, device="cpu"), "on the CPU")):
        one = tgrad.cuda.graphed(lambda t: t.to("cuda") * 2, warmup=1)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(4):
                assert one(x).tolist() == [2.0, 2.0]
        assert len(told) == 1 and says in str(told[0].message), told


@case
def errors_of_the_function() -> None:
    """An error is the function's own, and leaves what it would leave without a graph; the next call tries again."""
    import tgrad

    fail = [False]

    def make(t: Training) -> Callable:
        def step(x: Any, target: Any) -> Any:
            loss = t.step(x, target)
            if fail[0]:
                raise ValueError("the function's")
            return loss

        return step

    def history(graphed: bool) -> list[Any]:
        t = Training()
        one = make(t)
        one = tgrad.cuda.graphed(one, WARMUP) if graphed else one
        found = []
        for i in range(STEPS):
            fail[0] = i == WARMUP  # the first call that captures
            try:
                one(t.inputs[i], t.targets[i])
            except ValueError:
                assert i == WARMUP
            found.append(t.state())
        if graphed:
            assert one.graphs == 1 and one.reason is None
        return found

    assert repr(history(True)) == repr(history(False))


@case
def other_threads() -> None:
    """A launch from another thread is refused while a graph is captured; afterwards all is as before."""
    import tgrad

    failures: list[BaseException] = []

    def elsewhere() -> None:
        try:
            tgrad.ones(3).exp()
        except RuntimeError as error:
            failures.append(error)

    count = [0]

    def step(x: Any) -> Any:
        count[0] += 1
        if count[0] == 2:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
        return x + 1

    one = tgrad.cuda.graphed(step, warmup=1)
    for i in range(4):
        assert one(tgrad.full((2,), float(i))).tolist() == [i + 1.0] * 2
    assert count[0] == 2 and one.graphs == 1 and "another thread" in str(failures[0])


@case
def observed() -> None:
    """A profiler sees the steps: they run eagerly meanwhile."""
    import tgrad
    from tgrad import dispatch

    class Seen:
        ops: list[str] = []

        def begin(self, op: str) -> None:
            self.ops.append(op)

        def end(self, op: str) -> None:
            pass

    one = tgrad.cuda.graphed(lambda x: x.exp(), warmup=1)
    for _ in range(3):
        one(tgrad.zeros(2))
    dispatch.observer = Seen()
    try:
        one(tgrad.zeros(2))
    finally:
        dispatch.observer = None
    assert "exp" in Seen.ops and one.graphs == 1
