"""The modes beyond the first three, and each explained as a difference, byte by byte."""

import pytest

import tgrad
from tests.test_profiler_memory import DEPTH, OUT, PARAMETERS, ROWS, WIDTH, mlp
from tgrad import nn
from tgrad.profiler import Workload, aggregate, contexts, memory, profile
from tgrad.profiler.records import ALL_MODES, GRAPH_MODES


@pytest.fixture(scope="module")
def report():
    return profile([mlp(nn.CrossEntropyLoss())], ["all"], repeats=2, warmup=1)


def figures(workload, mode):
    return memory.measure(workload, mode, "id").figures


def test_every_mode_closes_to_the_byte(report):
    assert list(report.runs["mode"]) == list(ALL_MODES)
    assert list(report.runs["residual_bytes"]) == [0] * len(ALL_MODES)


@pytest.mark.parametrize("mode", ALL_MODES)
@pytest.mark.parametrize("held", [1, 3])
def test_without_a_loss_and_with_several_results_held(mode, held):
    assert figures(mlp(held=held), mode)["residual_bytes"] == 0


def test_a_checkpointed_model_keeps_its_segments_inputs():
    """Seven layers in three segments of two, two and three; the last is not checkpointed."""
    assert contexts.segments(2 * DEPTH + 1) == 3
    found = memory.measure(mlp(), "grad+checkpoint", "id")
    rows = [(s.op, s.argument, s.module) for s in found.saved if s.charged_bytes and s.category != "parameter"]
    assert [r for r in rows if r[1] == "input"][:2] == [("Checkpoint", "input", "0"), ("Checkpoint", "input", "2")]
    states = sum(s.charged_bytes for s in found.saved if s.argument == "random state")
    # The second segment's input, the last's input, and the result of its ReLU: as many as ReLU's in grad.
    assert found.figures["intermediates_bytes"] == 3 * 4 * ROWS * WIDTH + states
    assert found.figures["inputs_held_bytes"] == 4 * ROWS * WIDTH


def test_a_model_that_is_no_sequential_is_checkpointed_whole_and_put_back():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, OUT)

        def forward(self, x):
            return self.second(self.first(x).relu())

    model = Net()
    found = memory.measure(mlp(model=model), "grad+checkpoint", "id")
    assert "forward" not in vars(model)
    states = sum(s.charged_bytes for s in found.saved if s.argument == "random state")
    assert found.figures["intermediates_bytes"] == states  # all else is computed again
    assert found.figures["inputs_held_bytes"] == 4 * ROWS * WIDTH
    with pytest.raises(ValueError, match="stop"), contexts.entered("grad+checkpoint", model):
        raise ValueError("stop")
    assert "forward" not in vars(model)


def test_the_gradients_of_all_graph_modes_are_the_same():
    batch = tgrad.randn(ROWS, WIDTH)
    workload = mlp()
    found = []
    for mode in GRAPH_MODES:
        memory.clear_gradients(workload.model)
        with contexts.entered(mode, workload.model):
            workload.model(batch).sum().backward()
        found.append([p.grad.cpu().numpy().tolist() for p in workload.model.parameters()])
    assert found[0] == found[1] == found[2]


def test_offloaded_tensors_are_copies_of_everything_saved():
    grad, cpu = (figures(mlp(), m) for m in ("grad", "grad+save_on_cpu"))
    weights = PARAMETERS - 4 * (DEPTH * WIDTH + OUT)
    assert cpu["inputs_held_bytes"] == 0
    # Each saved tensor has a copy of its own: hidden results two, as they were saved twice, and the weights too.
    assert grad["graph_logical_bytes"] <= cpu["intermediates_bytes"] <= grad["graph_logical_bytes"] + weights


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "set_grad_enabled_false"])
def test_a_callable_that_is_no_module(mode):
    workload = Workload("f", lambda x: x * 2, lambda: ((tgrad.randn(3),), ()))
    assert figures(workload, mode)["graph_bytes"] == 0
    assert figures(workload, "grad+checkpoint")["residual_bytes"] == 0


@pytest.mark.thorough
def test_changes_add_up_byte_by_byte(report):
    changes = report.mode_changes
    assert list(changes["mode"]) == list(ALL_MODES[1:])
    assert list(changes["against"]) == ["grad", "no_grad", "inference_mode", "grad", "grad", "grad", "keep", "lean"]
    for _, row in changes.iterrows():
        table = aggregate.explain(report.saved, "mlp", row["against"], row["mode"])
        assert table["bytes_change"].sum() == row["graph_bytes_change"] == row["bytes_new"] - row["bytes_gone"]
    grad = report.runs.iloc[0]
    assert changes.iloc[0]["graph_bytes_change"] == -grad["graph_bytes"]
    assert changes.iloc[0]["nodes_change"] == -grad["nodes"]
    assert (changes.iloc[0]["tensors_new"], changes.iloc[1]["tensors_gone"]) == (0, 0)


def test_a_mode_without_its_counterpart_is_compared_with_the_one_before():
    report = profile([mlp()], ["no_grad", "grad"], repeats=1, warmup=0)
    assert list(report.mode_changes["against"]) == ["no_grad"]
    assert report.mode_changes["graph_bytes_change"][0] > 0


@pytest.mark.thorough
def test_the_page_explains_each_mode(report, tmp_path):
    folder = report.save(tmp_path / "out")
    page, summary = (folder / "report.html").read_text(), (folder / "summary.md").read_text()
    assert "What changes from mode to mode" in page and "no_grad against grad, byte by byte" in page
    assert "| grad+checkpoint | grad |" in summary
