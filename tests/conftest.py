"""What all tests share: the order of imports, the GPU's markers, and grad mode put back after each test."""

import gc

import pytest

import tgrad  # before torch.optim, whose optimisers load Triton: tgrad decides first how kernels run
from tgrad import modes
from tgrad.device import compute

ON_GPU = compute.type == "cuda"


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "anywhere: runs on the compute device, whichever it is; where that is a CUDA device it is also `gpu`"
    )


@pytest.hookimpl(tryfirst=True)  # before -m selects by the markers added here
def pytest_collection_modifyitems(items):
    no_device = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if ON_GPU and item.get_closest_marker("anywhere"):
            item.add_marker(pytest.mark.gpu)
        elif not ON_GPU and item.get_closest_marker("gpu"):
            item.add_marker(no_device)


@pytest.fixture(autouse=True)
def default_state():
    """Each test begins and leaves with grad mode on, whatever it did, and draws the same numbers."""
    modes.set_mode(modes.GRAD)
    tgrad.manual_seed(0)
    yield
    modes.set_mode(modes.GRAD)


@pytest.fixture(scope="module")
def without_gc():
    """What is freed in the module's tests is freed by reference counts alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
