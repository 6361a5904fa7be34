"""Section 4.9: threads. What one thread does reaches no other; what they share loses nothing."""

import threading

import tgrad
from tests.compare import same_bits
from tests.semantics.harness import attempt, leaf, statement

WORKERS, STEPS = 8, 4


def at_once(functions):
    """What each function gives, all called at the same time in threads of their own."""
    results, barrier = [None] * len(functions), threading.Barrier(len(functions))

    def work(i):
        barrier.wait()
        results[i] = attempt(functions[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@statement("4.9 a graph may be differentiated in another thread")
def test_other_thread(M):
    x = leaf(M)
    y = (x.exp() * x).sum()
    with M.no_grad():
        found = at_once([lambda: y.backward(retain_graph=True), lambda: M.autograd.grad(y, x, retain_graph=True)])
    return found, x.grad


@statement("4.9 [T] ops may run in several threads at once")
def test_ops_at_once(M):
    def work():
        x = leaf(M)
        for _ in range(5):
            y = (x * x).exp().sum()
        y.backward()
        return x.grad

    return at_once([work] * 4)


@statement("4.3 concurrent backwards into one leaf lose nothing")
def test_one_leaf(M):
    x = leaf(M)
    seen = []
    x.register_hook(lambda g: seen.append(1))

    def work(factor):
        def run():
            for _ in range(10):
                (x * factor).sum().backward()

        return run

    at_once([work(float(2**i)) for i in range(WORKERS)])
    return x.grad, len(seen)


@statement("4.9 concurrent writes through hooks and shared layers lose nothing")
def test_shared_layer(M):
    layer = M.nn.Linear(3, 2)
    with M.no_grad():
        layer.weight.fill_(0.5)
        layer.bias.zero_()
    inputs = [M.full((4, 3), float(i)) for i in range(WORKERS)]
    at_once([lambda x=x: layer(x).sum().backward() for x in inputs])
    return layer.weight.grad, layer.bias.grad


def train(seed):
    """A model of its own, trained on data of its own: its weights and the losses."""
    generator = tgrad.Generator().manual_seed(seed)
    draw = lambda *shape: tgrad.randn(*shape, generator=generator)
    w, v = draw(5, 4).requires_grad_(), draw(4, 1).requires_grad_()
    losses = []
    for _ in range(STEPS):
        x, y = draw(6, 5), draw(6, 1)
        loss = ((tgrad.tanh(x @ w) @ v - y).square()).mean()
        loss.backward()
        with tgrad.no_grad():
            for p in (w, v):
                p.sub_(p.grad * 0.1)
                p.grad = None
        losses.append(loss.detach())
    return [w.detach(), v.detach(), *losses]


def test_training_at_once_gives_the_bits_of_training_alone():
    """Eight threads, each with a Generator of its own."""
    alone = [train(seed) for seed in range(WORKERS)]
    together = at_once([lambda seed=seed: train(seed) for seed in range(WORKERS)])
    for one, other in zip(alone, together, strict=True):
        assert isinstance(other, list), other
        assert all(same_bits(a, b) for a, b in zip(one, other, strict=True))
    assert not same_bits(alone[0][0], alone[1][0])
