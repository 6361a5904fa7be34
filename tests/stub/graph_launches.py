"""What a CUDA graph hands the driver: `TGRAD_LAUNCH=driver python -m tests.stub.graph_launches REPORT.json`.

Over the stub driver, which keeps what is captured with its parameters and launches just that.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

from tests.stub.outcomes import outcomes

CASES: dict[str, Callable[[], None]] = {}
INVALIDATED = 901  # CUDA_ERROR_STREAM_CAPTURE_INVALIDATED


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def address(t: Any) -> bytes:
    return struct.pack("<Q", t if isinstance(t, int) else t.data_ptr())


class Training:
    """A small model, its step, and the step graphed."""

    def __init__(self, warmup: int = 1) -> None:
        import tgrad
        import tgrad.nn as nn

        tgrad.manual_seed(11)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 2))
        self.optimizer = tgrad.optim.AdamW(self.model.parameters(), lr=0.1, betas=(0.5, 0.75))
        self.graphed = tgrad.cuda.graphed(self.step, warmup=warmup)
        self.x, self.y = tgrad.ones(3, 4), tgrad.ones(3, 2)

    def step(self, x: Any, y: Any) -> Any:
        import tgrad.nn.functional as F

        self.optimizer.zero_grad()
        loss = F.mse_loss(self.model(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def recorded(self) -> list[Any]:
        from tests.stub.driver import recording

        with recording() as found:
            self.graphed(self.x, self.y)
        return found

    def counts(self) -> list[float]:
        return [float(self.optimizer.state[p]["step"]) for p in self.model.parameters()]


@case
def launches() -> None:
    """A replay: the arguments copied, the numbers put, and all that was captured, with its addresses and in its order,
    on the stream of all launches."""
    import tgrad
    from tests.stub.driver import STREAM
    from tgrad.random import default_generator

    t = Training()
    eager = [x.kernel for x in t.recorded()]
    assert "dropout" in eager and "multi_tensor" in eager
    first = t.recorded()
    assert t.graphed.graphs == 1 and t.graphed.reason is None
    t.x, t.y = tgrad.zeros(3, 4), tgrad.zeros(3, 2)
    t.optimizer.param_groups[0]["lr"] = 0.25
    begin = default_generator._offset
    second = t.recorded()
    assert {x.stream for x in first + second} == {STREAM}
    (graph,) = next(iter(t.graphed._signatures.values())).steps
    copied, put, *rest = second
    assert copied.kernel == "multi_tensor" and put.kernel == "put"
    assert copied.values[:4] == tuple(map(address, (graph.inputs[0], t.x, graph.inputs[1], t.y)))
    assert rest == first[2:], "not what was captured"
    params = list(t.model.parameters())
    assert rest[0].kernel == "matmul"
    assert rest[0].values[1:4] == tuple(map(address, (graph.inputs[0], params[0], params[1])))

    # The random stream: seed and offset in memory, read by the forward's dropout and by the backward's.
    words = [struct.unpack("<q", v)[0] for v in put.values[1:17]]
    assert words[:2] == [11, begin] and default_generator._offset == begin + 3 * 6
    drops = [x for x in rest if x.kernel == "dropout"]
    assert len(drops) == 2 and all(x.values[2:4] == (put.values[0], struct.pack("<q", 0)) for x in drops)

    # Adam's numbers: as for an eager third step of rate 0.25, each in a place of its own, 16 bytes apart.
    assert t.counts() == [3.0] * 4
    numbers = [struct.unpack("<f", put.values[1 + 2 * k][:4])[0] for k in range(1, 8)]
    wanted = [1 - 0.25 * 0.01, 0.5, 0.75, 0.25, (1 - 0.75**3) ** 0.5, 1e-8, -0.25 / (1 - 0.5**3)]
    assert [struct.unpack("<f", struct.pack("<f", v))[0] for v in wanted] == numbers
    (base,) = struct.unpack("<Q", put.values[0])
    (step,) = [x for x in rest if x.kernel == "multi_tensor"]
    moments = [[p, p.grad, *[t.optimizer.state[p][n] for n in ("exp_avg", "exp_avg_sq")]] for p in params]
    places = [base + 16 * k for k in range(1, 8)]
    assert step.values[:23] == tuple(map(address, [*[v for row in moments for v in row], *places]))


@case
def memory_of_its_own() -> None:
    """Nothing that the graph writes is given to anybody else: neither what was freed in it nor its results."""
    import tgrad

    t = Training()
    for _ in range(3):
        out = t.graphed(t.x, t.y)
    (graph,) = next(iter(t.graphed._signatures.values())).steps
    spans = graph.pool.spans()
    assert any(begin <= out.data_ptr() < end for begin, end in spans)
    assert all(any(begin <= p.grad.data_ptr() < end for begin, end in spans) for p in t.model.parameters())
    del out
    t.optimizer.zero_grad()
    others = [tgrad.ones(n) for n in (1, 2, 6, 12, 18, 24, 100) for _ in range(40)]
    assert not [x for x in others if any(begin <= x.data_ptr() < end for begin, end in spans)]
    assert sum(end - begin for begin, end in spans) <= 20 * 512  # blocks freed on the way serve again


@case
def scratch() -> None:
    """Kernels that need scratch memory read that of the stream on which graphs run."""
    import tgrad
    from tests.stub.driver import STREAM, recording
    from tgrad.kernels import launch

    a, b = (tgrad.ones(1024, 1536, dtype=tgrad.bfloat16) for _ in range(2))
    product = tgrad.cuda.graphed(lambda: a @ b.t(), warmup=1)
    product()
    with recording() as found:
        product()
    (matmul,) = [x for x in found if x.kernel == "matmul_tma"]
    assert matmul.values[-2] == address(launch._scratch[STREAM][0])


@case
def draws() -> None:
    """Every kernel that draws takes seed and offset from memory, each after the one before."""
    import tgrad
    from tests.stub.driver import recording

    def step() -> None:
        tgrad.rand(5)
        tgrad.randn(6, dtype=tgrad.float64)
        tgrad.randint(0, 9, (7,))
        tgrad.ones(8).exponential_()
        tgrad.multinomial(tgrad.ones(4), 9, replacement=True)
        tgrad.nn.functional.dropout(tgrad.ones(10))

    one = tgrad.cuda.graphed(step, warmup=1)
    tgrad.manual_seed(2**64 - 1)
    one()
    with recording() as found:
        one()
    put = found[0]
    assert [struct.unpack("<q", v)[0] for v in put.values[1:3]] == [-1, 45]
    at = {"uniform": 1, "normal": 1, "integers": 1, "exponential": 1, "choose": 2, "dropout": 2}
    seen = [(x.kernel, *x.values[at[x.kernel] : at[x.kernel] + 2]) for x in found if x.kernel in at]
    assert [(name, seed) for name, seed, _ in seen] == [(name, put.values[0]) for name in at]
    assert [struct.unpack("<q", offset)[0] for *_, offset in seen] == [0, 5, 11, 18, 26, 35]


@case
def driver_fails() -> None:
    """The capture's error is the reason; the step has run once, and the state is that of as many steps."""
    from tests.stub.driver import fail_capture
    from tgrad.random import default_generator

    t = Training()
    t.recorded()
    before = [p.data_ptr() for p in t.model.parameters()]
    fail_capture(INVALIDATED)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        eager = t.recorded()
        again = t.recorded()
    assert [x.kernel for x in eager[1:]] == [x.kernel for x in again]  # the first copies the arguments, for the capture
    assert "put" not in [x.kernel for x in again]
    assert len(told) == 1 and f"CUDA error {INVALIDATED} of cuStreamEndCapture" in str(told[0].message), told
    assert told[0].filename == __file__
    assert t.counts() == [3.0] * 4 and default_generator._offset == 44 + 3 * 18  # parameters, and three dropouts
    assert [p.data_ptr() for p in t.model.parameters()] == before
    assert [p._version for p in t.model.parameters()] == [t.model[0].weight._version] * 4


@case
def old_driver() -> None:
    import tgrad
    from tgrad.kernels import cuda_graph

    plain = cuda_graph.NEEDED
    cuda_graph.NEEDED = (*plain, "cuGraphOfTheFuture")
    cuda_graph.why_not.cache_clear()
    try:
        one = tgrad.cuda.graphed(lambda x: x + 1)
    finally:
        cuda_graph.NEEDED = plain
        cuda_graph.why_not.cache_clear()
    assert "lacks cuGraphOfTheFuture" in str(one.reason)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        one(tgrad.ones(2))
        one(tgrad.ones(2))
    assert len(told) == 1


@case
def other_threads() -> None:
    import tgrad

    x, errors, count = tgrad.ones(3), [], [0]

    def elsewhere() -> None:
        try:
            x.exp()
        except RuntimeError as error:
            errors.append(str(error))

    def step(x: Any) -> Any:
        count[0] += 1
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        return x + 1

    one = tgrad.cuda.graphed(step, warmup=1)
    for _ in range(3):
        one(x)
    assert one.graphs == 1 and count[0] == 2 and len(errors) == 1 and "another thread is capturing" in errors[0]


@case
def host_values() -> None:
    """Memory that holds what the host wrote would not be written again."""
    import tgrad

    one = tgrad.cuda.graphed(lambda x: x + tgrad.tensor([1.0, 2.0]), warmup=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(3):
            one(tgrad.ones(2))
    assert len(told) == 1 and one.graphs == 0 and "host" in str(told[0].message)


def main(report: str, *names: str) -> None:
    os.environ["TGRAD_LAUNCH"] = "driver"
    from tests.stub import driver

    driver.install()
    outcomes(CASES, report, names)


if __name__ == "__main__":
    main(*sys.argv[1:])
