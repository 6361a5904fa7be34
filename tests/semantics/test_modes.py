"""Sections 1.1 to 1.4: the grad mode, its context managers and decorators."""

import asyncio
import contextlib
import functools
import inspect
import threading

from tests.semantics.harness import attempt, leaf, name, state, statement, warned


# --- 1.1 the state ---------------------------------------------------------------------------------------------------
@statement("1.1 [R] the state is two flags, and functions that read them")
def test_flags(M):
    seen = [state(M)]
    for context in (M.no_grad, M.enable_grad, M.inference_mode):
        with context():
            t = M.ones(2)
            seen.append((state(M), M.is_inference(t), t.is_inference()))
    return seen


@statement("1.1 [R][T] a new thread starts with the defaults, and keeps its changes to itself")
def test_threads(M):
    seen = []

    def work():
        seen.append(state(M))
        M.set_grad_enabled(False)
        seen.append(state(M))

    for context in (M.no_grad, M.inference_mode):
        with context():
            worker = threading.Thread(target=work)
            worker.start()
            worker.join()
            seen.append(state(M))
    return seen, state(M)


@statement("1.1 the same classes under torch.autograd and torch.autograd.grad_mode")
def test_names(M):
    names = ("no_grad", "enable_grad", "set_grad_enabled", "inference_mode")
    same = [getattr(M.autograd, n) is getattr(M, n) is getattr(M.autograd.grad_mode, n) for n in names]
    return same, hasattr(M.autograd, "is_grad_enabled")


# --- 1.2 context managers --------------------------------------------------------------------------------------------
@statement("1.2 [R] enter gives None; exit restores the mode of the entry and lets exceptions pass")
def test_enter_and_exit(M):
    seen = []
    for outer in (contextlib.nullcontext, M.no_grad, M.enable_grad):
        for inner in (M.no_grad, M.enable_grad):
            with outer():
                context = inner()
                seen += [context.__enter__(), state(M), context.__exit__(None, None, None), state(M)]

                def fails(inner=inner):
                    with inner():
                        raise KeyError("mine")

                seen += [attempt(fails), state(M)]
    return seen


@statement("1.2 one instance may be entered many times in sequence")
def test_in_sequence(M):
    context, seen = M.no_grad(), []
    for _ in range(3):
        with context:
            seen.append(state(M))
        seen.append(state(M))
    return seen


@statement("1.2 without parentheses it is no context manager")
def test_no_parentheses(M):
    def enter():
        with M.no_grad:
            pass

    return attempt(enter)


@statement("1.2 set_grad_enabled inside a block acts at once; the block still restores")
def test_call_inside_block(M):
    with M.no_grad():
        M.set_grad_enabled(True)
        inside = state(M)
    M.set_grad_enabled(False)
    with M.enable_grad():
        M.set_grad_enabled(False)
    return inside, state(M)


@statement("1.2 works in an ExitStack; is no ContextDecorator")
def test_exit_stack(M):
    with contextlib.ExitStack() as stack:
        stack.enter_context(M.no_grad())
        stack.enter_context(M.enable_grad())
        inside = state(M)
    return inside, state(M), isinstance(M.no_grad(), contextlib.ContextDecorator)


# --- 1.3 set_grad_enabled --------------------------------------------------------------------------------------------
@statement("1.3 [R] set_grad_enabled acts at construction")
def test_acts_at_construction(M):
    seen = [state(M)]
    for mode in (False, True, False):
        M.set_grad_enabled(mode)
        seen += [state(M), (leaf(M) * 2).requires_grad]
    return seen


@statement("1.3 as a context manager it restores the mode of its construction")
def test_restores_construction(M):
    context, seen = M.set_grad_enabled(False), []
    with context:
        seen.append(state(M))
    seen.append(state(M))
    with M.no_grad():
        made = M.set_grad_enabled(True)
    M.set_grad_enabled(True)
    with made:
        seen.append(state(M))
    return seen, state(M)


@statement("1.3 [R][T] decorating with set_grad_enabled does not leak")
def test_decorating_does_not_leak(M):
    seen = []

    @M.set_grad_enabled(False)
    def function():
        return state(M)

    seen += [state(M), function(), state(M)]
    decorator = M.set_grad_enabled(False)
    seen.append(state(M))
    other = decorator(lambda: state(M))
    seen += [state(M), other(), state(M)]
    with M.no_grad():
        on = M.set_grad_enabled(True)(lambda: state(M))
        seen += [state(M), on(), state(M)]
    return seen


@statement("1.3 set_grad_enabled takes a bool and nothing else")
def test_only_bool(M):
    wrong = [attempt(M.set_grad_enabled, value).kind for value in (1, None, "a", len)]
    return wrong, attempt(lambda: M.set_grad_enabled()).kind, state(M)


@statement("1.3 its repr")
def test_repr(M):
    return repr(M.set_grad_enabled(True)), repr(M.set_grad_enabled(False))


# --- 1.4 decorators --------------------------------------------------------------------------------------------------
def decorators(M):
    return [
        M.no_grad, M.no_grad(), M.enable_grad, M.enable_grad(), M.inference_mode, M.inference_mode(),
        M.inference_mode(False), lambda f: M.set_grad_enabled(True)(f), lambda f: M.set_grad_enabled(False)(f),
    ]  # fmt: skip


@statement("1.4 [R] every mode decorates, with and without parentheses")
def test_decorator_forms(M):
    seen = []
    for outer in (contextlib.nullcontext, M.no_grad, M.inference_mode):
        with outer():
            for decorate in decorators(M):
                seen += [decorate(lambda a, k: (a, k, state(M)))(1, k=2), state(M)]
    return seen


@statement("1.4 decorated functions look like the original, which is unaffected")
def test_wraps(M):
    def documented():
        """Text."""
        return state(M)

    decorated = M.no_grad(documented)
    return (
        decorated.__name__, decorated.__doc__, decorated.__wrapped__ is documented, documented(), decorated(),
    )  # fmt: skip


@statement("1.4 lambdas, partials, callable objects and every kind of method can be decorated")
def test_kinds_of_callables(M):
    class Callable:
        def __call__(self, a=0):
            return a, state(M)

        @M.no_grad()
        def method(self):
            return state(M)

        @staticmethod
        @M.no_grad()
        def static():
            return state(M)

        @classmethod
        @M.no_grad()
        def of_class(cls):
            return state(M)

        @property
        @M.no_grad()
        def attribute(self):
            return state(M)

    made = Callable()
    over = M.no_grad(staticmethod(Callable.static).__func__)
    return [
        M.no_grad(made)(3), M.no_grad(functools.partial(made, 4))(), M.no_grad(lambda: state(M))(), made.method(),
        made.static(), made.of_class(), made.attribute, over(), state(M),
    ]  # fmt: skip


@statement("1.4 [R][T] each call has a context of its own: recursion and threads")
def test_fresh_context(M):
    seen = []

    @M.no_grad()
    def recursive(n):
        seen.append(state(M))
        if n:
            M.set_grad_enabled(True)
            recursive(n - 1)
            seen.append(state(M))

    recursive(3)
    seen.append(state(M))
    barrier = threading.Barrier(4)

    @M.no_grad()
    def together():
        barrier.wait()
        inside = state(M)
        barrier.wait()
        return inside

    def work(found, start):
        M.set_grad_enabled(start)
        found.append((together(), state(M)))

    found = [[] for _ in range(4)]
    workers = [threading.Thread(target=work, args=(f, i % 2 == 0)) for i, f in enumerate(found)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return seen, found


@statement("1.4 what cannot be called is accepted, and fails when called")
def test_not_callable(M):
    return attempt(M.no_grad(5)), attempt(lambda: M.no_grad(None)().x).kind is not None, attempt(M.inference_mode(1))


@statement("1.4 [R] a decorated class warns, and only its construction runs in the mode")
def test_classes(M):
    class Made:
        def __init__(self):
            self.state = state(M)

        def method(self):
            return state(M)

    function, warnings = warned(M.no_grad(), Made)
    made = function()
    return warnings, inspect.isfunction(function), made.state, made.method(), isinstance(made, Made)


@statement("1.4 [R][T] a generator is switched at every resumption")
def test_generators(M):
    seen = []

    @M.no_grad()
    def body(n):
        """Text."""
        try:
            for i in range(n):
                seen.append(("body", state(M)))
                try:
                    seen.append(("sent", (yield i), state(M)))
                except KeyError:
                    seen.append(("thrown", state(M)))
            return "returned"
        finally:
            seen.append(("finally", state(M)))

    g = body(3)
    seen += [next(g), state(M), g.send("a"), state(M), g.throw(KeyError()), state(M)]
    try:
        next(g)
    except StopIteration as stop:
        seen.append(stop.value)
    closed = body(3)
    next(closed)
    seen += [closed.close(), state(M)]
    dropped = body(3)
    next(dropped)
    del dropped
    seen += [state(M), inspect.isgeneratorfunction(body), body.__name__, body.__doc__]

    def outer():
        seen.append(state(M))
        got = yield from body(1)
        seen.append((got, state(M)))

    return list(outer()), seen


@statement("1.4 [R][T] a generator: exceptions pass through, closing twice, ignoring GeneratorExit")
def test_generator_errors(M):
    @M.no_grad()
    def failing():
        yield 1
        raise KeyError("mine")

    @M.no_grad()
    def stubborn():
        try:
            yield 1
        except GeneratorExit:
            yield 2

    @M.no_grad()
    def uncaught():
        yield 1

    g, s, u = failing(), stubborn(), uncaught()
    next(g), next(s), next(u)
    seen = [attempt(next, g), state(M), attempt(s.close), state(M), attempt(u.throw, ValueError("thrown")), state(M)]
    return seen, attempt(u.send, None).kind


@statement("1.4 [R][T] a mode set by a generator's body lasts until the next yield")
def test_generator_sets_mode(M):
    seen = []

    @M.no_grad()
    def body():
        M.set_grad_enabled(True)
        seen.append(state(M))
        yield
        seen.append(state(M))
        yield

    for _ in body():
        seen.append(state(M))
    return seen


@statement("1.4 [R][T] a generator keeps the caller's own mode between yields")
def test_generator_in_other_modes(M):
    @M.enable_grad()
    def body():
        while True:
            yield state(M)

    g, seen = body(), []
    for context in (contextlib.nullcontext, M.no_grad, M.inference_mode):
        with context():
            seen += [next(g), state(M)]
    return seen


# --- coroutines: what does not depend on section 7 -------------------------------------------------------------------
@statement("1.1 awaiting in other tasks: each ends in the mode it began with")
def test_tasks(M):
    async def task():
        await asyncio.sleep(0)
        return state(M)

    async def both():
        return await asyncio.gather(task(), task())

    return asyncio.run(both()), name(None)
