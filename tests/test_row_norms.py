"""The gradients of layer, group and root-mean-square norms: which kernels make them, and that all ways agree."""

import numpy as np
import pytest
import torch

import tgrad as T
import tgrad.nn.functional as F
from tests.compare import assert_close, random, values
from tests.twins import agree, leaves
from tgrad import nn
from tgrad.kernels import launch, row_norm_sums

G = torch.nn.functional
pytestmark = pytest.mark.anywhere


def layer(f):
    return lambda x, w, b: f.layer_norm(x, tuple(x.shape[1:]), w, b)


def rms(f):
    return lambda x, w, b: f.rms_norm(x, tuple(x.shape[1:]), w, 1e-3)


def group(f):
    return lambda x, w, b: f.group_norm(x, 2, w, b, 1e-3)


NORMS = {
    "layer": (layer, (7, 5), (5,)), "layer of two": (layer, (7, 3, 5), (3, 5)), "rms": (rms, (7, 5), (5,)),
    "group": (group, (3, 4, 5), (4,)), "group of planes": (group, (3, 4, 5, 3), (4,)),
    "flat group": (group, (7, 6), (6,)),
}  # fmt: skip


def operands(shape, channels, dtype=T.float64, wanted="xwb"):
    rng = random("row norm", shape)
    given = [leaves(rng.standard_normal(s), dtype) for s in (shape, channels, channels)]
    for pair, name in zip(given, "xwb", strict=True):
        for t in pair:
            t.requires_grad_(name in wanted)
    return given


def launched(call):
    """The names of the kernels of a second call."""
    names = []
    with launch.listen(names.append):
        call()
        names.clear()
        call()
    return names


@pytest.mark.parametrize("wanted", ["x", "w", "b", "xw", "xb", "wb", "xwb"])
@pytest.mark.parametrize("name", NORMS)
def test_each_set_of_inputs_gets_its_gradients(name, wanted):
    norm, shape, channels = NORMS[name]
    if norm is rms:
        wanted = wanted.replace("b", "")
    if wanted:
        agree(norm(F), norm(G), operands(shape, channels, wanted=wanted))


@pytest.mark.parametrize("name", NORMS)
def test_without_a_weight_or_a_bias(name):
    norm, shape, channels = NORMS[name]
    ones, zeros = torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    x, w, b = operands(shape, channels)
    agree(lambda x: norm(F)(x, None, None), lambda x: norm(G)(x, None, None), [x])
    agree(lambda x, w: norm(F)(x, w, None), lambda x, w: norm(G)(x, w, zeros), [x, w])
    if norm is not rms:
        agree(lambda x, b: norm(F)(x, None, b), lambda x, b: norm(G)(x, ones, b), [x, b])


@pytest.mark.parametrize("dtype", [T.float16, T.bfloat16], ids=repr)
@pytest.mark.parametrize("name", ["layer", "rms", "group", "flat group"])
def test_half_types(name, dtype):
    norm, shape, channels = NORMS[name]
    agree(norm(F), norm(G), operands(shape, channels, dtype))


@pytest.mark.parametrize("name", NORMS)
def test_no_rows(name):
    norm, shape, channels = NORMS[name]
    agree(norm(F), norm(G), operands((0, *shape[1:]), channels, wanted="xw"))


def test_gradients_of_float32_weights_beside_a_half_input():
    x, g = (random("mixed", k).standard_normal((6, 8)) for k in range(2))
    a, w = T.tensor(x, dtype=T.bfloat16, requires_grad=True), T.ones(8, requires_grad=True)
    F.layer_norm(a, (8,), w).backward(T.tensor(g, dtype=T.bfloat16))
    exact = torch.tensor(values(a.detach()).astype(np.float64))
    weight = torch.ones(8, dtype=torch.float64, requires_grad=True)
    G.layer_norm(exact, (8,), weight).backward(torch.tensor(g).bfloat16().double())
    assert w.grad.dtype is T.float32
    assert_close(w.grad, weight.grad, factor=16, scale=8)


@pytest.mark.parametrize("name, kernels", [
    ("layer", ["norm", "norm_backward", "norm_sums"]), ("rms", ["norm", "norm_backward", "norm_sums"]),
    ("group", ["norm", "norm_channel_sums", "norm_backward", "norm_sums"]),
    ("flat group", ["norm", "norm_backward", "norm_weight", "norm_sums"]),
])  # fmt: skip
def test_the_kernels_of_both_ways(name, kernels):
    """No copy: gradients arrive in the shapes of the leaves, which take them as they are."""
    norm, (_, *row), channels = NORMS[name]
    shape = 140, *row
    x, w, b = (t for t, _ in operands(shape, channels))
    g = T.randn(*shape, dtype=x.dtype)

    def both():
        norm(F)(x, w, b).backward(g)
        x.grad = w.grad = b.grad = None

    assert launched(both) == kernels


def test_a_norm_is_one_node():
    x, w, b = (t for t, _ in operands((3, 5), (5,)))
    assert F.layer_norm(x, 5, w, b).node.edges == (x, w, b)


@pytest.mark.parametrize("programs", [2, 3, 7, 20])
@pytest.mark.parametrize("name", ["layer", "rms", "flat group"])
def test_rows_divided_among_any_number_of_programs(name, programs, monkeypatch):
    norm, _, _ = NORMS[name]
    m, n = 20, 6
    monkeypatch.setattr(row_norm_sums, "parts", lambda m, n, wanted, rows, sizes: programs)
    with launch.listen(lambda name: None):  # launches are prepared anew
        for wanted in ("xwb", "w"):
            agree(norm(F), norm(G), operands((m, n), (n,), wanted=wanted.replace("b", "" if norm is rms else "b")))


@pytest.mark.parametrize("m, n, itemsize", [(1, 7, 4), (31, 8192, 2), (256, 1000, 4), (4096, 64, 4), (16384, 4096, 2)])
def test_partial_sums_are_a_small_part_of_the_traffic(m, n, itemsize, monkeypatch):
    monkeypatch.setattr(row_norm_sums, "INTERPRET", False)
    programs = row_norm_sums.parts(m, n, 528, max(1, 512 // n), (itemsize, 4))
    chunk = -(-m // programs)
    assert 1 <= programs <= 528
    assert chunk * (programs - 1) < m <= chunk * programs  # each has some row
    assert programs == 1 or programs * 2 * n * 4 <= max(m * n * itemsize / 4, row_norm_sums.SMALL)


@pytest.mark.parametrize("wanted", ["xw", "w"])
def test_rows_that_do_not_fit_into_registers(wanted):
    n = 70001
    x, w, _ = operands((3, n), (n,), wanted=wanted)
    agree(lambda x, w: F.layer_norm(x, (n,), w), lambda x, w: G.layer_norm(x, (n,), w), [x, w])


def test_a_second_derivative_after_a_recorded_backward():
    """What is recorded is composed of ops; its first derivatives are the fused ones."""
    for name in ("layer", "group"):
        norm, shape, channels = NORMS[name]
        given = [t for t, _ in operands(shape, channels)]
        g = T.randn(*shape, dtype=T.float64)
        out = norm(F)(*given)
        fused = T.autograd.grad(out, given, g, retain_graph=True)
        recorded = T.autograd.grad(out, given, g, create_graph=True)
        for a, b, leaf in zip(fused, recorded, given, strict=True):
            assert a.shape == b.shape == leaf.shape
            np.testing.assert_allclose(values(a), values(b.detach()), rtol=1e-12, atol=1e-12)


def test_errors_name_the_argument():
    x = T.ones(2, 3)
    with pytest.raises(TypeError, match=r"layer_norm\(\): argument 'input' \(position 1\) must be Tensor, not list"):
        F.layer_norm([1.0], (1,))
    with pytest.raises(TypeError, match=r"rms_norm\(\): argument 'weight' \(position 3\) must be Tensor, not float"):
        F.rms_norm(x, (3,), 2.0)
    with pytest.raises(TypeError, match=r"group_norm\(\): argument 'bias' \(position 4\) must be Tensor, not str"):
        F.group_norm(x, 3, None, "b")
    with pytest.raises(RuntimeError, match="layer_norm: not implemented for torch.int64: convert the input first"):
        nn.LayerNorm(3)(T.ones(2, 3, dtype=T.int64))
