"""Backward passes of every kind, and what they give: gradients to the bit, kernels, errors, memory, what hooks saw.

tests/test_eager.py runs this with the native forms and without: the output has to be the same.
"""

import gc
import threading
import zlib

import numpy as np

import tgrad
import tgrad.nn.functional as F
from tgrad import engine, modes
from tgrad.graph import Saved
from tgrad.kernels import launch
from tgrad.nn.module import _set_data
from tgrad.storage import ledger

CASES = []


def case(run):
    CASES.append(run)
    return run


def leaf(*shape, seed=0, dtype=tgrad.float32):
    values = np.random.default_rng((seed, *shape)).standard_normal(shape)
    return tgrad.tensor(values, dtype=dtype, requires_grad=True)


def bits(t):
    if t is None:
        return None
    values = t._values()
    first, all_bits = values.flatten()[:4].tolist(), zlib.crc32(values.tobytes())
    return tuple(t.shape), t.layout.strides, first, all_bits, t.requires_grad


def tried(run):
    try:
        return run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@case
def pointwise():
    a, b, c, row = leaf(3, 5), leaf(3, 5, seed=1), leaf(3, 5, dtype=tgrad.float64), leaf(5)
    y = ((a * b).tanh() + c - 2.5 * row).relu() / (row * row + 1)
    (y + y.exp() + a).sum().backward()
    x, z = leaf(4), leaf(4, seed=1)
    (x + z).backward(g := tgrad.ones(4))
    return [bits(t.grad) for t in (a, b, c, row, x, z)], len({t.storage for t in (x.grad, z.grad, g)})


@case
def accumulation():
    a, w = leaf(3, 4), leaf(4, 4)
    seen = []
    for _ in range(3):
        h = a @ w
        (h * a + h + a).mean().backward()
        seen.append((bits(a.grad), a.grad._version, id(a.grad) == id(seen[-1][-1]) if seen else None, a.grad))
    w.grad = tgrad.ones(4, 4).t()
    (a @ w).sum().backward()
    return [s[:-1] for s in seen], bits(w.grad)


@case
def layers():
    x, w, v, b = leaf(9, 8), leaf(8, 8), leaf(5, 8), leaf(8)
    h = F.relu(F.linear(F.relu(F.linear(x, w, b)), w, b))
    out = F.linear(h, v)
    g = tgrad.ones(9, 5)
    out.backward(g, retain_graph=True)
    once = [bits(t.grad) for t in (x, w, v, b)]
    out.backward(g)
    model = tgrad.nn.Sequential(tgrad.nn.Linear(8, 6), tgrad.nn.ReLU(), tgrad.nn.Linear(6, 2))
    for i, p in enumerate(model.parameters()):
        _set_data(p, leaf(*p.shape, seed=i))
    F.mse_loss(model(x.detach().reshape(3, 3, 8)), tgrad.zeros(3, 3, 2)).backward()
    again = tried(lambda: out.backward(g))
    return once, [bits(t.grad) for t in (x, w, v, b, *model.parameters())], again


@case
def kept_otherwise():
    """Bits, recipes and what runs again; memory afterwards."""
    x, w = leaf(64, 64), leaf(64, 64, seed=1)
    (x * w).relu().sum().backward()
    h = F.linear(F.gelu(x * w), w)
    y = F.dropout(h, 0.0) * 2
    y.mean().backward()
    return bits(x.grad), bits(w.grad)


@case
def steps_between():
    """An optimiser writes what a recipe reads, and what a node saved, before the backward."""
    x, w, u = leaf(64, 64), leaf(64, 64, seed=1), leaf(64, 64, seed=2)
    y = F.linear(F.gelu(u.detach().requires_grad_()), x)
    h = F.gelu(w)
    z = F.linear(h, x)
    for t in (w, u, x):
        t.grad = tgrad.ones(64, 64)
    tgrad.optim.SGD([w, u], lr=0.5, momentum=0.5).step()
    seen = [tried(lambda: z.sum().backward()), bits(h.detach()), bits(x.grad)]
    tgrad.optim.AdamW([x], lr=0.5).step()
    return *seen, tried(lambda: y.sum().backward()), w._version, x._version, bits(w), bits(x)


@case
def errors():
    x, w = leaf(3, 3), leaf(3, 3, seed=1)
    h = (x * w).tanh()
    y = h * w
    with tgrad.no_grad():
        h.mul_(2)
    seen = [tried(lambda: y.sum().backward()), tgrad.is_grad_enabled(), engine.innermost_walk()]
    seen += [bits(x.grad), bits(w.grad)]
    z = F.linear(w.tanh(), x)
    with tgrad.no_grad():
        x.add_(1)
    seen += [tried(lambda: z.sum().backward()), tgrad.is_grad_enabled()]
    seen += [tried(lambda: z.sum().backward(tgrad.ones(2))), tried(lambda: x.detach().backward())]
    k = (w * w).sum()
    k.backward()
    return *seen, tried(k.backward), bits(w.grad)


@case
def hooks():
    x, w, seen = leaf(3, 3), leaf(3, 3, seed=1), []
    x.register_hook(lambda g: seen.append(("leaf", bits(g))))
    w.register_post_accumulate_grad_hook(lambda t: seen.append(("after", bits(t.grad))))
    h = x * w
    h.register_hook(lambda g: seen.append(("node", bits(g), modes.current())) or g * 2)
    h.retain_grad()
    k = h.exp()
    k.grad_fn.register_prehook(lambda g: seen.append(("before", [bits(t) for t in g])))
    k.grad_fn.register_hook(lambda given, g: seen.append(("posthook", [bits(t) for t in given])))
    inner = (w.detach().requires_grad_() * 3).sum()
    m = F.linear(k, w)
    m.register_hook(lambda g: inner.backward(retain_graph=True) or tgrad.set_grad_enabled(True) and None)
    F.relu(m).mean().backward()
    raising = h.detach().requires_grad_()
    raising.register_hook(lambda g: 1 / 0)
    return *seen, bits(h.grad), bits(x.grad), tried(lambda: (raising * 2).sum().backward()), engine.innermost_walk()


class Doubled(tgrad.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


@case
def custom_and_checkpoint():
    x, w = leaf(4, 4), leaf(4, 4, seed=1)
    y = Doubled.apply(x * w).tanh() @ w
    z = tgrad.utils.checkpoint.checkpoint(lambda t: F.relu(F.linear(t, w)) * t, y, use_reentrant=False)
    z.sum().backward()
    return bits(x.grad), bits(w.grad)


@case
def pack_hooks():
    x, w, seen = leaf(4, 4), leaf(4, 4, seed=1), []

    def unpack(t):
        seen.append(bits(t))
        modes.set_mode(modes.GRAD)
        return t

    with tgrad.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), unpack):
        y = F.linear((x * w).tanh(), w)
    (y * y).sum().backward()
    return *seen, bits(x.grad), bits(w.grad), x.grad.grad_fn, tgrad.is_grad_enabled()


@case
def listeners():
    x, w, seen, unpack = leaf(4, 4), leaf(4, 4, seed=1), [], Saved.unpack
    Saved.unpack = lambda s, node: seen.append((s.name, node.name())) or unpack(s, node)
    try:
        F.linear((x * w).tanh(), w).sum().backward()
    finally:
        Saved.unpack = unpack
    with tgrad.autograd.detect_anomaly():
        nan = tried(lambda: ((x - x) / (x - x)).log().sum().backward())
    return seen, bits(x.grad), nan


@case
def leaves_that_changed():
    x, w, v = leaf(4, 4), leaf(4, 4, seed=1), leaf(4, 4, seed=2)
    y = F.linear(x * v, w)
    _set_data(w, tgrad.zeros(4, 4))
    v.requires_grad_(False)
    y.sum().backward()
    k = (z := leaf(3)) * 2
    z.requires_grad_(False)
    z.add_(leaf(3, seed=1))
    return bits(x.grad), bits(w.grad), bits(v.grad), tried(lambda: k.sum().backward()), bits(z.detach())


@case
def roots():
    a, b = leaf(2, 2), leaf(2, 2, seed=1)
    h = a * b
    g = tgrad.ones(2, 2)
    tgrad.autograd.backward([h, h, h.exp(), a], [g, g, g * 2, g])
    found = tgrad.autograd.grad((a * b).exp().sum(), [a, b], create_graph=True)
    found[0].sum().backward(inputs=[b])
    one = leaf(1, 1)
    one.mul(3).backward()
    one.expand(1, 1).t().backward()
    return bits(a.grad), bits(b.grad), [bits(t) for t in found], bits(one.grad), bits(leaf().exp().backward())


@case
def views_and_writes():
    a, b = leaf(4, 6), leaf(6)
    h = a * 2
    h[1].mul_(b)
    h[:, ::2] = h[:, 1::2].clone() * b[:3]
    part, rest = h.split(2)
    y = tgrad.cat([part, rest.t().reshape(2, 6), tgrad.where(part > 0, part, rest)])
    y.add_(1).relu_().sum(0).max().backward()
    return bits(a.grad), bits(b.grad)


@case
def threads():
    w = tgrad.ones(3, 3, requires_grad=True)
    runs = [threading.Thread(target=lambda: [(w * 2).relu().sum().backward() for _ in range(20)]) for _ in range(3)]
    for t in runs:
        t.start()
    for t in runs:
        t.join()
    return bits(w.grad)


@case
def long_chain():
    x = leaf(2)
    y = x
    for i in range(700):
        y = y * 1.01 if i % 3 else y.relu() + x
    y.sum().backward()
    return bits(x.grad)


def main():
    for run in CASES:
        before, told = ledger.live_bytes, []
        with launch.listen(told.append):
            found = run()
        told = sorted(told) if run is threads else told
        print(run.__name__, *(found if isinstance(found, tuple) else (found,)), told, sep="\n  ")
        del found
        gc.collect()
        print("  live bytes:", ledger.live_bytes - before)


if __name__ == "__main__":
    main()
