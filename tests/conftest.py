"""What all tests share: the order of imports, the GPU's markers, and grad mode put back after each test."""

import gc
import os
import time

import pytest

import tgrad  # before torch.optim, whose optimisers load Triton: tgrad decides first how kernels run
from tgrad import modes
from tgrad.device import compute, synchronize

ON_GPU = compute.type == "cuda"


def pytest_addoption(parser):
    parser.addoption("--thorough", action="store_true", help="run the tests marked thorough too")
    parser.addoption("--until", type=float, metavar="SECONDS", help="skip the tests that would begin after this time")


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "anywhere: runs on the compute device, whichever it is; where that is a CUDA device it is also `gpu`"
    )


@pytest.hookimpl(tryfirst=True)  # before -m selects by the markers added here
def pytest_collection_modifyitems(config, items):
    no_device = pytest.mark.skip(reason="needs a CUDA device")
    no_time = pytest.mark.skip(reason="takes long: make test ARGS=--thorough")
    if config.getoption("--thorough"):
        os.environ["TGRAD_THOROUGH"] = "1"  # for aot_sweep.py too
    for item in items:
        if item.get_closest_marker("thorough") and not config.getoption("--thorough"):
            item.add_marker(no_time)
        if ON_GPU and item.get_closest_marker("anywhere"):
            item.add_marker(pytest.mark.gpu)
        elif not ON_GPU and item.get_closest_marker("gpu"):
            item.add_marker(no_device)
    if config.getoption("--until") is not None:
        items[:] = spread(items)


def spread(items):
    """The tests in an order of which every beginning has about as large a part of each function's GPU tests.

    The place of a function's n-th is n with its binary digits mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8, ...
    """
    seen = {}

    def place(item):
        if not item.get_closest_marker("gpu"):
            return 1.0
        function = item.path, item.name.partition("[")[0]
        n = seen[function] = seen.get(function, -1) + 1
        return int(f"{n:b}"[::-1], 2) / (1 << n.bit_length())

    return sorted(items, key=place)


_frozen = None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    global _frozen
    if item.path != _frozen:  # what is there at the beginning of a file need not be walked at each gc.collect() in it
        _frozen = item.path
        gc.freeze()
    until = item.config.getoption("--until")
    if until is not None and time.time() > until:
        pytest.skip("no time left")


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item):
    """After an error that a CUDA context does not outlive, no later test of this process could pass."""
    if ON_GPU:
        try:
            synchronize()
        except RuntimeError as error:
            if hasattr(item.config, "workerinput"):
                os._exit(1)  # xdist calls the test failed, and starts another process
            pytest.exit(f"the device is lost since {item.name}: {str(error).splitlines()[0]}", returncode=1)


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
