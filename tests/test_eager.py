"""The native host path (tgrad/eager.c), on the CPU: it does what its Python forms do, and leaks no reference."""

import os
import subprocess
import sys

import pytest

SUITES = ["tests/test_autograd.py", "tests/semantics/test_versions.py"]

COUNTS = """
import gc, sys
import tgrad
from tgrad import dispatch, graph
from tgrad.ops import pointwise as p
from tgrad.ops.reduce import sum_op
from tgrad.storage import Allocation, ledger
from tgrad.tensor import empty

assert type(empty).__name__ == "builtin_function_or_method", "tgrad/eager.c was not built"
assert type(graph.record) is type(dispatch.dispatch) is type(empty)
a = tgrad.randn(5, 7, requires_grad=True)
b = tgrad.randn(5, 7)
frozen = tgrad.inference_mode()(lambda: tgrad.randn(5, 7))()

def work():
    y = (a * b).tanh() + 2.0
    tgrad.softmax(y, 1).sum(0).exp().sum().backward()
    a.grad = None
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
              graph._ITSELF, tgrad.Tensor, Allocation, graph.Node, graph.Saved, None, True, False]
    return [sys.getrefcount(t) for t in things], len(gc.get_objects()), ledger.live_bytes

for _ in range(3):
    work()
before = counted()
for _ in range(200):
    work()
after = counted()
off = [abs(x - y) for x, y in zip(before[0], after[0])]
assert max(off) < 100, off
assert abs(after[1] - before[1]) < 100 and after[2] == before[2], (before[1:], after[1:])

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


def run(*command):
    return subprocess.run(
        [sys.executable, *command], env=os.environ | {"TGRAD_POOL": "1"}, capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def compiler():
    import shutil

    if not (shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")):
        pytest.skip("no C compiler: the Python forms serve")


def test_no_reference_is_kept_or_lost(compiler):
    done = run("-c", COUNTS)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr[-3000:]


@pytest.mark.thorough
def test_it_does_what_the_python_forms_do(compiler):
    done = run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *SUITES)
    assert done.returncode == 0, done.stdout[-3000:]
