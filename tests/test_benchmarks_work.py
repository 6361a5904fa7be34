"""The benchmark that counts work, and the page made of it: exact on calls whose work is known."""

import pandas as pd
import pytest
import torch

import tgrad
from tests.benchmarks import speed, work
from tgrad.kernels import launch

N = 1000
counted = pytest.mark.skipif(not launch.INTERPRET, reason="the interpreter counts")


def ones(xp, *shape, **kinds):
    return xp.ones(*shape, **kinds)


@counted
@pytest.mark.parametrize(
    "call, names, nbytes, torchs, torch_bytes",
    [
        (lambda xp, x, y: lambda: x + y, ["add"], 12 * N, ["add"], 12 * N),
        (lambda xp, x, y: lambda: x + 1.0, ["add"], 8 * N, ["add"], 8 * N),
        (lambda xp, x, y: lambda: x.add_(y), ["add_"], 12 * N, ["add_"], 12 * N),
        (lambda xp, x, y: lambda: x.view(10, 100).t()[3:].detach(), [], 0, [], 0),
        (lambda xp, x, y: lambda: x.view(10, 100)[:, ::2] * 2.0, ["mul"], 4 * N, ["mul"], 4 * N),
        (lambda xp, x, y: lambda: x.expand(7, N) * y, ["mul"], 4 * 9 * N, ["mul"], 4 * 9 * N),
        (lambda xp, x, y: lambda: x.zero_(), ["copy_"], 4 * N, ["zero_"], 4 * N),
    ],
)
def test_what_simple_calls_touch(call, names, nbytes, torchs, torch_bytes):
    for count, xp, expected, touched in ((work.ours, tgrad, names, nbytes), (work.theirs, torch, torchs, torch_bytes)):
        found = count(call(xp, ones(xp, N), ones(xp, N)))
        assert [name for name, _ in found.kernels] == expected
        assert found.nbytes == touched


@counted
def test_the_products_of_a_linear():
    """Each operand once, whatever a tile reads again: x, w, b, y; g, x, dw and db; g, w, dx."""
    m, k, n = 33, 17, 20
    x, g = tgrad.ones(m, k, requires_grad=True), tgrad.ones(m, n)
    layer = tgrad.nn.Linear(k, n)

    def step():
        layer(x).backward(g)
        x.grad = layer.weight.grad = layer.bias.grad = None

    found = work.ours(step)
    assert len(found.kernels) == 3
    assert found.nbytes == 4 * (m * k + k * n + n + m * n + m * n + m * k + k * n + n + m * n + k * n + m * k)


def test_the_page():
    """It names what is measured, and lists where PyTorch is ahead."""
    table = pd.DataFrame(
        [("cheap", "tgrad", 1, 500, "a"), ("cheap", "tgrad fused", 1, 250, "f"), ("cheap", "torch", 2, 1000, "b c"),
         ("dear", "tgrad", 3, 3000, "d e f"), ("dear", "torch", 2, 1000, "g h")],
        columns=["case", "engine", "kernels", "bytes", "names"],
    )  # fmt: skip
    host = pd.DataFrame(
        [("native", "grad", "a + b", 0.5), ("native", "no_grad", "a + b", 0.6), ("python", "grad", "a + b", 1.2)],
        columns=["launcher", "mode", "call", "ratio"],
    )
    host["low"], host["high"] = host["ratio"] - 0.1, host["ratio"] + 0.1
    text = speed.page(table, host, "Python 3")
    assert "| cheap | 1 | 2 | 500 | 0.50 |" in text and "| cheap, `@tgrad.fuse` | 1 | 2 | 250 | 0.25 |" in text
    assert "- dear: 3 kernels to 2, 3.00 of the bytes (`d e f`)." in text and "- cheap" not in text
    assert "| a + b | 0.50 | 0.60 |  | 1.20 |  |  |" in text
    assert "with the C launcher: nowhere." in text and "pure Python: a + b (grad 1.20)." in text
    for figure in (speed.draw_work(speed.work_table(table)), speed.draw_host(host)):
        assert figure.axes
