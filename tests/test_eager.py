"""The native host path (tgrad/*.c), on the CPU: it does what its Python forms do, and leaks no reference."""

import os
import subprocess
import sys

import pytest

SUITES = [f"tests/{name}.py" for name in ("test_autograd", "test_folding", "test_inplace", "semantics/test_versions")]

COUNTS = """
import gc, sys
import tgrad
import tgrad.nn.functional as F
from tgrad import backward, dispatch, engine, graph
from tgrad.ops import pointwise as p
from tgrad.ops.reduce import sum_op
from tgrad.storage import Allocation, ledger
from tgrad.tensor import empty

assert type(empty).__name__ == "builtin_function_or_method", "tgrad/eager.c was not built"
assert type(graph.record) is type(dispatch.dispatch) is type(empty)
native = graph.announce_writes, engine.survey, engine.advance, backward._pointwise, backward._formulas
assert all(type(f) is type(empty) for f in native)
a = tgrad.randn(5, 7, requires_grad=True)
b = tgrad.randn(5, 7)
w, v, row = (tgrad.randn(*s, requires_grad=True) for s in ((7, 7), (7,), (1, 7)))
frozen = tgrad.inference_mode()(lambda: tgrad.randn(5, 7))()
optimizer = tgrad.optim.SGD([a, w, v, row], lr=0.0)

def work():
    y = (a * b).tanh() + 2.0
    tgrad.softmax(y, 1).sum(0).exp().sum().backward()
    a.grad = None
    h = F.relu(F.linear(a, w, v))
    F.mse_loss(F.linear(h, w, v) + h, b).backward(retain_graph=True)
    (a * row).view(-1).sum().backward()
    spoilt = F.linear(h, w) * h
    with tgrad.no_grad():
        h.mul_(1)
    hooked = a * 2
    hooked.register_hook(lambda g: 1 / 0)
    for wrong in (spoilt.sum(), F.linear(hooked, w).sum(), hooked.sum() * 2, y):
        try:
            wrong.backward()
        except (RuntimeError, ZeroDivisionError):
            pass
        else:
            raise AssertionError("it did not raise")
    for wrong in (lambda: engine.survey(1, []), lambda: engine.advance(a), lambda: backward._pointwise(),
                  lambda: backward._formulas(1), lambda: graph.announce_writes([a, 1])):
        try:
            wrong()
        except TypeError:
            pass
        else:
            raise AssertionError("it did not raise")
    optimizer.step()
    optimizer.zero_grad()
    with tgrad.no_grad():
        (a + b).relu().sum(1)
    with tgrad.inference_mode():
        (a * b).sum()
    for wrong in (lambda: a * frozen, lambda: tgrad.mm(a, b), lambda: a + "x", lambda: dispatch.dispatch(sum_op, (a,)),
                  lambda: empty(), lambda: empty(a.layout), lambda: graph.record(1, 2)):
        try:
            wrong()
        except Exception:
            pass
        else:
            raise AssertionError("it did not raise")

def counted():
    gc.collect()
    plan = p.mul.plans[a.layout, b.layout]
    things = [a, b, frozen, a.layout, a.layout.free, plan, plan.rule(1), plan.launch, a.storage, a.version, ledger,
              graph._ITSELF, tgrad.Tensor, Allocation, graph.Node, graph.Saved, engine.Walk, w, v, row, w.layout,
              w.storage, engine.fold, engine.accumulating, None, True, False, 0, 1]
    return [sys.getrefcount(t) for t in things], len(gc.get_objects()), ledger.live_bytes

for _ in range(3):
    work()
before = counted()
for _ in range(100):
    work()
after = counted()
off = [abs(x - y) for x, y in zip(before[0], after[0])]
assert max(off) < 50, off
assert abs(after[1] - before[1]) < 50 and after[2] == before[2], (before[1:], after[1:])

class Listener:
    def __init__(self): self.seen = []
    def allocated(self, storage): self.seen.append(("+", storage.nbytes))
    def freed(self, storage): self.seen.append(("-", storage.nbytes))

with ledger.subscribe(Listener()) as listener:
    y = a + b
    del y
assert listener.seen == [("+", 140), ("-", 140)], listener.seen
print("done")
"""


def run(*command, **environment):
    return subprocess.run(
        [sys.executable, *command], env=os.environ | {"TGRAD_POOL": "1", **environment}, capture_output=True,
        text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def compiler():
    import shutil

    if not (shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")):
        pytest.skip("no C compiler: the Python forms serve")


def test_no_reference_is_kept_or_lost(compiler):
    done = run("-c", COUNTS)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr[-3000:]


def test_a_walk_gives_the_same(compiler):
    """With and without the native form: gradients to the bit, kernels in order, errors, memory, what hooks see."""
    native, python = (run("-W", "ignore", "-m", "tests.walks", TGRAD_NATIVE=on) for on in "10")
    assert native.returncode == 0, native.stderr[-3000:]
    assert native.stdout == python.stdout and native.stdout.endswith("live bytes: 0\n")


@pytest.mark.thorough
def test_it_does_what_the_python_forms_do(compiler):
    done = run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *SUITES)
    assert done.returncode == 0, done.stdout[-3000:]
