"""Backward hooks of modules, the same calls on torch and tgrad."""

import gc
import warnings
import weakref

import pytest

import tgrad
from tests.semantics.harness import attempt, statement
from tgrad import nn
from tgrad.hooks import RemovableHandle


def three(M):
    class Three(M.nn.Module):
        def forward(self, a, i, b=None, *, scale=1.0):
            return a * 2 * scale, i, a * b

    a = M.tensor([1.0, 2.0], requires_grad=True)
    b = M.tensor([3.0, 4.0], requires_grad=True)
    return Three(), a, M.tensor([1, 2]), b


def caught(function):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        value = attempt(function)
    return value, [(w.category.__name__, str(w.message)[:90]) for w in found]


def linear(M, n=2):
    layer = M.nn.Linear(n, 2)
    with M.no_grad():
        layer.weight.fill_(1.5)
        layer.bias.fill_(0.5)
    return layer


@statement()
def test_what_hooks_see_and_replace(M):
    module, a, i, b = three(M)
    seen = []
    module.register_full_backward_pre_hook(lambda m, go: seen.append(("pre", go)))
    module.register_full_backward_pre_hook(lambda m, go: (go[0] * 2, go[1], go[2]))
    module.register_full_backward_hook(lambda m, gi, go: seen.append(("hook", type(m).__name__, gi, go)))
    module.register_full_backward_hook(lambda m, gi, go: (gi[0] * 10, None, gi[2] * 100))
    module.register_full_backward_hook(lambda m, gi, go: seen.append(("last", gi, go)))
    x, j, z = module(a, i, b, scale=3.0)
    (x.sum() + z.sum()).backward()
    return seen, a.grad, b.grad, j


@statement()
def test_they_fire_in_grad_and_at_each_backward(M):
    module, a, i, b = three(M)
    seen = []
    module.register_full_backward_hook(lambda m, gi, go: seen.append((gi, go)))
    x, _, z = module(a, i, b)
    found = M.autograd.grad(z.sum(), (a, b), retain_graph=True)
    M.autograd.grad(x.sum(), a)
    module(a, i, b)[2].sum().backward()
    return seen, found, a.grad


@statement()
def test_order_and_removal(M):
    module, a, i, b = three(M)
    seen = []
    first = module.register_full_backward_hook(lambda m, gi, go: seen.append("a"))
    module.register_full_backward_hook(lambda m, gi, go: seen.append("b"), prepend=True)
    module.register_full_backward_pre_hook(lambda m, go: seen.append("c"))
    module.register_full_backward_pre_hook(lambda m, go: seen.append("d"), prepend=True)
    module.register_forward_pre_hook(lambda m, args: (args[0] * 2, *args[1:]))
    module.register_forward_hook(lambda m, args, out: (out[0] * 3, out[1], out[2]))
    a.register_hook(lambda g: seen.append(("tensor", g)))
    x, _, z = module(a, i, b)
    (x.sum() + z.sum()).backward()
    first.remove()
    first.remove()
    module(a, i, b)[0].sum().backward()
    return seen, a.grad, b.grad


@statement()
def test_plain_inputs(M):
    module, a, i, b = three(M)
    seen = []
    module.register_full_backward_hook(lambda m, gi, go: seen.append((gi, go)))
    x, _, z = module(a, i, b.detach())
    (x.sum() + z.sum()).backward()
    return seen, a.grad


@statement()
def test_no_input_requires_grad(M):
    layer, seen = linear(M), []
    layer.register_full_backward_pre_hook(lambda m, go: (go[0] * 2,))
    layer.register_full_backward_hook(lambda m, gi, go: seen.append((gi, go)))
    _, warned = caught(lambda: layer(M.ones(1, 2)).sum().backward())
    bad = linear(M)
    bad.register_full_backward_hook(lambda m, gi, go: (M.ones(1, 2),))
    fine = linear(M)
    fine.register_full_backward_hook(lambda m, gi, go: (None,))
    return (
        seen, [w[0] for w in warned], warned[0][1][:60], layer.weight.grad, layer.bias.grad,
        caught(lambda: bad(M.ones(1, 2)).sum().backward())[0], caught(lambda: fine(M.ones(1, 2)).sum().backward())[0],
    )  # fmt: skip


@statement()
def test_nothing_without_grad(M):
    layer, seen = linear(M), []
    layer.register_full_backward_hook(lambda m, gi, go: seen.append("fired"))
    x = M.ones(1, 2, requires_grad=True)
    with M.no_grad():
        out = layer(x)
    with M.inference_mode():
        also = layer(x)
    layer.requires_grad_(False)
    plain = layer(M.ones(1, 2))
    return seen, [(t.requires_grad, t.is_leaf, t.grad_fn is None) for t in (out, also, plain)]


@statement()
def test_the_output_cannot_be_written(M):
    layer = linear(M)
    layer.register_full_backward_hook(lambda m, gi, go: None)
    out = layer(M.ones(1, 2, requires_grad=True))
    errors = [attempt(lambda: out.add_(1)), attempt(lambda: out[0].mul_(2)), attempt(lambda: out.__setitem__(0, 1.0))]

    class Writes(M.nn.Module):
        def forward(self, x):
            return x.mul_(2)

    writes = Writes()
    writes.register_full_backward_hook(lambda m, gi, go: None)
    errors.append(attempt(lambda: writes(M.ones(2, requires_grad=True) * 1)))
    return errors, out


@statement()
def test_errors(M):
    def fails(hook, kind="register_full_backward_hook"):
        layer = linear(M)
        getattr(layer, kind)(hook)
        error = attempt(lambda: layer(M.ones(1, 2, requires_grad=True)).sum().backward())
        return error

    mixed = linear(M)
    mixed.register_full_backward_hook(lambda m, gi, go: None)

    def raises(m, gi, go):
        raise KeyError("mine")

    return (
        fails(lambda m, gi, go: (gi[0], gi[0])), fails(lambda m, go: (go[0], go[0]), "register_full_backward_pre_hook"),
        fails(raises), attempt(mixed.register_backward_hook, lambda *a: None),
        fails(lambda m, gi, go: (gi[0][0],)).kind, fails(lambda m, gi, go: (3,)).kind,
    )  # fmt: skip


@statement()
def test_outputs_that_are_no_tensors(M):
    class Gives(M.nn.Module):
        def __init__(self, wrap):
            super().__init__()
            self.wrap = wrap

        def forward(self, x):
            return self.wrap(x * 2)

    found = []
    for wrap in (lambda t: {"a": t}, lambda t: [t], lambda t: 3, lambda t: (t, "text", None), lambda t: ()):
        seen = []
        module = Gives(wrap)
        module.register_full_backward_hook(lambda m, gi, go: seen.append((gi, go)))
        x = M.ones(2, requires_grad=True)
        out, warned = caught(lambda: module(x))
        if isinstance(out, tuple) and out:
            out[0].sum().backward()
        found.append((seen, [(c, text[:60]) for c, text in warned], x.grad))
    return found


@statement()
def test_second_derivative_through_a_hooked_module(M):
    class Cube(M.nn.Module):
        def forward(self, x):
            return x * x * x

    module, seen = Cube(), []
    module.register_full_backward_hook(lambda m, gi, go: seen.append((gi[0].requires_grad, gi, go)))
    x = M.tensor([1.0, 2.0], requires_grad=True)
    (g,) = M.autograd.grad(module(x).sum(), x, create_graph=True)
    (h,) = M.autograd.grad(g.sum(), x)
    return g, h, len(seen), seen[0]


@statement()
def test_nested_modules_and_shared_ones(M):
    inner = linear(M)
    model = M.nn.Sequential(inner, M.nn.ReLU(), inner)
    seen = []
    for name, m in model.named_modules():
        m.register_full_backward_hook(lambda m, gi, go, name=name: seen.append((name, gi, go)))
    x = M.tensor([[1.0, -1.0]], requires_grad=True)
    model(x).sum().backward()
    return seen, x.grad, inner.weight.grad


def test_the_legacy_form_is_refused():
    with pytest.raises(NotImplementedError, match="register_full_backward_hook"):
        nn.Linear(2, 2).register_backward_hook(lambda *a: None)


def test_handles_are_those_of_tensors():
    assert isinstance(nn.Linear(2, 2).register_full_backward_hook(lambda *a: None), RemovableHandle)
    assert isinstance(nn.Linear(2, 2).register_forward_hook(lambda *a: None), RemovableHandle)


def test_a_hooked_call_is_freed_by_reference_count():
    layer = nn.Linear(2, 2)
    layer.register_full_backward_hook(lambda m, gi, go: None)
    gc.collect()
    gc.disable()
    try:
        out = layer(tgrad.ones(1, 2, requires_grad=True) * 1)
        node = weakref.ref(out.grad_fn)
        del out
        assert node() is None
    finally:
        gc.enable()
