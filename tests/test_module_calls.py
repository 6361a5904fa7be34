"""Running modules: forward hooks, and the path of the running module."""

import threading
from collections import OrderedDict

import pytest
import torch

import tgrad as T
from tests.errors import message
from tgrad import nn

pytestmark = pytest.mark.anywhere


# --- hooks -----------------------------------------------------------------------------------------------------
def test_forward_hooks_match_torch():
    def trace(t, n):
        log = []
        m = n.Linear(1, 1, bias=False)
        with t.no_grad():
            m.weight.fill_(2.0)
        handles = [
            m.register_forward_pre_hook(lambda m, a: log.append(("pre", a[0].item()))),
            m.register_forward_pre_hook(lambda m, a: a[0] + 1),
            m.register_forward_pre_hook(lambda m, a: log.append(("first", a[0].item())), prepend=True),
            m.register_forward_pre_hook(lambda m, a, k: ((a[0] * 10,), k), with_kwargs=True),
            m.register_forward_hook(lambda m, a, out: log.append(("post", a[0].item(), out.item()))),
            m.register_forward_hook(lambda m, a, out: out + 1),
            m.register_forward_hook(lambda m, a, k, out: log.append(("kw", k, out.item())), with_kwargs=True),
            m.register_forward_hook(lambda m, a, out: log.append(("top", out.item())), prepend=True),
        ]
        log.append(m(t.ones(1)).item())
        for h in handles:
            h.remove()
            h.remove()
        log.append(m(t.ones(1)).item())
        with m.register_forward_hook(lambda m, a, out: out * 0):
            log.append(m(t.ones(1)).item())
        log.append(m(t.ones(1)).item())
        m.register_forward_pre_hook(lambda m, a, k: 3, with_kwargs=True)
        log.append(message(lambda: m(t.ones(1))))
        return log

    assert trace(T, nn) == trace(torch, torch.nn)


def test_keyword_arguments_reach_hooks_and_forward():
    class Add(nn.Module):
        def forward(self, x, *, by):
            return x + by

    m = Add()
    m.register_forward_pre_hook(lambda m, a, k: (a, {"by": k["by"] * 2}), with_kwargs=True)
    assert m(T.ones(1), by=3).item() == 7


def test_hooks_that_always_run():
    log = []

    class Fails(nn.Module):
        def forward(self):
            raise ValueError("no")

    m = Fails()
    m.register_forward_hook(lambda *a: log.append("sometimes"))
    m.register_forward_hook(lambda m, a, out: log.append(("always", out)), always_call=True)
    with pytest.raises(ValueError, match="no"):
        m()
    assert log == [("always", None)]
    m.register_forward_hook(lambda *a: 1 / 0, always_call=True)
    with pytest.warns(UserWarning, match="silenced as another error was raised"), pytest.raises(ValueError):
        m()


# --- where the program is --------------------------------------------------------------------------------------
class Here(nn.Module):
    """Notes where it runs."""

    def __init__(self, log, *children):
        super().__init__()
        self.log = log
        self.inner = nn.ModuleList(children)

    def forward(self, x):
        self.log.append(nn.current_path())
        for child in self.inner:
            x = child(x)
            self.log.append(nn.current_path())
        return x


def test_current_path():
    log = []
    leaf = Here(log)
    m = nn.Sequential(nn.Identity(), Here(log, leaf), nn.Sequential(OrderedDict(fc1=Here(log))))
    assert nn.current_path() == ""
    m(T.ones(1))
    assert log == ["1", "1.inner.0", "1", "2.fc1"]
    assert nn.current_path() == ""
    log.clear()
    leaf(T.ones(1))
    assert log == [""]
    log.clear()

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden = [leaf]  # not registered

        def forward(self, x):
            return self.hidden[0](x)

    nn.Sequential(Calls())(T.ones(1))
    assert log == ["0.Here"]


def test_current_path_after_an_error_in_hooks_and_in_threads():
    class Fails(nn.Module):
        def forward(self, x):
            raise ValueError

    with pytest.raises(ValueError):
        nn.Sequential(nn.Identity(), Fails())(T.ones(1))
    assert nn.current_path() == ""
    seen, m = [], nn.Sequential(nn.Identity(), nn.Identity())
    m[1].register_forward_pre_hook(lambda *a: seen.append(nn.current_path()))
    m[1].register_forward_hook(lambda *a: seen.append(nn.current_path()))

    def elsewhere(module, args):
        thread = threading.Thread(target=lambda: seen.append(nn.current_path()))
        thread.start()
        thread.join()

    m[0].register_forward_pre_hook(elsewhere)
    m(T.ones(1))
    assert seen == ["", "1", "1"]
