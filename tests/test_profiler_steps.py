"""The optimiser's step: its state as a category, its phase in memory and time; intervals, flags, and the allocator."""

import math

import numpy as np
import pytest

import tgrad
from tests.test_profiler_memory import PARAMETERS, mlp
from tgrad import nn, optim
from tgrad.profiler import aggregate, allocator, latency, memory, profile, tables
from tgrad.profiler.cli import main
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.optimizers import NAMED
from tgrad.profiler.records import CATEGORIES

STEP_COUNTS = 4 * 8  # Adam counts its steps for each of 8 parameters, in float32


def trained(name, **changes):
    return mlp(nn.CrossEntropyLoss(), optimizer=NAMED[name], **changes)


@pytest.mark.parametrize(("name", "state"), [
    ("sgd", 0), ("momentum", PARAMETERS), ("adam", 2 * PARAMETERS + STEP_COUNTS),
])  # fmt: skip
def test_the_state_is_a_category_of_its_own(name, state):
    workload = trained(name)
    before = [p.detach().numpy().copy() for p in workload.model.parameters()]
    found = memory.measure(workload, "grad", "id")
    assert found.figures["optimizer_bytes"] == state
    assert found.figures["gradients_bytes"] == PARAMETERS
    assert found.figures["residual_bytes"] == found.figures["allocator_residual_bytes"] == 0
    assert found.figures["live_before_bytes"] == PARAMETERS + state + found.figures["other_live_bytes"]
    # State and gradients are live with the forward's results while the step runs.
    assert found.figures["peak_bytes"] >= 2 * PARAMETERS + state
    assert found.optimizer == type(NAMED[name]([tgrad.ones(1).requires_grad_()])).__name__
    assert all(np.array_equal(a, p.detach().numpy()) for a, p in zip(before, workload.model.parameters(), strict=True))
    assert all(p.grad is None for p in workload.model.parameters())


def test_the_books_of_a_training_step_close():
    report = profile(trained("adam"), ["grad", "no_grad"], repeats=2, warmup=0)
    grad, without = report.runs.iloc[0], report.runs.iloc[1]
    assert (without["optimizer_bytes"], without["gradients_bytes"], without["optimizer"]) == (0, 0, "")
    events = report.events[report.events["mode"] == "grad"]
    live = aggregate.live_by_category(events, aggregate.live_before(grad))
    assert set(live["optimizer"]) == {2 * PARAMETERS + STEP_COUNTS}
    sums = live[list(CATEGORIES)].sum(axis=1).to_numpy()[1:]
    assert list(sums) == list(events["live_bytes"] - grad["other_live_bytes"])
    assert (grad["step_kernels"] > 0, without["step_kernels"]) == (True, 0)
    assert list(report.samples[report.samples["mode"] == "grad"]["phase"]) == ["forward", "backward", "step"] * 2
    assert grad["step_wall_low_ms"] <= grad["step_wall_median_ms"] <= grad["step_wall_high_ms"]
    assert math.isnan(without["step_wall_median_ms"]) and math.isnan(grad["step_gpu_median_ms"])
    headings = [c.heading for c in tables.columns(report.runs)]
    assert {"step", "gradients", "optimiser state"} <= set(headings)


def test_a_phase_of_its_own():
    class Wasteful(optim.SGD):
        def step(self, closure=None):
            tgrad.zeros(999)
            return super().step(closure)

    found = memory.measure(mlp(nn.CrossEntropyLoss(), optimizer=lambda p: Wasteful(p, lr=0.1)), "grad", "id")
    (event,) = [e for e in found.events if e.bytes == 4 * 999 and e.action == "alloc"]
    assert (event.phase, event.category) == ("step", "temporary")


def test_wrong_optimisers():
    with pytest.raises(ProfilerError, match="the optimiser is of type int, without a step"):
        memory.measure(mlp(nn.CrossEntropyLoss(), optimizer=lambda p: 3), "grad", "id")
    with pytest.raises(ProfilerError, match="the making of the optimiser in mode grad failed: ZeroDivisionError"):
        memory.measure(mlp(nn.CrossEntropyLoss(), optimizer=lambda p: 1 / 0), "grad", "id")
    assert main(["profile", "mlp", "--optimizer", "lion"]) == 2


def test_a_loss_that_is_nan_is_said_to_be():
    workload = mlp(lambda y, _: (y * math.nan).sum())
    report = profile(workload, ["grad"], repeats=1, warmup=0)
    assert "The loss in mode grad is nan: bytes and kernels do not depend on it" in report.sentences()["mlp"]
    assert report.runs["residual_bytes"][0] == 0


# --- statistics ------------------------------------------------------------------------------------------------------
def test_the_interval_of_the_median():
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        low, high = latency.interval(list(rng.normal(5.0, 1.0, 25)))
        covered += low <= 5.0 <= high
    assert covered >= 51  # 95 % of them, less four deviations
    assert latency.interval([2.0] * 5) == (2.0, 2.0) and latency.interval([1.0, 3.0]) == latency.interval([1.0, 3.0])
    assert all(math.isnan(v) for v in (*latency.interval([]), *latency.interval([1.0, math.nan])))


def test_flags():
    assert latency.is_launch_bound(0.97) and not latency.is_launch_bound(0.5)
    assert not latency.is_launch_bound(math.nan)  # the interpreter's times say nothing about a launch
    assert latency.noise(9.0, 10.0, 12.0) == 0.3


def test_the_rounding_of_a_cuda_allocator():
    """As its sizes are documented: tgrad's blocks are powers of two from 512 bytes on, PyTorch's multiples of 512."""
    assert [allocator.rounded(n, True) for n in (0, 1, 512, 513, 1 << 20)] == [512, 512, 512, 1024, 1 << 20]
    assert [allocator.rounded(n, False) for n in (0, 1, 512, 513, 1030)] == [0, 512, 512, 1024, 1536]
    large = (1 << 20) + 1  # beyond the free lists
    assert allocator.rounded(large, True) == (1 << 20) + 512
    before, after = allocator.State(4096, 1024), allocator.State(4096 + large + 511 + 512, 1024 + 512)
    found = allocator.figures(before, after, [large], has_stats=True)
    assert (found["allocator_bytes"], found["rounding_bytes"], found["free_blocks_bytes"]) == (large + 1023, 511, 512)
    assert found["allocator_residual_bytes"] == 0


def test_a_name_for_every_optimiser():
    for name, make in NAMED.items():
        optimizer = make([tgrad.ones(2).requires_grad_()])
        assert callable(optimizer.step), name
