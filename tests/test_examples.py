"""The examples run, and do what they say."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tgrad

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(scope="module")
def custom():
    spec = importlib.util.spec_from_file_location("custom_kernel", EXAMPLES / "custom_kernel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_custom_kernel_runs_as_a_program():
    command = [sys.executable, str(EXAMPLES / "custom_kernel.py")]
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gradcheck: True\nloss: ")


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (7, 5), (3000,)], ids=str)
@pytest.mark.parametrize("dtype", [tgrad.float32, tgrad.float64], ids=lambda d: d.name)
def test_custom_kernel(custom, shape, dtype):
    array = np.random.default_rng(0).normal(size=shape) * 3
    x = tgrad.tensor(array, dtype=dtype, requires_grad=True)
    y = custom.softsign(x)
    assert y.dtype is dtype and y.grad_fn.name() == "SoftsignBackward"
    y.sum().backward()
    close = {"rtol": 1e-6 if dtype is tgrad.float32 else 1e-14, "atol": 1e-12}
    np.testing.assert_allclose(y.detach()._values(), array / (1 + np.abs(array)), **close)
    np.testing.assert_allclose(x.grad._values(), 1 / (1 + np.abs(array)) ** 2, **close)


def test_custom_kernel_on_views(custom):
    base = tgrad.randn(5, 7, dtype=tgrad.float64)
    for view in (base.t(), base[1:, 2:], base[:, ::2]):
        x = view.detach().requires_grad_()
        assert tgrad.autograd.gradcheck(custom.softsign, x.clone().detach().requires_grad_())
        want = x / (1 + x.abs())
        np.testing.assert_allclose(custom.softsign(x).detach()._values(), want.detach()._values(), rtol=1e-14)


def test_custom_kernel_refuses(custom):
    with pytest.raises(TypeError, match="floating dtype"):
        custom.softsign(tgrad.tensor([1, 2]))
    x = tgrad.ones(3, requires_grad=True)
    (g,) = tgrad.autograd.grad(custom.softsign(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        tgrad.autograd.grad(g.sum(), x)


def test_custom_kernel_in_the_grad_modes(custom):
    x = tgrad.ones(3, requires_grad=True)
    with tgrad.no_grad():
        assert custom.softsign(x).grad_fn is None
    with tgrad.inference_mode():
        assert custom.softsign(x).is_inference()
