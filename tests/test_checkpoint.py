"""Activation checkpointing, the same calls on torch and tgrad."""

import gc
import warnings
import weakref

import pytest
import torch  # noqa: F401  torch.utils.checkpoint is loaded with it

import tgrad
from tests.semantics.harness import attempt, statement, warned
from tgrad.utils.checkpoint import CheckpointError, checkpoint, set_checkpoint_debug_enabled

FORMS = [False, True]


def leaf(M):
    return M.tensor([0.3, -0.4, 0.5], requires_grad=True)


class Counted:
    """A function that counts its calls and what each call finished."""

    def __init__(self):
        self.calls = self.finished = 0

    def __call__(self, x, k=1.0):
        self.calls += 1
        y = (x * k).exp().sin()
        y = y.tanh() * x
        self.finished += 1
        return y


def caught(function):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        value = attempt(function)
    return value, [(w.category.__name__, str(w.message)) for w in found]


# --- both forms -----------------------------------------------------------------------------------------------------
@statement()
def test_gradients_and_runs(M):
    checkpoint, found = M.utils.checkpoint.checkpoint, []
    for form in FORMS:
        f, x = Counted(), leaf(M)
        y = checkpoint(f, x, use_reentrant=form)
        found += [y, f.calls, y.requires_grad]
        y.sum().backward()
        found += [x.grad, f.calls, f.finished]
        found.append(attempt(lambda: y.sum().backward()).text[:60])
        f, x = Counted(), leaf(M)
        y = checkpoint(f, x, use_reentrant=form)
        y.sum().backward(retain_graph=True)
        y.sum().backward()
        found += [x.grad, f.calls]
    return found


@statement()
def test_use_reentrant_not_given(M):
    x = leaf(M)
    value, warned = caught(lambda: M.utils.checkpoint.checkpoint(Counted(), x))
    sequential = caught(lambda: M.utils.checkpoint.checkpoint_sequential([Counted(), Counted()], 2, x))
    return value, value.grad_fn.name()[-8:], warned, sequential


@statement()
def test_arguments(M):
    checkpoint, x = M.utils.checkpoint.checkpoint, leaf(M)
    f = Counted()
    contexts = lambda: (M.no_grad(), M.no_grad())
    return [
        attempt(lambda: checkpoint(f, x, use_reentrant=True, k=2.0)),
        attempt(lambda: checkpoint(f, x, use_reentrant=True, k=2.0, j=1)),
        attempt(lambda: checkpoint(f, x, use_reentrant=True, context_fn=contexts)),
        attempt(lambda: checkpoint(f, x, use_reentrant=True, debug=True)),
        attempt(lambda: checkpoint(f, x, use_reentrant=False, determinism_check="other")),
        attempt(lambda: checkpoint(f, x, use_reentrant=False, debug=True, context_fn=contexts)),
        attempt(lambda: checkpoint(f, x, use_reentrant=False, j=1)).kind,
        attempt(lambda: M.utils.checkpoint.checkpoint_sequential([f], 1, x, use_reentrant=False, k=1)),
        checkpoint(f, x, use_reentrant=False, k=2.0, preserve_rng_state=False), f.calls,
    ]  # fmt: skip


@statement()
def test_in_other_modes(M):
    found = []
    for form in FORMS:
        for mode in (M.no_grad, M.inference_mode):
            f, x = Counted(), leaf(M)
            with mode():
                y = M.utils.checkpoint.checkpoint(f, x, use_reentrant=form)
            found += [y, y.requires_grad, y.grad_fn is None, f.calls]
    return found


@statement()
def test_an_error_in_the_function(M):
    def fails(x):
        raise KeyError("mine")

    def later(x):
        state.append(1)
        if len(state) > 1:
            raise KeyError("the second time")
        return x.exp()

    found = []
    for form in FORMS:
        state = []
        found.append(attempt(lambda: M.utils.checkpoint.checkpoint(fails, leaf(M), use_reentrant=form)))
        y = M.utils.checkpoint.checkpoint(later, leaf(M), use_reentrant=form)
        found += [attempt(lambda: y.sum().backward()), M.is_grad_enabled()]
    return found


@pytest.mark.parametrize("form", FORMS)
def test_random_numbers_are_replayed(form):
    def wrong(**settings):
        """How many gradients belong to other random numbers than the forward's."""
        x = tgrad.ones(1000, requires_grad=True)
        y = checkpoint(lambda x: tgrad.nn.functional.dropout(x, 0.5).exp(), x, use_reentrant=form, **settings)
        tgrad.rand(7)
        before = tgrad.get_rng_state().tolist()
        y.sum().backward()
        values = y.detach()
        want = tgrad.where(values > 1, 2 * values, 0)
        return ((x.grad - want).abs() > 1e-3).sum().item(), tgrad.get_rng_state().tolist() == before

    assert wrong() == (0, True)
    count, untouched = wrong(preserve_rng_state=False)
    assert count > 100 and not untouched


# --- without re-entrance --------------------------------------------------------------------------------------------
@statement()
def test_grad_inputs_and_double_backward(M):
    checkpoint = M.utils.checkpoint.checkpoint
    f, x = Counted(), leaf(M)
    found = [M.autograd.grad(checkpoint(f, x, use_reentrant=False).sum(), x)[0], f.calls]
    w = leaf(M)
    checkpoint(lambda a, b: (a * b).exp(), x, w, use_reentrant=False).sum().backward(inputs=[w])
    found += [w.grad, x.grad]
    (g,) = M.autograd.grad(checkpoint(f, x, use_reentrant=False).sum(), x, create_graph=True)
    found += [g, f.calls, M.autograd.grad(g.sum(), x)[0], f.calls]
    return found


@statement()
def test_reentrant_and_grad(M):
    x, f = leaf(M), Counted()
    y = M.utils.checkpoint.checkpoint(f, x, use_reentrant=True)
    z = M.utils.checkpoint.checkpoint(f, x, use_reentrant=True)
    plain = M.ones(3)
    return (
        attempt(lambda: M.autograd.grad(y.sum(), x)), attempt(lambda: z.sum().backward(inputs=[x])), x.grad,
        caught(lambda: M.utils.checkpoint.checkpoint(f, plain, use_reentrant=True)), f.calls,
    )  # fmt: skip


@statement()
def test_closures_plain_inputs_and_structures(M):
    checkpoint = M.utils.checkpoint.checkpoint
    w, plain = leaf(M), M.tensor([1.0, 2.0, 3.0])
    checkpoint(lambda a: (a * w).exp(), plain, use_reentrant=False).sum().backward()
    found = [w.grad]
    x = leaf(M)
    out = checkpoint(lambda d, n, s: {"a": d["x"].exp(), "b": (n, s)}, {"x": x}, 3, "text", use_reentrant=False)
    out["a"].sum().backward()
    found += [x.grad, out["b"]]
    x = leaf(M)
    several = checkpoint(lambda a: (a.exp(), a.sin(), 5), x, use_reentrant=True)
    (several[0] * several[1]).sum().backward()
    return found, x.grad, several[2]


@statement()
def test_early_stop(M):
    found = []
    for early in (True, False):
        f, x = Counted(), leaf(M)

        def last(x, f=f):
            y = f(x).exp()
            f.finished += 10
            return y * 2

        y = M.utils.checkpoint.checkpoint(last, x, use_reentrant=False, early_stop=early)
        y.sum().backward()
        with M.utils.checkpoint.set_checkpoint_early_stop(not early):
            z = M.utils.checkpoint.checkpoint(last, x, use_reentrant=False, early_stop=early)
        z.sum().backward()
        found += [f.calls, f.finished >= 22, x.grad]
    return found


@statement()
def test_only_what_is_needed_is_fetched(M):
    """A graph that is partly dropped, and two backwards through parts of one checkpoint."""
    f = Counted()
    x = leaf(M)
    a, b = M.utils.checkpoint.checkpoint(lambda x: (f(x), x.exp()), x, use_reentrant=False)
    del a
    b.sum().backward()
    found = [x.grad, f.calls]
    x = leaf(M)
    a, b = M.utils.checkpoint.checkpoint(lambda x: (f(x), x.exp()), x, use_reentrant=False)
    a.sum().backward()
    b.sum().backward()
    return found, x.grad, f.calls


@statement()
def test_nested(M):
    checkpoint = M.utils.checkpoint.checkpoint
    found = []
    for outer in FORMS:
        for inner in FORMS:
            f, g, x = Counted(), Counted(), leaf(M)

            def whole(x, f=f, g=g, inner=inner):
                return g(checkpoint(f, x * 2, use_reentrant=inner)).sin()

            checkpoint(whole, x, use_reentrant=outer).sum().backward()
            found += [x.grad, f.calls, g.calls]
    return found


@statement()
def test_an_input_written_since(M):
    found = []
    for form in FORMS:
        x = leaf(M)
        h = x * 2
        y = M.utils.checkpoint.checkpoint(lambda h: h.exp().sin(), h, use_reentrant=form)
        h.add_(1)
        found.append(attempt(lambda: y.sum().backward()).text[:90])
    return found


@statement()
def test_mismatches(M):
    def varies(first, later, **settings):
        state = []

        def f(x):
            state.append(1)
            return (first if len(state) == 1 else later)(x)

        y = M.utils.checkpoint.checkpoint(f, leaf(M), use_reentrant=False, **settings)
        return attempt(lambda: y.sum().backward())

    fewer = varies(lambda x: x.exp().sin(), lambda x: x.exp())
    more = varies(lambda x: x.exp(), lambda x: x.exp().sin(), early_stop=False)
    hidden = varies(lambda x: x.exp(), lambda x: x.exp().sin())
    other = varies(lambda x: x.exp(), lambda x: x[:2].exp())
    dtype = varies(lambda x: x.exp(), lambda x: x.double().exp())
    return [(e.kind, e.text.split("\n")[0]) for e in (fewer, more, other, dtype)], hidden


def test_unchecked_mismatch():
    state = []

    def f(x):
        state.append(1)
        return x.exp() if len(state) == 1 else (x * 2).exp()

    x = tgrad.zeros(2, requires_grad=True)
    checkpoint(f, x, use_reentrant=False, determinism_check="none").sum().backward()
    assert x.grad.tolist() == [1.0, 1.0]


def test_debug_lists_what_was_saved():
    state = []

    def f(x):
        state.append(1)
        y = x.exp()  # saved
        return y.sin() if len(state) == 1 else y

    line = f.__code__.co_firstlineno + 2
    y = checkpoint(f, tgrad.ones(2, requires_grad=True), use_reentrant=False, debug=True)
    with pytest.raises(CheckpointError, match="different number") as error:
        y.sum().backward()
    text = str(error.value)
    assert text.count(f"at {__file__}:{line}, in f") == 2 and text.count(f"at {__file__}:{line + 1}, in f") == 1
    state.clear()
    with set_checkpoint_debug_enabled(True):
        y = checkpoint(f, tgrad.ones(2, requires_grad=True), use_reentrant=False)
    with pytest.raises(CheckpointError, match="Saved during forward"):
        y.sum().backward()
    assert issubclass(CheckpointError, RuntimeError)


@statement()
def test_contexts(M):
    seen = []

    class Noting:
        def __init__(self, name):
            self.name = name

        def __enter__(self):
            seen.append(("in", self.name))

        def __exit__(self, *error):
            seen.append(("out", self.name))

    x = leaf(M)
    y = M.utils.checkpoint.checkpoint(
        Counted(), x, use_reentrant=False, context_fn=lambda: (Noting("first"), Noting("second"))
    )
    seen.append("backward")
    y.sum().backward()
    return seen, x.grad


@statement()
def test_saved_tensors_of_a_custom_function(M):
    class Square(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return 2 * x * g

    x, calls = leaf(M), []

    def f(x):
        calls.append(1)
        return Square.apply(x.exp())

    y = M.utils.checkpoint.checkpoint(f, x, use_reentrant=False)
    y.sum().backward()
    return x.grad, len(calls)


def test_saved_tensors_may_be_fetched_twice():
    """torch raises CheckpointError; tgrad runs the function once more."""

    class Square(tgrad.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            return ctx.saved_tensors[0] * g + g * ctx.saved_tensors[0]

    x = tgrad.tensor([3.0], requires_grad=True)
    checkpoint(Square.apply, x, use_reentrant=False).sum().backward()
    assert x.grad.tolist() == [6.0]


@statement()
def test_sequential(M):
    found = []
    for form in FORMS:
        for segments in (1, 2, 3):
            fs, x = [Counted() for _ in range(5)], leaf(M)
            M.utils.checkpoint.checkpoint_sequential(fs, segments, x, use_reentrant=form).sum().backward()
            found += [x.grad, [f.calls for f in fs]]
    model = M.nn.Sequential(M.nn.ReLU(), M.nn.Tanh(), M.nn.Sigmoid())
    x = leaf(M)
    M.utils.checkpoint.checkpoint_sequential(model, 2, x, use_reentrant=False).sum().backward()
    return found, x.grad


@statement()
def test_a_training_step_of_modules(M):
    layer = M.nn.Linear(3, 3)
    with M.no_grad():
        layer.weight.copy_(M.tensor([[0.1, 0.2, 0.3], [0.4, -0.5, 0.6], [0.7, 0.8, -0.9]]))
        layer.bias.fill_(0.1)
    found = []
    for form in FORMS:
        layer.zero_grad()
        x = leaf(M)
        block = M.nn.Sequential(layer, M.nn.Tanh(), layer)
        M.utils.checkpoint.checkpoint(block, x, use_reentrant=form).square().sum().backward()
        found += [layer.weight.grad, layer.bias.grad, x.grad]
    return found


# --- memory ---------------------------------------------------------------------------------------------------------
def test_what_is_kept():
    """The inputs, and nothing that the function computes."""
    x = tgrad.ones(1000, requires_grad=True)
    y = checkpoint(lambda x: (x * 2).exp().sin().tanh(), x, use_reentrant=False)
    kept = {s.storage_id: s.storage_bytes for s in tgrad.autograd.graph.saved(y) if s.storage_bytes}
    plain = {s.storage_id for s in tgrad.autograd.graph.saved((x * 2).exp().sin().tanh())}
    assert len(kept) <= 1 < len(plain)


def test_freed_by_reference_count():
    made = []

    def f(x):
        y = x.exp()
        made.append(weakref.ref(y))
        return y.sin()

    gc.collect()
    gc.disable()
    try:
        for form in FORMS:
            x = tgrad.ones(10, requires_grad=True)
            h = x * 1
            y = checkpoint(f, h, use_reentrant=form)
            node, inner = weakref.ref(h.grad_fn), weakref.ref(h)
            y.sum().backward()
            del y, h
            assert node() is None and inner() is None and all(r() is None for r in made)
    finally:
        gc.enable()


# --- the random state -----------------------------------------------------------------------------------------------
@statement()
def test_random_state(M):
    M.manual_seed(5)
    state = M.get_rng_state()
    a = M.rand(4)
    M.set_rng_state(state)
    b = M.rand(4)
    with M.random.fork_rng():
        M.manual_seed(9)
        M.rand(3)
    c = M.rand(2)
    M.set_rng_state(state)
    M.rand(4)
    d = M.rand(2)
    with M.random.fork_rng(enabled=False):
        M.manual_seed(9)
    e = M.rand(2)
    M.manual_seed(9)
    return (
        a.tolist() == b.tolist(), c.tolist() == d.tolist(), e.tolist() == M.rand(2).tolist(), str(state.dtype),
        state.requires_grad, attempt(M.set_rng_state, 5).kind, attempt(M.set_rng_state, M.ones(16)).kind,
        attempt(M.set_rng_state, M.zeros(3, dtype=M.uint8)).kind,
    )  # fmt: skip


def test_a_generators_own_state():
    one, two = tgrad.Generator().manual_seed(-7), tgrad.Generator()
    one.take(11)
    two.set_state(one.get_state())
    assert one.take(3) == two.take(3) == (-7, 11)
    assert warned(tgrad.get_rng_state)[1] == []
