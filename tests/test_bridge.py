"""Gradients across: functions of tgrad inside PyTorch's graph, and the other way round, compared with PyTorch alone."""

import gc

import numpy as np
import pytest
import torch

import tgrad as T
from tests.compare import random
from tests.twins import host, leaves, same
from tgrad import interop, nn
from tgrad.device import compute
from tgrad.storage import ledger

pytestmark = pytest.mark.skipif(T.device("cpu") is not compute, reason="PyTorch's tensors are on the CPU here")


def values(*shape, name="bridge"):
    return torch.tensor(random(name, shape).standard_normal(shape))


def several(a, b, k=2.0):
    """Tensors and other values in and out; one result has no gradient, one input may be unused."""
    return (a * b).sin() * k, "label", (a > 0), (b * b).sum(), None


inside_torch = interop.torch_function(several)
inside_tgrad = interop.tgrad_function(several)


@pytest.mark.parametrize("shapes", [((3, 4), (3, 4)), ((), (5,)), ((0, 3), (1, 3)), ((7, 1), (1, 5))])
def test_derivatives_of_all_orders(shapes):
    given = [values(*s, name=f"order {i}").requires_grad_() for i, s in enumerate(shapes)]
    ours, theirs = inside_torch(*given, k=3.0), several(*given, k=3.0)
    assert ours[1] == "label" and ours[4] is None and not ours[2].requires_grad and ours[2].equal(theirs[2])
    cotangents = [values(*theirs[i].shape, name=f"cotangent {i}").requires_grad_() for i in (0, 3)]
    wanted = [*given, *cotangents]
    for order in range(3):
        found = [
            torch.autograd.grad([r[0], r[3]] if order == 0 else [r], given if order == 0 else wanted,
                                cotangents if order == 0 else None, create_graph=True, allow_unused=True)
            for r in (ours, theirs)
        ]  # fmt: skip
        for a, b in zip(*found, strict=True):
            assert (a is None) == (b is None) or (a if b is None else b).abs().sum() == 0
            assert a is None or b is None or torch.allclose(a, b, rtol=1e-10, atol=1e-12)
        ours, theirs = (sum((g.square() * 0.5).sum() for g in gs if g is not None) for gs in found)


def test_derivatives_checked_by_differences():
    x, y = values(3, 2).requires_grad_(), values(2, name="y").requires_grad_()
    f = lambda a, b: inside_torch(a, b)[0]
    assert torch.autograd.gradcheck(f, (x, y)) and torch.autograd.gradgradcheck(f, (x, y))
    p, q = (T.tensor(v.detach().numpy(), requires_grad=True) for v in (x, y))
    g = lambda a, b: inside_tgrad(a, b)[0]
    assert T.autograd.gradcheck(g, (p, q)) and T.autograd.gradgradcheck(g, (p, q))


def test_nested_bridges():
    f = interop.torch_function(lambda a: interop.tgrad_function(lambda b: torch.special.gammaln(b) * b)(a * 2).exp())
    x = (values(4).abs() + 0.5).requires_grad_()
    y = x.detach().clone().requires_grad_()
    for t, out in ((x, f(x)), (y, (torch.special.gammaln(2 * y) * 2 * y).exp())):
        (first,) = torch.autograd.grad(out.sum(), t, create_graph=True)
        first.square().sum().backward()
    assert torch.allclose(x.grad, y.grad)


def test_a_penalty_on_the_gradient_trains_both_ways():
    twin = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    inner = nn.from_torch(twin)
    x = values(5, 3)
    wanted = penalty(twin, x.clone().requires_grad_(), torch)
    for found in (
        penalty(interop.torch_function(inner), x.clone().requires_grad_(), torch),
        penalty(interop.tgrad_function(twin), T.tensor(x.numpy(), requires_grad=True), T),
    ):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_allclose(host(a), host(b), rtol=1e-9, atol=1e-12)


def penalty(model, x, library):
    (g,) = library.autograd.grad(model(x).sum(), x, create_graph=True)
    return library.autograd.grad((g * g).sum(), [p for p in model.parameters() if p.ndim == 2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtypes_and_layouts(dtype):
    x = values(4, 6).to(dtype)[:, ::2].t().requires_grad_()
    y = x.detach().clone().requires_grad_()
    cotangent = torch.tensor(0.5, dtype=dtype).expand(3, 4)
    interop.torch_function(lambda a: a * a)(x).backward(cotangent)
    (y * y).backward(cotangent)
    assert x.grad.dtype is dtype and torch.equal(x.grad, y.grad)


# --- modes -----------------------------------------------------------------------------------------------------------
def test_the_callers_engine_decides_what_is_recorded():
    x, p = values(3).requires_grad_(), T.ones(3, requires_grad=True)
    seen = []

    def ours(a):
        seen.append((T.is_grad_enabled(), T.is_inference_mode_enabled()))
        return a * 2

    def theirs(a):
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        return a * 2

    f, g = interop.torch_function(ours), interop.tgrad_function(theirs)
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            assert not f(x).requires_grad
            assert g(p).requires_grad
    for off in (T.no_grad, T.inference_mode):
        with off():
            assert f(x).requires_grad
            assert not g(p).requires_grad
    assert seen == [(False, False), (True, False)] * 2 + [(True, False), (False, False)] * 2
    with torch.inference_mode():
        still = torch.ones(3)
    assert f(still).tolist() == [2, 2, 2] and not f(x.detach()).requires_grad
    before = ledger.live_bytes
    with torch.no_grad():
        out = interop.torch_function(lambda a: a.exp().exp())(x)
    gc.collect()
    assert ledger.live_bytes - before <= out.nbytes


def test_graphs_are_freed_or_retained():
    f, g = interop.torch_function(lambda a: a.exp().sin()), interop.tgrad_function(lambda a: a.exp().sin())
    x, p = values(1000).requires_grad_(), T.tensor(values(1000).numpy(), requires_grad=True)
    for y, leaf in ((f(x), x), (g(p), p)):
        y.sum().backward(retain_graph=True)
        once = leaf.grad.tolist()
        assert y.grad_fn.inner is not None
        y.sum().backward()
        assert y.grad_fn.inner is None  # the inner graph, which nothing else holds
        assert leaf.grad.tolist() == [2 * v for v in once]
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            y.sum().backward()


# --- writes in place -------------------------------------------------------------------------------------------------
def test_writes_between_forward_and_backward_are_seen():
    square, plus = (lambda a, b: a * a + b), (lambda a, b: a + b)
    for f, made, raises in ((square, torch.ones, True), (plus, torch.ones, False)):
        x, y = made(3) * 2, made(3).requires_grad_()
        x.requires_grad_()
        out = interop.torch_function(f)(x * 1, y)
        out.sum().backward()
        inner = x * 1
        out = interop.torch_function(f)(inner, y)
        with torch.no_grad():
            inner.mul_(3)
        with pytest.raises(RuntimeError, match="modified by an inplace operation") if raises else no_error():
            out.sum().backward()
    for f, raises in ((square, True), (plus, False)):
        p = T.ones(3, requires_grad=True)
        inner = p * 1
        out = interop.tgrad_function(f)(inner, T.ones(3))
        with T.no_grad():
            inner.mul_(3)
        with pytest.raises(RuntimeError, match="modified by an inplace operation") if raises else no_error():
            out.sum().backward()


class no_error:
    def __enter__(self):
        return None

    def __exit__(self, *exception):
        return None


def test_writes_to_results_are_seen():
    for bridge, leaf in (
        (interop.torch_function, torch.ones(3, requires_grad=True)),
        (interop.tgrad_function, T.ones(3, requires_grad=True)),
    ):  # fmt: skip
        out = bridge(lambda a: a.exp())(leaf)
        out.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()
        out = bridge(lambda a: a * 3)(leaf)
        out.mul_(2)
        out.sum().backward()
        assert leaf.grad.tolist() == [6, 6, 6]


def test_a_step_between_two_backwards_is_seen():
    model = interop.torch_function(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(3, 2, requires_grad=True)
    stale, _ = model(x).sum(), optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
    fresh = model(x).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stale.backward()
    fresh.backward()


def test_what_the_function_itself_writes_is_counted():
    x, p = torch.ones(3), T.ones(3)
    versions = x._version, p._version
    interop.torch_function(lambda a: a.mul_(2))(x)
    interop.tgrad_function(lambda a: a.mul_(2))(p)
    assert x.tolist() == p.tolist() == [2, 2, 2] and (x._version, p._version) == (versions[0] + 1, versions[1] + 1)


def test_views_of_inputs_and_results_are_copies():
    for bridge, x in ((interop.torch_function, torch.ones(2, 3)), (interop.tgrad_function, T.ones(2, 3))):
        same_one, view, made, turned = bridge(lambda a: (a, a[0], a * 2, (a * 2)[:1]))(x)
        same_one.zero_(), view.zero_()
        assert x.tolist() == [[1] * 3] * 2 and made.tolist() == [[2] * 3] * 2 and turned.tolist() == [[2] * 3]
        first, second = bridge(lambda a: (lambda b: (b, b.t()))(a * 2))(x)
        second.zero_()
        assert first.tolist() == [[2] * 3] * 2


# --- what does not fit -----------------------------------------------------------------------------------------------
def test_what_would_lose_gradients_is_refused():
    x, p = torch.ones(2, requires_grad=True), T.ones(2, requires_grad=True)
    for bridge, name, leaf, other in (
        (interop.torch_function, "torch_function", x, p), (interop.tgrad_function, "tgrad_function", p, x),
    ):  # fmt: skip
        f = bridge(lambda a, scale=1: a)
        for call, says in (
            (lambda f=f, t=leaf: f([t]), f"{name}: argument 0 is a list that holds tensors"),
            (lambda f=f, t=leaf: f(1, scale={"a": (t,)}), f"{name}: argument 'scale' is a dict that holds tensors"),
            (lambda f=f, t=other: f(t), f"{name}: argument 0 is a t.*Tensor that requires grad; expected a"),
            (lambda b=bridge, t=leaf: b(lambda a: {"a": a})(t), f"{name}: the function returned a dict of tensors"),
            (lambda b=bridge, t=leaf: b(lambda a: t)(t), f"{name}: the function returned a t.*Tensor; expected"),
        ):
            with pytest.raises(TypeError, match=says):
                call()


def test_modules_bridge_buffers_shared_and_frozen_parameters():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.b = nn.Linear(3, 3).double(), nn.BatchNorm1d(3).double(), nn.Linear(3, 3).double()
            self.b.weight = self.a.weight

        def forward(self, x, scale):
            return self.b(self.norm(self.a(x))) * scale

    inner = Tied()
    bridged = interop.torch_function(inner)
    assert set(bridged.state_dict()) == set(inner.state_dict()) and len(list(bridged.parameters())) == 5
    bridged.a.bias.requires_grad_(False)
    x = values(4, 3)
    bridged(x, scale=2.0).square().sum().backward()
    assert bridged.a.bias.grad is None and bridged.a.weight.grad.abs().sum() > 0
    assert bridged.norm.running_mean.tolist() == inner.norm.running_mean.tolist() != [0, 0, 0]
    assert bridged.norm.num_batches_tracked.item() == 1
    bridged.eval()
    assert torch.equal(bridged(x, 1.0), bridged(x, 1.0)) and not inner.norm.training
    with pytest.raises(RuntimeError, match=r"parameter 'a\.weight' no longer shares memory with the tgrad module's"):
        bridged.float()(x.float(), 1.0)

    theirs = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3)).double()
    ours = interop.tgrad_function(theirs)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    ours(T.tensor(x.numpy()))
    assert ours.state_dict()["1.running_mean"].tolist() == theirs[1].running_mean.tolist() != [0, 0, 0]
    with pytest.raises(RuntimeError, match=r"parameter '0\.weight' no longer shares memory with the PyTorch module's"):
        ours.float()(T.ones(2, 3))


def test_hooks_run_on_both_sides():
    seen = []
    x, y = leaves(random("hooks").standard_normal(3))

    def inside(a):
        b = a * 2
        b.register_hook(lambda g: seen.append("inside") or g * 10)
        return b.sin()

    y.register_hook(lambda g: seen.append("outside"))
    out = interop.torch_function(inside)(y)
    out.register_hook(lambda g: seen.append("result"))
    out.sum().backward()
    assert seen == ["result", "inside", "outside"]
    interop.tgrad_function(inside)(x).sum().backward()
    same(x.grad, y.grad)
    assert torch.allclose(y.grad, 20 * (2 * y.detach()).cos())
