"""The backward engine: calls and their errors, accumulation, hooks, order, long chains."""

import threading
import warnings

import numpy as np
import pytest
import torch

import tgrad
from tests.compare import NEWEST, random, values
from tgrad import autograd

SECOND = "Trying to backward through the graph a second time"


@pytest.fixture
def x():
    return tgrad.tensor([1.0, 2.0, 3.0], requires_grad=True)


def both(function):
    """What `function(module)` gives with tgrad and with torch."""
    return function(tgrad), function(torch)


# --- calls and errors ------------------------------------------------------------------------------------------------
REFUSED = {
    "no graph": lambda m, x: m.ones(()).backward(),
    "no graph, grad": lambda m, x: m.autograd.grad(m.ones(()), x),
    "not scalar": lambda m, x: (x * 2).backward(),
    "shape": lambda m, x: (x * 2).backward(m.ones(4)),
    "shape (1,)": lambda m, x: (x * 2).sum().backward(m.ones(1)),
    "broadcastable shape": lambda m, x: (x * 2).backward(m.ones(1, 3)),
    "counts": lambda m, x: m.autograd.backward([x.sum(), x.sum()], [m.ones(())]),
    "no tensor": lambda m, x: m.autograd.backward([x.sum()], [1]),
    "twice": lambda m, x: (lambda y: (y.backward(), y.backward()))(x.exp().sum()),
    "grad twice": lambda m, x: (lambda y: (m.autograd.grad(y, x), m.autograd.grad(y, x)))(x.exp().sum()),
    "no inputs": lambda m, x: x.sum().backward(inputs=[]),
    "no inputs, grad": lambda m, x: m.autograd.grad(x.sum(), []),
    "plain input": lambda m, x: m.autograd.grad(x.sum(), m.ones(3)),
    "plain input, backward": lambda m, x: x.sum().backward(inputs=[m.ones(3)]),
    "unused": lambda m, x: m.autograd.grad(x.sum(), m.ones(3, requires_grad=True)),
    "unused, materialized": lambda m, x: m.autograd.grad(x.sum(), x, allow_unused=False, materialize_grads=True),
    "retain_grad of plain": lambda m, x: m.ones(3).retain_grad(),
    "hook on plain": lambda m, x: m.ones(3).register_hook(print),
    "integers": lambda m, x: m.ones(3, dtype=m.int64, requires_grad=True),
    "requires_grad_ of integers": lambda m, x: m.ones(3, dtype=m.int64).requires_grad_(),
    "switching off a non-leaf": lambda m, x: (x * 2).requires_grad_(False),
    "grad of another shape": lambda m, x: setattr(x, "grad", m.ones(4)),
    "grad of another dtype": lambda m, x: setattr(x, "grad", m.ones(3, dtype=m.float64)),
    "grad not a tensor": lambda m, x: setattr(x, "grad", 1),
    "grad is itself": lambda m, x: setattr(x, "grad", x),
    "deepcopy": lambda m, x: __import__("copy").deepcopy(x * 2),
}  # fmt: skip


@pytest.mark.anywhere
@pytest.mark.parametrize("name", REFUSED)
def test_refused_as_in_torch(name):
    """The same type of error and, up to where it goes into details, the same words."""
    if name in ("no inputs, grad", "unused") and not NEWEST:
        pytest.skip("an older torch says it otherwise")
    raised = []
    for module in (tgrad, torch):
        x = module.tensor([1.0, 2.0, 3.0], requires_grad=True)
        with pytest.raises((RuntimeError, TypeError, ValueError)) as error:
            REFUSED[name](module, x)
        raised.append((error.type, str(error.value)))
    (kind, message), (other, wanted) = raised
    assert issubclass(kind, other)
    start = min(30, len(wanted))
    assert message[:start].lower() == wanted[:start].lower()


@pytest.mark.parametrize("name", ["is_leaf", "grad_fn", "_version", "shape", "dtype"])
def test_read_only_attributes(x, name):
    with pytest.raises(AttributeError):
        setattr(x, name, None)


def test_one_element_of_any_shape_is_a_root():
    for shape in ((), (1,), (1, 1, 1)):
        x = tgrad.ones(shape, requires_grad=True)
        (x * 3).backward()
        assert x.grad.shape == shape and x.grad.item() == 3


def test_a_refused_call_frees_nothing(x):
    y = x.exp()
    with pytest.raises(RuntimeError):
        y.backward()
    with pytest.raises(RuntimeError):
        y.backward(tgrad.ones(4))
    y.sum().backward()
    assert x.grad.tolist() == y.tolist()


def test_a_gradient_of_another_dtype_is_cast(x):
    y = x * 2
    y.backward(tgrad.tensor([1, 2, 3]))
    assert x.grad.dtype is tgrad.float32 and x.grad.tolist() == [2.0, 4.0, 6.0]


def test_retain_graph(x):
    y = x.exp().sum()
    y.backward(retain_graph=True)
    y.backward()
    np.testing.assert_allclose(values(x.grad), 2 * np.exp([1, 2, 3]), rtol=1e-6)
    with pytest.raises(RuntimeError, match=SECOND):
        y.backward()


def test_a_graph_that_saves_nothing_may_be_walked_twice(x):
    y = (x + 1).sum()
    y.backward()
    y.backward()
    z = (x * 2).sum()  # a number is no saved tensor
    z.backward()
    z.backward()
    assert x.grad.tolist() == [6.0] * 3


def test_create_graph_keeps_the_graph_unless_told_otherwise(x):
    y = x.exp().sum()
    (g,) = autograd.grad(y, x, create_graph=True)
    autograd.grad(y, x, create_graph=True, retain_graph=False)
    with pytest.raises(RuntimeError, match=SECOND):
        autograd.grad(y, x)
    assert g.requires_grad


def test_grad_returns_what_was_asked_for(x):
    w = tgrad.ones(3, requires_grad=True)
    unused = tgrad.ones(2, requires_grad=True)
    y = (x * w).sum()
    got = autograd.grad(y, [w, x, w], retain_graph=True)
    assert isinstance(got, tuple) and [g.tolist() for g in got] == [[1.0, 2.0, 3.0], [1.0] * 3, [1.0, 2.0, 3.0]]
    assert x.grad is None and w.grad is None
    assert autograd.grad(y, [x, unused], allow_unused=True, retain_graph=True)[1] is None
    assert autograd.grad(y, [x, unused], materialize_grads=True, retain_graph=True)[1].tolist() == [0.0, 0.0]
    named = autograd.grad(y, {"w": w, "x": x})
    assert set(named) == {"w", "x"} and named["w"].tolist() == [1.0, 2.0, 3.0]


def test_roots(x):
    y, z = x * 2, (x * 3).sum()
    autograd.backward([y, y, z], [tgrad.ones(3), tgrad.ones(3), None])
    assert x.grad.tolist() == [7.0] * 3
    assert autograd.grad(y, y, tgrad.tensor([1.0, 2.0, 3.0]))[0].tolist() == [1.0, 2.0, 3.0]
    assert autograd.grad(x, x, tgrad.ones(3))[0].tolist() == [1.0] * 3
    x.grad = None
    x.backward(tgrad.tensor([5.0, 6.0, 7.0]))
    assert x.grad.tolist() == [5.0, 6.0, 7.0]


def test_gradients_of_intermediate_values(x):
    h = x * 2
    k = h.exp()
    y = (h + k).sum()
    gh, gk = autograd.grad(y, [h, k], retain_graph=True)
    assert gk.tolist() == [1.0] * 3
    np.testing.assert_allclose(values(gh), 1 + np.exp([2, 4, 6]), rtol=1e-6)
    y.backward(inputs=[h])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert h.grad.tolist() == gh.tolist() and x.grad is None


def test_only_what_leads_to_an_input_runs(x):
    w = tgrad.ones(3, requires_grad=True)
    seen = []
    a, b = x * 2, w * 3
    a.register_hook(lambda g: seen.append("a"))
    b.register_hook(lambda g: seen.append("b"))
    autograd.grad((a + b).sum(), x)
    assert seen == ["a"]


# --- accumulation ----------------------------------------------------------------------------------------------------
def test_accumulation_is_in_place(x):
    (x * 2).sum().backward()
    held = x.grad
    (x * 3).sum().backward()
    assert x.grad is held and held.tolist() == [5.0] * 3 and not held.requires_grad
    x.grad = None
    (x * 3).sum().backward()
    assert held.tolist() == [5.0] * 3 and x.grad.tolist() == [3.0] * 3
    del x.grad
    assert x.grad is None


def test_accumulation_with_create_graph_makes_a_new_tensor(x, monkeypatch):
    from tgrad import differentiate

    monkeypatch.setattr(differentiate, "_warned_create_graph", False)
    (x * 2).sum().backward()
    held = x.grad
    with pytest.warns(UserWarning, match="reference cycle"):
        x.square().sum().backward(create_graph=True)
    assert x.grad is not held and held.tolist() == [2.0] * 3 and x.grad.requires_grad and x.grad.tolist() == [4.0, 6.0,
        8.0]
    x.square().sum().backward(create_graph=True)  # once a process
    x.grad = None


def test_gradients_share_no_memory(x):
    w = tgrad.ones(3, requires_grad=True)
    g = tgrad.ones(3)
    x.backward(g)
    (x + w).backward(g)
    assert len({id(t.storage) for t in (g, x.grad, w.grad)}) == 3
    x.grad.fill_(9)
    assert g.tolist() == w.grad.tolist() == [1.0] * 3
    y = tgrad.ones(2, 3, requires_grad=True)
    (y.sum() + y[0].sum()).backward()
    y.grad.add_(1)
    assert y.grad.tolist() == [[3.0] * 3, [2.0] * 3]


def test_grad_of_an_expanded_gradient_is_written_apart():
    """The gradient of a sum is one number, expanded: `.grad` must be memory of its own."""
    x = tgrad.ones(2, 3, requires_grad=True)
    x.sum().backward()
    assert x.grad.stride() == (3, 1)
    x.grad[0, 0] = 5.0
    assert x.grad.tolist() == [[5.0, 1.0, 1.0], [1.0] * 3]


def test_strides_follow_the_leaf():
    leaf = tgrad.ones(3, 5).t().detach().requires_grad_()
    (leaf * 2).sum().backward()
    assert leaf.grad.stride() == leaf.stride() == (1, 5)
    (leaf * tgrad.ones(5, 3)).sum().backward()
    assert leaf.grad.stride() == (1, 5) and leaf.grad.tolist() == [[3.0] * 3] * 5


def test_broadcast_dimensions_are_summed():
    a, b, c = (tgrad.ones(s, requires_grad=True) for s in ((4, 1), (3,), ()))
    (a * b * c).sum().backward()
    assert [t.grad.tolist() for t in (a, b, c)] == [[[3.0]] * 4, [4.0] * 3, 12.0]


def test_a_leaf_switched_off_gets_nothing(x):
    w = tgrad.ones(3, requires_grad=True)
    y = (x * w).sum()
    x.requires_grad_(False)
    y.backward()
    assert x.grad is None and w.grad.tolist() == [1.0, 2.0, 3.0]


def test_concurrent_backwards_lose_nothing():
    x = tgrad.zeros(5, requires_grad=True)

    def work():
        for _ in range(10):
            (x * 1.0).sum().backward()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert x.grad.tolist() == [40.0] * 5


# --- leaves, retain_grad and hooks -----------------------------------------------------------------------------------
def test_leaves(x):
    y = x * 2
    assert x.is_leaf and x.grad_fn is None
    assert not y.is_leaf and y.grad_fn is y.grad_fn and y.grad_fn.name() == "MulBackward0"
    assert tgrad.ones(2).is_leaf and not (x > 1).requires_grad and not x.long().requires_grad
    assert y.requires_grad_() is y
    (node, index), *_ = y.grad_fn.next_functions
    assert node.name() == "torch::autograd::AccumulateGrad" and node.variable is x and index == 0


def test_grad_of_a_non_leaf_warns(x):
    y = x * 2
    for _ in range(2):
        with pytest.warns(UserWarning, match="not a leaf Tensor"):
            assert y.grad is None


def test_retain_grad(x):
    h = x * 2
    assert not h.retains_grad
    h.retain_grad()
    h.retain_grad()
    assert h.retains_grad
    y = h.square().sum()
    y.backward(retain_graph=True)
    assert h.grad.tolist() == [4.0, 8.0, 12.0]
    y.backward()
    assert h.grad.tolist() == [8.0, 16.0, 24.0]
    x.retain_grad()  # nothing to do for a leaf


def test_retain_grad_sees_what_hooks_return(x):
    h = x * 2
    h.retain_grad()
    h.register_hook(lambda g: g * 10)
    h.sum().backward()
    assert h.grad.tolist() == [10.0] * 3 and x.grad.tolist() == [20.0] * 3


def test_hooks(x):
    seen = []
    h = x * 2
    first = h.register_hook(lambda g: seen.append(g.tolist()))
    h.register_hook(lambda g: g * 3)
    h.register_hook(lambda g: seen.append(g.tolist()))
    y = (h + h).sum()
    y.backward(retain_graph=True)
    assert seen == [[2.0] * 3, [6.0] * 3] and x.grad.tolist() == [12.0] * 3  # once, with the total
    first.remove()
    first.remove()
    y.backward()
    assert len(seen) == 3


def test_hooks_on_a_leaf(x):
    with x.register_hook(lambda g: g * 10):
        x.sum().backward()
        assert autograd.grad((x * 2).sum(), x)[0].tolist() == [20.0] * 3
    x.sum().backward()
    assert x.grad.tolist() == [11.0] * 3


@pytest.mark.parametrize("hook, error, words", [
    (lambda g: 1, TypeError, "expected Variable, but hook returned 'int'"),
    (lambda g: g[:2], RuntimeError, "has changed the size of value"),
    (lambda g: g.double(), RuntimeError, "has changed the type of value"),
    (lambda g: 1 / 0, ZeroDivisionError, "division"),
], ids=["type", "size", "dtype", "raises"])  # fmt: skip
def test_what_hooks_return_is_checked(x, hook, error, words):
    y = x * 2
    y.register_hook(hook)
    with pytest.raises(error, match=words):
        y.sum().backward()


# --- order and size --------------------------------------------------------------------------------------------------
def test_many_paths_are_walked_once(x):
    y = x
    for _ in range(60):
        y = y + y
    y.sum().backward()
    assert x.grad.tolist() == [2.0**60] * 3


def test_younger_nodes_first(x):
    order = []
    nodes = {}
    a = x * 2
    b = a * 3
    c = a * 5
    d = b + c
    for name, t in (("a", a), ("b", b), ("c", c), ("d", d)):
        t.register_hook(lambda g, name=name: order.append(name))
        nodes[name] = t
    d.sum().backward()
    assert order == ["d", "c", "b", "a"]


@pytest.mark.parametrize("used", [True, pytest.param(False, marks=pytest.mark.thorough)], ids=["backward", "dropped"])
def test_long_chains_do_not_recurse(used):
    """100,000 nodes: forward, backward and destruction."""
    x = tgrad.ones((), requires_grad=True)
    y = x * 1.0
    for _ in range(50):
        for _ in range(2000):
            y = y.view(())
        y = y * 1.0
    if used:
        y.backward()
        assert x.grad.item() == 1.0
    del y


def test_hooks_may_run_a_backward_of_their_own(x):
    inner = tgrad.ones(2, requires_grad=True)
    h = x * 2
    y = (inner * 3).sum()
    h.register_hook(lambda g: y.backward())
    h.sum().backward()
    assert inner.grad.tolist() == [3.0, 3.0] and x.grad.tolist() == [2.0] * 3


def test_mixed_formulas_against_torch():
    """A small model with everything in it."""
    rng = random("model")
    data = {n: rng.normal(size=s) for n, s in {"x": (5, 7), "w": (4, 7), "b": (4,), "v": (4, 1)}.items()}

    def run(m):
        t = {n: m.tensor(a, dtype=m.float64, requires_grad=True) for n, a in data.items()}
        h = (t["x"] @ t["w"].t() + t["b"]).tanh()
        h = m.where(h > 0, h, h * 0.1) * t["v"].reshape(4) + h[:, :1].expand(5, 4).exp()
        out = (h.amax(1) - h.mean(1)).square().sum() / (h.abs().sum() + 1)
        out.backward()
        return [out.item(), *(t[n].grad.tolist() for n in data)]

    for a, b in zip(*both(run), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
