"""Division and bits of integers, operators, in-place forms, tolerances, and what torch refuses."""

import numpy as np
import pytest
import torch

import tgrad
from tests.compare import INTEGERS, TORCH, assert_same, values

SIGNED = [tgrad.int32, tgrad.int64]
A = [7, -7, 7, -7, 0, 6, -6, 5, 2**30, 1]
B = [3, 3, -3, -3, 5, 2, -2, 7, -1, 2**30]


def both(data, dtype):
    return tgrad.tensor(data, dtype=dtype), torch.tensor(data, dtype=TORCH[dtype])


@pytest.mark.anywhere
@pytest.mark.parametrize("dtype", [*SIGNED, tgrad.uint8], ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["floor_divide", "remainder", "fmod", "div-floor", "div-trunc"])
def test_integer_division(name, dtype):
    """Signs as Python's or C's, exactly, and numbers on either side."""
    name, _, mode = name.partition("-")
    settings = {"rounding_mode": mode} if mode else {}
    a, b = (A, B) if dtype is not tgrad.uint8 else ([7, 200, 255, 3], [3, 7, 255, 8])
    (x, u), (y, v) = both(a, dtype), both(b, dtype)
    assert_same(getattr(tgrad, name)(x, y, **settings), getattr(torch, name)(u, v, **settings))
    for number in (3, -3, 2.5) if dtype is not tgrad.uint8 else (3, 2.5):
        assert_same(getattr(tgrad, name)(x, number, **settings), getattr(torch, name)(u, number, **settings))


@pytest.mark.anywhere
def test_division_operators():
    (x, u), (y, v) = both(A, tgrad.int64), both(B, tgrad.int64)
    assert_same(x // y, u // v)
    assert_same(x % y, u % v)
    assert_same(100 // y, 100 // v)
    assert_same(100 % y, 100 % v)
    quotient, rest = divmod(x, 3)
    assert_same(quotient * 3 + rest, u)
    floats = [5.5, -5.5, 0.3, -0.0, 7.0]
    (x, u) = both(floats, tgrad.float64)
    for number in (2.0, -2.0, 0.1, 0.0, float("inf")):
        assert_same(x // number, u // number)
        assert_same(x % number, u % number)
    x //= 2
    u //= 2
    assert_same(x, u)
    x %= 2
    u %= 2
    assert_same(x, u)


@pytest.mark.parametrize("name", ["floor_divide", "remainder", "fmod"])
def test_integers_are_not_divided_by_zero(name):
    x = tgrad.tensor([1, 2])
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        getattr(tgrad, name)(x, 0)
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        getattr(tgrad, name)(x, tgrad.tensor([1, 0]))
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        getattr(x, name + "_")(0)
    assert x.tolist() == [1, 2]


@pytest.mark.anywhere
@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda d: d.name)
def test_bits(dtype):
    data = ([0, 1, 5, 100, 255], [3, 1, 200, 7, 255]) if dtype is tgrad.uint8 else ([0, -1, 5, 100], [3, 1, -200, 7])
    if dtype is tgrad.bool:
        data = ([True, False, True, False], [True, True, False, False])
    (x, u), (y, v) = both(data[0], dtype), both(data[1], dtype)
    for f in (lambda a, b: a & b, lambda a, b: a | b, lambda a, b: a ^ b):
        assert_same(f(x, y), f(u, v))
        assert_same(f(x, True), f(u, True))
        assert_same(f(1, x) if dtype is not tgrad.bool else f(x, x), f(1, u) if dtype is not tgrad.bool else f(u, u))
    assert_same(~x, ~u)
    x &= y
    u &= v
    assert_same(x, u)
    if dtype is tgrad.bool:
        with pytest.raises(RuntimeError, match="bool"):
            x << x
        return
    for shift in (0, 1, 7, 8, 31, 63):
        assert_same(x << shift, u << shift)
        assert_same(x >> shift, u >> shift)


def test_bits_of_floats_are_refused():
    with pytest.raises(RuntimeError, match="bitwise_and: dtype float32 is not supported"):
        tgrad.ones(3) & 1


IN_PLACE = [
    ("exp2",), ("floor",), ("round",), ("frac",), ("sign",), ("asin",), ("log1p",), ("logit", 0.1), ("remainder", 0.3),
    ("fmod", -0.3), ("floor_divide", 0.25), ("atan2", 2.0), ("copysign", -1.0), ("nan_to_num",), ("lt", 0.4),
    ("clamp_min", 0.5), ("clamp_max", 0.5),
]  # fmt: skip


@pytest.mark.parametrize("name, args", [(n, a) for n, *a in IN_PLACE], ids=[n for n, *_ in IN_PLACE])
def test_in_place(name, args):
    """The values of the function, in the tensor; gradients as without."""
    x = tgrad.tensor([0.2, 0.45, 0.7], dtype=tgrad.float64, requires_grad=True)
    u = torch.tensor([0.2, 0.45, 0.7], dtype=torch.float64)
    if name == "atan2":
        args, theirs = [tgrad.tensor(2.0, dtype=tgrad.float64)], [torch.tensor(2.0, dtype=torch.float64)]
    else:
        theirs = args
    y = x.clone()
    assert getattr(y, name + "_")(*args) is y
    np.testing.assert_allclose(values(y), getattr(u.clone(), name + "_")(*theirs).numpy(), rtol=1e-14)
    if name == "lt":
        return
    out = getattr(tgrad, name)(x, *args)
    if out.requires_grad:
        assert tgrad.autograd.grad(y.sum(), x)[0].tolist() == tgrad.autograd.grad(out.sum(), x)[0].tolist()


def test_close_and_equal():
    x = tgrad.tensor([1.0, 2.0, float("nan"), float("inf")])
    assert not tgrad.allclose(x, x) and tgrad.allclose(x, x, equal_nan=True)
    assert tgrad.allclose(x[:2], x[:2] + 1e-6) and not tgrad.allclose(x[:2], x[:2] + 1e-3)
    assert tgrad.equal(x[:2], x[:2].clone()) and not tgrad.equal(x, x) and not x[:2].equal(x[:1])
    with pytest.raises(RuntimeError, match="tolerances"):
        tgrad.isclose(x, x, rtol=-1)
    with pytest.raises(RuntimeError, match="dtype"):
        tgrad.isclose(x, x.double())


@pytest.mark.parametrize("dtype", [tgrad.float16, tgrad.bfloat16, tgrad.float32, tgrad.float64], ids=lambda d: d.name)
def test_nan_to_num(dtype):
    x, u = both([float("nan"), float("inf"), -float("inf"), 1.5], dtype)
    assert_same(tgrad.nan_to_num(x), torch.nan_to_num(u))
    assert_same(x.nan_to_num_(1.0), u.nan_to_num_(1.0))


def test_type_promotion_of_new_functions():
    """Results have torch's dtypes, for tensors, 0-dim tensors and numbers."""
    kinds = [tgrad.bool, tgrad.uint8, tgrad.int64, tgrad.float16, tgrad.float32, tgrad.float64]
    for name in ("atan2", "fmod", "remainder", "floor_divide", "copysign", "xlogy", "float_power", "div", "rsub"):
        for left in kinds:
            for right in (*kinds, 3, 2.5):
                x, u = both([1, 1], left)
                y, v = both(1, right) if isinstance(right, tgrad.dtype) else (right, right)
                if name == "atan2" and not isinstance(right, tgrad.dtype):
                    continue
                try:
                    want = getattr(torch, name)(u, v).dtype
                except RuntimeError:
                    with pytest.raises(RuntimeError):
                        getattr(tgrad, name)(x, y)
                    continue
                got = getattr(tgrad, name)(x, y).dtype
                assert TORCH[got] == want, f"{name}({left!r}, {right!r}) is {got!r}, torch's is {want}"


REFUSED = [
    (lambda x: tgrad.div(x, 2, rounding_mode="up"), RuntimeError, "rounding_mode"),
    (lambda x: tgrad.addcdiv(x.long(), x.long(), x.long()), RuntimeError, "integer division"),
    (lambda x: tgrad.lerp(x.long(), x.long(), 0.5), RuntimeError, "int64"),
    (lambda x: tgrad.heaviside(x, x.double()), RuntimeError, "different dtypes"),
    (lambda x: tgrad.frac(x.long()), RuntimeError, "frac"),
    (lambda x: tgrad.floor(x.bool()), RuntimeError, "floor"),
    (lambda x: tgrad.prelu(x, tgrad.ones(5)), RuntimeError, "parameter numbers = 5"),
    (lambda x: tgrad.activations.glu(x[:3]), RuntimeError, "Halving dimension must be even, but dimension 0 is size 3"),
    (lambda x: tgrad.activations.hardtanh(x, 2.0, 1.0), ValueError, "min_val"),
    (lambda x: tgrad.exp2([1.0]), TypeError, "must be Tensor, not list"),
]


@pytest.mark.parametrize("call, kind, words", REFUSED, ids=[words for _, _, words in REFUSED])
def test_refusals(call, kind, words):
    with pytest.raises(kind, match=words):
        call(tgrad.ones(4))


def test_prelu_and_glu_of_channels():
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    t = torch.tensor(x)
    for weight in (np.array([0.25]), np.arange(4.0)):
        got = tgrad.prelu(tgrad.tensor(x), tgrad.tensor(weight, dtype=tgrad.float64))
        np.testing.assert_allclose(values(got), torch.prelu(t, torch.tensor(weight)).numpy())
    for dim in (1, -2):
        got = tgrad.activations.glu(tgrad.tensor(x), dim)
        np.testing.assert_allclose(values(got), torch.nn.functional.glu(t, dim).numpy(), rtol=1e-14)
