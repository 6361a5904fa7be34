"""The comparison of policies: its bytes by hand, its files, and that a difference in gradients is told; the planner."""

import json
import math

import pytest

from tgrad.profiler import policies_text
from tgrad.profiler.cli import main
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.planner import Plan, blocks, fit, pattern
from tgrad.profiler.policies import CHECKPOINTED, FUSED, TORCH, Kept, Policies, policies
from tgrad.profiler.policy_models import BLOCKS, HEADS, Sizes, workload

ROWS, D = 64, 32
# Elements kept by hand, in multiples of rows x width, and of bools: (PyTorch, bools, lean, PyTorch + checkpoint).
BY_HAND = {
    "GELU, dropout": (8, 4, 4, 4),
    "RMSNorm": (2, 0, 1, 1),
    "BatchNorm, ReLU": (2, 0, 1, 1),
}
STATISTICS = {"RMSNorm": 4 * ROWS, "BatchNorm, ReLU": 2 * 4 * D}


@pytest.fixture(scope="module")
def found():
    return policies(list(BY_HAND), rows=ROWS, width=D, dtypes=["bfloat16"])


@pytest.fixture(scope="module")
def stack():
    return policies(["residual", "D/2"], rows=ROWS, width=D, depth=2, dtypes=["float32"])


@pytest.mark.parametrize("name", BY_HAND)
def test_kept_bytes_are_those_by_hand(found, name):
    rows = policies_text.by_block(found, "bfloat16")[name]
    torch, bools, lean, checkpointed = BY_HAND[name]
    unit = ROWS * D
    assert rows[TORCH].saved_bytes == unit * (2 * torch + bools)
    assert rows["keep"].saved_bytes == unit * 2 * torch
    assert rows["lean"].saved_bytes == rows["leanest"].saved_bytes == unit * 2 * lean
    assert rows[CHECKPOINTED].saved_bytes == unit * 2 * checkpointed
    for policy in (TORCH, "keep", "lean"):
        assert rows[policy].statistics_bytes == STATISTICS.get(name, 0)
    assert all(r.same_bits and not r.missed for r in rows.values())
    assert rows["keep"].recomputed_kernels == 0 and (rows["lean"].recomputed_kernels > 0) == (lean < torch)
    assert all(0 < rows[policy].peak_bytes <= 1.01 * rows[TORCH].peak_bytes for policy in ("keep", "lean", "leanest"))


@pytest.mark.thorough
def test_an_encoder_and_a_stack_by_hand(stack):
    table = policies_text.by_block(stack, "float32")
    unit, length = 4 * ROWS * D, D // 2
    maps = ROWS // length * HEADS * length * length
    # norms' inputs and results, q, k, v, attention's result, the hidden layer twice; bool masks; the attention maps
    composed = (2 * 2 + 3 + 1 + 2 * 4) * unit + (1 + 4 + 1) * unit // 4
    encoder, residual = table["encoder, length D/2"], table["stack of residual MLPs"]
    assert encoder[TORCH].saved_bytes == composed + maps * (2 * 4 + 1)
    assert encoder[FUSED].saved_bytes == composed
    assert encoder["leanest"].saved_bytes == encoder[CHECKPOINTED].saved_bytes == unit
    assert residual[TORCH].saved_bytes == residual["keep"].saved_bytes == 2 * 10 * unit
    assert residual["lean"].saved_bytes == 2 * 5 * unit and residual["leanest"].saved_bytes == 2 * unit
    assert residual["leanest"].statistics_bytes == 2 * 16  # states of random numbers
    # The input, norms' results, q, k, v, attention's result, the middle, the hidden layer twice.
    assert encoder["keep"].saved_bytes == (2 + 2 + 3 + 1 + 2 * 4) * unit and stack.ok
    assert encoder["lean"].saved_bytes == (2 + 3 + 1 + 4) * unit and not encoder["lean"].missed
    assert encoder["lean"].statistics_bytes == (4 + HEADS) * ROWS * 4


@pytest.mark.thorough
def test_files_and_words(stack, tmp_path):
    folder = stack.save(tmp_path / "out")
    assert {p.name for p in folder.iterdir()} == {"summary.md", "table.csv", "plot.png", "plot.svg"}
    text = (folder / "summary.md").read_text()
    assert "| stack of residual MLPs |" in text and "same bits under keep, lean and leanest in every row" in text
    assert len((folder / "table.csv").read_text().splitlines()) == 1 + len(stack.rows)
    stack.save(tmp_path / "out", force=True)
    wrong = Kept("GELU", "float32", "tgrad", "lean", 9, 0, 9.0, 0.9, 1.2, saved_goal=0.5, same_bits=False)
    said = " ".join(policies_text.sentences(Policies([wrong], Sizes())))
    assert "DIFFER from keep's in GELU" in said and "0 of 1 goals" in said and "saved 0.900, goal 0.5" in said
    assert not Policies([wrong], Sizes()).ok


def test_bad_input(capsys):
    assert main(["policies", "nosuch"]) == 2
    assert "no block is called nosuch; there are ReLU" in capsys.readouterr().err
    wrong = (({"width": 12}, "multiple of 8"), ({"rows": 0}, "at least 1"), ({"dtypes": ["x"]}, "unknown"))
    for given, message in wrong:
        with pytest.raises(ProfilerError, match=message):
            policies(["GELU"], **given)


# --- the planner ----------------------------------------------------------------------------------------------------
def small(depth=2):
    block = next(b for b in BLOCKS if b.name == "stack of residual MLPs")
    return workload(block, Sizes(256, 16, depth), "float32")


@pytest.mark.thorough
def test_the_planner_runs_the_fastest_plan_that_fits_or_says_by_how_much_none_does():
    model = small()
    none = fit(model, 1)
    assert none.chosen is None and none.least.peak_bytes > 1
    assert "no plan fits into 1 B. The least is activation_memory(" in none.sentences()[0]
    assert f"that is {int(none.least.peak_bytes) - 1:,} bytes" in none.sentences()[0]
    ran = {c.plan: c for c in none.candidates if not math.isnan(c.peak_bytes)}
    for policy in ("keep", "lean", "leanest"):
        c = ran[Plan(policy)]
        assert abs(c.predicted_peak_bytes - c.peak_bytes) <= 2 * 16  # states of random numbers
    lean = ran[Plan("lean")].peak_bytes
    assert ran[Plan("leanest")].peak_bytes < lean < ran[Plan("keep")].peak_bytes
    tight = fit(model, int(lean) - 1)
    plan = tight.chosen.plan
    assert plan.checkpoint or plan.offload or plan.policy == "leanest"
    assert tight.chosen.peak_bytes <= tight.budget_bytes < lean
    assert abs(tight.chosen.predicted_peak_bytes / tight.chosen.peak_bytes - 1) < 0.1
    assert f"with tgrad.{plan}: predicted peak" in tight.sentences()[0]
    json.dumps(tight.as_json(), allow_nan=False)


def test_patterns_of_plans():
    stack = small().model
    units = blocks(stack)
    assert list(units) == ["1", "2"] and pattern(stack, ["1"], units) == "1"
    from tgrad import nn

    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8), 2)
    assert pattern(encoder, list(blocks(encoder)), blocks(encoder)) == "layers.*"
    assert list(blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))) == ["0", "1"] and blocks(len) == {}
    assert str(Plan("lean", offload="1,2")) == 'activation_memory("lean", offload="1,2")'


def test_the_command_line(capsys):
    given = ["profile", "mlp", "--batch-size", "64", "--width", "32", "--depth", "2"]
    assert main([*given, "--fit", "1GiB"]) == 0
    assert 'mlp fits into 1.0 GiB with tgrad.activation_memory("' in capsys.readouterr().out
    assert main([*given, "--fit", "100", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["chosen"] is None
    for more, message in ((["--fit", "x"], "is no size"), (["--fit", "1", "--out", "x"], "takes no --out")):
        assert main([*given, *more]) == 2
        assert message in capsys.readouterr().err
    assert main(["profile", "--fit", "1"]) == 2
