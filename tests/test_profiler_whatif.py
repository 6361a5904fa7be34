"""What if: bytes predicted from the ledger to the byte, then run; gradients that stay; and the plot's front."""

import json
import math

import pytest

import tgrad
from tgrad import nn
from tgrad.profiler import Change, Workload, whatif
from tgrad.profiler.changes import applied, lower_saves, matching
from tgrad.profiler.cli import main
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.predict import Base, Times
from tgrad.profiler.whatif import Outcome, WhatIf, candidates

ROWS, WIDTH = 6, 8


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.act, self.b = nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x):
        return x + self.norm(self.b(self.act(self.a(x))))


def blocks(count=2) -> Workload:
    model = nn.Sequential(*[Block() for _ in range(count)], nn.Linear(WIDTH, 3))
    return Workload("blocks", model, lambda: ((tgrad.randn(ROWS, WIDTH),), ()), lambda y: (y * y).mean())


@pytest.fixture(scope="module")
def found():
    changes = [
        Change("checkpoint", "Block"), Change("checkpoint", "0"), Change("checkpoint", ""),
        Change("lower", "bfloat16"), Change("inplace"),
    ]  # fmt: skip
    return whatif(blocks(), changes, repeats=1, warmup=0)


def test_kept_bytes_are_predicted_to_the_byte(found):
    for o in found.outcomes:
        assert o.is_exact, o
        assert not math.isnan(o.measured_ms) and not math.isnan(o.predicted_ms)
    as_is, each, first, whole, lower, inplace = (o.measured_graph_bytes for o in found.outcomes)
    random = 16
    assert whole == 4 * ROWS * WIDTH + random + 4 * ROWS * 3  # the batch; the loss keeps the scores
    # Of a checkpointed block its input stays; after both, what the last Linear and the loss keep.
    assert each == 3 * 4 * ROWS * WIDTH + 2 * random + 4 * ROWS * 3
    assert each < first < as_is and inplace == as_is
    assert lower == as_is / 2  # float32 to bfloat16, all of it


def test_results_and_gradients_stay_but_for_lower_precision(found):
    *same, lower, inplace = found.outcomes
    assert [o.gradient_change for o in (*same, inplace)] == [0.0] * 5
    assert 0 < lower.gradient_change < 0.02 and "Gradients change by up to" in lower.note


def test_the_replay_of_the_model_as_it_is_has_its_peak():
    from tgrad.profiler import memory
    from tgrad.profiler.calls import Calls

    calls = Calls()
    base = Base(memory.measure(blocks(), "grad", "", calls=calls), calls, Times(1.0, 1.0))
    assert base.peak({}) == base.figures["peak_bytes"]
    assert [c.path for c in calls.all[:3]] == ["", "0", "0.a"] and calls.all[0].depth == 0
    assert len(calls.outermost(matching(calls.all[0].module, "Block,0.a"))) == 2


def wide(count=3) -> Workload:
    """Blocks whose tensors are large enough to be moved, and to be recomputed."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.a, self.act, self.b = nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)

        def forward(self, x):
            return x + self.b(self.act(self.a(self.norm(x))))

    model = nn.Sequential(nn.Linear(32, 32), *[Wide() for _ in range(count)])
    return Workload("wide", model, lambda: ((tgrad.randn(64, 32),), ()), lambda y: (y * y).mean())


def test_offload_alone_and_together_with_checkpoints():
    together = Change("together", parts=(Change("checkpoint", "2,3"), Change("offload", "1,2")))
    lowered = Change("together", parts=(Change("checkpoint", "1"), Change("lower", "bfloat16")))
    changes = [Change("offload", "1"), Change("offload", ""), Change("checkpoint", "2,3"), together, lowered]
    as_is, one, whole, _, both, lower = whatif(wide(), changes, repeats=1, warmup=0).outcomes
    stream = 4 * 64 * 32
    for o in (as_is, one, whole, both, lower):
        assert o.is_exact, o
        assert o.measured_peak_bytes == pytest.approx(o.predicted_peak_bytes, rel=0.15), o.change
    assert (as_is.measured_host_bytes, one.measured_host_bytes) == (0, 3 * stream)  # its input and the hidden layer
    assert both.measured_host_bytes == 4 * stream  # of 1 as before, of 2 its input
    assert whole.measured_host_bytes == 3 * 3 * stream + stream  # and the batch
    assert whole.measured_graph_bytes < one.measured_graph_bytes < as_is.measured_graph_bytes
    assert [o.gradient_change for o in (one, whole, both)] == [0.0] * 3 and lower.gradient_change > 0
    assert str(together) == both.change == "checkpoint 2,3 + offload 1,2"


def test_a_change_leaves_no_trace():
    workload = blocks(1)
    for change in (Change("checkpoint", "Block"), Change("inplace"), Change("lower", "float16")):
        modules = [m for m in workload.model.modules() if change.kind == "inplace" and hasattr(m, "inplace")]
        with pytest.raises(ValueError), applied(change, workload.model, modules or [workload.model[0]]):
            raise ValueError
    assert "forward" not in vars(workload.model[0]) and workload.model[0].act.inplace is False


def test_a_tensor_saved_twice_is_lowered_once():
    x = tgrad.randn(5, 7).requires_grad_()
    with lower_saves("bfloat16"):
        h = x.exp()
        y = h * h
    kept = {r.storage_id: r.storage_bytes for r in tgrad.autograd.graph.saved(y)}
    assert sum(kept.values()) <= 5 * 7 * (2 + 4)
    y.sum().backward()
    expected = 2 * (2 * x.detach()).exp()
    assert ((x.grad - expected).abs() / expected).max().item() < 0.01


def test_activations_that_others_need_are_left_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.kept, self.fine = nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.ReLU()

        def forward(self, x):
            h = self.a(x)
            return self.fine(self.kept(h) + h)

    workload = Workload("net", Net(), lambda: ((tgrad.randn(ROWS, WIDTH),), ()), lambda y: y.sum())
    as_is, inplace = whatif(workload, [Change("inplace")], repeats=1, warmup=0).outcomes
    assert inplace.is_exact and inplace.gradient_change == 0
    assert inplace.note.startswith("Left out: kept: its argument is kept for the gradient of")
    assert as_is.measured_graph_bytes == inplace.measured_graph_bytes


def test_attention_is_checkpointed_with_one_input_three_times():
    """Query, key and value are one tensor, on both runs: what its forward saves depends on that."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner = nn.Linear(WIDTH, WIDTH), nn.MultiheadAttention(WIDTH, 2, batch_first=True)

        def forward(self, x):
            x = self.first(x)
            return self.inner(x, x, x, need_weights=False)[0]

    workload = Workload("net", Net(), lambda: ((tgrad.randn(2, 3, WIDTH),), ()), lambda y: (y * y).sum())
    outcome = whatif(workload, [Change("checkpoint", "inner")], repeats=1, warmup=0).outcomes[1]
    assert outcome.is_exact and outcome.gradient_change == 0


def test_a_result_that_changes_is_warned_of():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act = nn.Linear(WIDTH, WIDTH), nn.ReLU()

        def forward(self, x):
            h = self.a(x)
            return self.act(h) + h  # in place, h is already cut off here

    workload = Workload("net", Net(), lambda: ((tgrad.randn(ROWS, WIDTH),), ()), lambda y: y.sum())
    outcome = whatif(workload, [Change("inplace")], repeats=1, warmup=0).outcomes[1]
    assert outcome.gradient_change > 0 and "Beware: results or gradients change" in outcome.note


def test_the_front():
    def outcome(name, size, ms):
        return Outcome(name, size, size, 0, 0, ms, ms, 0.0, "")

    given = [outcome("a", 10, 1.0), outcome("b", 5, 2.0), outcome("c", 7, 3.0), outcome("d", 10, 1.5)]
    failed = Outcome("e", 1, math.nan, 0, math.nan, 1.0, math.nan, math.nan, "cannot be run: no")
    result = WhatIf("w", True, [*given, failed])
    assert [o.change for o in result.front] == ["a", "b"]
    assert list(result.frame["is_on_front"]) == [True, True, False, False, False]
    assert result.sentences()[-1] == "e: cannot be run: no."
    assert "<table" in result._repr_html_()


@pytest.mark.thorough
def test_the_command(tmp_path, capsys):
    argv = ["whatif", "mlp", "--width", "8", "--depth", "2", "--batch-size", "4", "--repeats", "1"]
    out = tmp_path / "out"
    chosen = ["--checkpoint", "0,1,2", "--lower", "bfloat16", "--together"]
    assert main([*argv, *chosen, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "checkpoint 0,1,2" in text and "save as bfloat16" in text and "exact" in text and "on the host" not in text
    assert main([*argv, "--width", "64", "--batch-size", "64", "--offload", ""]) == 0
    assert "on the host" in capsys.readouterr().out
    assert {p.name for p in out.iterdir()} - {"whatif.parquet"} == {"whatif.csv", "whatif.png", "whatif.svg"}
    assert (out / "whatif.svg").read_text().startswith("<svg ") and "as it is" in (out / "whatif.csv").read_text()
    assert main([*argv, "--inplace-activations", "--out", str(out)]) == 2
    assert main([*argv, "--inplace-activations", "--json"]) == 0
    captured = capsys.readouterr()
    assert [r["change"] for r in json.loads(captured.out)] == ["as it is", "activations in place"]


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--checkpoint", "layers.*"], "no module has such a path or class; there are 0, 1"),
        (["--lower", "int8"], "unknown dtype 'int8'; choose bfloat16 or float16"),
        (["--dtype", "float16", "--lower", "bfloat16"], "float16 is no wider"),
        (["--lower", "bfloat16", "--lower", "bfloat16"], "a change is given twice"),
        (["--offload", "layers.*"], "--offload layers.*: no module has such a path or class; there are 0, 1"),
        (["--offload", "0", "--together"], "--together: name two changes or more"),
        (["--offload", "0", "--lower", "bfloat16", "--together"], "inside these nothing is offloaded"),
        (["--repeats", "0"], "--repeats: expected a whole number of at least 1"),
    ],
)
def test_bad_input(capsys, argv, says):
    assert main(["whatif", "mlp", "--width", "4", "--depth", "1", *argv]) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_candidates_and_functions():
    found = [str(c) for c in candidates(blocks().model)]
    assert found == ["checkpoint (the model)", "checkpoint Block", "save as bfloat16", "activations in place"]
    with pytest.raises(ProfilerError, match="the model is a function"):
        matching(lambda x: x, "0")
    with pytest.raises(ProfilerError, match="unknown change 'faster'"):
        whatif(blocks(), [Change("faster")])
