"""Layers, losses and initialisation against torch's, with the same weights."""

import math
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch

import tgrad as T
import tgrad.nn.functional as F
from tests.compare import NEWEST, TORCH, random
from tests.errors import message
from tgrad import nn

pytestmark = pytest.mark.anywhere

TOLERANCE = {T.float64: {"rtol": 1e-11, "atol": 1e-12}, T.float32: {"rtol": 2e-5, "atol": 2e-6}}


def host(t):
    return t.detach().cpu().numpy()


def same(ours, theirs, dtype=T.float64):
    assert tuple(ours.shape) == tuple(theirs.shape) and repr(ours.dtype) == repr(theirs.dtype)
    np.testing.assert_allclose(host(ours), host(theirs), **TOLERANCE[dtype])


def twins(build, dtype):
    """The module in tgrad and in torch, with torch's weights in both."""
    theirs = build(torch.nn).to(TORCH[dtype])
    for p in theirs.parameters():
        p.data = torch.tensor(random("weights", p.shape).standard_normal(tuple(p.shape)), dtype=p.dtype)
    ours = build(nn).to(dtype)
    state = OrderedDict((k, T.tensor(host(v).copy())) for k, v in theirs.state_dict().items())
    assert str(ours.load_state_dict(state)) == "<All keys matched successfully>"
    return ours, theirs


def run(ours, theirs, shape, dtype, times=1):
    """Forward and backward in both, by a random cotangent; compares results, gradients and buffers."""
    for k in range(times):
        values = random(shape, k).standard_normal(shape)
        x = T.tensor(values, dtype=dtype, requires_grad=True)
        y = torch.tensor(values, dtype=TORCH[dtype], requires_grad=True)
        a, b = ours(x), theirs(y)
        same(a, b, dtype)
        assert a.requires_grad and type(a) is T.Tensor
        g = random("g", shape, k).standard_normal(tuple(b.shape))
        a.backward(T.tensor(g, dtype=dtype))
        b.backward(torch.tensor(g, dtype=TORCH[dtype]))
        same(x.grad, y.grad, dtype)
    for (name, p), (expected, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == expected
        same(p.grad, q.grad, dtype)
    for (name, p), (expected, q) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert name == expected
        same(p, q, dtype)


LAYERS = [
    (lambda n: n.Linear(4, 3), [(5, 4), (4,), (2, 3, 4), (1, 4)]),
    (lambda n: n.Linear(4, 3, bias=False), [(5, 4)]),
    (lambda n: n.Linear(1, 1), [(2, 1)]),
    (lambda n: n.Identity(3, whatever=True), [(2, 3)]),
    (lambda n: n.ReLU(), [(3, 5), ()]),
    (lambda n: n.LeakyReLU(), [(3, 5)]),
    (lambda n: n.LeakyReLU(0.3), [(3, 5)]),
    (lambda n: n.GELU(), [(3, 5)]),
    (lambda n: n.GELU("tanh"), [(3, 5)]),
    (lambda n: n.SiLU(), [(3, 5)]),
    (lambda n: n.Tanh(), [(3, 5)]),
    (lambda n: n.Sigmoid(), [(3, 5)]),
    (lambda n: n.Softplus(), [(3, 5)]),
    (lambda n: n.Softplus(beta=2, threshold=1.5), [(3, 5)]),
    (lambda n: n.ELU(), [(3, 5)]),
    (lambda n: n.ELU(alpha=0.7), [(3, 5)]),
    (lambda n: n.Softmax(dim=1), [(3, 5)]),
    (lambda n: n.Softmax(dim=0), [(3, 5), (4,)]),
    (lambda n: n.LogSoftmax(dim=-1), [(3, 5), (2, 3, 4)]),
    (lambda n: n.Flatten(), [(3, 5), (2, 3, 4)]),
    (lambda n: n.Flatten(0, 1), [(2, 3, 4)]),
    (lambda n: n.Dropout(0.0), [(3, 5)]),
    (lambda n: n.Sequential(), [(3, 5)]),
    (lambda n: n.Sequential(n.Linear(6, 5), n.ReLU(), n.Linear(5, 2)), [(7, 6)]),
    (lambda n: n.Sequential(n.Linear(6, 5), n.ReLU(inplace=True), n.Linear(5, 2)), [(7, 6)]),
    (
        lambda n: n.Sequential(
            n.Sequential(n.Linear(6, 5), n.BatchNorm1d(5), n.GELU()), n.Sequential(n.Linear(5, 2), n.LogSoftmax(1))
        ),
        [(7, 6)],
    ),
    (lambda n: n.BatchNorm1d(4), [(6, 4), (3, 4, 5)]),
    (lambda n: n.BatchNorm1d(4, eps=0.1, momentum=0.3), [(6, 4)]),
    (lambda n: n.BatchNorm1d(4, affine=False), [(6, 4)]),
    *([(lambda n: n.BatchNorm1d(4, bias=False), [(6, 4)])] if NEWEST else []),
    (lambda n: n.BatchNorm1d(4, momentum=None), [(6, 4)]),
    (lambda n: n.BatchNorm1d(4, track_running_stats=False), [(6, 4)]),
]
CASES = [pytest.param(build, shape, id=f"{i}-{shape}") for i, (build, shapes) in enumerate(LAYERS) for shape in shapes]


@pytest.mark.parametrize("dtype", [T.float32, T.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("build", "shape"), CASES)
def test_forward_and_backward_match_torch(build, shape, dtype):
    ours, theirs = twins(build, dtype)
    run(ours, theirs, shape, dtype, times=2)
    if any(True for _ in ours.buffers()):
        run(ours.eval(), theirs.eval(), shape, dtype)


HALVES = [
    (lambda n: n.Linear(4, 3), (5, 4)),
    (lambda n: n.Sequential(n.Linear(4, 8), n.GELU(), n.Linear(8, 2), n.LogSoftmax(1)), (6, 4)),
    (lambda n: n.BatchNorm1d(4), (6, 4)),
    (lambda n: n.BatchNorm1d(4).eval(), (6, 4)),
]


@pytest.mark.parametrize("dtype", [T.float16, T.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("build", "shape"), HALVES, ids=range(len(HALVES)))
def test_half_types_are_near_float64(build, shape, dtype):
    ours, exact = twins(build, T.float64)
    ours.to(dtype)
    values = random(shape).standard_normal(shape)
    x, y = T.tensor(values, dtype=dtype, requires_grad=True), torch.tensor(values, requires_grad=True)
    a, b = ours(x), exact(y)
    assert a.dtype is dtype and all(p.dtype is dtype for p in ours.parameters())
    a.sum().backward()
    b.sum().backward()
    near = {"rtol": 0.05, "atol": 0.1}
    np.testing.assert_allclose(host(a.float()), host(b), **near)
    np.testing.assert_allclose(host(x.grad.float()), host(y.grad), **near)
    for p, q in zip(ours.parameters(), exact.parameters(), strict=True):
        np.testing.assert_allclose(host(p.grad.float()), host(q.grad), **near)


OTHERS = [
    lambda n: n.ReLU(inplace=True),
    lambda n: n.LeakyReLU(0.1, inplace=True),
    lambda n: n.ELU(0.5, True),
    lambda n: n.SiLU(True),
    lambda n: n.Dropout(),
    lambda n: n.Dropout(0.1, inplace=True),
    lambda n: n.Softmax(),
    lambda n: n.CrossEntropyLoss(),
    lambda n: n.MSELoss(),
    lambda n: n.ModuleList(),
    lambda n: n.ModuleList([n.Linear(2, 2), n.Linear(2, 2), n.Linear(2, 3), n.ReLU()]),
    lambda n: n.Sequential(n.ModuleList([n.ReLU(), n.ReLU()]), n.Sequential(n.Sequential(n.Tanh()), n.Sequential())),
    lambda n: n.Sequential(OrderedDict(a=n.Linear(1, 2), b=n.ModuleList([n.Sequential(n.ReLU())] * 3))),
]


@pytest.mark.parametrize("build", [b for b, _ in LAYERS] + OTHERS, ids=range(len(LAYERS) + len(OTHERS)))
def test_repr_is_torchs(build):
    assert repr(build(nn)) == repr(build(torch.nn)) or not NEWEST


IN_PLACE = [
    lambda n: n.ReLU(True), lambda n: n.LeakyReLU(0.1, True), lambda n: n.ELU(1.0, True), lambda n: n.SiLU(True),
]  # fmt: skip


@pytest.mark.parametrize("build", IN_PLACE, ids=range(len(IN_PLACE)))
def test_in_place_activations_write_their_input(build):
    x = T.tensor([-1.0, 2.0])
    y = torch.tensor([-1.0, 2.0])
    out = build(nn)(x)
    assert out is x and x._version == 1
    same(x, build(torch.nn)(y), T.float32)
    with pytest.raises(RuntimeError, match="a leaf Variable that requires grad is being used in an in-place operation"):
        build(nn)(T.ones(2, requires_grad=True))


def test_factory_arguments():
    m = nn.Linear(2, 3, dtype=T.float64, device=T.device("cpu"))
    assert m.weight.dtype is T.float64 and m.bias.device.type == "cpu"
    bn = nn.BatchNorm1d(2, dtype=T.float64)
    assert bn.running_mean.dtype is T.float64 and bn.num_batches_tracked.dtype is T.int64


REFUSED = [
    lambda t, n: n.Dropout(1.5),
    lambda t, n: n.functional.dropout(t.ones(2), -0.1),
    lambda t, n: n.Dropout(0.5)(t.ones(2, dtype=t.int64)),
    lambda t, n: n.GELU("other")(t.ones(2)),
    lambda t, n: n.BatchNorm1d(5)(t.ones(2, 5, 2, 2)),
    lambda t, n: n.BatchNorm1d(5)(t.ones(1, 5)),
    lambda t, n: n.BatchNorm1d(5)(t.ones(4, 3)),
    lambda t, n: n.Sequential(n.ReLU())[1],
    lambda t, n: n.ModuleList([n.ReLU()])[-2],
    lambda t, n: n.Sequential() + 1,
    lambda t, n: n.Sequential() * 0,
    lambda t, n: n.Sequential(n.ReLU(), 3),
    lambda t, n: n.MSELoss(reduction="other")(t.ones(2), t.ones(2)),
    lambda t, n: n.CrossEntropyLoss(reduction="other")(t.ones(2, 3), t.tensor([0, 1])),
    lambda t, n: n.CrossEntropyLoss()(t.ones(2, 3), t.tensor([0, 1, 2])),
    lambda t, n: n.init.calculate_gain("other"),
    lambda t, n: n.init.calculate_gain("leaky_relu", "x"),
    lambda t, n: n.init.xavier_uniform_(t.ones(3)),
    lambda t, n: n.init.kaiming_uniform_(t.ones(3, 2), mode="other"),
]


@pytest.mark.parametrize("call", REFUSED, ids=range(len(REFUSED)))
def test_errors_are_torchs(call):
    assert message(call, T, nn) == message(call, torch, torch.nn)


def test_softmax_chooses_a_dimension_with_a_warning():
    for shape in ((3,), (2, 3), (2, 3, 4)):
        values = random(shape).standard_normal(shape)
        for name in ("Softmax", "LogSoftmax"):
            with pytest.warns(UserWarning, match="Implicit dimension choice for"):
                out = getattr(nn, name)()(T.tensor(values))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                same(out, getattr(torch.nn, name)()(torch.tensor(values)))


# --- dropout ---------------------------------------------------------------------------------------------------
def test_dropout():
    T.manual_seed(0)
    m = nn.Dropout(0.25)
    x = T.ones(200, 50, requires_grad=True)
    out = m(x)
    values = host(out)
    kept = values != 0
    assert set(np.unique(values)) == {0.0, np.float32(1 / 0.75)}
    assert abs(kept.mean() - 0.75) < 4 * math.sqrt(0.25 * 0.75 / values.size)
    out.sum().backward()
    np.testing.assert_array_equal(host(x.grad), values)
    assert not np.array_equal(host(m(x)), values)
    assert m.eval()(x) is x
    assert F.dropout(x, 0.5, training=False) is x and F.dropout(x, 0.0) is x
    assert host(F.dropout(x, 1.0)).max() == 0
    with T.no_grad():
        assert (host(nn.Dropout(0.5)(x)) == 0).any()  # no_grad is not eval


def test_dropout_in_place():
    x = T.ones(100)
    y = nn.Dropout(0.5, inplace=True)(x)
    assert y is x and set(x.tolist()) == {0.0, 2.0}
    w = T.ones(100, requires_grad=True)
    h = w * 3
    nn.Dropout(0.5, inplace=True)(h)
    h.sum().backward()
    np.testing.assert_array_equal(host(w.grad), host(h))


# --- batch norm ------------------------------------------------------------------------------------------------
def test_batch_norm_counts_no_write_of_its_statistics():
    m = nn.BatchNorm1d(3)
    x = T.randn(5, 3, requires_grad=True)
    version = m.running_mean._version
    out = m(x) + m(x)
    assert m.running_mean._version == version and m.num_batches_tracked.item() == 2
    out.sum().backward()
    with T.no_grad():
        m(x)
    assert m.num_batches_tracked.item() == 3  # no_grad is not eval
    m.eval()(x)
    assert m.num_batches_tracked.item() == 3
    m.reset_parameters()
    assert m.running_var.tolist() == [1, 1, 1] and m.num_batches_tracked.item() == 0


def test_batch_norm_loads_states_without_the_counter():
    m = nn.BatchNorm1d(2)
    state = {k: v for k, v in m.state_dict().items() if k != "num_batches_tracked"}
    assert not nn.BatchNorm1d(2).load_state_dict(state).missing_keys
    assert list(nn.BatchNorm1d(2, track_running_stats=False).state_dict()) == ["weight", "bias"]


def test_batch_norm_without_statistics_in_evaluation():
    with pytest.raises(RuntimeError, match="running_mean must be defined in evaluation mode"):
        F.batch_norm(T.ones(3, 2), None, None)


# --- losses ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", [T.float32, T.float64], ids=["float32", "float64"])
def test_mse_loss(reduction, dtype):
    a, b = random("a").standard_normal((4, 3)), random("b").standard_normal((4, 3))
    ours = [T.tensor(v, dtype=dtype, requires_grad=True) for v in (a, b)]
    theirs = [torch.tensor(v, dtype=TORCH[dtype], requires_grad=True) for v in (a, b)]
    out, expected = nn.MSELoss(reduction=reduction)(*ours), torch.nn.MSELoss(reduction=reduction)(*theirs)
    same(out, expected, dtype)
    (out * out).sum().backward()
    (expected * expected).sum().backward()
    for x, y in zip(ours, theirs):
        same(x.grad, y.grad, dtype)


def test_mse_loss_warns_of_broadcasting():
    with pytest.warns(UserWarning) as ours:
        out = F.mse_loss(T.ones(3, 1), T.zeros(3))
    with pytest.warns(UserWarning) as theirs:
        expected = torch.nn.functional.mse_loss(torch.ones(3, 1), torch.zeros(3))
    assert str(ours[0].message) == str(theirs[0].message) and ours[0].filename == __file__
    same(out, expected, T.float32)
    with pytest.warns(UserWarning), pytest.raises(RuntimeError):
        F.mse_loss(T.ones(3), T.zeros(2))


@pytest.mark.parametrize("given", [{"size_average": False}, {"reduce": False}, {"size_average": True, "reduce": True}])
def test_old_names_of_reductions(given):
    with pytest.warns(UserWarning) as ours:
        m = nn.MSELoss(**given)
    with pytest.warns(UserWarning) as theirs:
        assert m.reduction == torch.nn.MSELoss(**given).reduction
    assert str(ours[0].message) == str(theirs[0].message)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("shape", [(6, 5), (5,), (3, 5, 2)], ids=str)
@pytest.mark.parametrize("dtype", [T.float32, T.float64], ids=["float32", "float64"])
def test_cross_entropy(reduction, shape, dtype):
    values = random(shape).standard_normal(shape)
    target = np.asarray(random("t", shape).integers(0, 5, (*shape[:1], *shape[2:]) if len(shape) > 1 else ()))
    if target.ndim:
        target.flat[0] = 3
    x = T.tensor(values, dtype=dtype, requires_grad=True)
    y = torch.tensor(values, dtype=TORCH[dtype], requires_grad=True)
    given = {"reduction": reduction, "ignore_index": 3 if target.ndim else -100}
    out = nn.CrossEntropyLoss(**given)(x, T.tensor(target))
    expected = torch.nn.CrossEntropyLoss(**given)(y, torch.tensor(target))
    same(out, expected, dtype)
    out.sum().backward()
    expected.sum().backward()
    same(x.grad, y.grad, dtype)


# --- initialisation --------------------------------------------------------------------------------------------
def moments(t):
    v = host(t).astype(np.float64)
    return v.mean(), v.std(), np.abs(v).max()


@pytest.mark.parametrize(("n_in", "n_out"), [(100, 80), (7, 500)])
def test_linear_draws_uniformly_within_its_bound(n_in, n_out):
    T.manual_seed(1)
    m = nn.Linear(n_in, n_out)
    bound = 1 / math.sqrt(n_in)
    for p in (m.weight, m.bias):
        mean, std, largest = moments(p)
        assert largest <= bound and largest > 0.9 * bound
        assert abs(mean) < 5 * bound / math.sqrt(3 * p.numel())
        assert abs(std - bound / math.sqrt(3)) < 5 * bound / math.sqrt(p.numel())
    before = m.weight.tolist()
    m.reset_parameters()
    assert m.weight.tolist() != before and m.weight.requires_grad and m.weight.is_leaf


SHAPE = (60, 40, 3)
INITS = [  # name, arguments, deviation, bound
    ("uniform_", {"a": -2, "b": 2}, 2 / math.sqrt(3), 2),
    ("normal_", {"std": 3.0}, 3.0, None),
    ("xavier_uniform_", {}, math.sqrt(2 / 300), math.sqrt(6 / 300)),
    ("xavier_normal_", {"gain": 2.0}, 2 * math.sqrt(2 / 300), None),
    ("kaiming_uniform_", {}, math.sqrt(2 / 120), math.sqrt(6 / 120)),
    ("kaiming_uniform_", {"a": math.sqrt(5)}, math.sqrt(1 / 3 / 120), math.sqrt(1 / 120)),
    ("kaiming_normal_", {"mode": "fan_out", "nonlinearity": "relu"}, math.sqrt(2 / 180), None),
]


@pytest.mark.parametrize(("name", "given", "deviation", "bound"), INITS, ids=range(len(INITS)))
def test_init_moments(name, given, deviation, bound):
    T.manual_seed(2)
    p = nn.Parameter(T.zeros(SHAPE))
    assert getattr(nn.init, name)(p, **given) is p
    mean, std, largest = moments(p)
    assert abs(mean) < 5 * deviation / math.sqrt(p.numel())
    assert abs(std / deviation - 1) < 5 / math.sqrt(p.numel())
    assert bound is None or 0.99 * bound < largest <= bound
    assert p.requires_grad and p.is_leaf and p._version == 1


def test_init_constants_and_gains():
    t = T.empty(3, 2)
    assert nn.init.ones_(t).tolist() == [[1, 1]] * 3
    assert nn.init.zeros_(t).tolist() == [[0, 0]] * 3
    assert nn.init.constant_(t, 0.5).tolist() == [[0.5, 0.5]] * 3
    for name in ("linear", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"):
        assert nn.init.calculate_gain(name) == torch.nn.init.calculate_gain(name)
    assert nn.init.calculate_gain("leaky_relu", 0.3) == torch.nn.init.calculate_gain("leaky_relu", 0.3)
    with pytest.warns(UserWarning, match="Initializing zero-element tensors is a no-op"):
        nn.init.kaiming_uniform_(T.empty(0, 3))


def test_init_draws_from_a_generator():
    a = nn.init.normal_(T.empty(5), generator=T.Generator().manual_seed(3))
    b = nn.init.normal_(T.empty(5), generator=T.Generator().manual_seed(3))
    assert a.tolist() == b.tolist()
