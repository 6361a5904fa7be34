"""One kernel for many tensors: an optimiser's steps have the bits of one kernel for each; norms; how many launches."""

import math

import numpy as np
import pytest
import torch

import tgrad as T
from tests.errors import message
from tgrad import totals, updates
from tgrad.device import compute
from tgrad.kernels import launch, multi_tensor

pytestmark = pytest.mark.anywhere
on_cpu = pytest.mark.skipif(compute.type != "cpu", reason="the interpreter checks; a GPU is not interpreted")

OPTIONS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.3, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "nesterov": True}),
    ("Adam", {"lr": 0.1, "weight_decay": 0.2}),
    ("Adam", {"lr": 0.1, "amsgrad": True, "maximize": True}),
    ("AdamW", {"lr": 0.1}),
    ("AdamW", {"lr": 0.1, "amsgrad": True, "fused": True}),
    ("RMSprop", {"lr": 0.1, "weight_decay": 0.2}),
    ("RMSprop", {"lr": 0.1, "momentum": 0.9, "centered": True, "maximize": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "weight_decay": 0.2}),
    ("Adagrad", {"lr": 0.1, "initial_accumulator_value": 0.5, "maximize": True}),
]


@pytest.fixture
def chosen_rows(monkeypatch):
    """Programs choose their rows, as on a GPU, and there are several of each row."""
    monkeypatch.setattr(multi_tensor, "IN_TURN", False)
    monkeypatch.setattr(multi_tensor, "tile", lambda n, widest: 16)
    updates._plans.clear(), totals._plans.clear()
    yield
    updates._plans.clear(), totals._plans.clear()


def values(shape, seed):
    return T.tensor(np.random.default_rng(seed).standard_normal(shape))


def awkward():
    """(parameter, function that makes it a gradient) of many sizes, layouts and dtypes, from the same numbers."""
    whole = values(100, 50).float()
    made = [values(s, k).float() for k, s in enumerate([(), (0,), (1,), (17,), (16,), (5, 3), (2, 0, 3), (33, 7)])]
    made += [values((4, 5), 20).float().t(), values((6, 3), 21).float()[:, ::2]]
    made += [whole[1:30], whole[32:64], whole[65:71]]  # the first and the last are not aligned
    made += [values(s, 30).to(d) for d in (T.float16, T.bfloat16, T.float64) for s in ((3, 4), (21,))]
    params = [T.nn.Parameter(m) for m in made]

    def gradient(i, seed):
        p = params[i]
        g = values(p.shape, seed).to(p.dtype)
        return g.t().contiguous().t() if i == 5 else g  # of another layout than the parameter

    return params, gradient


def run(name, given, joined, steps=3):
    """Parameters and states after some steps, of which one parameter misses the first."""
    params, gradient = awkward()
    opt = getattr(T.optim, name)(params, **given)
    opt.param_groups[0]["foreach"] = None if joined else False
    if not joined:
        opt.param_groups[0]["fused"] = None
    for step in range(steps):
        for i, p in enumerate(params):
            p.grad = None if (step, i) == (0, 3) else gradient(i, 1000 * step + i)
        opt.step()
    states = [t for p in params for t in opt.state[p].values()]
    return [t.detach().cpu().double().numpy() for t in (*params, *states)], [p._version for p in params]


def ids(option):
    return option[0] + "".join(f"-{k}={v}" for k, v in option[1].items())


def assert_same_bits(name, given):
    (one, counts), (other, other_counts) = run(name, given, True), run(name, given, False)
    assert counts == other_counts and counts[3] == 2 and counts[5] == 3
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("option", OPTIONS, ids=ids)
def test_the_same_bits_as_one_by_one(option):
    assert_same_bits(*option)


@on_cpu
@pytest.mark.parametrize("option", [OPTIONS[0], OPTIONS[3], OPTIONS[7], OPTIONS[9]], ids=ids)
def test_the_same_bits_where_programs_choose_their_row(option, chosen_rows):
    assert_same_bits(*option)


@on_cpu
def test_checked_where_programs_choose_their_row(chosen_rows):
    from tests.test_checked import Live
    from tgrad.kernels import interpret
    from tgrad.storage import guarded, ledger

    live = Live()
    with ledger.subscribe(live), interpret.checked(lambda: live.spans.values()), guarded():
        params = [T.nn.Parameter(values(n, n).float()) for n in (40, 7, 16, 33, 1)]
        opt = T.optim.AdamW(params, lr=0.1, foreach=True)
        for p in params:
            p.grad = T.ones_like(p)
        opt.step()
        T.nn.utils.clip_grad_norm_(params, 0.5)
        assert all(not T.isnan(p).any() and not T.isnan(p.grad).any() for p in params)


def launches(opt):
    names = []
    with launch.listen(names.append):
        opt.step()
    return names


@pytest.mark.parametrize("count", [1, 2, 16, 17, 40])
def test_launches_are_few(count):
    params = [T.nn.Parameter(values(3 + k % 5, k).float()) for k in range(count)]
    opts = [T.optim.SGD(params, lr=0.5, foreach=foreach) for foreach in (None, False)]
    for p in params:
        p.grad = T.ones_like(p)
    before = [p.detach().clone() for p in params]
    assert launches(opts[0]) == ["sgd"] * -(-count // multi_tensor.MOST_ROWS)
    assert launches(opts[1]) == ["sgd"] * count
    assert all(p.tolist() == (b - 0.5 - 0.5).tolist() for p, b in zip(params, before))


def test_one_launch_per_group_dtype_and_count_of_steps():
    params = [T.nn.Parameter(values(4, k).to(d)) for k in range(3) for d in (T.float32, T.float64)]
    opt = T.optim.AdamW([{"params": params[:4]}, {"params": params[4:], "lr": 0.5}])
    for p in params[1:]:
        p.grad = T.ones_like(p)
    assert launches(opt).count("adam") == 4
    params[0].grad = T.ones_like(params[0])
    assert launches(opt).count("adam") == 5
    big = [T.nn.Parameter(T.zeros(300, 100)), T.nn.Parameter(T.zeros(2))]
    for p in big:
        p.grad = T.ones_like(p)
    assert len(launches(T.optim.SGD(big, lr=1.0))) == 1 and all((p == -1).all() for p in big)


def test_what_cannot_be_joined_has_its_own_launch():
    params = [T.nn.Parameter(values((4, 6), k)) for k in range(4)]
    for p in params[:3]:
        p.grad = T.ones_like(p)
    params[3].grad = T.ones(6, 4, dtype=T.float64).t()
    assert len(launches(T.optim.SGD(params))) == 2


@pytest.mark.parametrize("case", ["overlapping", "gradient of another", "one gradient", "disjoint views"])
def test_shared_memory_is_updated_in_order(case):
    def after(foreach):
        whole = values(20, 1)
        params = [T.nn.Parameter(whole[a : a + 10]) for a in ((0, 10) if case == "disjoint views" else (0, 5))]
        if case in ("gradient of another", "one gradient"):
            params = [T.nn.Parameter(values(10, k)) for k in range(2)]
        shared = params[0].detach() if case == "gradient of another" else values(10, 7)
        params[0].grad, params[1].grad = values(10, 8), shared
        if case == "one gradient":
            params[0].grad = shared
        opt = T.optim.SGD(params, lr=0.5, momentum=0.9, foreach=foreach)
        count = len(launches(opt))
        opt.step()
        return count, [p.tolist() for p in params]

    (joined, found), (apart, expected) = after(None), after(False)
    assert found == expected and apart == 2
    assert joined == (1 if case in ("one gradient", "disjoint views") else 2)


def test_a_parameter_that_is_there_twice_steps_twice():
    def after(xp):
        p = xp.nn.Parameter(xp.ones(3))
        with pytest.warns(UserWarning, match="duplicate parameters"):
            opt = xp.optim.SGD([p, p], lr=0.5)
        p.grad = xp.ones(3)
        opt.step()
        return p.tolist()

    assert after(T) == after(torch)


def test_nothing_is_written_if_one_is_refused():
    p, q = T.nn.Parameter(T.ones(3)), T.nn.Parameter(T.ones(3))
    with T.inference_mode():
        inferred = T.ones(3)
    opt = T.optim.SGD([p, q], lr=0.5)
    p.grad, q.grad = T.ones(3), T.ones(3)
    opt.param_groups[0]["params"].append(inferred)
    inferred._grad = T.ones(3)
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
        opt.step()
    assert p.tolist() == q.tolist() == [1, 1, 1] and p._version == 0
    with T.inference_mode():
        opt.step()
    assert p.tolist() == q.tolist() == inferred.tolist() == [0.5] * 3 and p._version == 1


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_fused_and_foreach_exclude_each_other(name):
    call = lambda lib: getattr(lib.optim, name)([lib.nn.Parameter(lib.ones(1))], fused=True, foreach=True)
    assert message(call, T) == message(call, torch)


# --- sums ------------------------------------------------------------------------------------------------------------
def assert_norms_match(order):
    params, gradient = awkward()
    given = [gradient(i, i) for i in range(len(params))]
    given.append(given[0].expand(4, 3))
    for kind, rtol in ((T.float32, 1e-6), (T.float64, 1e-12), (T.bfloat16, 0.01)):
        tensors = [t.to(kind) for t in given] + [values((6, 4), 3).to(kind)[:, 1::2]]
        exact = torch.nn.utils.get_total_norm([torch.tensor(t.double().cpu().numpy()) for t in tensors], order)
        found = T.nn.utils.get_total_norm(tensors, order)
        assert found.dtype is kind and found.shape == ()
        np.testing.assert_allclose(found.double().item(), exact.item(), rtol=rtol)


@pytest.mark.parametrize("order", [2.0, 1.0, 3.5])
def test_norms_of_many_match_torch(order):
    assert_norms_match(order)


@on_cpu
def test_norms_match_where_programs_choose_their_tensor(chosen_rows):
    assert_norms_match(2.0)
    many = [T.full((n,), 0.5) for n in range(1, 41)]
    assert T.nn.utils.get_total_norm(many).item() == pytest.approx(math.sqrt(0.25 * 820), rel=1e-6)


@on_cpu
def test_sums_of_large_tensors_are_taken_in_pieces(monkeypatch):
    monkeypatch.setattr(updates, "MOST_ELEMENTS", 40)
    monkeypatch.setattr(totals, "MOST_ELEMENTS", 40)
    totals._plans.clear()
    norm = T.nn.utils.get_total_norm([T.ones(7, 30).t(), T.ones(0, 3), T.ones(3)])
    assert norm.item() == pytest.approx(math.sqrt(213))
    totals._plans.clear()


def test_norms_of_mixed_dtypes_and_of_nothing():
    norm = T.nn.utils.get_total_norm
    mixed = norm([T.full((3,), 2.0), T.full((4,), 1.0, dtype=T.float64), T.zeros(0)])
    assert mixed.dtype is T.float64 and mixed.item() == 4
    assert norm([T.zeros(0), T.zeros(2, 0)]).item() == norm([]).item() == 0
    assert norm([T.tensor(300.0, dtype=T.float16)]).item() == 300  # whose square float16 cannot hold


def test_clipping_has_the_bits_of_one_by_one_and_few_launches():
    params, gradient = awkward()
    for i, p in enumerate(params):
        p.grad = gradient(i, i)
    before, versions = [p.grad.clone() for p in params], [p.grad._version for p in params]
    norm = T.nn.utils.clip_grad_norm_(params, 0.5)
    scale = T.clamp(0.5 / (norm + 1e-6), max=1.0)
    for p, g, version in zip(params, before, versions):
        wide = T.float64 if g.dtype is T.float64 else T.float32
        assert p.grad._version == version + 1
        assert p.grad.tolist() == (g.to(wide) * scale.to(wide)).to(g.dtype).tolist()
    names, alike = [], [T.nn.Parameter(T.ones(3)) for _ in range(16)]
    for p in alike:
        p.grad = T.ones(3)
    with launch.listen(names.append):
        T.nn.utils.clip_grad_norm_(alike, 0.5)
    assert names == ["norm", "norm", "clip_grad_norm_"]  # sums, their root, and the scaling by what it gives


@pytest.mark.parametrize("bad", [None, math.inf, -math.inf, math.nan])
def test_unscaling_finds_what_is_not_finite(bad):
    params = [T.nn.Parameter(T.ones(n)) for n in (3, 1, 40)]
    scaler, opt = T.amp.GradScaler(compute.type, init_scale=4.0), T.optim.SGD(params, lr=1.0)
    for p in params:
        p.grad = T.full_like(p, 8.0)
    if bad is not None:
        params[2].grad[39] = bad
    names = []
    with launch.listen(names.append):
        scaler.unscale_(opt)
    assert len(names) <= 4 and all(p.grad[0].item() == 2 for p in params)
    scaler.step(opt)
    scaler.update()
    assert params[0].tolist() == ([-1.0] * 3 if bad is None else [1.0] * 3)
    assert scaler.get_scale() == (4 if bad is None else 2)
