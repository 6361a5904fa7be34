"""Section 7: where tgrad departs from torch on purpose. Each snippet says what either of them does."""

import asyncio
import inspect

from tests.semantics.harness import Refused, attempt, flags, leaf, state, statement, version_kept

NO_GRAPH = "element 0 of tensors does not require grad and does not have a grad_fn"
WRITTEN = "one of the variables needed for gradient computation has been modified by an inplace operation"


@statement(
    "7.1 [Q] a view taken under no_grad of a tensor that requires grad does not: no dead end",
    ours=[False, True, None, Refused("RuntimeError", NO_GRAPH), None],
    theirs=[True, True, None, None, None],
)  # fmt: skip
def test_views_under_no_grad(M):
    x = leaf(M)
    with M.no_grad():
        v = x[1:]
    return [*flags(v), attempt((v * 3).sum().backward), x.grad]


@statement("7.1 [Q] the errors of writing such views stay")
def test_views_under_no_grad_errors(M):
    z = leaf(M) * 1
    with M.no_grad():
        v, w = z[1:], z[:1]
    refused = version_kept(v, lambda: v.mul_(2))
    z.mul_(2)
    return refused, attempt(lambda: w * 2)


@statement(
    "7.2 [Q] one context object may be entered while it is entered",
    ours=[[True, False]] * 3, theirs=[[False, False], [False, True], [True, True]],
)  # fmt: skip
def test_nested_instances(M):
    found = []
    for context in (M.no_grad(), M.inference_mode(), M.enable_grad()):
        M.set_grad_enabled(True)
        with context:
            with context:
                pass
        found.append(state(M))
    return found


@statement(
    "7.3 [Q] a decorated coroutine function runs its body in the mode",
    ours=[True, [[False, False]] * 2, [True, False]],
    theirs=[False, [[True, False]] * 2, [True, False]],
)  # fmt: skip
def test_coroutines(M):
    seen = []

    @M.no_grad()
    async def body():
        seen.append(state(M))
        await asyncio.sleep(0)
        seen.append(state(M))

    asyncio.run(body())
    return inspect.iscoroutinefunction(body), seen, state(M)


@statement(
    "7.3 [Q] a decorated async generator function runs its body in the mode, resumption by resumption",
    ours=[True, [[False, False], [True, False]] * 2], theirs=[False, [[True, False], [True, False]] * 2],
)  # fmt: skip
def test_async_generators(M):
    seen = []

    @M.no_grad()
    async def body():
        for i in range(2):
            seen.append(state(M))
            yield i

    async def consume():
        async for _ in body():
            seen.append(state(M))

    asyncio.run(consume())
    return inspect.isasyncgenfunction(body), seen


INPLACE = Refused("RuntimeError", "Inplace update to inference tensor outside InferenceMode is not allowed")


@statement(
    "7.4 [Q] refusals on inference tensors come before anything is written",
    ours=[INPLACE, [1.0, 1.0], INPLACE, [1.0, 1.0]],
    theirs=[INPLACE, [2.0, 2.0], INPLACE, [5.0, 2.0]],
)  # fmt: skip
def test_refused_before_writing(M):
    with M.inference_mode():
        i = M.ones(2)
    found = [attempt(lambda: i.add_(1)), i.tolist()]
    return [*found, attempt(lambda: i.__setitem__(0, 5.0)), i.tolist()]


@statement(
    "7.5 [Q] a gradient first created by a backward inside inference mode is a normal tensor",
    ours=[False, None, [4.0, 4.0, 4.0]],
    theirs=[True, INPLACE, [4.0, 4.0, 4.0]],
)  # fmt: skip
def test_gradient_made_inside(M):
    x = leaf(M)
    y, z = (x * 2.0).sum(), (x * 2.0).sum()
    with M.inference_mode():
        y.backward()
    return [x.grad.is_inference(), attempt(z.backward), x.grad.tolist()]


@statement(
    "7.6 [Q] saved-tensor hooks do not switch the version check off", ours=[Refused("RuntimeError", WRITTEN), None],
    theirs=[None, [6.0, 8.0, 10.0]],
)  # fmt: skip
def test_hooks_keep_the_check(M):
    x = leaf(M)
    h = x * 1.0
    with M.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        y = (h * h).sum()
    h.add_(2)
    error = attempt(y.backward)
    return [error, None if x.grad is None else x.grad.tolist()]


@statement(
    "7.6 [Q] save_on_cpu: a later write raises instead of giving a wrong gradient",
    ours=[Refused("RuntimeError", WRITTEN), None],
    theirs=[None, [6.0, 8.0, 10.0]],
)  # fmt: skip
def test_save_on_cpu(M):
    x = leaf(M)
    h = x * 1.0
    with M.autograd.graph.save_on_cpu():
        y = (h * h).sum()
    h.add_(2)
    error = attempt(y.backward)
    return [error, None if x.grad is None else x.grad.tolist()]


TWICE = Refused("RuntimeError", "trying to differentiate twice a function that was marked with @once_differentiable")


@statement(
    "7.7 [Q] differentiating through once_differentiable raises in grad() too", ours=TWICE, theirs=[[2.0, 2.0, 2.0]],
)  # fmt: skip
def test_once_differentiable(M):
    class Once(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        @M.autograd.function.once_differentiable
        def backward(ctx, g):
            (x,) = ctx.saved_tensors
            return g * 2 * x

    x = leaf(M)
    (g,) = M.autograd.grad((Once.apply(x) + x * x).sum(), x, create_graph=True)
    (h,) = M.autograd.grad(g.sum(), x)
    return [h.tolist()]


@statement(
    "7.8 [Q] a Python number is not a saved tensor: x * 2 may be walked twice", ours=[None, None, [4.0, 4.0, 4.0]],
    theirs=[None, Refused("RuntimeError", "Trying to backward through the graph a second time"), [2.0, 2.0, 2.0]],
)  # fmt: skip
def test_numbers_are_not_saved(M):
    x = leaf(M)
    y = (x * 2).sum()
    return [attempt(y.backward), attempt(y.backward), x.grad.tolist()]
