"""CUDA graphs: over the stub driver (what is launched), over interpreted kernels (what it gives), and on a GPU.

The steps are in tests/stub: graph_replays.py and graph_refusals.py run everywhere but in this process, which has
decided already where kernels run; on a GPU they run here.
"""

import functools
import warnings

import pytest

import tgrad
from tests.aot_reports import made
from tests.errors import message
from tests.stub import driver, graph_launches, graph_refusals, graph_replays, graphs
from tests.stub.graph_steps import Training, same
from tgrad.cuda import graphed
from tgrad.device import compute

no_gpu = pytest.mark.skipif(compute.type != "cpu", reason="there is a GPU: the steps run on it")


@functools.cache
def launches(launcher):
    """By tgrad's own launcher, or by Triton's."""
    native = "1" if launcher == "native" else "0"
    return made(f"graphs-{launcher}", "tests.stub.graph_launches", TGRAD_LAUNCH="driver", TGRAD_NATIVE=native)


@functools.cache
def values():
    return made("graphs", "tests.stub.graphs")


@no_gpu
@pytest.mark.skipif(driver.why_not() is not None, reason=str(driver.why_not()))
@pytest.mark.parametrize("launcher", ["native", "triton"])
@pytest.mark.parametrize("name", graph_launches.CASES)
def test_launches(name, launcher):
    assert not launches(launcher)[name], launches(launcher)[name]


@no_gpu
@pytest.mark.parametrize("name", graphs.CASES)
def test_values(name):
    assert not values()[name], values()[name]


# --- on a GPU --------------------------------------------------------------------------------------------------------
# What depends on the driver, its streams and the memory, and compiles few kernels.
ON_A_GPU = (
    "optimizers", "gradients", "schedulers", "random_numbers", "recomputed", "memory_stays", "refusals",
    "errors_of_the_function", "other_threads",
)  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("name", ON_A_GPU)
def test_on_a_gpu(name):
    (graph_replays.CASES | graph_refusals.CASES)[name]()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_twenty_replays(dtype):
    """Two steps warm up, one captures, twenty are replays: each as without a graph, to the bit."""
    same(lambda: Training(dtype=dtype, steps=23), lambda t: t.step, steps=23)


@pytest.mark.gpu
def test_torch_on_the_default_stream_is_not_left_out():
    """What PyTorch launches in a step would not be replayed: the driver refuses, and the step runs eagerly."""
    import torch

    seen = torch.zeros(2, device="cuda")

    def step(x):
        seen.add_(1)
        return x + 1

    one = graphed(step, warmup=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for i in range(4):
            assert one(tgrad.full((3,), float(i))).tolist() == [i + 1.0] * 3
    torch.cuda.synchronize()
    assert one.reason is not None and len(told) == 1 and seen.tolist() == [4.0, 4.0]


@pytest.mark.gpu
def test_memory_comes_from_the_driver_during_a_capture():
    import torch

    x = tgrad.ones(1 << 20)
    step = graphed(lambda x: (tgrad.cat([x] * 96) * 2.0).sum(), warmup=1)
    for _ in range(4):
        assert step(x).item() == 96 * 2.0**21
        torch.cuda.empty_cache()  # so that the capture, which takes 800 MB, finds nothing to use again
    assert step.reason is None and step.graphs == 1


# --- without CUDA ----------------------------------------------------------------------------------------------------
@no_gpu
def test_without_cuda_the_step_runs_eagerly():
    def history(wrap):
        training = Training()
        step = wrap(training.step)
        return [[step(x, y).tolist(), *training.state()] for x, y in zip(training.inputs, training.targets)][:4]

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        got = history(graphed)
    assert [w.filename for w in told] == [__file__]
    assert "step runs eagerly, without a CUDA graph: there is no CUDA device" in str(told[0].message)
    assert repr(got) == repr(history(lambda f: f))


@no_gpu
def test_results_have_no_history_and_arguments_pass_as_they_are():
    w = tgrad.ones(3, requires_grad=True)
    keep = {"x": tgrad.ones(3), "n": 2}
    one = graphed(lambda given, *, also: {"same": given, "y": given["x"] * w * also})
    with pytest.warns(UserWarning, match="no CUDA device"):
        out = one(keep, also=3)
    assert out["same"]["x"] is keep["x"] and out["same"]["n"] == 2
    assert out["y"].tolist() == [3.0] * 3 and not out["y"].requires_grad and out["y"].grad_fn is None
    assert one(keep, also=1)["y"].tolist() == [1.0] * 3  # and no second warning
    assert one.graphs == 0 and "no CUDA device" in one.reason
    one.reset()


@pytest.mark.anywhere
def test_arguments_of_graphed():
    def step():
        """What it does."""

    assert graphed(step).__name__ == "step" and graphed(step).__doc__ == "What it does."
    assert message(graphed, 3) == (TypeError, "graphed(): expected a function, got int")
    assert message(graphed, step, 1.5) == (TypeError, "graphed(): argument 'warmup' must be int, not float")
    assert message(graphed, step, 0) == (
        ValueError, "graphed(): expected a warmup of at least 1, got 0: kernels are compiled in it"
    )  # fmt: skip
