"""Section 5: modules and layers, as far as grad modes and autograd are concerned."""

import copy
from collections import OrderedDict

from tests.semantics.harness import attempt, flags, leaf, statement


def filled(M, module):
    """The module with weights that are a function of their place."""
    with M.no_grad():
        for p in module.parameters():
            p.copy_((M.arange(p.numel(), dtype=M.float32) * 0.1 - 0.2).view(*p.shape))
    return module


# --- 5.1 modules -----------------------------------------------------------------------------------------------------
@statement("5.1 [R] eval() is not no_grad, and no_grad is not eval")
def test_eval_and_no_grad(M):
    m = filled(M, M.nn.Sequential(M.nn.Linear(2, 2), M.nn.Dropout(1.0), M.nn.BatchNorm1d(2)))
    x = M.tensor([[1.0, 2.0], [3.0, 5.0]])
    m.eval()
    y = m(x)
    m.train()
    with M.no_grad():
        z = m(x)
    drop = M.nn.Dropout(1.0)
    with M.no_grad():
        dropped = drop(M.ones(4))
    return flags(y)[:2], flags(z), dropped, m[2].num_batches_tracked, m[2].running_mean


@statement("5.1 [R] train and eval recurse and return the module; only bools; a submodule may differ")
def test_train(M):
    m = M.nn.Sequential(M.nn.Linear(1, 1), M.nn.Sequential(M.nn.ReLU()))
    found = m.eval() is m, [c.training for c in m.modules()], m.train() is m, [c.training for c in m.modules()]
    m[1].eval()
    return found, [c.training for c in m.modules()], attempt(m.train, 1), attempt(m.train, "a")


@statement("5.1 requires_grad_(False) freezes all parameters; gradients pass through to earlier inputs")
def test_freeze(M):
    m = filled(M, M.nn.Linear(3, 2))
    x = leaf(M)
    same = m.requires_grad_(False) is m
    m(x).sum().backward()
    return same, [p.requires_grad for p in m.parameters()], m.weight.grad, x.grad


@statement("5.1 zero_grad: None, or zeros in place, detached from their graph")
def test_zero_grad(M):
    m, x = filled(M, M.nn.Linear(3, 2)), M.ones(2, 3)
    m(x).sum().backward()
    held = m.weight.grad
    m.zero_grad(set_to_none=False)
    found = m.weight.grad is held, held
    m.weight.grad = None
    (m(x) ** 2).sum().backward(create_graph=True)
    before = m.weight.grad.requires_grad
    m.zero_grad(set_to_none=False)
    found += before, m.weight.grad.requires_grad, m.weight.grad
    m.zero_grad()
    return found, m.weight.grad


@statement("5.1 a Parameter: a new leaf on the memory and counter of its source; ops give plain tensors")
def test_parameter(M):
    x = leaf(M)
    source = x * 2
    p = M.nn.Parameter(source)
    with M.no_grad():
        p.add_(1)
    (p * 3.0).sum().backward()
    q = copy.deepcopy(p)
    return (
        flags(p), source, source._version, p.grad, x.grad, type(p * 1).__name__,
        flags(M.nn.Parameter(M.ones(2), False)),
        q.grad, flags(q), attempt(M.nn.Parameter, M.tensor([1])),
    )  # fmt: skip


def own(M):
    class Own(M.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = M.nn.Parameter(M.ones(2))
            self.l = M.nn.Linear(2, 2)
            self.again = self.w
            self.none = None
            self.register_buffer("b", M.zeros(2))
            self.register_buffer("c", M.zeros(1), persistent=False)
            self.register_parameter("absent", None)

    return Own()


@statement("5.1 registration by assignment: order, shared ones once, buffers persistent or not")
def test_registration(M):
    m = own(M)
    return (
        [n for n, _ in m.named_parameters()], list(m.state_dict()), [n for n, _ in m.named_buffers()],
        [n for n, _ in m.named_children()],
    )  # fmt: skip


@statement("5.1 what must not be assigned or registered")
def test_refused(M):
    m = own(M)

    class Early(M.nn.Module):
        def __init__(self):
            self.w = M.nn.Parameter(M.ones(1))

    return [
        attempt(setattr, m, "w", M.ones(2)), attempt(setattr, m, "l", 5), attempt(setattr, m, "b", 5), attempt(Early),
        attempt(m.register_parameter, "p", M.ones(2)).kind, attempt(m.register_parameter, "l",
        M.nn.Parameter(M.ones(1))),
        attempt(m.register_parameter, "a.b", None), attempt(m.register_parameter, "", None), attempt(lambda: m.foo),
        attempt(m, M.ones(2)),
    ]  # fmt: skip


@statement("5.1 state_dict: detached tensors that share memory; keep_vars gives the Parameters")
def test_state_dict(M):
    m = own(M)
    sd = m.state_dict()
    sd["w"].add_(5)
    return (
        m.w,
        flags(sd["w"]),
        isinstance(sd, OrderedDict),
        m.state_dict(keep_vars=True)["w"] is m.w,
        sd["w"] is sd["again"],
    )


@statement("5.1 load_state_dict copies in place; strict, sizes, assign")
def test_load_state_dict(M):
    m, other = M.nn.Linear(2, 2), filled(M, M.nn.Linear(2, 2))
    w, version = m.weight, m.weight._version
    result = m.load_state_dict(other.state_dict())
    found = m.weight is w, m.weight._version - version, m.weight, repr(result), list(result.missing_keys)
    missing = m.load_state_dict({"weight": M.ones(2, 2), "zz": M.ones(1)}, strict=False)
    return (
        found, list(missing.missing_keys), list(missing.unexpected_keys),
        attempt(m.load_state_dict, {"weight": M.ones(2, 2)}), attempt(m.load_state_dict, {"weight": M.ones(3)}, False),
        attempt(m.load_state_dict, 5).kind,
    )  # fmt: skip


@statement("5.1 double() changes the Parameters' data and keeps their identity")
def test_double(M):
    m = M.nn.Linear(2, 2)
    w = m.weight
    m.double()
    return m.weight is w, str(w.dtype).split(".")[-1], flags(w)


# --- 5.2 layers ------------------------------------------------------------------------------------------------------
@statement("5.2 Dropout: scaled or zero in train, the input itself in eval; the gradient is mask times scale")
def test_dropout(M):
    d, x = M.nn.Dropout(0.5), M.ones(200, requires_grad=True)
    y = d(x)
    y.sum().backward()
    d.eval()
    return (
        sorted(set(y.tolist())), sorted(set(x.grad.tolist())), y.tolist() == x.grad.tolist(), d(x) is x,
        M.nn.Dropout(0.0)(M.ones(3)), M.nn.Dropout(1.0)(M.ones(3)), attempt(M.nn.Dropout, 1.5),
    )  # fmt: skip


@statement("5.2 BatchNorm: biased variance to normalise, unbiased in the running one; momentum; tracking")
def test_batch_norm(M):
    x = M.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]])
    m, cumulative, untracked = (
        M.nn.BatchNorm1d(2),
        M.nn.BatchNorm1d(2, momentum=None),
        M.nn.BatchNorm1d(2, track_running_stats=False),
    )
    found = [m(x), m(x * 2), m.running_mean, m.running_var, m.num_batches_tracked]
    cumulative(x), cumulative(x * 2)
    untracked.eval()
    found += [cumulative.running_mean, cumulative.running_var, untracked(x), list(untracked.state_dict())]
    m.eval()
    return found, m(x), m.num_batches_tracked, str(m.num_batches_tracked.dtype).split(".")[-1]


@statement("5.2 BatchNorm: what it refuses")
def test_batch_norm_refuses(M):
    m = M.nn.BatchNorm1d(3)
    return [attempt(m, x) for x in (M.ones(1, 3), M.ones(2, 3, 4, 5), M.ones(2, 5))]


@statement("5.2 [T] updating the running statistics is no new version: two forwards before one backward")
def test_running_statistics(M):
    x = M.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]])
    m = M.nn.BatchNorm1d(2)
    before = m.running_mean._version, m.running_var._version
    y, z = m(x), m(x * x)
    moved = m.running_mean._version - before[0], m.running_var._version - before[1]
    (y * x).sum().backward()
    (z * x).sum().backward()
    return moved, m.weight.grad, m.bias.grad, m.running_mean
