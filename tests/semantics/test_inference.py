"""Section 2: inference mode and inference tensors."""

import contextlib
import copy

from tests.semantics.harness import attempt, flags, leaf, state, statement, version_kept


def made_inside(M, *values, requires_grad=False):
    with M.inference_mode():
        return M.tensor(list(values or (1.0, 2.0, 3.0)), requires_grad=requires_grad)


# --- 2.1 the mode ----------------------------------------------------------------------------------------------------
@statement("2.1 [R] inference_mode turns grad off, inference_mode(False) turns it on; exit restores both flags")
def test_mode(M):
    seen = []
    for outer in (contextlib.nullcontext, M.no_grad, M.enable_grad, M.inference_mode):
        for mode in (True, False):
            with outer():
                with M.inference_mode(mode):
                    seen.append(state(M))
                    with M.inference_mode(not mode):
                        seen.append(state(M))
                    seen.append(state(M))
                    M.set_grad_enabled(not M.is_grad_enabled())
                seen.append(state(M))
        seen.append(state(M))
    return seen


@statement("2.1 [R][T] enable_grad inside: grad is on, yet results are inference tensors without graph")
def test_enable_grad_inside(M):
    x = leaf(M)
    with M.inference_mode():
        with M.enable_grad():
            y = x * 2
            v = x[1:]
            seen = state(M)
        M.set_grad_enabled(True)
        z = x.exp()
    return seen, [(t.is_inference(), t.requires_grad, t.is_leaf) for t in (y, z)], v.is_inference()


# --- 2.2 what is an inference tensor ---------------------------------------------------------------------------------
@statement("2.2 made inside by factories, ops and clone: inference tensors, plain unless a factory is asked")
def test_made_inside(M):
    x = leaf(M)
    with M.inference_mode():
        made = [M.ones(2), M.ones(2, requires_grad=True), x * 2, x.clone(), M.ones(2) + 1, x.exp(), x.sum()]
    return [(t.is_inference(), flags(t)) for t in made]


@statement("2.2 a view of a normal tensor made inside is normal: a view, with the same version counter")
def test_view_of_normal(M):
    z, p = leaf(M) * 1, M.ones(3)
    with M.inference_mode():
        v, w = z[1:], p[1:]
    p.add_(1)
    return [(t.is_inference(), t._version, t.is_leaf, t.grad_fn) for t in (v, w)], v._base is z, w.requires_grad


@statement("2.2 a view, detach or no-op of an inference tensor is one, anywhere")
def test_views_of_inference(M):
    i = made_inside(M)
    made = [i[1:], i.view(3, 1), i.detach(), i.contiguous(), i.data]
    with M.inference_mode():
        made += [i[1:], i.detach(), i.contiguous()]
    return [(t.is_inference(), t.requires_grad) for t in made]


@statement("2.2 ops, clone and deepcopy outside give normal tensors")
def test_outside(M):
    i, x = made_inside(M), leaf(M)
    made = [i + 1, i.clone(), copy.deepcopy(i), i + x, i.exp()]
    return [(t.is_inference(), t.requires_grad) for t in made]


# --- 2.3 rules -------------------------------------------------------------------------------------------------------
@statement("2.3 an inference tensor has no version")
def test_no_version(M):
    i = made_inside(M)
    return attempt(lambda: i._version), attempt(lambda: i[1:]._version)


@statement("2.3 [R] an inference tensor is not written outside inference mode, under no_grad neither")
def test_writes(M):
    found = []
    writes = [
        lambda i: i.add_(1), lambda i: i.__setitem__(0, 5.0), lambda i: i.zero_(), lambda i: i[1:].mul_(2),
        lambda i: i.copy_(M.ones(3)), lambda i: M.nn.ReLU(inplace=True)(i), lambda i: i.normal_(),
    ]  # fmt: skip
    for context in (contextlib.nullcontext, M.no_grad):
        for write in writes:
            with context():
                found.append(attempt(write, made_inside(M)))
    i, j = made_inside(M), made_inside(M, requires_grad=True)
    with M.inference_mode():
        i.add_(1)
        i[0] = 9.0
        j.mul_(2)
    return found, i, j


@statement("2.3 a leaf that requires grad gives the error of leaves first")
def test_leaf_error_first(M):
    return attempt(made_inside(M, requires_grad=True).add_, 1)


@statement("2.3 [R][T] saving an inference tensor is refused; using one is not")
def test_saving(M):
    i, x, w = made_inside(M), leaf(M), M.ones(3, 3, requires_grad=True)

    class Saves(M.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(b)
            return a * 1

        @staticmethod
        def backward(ctx, g):
            return g, None

    with M.inference_mode():
        mask = M.tensor([True, False, True])
        matrix = M.ones(2, 3)
    refused = [
        attempt(lambda: i * x), attempt(lambda: i / x), attempt(lambda: M.where(mask, x, 0.0)),
        attempt(Saves.apply, x, i),
        attempt(lambda: matrix @ w), attempt(lambda: (x * 1).mul_(i)), attempt(M.nn.functional.linear, matrix, w),
    ]  # fmt: skip
    found = []
    for use in (
        lambda: i + x,
        lambda: x - i,
        lambda: M.nn.functional.linear(x, i.view(1, 3)).sum() if False else x + i,
    ):
        y = use()
        y.sum().backward()
        found.append((flags(y), x.grad))
    with M.no_grad():
        found.append(i * x)
    (i.clone() * x).sum().backward()
    return refused, found, x.grad


@statement("2.3 requires_grad_ and Parameter outside are refused; requires_grad_(False) is allowed")
def test_requires_grad(M):
    i = made_inside(M)
    return attempt(i.requires_grad_), attempt(M.nn.Parameter, i), i.requires_grad_(False) is i


@statement("2.3 an inference leaf that requires grad can receive a gradient, and takes hooks")
def test_leaf_gradient(M):
    i, x, seen = made_inside(M, requires_grad=True), leaf(M), []
    i.register_hook(lambda g: seen.append(g.tolist()))
    (i + x * 2).sum().backward()
    return i.grad, x.grad, seen


@statement("2.3 [R][T] writing a normal tensor inside counts: an older graph that saved it raises")
def test_write_normal_inside(M):
    x, w = leaf(M), leaf(M)
    y, z = (x * w).sum(), (w * 3.0).sum()
    with M.inference_mode():
        w.add_(1)
    found = w, w._version, flags(w), attempt(y.backward)
    z.backward()
    return found, w.grad


@statement("2.3 a view of a normal tensor made inside: no writes outside, no use after its base was written")
def test_views_made_inside(M):
    z, y, p = leaf(M) * 1, leaf(M) * 1, M.ones(3)
    with M.inference_mode():
        v, u, w = z[1:], y[1:], p[1:]
    refused = version_kept(v, lambda: v.mul_(2))
    y.mul_(2)
    w.mul_(5)
    return refused, attempt(lambda: u * 2), attempt(lambda: u.grad_fn), p


@statement("2.3 backward inside, on a graph from outside, accumulates into the existing gradient")
def test_backward_inside(M):
    x = leaf(M)
    x.grad = M.ones(3)
    held = x.grad
    y, z = (x * x).sum(), (x * x).sum()
    with M.inference_mode():
        y.backward()
        (g,) = M.autograd.grad(z, x)
    return x.grad is held, held, g, held.is_inference(), held._version


@statement("2.3 forward and backward inside: there is no graph")
def test_all_inside(M):
    x = leaf(M)
    with M.inference_mode():
        return attempt((x * x).sum().backward)


@statement("2.3 a module built inside has inference weights: no tracked use outside, no write")
def test_module_built_inside(M):
    with M.inference_mode():
        m = M.nn.Linear(3, 2)
    x = M.ones(2, 3, requires_grad=True)

    def zero():
        with M.no_grad():
            m.weight.zero_()

    with M.no_grad():
        shape = tuple(m(x).shape)
    return m.weight.is_inference(), m.weight.requires_grad, attempt(m, x), attempt(zero), shape


@statement("2.3 BatchNorm in train mode inside updates its normal buffers")
def test_batch_norm_inside(M):
    m = M.nn.BatchNorm1d(2)
    with M.inference_mode():
        y = m(M.tensor([[1.0, 2.0], [3.0, 6.0]]))
    return m.running_mean, m.running_var, m.num_batches_tracked, y, m.running_mean.is_inference()


@statement("2.3 [R][T] a write that would save an inference tensor is refused before anything is written")
def test_saving_before_writing(M):
    i, x = made_inside(M), leaf(M)
    h = x * 1
    return version_kept(h, lambda: h.mul_(i)), version_kept(h, lambda: h[1:].mul_(i[1:]))
