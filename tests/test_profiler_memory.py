"""Memory to the byte: computed by hand, by the graph and by the ledger, and beside PyTorch's."""

import gc
import math
from dataclasses import replace

import pytest
import torch

import tgrad
from tgrad import nn
from tgrad.profiler import Workload, latency, memory, torch_twin
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.records import MODES
from tgrad.profiler.workloads import Options, make
from tgrad.storage import ledger

ROWS, WIDTH, DEPTH, OUT = 7, 12, 3, 5


def layers(library):
    hidden = [m for _ in range(DEPTH) for m in (library.Linear(WIDTH, WIDTH), library.ReLU())]
    return library.Sequential(*hidden, library.Linear(WIDTH, OUT))


def mlp(loss=None, held=1, dtype=tgrad.float32, **changes) -> Workload:
    model = layers(nn)

    def batch():
        targets = (tgrad.zeros(ROWS, dtype=tgrad.int64),) if loss is not None else ()
        return (tgrad.randn(ROWS, WIDTH, dtype=dtype),), targets

    given = {"name": "mlp", "model": model, "batch": batch, "loss": loss, "held": held, "batch_size": ROWS}
    return Workload(**(given | changes))


PARAMETERS = 4 * (DEPTH * (WIDTH * WIDTH + WIDTH) + WIDTH * OUT + OUT)


@pytest.mark.parametrize("held", [1, 3])
def test_an_mlp_keeps_what_the_hand_computes(held):
    """Linear keeps its input; ReLU keeps its result, which is the next Linear's input and counts once."""
    found = memory.measure(mlp(held=held), "grad", "id").figures
    assert found["parameters_bytes"] == PARAMETERS
    assert found["inputs_held_bytes"] == held * 4 * ROWS * WIDTH
    assert found["intermediates_bytes"] == held * 4 * ROWS * WIDTH * DEPTH
    assert found["outputs_held_bytes"] == held * 4 * ROWS * OUT
    assert found["outputs_saved_bytes"] == 0
    assert found["graph_bytes"] == held * 4 * ROWS * WIDTH * (DEPTH + 1)
    # Each hidden result is saved twice, by the ReLU that made it and the Linear that takes it.
    assert found["graph_logical_bytes"] == held * 4 * ROWS * WIDTH * (2 * DEPTH + 1)
    assert found["padding_bytes"] == 0
    assert found["nodes"] == held * (2 * DEPTH + 1)
    assert found["live_after_bytes"] - found["live_before_bytes"] == held * 4 * ROWS * (WIDTH * (DEPTH + 1) + OUT)
    assert found["residual_bytes"] == 0


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss()])
def test_without_a_graph_nothing_is_kept(mode, loss):
    found = memory.measure(mlp(loss, held=2), mode, "id")
    results = 4 * ROWS * OUT + (4 if loss is not None else 0)
    for kind in ("graph", "graph_logical", "intermediates", "inputs_held", "outputs_saved"):
        assert found.figures[f"{kind}_bytes"] == 0, kind
    assert found.figures["nodes"] == 0
    assert found.figures["outputs_held_bytes"] == 2 * results
    assert found.figures["residual_bytes"] == 0
    assert found.saved == []


def test_cross_entropy_in_its_columns():
    """On top of the MLP: the scores and the loss are held, the targets are kept with the batch."""
    found = memory.measure(mlp(nn.CrossEntropyLoss()), "grad", "id").figures
    assert found["inputs_held_bytes"] == 4 * ROWS * WIDTH + 8 * ROWS
    assert found["outputs_held_bytes"] == 4 * ROWS * OUT + 4
    assert found["outputs_saved_bytes"] <= 4 * ROWS * OUT
    # What cross-entropy itself adds is small: a number, or one per row.
    assert 0 <= found["intermediates_bytes"] - 4 * ROWS * WIDTH * DEPTH <= 4 * ROWS
    assert found["graph_bytes"] == sum(found[f"{k}_bytes"] for k in ("intermediates", "inputs_held", "outputs_saved"))
    assert found["residual_bytes"] == 0


def test_the_tutorials_claim_in_bytes():
    """Outputs of Linear(1000, 1000) that keep their graph cost as much again, for inputs."""
    workload = make("tutorial", Options())
    assert workload.held == 100
    workload = replace(workload, held=10)
    size = 10 * 100 * 1000 * 4
    with_graph = memory.measure(workload, "grad", "id").figures
    assert (with_graph["outputs_held_bytes"], with_graph["inputs_held_bytes"]) == (size, size)
    assert with_graph["live_after_bytes"] - with_graph["live_before_bytes"] == 2 * size
    for mode in ("no_grad", "inference_mode"):
        without = memory.measure(workload, mode, "id").figures
        assert without["live_after_bytes"] - without["live_before_bytes"] == without["outputs_held_bytes"] == size


# --- what the ledger says, over time ---------------------------------------------------------------------------------
@pytest.mark.parametrize("mode", MODES)
def test_events_are_the_ledger(mode):
    gc.collect()
    before = ledger.live_bytes
    workload = mlp(nn.CrossEntropyLoss())
    found = memory.measure(workload, mode, "id")
    live = found.figures["live_before_bytes"]
    for e in found.events:
        live += e.bytes if e.action == "alloc" else -e.bytes
        assert live == e.live_bytes
    times = [e.t_ns for e in found.events]
    assert times == sorted(times) and times[0] == 0
    assert {e.phase for e in found.events} == {"forward", "after"} | ({"backward"} if mode == "grad" else set())
    peak = max(e.live_bytes for e in found.events) - found.figures["other_live_bytes"]
    assert found.figures["peak_bytes"] == peak >= found.figures["peak_forward_bytes"]
    kinds = {e.category for e in found.events}
    expected = {"input", "output", "temporary"} | ({"intermediate", "gradient"} if mode == "grad" else set())
    assert kinds == expected
    del workload
    gc.collect()
    assert ledger.live_bytes == before  # gradients and all are gone with the model


def test_nothing_stays_live_when_a_workload_is_gone():
    """Also of shapes never seen before, whose plans stay in the engine: a plan must not hold tensors."""
    gc.collect()
    before = ledger.live_bytes
    norm = nn.Sequential(nn.Linear(19, 23), nn.BatchNorm1d(23), nn.GELU(), nn.Dropout(0.1), nn.Linear(23, 3))
    workload = Workload("norm", norm, lambda: ((tgrad.randn(29, 19),), ()), lambda y: (y * y).mean())
    for mode in MODES:
        assert memory.measure(workload, mode, "id").figures["other_live_bytes"] == before
    del workload, norm
    gc.collect()
    assert ledger.live_bytes == before


def test_the_peak_is_the_ledgers():
    workload = mlp()
    memory.measure(workload, "no_grad", "id")  # plans are made
    gc.collect()
    ledger.reset_peak()
    found = memory.measure(workload, "no_grad", "id").figures
    assert ledger.peak_bytes == found["peak_bytes"] + found["other_live_bytes"]


def test_two_runs_of_a_seed_read_alike():
    workload = mlp(nn.CrossEntropyLoss())
    one, two = (memory.measure(workload, "grad", "id") for _ in range(2))
    assert one.saved == two.saved
    assert [(e.action, e.storage_id, e.bytes, e.category) for e in one.events] == [
        (e.action, e.storage_id, e.bytes, e.category) for e in two.events
    ]


# --- where bytes come from -------------------------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.inner(x).relu() + x


def test_saved_rows_say_op_argument_module_and_line():
    model = nn.Sequential(Block(), Block())
    workload = Workload("blocks", model, lambda: ((tgrad.randn(ROWS, WIDTH),), ()))
    rows = memory.measure(workload, "grad", "id").saved
    line = Block.forward.__code__.co_firstlineno + 1
    first = rows[0]
    assert (first.module, first.argument, first.category) == ("0.inner", "input", "input")
    assert (first.file, first.line, first.function) == ("tests/test_profiler_memory.py", line, "forward")
    assert first.shape == f"{ROWS}x{WIDTH}" and first.dtype == "float32" and first.logical_bytes == 4 * ROWS * WIDTH
    relu = next(r for r in rows if r.op == "Relu")
    assert (relu.module, relu.category, relu.line) == ("0", "intermediate", line)
    assert {r.module for r in rows} == {"0.inner", "0", "1.inner", "1"}
    kept = [r for r in rows if r.category != "parameter"]
    assert sum(r.charged_bytes for r in kept) == memory.measure(workload, "grad", "id").figures["graph_bytes"]


def test_an_input_that_requires_grad_is_held_and_accounted_for():
    workload = Workload("x", lambda x: (x + 1).sum(), lambda: ((tgrad.randn(ROWS, WIDTH).requires_grad_(),), ()))
    found = memory.measure(workload, "grad", "id")
    assert found.figures["inputs_held_bytes"] == 4 * ROWS * WIDTH
    assert found.figures["intermediates_bytes"] == 0
    assert found.figures["residual_bytes"] == 0
    assert [(r.op, r.argument) for r in found.saved] == [("AccumulateGrad", "leaf")]


def test_a_view_pins_its_whole_storage():
    workload = Workload("x", lambda x: x[:1].exp() * scale, lambda: ((tgrad.randn(ROWS, WIDTH),), ()))
    scale = tgrad.ones(1, WIDTH).requires_grad_()
    found = memory.measure(workload, "grad", "id").figures
    assert found["residual_bytes"] == 0
    assert found["graph_bytes"] == 4 * WIDTH


def test_a_constant_that_was_there_before_is_not_charged():
    constant = tgrad.randn(ROWS, WIDTH)
    model = nn.Linear(WIDTH, WIDTH)
    workload = Workload("c", model, lambda: ((constant,), ()))
    found = memory.measure(workload, "grad", "id")
    assert found.figures["graph_bytes"] == 0 and found.figures["residual_bytes"] == 0
    assert "constant" in {r.category for r in found.saved}


def test_gradients_of_the_caller_survive():
    workload = mlp()
    workload.model(tgrad.randn(2, WIDTH)).sum().backward()
    had = [p.grad for p in workload.model.parameters()]
    for mode in MODES:
        memory.measure(workload, mode, "id")
    latency.measure(workload, {"grad": "id"}, 1, 0)
    assert all(p.grad is g for p, g in zip(workload.model.parameters(), had, strict=True))


# --- beside PyTorch --------------------------------------------------------------------------------------------------
COLUMNS = ("intermediates_bytes", "inputs_held_bytes", "outputs_held_bytes", "graph_bytes", "graph_logical_bytes")


def torch_batch(rows, width, classes=True):
    targets = (torch.arange(rows) % 10,) if classes else ()
    return lambda: ((torch.randn(rows, width),), targets)


def test_tutorial_keeps_at_most_what_pytorch_keeps():
    ours = memory.measure(replace(make("tutorial", Options(batch_size=4)), held=10), "grad", "id").figures
    theirs = torch_twin.measure(torch.nn.Linear(1000, 1000), torch_batch(4, 1000, False), None, 10)
    assert ours["parameters_bytes"] == theirs.parameters_bytes
    for column in COLUMNS:
        assert ours[column] <= getattr(theirs, column), column
    assert theirs.inputs_held_bytes == 10 * 4 * 1000 * 4 and theirs.intermediates_bytes == 0


@pytest.mark.parametrize(("rows", "width", "depth"), [(16, 32, 3), (1, 8, 1), (33, 17, 5)])
def test_mlp_keeps_at_most_what_pytorch_keeps(rows, width, depth):
    ours = memory.measure(make("mlp", Options(batch_size=rows, width=width, depth=depth)), "grad", "id").figures
    hidden = [m for _ in range(depth) for m in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    model = torch.nn.Sequential(*hidden, torch.nn.Linear(width, 10))
    theirs = torch_twin.measure(model, torch_batch(rows, width), torch.nn.CrossEntropyLoss())
    assert ours["parameters_bytes"] == theirs.parameters_bytes
    for column in COLUMNS:
        assert ours[column] <= getattr(theirs, column), column


def test_the_twin_counts_unique_storages_and_no_parameters():
    model = layers(torch.nn)
    found = torch_twin.measure(model, torch_batch(ROWS, WIDTH, False))
    assert found.parameters_bytes == PARAMETERS
    assert found.intermediates_bytes == 4 * ROWS * WIDTH * DEPTH
    assert found.inputs_held_bytes == 4 * ROWS * WIDTH
    assert found.outputs_held_bytes == 4 * ROWS * OUT


# --- time and counts -------------------------------------------------------------------------------------------------
def test_latency_samples_take_turns():
    samples = latency.measure(mlp(), {m: m for m in MODES}, repeats=3, warmup=1)
    order = [s.mode for s in samples if s.phase == "forward"]
    assert [order[i] for i in (3, 6, 9)] == ["grad", "no_grad", "inference_mode"]
    assert [s.rep for s in samples if s.mode == "grad" and s.phase == "backward"] == [-1, 0, 1, 2]
    assert not [s for s in samples if s.mode != "grad" and s.phase == "backward"]
    assert all(s.is_warmup == (s.rep < 0) and 0 < s.host_ms <= s.wall_ms for s in samples)


def test_counts_of_ops_and_kernels():
    found = {mode: latency.counts(mlp(), mode) for mode in MODES}
    for mode in MODES:
        assert found[mode]["forward_ops"] == found[mode]["forward_kernels"] == 2 * DEPTH + 1
    assert found["grad"]["backward_kernels"] > 0
    assert found["no_grad"]["backward_kernels"] == found["inference_mode"]["backward_ops"] == 0


def test_quartiles():
    assert latency.quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert latency.quartiles([1.0, 2.0]) == (1.25, 1.5, 1.75)
    assert latency.quartiles([7.0]) == (7.0, 7.0, 7.0)
    assert all(math.isnan(v) for v in latency.quartiles([]))


# --- failures --------------------------------------------------------------------------------------------------------
def test_a_failing_forward_names_the_users_line():
    def forward(x):
        return x @ x

    with pytest.raises(ProfilerError, match=r"w: the forward in mode grad failed: .*test_profiler_memory.py:\d+"):
        memory.measure(Workload("w", forward, lambda: ((tgrad.randn(2, 3),), ())), "grad", "id")


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        (Workload("w", lambda x: 3, lambda: ((1,), ())), "gave nothing; expected tgrad tensors"),
        (Workload("w", lambda x: x, lambda: ((tgrad.ones(2),), ()), lambda y: y), r"the loss has shape \(2,\)"),
        (Workload("w", lambda x: x, lambda: ((tgrad.ones(2),), ()), lambda y: 1.5), "gave Tensor, float; expected"),
        (Workload("w", lambda x: x, lambda: 1 / 0), "making of a batch in mode no_grad failed: ZeroDivisionError"),
    ],
)
def test_a_wrong_model_is_said_to_be(workload, message):
    with pytest.raises(ProfilerError, match=message):
        memory.measure(workload, "no_grad", "id")
