"""Leaks: the slope to the byte, the variable that holds the graph, and forwards whose graph nobody uses."""

import gc
import json
import weakref

import pytest

import tgrad
from tgrad import nn
from tgrad.engine import Walk
from tgrad.profiler import leaks
from tgrad.profiler.cli import main
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.garbage import collected_apart

LOOP = """import tgrad
from tgrad import nn

model = nn.Linear(3, 1)
losses = []

def train():
    losses.append(model(tgrad.ones(2, 3)).sum())

def fine():
    model(tgrad.ones(2, 3)).sum().backward()
"""

model = nn.Linear(8, 8)
history = []


def step():
    model.zero_grad()
    loss = (model(tgrad.ones(4, 8)) ** 2).mean()
    loss.backward()
    return loss


def test_a_clean_loop_has_none():
    found = leaks(step, iterations=4)
    assert not found.found and found.slope_bytes == 0 and found.unused_graphs == 0
    assert len(set(found.live_bytes)) == 1 and found.iterations == 4
    assert found.sentences() == ["No leak: memory is the same after each of 4 iterations."]


def test_a_list_of_losses_is_named():
    losses = []

    def train():
        loss = model(tgrad.ones(4, 8)).mean()
        losses.append(loss)

    found = leaks(train, iterations=5)
    # The loss, and the batch that the graph of Linear keeps.
    assert found.found and found.slope_bytes == 4 + 4 * 4 * 8 and found.slope_ci_bytes == 0
    (holder,) = found.holders
    assert holder.name == "losses[6]" and holder.op == "Mean"
    assert holder.file.endswith("test_profiler_leaks.py") and holder.line == train.__code__.co_firstlineno + 1
    assert holder.graph_bytes == found.slope_bytes
    text = "\n".join(found.sentences())
    assert "Leak: 132 B (±0 B) stay" in text and "losses[6]" in text and ".item()" in text


@pytest.mark.thorough
def test_a_global_list_and_a_dict_in_an_object():
    class Logger:
        def __init__(self):
            self.metrics = {"loss": []}

    def once():
        history.append(step())

    try:
        found = leaks(once, iterations=3)
        assert [h.name.partition("[")[0] for h in found.holders] == ["history"]
    finally:
        history.clear()
    log = Logger()

    def twice():
        log.metrics["loss"].append(step())

    found = leaks(twice, iterations=3)
    assert [h.name for h in found.holders] == ["log.metrics['loss'][4]"]


def test_a_sum_that_keeps_its_graph():
    total = {"loss": tgrad.zeros(())}

    def evaluate():
        total["loss"] = total["loss"] + model(tgrad.ones(4, 8)).mean()

    found = leaks(evaluate, iterations=4)
    assert found.found and found.unused_graphs == 4
    assert found.holders[0].name == "total['loss']"


@pytest.mark.thorough
def test_detached_losses_leak_only_themselves():
    losses = []

    def train():
        losses.append(step().detach())

    assert leaks(train, iterations=3).slope_bytes == 4


@pytest.mark.thorough
def test_evaluation_without_no_grad_is_warned_of():
    def evaluate():
        return model(tgrad.ones(4, 8)).argmax(1)

    found = leaks(evaluate, iterations=3)
    assert not found.found and found.unused_graphs == 3
    text = found.sentences()[1]
    assert "recorded a graph that was never used" in text and "wrap it in no_grad" in text
    assert f"test_profiler_leaks.py:{evaluate.__code__.co_firstlineno + 1}" in text
    with tgrad.no_grad():
        assert leaks(evaluate, iterations=3).unused_graphs == 0


def test_the_iteration_is_told_its_number_and_nothing_is_left_behind():
    told, before = [], Walk.__init__
    leaks(lambda i: told.append(i), iterations=3, warmup=1)
    assert told == [0, 1, 2, 3] and Walk.__init__ is before


def test_bad_input():
    with pytest.raises(ProfilerError, match="at least 3 iterations"):
        leaks(step, iterations=2)

    def fails():
        raise ValueError("no")

    with pytest.raises(ProfilerError, match=r"iteration 0 failed: .*no.*test_profiler_leaks.py"):
        leaks(fails)


@pytest.mark.thorough
def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.py").write_text(LOOP)
    assert main(["leaks", "loop.py:train", "--iterations", "4"]) == 1
    out = capsys.readouterr().out
    assert "losses[5] in module loop" in out and "loop.py:8" in out and "wrap it in no_grad" in out
    assert main(["leaks", "loop.py:fine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slope_bytes"] == 0
    assert main(["leaks", "loop.py"]) == 2
    assert main(["leaks", "loop.py:none"]) == 2


def test_collections_walk_new_objects_only():
    """What a block made is collected in it; what the caller has frozen, or nobody has, is so afterwards."""

    class Cycle:
        def __init__(self):
            self.me = self

    def freed_inside():
        reference = weakref.ref(Cycle())
        gc.collect()
        return reference() is None

    gc.unfreeze()
    with collected_apart():
        assert gc.get_freeze_count() and freed_inside()
        with collected_apart():
            assert freed_inside()
        assert gc.get_freeze_count()
    assert not gc.get_freeze_count()
    gc.freeze()
    with pytest.raises(KeyError), collected_apart():
        raise KeyError
    assert gc.get_freeze_count()
