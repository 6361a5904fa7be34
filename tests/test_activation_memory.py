"""What forward keeps under each policy of `activation_memory`, to the byte, and that gradients are the same bits."""

import threading

import numpy as np
import pytest

import tgrad
import tgrad.nn.functional as F
from tests.blocks import BLOCKS, D, N, build
from tgrad import nn
from tgrad.autograd import Function, gradcheck, gradgradcheck
from tgrad.autograd.graph import saved, saved_tensors_hooks
from tgrad.storage import ledger
from tgrad.utils.checkpoint import checkpoint

POLICIES = ("keep", "lean", "leanest")
pytestmark = pytest.mark.anywhere


def kept(y, *apart):
    """Bytes that the graph of y keeps, parameters and `apart` left out."""
    known = {t.storage.id for t in apart}
    found = {r.storage_id: r.storage_bytes for r in saved(y) if not r.is_leaf}
    return sum(size for storage, size in found.items() if storage not in known)


def step(kind, policy, dtype=tgrad.float32):
    """Bytes kept, and all results, of a forward and backward of a block fed by a Linear."""
    tgrad.manual_seed(1)
    model, shape = build(kind, dtype)
    x, g = tgrad.randn(*shape, dtype=dtype), tgrad.randn(*shape, dtype=dtype)
    with tgrad.activation_memory(policy):
        y = model(x)
    parameters = [p.detach() for p in model.parameters()]
    size = kept(y, x, *parameters)
    y.backward(g)
    results = [y.detach(), *[p.grad for p in model.parameters()], *model.buffers()]
    return size, [t.float().cpu().numpy() for t in results]


@pytest.mark.parametrize("dtype", [tgrad.float32, tgrad.bfloat16])
@pytest.mark.parametrize("kind", BLOCKS)
def test_gradients_are_the_same_bits_and_lean_keeps_this(kind, dtype):
    keep, want = step(kind, "keep", dtype)
    lean, got = step(kind, "lean", dtype)
    _, least = step(kind, "leanest", dtype)
    for a, b, c in zip(want, got, least, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    per_element = dtype.itemsize
    assert (keep, lean) == tuple(sum(n * (4 if fixed else per_element) for n, fixed in part) for part in BLOCKS[kind])


def gelu_then_linear():
    """(z, a, y): a = gelu(z) is kept by the last linear."""
    tgrad.manual_seed(2)
    w = tgrad.randn(D, D, requires_grad=True)
    x = tgrad.randn(N, D)
    v = tgrad.randn(D, D, requires_grad=True)
    z = F.linear(x, w)
    a = F.gelu(z)
    return w, v, z, a, F.linear(a, v)


def test_what_is_recomputed_is_not_kept():
    with tgrad.activation_memory("keep"):
        *_, y = gelu_then_linear()
        keep = kept(y)
        del y, _
    *_, y = gelu_then_linear()
    assert kept(y) == keep - 4 * N * D
    before = ledger.live_bytes
    del _
    assert before - ledger.live_bytes >= 4 * N * D  # and its memory is gone with the last name for it


@pytest.mark.parametrize(
    "write",
    [
        lambda z: z.detach().zero_(),
        lambda z: z.data.mul_(3),
        lambda z: z.data[1:].fill_(7.0),
        lambda z: z.detach().copy_(tgrad.ones(D)),
        lambda z: z.data.normal_(),
    ],
)
def test_a_write_to_what_a_recipe_reads_leaves_its_value(write):
    def gradient(policy):
        with tgrad.activation_memory(policy):
            _, v, z, a, y = gelu_then_linear()
            del a
            write(z)
            return tgrad.autograd.grad(y.square().sum(), v)[0].cpu().numpy()

    np.testing.assert_array_equal(gradient("lean"), gradient("keep"))


def test_a_parameter_may_be_written_between():
    def gradient(policy):
        tgrad.manual_seed(3)
        w = tgrad.randn(N, D, requires_grad=True)
        x = tgrad.randn(N, D, requires_grad=True)
        with tgrad.activation_memory(policy):
            doubled = w * 2.0
            y = doubled * x
            with tgrad.no_grad():
                w.zero_()
            return tgrad.autograd.grad(y.sum(), x)[0].cpu().numpy()

    assert gradient("keep").any()
    np.testing.assert_array_equal(gradient("lean"), gradient("keep"))


def test_a_write_before_the_save_is_seen():
    """What is saved is not what its maker made: there is no recipe."""

    def gradient(policy, early):
        with tgrad.activation_memory(policy):
            tgrad.manual_seed(3)
            z = F.linear(tgrad.randn(N, D), tgrad.randn(D, D, requires_grad=True))
            v = tgrad.randn(D, D, requires_grad=True)
            a = F.gelu(z)
            if early:
                a.data.add_(1.0)
            b = F.dropout(a, 0.5)
            if not early:
                b.data.add_(1.0)
            return tgrad.autograd.grad(F.linear(b, v).sum(), v)[0].cpu().numpy()

    for early in (False, True):
        np.testing.assert_array_equal(gradient("lean", early), gradient("keep", early))


@pytest.mark.parametrize("policy", POLICIES)
def test_the_versions_of_what_is_represented_are_checked(policy):
    with tgrad.activation_memory(policy):
        *_, a, y = gelu_then_linear()
        a.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation.*is at version 1; expected version 0"):
            y.sum().backward()


def test_an_early_backward_pins_no_more_than_without_recipes():
    def live(policy):
        with tgrad.activation_memory(policy):
            tgrad.manual_seed(0)
            x = tgrad.randn(N, D)
            a = F.linear(x, tgrad.randn(D, D, requires_grad=True))
            b = F.linear(x, tgrad.randn(D, D, requires_grad=True))
            p = F.silu(a) * b
            y = F.linear(p, tgrad.randn(D, D, requires_grad=True))
            p.sum().backward()  # frees what silu and mul saved, not what linear did
            del a, b, p
            return ledger.live_bytes, y

    before = ledger.live_bytes
    keep, y = live("keep")
    keep -= before
    del y
    before = ledger.live_bytes
    lean, y = live("lean")
    assert lean - before <= keep


@pytest.mark.parametrize("policy", POLICIES)
def test_backward_may_run_twice(policy):
    with tgrad.activation_memory(policy):
        w, v, *_, y = gelu_then_linear()
        y = y.square().sum()
        first = tgrad.autograd.grad(y, (w, v), retain_graph=True)
        second = tgrad.autograd.grad(y, (w, v))
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a.cpu().numpy(), b.cpu().numpy())


OTHERS = [pytest.param(p, marks=pytest.mark.thorough) for p in ("keep", "leanest")]


@pytest.mark.parametrize("policy", ["lean", *OTHERS])
def test_second_derivatives(policy, monkeypatch):
    monkeypatch.setattr(tgrad.graph, "SMALLEST_RECIPE", 0)
    tgrad.op.forget_plans()
    try:
        x = tgrad.randn(3, 2, dtype=tgrad.float64, requires_grad=True)
        w = tgrad.randn(2, 2, dtype=tgrad.float64, requires_grad=True)
        scale, shift = (tgrad.randn(2, dtype=tgrad.float64, requires_grad=True) for _ in range(2))

        def f(x, w, scale, shift):
            h = F.linear(F.layer_norm(F.linear(x, w), (2,), scale, shift), w)
            return F.linear(F.silu(h) * h.tanh(), w)

        with tgrad.activation_memory(policy):
            assert gradcheck(f, (x, w, scale, shift))
            assert gradgradcheck(f, (x, w, scale, shift))
    finally:
        tgrad.op.forget_plans()


def test_saved_tensor_hooks_get_the_real_tensors():
    seen = []
    with saved_tensors_hooks(lambda t: seen.append(t.detach().clone()) or t, lambda t: t):
        *_, a, y = gelu_then_linear()
    assert any(s.shape == a.shape and bool((s == a).all()) for s in seen)
    y.sum().backward()


class Doubled(Function):
    calls = 0

    @staticmethod
    def forward(ctx, x):
        Doubled.calls += 1
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return g * 2


class WithCustom(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(D, D)

    def forward(self, x):
        return Doubled.apply(self.linear(x).tanh())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_custom_function_runs_once(policy):
    Doubled.calls = 0
    model = nn.Sequential(WithCustom(), WithCustom())
    with tgrad.activation_memory(policy):
        model(tgrad.randn(N, D)).sum().backward()
    assert Doubled.calls == 2


def test_a_users_generator_is_drawn_from_once():
    class Noisy(nn.Module):
        def __init__(self, generator):
            super().__init__()
            self.linear, self.generator = nn.Linear(D, D), generator

        def forward(self, x):
            return self.linear(x) * tgrad.rand(D, generator=self.generator)

    def gradient(policy):
        tgrad.manual_seed(0)
        generator = tgrad.Generator().manual_seed(5)
        model = nn.Sequential(Noisy(generator), Noisy(generator))
        with tgrad.activation_memory(policy):
            model(tgrad.ones(N, D)).sum().backward()
        return [p.grad.cpu().numpy() for p in model.parameters()], float(tgrad.rand((), generator=generator))

    for (want, end), (got, other) in [(gradient("keep"), gradient("leanest"))]:
        assert end == other
        for a, b in zip(want, got, strict=True):
            np.testing.assert_array_equal(a, b)


def test_leanest_keeps_a_blocks_inputs():
    layers = nn.Sequential(*[nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D)) for _ in range(4)])

    def live(policy):
        x = tgrad.randn(N, D)
        with tgrad.activation_memory(policy):
            before = ledger.live_bytes
            y = layers(x)
            return ledger.live_bytes - before, y

    size, y = live("leanest")
    assert 4 * N * D * 4 <= size <= 4 * N * D * 4 + 4 * 64  # a tensor each, and the generator's states
    y.sum().backward()


def test_a_blocks_input_may_be_written():
    def gradient(policy):
        tgrad.manual_seed(0)
        block = nn.Sequential(nn.Sequential(nn.Linear(D, D), nn.Tanh()))
        for p in block.parameters():
            p.requires_grad_(False)
        w = tgrad.randn(N, D, requires_grad=True)
        with tgrad.activation_memory(policy):
            x = w * 1.0
            y = block(x)
            x.add_(1.0)  # a frozen linear saved no input: PyTorch allows this
            y.sum().backward()
        return w.grad.cpu().numpy()

    np.testing.assert_array_equal(gradient("leanest"), gradient("keep"))


def test_running_statistics_move_once():
    def statistics(policy):
        tgrad.manual_seed(0)
        model = nn.Sequential(nn.Sequential(nn.Linear(D, D), nn.BatchNorm1d(D)))
        with tgrad.activation_memory(policy):
            model(tgrad.randn(N, D)).sum().backward()
        return [b.cpu().numpy() for b in model.buffers()]

    for a, b in zip(statistics("keep"), statistics("leanest"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_hooks_inside_a_block_run_once():
    model = nn.Sequential(nn.Sequential(nn.Linear(D, D), nn.GELU()))
    calls = []
    model[0][1].register_forward_hook(lambda *_: calls.append(1))
    with tgrad.activation_memory("leanest"):
        model(tgrad.randn(N, D)).sum().backward()
    assert calls == [1]


def test_checkpoint_runs_again_in_the_autocast_of_its_forward():
    w = tgrad.randn(D, D, requires_grad=True)
    x = tgrad.randn(N, D, requires_grad=True)
    with tgrad.autocast(w.device.type, dtype=tgrad.bfloat16):
        y = checkpoint(lambda x: F.linear(x, w).tanh(), x, use_reentrant=False)
    assert y.dtype is tgrad.bfloat16
    y.float().sum().backward()
    with tgrad.autocast(w.device.type, dtype=tgrad.bfloat16):
        want = F.linear(x, w).tanh()
    (g,) = tgrad.autograd.grad(want.float().sum(), w)
    np.testing.assert_array_equal(w.grad.cpu().numpy(), g.cpu().numpy())


def test_the_policy_is_a_context_a_decorator_and_a_default():
    assert tgrad.get_activation_memory() == "lean"
    with tgrad.activation_memory("keep"), tgrad.activation_memory("leanest"):
        assert tgrad.get_activation_memory() == "leanest"
    assert tgrad.get_activation_memory() == "lean"

    @tgrad.activation_memory("keep")
    def inside():
        return tgrad.get_activation_memory()

    assert (inside(), tgrad.get_activation_memory()) == ("keep", "lean")
    with pytest.raises(ZeroDivisionError), tgrad.activation_memory("keep"):
        1 / 0
    assert tgrad.get_activation_memory() == "lean"
    found = []
    tgrad.set_activation_memory("keep")
    try:
        thread = threading.Thread(target=lambda: found.append(tgrad.get_activation_memory()))
        thread.start()
        thread.join()
        with saved_tensors_hooks(lambda t: t, lambda t: t):
            pass
        assert tgrad.get_activation_memory() == "keep"
    finally:
        tgrad.set_activation_memory("lean")
    assert found == ["lean"]
    for wrong in ("low", None, 1):
        with pytest.raises(ValueError, match="expected one of 'keep', 'lean', 'leanest', got"):
            tgrad.activation_memory(wrong)


def relu_kept(consume, shape=(N, D), policy="lean", strided=False):
    """Bytes that relu's node keeps, and the gradient, of consume(relu(x))."""
    tgrad.manual_seed(4)
    w = tgrad.randn(*shape, requires_grad=True)
    with tgrad.activation_memory(policy):
        x = (w * 1.0).transpose(0, 1) if strided else w * 1.0
        x = x.clone()
        x.data[0, 0] = float("nan")
        y = F.relu(x)
        z = consume(y)
        node = y.node
        del y
        size = node.saved[0].pinned().nbytes
        (g,) = tgrad.autograd.grad(z, w, tgrad.arange(z.numel(), dtype=z.dtype).reshape(z.shape))
    return size, g.cpu().numpy()


V = tgrad.ones(D, D)
CONSUMERS = {
    "sum": (lambda y: y.sum(1), True),
    "add": (lambda y: y + 1.0, False),  # a later node may run it again
    "add, sum": (lambda y: (y + 1.0).sum(0), True),
    "view, sum": (lambda y: y.reshape(-1).sum(0), True),
    "add to another": (lambda y: y + tgrad.ones(D), True),
    "linear": (lambda y: F.linear(y, V.clone().requires_grad_()), False),
    "dropout, linear": (lambda y: F.linear(F.dropout(y, 0.5), V.clone().requires_grad_()), False),
    "sum and linear": (lambda y: y.sum(1, keepdim=True) + F.linear(y, V.clone().requires_grad_()), False),
    "linear and sum": (lambda y: F.linear(y, V.clone().requires_grad_()) + y.sum(1, keepdim=True), False),
    "frozen linear": (lambda y: F.linear(y, V), True),
    "matmul with itself": (lambda y: y @ y.T, False),
    "exp": (lambda y: y.exp().sum(1), True),
    "square": (lambda y: y.square(), False),
}


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("name", CONSUMERS)
def test_relu_keeps_bits_where_nothing_else_keeps_its_result(name, strided):
    consume, packed = CONSUMERS[name]
    shape = (D, D) if strided else (61, D)
    size, got = relu_kept(consume, shape, strided=strided)
    keep, want = relu_kept(consume, shape, "keep", strided=strided)
    np.testing.assert_array_equal(got, want)
    assert keep % D == 0 and size == (keep // 4 // 8 if packed else keep)


@pytest.mark.parametrize("dtype", [tgrad.float16, tgrad.bfloat16, tgrad.float64])
def test_relus_bits_in_other_dtypes_and_odd_sizes(dtype):
    for n in (4099, 8193):
        x = tgrad.randn(n, dtype=dtype)
        x[:3] = tgrad.tensor([0.0, -0.0, 5e-324 if dtype is tgrad.float64 else 6e-8], dtype=dtype)
        leaf = tgrad.zeros(n, dtype=dtype, requires_grad=True)
        between = leaf * 1.0
        between.data.copy_(x)  # from a leaf alone, relu's result would be recomputed
        y = F.relu(between)
        z, node = y.sum(), y.node
        del y
        assert node.saved[0].pinned().nbytes == (n + 7) // 8
        z.backward()
        np.testing.assert_array_equal(leaf.grad.float().cpu().numpy(), (x > 0).float().cpu().numpy())


def test_writing_relus_result_after_it_was_packed_is_seen():
    x = tgrad.randn(N, D, requires_grad=True)
    y = F.relu(x)
    z = y.sum()
    y.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()


@pytest.mark.parametrize("first", ["leaf", "relu"])
def test_long_chains_are_not_recursed(first):
    """Neither in looking for a recipe, nor in deciding what a relu far behind keeps."""
    x = tgrad.ones(32, 32, requires_grad=True)
    y = F.relu(F.linear(x, tgrad.eye(32))) if first == "relu" else x
    for _ in range(1500):
        y = y * 1.0
    (y.sum() if first == "relu" else (y * y).sum()).backward()
    assert bool((x.grad == (2.0 if first == "leaf" else 1.0)).all())
