"""Every op against torch: forward and backward, all dtypes, strides, type promotion, special values."""

import gc
import importlib
import pkgutil
import warnings

import numpy as np
import pytest
import torch

import tgrad
from tests.compare import FLOATS, INTEGERS, TORCH, assert_close, assert_same, random, same_bits, values
from tests.samples import DIFFERENTIABLE, ROW_SAMPLES, SAMPLES
from tests.sampling import COMMON
from tgrad.device import compute
from tgrad.fusion.fused import Fused
from tgrad.op import Composed, Op
from tgrad.ops import pointwise as p
from tgrad.ops.reduced import Reduced
from tgrad.ops.softmax import log_softmax, softmax
from tgrad.tensor import Tensor

anywhere = pytest.mark.anywhere


def pairs(samples, only=None, on_gpu=COMMON):
    """(sample, case) parameters; those `on_gpu` run there too, where each layout costs a compilation."""
    return [
        pytest.param(s, c, id=f"{s.id}-{c.id}", marks=anywhere if c.id in on_gpu else ())
        for s in samples for c in s.cases if only is None or c.id in only
    ]  # fmt: skip


def each(samples):
    return [pytest.param(s, id=s.id) for s in samples]


# --- completeness ----------------------------------------------------------------------------------------------------
def all_ops() -> dict[str, Op]:
    """Every op that is a value of one of tgrad's modules, under its name there.

    Bare `Op`s are left out: they name what is recorded of a copy between devices or into a tensor, and compute nothing.
    """
    found = {}
    for info in pkgutil.walk_packages(tgrad.__path__, "tgrad."):
        if info.name.split(".")[1] not in ("kernels", "profiler"):
            for name, value in vars(importlib.import_module(info.name)).items():
                if isinstance(value, Op) and type(value) is not Op:
                    found.setdefault(id(value), (f"{info.name}.{name}", value))
    return dict(found.values())


def test_every_op_has_a_sample():
    sampled = {s.op for s in SAMPLES}
    assert not [name for name, op in all_ops().items() if op not in sampled], "ops without a row in tests/samples.py"
    assert not [row.name for row in p.TABLE.values() if row not in sampled]


def test_every_derivative_has_a_differentiable_sample():
    covered = {(s.op, name) for s in SAMPLES for name, spec in zip(s.op.inputs, s.inputs, strict=False) if spec.grad}
    wanted = {(op, name) for op in all_ops().values() for name in op.formulas}
    numbers = {(p.leaky_relu, "slope"), (p.elu, "alpha"), (p.softplus, "beta"), (p.softplus, "threshold")}
    covered |= {(s.op, s.op.inputs[1]) for s in SAMPLES if s.label == "pow-exponent"}
    missing = [f"{op.name}: {name}" for op, name in wanted - covered - numbers]
    assert not missing


def test_ops_are_found_wherever_they_are():
    """No op of the library hides from `all_ops` in a closure or a class."""
    known = set(map(id, all_ops().values()))
    functions = {getattr(o, "fn", None) for o in all_ops().values()}
    hidden = [
        o for o in gc.get_objects()
        if issubclass(type(o), Op) and type(o) not in (Op, Composed) and id(o) not in known
        and o.name != "to_copy" and getattr(o, "fn", o) not in functions  # rows that a fused function copies
        and not isinstance(o, (Fused, Reduced))  # one for each function
        and not o.name.startswith("linear_")  # one for each activation that is folded: tests/test_folded_activation.py
    ]  # fmt: skip
    assert not hidden


# --- forward and backward --------------------------------------------------------------------------------------------
def check(sample, case, dtype, backward=True):
    """Result, dtype, strides and gradients of one case, for random cotangents."""
    ours, plain, wide = sample.build(case, dtype, requires_grad=backward and sample.differentiable)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, of shapes that broadcast
        like = sample.ref(*[t.detach() for t in plain], **case.settings)
        want = sample.ref(*wide, **case.settings)
    got = sample.ours(*ours, **case.settings)
    assert TORCH[got.dtype] == like.dtype
    if got.numel() and sample.strides and isinstance(sample.op, p.Pointwise):
        assert got.stride() == like.stride(), f"strides {got.stride()}, torch's are {like.stride()}"
    length = case.length if not isinstance(sample.op, p.Pointwise) else 1
    if not like.dtype.is_floating_point:
        assert_same(got, like)
        return
    assert_close(got, want.detach(), length=length, factor=sample.factor, scale=sample.scale)
    leaves = [t for t in ours if t.requires_grad]
    if not leaves:
        return
    assert got.requires_grad
    g = torch.tensor(random("cotangent", sample.id, case.id).normal(size=want.shape)).to(TORCH[got.dtype])
    cotangent = tgrad.tensor(g.double().numpy(), dtype=got.dtype)
    grads = tgrad.autograd.grad(got, leaves, cotangent)
    wanted = torch.autograd.grad(want, [t for t in wide if t.requires_grad], g.double().to(want.dtype))
    for i, (leaf, a, b) in enumerate(zip(leaves, grads, wanted, strict=True)):
        assert a.dtype is leaf.dtype and not a.requires_grad
        magnified = sample.back_factor * (2 if dtype in (tgrad.float16,
            tgrad.bfloat16) else 1)  # `out` is rounded, then g
        assert_close(a, b, length=case.length, factor=magnified, scale=sample.back_scale, what=f"gradient {i}")


@pytest.mark.parametrize("sample, case", pairs(SAMPLES))
def test_float64(sample, case):
    check(sample, case, tgrad.float64)


@pytest.mark.parametrize("sample, case", pairs(SAMPLES, COMMON, ("odd", "all", "batch")))
def test_bfloat16(sample, case):
    check(sample, case, tgrad.bfloat16)


@pytest.mark.parametrize("sample, case", pairs(SAMPLES, COMMON, ("transposed", "broadcast", "batch")))
def test_float32(sample, case):
    check(sample, case, tgrad.float32)


@pytest.mark.parametrize("sample, case", pairs(SAMPLES, COMMON, ()))
def test_float16(sample, case):
    check(sample, case, tgrad.float16)


def integer_cases():
    """Common cases of each row in each dtype; on a GPU one case, in int64."""
    return [
        pytest.param(s, c, d, id=f"{d.name}-{s.id}-{c.id}",
                     marks=anywhere if d is tgrad.int64 and c.id in ("odd", "all", "batch") else ())
        for d in INTEGERS for s in SAMPLES if s.integers for c in s.cases if c.id in COMMON
    ]  # fmt: skip


@pytest.mark.parametrize("sample, case, dtype", integer_cases())
def test_integers(sample, case, dtype):
    """Where torch is defined the result is exactly its own; where it is not, the error is a RuntimeError here too."""
    ours, plain, _ = sample.build(case, dtype)
    try:
        want = sample.ref(*plain, **case.settings)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        if compute.type == "cuda" and "ZeroDivisionError" in str(error):
            return  # the CPU's check: on a GPU it would wait for the divisors
        with pytest.raises((RuntimeError, TypeError)):
            sample.ours(*ours, **case.settings)
        return
    got = sample.ours(*ours, **case.settings)
    if want.dtype.is_floating_point and sample.op not in (p.div, p.reciprocal):
        assert TORCH[got.dtype] == want.dtype
        assert_close(got, sample.ref(*[t.double() for t in plain], **case.settings), factor=max(1, sample.factor),
            scale=sample.scale)
    else:
        assert_same(got, want)
        assert got.numel() == 0 or got.stride() == want.stride()


@pytest.mark.parametrize("sample, case",
    pairs([s for s in DIFFERENTIABLE if s.bits], ("odd", "transposed", "sliced"), ("odd",)))
def test_recorded_backward_gives_the_bits_of_the_fused_one(sample, case):
    """One kernel for all gradients of a node, and the same formulas recorded op by op: equal in float64."""
    ours, _, _ = sample.build(case, tgrad.float64)
    got = sample.ours(*ours, **case.settings)
    leaves = [t for t in ours if t.requires_grad]
    g = tgrad.tensor(random("bits", sample.id).normal(size=tuple(got.shape)), dtype=tgrad.float64)
    fused = tgrad.autograd.grad(got, leaves, g, retain_graph=True)
    recorded = tgrad.autograd.grad(got, leaves, g, create_graph=True)
    assert all(same_bits(a, b) for a, b in zip(fused, recorded, strict=True))


@pytest.mark.parametrize("sample", each(DIFFERENTIABLE))
def test_only_what_is_asked_for_gets_a_gradient(sample):
    """With one input at a time requiring a gradient, it is the one it has among all."""
    case = next((c for c in sample.cases if len(c.shapes[0]) == 2), sample.cases[0])
    ours, _, _ = sample.build(case, tgrad.float64)
    leaves = [t for t in ours if t.requires_grad]
    whole = sample.ours(*ours, **case.settings)
    g = tgrad.tensor(random("one", sample.id).normal(size=tuple(whole.shape)), dtype=tgrad.float64)
    together = tgrad.autograd.grad(whole, leaves, g)
    for leaf, want in zip(leaves, together, strict=True):
        alone = [t if t is leaf else t.detach() for t in ours]
        (got,) = tgrad.autograd.grad(sample.ours(*alone, **case.settings), leaf, g)
        assert same_bits(got, want)


def test_an_operand_used_twice_gets_both_gradients():
    x = tgrad.tensor([1.0, 2.0, 3.0], dtype=tgrad.float64, requires_grad=True)
    (g,) = tgrad.autograd.grad(x * x, x, tgrad.tensor([1.0, 10.0, 100.0], dtype=tgrad.float64))
    assert g.tolist() == [2.0, 40.0, 600.0]


# --- type promotion --------------------------------------------------------------------------------------------------
ALL = FLOATS + INTEGERS
OPERANDS = ["tensor", "0-dim", "bool", "int", "float"]
PROMOTING = ["add", "mul", "div", "maximum", "eq", "lt", "where"]


def operands(kind, dtype):
    """(tgrad's, torch's) operand of a kind."""
    if kind in ("bool", "int", "float"):
        value = {"bool": True, "int": 2, "float": 0.3}[kind]
        return value, value
    data = np.array([1, 0, 3]) if kind == "tensor" else np.array(2)
    return tgrad.tensor(data, dtype=dtype), torch.tensor(data).to(TORCH[dtype])


def apply(module, name, a, b):
    if name == "where":
        condition = module.tensor([True, False, True])
        return module.where(condition, a, b)
    return getattr(module, name)(a, b)


@pytest.mark.parametrize("name", PROMOTING)
@pytest.mark.parametrize("left", ALL, ids=lambda d: d.name)
def test_type_promotion(name, left):
    """The result's dtype is torch's for each pair of dtypes, as tensors, 0-dim tensors and numbers; the values too."""
    for first in ("tensor", "0-dim"):
        for second in OPERANDS:
            if name == "maximum" and second in ("bool", "int", "float"):
                continue  # torch.maximum takes tensors only
            for right in ALL if second in ("tensor", "0-dim") else (left,):
                (a, x), (b, y) = operands(first, left), operands(second, right)
                got, want = apply(tgrad, name, a, b), apply(torch, name, x, y)
                what = f"{name}({first} {left!r}, {second} {right!r})"
                assert TORCH[got.dtype] == want.dtype, f"{what} is {got.dtype!r}, torch's is {want.dtype}"
                if name == "div" or "bfloat16" in (left.name, right.name) or "float16" in (left.name, right.name):
                    np.testing.assert_allclose(values(got), want.double().numpy(),
                        rtol=2 * torch.finfo(want.dtype).eps if want.dtype.is_floating_point else 0)
                else:
                    assert_same(got, want, what)


@pytest.mark.anywhere
def test_numbers_keep_their_precision():
    """A Python float is a double, an int 64 bits: neither passes through float32."""
    third = 1 / 3
    x = tgrad.tensor([1.0, 2.0], dtype=tgrad.float64)
    assert (x * third).tolist() == [third, 2 * third]
    big = 2**53 + 1
    assert (tgrad.tensor([0, 1]) + big).tolist() == [big, big + 1]
    assert tgrad.tensor([2**53 + 1, 5]).sum().item() == 2**53 + 6
    assert (tgrad.tensor([2**31 - 1], dtype=tgrad.int32) + 1).tolist() == [-(2**31)]
    assert tgrad.where(tgrad.tensor([True]), third, 0.0).dtype is tgrad.float32


@pytest.mark.parametrize("default", [tgrad.float32, tgrad.float64], ids=lambda d: d.name)
def test_default_dtype(default):
    tgrad.set_default_dtype(default)
    try:
        i = tgrad.tensor([1, 2])
        assert tgrad.tensor(1.5).dtype is default and (i / 2).dtype is default and i.exp().dtype is default
        assert (i * 1.5).dtype is default and tgrad.zeros(2).dtype is default
    finally:
        tgrad.set_default_dtype(tgrad.float32)


# --- casts -----------------------------------------------------------------------------------------------------------
@pytest.mark.anywhere
@pytest.mark.parametrize("source", ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("target", ALL, ids=lambda d: d.name)
def test_cast(source, target):
    data = np.array([0.0, 1.0, 2.5, 3.75, 100.7, 0.3, 7.0, 64.0, -0.0])
    if source not in (tgrad.bool, tgrad.uint8) and target is not tgrad.uint8:
        data = np.concatenate([data, -data])
    x = torch.tensor(data).to(TORCH[source])
    y = tgrad.tensor((x.double() if x.dtype.is_floating_point else x).numpy(), dtype=source)
    assert_same(y.to(target), x.to(TORCH[target]))


# --- special values --------------------------------------------------------------------------------------------------
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 1e-310, -1e-40, 1e-45, 0.5, 3.0, 20.0, -20.0, 88.0, 89.0,
    -87.0, -104.0, 710.0,
           -746.0, 1e4, -1e4, 3e38, -3e38]  # fmt: skip
UNARY_ROWS, BINARY_ROWS = ([s for s in ROW_SAMPLES if [i.dtype for i in s.inputs] == [None] * n] for n in (1, 2))


def compare_special(sample, arrays, dtype, scale):
    ours = [tgrad.tensor(a, dtype=dtype) for a in arrays]
    plain = [torch.tensor(a).to(TORCH[dtype]) for a in arrays]
    got, want = sample.ours(*ours), sample.ref(*[t.double() for t in plain])
    if not want.dtype.is_floating_point:
        return assert_same(got, want)
    return assert_close(got, want, factor=2 * sample.factor, scale=max(scale, sample.scale))


def differentiable_at(sample, arrays, dtype):
    ours = [tgrad.tensor(a, dtype=dtype, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(a).to(TORCH[dtype]).requires_grad_() for a in arrays]
    return ours, theirs, sample.ours(*ours), sample.ref(*theirs)


@pytest.mark.anywhere
@pytest.mark.parametrize("dtype", [tgrad.float32, tgrad.float64], ids=lambda d: d.name)
@pytest.mark.parametrize("sample", each(UNARY_ROWS))
def test_special_values_of_one_variable(sample, dtype):
    """nan, infinities, zeros of both signs, subnormal and great numbers, as torch has them."""
    data = np.array(SPECIAL)
    if sample.label.startswith("to-int"):
        data = data[np.abs(data) < 1e9]  # the rest is undefined
    if sample.op in (p.sin, p.cos, p.erf, p.sigmoid, p.softplus, p.gelu_tanh):
        data = data[~((np.abs(data) < 1e-37) & (data != 0))]  # subnormal: torch's vectorised forms may flush them
    if sample.label == "round-decimals":
        data = data[~(np.abs(data) > 1e30)]  # times 100 is infinite
    compare_special(sample, [data], dtype, 1e-300 if dtype is tgrad.float64 else 1e-37)


@pytest.mark.anywhere
@pytest.mark.parametrize("sample", each(BINARY_ROWS))
def test_special_values_of_two_variables(sample):
    data = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 1e-310, 1e300])
    if sample.op.name in ("fmod", "remainder"):
        data = data[data != 1e-310]  # torch's vectorised fmod by a subnormal number is nan
    a, b = (x.reshape(-1).copy() for x in np.meshgrid(data, data))
    compare_special(sample, [a, b], tgrad.float64, 1e-300)


@pytest.mark.anywhere
@pytest.mark.parametrize("sample", each([s for s in UNARY_ROWS if s.differentiable and not s.label.startswith("to-")]))
def test_gradients_at_special_values(sample):
    data = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 5.0, -5.0, 30.0, -30.0, 500.0, -500.0])
    ours, theirs, got, want = differentiable_at(sample, [data], tgrad.float64)
    g = np.arange(1.0, len(data) + 1)
    (a,) = tgrad.autograd.grad(got, ours, tgrad.tensor(g))
    (b,) = torch.autograd.grad(want, theirs, torch.tensor(g))
    if sample.op in (p.gelu, p.gelu_tanh, p.normal_density):  # inf * 0, in an order of its own
        finite = np.isfinite(data)
        a, b = tgrad.tensor(values(a)[finite]), b[torch.tensor(finite)]
    assert_close(a, b, factor=4, scale=20 if sample.scale else 1)


@pytest.mark.anywhere
@pytest.mark.parametrize("sample", each([s for s in BINARY_ROWS if s.differentiable]))
def test_gradients_of_two_variables_at_special_values(sample):
    data = np.array([0.0, 1.0, -1.0, 2.0, np.inf, -np.inf, np.nan])
    a, b = (x.reshape(-1).copy() for x in np.meshgrid(data, data))
    ours, theirs, got, want = differentiable_at(sample, [a, b], tgrad.float64)
    g = np.arange(1.0, len(a) + 1)
    for mine, other in zip(tgrad.autograd.grad(got, ours, tgrad.tensor(g)),
        torch.autograd.grad(want, theirs, torch.tensor(g)), strict=True):
        assert_close(mine, other, factor=4, scale=1)


@pytest.mark.anywhere
def test_the_sign_of_zero():
    zeros = tgrad.tensor([0.0, -0.0])
    for row in (p.neg, p.abs, p.sin, p.tanh, p.erf, p.sqrt, p.silu, p.gelu, p.clone, p.square):
        want = getattr(torch, row.name, None) or {"silu": torch.nn.functional.silu,
            "gelu": torch.nn.functional.gelu}[row.name]
        want = np.signbit(want(torch.tensor([0.0, -0.0])).numpy())
        assert np.signbit(values(row(zeros))).tolist() == want.tolist(), row.name


@pytest.mark.anywhere
@pytest.mark.parametrize("name", ["amax", "amin", "sum", "mean"])
def test_special_values_in_reductions(name):
    for data in ([1.0, np.nan, 3.0], [np.inf, 1.0, -np.inf], [-np.inf, -np.inf], [np.inf, 2.0], [-np.inf], [0.0, -0.0]):
        for dtype in (tgrad.float32, tgrad.float64):
            got = getattr(tgrad.tensor(data, dtype=dtype), name)()
            assert_same(got, getattr(torch.tensor(data).to(TORCH[dtype]), name)())


@pytest.mark.anywhere
@pytest.mark.parametrize("log", [False, True], ids=["softmax", "log_softmax"])
def test_softmax_of_great_numbers(log):
    rows = [[1e4, 0.0, -1e4], [np.inf, 0.0, 1.0], [-np.inf, 0.0, 1.0], [-np.inf] * 3, [np.nan, 0.0, 1.0],
        [3e38, 3e38, -3e38]]
    x = torch.tensor(rows)
    want = torch.log_softmax(x.double(), 1) if log else torch.softmax(x.double(), 1)
    y = tgrad.tensor(rows)
    assert_close(log_softmax(y, 1) if log else softmax(y, 1), want, factor=4, scale=1e-37)


# --- accuracy --------------------------------------------------------------------------------------------------------
# The greatest error in units of the last place, float32; for the CPU's functions and for CUDA's.
NEAR_ZERO = np.concatenate([np.logspace(-36, 1, 400), -np.logspace(-36, 1, 400)])
ACCURATE = [
    ("tanh", 3, NEAR_ZERO), ("erf", 3, NEAR_ZERO), ("sin", 3, NEAR_ZERO), ("elu", 2, NEAR_ZERO), ("silu", 4, NEAR_ZERO),
    ("sigmoid", 4, NEAR_ZERO), ("exp", 2, np.linspace(-87, 88, 801)), ("log", 2, np.abs(NEAR_ZERO)),
    ("log", 2, np.linspace(0.9, 1.1, 801)),
    ("softplus", 4, np.linspace(-80, 25, 801)), ("sqrt", 1, np.abs(NEAR_ZERO)), ("rsqrt", 2, np.abs(NEAR_ZERO)),
    ("reciprocal", 1, NEAR_ZERO),
    ("gelu", 4, np.concatenate([NEAR_ZERO[np.abs(NEAR_ZERO) < 1e-2], np.linspace(0, 9, 300)])),
    ("gelu_tanh", 5, np.concatenate([NEAR_ZERO[np.abs(NEAR_ZERO) < 1e-2], np.linspace(0, 9, 300)])),
    ("sin", 3, np.linspace(-1e4, 1e4, 801)), ("cos", 3, np.linspace(-1e4, 1e4, 801)),
]  # fmt: skip
BY_ID = {s.id: s for s in ROW_SAMPLES}


@pytest.mark.anywhere
@pytest.mark.parametrize("name, ulps, at", [pytest.param(*row, id=f"{row[0]}-{i}") for i, row in enumerate(ACCURATE)])
def test_accuracy_in_ulps(name, ulps, at):
    x = at.astype(np.float32)
    sample = BY_ID[name]
    want = sample.ref(torch.tensor(x.astype(np.float64))).numpy()
    got = values(sample.ours(tgrad.tensor(x))).astype(np.float64)
    error = np.abs(got - want) / np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)
    assert error.max() <= ulps, f"{error.max():.1f} ulps at {x[error.argmax()]!r}"


@pytest.mark.anywhere
def test_float32_products_are_as_accurate_as_float32():
    """Not tf32: its 10 bits of mantissa would be off by 1e-3."""
    rng = random("product")
    a, b = (rng.normal(size=(64, 64)).astype(np.float32) for _ in range(2))
    want = a.astype(np.float64) @ b.astype(np.float64)
    assert np.abs(values(tgrad.tensor(a) @ tgrad.tensor(b)) - want).max() < 64 * 2**-23


@pytest.mark.anywhere
def test_half_sums_accumulate_in_float32():
    assert tgrad.ones(5000, dtype=tgrad.float16).sum().item() == 5000
    assert tgrad.ones(3, 1000, dtype=tgrad.bfloat16).sum(1).tolist() == [1000.0] * 3
    assert tgrad.full((70000,), 1.0, dtype=tgrad.float16).mean().item() == 1.0


def test_tensors_do_not_change_what_they_are_computed_from():
    x = tgrad.tensor([1.0, 2.0], requires_grad=True)
    before = x.tolist()
    for sample in UNARY_ROWS:
        if sample.differentiable:
            sample.ours(x)
    assert x.tolist() == before and x._version == 0 and isinstance(x, Tensor)
