"""gradcheck and gradgradcheck, the same calls on torch and tgrad."""

import functools
import re
import warnings

import numpy as np
import pytest
import torch

import tgrad
from tests.semantics.harness import attempt, statement
from tgrad.autograd.gradcheck import GradcheckError

DATA = np.random.default_rng(3).normal(size=(2, 3))


def leaf(M, data=DATA, **settings):
    return M.tensor(data.tolist(), dtype=M.float64, requires_grad=True, **settings)


def scaled(M, factor):
    """x * x with a gradient that is wrong unless factor is 1."""

    class Wrong(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, g):
            return 2 * factor * ctx.saved_tensors[0] * g

    return Wrong.apply


def both(M, function, *args, **settings):
    checks = (M.autograd.gradcheck, M.autograd.gradgradcheck)
    return [attempt(functools.partial(check, function, *args, **settings)) for check in checks]


def asserts(function):
    with pytest.raises(AssertionError) as error:
        function()
    return str(error.value)


@statement()
def test_right_gradients(M):
    x, w = leaf(M), leaf(M, DATA * 2 + 0.1)
    return [
        both(M, lambda x: x.exp(), x), both(M, lambda x: x.exp(), (x,)), both(M, lambda x: (x * x).sum(), [x]),
        both(M, lambda x, w: (x * w, x + w), (x, w)), both(M, lambda x, w: x.sin() @ w.t(), (x, w)),
        both(M, lambda x, k, s: x * k, (x, 3.0, "text")), both(M, lambda x, p: x * p, (x, w.detach())),
        both(M, lambda x: (x * 2, x.detach() * 0), x), both(M, lambda x: x[0] ** 3, x),
        both(M, lambda x: x.t().sigmoid(), x),
    ]  # fmt: skip


@statement()
def test_wrong_gradients(M):
    x = leaf(M)
    f = scaled(M, 1.1)
    found = attempt(lambda: M.autograd.gradcheck(f, x))
    head = re.sub(r"\s+", "", found.text.split("[")[0])
    settings = [{"atol": 1.0}, {"rtol": 0.2}, {"atol": 0.0, "rtol": 0.0}, {"raise_exception": False}]
    results = [attempt(lambda: M.autograd.gradcheck(f, x, **s)) for s in settings]
    second = attempt(lambda: M.autograd.gradgradcheck(f, x, raise_exception=False))
    return (
        found.kind,
        head.startswith("Jacobianmismatchforoutput0withrespecttoinput0"),
        [getattr(r, "kind", r) for r in results],
        second,
    )


@statement()
def test_which_output_and_input(M):
    x, w = leaf(M), leaf(M, DATA + 1)
    f = scaled(M, 1.1)
    found = []
    for function in (lambda x, w: (x, f(w)), lambda x, w: (f(x), w), lambda x, w: (x * w, w, f(w) + x)):
        text = attempt(lambda: M.autograd.gradcheck(function, (x, w))).text
        found.append(re.findall(r"output (\d) with respect to input (\d)", text))
    return found


@statement()
def test_arguments(M):
    x = leaf(M)
    plain = x.detach()
    double = lambda x: x * 2
    repeated = M.ones(1, 3, dtype=M.float64, requires_grad=True).expand(2, 3)
    return [
        both(M, double, plain), both(M, lambda x, n: x * n, (plain, 3)), both(M, double, M.ones(2, 3, dtype=M.float64)),
        asserts(lambda: M.autograd.gradcheck(double, x, check_backward_ad=False)),
        asserts(lambda: M.autograd.gradgradcheck(double, x, check_rev_over_rev=False)),
        attempt(lambda: M.autograd.gradcheck(double, x, fast_mode=True)),
        attempt(lambda: M.autograd.gradcheck(double, x, masked=True)),
        attempt(lambda: M.autograd.gradcheck(double, x, check_grad_dtypes=True, nondet_tol=1e-3, eps=1e-5)),
        attempt(lambda: M.autograd.gradgradcheck(double, x, M.ones(2, 3, dtype=M.float64, requires_grad=True))),
        attempt(lambda: M.autograd.gradgradcheck(lambda x: x.exp(), x, (leaf(M),), gen_non_contig_grad_outputs=True)),
        attempt(lambda: M.autograd.gradgradcheck(lambda x: x.exp(), x, gen_non_contig_grad_outputs=True)),
        attempt(lambda: M.autograd.gradcheck(lambda x: x, repeated)).kind,
    ]  # fmt: skip


@statement()
def test_float32_warns(M):
    x = M.tensor([1.0, 2.0], requires_grad=True)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        value = attempt(lambda: M.autograd.gradcheck(lambda x: x * 2, x, eps=1e-2, atol=1e-2))
    return value, [(w.category.__name__, str(w.message)) for w in found]


@statement()
def test_outputs_without_gradient(M):
    x = leaf(M)
    return (
        attempt(lambda: M.autograd.gradcheck(lambda x: x.detach() * 0, x)),
        attempt(lambda: M.autograd.gradcheck(lambda x: x.detach() * 2, x)),
        attempt(lambda: M.autograd.gradcheck(lambda x: (x * 2, x.detach() * 0), x)),
        attempt(lambda: M.autograd.gradcheck(lambda x: x.detach() * 2, x, raise_exception=False)),
    )


@statement()
def test_not_multiplied_by_the_gradient(M):
    class Constant(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 3

        @staticmethod
        def backward(ctx, g):
            return g * 0 + 3

    x = M.tensor([1.0], dtype=M.float64, requires_grad=True)
    return attempt(lambda: M.autograd.gradcheck(Constant.apply, x))


@statement()
def test_not_reentrant(M):
    calls = []

    class Drifts(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            calls.append(1)
            return g * (1 + 1e-7 * len(calls))

    x = M.tensor([1.0], dtype=M.float64, requires_grad=True)
    strict = attempt(lambda: M.autograd.gradcheck(Drifts.apply, x))
    return strict, attempt(lambda: M.autograd.gradcheck(Drifts.apply, x, nondet_tol=1e-3))


@statement()
def test_undefined_gradients(M):
    class Two(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.set_materialize_grads(False)
            return x * 2, x * 3

        @staticmethod
        def backward(ctx, a, b):
            return a * 2 + b * 3

    x = leaf(M)
    found = attempt(lambda: M.autograd.gradcheck(Two.apply, x))
    return found.kind, attempt(lambda: M.autograd.gradcheck(lambda x: Two.apply(x)[0], x)).kind


@statement()
def test_errors_of_the_function_pass_through(M):
    def fails(x):
        raise KeyError("mine")

    return both(M, fails, leaf(M), raise_exception=False)


def test_undefined_gradients_may_be_left_unchecked():
    class Two(tgrad.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2, x * 3

        @staticmethod
        def backward(ctx, a, b):
            return a * 2 + b * 3

    assert tgrad.autograd.gradcheck(Two.apply, leaf(tgrad), check_undefined_grad=True)


def test_inputs_are_put_back():
    x = leaf(tgrad)
    before, version = x.tolist(), x._version
    y = x.exp()
    assert tgrad.autograd.gradcheck(lambda x: x.exp(), x)
    assert x.tolist() == before and x._version == version and x.grad is None
    y.sum().backward()  # an older graph does not notice
    w = (leaf(tgrad) * 2).t()
    assert tgrad.autograd.gradcheck(lambda w: w.exp(), w) and tgrad.autograd.gradcheck(lambda x: x.exp(), x.t()[1:])


def test_modes_and_names():
    with tgrad.no_grad():
        assert tgrad.autograd.gradcheck(lambda x: x.exp(), leaf(tgrad))
        assert not tgrad.is_grad_enabled()
    assert issubclass(GradcheckError, RuntimeError) and tgrad.autograd.gradcheck is not None
    for M in (tgrad, torch):
        assert callable(M.autograd.gradcheck) and callable(M.autograd.gradgradcheck)


@pytest.mark.parametrize("settings", [
    {"check_batched_grad": True}, {"check_forward_ad": True}, {"check_batched_forward_grad": True},
], ids=str)  # fmt: skip
def test_what_tgrad_does_not_have(settings):
    with pytest.raises(NotImplementedError, match="tgrad"):
        tgrad.autograd.gradcheck(lambda x: x, leaf(tgrad), **settings)
    with pytest.raises(NotImplementedError, match="forward mode"):
        tgrad.autograd.gradgradcheck(lambda x: x, leaf(tgrad), check_fwd_over_rev=True)
