"""Why and when tensors were saved; what is live at the peak; what the peak would be without one of them."""

import pandas as pd
import pytest

import tgrad
from tests.test_profiler_memory import DEPTH, ROWS, WIDTH, mlp
from tgrad import nn
from tgrad.autograd import Function
from tgrad.graph import Packed, Saved
from tgrad.profiler import Workload, lifetimes, memory, profile
from tgrad.profiler.records import ALL_MODES, GRAPH_MODES


@pytest.fixture(scope="module")
def report():
    return profile([mlp(nn.CrossEntropyLoss())], ["all"], repeats=1, warmup=0)


def rows(workload, mode="grad"):
    return memory.measure(workload, mode, "id").saved


def test_reasons_are_the_formulas():
    found = {(r.op, r.argument): (r.reason, r.kind) for r in rows(mlp(nn.CrossEntropyLoss()))}
    assert found["Addmm", "input"] == ("gradient of weight", "value")
    assert found["Addmm", "weight"] == ("gradient of input", "leaf")
    assert found["Relu", "out"] == ("gradient of x", "result")
    assert found["NllLoss", "target"][0] == "gradient of input"


def test_a_frozen_weight_gives_no_reason_to_keep_the_input():
    model = nn.Linear(WIDTH, WIDTH)
    model.weight.requires_grad_(False)
    found = rows(Workload("frozen", model, lambda: ((tgrad.randn(ROWS, WIDTH).requires_grad_(),), ())))
    assert [(r.argument, r.reason) for r in found if r.op == "Addmm"] == [("weight", "gradient of input")]


def test_a_function_of_ones_own():
    class Square(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return 2 * x * g

    found = rows(Workload("own", Square.apply, lambda: ((tgrad.randn(3).requires_grad_(),), ())))
    assert "saved by its forward" in {r.reason for r in found}


def test_kinds_of_other_modes(report):
    kinds = report.saved.groupby("mode")["kind"].agg(set)
    assert kinds["grad+save_on_cpu"] == {"packed"}
    again = report.saved[(report.saved["mode"] == "grad+checkpoint") & (report.saved["op"] == "Checkpoint")]
    assert set(again["reason"]) == {"running it again"}


@pytest.mark.parametrize("mode", GRAPH_MODES)
def test_times_are_in_order(report, mode):
    mine = report.saved[report.saved["mode"] == mode]
    named = mine[(mine["category"] == "intermediate") & (mine["argument"] != "random state")]
    assert len(named) and (named["saved_at_ns"] >= 0).all()
    assert (named["used_at_ns"] > named["saved_at_ns"]).all()
    assert (named["freed_at_ns"] > named["used_at_ns"]).all()
    # Forward saves in order; backward uses the youngest first.
    assert named["saved_at_ns"].is_monotonic_increasing
    parameters = mine[mine["category"] == "parameter"]
    assert (parameters["freed_at_ns"] == -1).all()
    end = report.events[report.events["mode"] == mode]["t_ns"].max()
    assert mine["freed_at_ns"].max() <= end


def test_backward_uses_the_youngest_first(report):
    relu = report.saved[(report.saved["mode"] == "grad") & (report.saved["op"] == "Relu")]
    assert relu["used_at_ns"].is_monotonic_decreasing and len(relu) == DEPTH


def test_watching_leaves_no_trace():
    before = Saved.unpack, Packed.unpack
    rows(mlp())
    assert (Saved.unpack, Packed.unpack) == before and Saved.unpack.__name__ == "unpack"


@pytest.mark.parametrize("mode", ALL_MODES)
def test_the_live_set_is_the_peak_to_the_byte(report, mode):
    table = report.at_peak("mlp", mode)
    run = report.runs.set_index("mode").loc[mode]
    assert table["bytes"].sum() + run["parameters_bytes"] == run["peak_bytes"]


def test_idle_memory_by_hand():
    events = pd.DataFrame(
        [(0, "alloc", 1, 100, 100), (10, "alloc", 2, 50, 150), (20, "alloc", 3, 80, 230), (30, "free", 3, 80, 150),
         (40, "alloc", 4, 60, 210), (50, "free", 4, 60, 150)],
        columns=["t_ns", "action", "storage_id", "bytes", "live_bytes"],
    ).assign(workload="w", mode="grad", category="temporary")  # fmt: skip
    row = {"module": "", "op": "Relu", "argument": "out", "shape": "4", "file": "", "line": 0, "workload": "w",
           "mode": "grad", "category": "intermediate"}  # fmt: skip
    saved = pd.DataFrame(
        [row | {"storage_id": 1, "storage_bytes": 100, "saved_at_ns": 5, "used_at_ns": 35},
         row | {"storage_id": 2, "storage_bytes": 50, "saved_at_ns": 12, "used_at_ns": 45},
         row | {"storage_id": 2, "storage_bytes": 50, "saved_at_ns": 15, "used_at_ns": 60},
         row | {"storage_id": 9, "storage_bytes": 7, "saved_at_ns": 15, "used_at_ns": -1}]
    )  # fmt: skip
    table = lifetimes.idle(saved, events, "w").set_index("storage_id")
    assert table.loc[1, "byte_ms"] == pytest.approx(100 * 30e-6)
    assert table.loc[1, "lowers_peak_bytes"] == 20  # 230 falls to 130, and 210 at t = 40 is the peak then
    assert table.loc[2, "idle_ms"] == pytest.approx(30e-6)  # from the last save to the first use
    assert table.loc[2, "lowers_peak_bytes"] == 50
    assert table.loc[9, "lowers_peak_bytes"] == 0
    assert list(lifetimes.at_peak(saved, events, "w")["storage_id"]) == [1, 3, 2]


def test_no_storage_lowers_the_peak_by_more_than_it_is(report):
    table = report.idle("mlp")
    assert len(table) >= DEPTH and (table["lowers_peak_bytes"] <= table["bytes"]).all()
    assert (table["lowers_peak_bytes"] >= 0).all() and table["byte_ms"].is_monotonic_decreasing


def test_a_mode_without_a_graph_has_no_rows(report):
    assert lifetimes.idle(report.saved, report.events, "mlp", "no_grad").empty
