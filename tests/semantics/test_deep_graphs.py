"""Graphs of tens of thousands of nodes: forward, backward and destruction without recursion, in little host memory."""

import gc
import threading
import tracemalloc
import weakref

import pytest

import tgrad
from tests.semantics.harness import leaf

VIEWS, OPS = 50_000, 1_500
BYTES_PER_NODE = 1024


def chain(x, views, ops):
    """`views` views of x in a row, with `ops` operations spread between them."""
    every, y = views // ops, x
    for i in range(views):
        y = y.view(3, 1) if i % 2 == 0 else y.view(3)
        if i % every == 0:
            y = y + 0.001
    return y


def shallow(function):
    """Run a function in a thread with little stack, so that what recurses fails."""
    failed = []

    def work():
        try:
            function()
        except BaseException as error:
            failed.append(error)

    before = threading.stack_size(256 * 1024)
    try:
        thread = threading.Thread(target=work)
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    if failed:
        raise failed[0]


@pytest.mark.slow
def test_forward_backward_and_destruction(without_gc):
    """The chain is used, then dropped; a second one is dropped unused. Reference counts alone free both."""

    def run():
        x = leaf(tgrad)
        y = chain(x, VIEWS, OPS)
        first = weakref.ref(y.node)
        y.sum().backward()
        assert x.grad.tolist() == [1.0, 1.0, 1.0]
        del y
        assert first() is None
        unused = chain(x, VIEWS // 5, 10)
        last = weakref.ref(unused.node)
        del unused
        assert last() is None

    shallow(run)


@pytest.mark.parametrize("ops", [10, 400], ids=["views", "ops"])
def test_host_memory_of_a_node(ops):
    views, x = 4000, leaf(tgrad)
    chain(x, views, ops).sum().backward()  # plans, kernels
    gc.collect()
    tracemalloc.start()
    chain(x, views, ops).sum().backward()  # Python's own free lists
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    y = chain(x, views, ops)
    held, _ = tracemalloc.get_traced_memory()
    y.sum().backward()
    del y
    left, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    nodes = views + ops
    assert (held - before) / nodes < BYTES_PER_NODE
    assert (peak - before) / nodes < 2 * BYTES_PER_NODE  # the walk has its own tables of them
    assert left - before < 50_000


def test_writes_in_place_and_wide_graphs_do_not_recurse(without_gc):
    """A chain of writes through a view, which rebases each time, and a node with thousands of inputs."""

    def run():
        x = leaf(tgrad)
        y = x * 1
        v = y[1:]
        for _ in range(600):
            v.add_(1)
        y.sum().backward()
        assert x.grad.tolist() == [1.0, 1.0, 1.0]
        parts = [x.view(3) for _ in range(500)]
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        total.sum().backward()
        assert x.grad.tolist() == [501.0] * 3

    shallow(run)
