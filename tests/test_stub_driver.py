"""What a machine without a GPU can hold of the GPU path, in processes of their own (tests/stub).

Launches: what tgrad hands the driver, over a libcuda that does nothing. Launchers: the one in Python beside the native
one. Two devices: where tensors live and which moves are made, with host memory in the place of the GPU's. Stream order:
what waits for what, where PyTorch's current stream is another than tgrad's.
"""

import functools
from types import SimpleNamespace

import pytest

from tests.aot_reports import made
from tests.stub import cases, driver, host_tensors, launchers, stream_order, two_devices
from tgrad.device import compute
from tgrad.kernels import native

pytestmark = pytest.mark.skipif(compute.type != "cpu", reason="there is a GPU: the other tests run on it")


@functools.cache
def launches(launcher):
    """By the native launcher, or the one in Python."""
    on = "1" if launcher == "native" else "0"
    return made(f"launches-{launcher}", "tests.stub.cases", TGRAD_LAUNCH="driver", TGRAD_NATIVE=on)


@functools.cache
def compared():
    return made("launchers", "tests.stub.launchers", TGRAD_LAUNCH="driver", TGRAD_NATIVE="1")


@functools.cache
def devices():
    return made("devices", "tests.stub.two_devices")


@functools.cache
def orders():
    return made("stream-order", "tests.stub.stream_order")


@pytest.mark.skipif(driver.why_not() is not None, reason=str(driver.why_not()))
@pytest.mark.parametrize("launcher", ["native", pytest.param("python", marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", cases.CASES)
def test_launches(name, launcher):
    assert not launches(launcher)[name], launches(launcher)[name]


@pytest.mark.skipif(driver.why_not() is not None, reason=str(driver.why_not()))
@pytest.mark.parametrize("name", launchers.CASES)
def test_launchers(name):
    assert not compared()[name], compared()[name]


@pytest.mark.parametrize("name", two_devices.CASES | host_tensors.CASES)
def test_two_devices(name):
    assert not devices()[name], devices()[name]


@pytest.mark.parametrize("name", stream_order.CASES)
def test_stream_order(name):
    assert not orders()[name], orders()[name]


def test_kernels_of_another_triton_go_its_own_way():
    kernel = SimpleNamespace(asm={"ptx": ".visible .entry k(\n\t.param .u64 a,\n\t.param .u64 b\n)\n{\n\tret;"})
    native._warn_of_another_triton.cache_clear()
    assert native.agrees(kernel, 0)
    with pytest.warns(UserWarning, match="gives a kernel of 2 parameters 2, not 4: it is launched Triton's own way"):
        assert not native.agrees(kernel, 2)
    native._warn_of_another_triton.cache_clear()
