"""Section 4.4: hooks on tensors, leaves and nodes."""

import torch

from tests.semantics.harness import attempt, leaf, name, statement, warned


@statement("4.4 a hook sees the gradient and may replace it; several run in order, each on what the one before gave")
def test_tensor_hooks(M):
    seen, x = [], leaf(M)
    y = x * 2.0

    def times(label, factor):
        def hook(g):
            seen.append((label, g.tolist()))
            return None if factor is None else g * factor

        return hook

    y.register_hook(times("a", 2))
    y.register_hook(times("b", None))
    y.register_hook(times("c", 3))
    x.register_hook(times("x", 10))
    (y.sum() + (y * 4.0).sum()).backward(retain_graph=True)
    return seen, x.grad, M.autograd.grad(y.sum(), x)


@statement("4.4 a hook is removed by its handle, twice without harm; a plain tensor takes none")
def test_remove(M):
    x = leaf(M)
    y = x * 2.0
    handle = y.register_hook(lambda g: g * 5)
    handle.remove()
    handle.remove()
    with x.register_hook(lambda g: g * 5):
        pass
    y.sum().backward()
    return x.grad, attempt(M.ones(3).register_hook, print)


@statement("4.4 what a hook must not return")
def test_bad_returns(M):
    def tried(value, on_leaf):
        x = leaf(M)
        y = x * 2.0
        (x if on_leaf else y).register_hook(lambda g: value)
        return attempt(y.sum().backward)

    return [tried(v, leaf) for v in (1, M.ones(4), M.ones(3, dtype=M.float64)) for leaf in (True, False)]


@statement("4.4 an exception of a hook comes through with its type")
def test_hook_raises(M):
    class Mine(Exception):
        pass

    def hook(g):
        raise Mine("mine")

    found = []
    for t in (leaf(M), leaf(M) * 1):
        t.register_hook(hook)
        found.append(attempt((t * 2.0).sum().backward))
    return found


@statement("4.4 the order at a node: tensor hooks, retain_grad, pre-hooks, the node, post-hooks")
def test_order_at_node(M):
    seen, x = [], leaf(M)

    class Told(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            seen.append(("node", g.tolist()))
            return g * 2

    y = Told.apply(x)
    y.grad_fn.register_hook(lambda i, o: seen.append(("post", i[0].tolist(), o[0].tolist())))
    y.grad_fn.register_prehook(lambda o: (seen.append(("pre", o[0].tolist())), (o[0] * 10,))[1])
    y.retain_grad()
    y.register_hook(lambda g: (seen.append(("tensor", g.tolist(), y.grad is None)), g * 3)[1])
    y.sum().backward()
    return seen, y.grad, x.grad


@statement("4.4 [T] after a write in place: hooks stay with the old value, retain_grad moves to the new one")
def test_after_write(M):
    found = []
    for write in (
        lambda y: y.mul_(3),
        lambda y: y[1:].mul_(3),
        lambda y: y.__setitem__(0, 5.0),
        lambda y: y.copy_(M.ones(3)),
    ):
        seen, x = [], leaf(M)
        y = x * 2.0
        y.register_hook(lambda g, seen=seen: seen.append(("before", g.tolist())))
        y.retain_grad()
        write(y)
        y.register_hook(lambda g, seen=seen: seen.append(("after", g.tolist())))
        (y * 7.0).sum().backward()
        found.append((seen, y.grad, y.retains_grad, x.grad))
    return found


@statement("4.4 [T] retain_grad of a view moves to its new value too")
def test_view_after_write(M):
    seen, x = [], leaf(M)
    z = x * 2.0
    v = z[1:]
    v.retain_grad()
    v.mul_(3)
    v.register_hook(lambda g: seen.append(("new", g.tolist())))
    (v * 5.0).sum().backward()
    return seen, x.grad, v.grad


@statement("4.4 grad() captures after tensor hooks; node hooks of the captured tensor do not run")
def test_capture(M):
    seen, x = [], leaf(M)
    y = x * 2.0
    y.register_hook(lambda g: g * 3)
    y.grad_fn.register_prehook(lambda o: seen.append("pre"))
    y.grad_fn.register_hook(lambda i, o: seen.append("post"))
    return M.autograd.grad((y * 5.0).sum(), y), seen


@statement("4.4 post-accumulate hooks: leaves only, after .grad, not by grad(); they may write both")
def test_post_accumulate(M):
    seen, x = [], leaf(M)
    x.register_post_accumulate_grad_hook(lambda t: seen.append((t is x, t.grad.tolist(), M.is_grad_enabled())))
    y = (x * 2.0).sum()
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    M.autograd.grad(y, x, retain_graph=True)
    refused = (
        attempt((x * 2).register_post_accumulate_grad_hook, print),
        attempt(M.ones(2).register_post_accumulate_grad_hook, print),
    )  # fmt: skip
    w = leaf(M)

    def step(t):
        t.sub_(t.grad)
        t.grad = None

    w.register_post_accumulate_grad_hook(step)
    (w * 2.0).sum().backward()
    u = leaf(M)
    u.register_post_accumulate_grad_hook(lambda t: 5)
    return seen, refused, w, w.grad, attempt((u * 2.0).sum().backward).kind


@statement("4.4 node hooks may return as many gradients; None stands for inputs that need none")
def test_node_hooks(M):
    seen, x, w = [], leaf(M), leaf(M)
    y = x * w
    plain = x * M.ones(3)
    plain.grad_fn.register_hook(lambda i, o: seen.append([g is None for g in i]))
    y.grad_fn.register_hook(lambda i, o: (i[0] * 10, i[1] * 100))
    y.grad_fn.register_prehook(lambda o: (o[0] * 2,))
    (y + plain).sum().backward()

    def wrong(register, value):
        z = x * w
        getattr(z.grad_fn, register)(lambda *a: value(*a))
        return attempt(z.sum().backward)

    return (
        x.grad,
        w.grad,
        seen,
        wrong("register_hook", lambda i, o: (i[0],)),
        wrong("register_prehook", lambda o: (o[0], o[0])),
    )


@statement("4.4 an accumulator: pre-hook, accumulation, post-accumulate hooks, post-hook without grad_inputs")
def test_accumulator_hooks(M):
    seen, x = [], leaf(M)
    node = (x * 2.0).grad_fn.next_functions[0][0]
    node.register_hook(lambda i, o: seen.append(("post", len(i), o[0].tolist())))
    node.register_prehook(lambda o: (seen.append(("pre", x.grad is None)), (o[0] * 3,))[1])
    x.register_post_accumulate_grad_hook(lambda t: seen.append("accumulated"))
    x.register_hook(lambda g: seen.append(("tensor", g.tolist())))
    (x * 2.0).sum().backward()
    return seen, x.grad, node.variable is x


@statement("4.4 nodes have names, next_functions, metadata, and accumulators their variable: one per leaf")
def test_surface(M):
    x, w = leaf(M), leaf(M)
    y = (x * 1.0 + w) * M.ones(3)
    z = y.exp().sum()
    walk, node = [], z.grad_fn
    while node is not None:
        walk.append((node.name(), len(node.next_functions)))
        node = next((n for n, _ in node.next_functions if n is not None), None)
    y.grad_fn.metadata["note"] = 5
    last = (x * 1.0).grad_fn.next_functions[0]
    again = (x * 2.0).grad_fn.next_functions[0]
    return (
        walk, y.grad_fn.metadata, y.grad_fn.next_functions[1], last[0] is again[0], last[0].name(), last[1],
        last[0].variable is x, last[0].next_functions,
    )  # fmt: skip


@statement("4.4 gradient edges: get_gradient_edge, and grad with respect to one")
def test_edges(M):
    x = leaf(M)
    y = x * 2.0
    edge, at_leaf = M.autograd.graph.get_gradient_edge(y), M.autograd.graph.get_gradient_edge(x)
    z = (y * 5.0).sum()
    found = name(edge.node), edge.output_nr, name(at_leaf.node), edge.node is y.grad_fn
    del y
    return (
        found, M.autograd.grad(z, edge, retain_graph=True), M.autograd.grad(z, [at_leaf, edge], retain_graph=True),
        attempt(M.autograd.graph.get_gradient_edge, M.ones(2)),
    )  # fmt: skip


@statement("4.4 multi-grad hooks: all and any")
def test_multi_grad_hook(M):
    seen, x, w, u = [], leaf(M), leaf(M), leaf(M)
    h, k = x * 2.0, w * 3.0
    register = M.autograd.graph.register_multi_grad_hook
    handle = register([h, k, u], lambda grads: seen.append([None if g is None else g.tolist() for g in grads]))
    register((h, k), lambda g: seen.append(("any", g.tolist())), mode="any")
    y = (h * 5.0 + k).sum()
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    M.autograd.grad(y, x, retain_graph=True)
    handle.remove()
    y.backward()
    return seen, attempt(lambda: register([h], print, mode="some"))


@statement("4.4 forward hooks of modules may replace input and output, under no_grad too")
def test_forward_hooks(M):
    seen, m = [], M.nn.ReLU()
    m.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    m.register_forward_hook(lambda m, args, out: out * 10)
    m.register_forward_hook(lambda m, args, kwargs, out: seen.append((len(args), len(kwargs))), with_kwargs=True)
    x = leaf(M)
    with M.no_grad():
        under = m(x)
    y = m(x)
    y.sum().backward()
    return under, y, x.grad, seen


@statement("4.4 .grad of a leaf may be replaced while hooks run")
def test_warnings_stay_quiet(M):
    x = leaf(M)
    x.register_post_accumulate_grad_hook(lambda t: setattr(t, "grad", t.grad * 2))
    _, categories = warned((x * 3.0).sum().backward)
    return x.grad, categories, torch.is_grad_enabled()
