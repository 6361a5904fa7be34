"""Sections 1.5 to 1.8: what a mode does to results, views, writes and backward passes."""

import contextlib

from tests.semantics.harness import attempt, flags, leaf, state, statement, version_kept, warned


# --- 1.5 what no_grad does to results --------------------------------------------------------------------------------
@statement("1.5 [R] a result under no_grad is a plain leaf, and can be made a new one that requires grad")
def test_results(M):
    x = leaf(M)
    with M.no_grad():
        y = x * 2
        z = M.exp(x).sum()
    found = [flags(y), flags(z)]
    y.requires_grad_()
    (y * 3).sum().backward()
    return found, flags(y), y.grad, x.grad


@statement("1.5 [R][T] factories under no_grad obey their own argument")
def test_factories(M):
    with M.no_grad():
        made = [
            M.ones(2, requires_grad=True), M.tensor([1.0], requires_grad=True),
            M.zeros_like(M.ones(2), requires_grad=True),
            M.nn.Parameter(M.ones(2)), M.nn.Linear(2, 3).weight, M.ones(2).requires_grad_(), M.ones(2),
        ]  # fmt: skip
        after = [t * 2 for t in made]
    return [flags(t) for t in made], [flags(t) for t in after]


@statement("1.5 [R] no gradient reaches the base of a view taken under no_grad")
def test_views_carry_no_gradient(M):
    x, w = leaf(M), leaf(M, 5.0, 6.0)
    with M.no_grad():
        v = x[1:]
    (v * w).sum().backward()
    return x.grad, w.grad, v.grad, v._base is x, v.is_leaf, v.grad_fn


@statement("1.5 detach is plain; to, contiguous and float that change nothing give the tensor itself")
def test_no_ops(M):
    x = leaf(M)
    with M.no_grad():
        d = x.detach()
        return flags(d), x.to(M.float32) is x, x.contiguous() is x, x.float() is x, flags(x)


@statement("1.5 [R] a leaf may be written in place under no_grad")
def test_write_leaf(M):
    x = leaf(M)
    with M.no_grad():
        y = x.add_(1)
        x *= 2
        x[0] = 7.0
    return y is x, flags(x), x._version, x


@statement("1.5 [R][T] a write to a non-leaf under no_grad goes unnoticed by the gradient")
def test_write_non_leaf(M):
    found = []
    for write in (lambda y: y.mul_(10), lambda y: y.zero_(), lambda y: y.fill_(2)):
        x = leaf(M)
        y = x * 2
        node = y.grad_fn
        with M.no_grad():
            write(y)
        y.sum().backward()
        found += [y, y._version, y.grad_fn is node, x.grad]
    return found


@statement("1.5 writing a value that requires grad into a plain tensor under no_grad leaves it plain")
def test_write_into_plain(M):
    p, x = M.zeros(3), leaf(M)
    with M.no_grad():
        p.copy_(x)
        p[0] = x[1]
    return p, flags(p)


@statement("1.5 [R] writes under no_grad are counted: the tutorial's error")
def test_counted(M):
    w = leaf(M)
    loss = (w * w).sum()
    with M.no_grad():
        w -= 0.1
    return attempt(loss.backward), w._version, w.grad


# --- 1.6 views, no_grad and writes -----------------------------------------------------------------------------------
@statement("1.6 view and write both under no_grad: the named view of such a base cannot be used with grad on")
def test_view_and_write_under_no_grad(M):
    x = leaf(M)
    with M.no_grad():
        v = x[1:]
        v.mul_(10)
        under = v * 2
    return (
        x, x._version, attempt(lambda: v.grad_fn), attempt(lambda: v.is_leaf), attempt(lambda: v * 2), v.detach(),
        v.tolist(), under, "Invalid" in repr(v),
    )  # fmt: skip


@statement("1.6 [R] a view made under no_grad refuses a write in grad mode, before writing")
def test_view_under_no_grad_write_in_grad_mode(M):
    found = []
    for base in (leaf(M), leaf(M) * 1):
        with M.no_grad():
            v = base[1:]
        found.append(version_kept(v, lambda v=v: v.mul_(2)))
    p = M.zeros(3)
    with M.no_grad():
        v = p[1:]
    found.append(version_kept(v, lambda: v.copy_(leaf(M, 1.0, 2.0))))
    v.mul_(3).add_(1)
    return found, p, p._version


@statement("1.6 the base written in grad mode: using a view made under no_grad raises, its flag does not")
def test_base_written(M):
    z = leaf(M) * 1
    with M.no_grad():
        v = z[1:]
    z.mul_(2)
    return attempt(lambda: v * 2), attempt(lambda: v.grad_fn), isinstance(v.requires_grad, bool), v.tolist()


@statement("1.6 a view made in grad mode, written under no_grad, keeps its history")
def test_grad_view_written_under_no_grad(M):
    x = leaf(M)
    z = x * 1
    v, parts = z[1:], z.chunk(3)
    with M.no_grad():
        v.mul_(10)
        parts[0].zero_()
    found = flags(z), flags(v)[:2], z
    (z.sum() + v.sum()).backward()
    return found, x.grad


# --- 1.7 backward and no_grad ----------------------------------------------------------------------------------------
@statement("1.7 [R] the mode counts when an op is recorded, not at backward")
def test_backward_in_other_modes(M):
    found = []
    for context in (M.no_grad, M.inference_mode):
        x = leaf(M)
        x.grad = M.zeros(3)
        y, z = (x * x).sum(), (x * x).sum()
        with context():
            y.backward()
            (g,) = M.autograd.grad(z, x)
        found += [x.grad, g, flags(g)]
    return found


def watching(M, seen):
    class Watch(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(("forward", M.is_grad_enabled()))
            M.set_grad_enabled(False)
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            seen.append(("backward", M.is_grad_enabled()))
            M.set_grad_enabled(not M.is_grad_enabled())
            return g * 1

    return Watch.apply


@statement("1.7 [R][T] create_graph turns grad mode on inside the engine; otherwise it is off")
def test_engine_mode(M):
    seen = []
    for create in (False, True):
        for context in (contextlib.nullcontext, M.no_grad):
            x = leaf(M)
            x.register_hook(lambda g: seen.append(("hook", M.is_grad_enabled())))
            y = (watching(M, seen)(x) * x).sum()
            with context():
                M.autograd.backward(y, create_graph=create)
                seen.append((state(M), x.grad.requires_grad))
    return seen


@statement("1.7 [R][T] a mode left behind by a forward, a backward or a hook does not escape")
def test_mode_does_not_escape(M):
    seen, x = [], leaf(M)
    y = watching(M, seen)(x)
    seen.append(state(M))
    y.register_hook(lambda g: M.set_grad_enabled(True) and None)
    y.sum().backward()
    return seen, state(M)


@statement("1.7 numpy() of a tensor that requires grad is refused in grad mode; tolist and item are not")
def test_numpy(M):
    x = leaf(M)
    refused = attempt(x.numpy)
    with M.no_grad():
        allowed = x.numpy().tolist()
    return refused, allowed, x.tolist(), x.sum().item()


# --- 1.8 leaves ------------------------------------------------------------------------------------------------------
@statement("1.8 is_leaf means no grad_fn; these attributes are read-only; grad_fn is one object")
def test_leaves(M):
    x, plain = leaf(M), M.ones(3)
    y = x * 2
    wrong = [attempt(setattr, y, n, v).kind for n, v in (("grad_fn", None), ("is_leaf", True), ("_version", 3))]
    return [flags(t) for t in (x, plain, plain * 2, y)], y.grad_fn is y.grad_fn, wrong


@statement("1.8 only floating tensors can require grad")
def test_floating(M):
    return attempt(M.ones(2, dtype=M.int64).requires_grad_), attempt(lambda: M.tensor([1], requires_grad=True))


@statement("1.8 requires_grad cannot be switched off on a non-leaf; switching on does nothing")
def test_requires_grad_of_non_leaf(M):
    y = leaf(M) * 2
    return (
        attempt(y.requires_grad_, False),
        y.requires_grad_() is y,
        flags(y),
        attempt(setattr, y, "requires_grad", False),
    )


@statement("1.8 [T] requires_grad switched off between forward and backward: no gradient, no error")
def test_switched_off_later(M):
    x, w = leaf(M), leaf(M)
    y = (x * w).sum()
    x.requires_grad_(False)
    y.backward()
    return x.grad, w.grad


@statement("1.8 [T] a leaf switched off, then written so that it is a leaf no more: backward raises")
def test_moved_into_the_graph(M):
    x, w = leaf(M), leaf(M)
    y = (x * 3.0).sum()
    x.requires_grad_(False)
    x.add_(w)
    return attempt(y.backward), x.requires_grad, w.grad


@statement("1.8 comparisons and conversions to integers are plain")
def test_plain_results(M):
    x = leaf(M)
    return [flags(t) for t in (x > 1, x == 2, x.long(), x.bool())]


@statement("1.8 deepcopy of a non-leaf is refused, of a leaf it is a leaf with its own gradient")
def test_deepcopy(M):
    import copy

    x = leaf(M)
    (x * 2).sum().backward()
    y = copy.deepcopy(x)
    x.grad.zero_()
    return attempt(copy.deepcopy, x * 2), flags(y), y, y.grad


@statement("1.8 tensor() of a tensor warns and is a plain copy; as_tensor gives the tensor itself")
def test_tensor_of_tensor(M):
    x = leaf(M)
    made, categories = warned(M.tensor, x)
    return categories, flags(made), made, M.as_tensor(x) is x
