"""Indices out of range where the host does not look at them, as on a GPU: no memory is touched, and check_indices."""

import math
import re
import threading

import pytest

import tgrad
import tgrad.nn.functional as F
from tests.compare import random
from tgrad.device import compute
from tgrad.kernels import indexing
from tgrad.ops import bounds
from tgrad.storage import guarded


@pytest.fixture
def nobody_looks(monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr(bounds, "host", False)


def table(*shape):
    return tgrad.tensor(random("table", shape).standard_normal(shape))


def bad(value=9):
    return tgrad.tensor([0, value, 2])


# Every op that takes indices: (its name in the report, the call, whether negative ones count from the end).
OPS = {
    "gather": (lambda i: tgrad.gather(table(3), 0, i), "gather", False),
    "gather 2": (lambda i: tgrad.gather(table(3, 3), 1, i.expand(2, 3)), "gather", False),
    "take_along_dim": (lambda i: tgrad.take_along_dim(table(3), i, 0), "take_along_dim", True),
    "take": (lambda i: tgrad.take(table(3), i), "take", True),
    "scatter": (lambda i: tgrad.scatter(table(3), 0, i, table(3)), "scatter", False),
    "scatter_": (lambda i: table(3).scatter_(0, i, 1.0), "scatter", False),
    "scatter_add": (lambda i: tgrad.scatter_add(table(3), 0, i, table(3)), "scatter_add", False),
    "index_select": (lambda i: tgrad.index_select(table(3, 2), 0, i), "index_select", False),
    "index_add": (lambda i: tgrad.index_add(table(3, 2), 0, i, table(3, 2)), "index_add", False),
    "index_copy": (lambda i: tgrad.index_copy(table(3, 2), 0, i, table(3, 2)), "index_copy", False),
    "index_fill": (lambda i: tgrad.index_fill(table(3, 2), 0, i, 1.0), "index_fill", True),
    "getitem": (lambda i: table(3, 2)[i], "x[...], index tensor 0", True),
    "getitem 2": (lambda i: table(5, 3)[:, i], "x[...], index tensor 0", True),
    "getitem 3": (lambda i: table(5, 3)[tgrad.arange(3), i], "x[...], index tensor 1", True),
    "setitem": (lambda i: table(3, 2).__setitem__(i, 1.0), "x[...], index tensor 0", True),
    "index_put": (lambda i: table(3).index_put_((i,), table(3), accumulate=True), "x[...], index tensor 0", True),
    "embedding": (lambda i: F.embedding(i, table(3, 2)), "embedding", False),
    "one_hot": (lambda i: F.one_hot(i, 3), "one_hot", False),
    "cross_entropy": (lambda i: F.cross_entropy(table(3, 3), i), "cross_entropy", False),
    "cross_entropy weighted": (lambda i: F.cross_entropy(table(3, 3), i, table(3)), "cross_entropy", False),
    "nll_loss": (lambda i: F.nll_loss(table(3, 3), i), "nll_loss", False),
    "linear_cross_entropy": (
        lambda i: F.linear_cross_entropy(table(3, 2), table(3, 2), i), "linear_cross_entropy", False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPS)
def test_checked_ops_say_which_index_and_where(name, nobody_looks):
    call, op, negative = OPS[name]
    with tgrad.check_indices():
        for value in (9, -4, 3):
            with pytest.raises(IndexError) as caught:
                call(bad(value))
            said = str(caught.value)
            size = "expected -3 to 2" if negative else "expected 0 to 2"
            assert said.startswith(f"{op}: index {value}, at (") and size in said
            assert re.search(rf"called at .*{re.escape(__file__)}:\d+, in ", said)
        call(bad(1))
        if negative:
            call(bad(-3))
    with guarded():
        call(bad())  # not checked: nothing is touched


@pytest.mark.parametrize("name", ["gather", "index_select", "getitem 3", "embedding", "cross_entropy", "nll_loss",
                                  "cross_entropy weighted", "linear_cross_entropy", "take"])  # fmt: skip
def test_what_nobody_checked_is_nan(name, nobody_looks):
    assert math.isnan(OPS[name][0](bad()).sum().item()) and not math.isnan(OPS[name][0](bad(1)).sum().item())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "int32", "uint8"])
def test_out_of_range_touches_no_memory(dtype, nobody_looks):
    dtype = getattr(tgrad, dtype)
    x, index = tgrad.arange(1, 5).to(dtype), tgrad.tensor([0, 9, -9, -1])
    read = tgrad.take(x, index).tolist()
    assert read[0] == 1 and read[3] == 4
    assert all(math.isnan(v) if dtype.is_floating_point else v == 0 for v in read[1:3])
    for write in (lambda t: t.index_put_((index,), tgrad.full((4,), 7).to(dtype)),
                  lambda t: t.index_put_((index,), tgrad.tensor([6, 7, 7, 3]).to(dtype), accumulate=True)):  # fmt: skip
        assert write(x.clone()).tolist() == [7, 2, 3, 7]


def test_the_first_of_many_blocks_and_odd_layouts(nobody_looks, monkeypatch):
    monkeypatch.setattr(indexing, "tile", lambda n, widest: 16)
    index = tgrad.zeros(7, 2, 11, dtype=tgrad.int64)
    index[5, 1, 3] = 4
    index[6, 0, 0] = -1
    with tgrad.check_indices():
        for t, first in ((index, "4, at (5, 1, 3)"), (index.transpose(0, 2), "-1, at (0, 0, 6)"),
                         (index[1::2, 1:], "4, at (2, 0, 3)"), (index[5, 1, 3:4].expand(40), "4, at (0,)"),
                         ):  # fmt: skip
            with pytest.raises(IndexError, match=re.escape(f"index {first} of")):
                F.embedding(t, table(4, 2))
        with pytest.raises(IndexError, match="embedding: index 4 is out of range: expected 0 to 3 for 4 elements"):
            F.embedding(index[5, 1, 3], table(4, 2))
        with pytest.raises(IndexError, match=r"index 4, at \(1,\)"):
            F.embedding(tgrad.tensor([0, 4], dtype=tgrad.int32), table(4, 2))
        assert F.embedding(index[:0], table(4, 2)).shape == (0, 2, 11, 2)
        loss = F.nll_loss(table(3, 2), tgrad.tensor([0, -100, 1]))
        assert not math.isnan(loss.item())
        with pytest.raises(IndexError, match=r"cross_entropy: index 2, at \(2,\).*expected 0 to 1"):
            F.cross_entropy(table(3, 2), tgrad.tensor([0, -100, 2]))


def test_nothing_is_written_before_it_raises(nobody_looks):
    x = tgrad.zeros(3)
    with tgrad.check_indices(), pytest.raises(IndexError):
        x[bad()] = 1.0
    assert x.tolist() == [0, 0, 0] and x._version == 0


def test_where_the_mode_holds(nobody_looks):
    @tgrad.check_indices()
    def lookup():
        return F.embedding(bad(), table(3, 2))

    for _ in range(2):
        with pytest.raises(IndexError):
            lookup()
    with tgrad.check_indices():
        with tgrad.check_indices(False):
            F.embedding(bad(), table(3, 2))
        raised = []
        thread = threading.Thread(target=lambda: raised.append(F.embedding(bad(), table(3, 2)).shape))
        thread.start(), thread.join()
        assert raised == [(3, 2)]  # a thread starts with the default
    F.embedding(bad(), table(3, 2))
    with pytest.raises(TypeError, match="argument 'mode' must be bool"):
        tgrad.check_indices(lookup)


@pytest.mark.skipif(compute.type != "cpu", reason="the CPU's errors")
def test_on_the_cpu_errors_are_pytorchs_either_way():
    for context in (tgrad.check_indices(), tgrad.check_indices(False)):
        with context, pytest.raises(IndexError, match="^index out of range in self$"):
            F.embedding(bad(), table(3, 2))
