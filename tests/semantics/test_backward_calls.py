"""Section 4.1: backward and autograd.grad, their arguments and errors."""

import inspect

from tests.semantics.harness import attempt, flags, leaf, statement


@statement("4.1 without a graph")
def test_no_graph(M):
    grad = M.autograd.grad
    return attempt(M.ones(()).backward), attempt(grad, M.ones(()), leaf(M)), attempt((leaf(M) > 1).backward)


@statement("4.1 not a scalar, no gradient; one element of any shape is fine")
def test_scalars(M):
    x = leaf(M)
    refused = attempt((x * 2).backward), attempt(M.autograd.grad, x * 2, x)
    (x[:1] * 2).backward()
    (x.sum().view(1, 1, 1) * 2).backward()
    return refused, x.grad


@statement("4.1 a gradient of another shape")
def test_shapes(M):
    x = leaf(M)
    return [
        attempt((x * 2).backward, M.ones(4)), attempt(x.sum().backward, M.ones(1)), attempt((x * 2).backward,
        M.ones(1, 3)),
        attempt((x * 2).backward, M.ones(())), attempt(M.autograd.grad, x * 2, x, M.ones(1)), x.grad,
    ]  # fmt: skip


@statement("4.1 a gradient of another dtype is cast")
def test_dtypes(M):
    x = leaf(M)
    (x * 2.0).backward(M.ones(3, dtype=M.float64))
    (x * 2.0).backward(M.tensor([1, 2, 3]))
    return x.grad


@statement("4.1 numbers of roots and gradients")
def test_counts(M):
    x = leaf(M)
    one = M.ones(())
    return [
        attempt(M.autograd.backward, [x.sum(), x.sum()], [one]), attempt(M.autograd.backward, [x.sum()], [one, one]),
        attempt(M.autograd.grad, [x.sum(), x.sum()], x, [one]),
    ]  # fmt: skip


@statement("4.1 a gradient that is no tensor")
def test_no_tensor(M):
    x = leaf(M)
    return attempt(M.autograd.backward, [x.sum()], [1]), attempt(M.autograd.grad, [x.sum()], [x], ["a"])


@statement("4.1 a second backward after freeing, by backward, grad and saved_tensors")
def test_second_backward(M):
    x = leaf(M)

    class Saves(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * 1

        @staticmethod
        def backward(ctx, g):
            return g * ctx.saved_tensors[0]

    y, z, f = x.exp().sum(), x.exp().sum(), Saves.apply(x).sum()
    y.backward()
    M.autograd.grad(z, x)
    node = f.grad_fn.next_functions[0][0]
    f.backward()
    refused = attempt(y.backward), attempt(M.autograd.grad, y, x), attempt(z.backward), attempt(f.backward)
    w = x.exp().sum()
    w.backward(retain_graph=True)
    w.backward()
    return refused, attempt(lambda: node.saved_tensors), attempt(w.backward), x.grad


@statement("4.1 [R][T] a graph without saved tensors may be walked twice")
def test_twice(M):
    x, w = leaf(M), leaf(M)
    y = (x + w).view(3, 1)[1:].sum() - x.mean()
    y.backward()
    y.backward()
    return x.grad, w.grad, M.autograd.grad(y, [x, w])


@statement("4.1 inputs must not be empty")
def test_no_inputs(M):
    x = leaf(M)
    return attempt(lambda: x.sum().backward(inputs=[])), attempt(M.autograd.grad, x.sum(), [])


@statement("4.1 grad with respect to a plain tensor")
def test_plain_input(M):
    return attempt(M.autograd.grad, leaf(M).sum(), M.ones(3))


@statement("4.1 grad of what is unused: refused, None, or zeros")
def test_unused(M):
    x, u = leaf(M), leaf(M, 1.0, 2.0)
    y = (x * x).sum()
    grad = M.autograd.grad
    keep = {"retain_graph": True}
    return [
        attempt(lambda: grad(y, [u], **keep)), attempt(lambda: grad(y, [x, u], **keep)),
        grad(y, [x, u], allow_unused=True, **keep), grad(y, [u, x], materialize_grads=True, **keep),
        attempt(lambda: grad(y, [u], materialize_grads=True, allow_unused=False, **keep)),
        attempt(lambda: grad(y, [u], allow_unused=False, **keep)),
    ]  # fmt: skip


@statement("4.1 a refused call frees nothing; an exception during the walk leaves it part-done")
def test_refused_frees_nothing(M):
    x, w = leaf(M), leaf(M)
    y = (x * w).sum()
    refused = [
        attempt(y.backward, M.ones(2)), attempt(M.autograd.grad, y, M.ones(3)), attempt(lambda: y.backward(inputs=[])),
        attempt(M.autograd.backward, [y, M.ones(())]),
    ]  # fmt: skip
    y.backward()

    class Fails(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise KeyError("mine")

    a, b = leaf(M), leaf(M)
    failing = Fails.apply(a)
    z = (b.exp() + failing).sum()
    return refused, x.grad, attempt(z.backward).kind, a.grad, attempt(z.backward).kind


@statement("4.1 the signatures")
def test_signatures(M):
    grad = list(inspect.signature(M.autograd.grad).parameters)
    backward = list(inspect.signature(M.Tensor.backward).parameters)
    return grad, backward


@statement("4.1 grad returns a tuple, and a dict for a dict of inputs")
def test_returns(M):
    x, w = leaf(M), leaf(M)
    y = (x * w).sum()
    single = M.autograd.grad(y, x, retain_graph=True)
    return isinstance(single, tuple), single, M.autograd.grad(y, {"a": x, "b": w})


@statement("4.1 retain_graph defaults to create_graph; False frees even then")
def test_retain_graph(M):
    x = leaf(M)
    y = x.exp().sum()
    (g,) = M.autograd.grad(y, x, create_graph=True)
    M.autograd.grad(y, x, create_graph=True, retain_graph=False)
    return flags(g)[:2], attempt(M.autograd.grad, y, x), attempt(lambda: M.autograd.grad(g.sum(), x))


@statement("4.1 a root given twice counts twice; an input twice gets the gradient twice")
def test_given_twice(M):
    x = leaf(M)
    y = (x * 2.0).sum()
    M.autograd.backward([y, y])
    z = (x * x).sum()
    return x.grad, M.autograd.grad(z, [x, x])


@statement("4.1 a root may be an input, or a leaf")
def test_root_is_input(M):
    x = leaf(M)
    y = x * 2
    g = M.tensor([1.0, 5.0, 7.0])
    found = M.autograd.grad(y, y, g), M.autograd.grad(x, x, g), M.autograd.grad([y, x], [y, x], [g, g])
    x.backward(g)
    s = M.tensor(3.0, requires_grad=True)
    s.backward()
    return found, x.grad, s.grad


def counting(M, seen, label):
    class Counts(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * 2

        @staticmethod
        def backward(ctx, g):
            seen.append(label)
            ctx.saved_tensors
            return g * 2

    return Counts.apply


@statement("4.1 with inputs, only nodes on a path to one run")
def test_pruning(M):
    seen, x, w = [], leaf(M), leaf(M)

    def unpack(t):
        seen.append("unpack")
        return t

    with M.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        a, b = counting(M, seen, "a")(x), counting(M, seen, "b")(w)
    a.register_hook(lambda g: seen.append("hook a"))
    b.register_hook(lambda g: seen.append("hook b"))
    w.register_hook(lambda g: seen.append("hook w"))
    y = (a + b).sum()
    found = M.autograd.grad(y, x, retain_graph=True), list(seen)
    seen.clear()
    y.backward(inputs=[x], retain_graph=True)
    found += (x.grad, w.grad, list(seen))
    seen.clear()
    return found, M.autograd.grad(y, a), seen


@statement("4.1 backward(inputs=[non-leaf]) fills its grad; an unrelated input is no error, a plain one is")
def test_backward_inputs(M):
    x, u = leaf(M), leaf(M)
    h = x * 2
    y = (h * 3.0).sum()
    y.backward(inputs=[h], retain_graph=True)
    y.backward(inputs=[h, u], retain_graph=True)
    y.backward(inputs=x, retain_graph=True)
    return h.grad, u.grad, x.grad, attempt(lambda: y.backward(inputs=[M.ones(3)]))


@statement("4.1 grad writes no .grad, except of tensors that retain it on the way")
def test_grad_writes_nothing(M):
    x = leaf(M)
    h, k = x * 2, x * 3
    h.retain_grad()
    k.retain_grad()
    g = M.autograd.grad((h * 5.0 + k).sum(), x)
    return g, x.grad, h.grad, k.grad
