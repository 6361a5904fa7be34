"""Section 4.5: custom Functions."""

from tests.semantics.harness import attempt, flags, leaf, name, statement, version_kept, warned


def function(M, forward, backward=None, label="Fn", **more):
    """A Function of these two functions."""
    members = {"forward": staticmethod(forward), **{k: staticmethod(v) for k, v in more.items()}}
    if backward is not None:
        members["backward"] = staticmethod(backward)
    return type(label, (M.autograd.Function,), members)


@statement("4.5 forward runs with grad off on the caller's objects; backward with grad off, on with create_graph")
def test_modes(M):
    seen, x = [], leaf(M)

    def forward(ctx, a, b):
        seen.append((M.is_grad_enabled(), a is x, a.requires_grad, b, (a * 2).requires_grad))
        return a * b

    def backward(ctx, g):
        seen.append((M.is_grad_enabled(), (g * 1).requires_grad))
        return g * 3, None

    fn = function(M, forward, backward)
    y = fn.apply(x, 3.0).sum()
    y.backward(retain_graph=True)
    (g,) = M.autograd.grad(y, x, create_graph=True)
    return seen, x.grad, g


@statement("4.5 needs_input_grad is per argument, also under no_grad, and does not depend on inputs=")
def test_needs_input_grad(M):
    seen = []

    def forward(ctx, *args):
        seen.append(ctx.needs_input_grad)
        return args[0] * 1

    def backward(ctx, g):
        seen.append(ctx.needs_input_grad)
        return g, g, None, None

    fn = function(M, forward, backward)
    x, w = leaf(M), leaf(M)
    fn.apply(x, w, 3, M.ones(3)).sum().backward(inputs=[x])
    with M.no_grad():
        y = fn.apply(x, w, "a", None)
    return seen, flags(y), x.grad, w.grad


@statement("4.5 under no_grad, or without an input that requires grad, the result is plain")
def test_plain_results(M):
    fn = function(M, lambda ctx, x: x * 2, lambda ctx, g: g * 2)
    with M.no_grad():
        y = fn.apply(leaf(M))
    with M.inference_mode():
        i = fn.apply(leaf(M))
    return flags(y), flags(fn.apply(M.ones(3))), i.is_inference(), i.requires_grad


@statement("4.5 tensors in lists and dicts are not tracked; keyword arguments are accepted")
def test_containers(M):
    fn = function(M, lambda ctx, x, more, scale=1.0: x * more[0] * scale, lambda ctx, g: (g * 2, None))
    x, w = leaf(M), leaf(M)
    y = fn.apply(x, [w])
    y.sum().backward()
    return flags(y)[:2], x.grad, w.grad


@statement("4.5 outputs: tensors on the node, integers plain, others as they are; gradients in order")
def test_outputs(M):
    seen = []

    def forward(ctx, x):
        return x * 2, M.ones(2), M.tensor([1, 2]), "text", None, x * 3, [x * 4]

    def backward(ctx, *grads):
        seen.append([None if g is None else (str(g.dtype).split(".")[-1], g.tolist()) for g in grads])
        return grads[0] * 2 + grads[5] * 3

    x = leaf(M)
    out = function(M, forward, backward).apply(x)
    ((out[5] * 5.0).sum() + out[0].sum()).backward()
    return (
        [flags(t) if hasattr(t, "is_leaf") else t for t in out[:6]], out[6][0].requires_grad, seen, x.grad,
        out[0].grad_fn is out[5].grad_fn,
    )  # fmt: skip


def backward_giving(M, *values, x=None):
    fn = function(M, lambda ctx, a, b: a * 1, lambda ctx, g: tuple(v(g) if callable(v) else v for v in values))
    x = leaf(M) if x is None else x
    return attempt(fn.apply(x, 2.0).sum().backward), x.grad


@statement("4.5 backward returns one value per argument; surplus None is fine")
def test_numbers_of_gradients(M):
    g = lambda g: g
    return [
        backward_giving(M, g, None), backward_giving(M, g, None, None, None), backward_giving(M, g),
        backward_giving(M, g, None, g), backward_giving(M, g, g),
    ]  # fmt: skip


@statement("4.5 gradients of a wrong shape, dtype or class")
def test_wrong_gradients(M):
    return [
        backward_giving(M, lambda g: M.ones(5), None), backward_giving(M, lambda g: M.ones(1), None),
        backward_giving(M, lambda g: M.ones(2, 3), None),
        backward_giving(M, lambda g: M.ones(3, dtype=M.float64), None),
        backward_giving(M, lambda g: 1.5, None), backward_giving(M, lambda g: M.ones(()), None),
    ]  # fmt: skip


@statement("4.5 a gradient for a plain tensor is ignored")
def test_gradient_for_plain(M):
    fn = function(M, lambda ctx, a, b: a * b, lambda ctx, g: (g, g))
    x, p = leaf(M), M.ones(3)
    fn.apply(x, p).sum().backward()
    return x.grad, p.grad


@statement("4.5 an input returned as it is becomes a new view on the node; it cannot be written in place")
def test_returned_input(M):
    fn = function(M, lambda ctx, x: x, lambda ctx, g: g * 5)
    x = leaf(M) * 1
    y = fn.apply(x)
    found = y is x, y._base is x, name(y.grad_fn), y.data_ptr() == x.data_ptr()
    refused = version_kept(y, lambda: y.mul_(2))
    (g,) = M.autograd.grad(y.sum(), x)
    return found, refused, g


@statement("4.5 a view made in forward cannot be written in place")
def test_view_from_forward(M):
    fn = function(M, lambda ctx, x: x[1:], lambda ctx, g: M.ones(3))
    y = fn.apply(leaf(M) * 1)
    return version_kept(y, lambda: y.mul_(2))


def doubling(M):
    def forward(ctx, x):
        x.mul_(2)
        ctx.mark_dirty(x)
        return x

    return function(M, forward, lambda ctx, g: g * 2)


@statement("4.5 mark_dirty: the output is the input, on this node, its version moves once more")
def test_mark_dirty(M):
    fn, x = doubling(M), leaf(M)
    h = x * 1
    y = fn.apply(h)
    found = y is h, name(h.grad_fn), h._version, h
    h.sum().backward()
    p, w = M.ones(3), leaf(M)

    def forward(ctx, p, w):
        p.add_(w)
        ctx.mark_dirty(p)
        return p

    fn = function(M, forward, lambda ctx, g: (g, g * 7))
    fn.apply(p, w).sum().backward()
    return found, x.grad, flags(p)[:2], p, w.grad


@statement("4.5 mark_dirty on a view rebases its base; on a leaf it is refused; what is marked must be returned")
def test_mark_dirty_more(M):
    fn, x = doubling(M), leaf(M)
    z = x * 1
    v = z[1:]
    fn.apply(v)
    found = z, flags(z)[:2]
    z.sum().backward()
    refused = attempt(fn.apply, leaf(M))

    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x * 2

    return found, x.grad, refused, attempt(function(M, forward, lambda ctx, g: g).apply, leaf(M) * 1)


@statement("4.5 mark_non_differentiable: a plain leaf, for which backward gets zeros")
def test_mark_non_differentiable(M):
    seen = []

    def forward(ctx, x):
        a, b = x * 2, x * 3
        ctx.mark_non_differentiable(b)
        return a, b

    def backward(ctx, ga, gb):
        seen.append((ga.tolist(), gb.tolist()))
        return ga * 2

    x = leaf(M)
    a, b = function(M, forward, backward).apply(x)
    a.sum().backward()
    return flags(b), flags(a)[:2], seen, x.grad


@statement("4.5 set_materialize_grads(False): None, not zeros, for outputs that nothing used")
def test_materialize(M):
    found = []
    for materialize in (True, False):

        def forward(ctx, x, materialize=materialize):
            ctx.set_materialize_grads(materialize)
            return x * 2, x * 3

        def backward(ctx, a, b):
            found.append((a is None, b.tolist()))
            return b * 3

        x = leaf(M)
        function(M, forward, backward).apply(x)[1].sum().backward()
        found.append(x.grad)
    return found


@statement("4.5 save_for_backward: tensors or None, the last call counts, empty in forward; freed and checked as any")
def test_save_for_backward(M):
    seen = []

    def forward(ctx, x, w):
        ctx.save_for_backward(w)
        ctx.save_for_backward(x, None, w)
        seen.append(len(ctx.saved_tensors) if M.__name__ == "torch" else 0)
        return x * w

    def backward(ctx, g):
        x, nothing, w = ctx.saved_tensors
        seen.append((nothing, x is kept[0], w is kept[1]))
        return g * w, g * x

    fn = function(M, forward, backward)
    kept = x, w = leaf(M), leaf(M)
    y = fn.apply(x, w).sum()
    y.backward()
    second = attempt(y.backward)
    h = x * 1
    z = fn.apply(h, w).sum()
    h.add_(1)

    def saves_number(ctx, x):
        ctx.save_for_backward(5)
        return x

    return seen, x.grad, second, attempt(z.backward), attempt(function(M, saves_number).apply, x)


@statement("4.5 saved_tensors is empty in forward")
def test_saved_tensors_in_forward(M):
    seen = []

    def forward(ctx, x):
        ctx.save_for_backward(x)
        seen.append(len(ctx.saved_tensors))
        return x * 1

    function(M, forward, lambda ctx, g: g).apply(leaf(M))
    return seen


@statement("4.5 a saved output is differentiable, an intermediate is not; attributes are neither checked nor freed")
def test_saved_output(M):
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        ctx.kept = y
        return y

    fn = function(M, forward, lambda ctx, g: g * ctx.saved_tensors[0])
    x = leaf(M, 0.5, 1.0)
    (g,) = M.autograd.grad(fn.apply(x).sum(), x, create_graph=True)
    (h,) = M.autograd.grad((g * g).sum(), x)

    def lost(ctx, x):
        s = x.sin()
        ctx.save_for_backward(s)
        return s * 2

    lossy = function(M, lost, lambda ctx, g: g * ctx.saved_tensors[0])
    (k,) = M.autograd.grad(lossy.apply(x).sum(), x, create_graph=True)

    def keeps(ctx, x):
        ctx.kept = x
        return x * 2

    attribute = function(M, keeps, lambda ctx, g: g * ctx.kept)
    z = x.clone()
    y = attribute.apply(z).sum()
    z.data.zero_()
    y.backward()
    y.backward()
    return g, h, k, k.requires_grad, x.grad


@statement("4.5 several outputs saved and differentiated twice")
def test_several_saved_outputs(M):
    def forward(ctx, x):
        a, b = x.exp(), x * x
        ctx.save_for_backward(x, a)
        return a, b

    def backward(ctx, ga, gb):
        x, a = ctx.saved_tensors
        return ga * a + gb * 2.0 * x

    x = leaf(M, 0.5, 1.0)
    a, b = function(M, forward, backward).apply(x)
    (g,) = M.autograd.grad((a * b).sum(), x, create_graph=True)
    (h,) = M.autograd.grad((g * x).sum(), x)
    return g, h


@statement("4.5 once_differentiable: differentiating again by backward is refused")
def test_once_differentiable(M):
    once = M.autograd.function.once_differentiable
    fn = function(M, lambda ctx, x: x * 2, once(lambda ctx, g: g * 2))
    x = leaf(M)
    (g,) = M.autograd.grad((fn.apply(x) * x).sum(), x, create_graph=True)
    return g, attempt(g.sum().backward)


@statement("4.5 setup_context with a forward without ctx; vjp for backward, not both")
def test_other_styles(M):
    def setup(ctx, inputs, output):
        ctx.save_for_backward(inputs[0], output)
        ctx.scale = inputs[1]

    def backward(ctx, g):
        x, y = ctx.saved_tensors
        return g * y * ctx.scale + x * 0, None

    x = leaf(M, 0.5, 1.0)
    function(M, lambda x, k: (x * k).exp(), backward, setup_context=setup).apply(x, 2.0).sum().backward()
    found = x.grad.clone()
    function(M, lambda ctx, x: x * 2, vjp=lambda ctx, g: g * 2).apply(x).sum().backward()
    both = function(M, lambda ctx, x: x * 2, lambda ctx, g: g, vjp=lambda ctx, g: g)
    return found, x.grad, attempt(lambda: both.apply(x).sum().backward())


@statement("4.5 without backward, without forward; as an object it is refused; the node's name")
def test_missing(M):
    fn = function(M, lambda ctx, x: x * 2, label="Mine")
    empty = type("Empty", (M.autograd.Function,), {})
    y = fn.apply(leaf(M))
    made, categories = warned(fn)
    called = attempt(lambda: fn()(leaf(M)))
    return attempt(y.sum().backward), attempt(empty.apply, leaf(M)), name(y.grad_fn), categories, called


@statement("4.5 a graph made with enable_grad in forward does not leak into the result")
def test_inner_graph(M):
    w = leaf(M)

    def forward(ctx, x):
        with M.enable_grad():
            return x * w * w

    x = leaf(M)
    function(M, forward, lambda ctx, g: g * 3).apply(x).sum().backward()
    return x.grad, w.grad
