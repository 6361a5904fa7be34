"""Sequential's Linear and activation as one product: the same bits and graph, where nobody looks in between."""

import pytest

import tgrad
from tests.compare import random, same_bits
from tgrad import nn
from tgrad.autograd import graph as saved_by
from tgrad.kernels import launch

ROWS = {"leaky": "leaky_relu", "elu": "elu", "silu": "silu", "gelu": "gelu", "gelu tanh": "gelu_tanh"}
ACTIVATIONS = {
    "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.2), "elu": lambda: nn.ELU(0.7), "silu": nn.SiLU,
    "gelu": nn.GELU, "gelu tanh": lambda: nn.GELU("tanh"), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
}  # fmt: skip
FROM_RESULT = ("relu", "tanh", "sigmoid")


def network(activation, dtype=tgrad.float32, bias=True):
    m = nn.Sequential(nn.Linear(8, 13, bias=bias, dtype=dtype), activation, nn.Linear(13, 4, dtype=dtype))
    with tgrad.no_grad():
        for i, p in enumerate(m.parameters()):
            p.copy_(tgrad.tensor(random("fold", i).standard_normal(tuple(p.shape)), dtype=dtype))
    return m


def tensor(shape, dtype=tgrad.float32, key="x"):
    return tgrad.tensor(random(key, shape).standard_normal(shape), dtype=dtype)


def one_by_one(m, x):
    for module in m:
        x = module(x)
    return x


def launched(f):
    names = []
    with launch.listen(names.append):
        f()
    return names


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [tgrad.float32, tgrad.bfloat16, tgrad.float64], ids=lambda d: d.name)
def test_same_bits(name, dtype):
    m = network(ACTIVATIONS[name](), dtype, bias=name not in ("silu", "relu"))
    for shape in ((5, 8), (8,), (2, 0, 8)):
        x = tensor(shape, dtype)
        with tgrad.no_grad():
            assert same_bits(m(x), one_by_one(m, x))
            x.requires_grad_()
        with tgrad.inference_mode():
            out = m(x)
            assert out.is_inference() and same_bits(out, one_by_one(m, x))
        wanted = [x, *m.parameters()]
        found = []
        for out in (m(x), one_by_one(m, x)):
            found.append([out, *tgrad.autograd.grad(out, wanted, tensor(tuple(out.shape), dtype, "g"))])
        assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_kernels(name):
    m, x = network(ACTIVATIONS[name]()), tensor((5, 8))
    with tgrad.no_grad():
        assert launched(lambda: m(x)) == ["linear", "linear"]
    with tgrad.inference_mode():
        assert launched(lambda: m(x)) == ["linear", "linear"]
    assert launched(lambda: m(x)) == ["linear", "linear"]
    double, x = network(ACTIVATIONS[name](), tgrad.float64), tensor((5, 8), tgrad.float64)
    with tgrad.no_grad():
        assert len(launched(lambda: double(x))) == (2 if name in ("relu", "leaky") else 3)


def described(out):
    """The graph, node by node: names, where edges go, and what is kept."""
    nodes = saved_by.nodes(out)
    at = {id(n): i for i, n in enumerate(nodes)}
    edges = [[(f.name(), at.get(id(f))) for f, _ in n.next_functions if f is not None] for n in nodes]
    kept = [(r.op, r.argument, r.shape, r.storage_bytes) for r in saved_by.saved(out)]
    return [n.name() for n in nodes], edges, kept


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(128, 8), (16, 8, 8), (8,)], ids=str)
@pytest.mark.parametrize("policy", ["keep", "lean"])
def test_same_graph(name, shape, policy):
    m, x = network(ACTIVATIONS[name]()), tensor(shape).requires_grad_()
    with tgrad.activation_memory(policy):
        assert described(m(x)) == described(one_by_one(m, x))
        first = nn.Sequential(*list(m)[:2])
        assert described(first(x).sum()) == described(one_by_one(first, x).sum())
    m[0].weight.requires_grad_(False)
    assert described(m(x)) == described(one_by_one(m, x))


@pytest.mark.parametrize("name", [name for name in ACTIVATIONS if name not in FROM_RESULT])
def test_what_is_kept_of_both(name):
    """By one kernel: what linear gives, which the activation keeps, and what comes of it, if the policy keeps that."""
    m, x = network(ACTIVATIONS[name]()), tensor((128, 8)).requires_grad_()
    nbytes, found = 128 * 13 * 4, []
    for policy, count in (("lean", 1), ("keep", 2)):
        ran = []
        with tgrad.activation_memory(policy), launch.listen(ran.append):
            out = m(x)
            kept = {r.argument: r.storage_bytes for r in saved_by.saved(out) if r.shape == (128, 13)}
            assert sorted(kept.values()) == [0] * (2 - count) + [nbytes] * count and kept["x"] == nbytes
            found.append(tgrad.autograd.grad(out, [x, *m.parameters()], tensor((128, 4), key="g")))
        assert ran[:2] == ["linear", "linear"] and ran.count(ROWS[name]) == 2 - count, "the recipe runs"
    found.append(tgrad.autograd.grad(one_by_one(m, x), [x, *m.parameters()], tensor((128, 4), key="g")))
    assert all(same_bits(a, b) and same_bits(a, c) for a, b, c in zip(*found, strict=True))
    with tgrad.activation_memory("leanest"):
        assert three(m, x)


def test_second_derivatives():
    for name in ("elu", "silu", "gelu", "tanh", "sigmoid"):
        m, x = network(ACTIVATIONS[name](), tgrad.float32), tensor((3, 8)).requires_grad_()
        found = []
        for out in (m(x), one_by_one(m, x)):
            (g,) = tgrad.autograd.grad((out * out).sum(), x, create_graph=True)
            found.append(tgrad.autograd.grad((g * g).sum(), [x, m[0].weight]))
        assert all(same_bits(a, b) for a, b in zip(*found, strict=True))


def test_less_is_allocated():
    from tgrad.storage import ledger

    m, x = network(nn.ReLU()), tensor((64, 8))
    with tgrad.no_grad():
        peaks = []
        for f in (lambda: m(x), lambda: one_by_one(m, x)):
            f()
            before = ledger.allocations
            f()
            peaks.append(ledger.allocations - before)
    assert peaks == [2, 3]


def three(m, x):
    return len(launched(lambda: m(x))) == 3


@pytest.mark.parametrize("grad, activation", [(True, nn.ReLU), (True, nn.GELU), (False, nn.ReLU)])
def test_whoever_looks_sees_both(grad, activation):
    m, x = network(activation()), tensor((5, 8)).requires_grad_()
    with tgrad.set_grad_enabled(grad):
        for module in (m[0], m[1]):
            for register in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook",
                             "register_full_backward_pre_hook"):  # fmt: skip
                seen = []
                handle = getattr(module, register)(lambda *_, seen=seen: seen.append(1))
                out = m(x)
                if grad:
                    out.sum().backward()
                assert three(m, x) and (seen or (not grad and "backward" in register))
                handle.remove()
                assert not three(m, x)
        m[1].forward = lambda z: z * 3
        assert same_bits(m[:2](x), m[0](x) * 3)
        del m[1].forward
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nn.Linear, "forward", lambda self, x: tgrad.ones(5, 13))
            assert same_bits(m[:2](x), m[1](tgrad.ones(5, 13)))
        assert not three(m, x)


@pytest.mark.parametrize("activation, name", [(nn.ReLU, "out"), (nn.GELU, "x")])
def test_watchers_see_both(activation, name):
    m, x = network(activation()), tensor((5, 8))
    packed = []
    with tgrad.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t, lambda t: t):
        assert three(m, x)
    assert packed
    with pytest.warns(UserWarning, match="Anomaly"), tgrad.autograd.detect_anomaly(check_nan=False):
        assert three(m, x)
    with tgrad.autograd.graph.record_origins():
        assert three(m, x)
        assert [r.module for r in saved_by.saved(m(x)) if r.argument == name] == ["1"]
    assert not three(m, x)


class Doubled(nn.Linear):
    def forward(self, input):
        return super().forward(input) * 2


class Shifted(nn.ReLU):
    def forward(self, input):
        return super().forward(input) + 1


def test_subclasses_run_as_they_are():
    x = tensor((5, 8))
    for m in (nn.Sequential(Doubled(8, 3), nn.ReLU()), nn.Sequential(nn.Linear(8, 3), Shifted())):
        with tgrad.no_grad():
            assert same_bits(m(x), one_by_one(m, x)) and len(launched(lambda m=m: m(x))) == 3


def test_in_place():
    for activation in (nn.ReLU(inplace=True), nn.SiLU(inplace=True)):
        m, x = nn.Sequential(nn.Linear(8, 3), activation), tensor((5, 8))
        out, want = m(x), one_by_one(m, x)
        assert same_bits(out, want) and out._version == want._version == 1
        assert out.grad_fn.name() == want.grad_fn.name()
        with tgrad.no_grad():
            out, want = m(x), one_by_one(m, x)
            assert same_bits(out, want) and out._version == want._version == 1
            assert launched(lambda m=m, x=x: m(x)) == ["linear"]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_autocast(activation):
    m, x = network(activation()), tensor((5, 8))
    with tgrad.autocast("cpu"):
        out = m(x)
    with tgrad.autocast("cpu"):
        want = one_by_one(m, x)
    assert out.dtype is want.dtype is tgrad.bfloat16 and same_bits(out, want)
    assert described(out)[0] == described(want)[0]
    with tgrad.no_grad(), tgrad.autocast("cpu"):
        assert "linear" in launched(lambda: m(x)) and not {"relu", "gelu"} & set(launched(lambda: m(x)))


def test_errors_are_linears():
    m = network(nn.ReLU())
    for x, words in ((tensor((5, 7)), "linear: input has 7 features, weight expects 8"),
                     (tensor((5, 8), tgrad.float64), "linear: expected m1 and m2 to have the same dtype"),
                     (tgrad.tensor(1.0), "linear: input must have at least one dimension")):  # fmt: skip
        with pytest.raises(RuntimeError, match=words):
            m(x)
    with pytest.raises(TypeError, match="linear: input must be a Tensor, got int"):
        m(3)


def test_paths_of_modules():
    paths = []
    m = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.ReLU(), nn.ReLU(), nn.Linear(8, 3))
    for module in m:
        module.register_forward_hook(lambda *_: paths.append(nn.module.current_path()))
    m(tensor((5, 8)))
    assert paths == ["0", "1", "2", "3", "4"]
    for module in m:
        module._forward_hooks.clear()
    x = tensor((5, 8))
    assert same_bits(m(x), one_by_one(m, x)) and len(launched(lambda: m(x))) == 4
