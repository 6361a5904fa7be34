"""Section 3.4: writes in place under recording, and views."""

from tests.semantics.harness import attempt, flags, leaf, name, statement


@statement("3.4 [R] a non-leaf gets a new grad_fn; earlier consumers keep the old history")
def test_new_history(M):
    x = leaf(M)
    h = x * 1
    y = h * 2
    before = h.grad_fn
    same = h.mul_(3) is h
    (y.sum() + h.sum()).backward()
    return same, h.grad_fn is before, name(h.grad_fn), x.grad, h


@statement("3.4 [R] autograd.grad(y, h) after a write to h: not used, since h now means the new value")
def test_grad_of_old_value(M):
    h = leaf(M) * 1
    y = (h * 2.0).sum()
    h.add_(1)
    z = (h * 5.0).sum()
    return attempt(M.autograd.grad, y, h), M.autograd.grad(z, h)


@statement("3.4 a plain tensor written with a value that requires grad becomes a non-leaf")
def test_plain_becomes_tracked(M):
    x, found = leaf(M), []
    for write in (lambda p: p.copy_(x), lambda p: p.add_(x), lambda p: p.__setitem__(0, x[1]), lambda p: p.mul_(x)):
        p = M.ones(3)
        write(p)
        found.append((p.requires_grad, p.is_leaf, name(p.grad_fn)))
        p.sum().backward()
        found += [x.grad, p]
        x.grad = None
    return found


@statement("3.4 zero_, fill_ and normal_ are recorded: the tensor still requires grad, the gradient is zero")
def test_fills(M):
    found = []
    for write in (lambda h: h.zero_(), lambda h: h.fill_(2.0), lambda h: h.normal_(), lambda h: h.uniform_()):
        x = leaf(M)
        h = x * 1
        write(h)
        found.append((h.requires_grad, h.is_leaf))
        h.sum().backward()
        found.append(x.grad)
    return found


@statement("3.4 [R][T] a view written in place rebases its base")
def test_view_write_rebases(M):
    x = leaf(M)
    z = x * 1
    before = z.grad_fn
    v = z[1:]
    v.mul_(10)
    found = z.grad_fn is before, name(z.grad_fn), flags(v)[:2], z._version, z
    z.sum().backward()
    return found, x.grad


@statement("3.4 [R][T] sibling and nested views see it, and _base is always the root")
def test_siblings(M):
    x = leaf(M, 1.0, 2.0, 3.0, 4.0)
    z = x * 1
    a, b = z[1:], z[:3]
    c = a[1:]
    d = z.view(2, 2)
    c.mul_(10)
    a.add_(1)
    weights = M.tensor([1.0, 2.0, 3.0, 4.0])
    (b * weights[:3]).sum().backward(retain_graph=True)
    first = x.grad.clone()
    (d * weights.view(2, 2)).sum().backward(retain_graph=True)
    (a.sum() + c.sum()).backward()
    return first, x.grad, [t._base is z for t in (a, b, c, d)], [t._version for t in (z, a, b, c, d)]


@statement("3.4 [R][T] it works when the base was plain: base and other views require grad")
def test_plain_base(M):
    x, p = leaf(M, 5.0, 6.0), M.ones(4)
    v, w = p[1:3], p[2:]
    v.mul_(x)
    found = flags(p)[:2], flags(v)[:2], flags(w)[:2], p
    (p.sum() + w.sum()).backward()
    return found, x.grad


@statement("3.4 [R][T] setitem: the gradient is cut there, and the value gets its own")
def test_setitem(M):
    found = []
    for index in (1, slice(1, None), slice(None, None, 2), Ellipsis, None):
        x, w = leaf(M), leaf(M, 7.0)
        z = x * 1
        z[index] = w * 2
        (z * M.tensor([1.0, 2.0, 4.0])).sum().backward()
        found.append((x.grad, w.grad, z))
    x = leaf(M)
    z = x * 1
    z[0] = 5.0
    z[1] += 1
    z[2] *= z[1].detach().clone()
    z.sum().backward()
    return found, x.grad, z


@statement("3.4 [R][T] a base written in place makes its views' histories anew")
def test_base_write(M):
    x = leaf(M)
    z = x * 1
    v = z[1:]
    before = v.grad_fn
    z.mul_(10)
    found = v.grad_fn is before, flags(v)[:2]
    v.sum().backward()
    return found, x.grad, v


@statement("3.4 [R][T] also if the base was plain and the view taken before")
def test_plain_base_written(M):
    x, p = leaf(M), M.ones(3)
    v = p[1:]
    p.mul_(x)
    found = flags(v)[:2]
    (v * M.tensor([3.0, 4.0])).sum().backward()
    return found, x.grad


@statement("3.4 [R][T] views of every kind are followed both ways")
def test_kinds_of_views(M):
    found = []
    kinds = [
        lambda z: z.view(3, 2), lambda z: z.t(), lambda z: z.transpose(0, 1), lambda z: z[0], lambda z: z[:, 1],
        lambda z: z[:, ::2], lambda z: z.unsqueeze(0), lambda z: z.squeeze(), lambda z: z.permute(1, 0),
        lambda z: z.narrow(1, 1, 2), lambda z: z.select(1, 2), lambda z: z.T[1:], lambda z: z.reshape(6)[2:5],
        lambda z: z.flatten(), lambda z: z.expand(2, 3), lambda z: z[None, 0, 1:],
    ]  # fmt: skip
    for kind in kinds:
        for write_view in (True, False):
            x = M.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], requires_grad=True)
            z = x * 1
            v = kind(z)
            w = (v * 0 + 3).detach()
            (v if write_view else z).mul_(4)
            v.add_(1)
            v.mul_(w)
            (z * z).sum().backward(retain_graph=True)
            (v * w).sum().backward()
            found.append((x.grad, v._base is z, flags(v)[:2], z._version))
    return found


@statement("3.4 [R][T] a write whose operand is a view of the target, or the target itself")
def test_own_operands(M):
    x = leaf(M)
    z = x * 1
    z.mul_(z)
    z.add_(z)
    z[0] = z[1] * z[2]
    v = z[1:]
    v.mul_(v)
    z.sum().backward()
    return x.grad, z


@statement("3.4 [R] double backward through writes in place")
def test_double_backward(M):
    x = leaf(M)
    z = x * 1
    z[1:].mul_(x[1:])
    z.pow_(3)
    (g,) = M.autograd.grad(z.sum(), x, create_graph=True)
    (h,) = M.autograd.grad((g * g).sum(), x)
    return g, h


@statement("3.4 long chains of writes do not recurse")
def test_long_chains(M):
    x = leaf(M)
    y, z = x * 1, x * 1
    for _ in range(1200):
        y.add_(1)
    for _ in range(400):
        z[0] += 1
    (y.sum() + z.sum()).backward()
    del y, z
    return x.grad
