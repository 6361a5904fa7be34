"""Memory to the byte: what each op saves, what the ledger counts, and when everything is freed, without gc."""

import numpy as np
import pytest

import tgrad
import tgrad.nn.functional as F
from tests.compare import random
from tests.samples import DIFFERENTIABLE, SAMPLES
from tgrad import autograd
from tgrad.autograd.graph import nodes, record_origins, saved
from tgrad.op import View
from tgrad.ops import creation, linear, pointwise as p, softmax
from tgrad.storage import OutOfMemoryError, ledger

pytestmark = pytest.mark.usefixtures("without_gc")


def unique(records):
    """Bytes of the distinct storages of what is saved."""
    return sum({r.storage_id: r.storage_bytes for r in records}.values())


def column(*shape, grad=True):
    return tgrad.tensor(random("memory", shape).normal(size=shape) + 3, dtype=tgrad.float32, requires_grad=grad)


# --- what each op saves ----------------------------------------------------------------------------------------------
# (op, what is wanted of x and w, what is saved: x, w, the result, or the bytes of anything else)
def one_per_row(out, name):
    """out, whose graph keeps one tensor for each row, `name`, and no other."""
    assert [r.argument for r in saved(out) if r.storage_bytes == 20] == [name]
    return out


CONDITION = tgrad.tensor(np.arange(35).reshape(5, 7) % 2 == 0)
TARGET = tgrad.tensor([0, 1, 2, 3, 4])
SAVES = [
    ("mul", lambda x, w: x * w, "x", {"w"}), ("mul", lambda x, w: x * w, "w", {"x"}),
    ("mul", lambda x, w: x * w, "xw", {"x", "w"}),
    ("square by mul", lambda x, w: x * x, "x", {"x"}), ("mul number", lambda x, w: x * 2, "x", set()),
    ("add", lambda x, w: x + w, "xw", set()), ("sub", lambda x, w: x - w, "xw", set()),
    ("neg", lambda x, w: -x, "x", set()),
    ("add number", lambda x, w: x + 1.5, "x", set()), ("rsub", lambda x, w: 1 - x, "x", set()),
    ("div", lambda x, w: x / w, "x", {"w"}), ("div", lambda x, w: x / w, "w", {"x", "w"}),
    ("div number", lambda x, w: x / 3, "x", set()),
    ("pow number", lambda x, w: x**3, "x", {"x"}), ("pow", lambda x, w: x**w, "w", {"x", "w", "out"}),
    ("maximum", lambda x, w: tgrad.maximum(x, w), "x", {"x", "w"}), ("clamp", lambda x, w: x.clamp(0, 1), "x", {"x"}),
    ("where", lambda x, w: tgrad.where(CONDITION, x, w), "xw", {35}), ("clone", lambda x, w: x.clone(), "x", set()),
    *((n, lambda x, w, n=n: getattr(tgrad, n)(x), "x", {"out"}) for n in ("exp", "sqrt", "rsqrt", "reciprocal", "tanh",
        "sigmoid", "relu")),
    *((n, lambda x, w, n=n: getattr(tgrad, n)(x), "x", {"x"}) for n in ("log", "sin", "cos", "square", "abs", "erf")),
    *((r.name, lambda x, w, r=r: r(x), "x", {"x"}) for r in (p.gelu, p.gelu_tanh, p.silu)),
    ("leaky_relu", lambda x, w: p.leaky_relu(x, 0.1), "x", {"x"}),
    ("softplus", lambda x, w: p.softplus(x, 1.0, 20.0), "x", {"x"}),
    ("sum", lambda x, w: x.sum(), "x", set()), ("sum dim", lambda x, w: x.sum(1), "x", set()),
    ("mean", lambda x, w: x.mean(0), "x", set()),
    ("amax", lambda x, w: x.amax(1), "x", {"x", "out"}), ("view", lambda x, w: x.view(35), "x", set()),
    ("t", lambda x, w: x.t(), "x", set()),
    ("slice", lambda x, w: x[1:, ::2], "x", set()), ("expand", lambda x, w: x.expand(3, 5, 7), "x", set()),
    ("cast", lambda x, w: x.double(), "x", set()),
    ("reshape with a copy", lambda x, w: x.t().reshape(35), "x", set()),
    ("comparison", lambda x, w: x > w, "xw", set()),
    ("matmul", lambda x, w: x @ w.t(), "x", {"w"}), ("matmul", lambda x, w: x @ w.t(), "w", {"x"}),
    ("matmul", lambda x, w: x @ w.t(), "xw", {"x", "w"}),
    ("linear", lambda x, w: linear.linear(x, w), "w", {"x"}),
    ("linear", lambda x, w: linear.linear(x, w), "xw", {"x", "w"}),
    ("softmax", lambda x, w: softmax.softmax(x, 1), "x", {"out"}),
    ("log_softmax", lambda x, w: softmax.log_softmax(x, 0), "x", {"out"}),
    ("cross_entropy", lambda x, w: softmax.cross_entropy(x, TARGET), "x", {"x", 40, 4}),
    ("nll_loss", lambda x, w: F.nll_loss(x, TARGET), "x", {40, 4}),
    ("linear_cross_entropy", lambda x, w: F.linear_cross_entropy(x, w, TARGET), "xw", {"x", "w", 40, 20, 4}),
    ("layer_norm", lambda x, w: F.layer_norm(x, (7,)), "x", {"x", 20}),
    ("rms_norm", lambda x, w: one_per_row(F.rms_norm(x, (7,)), "rstd"), "x", {"x", 20}),
    ("attention", lambda x, w: F.scaled_dot_product_attention(x, w, w), "xw", {"x", "w", "out", 20}),
    ("max of rows", lambda x, w: x.max(1).values, "x", {40}), ("argmax", lambda x, w: x.argmax(1), "x", set()),
    ("sort", lambda x, w: x.sort(1).values, "x", {280}), ("topk", lambda x, w: x.topk(2, 1).values, "x", {80}),
    ("dropout", lambda x, w: creation.dropout(x, 0.5), "x", set()),
    ("nothing wanted", lambda x, w: (x * w).exp(), "", set()),
]  # fmt: skip


@pytest.mark.anywhere
@pytest.mark.parametrize("call, wanted, expected", [pytest.param(*row[1:], id=f"{row[0]}-{row[2]}") for row in SAVES])
def test_what_an_op_saves(call, wanted, expected):
    x, w = column(5, 7, grad="x" in wanted), column(5, 7, grad="w" in wanted)
    out = call(x, w)
    names = {x.storage.id: "x", w.storage.id: "w", out.storage.id: "out"}
    found = saved(out)
    assert {names.get(r.storage_id, r.storage_bytes) for r in found} == expected
    for r in found:
        assert r.logical_bytes == r.storage_bytes  # nothing larger is pinned


@pytest.mark.parametrize("sample", [pytest.param(s, id=s.id) for s in SAMPLES])
def test_the_graphs_bytes_are_the_ledgers(sample):
    """What a forward pass adds is its result and what the graph keeps, to the byte; with no_grad the result alone."""
    ours, _, _ = sample.build(sample.cases[-1], tgrad.float32)
    settings = sample.cases[-1].settings
    mine = {t.storage.id for t in ours}
    sample.ours(*ours, **settings)  # whatever is made once is made
    before = ledger.live_bytes
    out = sample.ours(*ours, **settings)
    kept = {out.storage.id: out.storage.nbytes} | {r.storage_id: r.storage_bytes for r in saved(out)}
    assert ledger.live_bytes - before == sum(n for i, n in kept.items() if i not in mine)
    assert isinstance(sample.op, View) or out.storage.nbytes >= out.nbytes
    del out
    assert ledger.live_bytes == before
    for mode in (tgrad.no_grad, tgrad.inference_mode):
        with mode():
            out = sample.ours(*ours, **settings)
        assert not saved(out) and out.grad_fn is None
        assert ledger.live_bytes - before == (0 if out.storage.id in mine else out.storage.nbytes)
        del out


@pytest.mark.parametrize("sample", [pytest.param(s, id=s.id) for s in DIFFERENTIABLE])
def test_backward_leaves_nothing_behind(sample):
    """After backward there are gradients, and after they are dropped nothing: by reference counts, without gc."""
    case = sample.cases[-1]
    ours, _, _ = sample.build(case, tgrad.float32)
    leaves = [t for t in ours if t.requires_grad]
    before = ledger.live_bytes
    for create in (False, True):
        for _ in range(2):
            out = sample.ours(*ours, **case.settings)
            grads = autograd.grad(out, leaves, tgrad.ones_like(out), create_graph=create)
            if not create:
                out_bytes = 0 if out.storage.id in {t.storage.id for t in ours} else out.storage.nbytes
                held = {t.storage.id: t.storage.nbytes for t in grads}
                assert ledger.live_bytes - before <= out_bytes + sum(held.values())
            del out, grads
            assert ledger.live_bytes == before


# --- hand-computed figures -------------------------------------------------------------------------------------------
@pytest.mark.anywhere
def test_an_mlp_by_hand():
    """Batch 4, 7 -> 5 -> 3, float32: relu's result is the second layer's input and is kept once."""
    x, t = column(4, 7, grad=False), tgrad.tensor([0, 1, 2, 0])
    w1, b1, w2, b2 = column(5, 7), column(5), column(3, 5), column(3)
    before = ledger.live_bytes
    hidden = linear.linear(x, w1, b1).relu()
    logits = linear.linear(hidden, w2, b2)
    loss = softmax.cross_entropy(logits, t)
    ids = hidden.storage.id, logits.storage.id
    del hidden, logits
    records = saved(loss)
    activations = [r for r in records if r.storage_id not in {v.storage.id for v in (x, t, w1, b1, w2, b2)}]
    assert {r.storage_id for r in activations} >= set(ids)
    assert unique(activations) == 4 * 5 * 4 + 4 * 3 * 4 + 4
    assert unique(records) == unique(activations) + x.nbytes + t.nbytes + w2.nbytes  # w1: the input wants no gradient
    assert ledger.live_bytes - before == unique(activations) + loss.storage.nbytes
    loss.backward()
    assert ledger.live_bytes - before == loss.storage.nbytes + sum(v.grad.storage.nbytes for v in (w1, b1, w2, b2))


@pytest.mark.anywhere
def test_saved_records_describe():
    x = column(3, 4)
    with record_origins():
        y = x[1:].exp()
    (record,) = saved(y)
    assert (record.op, record.argument, record.shape, record.dtype) == ("Exp", "out", (2, 4), "float32")
    assert record.storage_bytes == record.logical_bytes == 32 and not record.is_leaf and record.module == ""
    assert record.file == __file__ and record.function == "test_saved_records_describe" and record.line > 0
    z = x[1:] * column(2, 4)
    part = next(r for r in saved(z) if r.storage_id == x.storage.id)
    assert (part.logical_bytes, part.storage_bytes) == (32, 48)  # a slice pins all of its storage
    assert len(nodes(z)) == 2


# --- when memory is freed --------------------------------------------------------------------------------------------
N = 4096  # bytes of one activation


@tgrad.activation_memory("keep")
def chain(length, grad=True):
    x = tgrad.ones(N // 4, requires_grad=grad)
    y = x
    for _ in range(length):
        y = y.tanh()
    return x, y


@pytest.mark.anywhere
def test_a_chain_keeps_one_activation_a_node():
    before = ledger.live_bytes
    x, y = chain(10)
    assert ledger.live_bytes - before == N + 10 * N
    del y
    assert ledger.live_bytes - before == N
    del x
    x, y = chain(10, grad=False)
    assert ledger.live_bytes - before == 2 * N


@pytest.mark.anywhere
def test_backward_frees_what_each_node_saved_as_it_goes():
    x, y = chain(10)
    total = y.sum()
    del y
    before = ledger.live_bytes
    ledger.reset_peak()
    total.backward()
    assert ledger.peak_bytes - before <= 2 * N + 8  # the arriving gradient and the new one; the seed
    assert ledger.live_bytes == before - 10 * N + N
    x, y = chain(10)
    y.backward(tgrad.ones(N // 4), retain_graph=True)
    kept = ledger.live_bytes
    x.grad = None
    y.backward(tgrad.ones(N // 4))
    assert ledger.live_bytes == kept - 9 * N  # y holds the tenth


@pytest.mark.anywhere
def test_gradients_that_meet_are_added_in_place():
    """A residual chain: the sum of two gradients takes the memory of the first."""
    x = tgrad.ones(N // 4, requires_grad=True)
    y = x
    for _ in range(10):
        y = y + y.tanh()
    total = y.sum()
    del y
    before = ledger.live_bytes
    ledger.reset_peak()
    total.backward()
    assert ledger.peak_bytes - before <= 3 * N + 8


@pytest.mark.anywhere
def test_accumulation_makes_no_second_gradient():
    x = tgrad.ones(N // 4, requires_grad=True)
    (x * 2.0).sum().backward()
    before = ledger.live_bytes
    (x * 2.0).sum().backward()
    assert ledger.live_bytes == before


@pytest.mark.anywhere
def test_in_place_allocates_nothing():
    x = tgrad.ones(N // 4)
    x.add_(1)
    ledger.reset_peak()
    before = ledger.allocations
    x.add_(1).mul_(2).relu_().clamp_(0, 1)
    x[::2] = 0.0
    assert ledger.allocations == before and ledger.peak_bytes == ledger.live_bytes


@pytest.mark.anywhere
def test_views_and_detach_allocate_nothing():
    x = column(5, 7)
    before = ledger.allocations
    views = x.t(), x[1:], x.view(35), x.expand(2, 5, 7), x.detach(), x.unsqueeze(0).squeeze(), x.flatten()
    assert ledger.allocations == before and len(views) == 7


@pytest.mark.anywhere
def test_hooks_and_retained_gradients_make_no_cycle():
    before = ledger.live_bytes
    x = column(5, 7)
    h = x * 2
    h.retain_grad()
    h.register_hook(lambda g: g * 1)
    h.sum().backward()
    x.register_hook(lambda g: None)
    del x, h
    assert ledger.live_bytes == before


@pytest.mark.anywhere
def test_an_op_that_is_refused_leaves_nothing():
    x, w = column(5, 7), column(4, 7)
    before = ledger.live_bytes, ledger.allocations
    for call in (lambda: x + w, lambda: x @ w, lambda: x.view(8), lambda: softmax.cross_entropy(x, TARGET[:2]),
        lambda: x.add_(1)):
        with pytest.raises((RuntimeError, ValueError)):
            call()
    assert (ledger.live_bytes, ledger.allocations) == before


@pytest.mark.anywhere
def test_a_failed_backward_leaves_nothing_but_the_graph():
    x = column(5, 7)
    y = x.exp().tanh()
    y.register_hook(lambda g: 1 / 0)
    before = ledger.live_bytes
    with pytest.raises(ZeroDivisionError):
        y.sum().backward()
    assert ledger.live_bytes == before and x.grad is None


@pytest.mark.anywhere
def test_out_of_memory():
    before = ledger.live_bytes
    with pytest.raises(OutOfMemoryError,
        match="bytes were asked for; tgrad holds .* Free tensors, or use smaller batches") as error:
        tgrad.empty(2**48)
    assert "\n" not in str(error.value) and ledger.live_bytes == before


@pytest.mark.anywhere
def test_the_ledger_tells_its_listeners():
    class Listener:
        def __init__(self):
            self.seen = []

        def allocated(self, storage):
            self.seen.append(storage.nbytes)

        def freed(self, storage):
            self.seen.append(-storage.nbytes)

    with ledger.subscribe(Listener()) as listener:
        x = tgrad.zeros(10)
        y = x + 1
        del x
    del y
    assert listener.seen == [40, 40, -40]


@pytest.mark.anywhere
def test_sizes_are_counted_as_requested():
    """Padding to 16 bytes is not counted, and every address is a multiple of 16."""
    before = ledger.live_bytes
    kept = [tgrad.empty(n, dtype=tgrad.uint8) for n in (0, 1, 15, 17)]
    assert ledger.live_bytes - before == 33
    assert all(t.data_ptr() % 16 == 0 for t in kept if t.numel())
