"""Anomaly mode: what it warns of, what it raises, and what it says about the write that broke a gradient."""

import re
import sys
import warnings

import pytest
import torch

import tgrad
from tests.semantics.harness import attempt, statement
from tgrad import anomaly, engine, graph
from tgrad.autograd import detect_anomaly, set_detect_anomaly

HERE = re.escape(__file__)


def caught(function):
    """(what the call gives, warnings as (category, text))."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        value = attempt(function)
    return value, [(w.category.__name__, str(w.message)) for w in found]


def shape(found):
    """Warnings without what differs: paths, line numbers, and what PyTorch says about itself."""
    kept = []
    for category, text in found:
        text = text.split("(Triggered internally")[0]
        text = re.sub(r'File "[^"]*/([\w.]+)", line \d+', r"\1", text)
        kept.append((category, " ".join(text.split())))
    return kept


@pytest.fixture(autouse=True)
def off():
    yield
    for M in (tgrad, torch):
        M.set_anomaly_enabled(False)


@statement()
def test_switches(M):
    seen = [M.is_anomaly_enabled(), M.is_anomaly_check_nan_enabled()]

    def state():
        seen.append((M.is_anomaly_enabled(), M.is_anomaly_check_nan_enabled()))

    with M.autograd.set_detect_anomaly(True):
        state()
        with M.autograd.set_detect_anomaly(False):
            state()
            with M.autograd.set_detect_anomaly(True, check_nan=False):
                state()
        state()
        with M.autograd.detect_anomaly(check_nan=False):
            state()
        state()
    state()
    M.autograd.set_detect_anomaly(True, False)
    state()
    M.autograd.set_detect_anomaly(False)
    state()
    late = M.autograd.detect_anomaly()
    state()
    with late:
        state()
    state()
    for bad in ((1,), (None,), (True, 1), ("on",)):
        seen.append(attempt(M.autograd.set_detect_anomaly, *bad).kind)
    state()
    return seen, caught(lambda: M.autograd.detect_anomaly() and None)[1]


@statement()
def test_nan(M):
    found = []
    for check_nan in (True, False):
        x = M.tensor([0.0, 1.0], requires_grad=True)
        with M.autograd.set_detect_anomaly(True, check_nan):
            y = (x * 0).sqrt() * 0
            value, warned = caught(lambda: y.sum().backward())
        found.append((value, [(c, t[:60]) for c, t in warned]))
    return found


@statement()
def test_which_output(M):
    """Tensors that could have a gradient count, numbers and masks do not."""
    found = []
    for make in (
        lambda x, w: (x * w).sqrt() * 0, lambda x, w: w * ((x - 1) / 0.0 * 0),
        lambda x, w: M.where(x > 5, x, (w * 0).sqrt()) * 0,
        lambda x, w: (w * 0) ** 0.5 * 0, lambda x, w: x / (w * 0) * 0,
    ):  # fmt: skip
        x, w = (M.tensor([0.0, 1.0], requires_grad=r) for r in (False, True))
        with M.autograd.set_detect_anomaly(True):
            found.append(caught(lambda: make(x, w).sum().backward())[0])
    return found


@statement()
def test_nan_of_a_hook_is_not_detected(M):
    x = M.tensor([1.0], requires_grad=True)
    with M.autograd.set_detect_anomaly(True):
        y = x * 2
        y.register_hook(lambda g: g * float("nan"))
        z = y + 1
        return caught(lambda: z.sum().backward())[0].text, x.grad


def test_nan_names_the_forward_line():
    def forward(x):
        return (x * 0).sqrt()  # the line

    x = tgrad.tensor([1.0], requires_grad=True)
    with set_detect_anomaly(True):
        y = forward(x) * 0
        value, warned = caught(lambda: y.sum().backward())
    assert value.text == "Function 'SqrtBackward0' returned nan values in its 0th output."
    ((category, text),) = warned
    assert category == "UserWarning"
    assert text.startswith("Error detected in SqrtBackward0. Traceback of forward call that caused the error:\n  File")
    line = forward.__code__.co_firstlineno + 1
    assert f'File "{__file__}", line {line}, in forward\n    return (x * 0).sqrt()  # the line\n' in text
    assert "/tgrad/" not in text.replace(__file__, "").replace(sys.prefix, "")


@statement()
def test_recorded_outside(M):
    x = M.tensor([0.0], requires_grad=True)
    y = (x * 0).sqrt() * 0
    with M.autograd.set_detect_anomaly(True):
        value, warned = caught(lambda: y.sum().backward())
    return value, shape(warned)


@statement()
def test_an_exception_in_a_custom_backward(M):
    class Bad(M.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, g):
            raise KeyError("mine")

    x = M.tensor([1.0], requires_grad=True)
    with M.autograd.set_detect_anomaly(True):
        y = Bad.apply(x)
        value, warned = caught(lambda: y.sum().backward())
    return value, [(c, t[:83]) for c, t in shape(warned)], x.grad is None


@statement()
def test_the_backward_that_made_the_node_is_named_too(M):
    def poison(grad_inputs, grad_outputs):
        raise ValueError("poison")

    x = M.tensor([1.0], requires_grad=True)
    with M.autograd.set_detect_anomaly(True):
        (g,) = M.autograd.grad(x.exp().sum(), x, create_graph=True)
        g.grad_fn.register_hook(poison)
        value, warned = caught(lambda: g.sum().backward())
    (_, first), (_, second) = shape(warned)
    return value, [c for c, _ in warned], first[:18], second[:120]


# --- writes that break a gradient: more than torch says -------------------------------------------------------------
class Layer(tgrad.nn.Module):
    def forward(self, x):
        x.add_(1)  # the write
        return x


def broken(context):
    model = tgrad.nn.Sequential(tgrad.nn.Identity(), Layer())
    with context:
        x = tgrad.tensor([1.0, 2.0], requires_grad=True)
        y = x.exp()  # the op
        model(y)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            with pytest.raises(RuntimeError) as error:
                y.sum().backward()
    return str(error.value), [str(w.message) for w in found]


WRITE = Layer.forward.__code__.co_firstlineno + 1
OP = broken.__code__.co_firstlineno + 4


def test_the_write_is_named():
    text, (warning,) = broken(set_detect_anomaly(True))
    assert "modified by an inplace operation: [torch.FloatTensor [2]], which is output 0 of Exp" in text
    assert "is at version 1; expected version 0 instead." in text
    assert f"recorded at {__file__}:{OP}, in broken, saved." in text
    assert f"It was last written by add_ at {__file__}:{WRITE}, in forward in module '1'." in text
    assert "Hint: the backtrace further above shows the operation that failed to compute its gradient." in text
    assert warning.startswith("Error detected in ExpBackward0. Traceback of forward call")
    assert f"line {OP}, in broken\n    y = x.exp()  # the op" in warning


def test_the_write_is_named_under_a_profiler_too():
    text, found = broken(tgrad.autograd.graph.record_origins())
    assert f"It was last written by add_ at {__file__}:{WRITE}, in forward in module '1'." in text
    assert "enable anomaly detection" in text and not found


def test_nothing_is_named_that_is_not_known():
    x = tgrad.tensor([1.0, 2.0], requires_grad=True)
    h = x * 1
    with set_detect_anomaly(True):
        h.add_(1)  # before it was saved
    y = h.exp()
    with tgrad.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="is at version 1; expected version 0") as error:
        y.sum().backward()
    assert "written" not in str(error.value) and "enable anomaly detection" in str(error.value)

    y = x.exp()
    with tgrad.no_grad():
        with set_detect_anomaly(True):
            y.mul_(2)
        y.mul_(2)
    with pytest.raises(RuntimeError, match=rf"It was written by mul_ at {HERE}:\d+"):
        y.sum().backward()


def writes():
    def function(x, y):
        class Dirty(tgrad.autograd.Function):
            @staticmethod
            def forward(ctx, t):
                ctx.mark_dirty(t)
                t.data.add_(1)
                return t

            @staticmethod
            def backward(ctx, g):
                return g

        Dirty.apply(y)

    def step(x, y):
        y = tgrad.nn.Parameter(y.detach())
        y.grad = tgrad.ones(3)
        tgrad.optim.SGD([y], lr=1.0).step()

    yield "Dirty.apply", function
    yield "sgd", step
    yield "copy_", lambda x, y: y.__setitem__(0, 3.0)
    yield "copy_", lambda x, y: y.copy_(tgrad.ones(3))
    yield "mul_", lambda x, y: y.detach().mul_(2)
    yield "increment_version", lambda x, y: tgrad.autograd.graph.increment_version(y)


@pytest.mark.parametrize("op, write", list(writes()), ids=lambda v: v if isinstance(v, str) else "")
def test_every_kind_of_write_is_named(op, write):
    x = tgrad.tensor([1.0, 2.0, 3.0], requires_grad=True)
    with set_detect_anomaly(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        y = x.exp()
        write(x, y)
        with pytest.raises(RuntimeError, match=rf"It was (last )?written by {op}\w* at {HERE}:\d+"):
            (y * 1).sum().backward()


# --- what it costs when it is off -----------------------------------------------------------------------------------
def test_off_means_off():
    with set_detect_anomaly(True):
        x = tgrad.tensor([1.0], requires_grad=True)
        y = x.exp()
        y.add_(1)
        assert isinstance(y.grad_fn.origin, anomaly.Traced) and engine.watch is not None
    assert graph.find_origin is None and engine.watch is None and not graph.anomaly
    y = x.exp()
    y.add_(1)
    assert y.grad_fn.origin is None and not hasattr(y.version, "written")


def test_with_a_profiler_that_records_origins():
    """Either may be entered first, and leaves the other as it was."""
    with tgrad.autograd.graph.record_origins():
        recorder = graph.find_origin
        with set_detect_anomaly(True):
            node = (tgrad.ones(1, requires_grad=True) * 2).grad_fn
            assert (
                isinstance(node.origin, anomaly.Traced)
                and node.origin.function == "test_with_a_profiler_that_records_origins"
            )
            with tgrad.autograd.graph.record_origins():
                assert isinstance((tgrad.ones(1, requires_grad=True) * 2).grad_fn.origin, anomaly.Traced)
            assert isinstance((tgrad.ones(1, requires_grad=True) * 2).grad_fn.origin, anomaly.Traced)
        assert graph.find_origin is recorder
    assert graph.find_origin is None


def test_names():
    assert tgrad.autograd.anomaly_mode.detect_anomaly is detect_anomaly
    assert tgrad.autograd.anomaly_mode.set_detect_anomaly is set_detect_anomaly
    assert tgrad.autograd.is_anomaly_enabled is tgrad.is_anomaly_enabled


def test_a_warning_turned_into_an_error_is_raised():
    x = tgrad.tensor([0.0], requires_grad=True)
    with set_detect_anomaly(True), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="Error detected in SqrtBackward0"):
            (x.sqrt() * 0).sum().backward()
    assert tgrad.is_grad_enabled() and not anomaly._running.nodes
