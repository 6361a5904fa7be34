"""Products of inputs of one, three and more dimensions with a matrix: one product, forward and backward."""

import pytest
import torch

import tgrad
import tgrad.nn.functional as F
from tests.compare import assert_close, pair, random, same_bits
from tgrad import nn
from tgrad.kernels import launch


def leaves(*shapes, dtype=tgrad.float32):
    """Of tgrad, and of torch in float64 with the same values."""
    pairs = [pair(random("rows", i, s).standard_normal(s), dtype, requires_grad=True) for i, s in enumerate(shapes)]
    return [ours for ours, _, _ in pairs], [exact for _, _, exact in pairs]


def launched(f):
    names = []
    with launch.listen(names.append):
        f()
    return names


def run(f, ours, g):
    """The result, the gradients of `ours`, and the kernels that ran in the backward."""
    for t in ours:
        t.grad = None
    out = f(*ours)
    names = launched(lambda: out.backward(g))
    return [out.detach(), *(t.grad for t in ours)], names


PRODUCTS = {"linear": (F.linear, (3, 5), (3,)), "matmul": (lambda x, w: x @ w, (5, 3))}


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("shape", [(2, 7, 5), (2, 1, 3, 5), (5,), (1, 1, 5), (2, 0, 5)], ids=str)
def test_as_one_matrix(shape, name):
    """The kernels of a matrix, its bits, and no copy of a gradient; the weight's gradient is one product."""
    f, *rest = PRODUCTS[name]
    (x, *others), _ = leaves(shape, *rest)
    (g,), (tg,) = leaves((*shape[:-1], 3))
    g = g.detach()
    assert launched(lambda: f(x, *others)) == [name] * (x.numel() > 0)
    found, names = run(f, [x, *others], g)
    flat = x.detach().reshape(-1, 5).requires_grad_()
    want, expected = run(f, [flat, *others], g.reshape(-1, 3))
    assert names == expected and len(names) <= 2
    for a, b in zip(found, want, strict=True):
        assert same_bits(a, b.reshape(a.shape))
    (x, *others), exact = leaves(shape, *rest)
    out = f(x, *others)
    assert out.grad_fn.name() == ("AddmmBackward0" if name == "linear" else "MmBackward0")
    out.backward(g)
    (torch.nn.functional.linear if name == "linear" else torch.matmul)(*exact).backward(tg.detach())
    for t, tt in zip((x, *others), exact, strict=True):
        assert_close(t.grad, tt.grad, length=16, scale=4)


# How x is made of a leaf, which no view of two dimensions can give, and how many copies the forward makes.
ARRANGED = {
    "transposed": (lambda x: x.transpose(0, 1), (4, 2, 5), 1),
    "transposed, many rows": (lambda x: x.transpose(1, 2), (2, 5, 64), 0),
    "expanded": (lambda x: x.expand(3, 4, 5), (1, 4, 5), 1),
    "expanded, many rows": (lambda x: x.expand(3, 64, 5), (1, 64, 5), 0),
    "expanded to one row": (lambda x: x.expand(3, 4, 5), (1, 1, 5), 0),
    "sliced": (lambda x: x[:, :4], (2, 6, 5), 1),
    "every other feature": (lambda x: x[..., ::2], (2, 6, 10), 0),
}


@pytest.mark.parametrize("name", ARRANGED)
@pytest.mark.parametrize("relu", [False, True])
def test_any_layout(name, relu):
    arranged, shape, copies = ARRANGED[name]
    (x, w, b), (tx, tw, tb) = leaves(shape, (3, 5), (3,))

    def layer(x, w, b):
        y = F.linear(arranged(x), w, b)
        return tgrad.relu(y) if relu else y

    assert launched(lambda: layer(x, w, b)).count("clone") == copies
    y, ty = layer(x, w, b), torch.nn.functional.linear(arranged(tx), tw, tb)
    ty = torch.relu(ty) if relu else ty
    assert_close(y, ty, length=8, scale=4)
    (g,), (tg,) = leaves(tuple(y.shape))
    y.backward(g.detach())
    ty.backward(tg.detach())
    for t, tt in ((x, tx), (w, tw), (b, tb)):
        assert_close(t.grad, tt.grad, length=256, scale=4)


@pytest.mark.parametrize("rows", [4, 64])
@pytest.mark.parametrize("expanded", [False, True])
def test_any_layout_of_the_gradient(rows, expanded):
    """One that no view of two dimensions gives, for linear, a mask below it, and a product."""
    shape = (2, rows, 3)
    (x, w, v, c, u), exact = leaves((2, rows, 5), (4, 5), (3, 4), (3,), (3, 2))
    (g,), (tg,) = leaves((1, rows, 2) if expanded else (2, 2, rows))
    g, tg = ((t.detach().expand(2, rows, 2) if expanded else t.detach().transpose(1, 2)) for t in (g, tg))
    F.linear(tgrad.relu(F.linear(x, w)), v, c).matmul(u).backward(g)
    tx, tw, tv, tc, tu = exact
    torch.nn.functional.linear(torch.relu(tx @ tw.t()), tv, tc).matmul(tu).backward(tg)
    for t, tt in zip((x, w, v, c, u), exact, strict=True):
        assert_close(t.grad, tt.grad, length=16 * rows, scale=8)
    assert shape == tuple(F.linear(tgrad.relu(F.linear(x, w)), v, c).shape)


@pytest.mark.parametrize("name", ["linear", "matmul"])
def test_a_mask_is_folded(name):
    products = ["linear_backward"] * 2 + ["matmul"] if name == "linear" else ["matmul"] * 3
    (x, w, v, c), (tx, tw, tv, tc) = leaves((2, 7, 5), (5, 4), (4, 3), (3,))
    x.requires_grad_(False)
    turned = (lambda t: t.t().detach().requires_grad_()) if name == "linear" else (lambda t: t)
    w, v = turned(w), turned(v)
    if name == "linear":
        f = lambda x, w, v, c: F.linear(tgrad.relu(F.linear(x, w)), v, c)
    else:
        f = lambda x, w, v, c: tgrad.relu(x @ w) @ v + c
    (g,), (tg,) = leaves((2, 7, 3))
    found, names = run(f, [x, w, v, c], g.detach())
    assert "relu_backward" not in names and [n for n in names if n in ("linear_backward", "matmul")] == products
    (torch.relu(tx @ tw) @ tv + tc).backward(tg.detach())
    for t, tt in zip(found[2:], (tw, tv, tc), strict=True):
        assert_close(t, tt.grad.t() if t.ndim == 2 and name == "linear" else tt.grad, length=16, scale=4)


def test_sequential_takes_the_kernels_of_a_matrix():
    for activation in (nn.ReLU, nn.GELU):
        m = nn.Sequential(nn.Linear(5, 4), activation(), nn.Linear(4, 3))
        counts = []
        for shape in ((6, 5), (2, 3, 5)):
            x, out = tgrad.randn(*shape).requires_grad_(), []
            forward = launched(lambda x=x, out=out: out.append(m(x)))
            counts.append((forward, launched(lambda out=out: out[0].sum().backward())))
            for p in m.parameters():
                p.grad = None
        assert counts[0] == counts[1] and counts[0][0] == ["linear", "linear"]


def test_a_batch_of_one_matrix_is_a_matrix():
    """Also where einsum makes one: the gradient of what is repeated is one product over all rows."""
    products = {
        lambda x, w: x @ w[None]: 2, lambda x, w: x[None] @ w[None, None]: 2,
        lambda x, w: w.t() @ x.transpose(1, 2): 3,  # what is repeated is on the left: a batch of products, and a sum
    }  # fmt: skip
    for f, count in products.items():
        (x, w), (tx, tw) = leaves((2, 7, 5), (5, 3))
        (g,), (tg,) = leaves(tuple(f(x, w).shape))
        found, names = run(f, [x, w], g.detach())
        assert sum(n in ("matmul", "sum") for n in names) == count
        f(tx, tw).backward(tg.detach())
        for t, tt in zip(found[1:], (tx, tw), strict=True):
            assert_close(t, tt.grad, length=16, scale=4)
    (x, w), _ = leaves((2, 7, 5), (5, 3))
    out = tgrad.einsum("bld,de->ble", x, w)
    assert launched(lambda: out.sum().backward()).count("matmul") == 2


def test_second_derivatives():
    (x, w, b), (tx, tw, tb) = leaves((2, 3, 5), (3, 5), (3,))
    found, want = [], []
    for leaf, linear, grad, into in (
        ((x, w, b), F.linear, tgrad.autograd.grad, found),
        ((tx, tw, tb), torch.nn.functional.linear, torch.autograd.grad, want),
    ):
        y = linear(leaf[0].transpose(0, 1), leaf[1], leaf[2]) @ leaf[1]
        (gx, gw) = grad((y * y * y).sum(), leaf[:2], create_graph=True)
        into.extend(grad((gx * gx).sum() + gw.sum(), leaf))
    for ours, exact in zip(found, want, strict=True):
        assert_close(ours, exact, length=512, scale=1e4)


def test_integers():
    x, w, b = (random("rows", s).integers(-9, 9, s) for s in ((2, 3, 5), (4, 5), (4,)))
    ours, theirs = [tgrad.tensor(v) for v in (x, w, b)], [torch.tensor(v) for v in (x, w, b)]
    assert F.linear(*ours).tolist() == torch.nn.functional.linear(*theirs).tolist()
    assert (ours[0] @ ours[1].t()).tolist() == (theirs[0] @ theirs[1].t()).tolist()
    turned, other = ours[0].transpose(0, 1), theirs[0].transpose(0, 1)
    assert (turned @ ours[1].t()).tolist() == (other @ theirs[1].t()).tolist()


def test_shapes_in_errors_are_of_rows():
    with pytest.raises(RuntimeError, match=r"mat1 and mat2 shapes cannot be multiplied \(6x5 and 4x3\)"):
        tgrad.ones(2, 3, 5) @ tgrad.ones(4, 3)
    with pytest.raises(RuntimeError, match=r"\(1x5 and 4x3\)"):
        tgrad.ones(5) @ tgrad.ones(4, 3)
