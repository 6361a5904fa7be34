"""Grad modes: the state, the context managers and decorators, and what they do to results."""

import contextlib
import gc
import threading

import pytest

import tgrad
from tgrad import autograd

NO_TRACE = "element 0 of tensors does not require grad and does not have a grad_fn"


@pytest.fixture
def x():
    return tgrad.tensor([1.0, 2.0, 3.0], requires_grad=True)


def state():
    return tgrad.is_grad_enabled(), tgrad.is_inference_mode_enabled()


# --- the state -------------------------------------------------------------------------------------------------------
def test_a_new_thread_has_the_default():
    seen = []
    with tgrad.inference_mode():
        worker = threading.Thread(target=lambda: seen.append(state()))
        worker.start()
        worker.join()
        assert state() == (False, True)
    assert seen == [(True, False)] and state() == (True, False)


def test_names():
    for name in ("no_grad", "enable_grad", "set_grad_enabled", "inference_mode"):
        assert getattr(autograd, name) is getattr(tgrad, name) is getattr(autograd.grad_mode, name)


@pytest.mark.parametrize("context, expected", [
    (tgrad.no_grad, (False, False)), (tgrad.enable_grad, (True, False)), (tgrad.inference_mode, (False, True)),
    (lambda: tgrad.inference_mode(False), (True, False)), (lambda: tgrad.set_grad_enabled(False), (False, False)),
], ids=["no_grad", "enable_grad", "inference_mode", "inference_mode(False)", "set_grad_enabled(False)"])  # fmt: skip
def test_enter_and_exit(context, expected):
    for outer, before in ((contextlib.nullcontext, (True, False)), (tgrad.no_grad, (False, False))):
        with outer():
            with context() as value:
                assert value is None and state() == expected
            assert state() == before
            with pytest.raises(KeyError), context():
                raise KeyError
            assert state() == before
    assert state() == (True, False)


def test_nesting():
    with tgrad.no_grad():
        with tgrad.enable_grad():
            assert state() == (True, False)
            with tgrad.inference_mode():
                assert state() == (False, True)
                with tgrad.enable_grad():
                    assert state() == (True, True)
                with tgrad.inference_mode(False):
                    assert state() == (True, False)
                assert state() == (False, True)
            assert state() == (True, False)
        assert state() == (False, False)


def test_one_object_may_be_entered_again_while_it_is_entered():
    mode = tgrad.no_grad()
    with mode:
        with mode:
            assert not tgrad.is_grad_enabled()
        assert not tgrad.is_grad_enabled()
    assert tgrad.is_grad_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(mode)
        assert not tgrad.is_grad_enabled()
    assert tgrad.is_grad_enabled()


def test_set_grad_enabled_acts_at_once():
    tgrad.set_grad_enabled(False)
    assert not tgrad.is_grad_enabled()
    tgrad.set_grad_enabled(True)
    assert tgrad.is_grad_enabled()
    with tgrad.no_grad():
        tgrad.set_grad_enabled(True)
        assert tgrad.is_grad_enabled()
    assert tgrad.is_grad_enabled()
    assert repr(tgrad.set_grad_enabled(True)) == "torch.autograd.grad_mode.set_grad_enabled(mode=True)"
    for bad in (1, None, "a"):
        with pytest.raises(TypeError, match="must be bool, not"):
            tgrad.set_grad_enabled(bad)
    with pytest.raises(TypeError):
        tgrad.set_grad_enabled()


def test_a_class_is_no_context_manager():
    with pytest.raises(TypeError), tgrad.no_grad:
        pass


# --- decorators ------------------------------------------------------------------------------------------------------
DECORATORS = [
    (tgrad.no_grad, (False, False)), (tgrad.no_grad(), (False, False)), (tgrad.enable_grad, (True, False)),
    (tgrad.enable_grad(), (True, False)), (tgrad.inference_mode, (False, True)),
    (tgrad.inference_mode(), (False, True)),
    (tgrad.inference_mode(False), (True, False)),
]  # fmt: skip


@pytest.mark.parametrize("decorate, expected", DECORATORS, ids=range(len(DECORATORS)))
def test_decorators(decorate, expected):
    def function(a, *, b=2):
        """What it does."""
        return state(), a, b

    wrapped = decorate(function)
    with tgrad.no_grad():
        assert wrapped(1, b=3) == (expected, 1, 3)
        assert state() == (False, False)
    assert (wrapped.__name__, wrapped.__doc__, wrapped.__wrapped__) == ("function", "What it does.", function)
    assert function(1)[0] == (True, False)


def test_set_grad_enabled_as_a_decorator_does_not_leak():
    @tgrad.set_grad_enabled(False)
    def function():
        return tgrad.is_grad_enabled()

    assert tgrad.is_grad_enabled() and function() is False and tgrad.is_grad_enabled()


def test_a_decorated_function_may_recurse_and_run_in_threads():
    @tgrad.no_grad()
    def down(n):
        return [tgrad.is_grad_enabled(), *(down(n - 1) if n else [])]

    results = []
    threads = [threading.Thread(target=lambda: results.append(down(20))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [[False] * 21] * 4 and tgrad.is_grad_enabled()


def test_methods():
    class Model:
        @tgrad.no_grad()
        def plain(self):
            return tgrad.is_grad_enabled()

        @staticmethod
        @tgrad.no_grad
        def static():
            return tgrad.is_grad_enabled()

        @classmethod
        @tgrad.inference_mode()
        def whole(cls):
            return cls, tgrad.is_grad_enabled()

    assert Model().plain() is Model.static() is False and Model.whole() == (Model, False)


def test_generators_enter_the_mode_at_each_resumption():
    seen = []

    @tgrad.no_grad()
    def numbers():
        try:
            got = yield tgrad.is_grad_enabled()
            seen.append((got, tgrad.is_grad_enabled()))
            try:
                yield tgrad.is_grad_enabled()
            except ValueError:
                seen.append(("thrown", tgrad.is_grad_enabled()))
            yield tgrad.is_grad_enabled()
        finally:
            seen.append(("finally", tgrad.is_grad_enabled()))

    g = numbers()
    assert next(g) is False and tgrad.is_grad_enabled()
    assert g.send(5) is False and tgrad.is_grad_enabled()
    assert g.throw(ValueError()) is False and tgrad.is_grad_enabled()
    g.close()
    assert tgrad.is_grad_enabled()
    assert seen == [(5, False), ("thrown", False), ("finally", False)]
    h = numbers()
    next(h)
    del h
    gc.collect()
    assert seen[-1] == ("finally", False) and tgrad.is_grad_enabled()

    @tgrad.no_grad()
    def returning():
        yield 1
        return 7

    def outer():
        return (yield from returning())

    g = outer()
    next(g)
    with pytest.raises(StopIteration) as stop:
        next(g)
    assert stop.value.value == 7


# --- results under no_grad -------------------------------------------------------------------------------------------
def test_results_under_no_grad(x):
    with tgrad.no_grad():
        y = x * 2
        assert (y.requires_grad, y.is_leaf, y.grad_fn, y.is_inference()) == (False, True, None, False)
        z = y.requires_grad_()
    (z * 3).sum().backward()
    assert z.grad.tolist() == [3.0] * 3 and x.grad is None


def test_factories_obey_their_own_argument():
    with tgrad.no_grad():
        for t in (tgrad.ones(2, requires_grad=True), tgrad.tensor([1.0], requires_grad=True),
            tgrad.randn(2, requires_grad=True)):
            assert t.requires_grad and t.is_leaf and not (t * 2).requires_grad


def test_views_under_no_grad(x):
    with tgrad.no_grad():
        v = x[1:]
    assert not v.requires_grad and v._base is x
    assert not (v * 2).requires_grad


def test_in_place_under_no_grad(x):
    with tgrad.no_grad():
        assert x.mul_(10) is x and x._version == 1 and x.requires_grad and x.is_leaf
        x[0] = 0.0
    assert x.tolist() == [0.0, 20.0, 30.0] and x._version == 2
    h = x * 2
    with tgrad.no_grad():
        h.mul_(10)
    assert h.grad_fn is not None
    h.sum().backward()
    assert x.grad.tolist() == [2.0] * 3  # the gradient does not know of it


def test_a_write_under_no_grad_is_counted(x):
    y = x.exp().square()
    w = tgrad.ones(3)
    z = (y * w).sum()
    with tgrad.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation.*is at version 1; expected version 0"):
        z.backward()


def test_backward_works_in_any_mode_on_an_older_graph(x):
    for mode in (tgrad.no_grad, tgrad.inference_mode):
        y = x.square().sum()
        with mode():
            (g,) = autograd.grad(y, x)
        assert g.tolist() == [2.0, 4.0, 6.0] and not g.requires_grad
    y = x.square().sum()
    with tgrad.no_grad():
        (g,) = autograd.grad(y, x, create_graph=True)
    assert g.requires_grad
    with tgrad.inference_mode():
        x.square().detach()
    y = x.square().sum()
    with tgrad.inference_mode():
        y.backward()
    assert not x.grad.is_inference()
    x.square().sum().backward()
    assert x.grad.tolist() == [4.0, 8.0, 12.0]


def test_hooks_run_without_grad_unless_the_graph_is_created(x):
    seen = []
    y = x * 2
    y.register_hook(lambda g: seen.append(tgrad.is_grad_enabled()))
    y.sum().backward(retain_graph=True)
    autograd.grad(y.sum(), x, create_graph=True)
    assert seen == [False, True] and tgrad.is_grad_enabled()


def test_a_mode_that_a_hook_leaves_behind_does_not_escape(x):
    y = x * 2
    y.register_hook(lambda g: tgrad.set_grad_enabled(True) and None)
    with tgrad.no_grad():
        y.sum().detach()
    y.sum().backward()
    with tgrad.no_grad():
        y.sum().tolist()
        assert not tgrad.is_grad_enabled()
    assert tgrad.is_grad_enabled()


# --- inference mode --------------------------------------------------------------------------------------------------
def test_inference_tensors(x):
    with tgrad.inference_mode():
        made, computed, cloned, viewed = tgrad.ones(3), x * 2, x.clone(), x[1:]
        with tgrad.enable_grad():
            still = x * 2
    assert all(t.is_inference() and not t.requires_grad for t in (made, computed, cloned, still))
    assert not viewed.is_inference()
    assert made[1:].is_inference() and made.detach().is_inference()
    assert not made.clone().is_inference() and not (made * 2).is_inference()
    with pytest.raises(RuntimeError, match="Inference tensors do not track version counter"):
        made._version


def test_inference_tensors_cannot_be_saved(x):
    with tgrad.inference_mode():
        i = tgrad.ones(3)
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        x * i
    (x + i).sum().backward()  # add saves nothing
    assert x.grad.tolist() == [1.0] * 3
    with tgrad.no_grad():
        assert (x * i).tolist() == [1.0, 2.0, 3.0]


def test_writing_to_inference_tensors():
    with tgrad.inference_mode():
        i = tgrad.ones(3)
        i.add_(1)
    for call in (lambda: i.add_(1), lambda: i.__setitem__(0, 5.0), lambda: i.zero_()):
        for mode in (contextlib.nullcontext, tgrad.no_grad):
            with mode(), pytest.raises(RuntimeError, match="Inplace update to inference tensor outside InferenceMode"):
                call()
    assert i.tolist() == [2.0] * 3
    with pytest.raises(RuntimeError, match="Setting requires_grad=True on inference tensor outside InferenceMode"):
        i.requires_grad_()
    i.requires_grad_(False)


def test_writing_to_a_normal_tensor_in_inference_mode_is_counted(x):
    y = x.square().sum()
    with tgrad.inference_mode():
        x.add_(1)
    assert x._version == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_forward_and_backward_inside(x):
    with tgrad.inference_mode(), pytest.raises(RuntimeError, match=NO_TRACE):
        (x * 2).sum().backward()


def test_all_modes_give_the_same_bits(x):
    def compute():
        return ((x * 1.7).tanh() @ x.exp()).sigmoid().tolist()

    want = compute()
    for mode in (tgrad.no_grad, tgrad.inference_mode):
        with mode():
            assert compute() == want
