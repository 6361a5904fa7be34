"""Functions, generators, coroutines and classes decorated with a grad mode; what the mode objects do besides."""

import ast
import asyncio
import contextlib
import contextvars
import functools
import inspect
import threading
import timeit
from pathlib import Path

import pytest
import torch

import tgrad
from tests.semantics.harness import attempt, statement, warned
from tgrad import autograd, decorators, modes


def state(M):
    return M.is_grad_enabled(), M.is_inference_mode_enabled()


# --- generators, on torch and tgrad ---------------------------------------------------------------------------------
def echo(M, decorate, seen):
    @decorate
    def body(n):
        try:
            for i in range(n):
                try:
                    got = yield i, state(M)
                    seen.append(("got", got, state(M)))
                except ValueError as error:
                    seen.append(("caught", str(error), state(M)))
            return "value", state(M)
        except GeneratorExit:
            seen.append(("exit", state(M)))
            raise
        finally:
            seen.append(("finally", state(M)))

    return body


@statement()
def test_generator_protocol(M):
    results = []
    for decorate in (M.no_grad, M.no_grad(), M.inference_mode(), M.inference_mode(False), M.enable_grad,
                     lambda f: M.set_grad_enabled(False)(f)):  # fmt: skip
        seen = []
        body = echo(M, decorate, seen)
        g = body(3)
        seen += [next(g), state(M), g.send("a"), state(M), g.throw(ValueError("b")), state(M)]
        try:
            next(g)
        except StopIteration as stop:
            seen.append(stop.value)
        seen += [attempt(next, g).kind, state(M)]
        for end in (lambda g: g.close(), lambda g: None):
            g = body(2)
            next(g)
            end(g)
            del g
            seen.append(state(M))
        unstarted = body(2)
        unstarted.close()
        thrown = body(2)
        seen += [attempt(thrown.throw, KeyError("before start")), attempt(body, 1, 2).__class__.__name__]
        results.append(seen)
    return results


@statement()
def test_generator_arguments_are_checked_at_the_first_next(M):
    @M.no_grad()
    def body(a):
        yield a

    return attempt(next, body()).kind, list(body(a=3))


@statement()
def test_generators_within_generators(M):
    seen = []
    inner = echo(M, M.no_grad(), seen)

    @M.inference_mode()
    def outer():
        seen.append(("outer", state(M)))
        got = yield from inner(2)
        seen.append((got, state(M)))
        return "outer value"

    def plain():
        return (yield from outer())

    g = plain()
    seen += [next(g), state(M), g.throw(ValueError("x")), state(M)]
    seen.append(attempt(lambda: g.send("last")).kind)
    return seen, [list(M.no_grad()(lambda: (state(M) for _ in range(2)))())]


@statement()
def test_stop_iteration_in_a_generator(M):
    @M.no_grad()
    def body():
        yield 1
        raise StopIteration("mine")

    @M.no_grad()
    def swallow():
        try:
            yield 1
        except KeyError:
            return "swallowed"

    g, s = body(), swallow()
    next(g), next(s)
    found = [attempt(next, g).kind, state(M)]
    try:
        s.throw(KeyError())
    except StopIteration as stop:
        found.append(stop.value)
    t = body()
    next(t)
    return found, attempt(t.throw, StopIteration("thrown")).kind, inspect.isgeneratorfunction(body)


def test_a_generator_that_ignores_its_end():
    for M in (torch, tgrad):

        @M.no_grad()
        def stubborn():
            for _ in range(2):
                try:
                    yield 1
                except GeneratorExit:
                    seen.append(state(M))

        seen = []
        g = stubborn()
        next(g)
        with pytest.raises(RuntimeError, match="generator ignored GeneratorExit"):
            g.close()
        assert seen[0] == (False, False) and state(M) == (True, False)
        with contextlib.suppress(RuntimeError, StopIteration):
            g.close()


@statement()
def test_recursion_and_threads_through_one_decorated_function(M):
    @M.no_grad()
    def walk(n):
        yield state(M)
        if n:
            yield from walk(n - 1)

    @M.inference_mode()
    def down(n):
        before = state(M)
        with M.enable_grad():
            inside = [down(n - 1) if n else state(M)]
        return [before, inside, state(M)]

    results = []

    def work():
        results.append((list(walk(5)), down(4), state(M)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    work()
    for t in threads:
        t.join()
    return results


# --- kinds of callables ---------------------------------------------------------------------------------------------
@statement()
def test_partials_objects_and_methods(M):
    def generator(a, b):
        yield a, b, state(M)

    class Callable:
        def __call__(self, a):
            return a, state(M)

        @M.no_grad()
        def method(self):
            return state(M)

        @staticmethod
        @M.no_grad()
        def under(a):
            return a, state(M)

        over = M.no_grad()(staticmethod(lambda a: (a, state(M))))

        @classmethod
        @M.no_grad
        def made(cls):
            return cls.__name__, state(M)

        @property
        @M.no_grad()
        def read(self):
            return state(M)

        @M.no_grad()
        def stream(self):
            yield state(M)

    c = Callable()
    partial = M.no_grad()(functools.partial(generator, 1))
    return (
        list(partial(b=2)), M.no_grad(c)(3), c.method(), c.under(1), Callable.under(2), Callable.over(3), c.made(),
        c.read, list(c.stream()), attempt(M.no_grad()(classmethod(lambda cls: 1))).kind, M.no_grad(len)([1, 2]),
    )  # fmt: skip


@statement()
def test_what_cannot_be_called(M):
    made = [M.no_grad()(5), M.no_grad(5), M.inference_mode(1), M.inference_mode("a"), M.enable_grad()([])]
    return [attempt(f) for f in made], attempt(M.no_grad, None).kind, attempt(M.no_grad, 1, 2).kind, state(M)


@statement()
def test_classes(M):
    class Made:
        def __init__(self, a, *, b=1):
            self.made = a, b, state(M)

        def method(self):
            return state(M)

    seen = []
    for decorate in (M.no_grad, M.no_grad(), M.inference_mode(), lambda c: M.set_grad_enabled(False)(c)):
        function, categories = warned(decorate, Made)
        one = function(1, b=2)
        seen.append((categories, inspect.isfunction(function), one.made, one.method(), type(one) is Made, state(M)))
    return seen


def test_a_decorated_class_keeps_its_name():
    class Made:
        """What it is."""

    with pytest.warns(FutureWarning, match="Decorating classes is deprecated") as caught:
        function = tgrad.no_grad()(Made)
    assert caught[0].filename == __file__
    assert (function.__name__, function.__doc__, function.__wrapped__) == ("Made", "What it is.", Made)


# --- coroutines and async generators: here tgrad departs from torch -------------------------------------------------
def steps(*awaitables):
    """Run coroutines one step at a time in turn; returns their values."""
    values = {}
    left = dict(enumerate(awaitables))
    while left:
        for i, c in list(left.items()):
            try:
                c.send(None)
            except StopIteration as stop:
                values[i] = stop.value
                del left[i]
    return [values[i] for i in range(len(awaitables))]


class Pause:
    def __await__(self):
        yield


@pytest.mark.parametrize("decorate, inside", [
    (tgrad.no_grad, (False, False)), (tgrad.no_grad(), (False, False)), (tgrad.inference_mode, (False, True)),
    (tgrad.inference_mode(), (False, True)), (lambda f: tgrad.set_grad_enabled(False)(f), (False, False)),
], ids=range(5))  # fmt: skip
def test_coroutines_run_in_the_mode(decorate, inside):
    @decorate
    async def body(n):
        """Text."""
        seen = [state(tgrad)]
        for _ in range(n):
            await Pause()
            seen.append(state(tgrad))
        return seen

    assert inspect.iscoroutinefunction(body) and (body.__name__, body.__doc__) == ("body", "Text.")
    c = body(2)
    for _ in range(2):
        c.send(None)
        assert state(tgrad) == (True, False)
    with pytest.raises(StopIteration) as stop:
        c.send(None)
    assert stop.value.value == [inside] * 3
    assert steps(body(1), body(3), body(0)) == [[inside] * 2, [inside] * 4, [inside]]
    assert state(tgrad) == (True, False)


def test_coroutines_that_are_closed_or_thrown_into():
    seen = []

    @tgrad.no_grad()
    async def body():
        try:
            await Pause()
        except ValueError:
            seen.append(("caught", state(tgrad)))
            await Pause()
        finally:
            seen.append(("finally", state(tgrad)))

    c = body()
    c.send(None)
    c.throw(ValueError)
    c.close()
    c = body()
    c.send(None)
    with pytest.raises(KeyError):
        c.throw(KeyError)
    assert seen == [("caught", (False, False)), ("finally", (False, False)), ("finally", (False, False))]
    with pytest.raises(TypeError):
        body(1).send(None)


def test_asyncio_tasks_do_not_leak_into_one_another():
    seen = {}

    @tgrad.no_grad()
    async def off(name):
        for _ in range(3):
            await asyncio.sleep(0)
            seen.setdefault(name, []).append(state(tgrad))

    async def on(name):
        with tgrad.inference_mode():
            for _ in range(3):
                await asyncio.sleep(0)
                seen.setdefault(name, []).append(state(tgrad))

    async def both():
        await asyncio.gather(off("a"), on("b"), off("c"))
        return state(tgrad)

    assert asyncio.run(both()) == (True, False)
    assert seen == {"a": [(False, False)] * 3, "b": [(False, True)] * 3, "c": [(False, False)] * 3}


def test_async_generators_run_in_the_mode():
    seen = []

    @tgrad.inference_mode()
    async def body(n):
        try:
            for i in range(n):
                await asyncio.sleep(0)
                try:
                    seen.append(((yield i), state(tgrad)))
                except ValueError:
                    seen.append(("caught", state(tgrad)))
        finally:
            seen.append(("finally", state(tgrad)))

    async def use():
        g = body(3)
        values = [await g.asend(None), state(tgrad), await g.asend("a"), await g.athrow(ValueError()), state(tgrad)]
        with pytest.raises(StopAsyncIteration):
            await g.asend("b")
        values += [i async for i in body(2)]
        closed = body(2)
        await closed.asend(None)
        await closed.aclose()
        failing = body(1)
        await failing.asend(None)
        with pytest.raises(KeyError):
            await failing.athrow(KeyError())
        return values, state(tgrad)

    assert inspect.isasyncgenfunction(body)
    inside, outside = (False, True), (True, False)
    assert asyncio.run(use()) == ([0, outside, 1, 2, outside, 0, 1], outside)
    ends = [("finally", inside)]
    assert seen == [("a", inside), ("caught", inside), ("b", inside), *ends, (None, inside), (None, inside), *ends * 3]


def test_torch_does_not_run_coroutines_in_the_mode():
    """What departure 3 departs from: if this fails, torch has caught up."""

    async def body():
        return torch.is_grad_enabled()

    decorated = torch.no_grad()(body)
    assert not inspect.iscoroutinefunction(decorated) and steps(decorated()) == [True]


# --- the objects ----------------------------------------------------------------------------------------------------
@statement()
def test_set_grad_enabled_and_other_modes(M):
    seen = []
    s = M.set_grad_enabled(False)
    M.set_grad_enabled(True)
    with M.no_grad():
        with s:
            seen.append(state(M))
        seen.append(state(M))  # the mode saved at construction: on
    seen.append(state(M))
    s = M.set_grad_enabled(False)
    with M.inference_mode():
        with s:
            seen.append(state(M))
        seen.append(state(M))
    seen.append(state(M))
    M.set_grad_enabled(True)
    with M.inference_mode():
        f = M.set_grad_enabled(True)(lambda: state(M))
        seen += [state(M), f(), state(M)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(M.no_grad())
        stack.enter_context(M.inference_mode())
        seen.append(state(M))
    return seen, state(M), [attempt(M.set_grad_enabled, v).kind for v in (0, None, 1.0, "True", [])]


@pytest.mark.parametrize("make", [tgrad.no_grad, tgrad.inference_mode, lambda: tgrad.set_grad_enabled(False)])
def test_one_object_entered_twice_nested(make):
    """Departure 2."""
    one = make()
    tgrad.set_grad_enabled(True)
    inside = (False, isinstance(one, tgrad.inference_mode))
    with one:
        assert state(tgrad) == inside
        with one:
            assert state(tgrad) == inside
            with tgrad.enable_grad(), one:
                assert state(tgrad) == inside
            assert state(tgrad) == inside
        assert state(tgrad) == inside
    assert state(tgrad) == (True, False)


def test_one_object_entered_in_several_threads():
    one, seen = tgrad.no_grad(), []
    meet = threading.Barrier(2)

    def work(outer):
        with outer():
            before = state(tgrad)
            meet.wait()
            with one:
                meet.wait()
                inside = state(tgrad)
            meet.wait()
            seen.append((before, inside, before == state(tgrad)))

    threads = [threading.Thread(target=work, args=(m,)) for m in (tgrad.inference_mode, tgrad.enable_grad)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(seen) == [((False, True), (False, True), True), ((True, False), (False, False), True)]
    assert one._before == {}


@statement()
def test_entered_in_one_thread_and_left_in_another(M):
    def body():
        with M.no_grad():
            yield state(M)

    g, seen = body(), []
    worker = threading.Thread(target=lambda: seen.append(next(g)))
    worker.start()
    worker.join()
    return seen, list(g), state(M)


@statement()
def test_set_multithreading_enabled(M):
    A = M.autograd
    seen = [A.is_multithreading_enabled()]
    with A.set_multithreading_enabled(False):
        seen.append(A.is_multithreading_enabled())
        x = M.ones(2, requires_grad=True)
        (x * x).sum().backward()
    seen.append(A.is_multithreading_enabled())
    late = A.set_multithreading_enabled(False)
    seen.append(A.is_multithreading_enabled())
    with late:
        pass
    seen.append(A.is_multithreading_enabled())
    return seen, x.grad, A.set_multithreading_enabled is A.grad_mode.set_multithreading_enabled


def test_set_multithreading_enabled_as_a_decorator_does_not_leak():
    function = autograd.set_multithreading_enabled(False)(autograd.is_multithreading_enabled)
    assert autograd.is_multithreading_enabled() and not function() and autograd.is_multithreading_enabled()


def test_contexts_have_their_own_mode():
    context = contextvars.copy_context()
    context.run(tgrad.set_grad_enabled, False)
    assert tgrad.is_grad_enabled() and not context.run(tgrad.is_grad_enabled)


def test_is_inference():
    with tgrad.inference_mode():
        made = tgrad.ones(2)
    assert tgrad.is_inference(made) and not tgrad.is_inference(tgrad.ones(2))


def test_a_mode_is_no_context_manager_without_parentheses():
    for M in (torch, tgrad):
        with pytest.raises(TypeError, match="context manager protocol"), M.no_grad:
            pass


def test_reading_the_mode_costs_nothing_to_speak_of():
    """A C call: no Python function runs."""
    assert type(modes.current).__name__ == "builtin_function_or_method"
    assert min(timeit.repeat(modes.current, number=100_000, repeat=3)) < 0.1


def test_the_decorators_need_no_engine():
    """modes and decorators stand at the bottom: they import nothing of tgrad but one another."""
    trees = [ast.parse(Path(m.__file__).read_text()) for m in (modes, decorators)]
    found = {n.module for tree in trees for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert {m for m in found if m.startswith("tgrad")} == {"tgrad.decorators"}
