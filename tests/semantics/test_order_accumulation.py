"""Sections 4.2 and 4.3: the order of the walk, and what happens to .grad."""

import gc
import threading

import torch

from tests.semantics.harness import attempt, flags, leaf, statement, warned


def told(M, seen, label):
    """x -> x * 2, which tells when it goes backward."""

    class Told(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            seen.append((label, g.tolist()))
            return g * 2

    return Told.apply


# --- 4.2 order -------------------------------------------------------------------------------------------------------
@statement("4.2 a node runs once, when all its consumers are done, with the sum of their gradients")
def test_once(M):
    seen, x = [], leaf(M)
    h = told(M, seen, "h")(x)
    y = (h * 3.0).sum() + (h * h).sum() + h.sum()
    y.backward()
    return seen, x.grad


@statement("4.2 2^60 paths are fine")
def test_many_paths(M):
    x = M.tensor(1.0, requires_grad=True, dtype=M.float64)
    y = x * 1
    for _ in range(60):
        y = y + y
    y.backward()
    return x.grad == 2.0**60


@statement("4.2 of the ready nodes the latest made runs first; leaves accumulate as soon as they can")
def test_latest_first(M):
    seen = []
    a, b, c = leaf(M, 1.0), leaf(M, 1.0), leaf(M, 1.0)
    for label, t in (("a", a), ("b", b), ("c", c)):
        t.register_post_accumulate_grad_hook(lambda t, label=label: seen.append(f"leaf {label}"))
    h = told(M, seen, "first")(a)
    k = told(M, seen, "second")(b)
    m = told(M, seen, "third")(k)
    n = told(M, seen, "fourth")(h)
    (n + m + c).sum().backward()
    return seen


@statement("4.2 None from a backward means no gradient, and is not materialised further")
def test_none(M):
    class Nothing(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            return None

    seen, x, w = [], leaf(M), leaf(M)
    h = x * 2.0
    h.register_hook(lambda g: seen.append("hook"))
    (Nothing.apply(h) + w).sum().backward()
    asked = told(M, seen, "asked")(leaf(M))
    Nothing.apply(asked).sum().backward()
    return x.grad, w.grad, seen


@statement("4.2 long chains: forward, backward and destruction, used or unused, do not recurse")
def test_chains(M):
    x = leaf(M)
    used, unused = x * 1, x * 1
    for i in range(3000):
        used, unused = used[:], unused.view(3, 1) if i % 2 else unused.view(3)
        if i % 50 == 0:
            used = used + 1
    used.sum().backward()
    del used, unused
    gc.collect()
    return x.grad


@statement("4.2 backward within a backward, 200 deep")
def test_reentrant(M):
    class Deep(M.autograd.Function):
        @staticmethod
        def forward(ctx, x, depth):
            ctx.depth = depth
            return x * 1

        @staticmethod
        def backward(ctx, g):
            if ctx.depth:
                with M.enable_grad():
                    inner = leaf(M)
                    Deep.apply(inner, ctx.depth - 1).sum().backward()
                return inner.grad, None
            return g * 2, None

    x = leaf(M)
    Deep.apply(x, 200).sum().backward()
    return x.grad


@statement("4.2 everything on the CPU runs in the calling thread")
def test_calling_thread(M):
    seen, x = [], leaf(M)
    x.register_hook(lambda g: seen.append(threading.get_ident()))
    y = told(M, [], "")(x)
    y.register_hook(lambda g: seen.append(threading.get_ident()))
    y.sum().backward()
    return [ident == threading.get_ident() for ident in seen]


# --- 4.3 accumulation ------------------------------------------------------------------------------------------------
@statement("4.3 [R] the first gradient is never shared with what was passed, or between leaves")
def test_no_aliasing(M):
    x, w, z, g = leaf(M), leaf(M), leaf(M), M.ones(3)
    z.backward(g)
    (x + w).backward(g)
    g.mul_(7)
    x.grad.add_(1)
    return x.grad, w.grad, z.grad, g


@statement("4.3 the strides of .grad follow the leaf's")
def test_strides(M):
    x = M.ones(2, 3).t().detach().requires_grad_()
    (x * M.ones(3, 2)).sum().backward()
    y = M.ones(2, 3, requires_grad=True)
    (y.t() * 2.0).backward(M.ones(3, 2))
    return x.grad.stride(), y.grad.stride(), x.grad, y.grad


@statement("4.3 [R][T] later gradients are added in place, into the same object")
def test_same_object(M):
    x = leaf(M)
    (x * 2.0).sum().backward()
    held, version = x.grad, x.grad._version
    (x * 3.0).sum().backward()
    x.grad.zero_()
    return x.grad is held, held._version - version, held, flags(held)


@statement("4.3 [R][T] with create_graph a new tensor: the old one is untouched, and a warning comes")
def test_create_graph(M):
    if M is not torch:
        import tgrad.differentiate

        tgrad.differentiate._warned_create_graph = False
    x = leaf(M)
    (x * x).sum().backward()
    held = x.grad
    torch.set_warn_always(True)
    try:
        _, categories = warned(lambda: (x * x * x).sum().backward(create_graph=True))
    finally:
        torch.set_warn_always(False)
    new = x.grad
    found = categories, new is held, held, flags(new)[:2], new
    (g,) = M.autograd.grad(new.sum(), x)
    x.grad = None
    return found, g


@statement("4.3 a gradient has the leaf's dtype and shape")
def test_dtype_and_shape(M):
    s, r, h = M.tensor(2.0, requires_grad=True), leaf(M), M.tensor([1.0, 2.0], requires_grad=True, dtype=M.float64)
    y = (
        (s * M.tensor([1.0, 2.0], dtype=M.float64)).sum()
        + (r * M.ones(2, 3)).sum().double()
        + (h.float() * 3.0).sum().double()
    )
    y.backward()
    return s.grad, r.grad, h.grad


@statement("4.3 assigning .grad: shape, dtype, class, itself; None and del clear it")
def test_assign(M):
    x = leaf(M)
    wrong = [attempt(setattr, x, "grad", g) for g in (M.ones(4), M.ones(3, dtype=M.float64), 1, x)]
    x.grad = g = M.ones(3)
    found = x.grad is g
    x.grad = None
    found = found, x.grad
    x.grad = g
    del x.grad
    return wrong, found, x.grad


@statement("4.3 .grad of a non-leaf is None and warns, each time")
def test_non_leaf(M):
    y = leaf(M) * 2
    torch.set_warn_always(True)
    try:
        return warned(lambda: y.grad), warned(lambda: y.grad)
    finally:
        torch.set_warn_always(False)


@statement("4.3 retain_grad fills and accumulates, may be called twice, and does nothing on a leaf")
def test_retain_grad(M):
    x = leaf(M)
    y = x * 2.0
    y.retain_grad()
    y.retain_grad()
    x.retain_grad()
    (y * 3.0).sum().backward(retain_graph=True)
    (y * 5.0).sum().backward()
    return y.grad, x.grad, y.retains_grad, x.retains_grad, attempt(M.ones(3).retain_grad)


@statement("4.3 concurrent backwards into one leaf lose nothing")
def test_concurrent(M):
    x, threads = leaf(M), []
    for i in range(8):

        def work(i=i):
            for _ in range(5):
                (x * float(2**i)).sum().backward()

        threads.append(threading.Thread(target=work))
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return x.grad
