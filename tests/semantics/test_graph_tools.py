"""Section 4.6: hooks on what is saved, and its friends."""

import contextlib
import threading

from tests.semantics.harness import attempt, leaf, state, statement


@contextlib.contextmanager
def packing(M, seen, pack=None, unpack=None):
    def default_pack(t):
        seen.append(("pack", t.tolist()))
        return t

    def default_unpack(p):
        seen.append(("unpack", p.tolist()))
        return p

    with M.autograd.graph.saved_tensors_hooks(pack or default_pack, unpack or default_unpack):
        yield


@statement("4.6 [R] pack at save, once per saved slot; unpack at each use in each backward")
def test_pack_and_unpack(M):
    seen, x = [], leaf(M)
    with packing(M, seen):
        y = x * x
        z = y.exp().sum()
    z.backward(retain_graph=True)
    z.backward()
    return seen, x.grad


@statement("4.6 [R] any object may be packed; unpack must give a tensor")
def test_any_object(M):
    x = leaf(M)
    with packing(M, [], lambda t: ("box", t.detach().clone()), lambda p: p[1]):
        y = x.exp().sum() + (x * x).sum()
    with packing(M, [], lambda t: 5, lambda p: 5):
        z = x.exp().sum()
    y.backward()
    return x.grad, attempt(z.backward)


@statement("4.6 [R] no call under no_grad, or when nothing is saved")
def test_nothing_to_pack(M):
    seen, x = [], leaf(M)
    with packing(M, seen):
        with M.no_grad():
            x * x
        with M.inference_mode():
            x * x
        (x + x).sum() + x.view(3, 1).sum()
        M.ones(3) * M.ones(3)
    return seen


@statement("4.6 [R] an input comes as the tensor itself, a result as another object")
def test_identity(M):
    seen, x = [], leaf(M)

    def pack(t):
        seen.append(t)
        return t

    with packing(M, [], pack, lambda p: p):
        y = x * x
        z = x.exp()
    return [t is x for t in seen], seen[-1], y, z


@statement("4.6 [R] nested: the innermost only; hooks belong to their thread")
def test_nested(M):
    seen, x = [], leaf(M)

    def said(label):
        return lambda t: (seen.append(label), t)[1]

    with packing(M, [], said("outer"), lambda p: p):
        with packing(M, [], said("inner"), lambda p: p):
            x.exp()
        x.exp()
        worker = threading.Thread(target=lambda: x.exp())
        worker.start()
        worker.join()
    x.exp()
    return seen


@statement("4.6 [R] custom Functions are included")
def test_custom_functions(M):
    class Fn(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            y = x * 2
            ctx.save_for_backward(x, y)
            return y

        @staticmethod
        def backward(ctx, g):
            x, y = ctx.saved_tensors
            return g * x + y

    seen, x = [], leaf(M)
    with packing(M, seen):
        y = Fn.apply(x)
    y.sum().backward()
    return seen, x.grad


@statement("4.6 [R] pack runs with grad off, unpack in the engine's mode")
def test_modes(M):
    seen, x = [], leaf(M)
    pack, unpack = (
        lambda t: (seen.append(("pack", state(M))), t)[1],
        lambda t: (seen.append(("unpack", state(M))), t)[1],
    )
    with packing(M, seen, pack, unpack):
        y = (x * x).sum()
    y.backward(retain_graph=True)
    (g,) = M.autograd.grad(y, x, create_graph=True)
    (h,) = M.autograd.grad(g.sum(), x)
    return seen, h


@statement("4.6 pack must not write in place")
def test_pack_writes(M):
    h = leaf(M) * 1
    with packing(M, [], lambda t: t.add_(1), lambda t: t):
        return attempt(lambda: h * h)


@statement("4.6 exceptions of the hooks propagate")
def test_exceptions(M):
    def fail(t):
        raise KeyError("mine")

    x = leaf(M)
    with packing(M, [], fail, lambda t: t):
        packed = attempt(lambda: x * x)
    with packing(M, [], lambda t: t, fail):
        y = (x * x).sum()
    return packed, attempt(y.backward)


@statement("4.6 disable_saved_tensors_hooks refuses hooks inside, and itself inside hooks, with its message")
def test_disable(M):
    graph = M.autograd.graph

    def inside():
        with graph.disable_saved_tensors_hooks("not here"), packing(M, []):
            pass

    def around():
        with packing(M, []), graph.disable_saved_tensors_hooks("not here"):
            pass

    found = attempt(inside), attempt(around)
    seen = []
    with packing(M, seen):
        leaf(M).exp()
    return found, seen


@statement("4.6 save_on_cpu gives the right gradients")
def test_save_on_cpu(M):
    x, w = leaf(M), leaf(M)
    with M.autograd.graph.save_on_cpu():
        y = (x * w).exp().sum()
    (g,) = M.autograd.grad(y, x, create_graph=True)
    g.sum().backward()
    return g, x.grad, w.grad


@statement("4.6 allow_mutation_on_saved_tensors: old values are used")
def test_allow_mutation(M):
    x, w = leaf(M), leaf(M)
    with M.autograd.graph.allow_mutation_on_saved_tensors():
        h = x * 1
        y = (h * w).sum()
        h.mul_(10)
        z = h.exp()
        z.zero_()
        with M.no_grad():
            w.add_(5)
        (y + (h * w).sum()).backward()
    return x.grad, w.grad
