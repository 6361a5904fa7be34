"""Optimisers against torch's: every option, ten steps; groups, states and errors."""

import copy

import numpy as np
import pytest
import torch

import tgrad as T
from tests.errors import message

SHAPES = [(5, 3), (4,), (), (1, 7)]
STEPS = 10

pytestmark = pytest.mark.anywhere

OPTIONS = [
    ("SGD", {}),
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.3}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.3, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.4}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.2, "maximize": True}),
    ("Adam", {}),
    ("Adam", {"lr": 0.1, "weight_decay": 0.2}),
    ("Adam", {"lr": 0.1, "betas": (0.3, 0.5), "eps": 1e-3}),
    ("Adam", {"lr": 0.1, "amsgrad": True}),
    ("Adam", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.2, "maximize": True}),
    ("Adam", {"lr": 0.1, "weight_decay": 0.2, "decoupled_weight_decay": True}),
    ("AdamW", {}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.0}),
    ("AdamW", {"lr": 0.1, "weight_decay": 0.5, "maximize": True}),
    ("AdamW", {"lr": 0.1, "amsgrad": True, "weight_decay": 0.5}),
]


def ids(option):
    name, given = option
    return name + "".join(f"-{k}={v}" for k, v in given.items())


def draws(seed, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]


def pair(name, given, seed=0, dtype=np.float64):
    """(parameters, optimiser) of tgrad and of torch, from the same values."""
    values = draws(seed, dtype)
    ours = [T.nn.Parameter(T.tensor(v)) for v in values]
    theirs = [torch.nn.Parameter(torch.tensor(v)) for v in values]
    return (ours, getattr(T.optim, name)(ours, **given)), (theirs, getattr(torch.optim, name)(theirs, **given))


def host(t):
    return t.detach().cpu().numpy()


def steps(ours, opt, theirs, reference, seeds, dtype=np.float64):
    for seed in seeds:
        for p, q, g in zip(ours, theirs, draws(seed, dtype)):
            p.grad, q.grad = T.tensor(g), torch.tensor(g)
        opt.step()
        reference.step()


def assert_same(ours, theirs, rtol, atol=0.0):
    for p, q in zip(ours, theirs):
        np.testing.assert_allclose(host(p), host(q), rtol=rtol, atol=atol)


@pytest.mark.parametrize("option", OPTIONS, ids=ids)
def test_ten_steps_match_torch(option):
    (ours, opt), (theirs, reference) = pair(*option)
    steps(ours, opt, theirs, reference, range(100, 100 + STEPS))
    assert_same(ours, theirs, rtol=1e-12, atol=1e-13)
    state, expected = opt.state_dict()["state"], reference.state_dict()["state"]
    assert state.keys() == expected.keys()
    for i in expected:
        assert list(state[i]) == list(expected[i])
        for name, value in expected[i].items():
            if value is None:
                assert state[i][name] is None
                continue
            assert (repr(state[i][name].dtype), state[i][name].shape) == (repr(value.dtype), value.shape)
            np.testing.assert_allclose(host(state[i][name]), host(value), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("option", [OPTIONS[1], OPTIONS[10], OPTIONS[14], OPTIONS[19]], ids=ids)
def test_float32_matches_torch(option):
    (ours, opt), (theirs, reference) = pair(*option, dtype=np.float32)
    steps(ours, opt, theirs, reference, range(STEPS), np.float32)
    assert_same(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("option", [OPTIONS[5], OPTIONS[17]], ids=ids)
@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_types_step(option, kind):
    name, given = option
    p = T.nn.Parameter(T.tensor([1.0, -2.0, 0.5], dtype=getattr(T, kind)))
    q = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=getattr(torch, kind)))
    opt, reference = getattr(T.optim, name)([p], **given), getattr(torch.optim, name)([q], **given)
    for _ in range(3):
        p.grad = T.tensor([0.5, 1.0, -1.0], dtype=p.dtype)
        q.grad = torch.tensor([0.5, 1.0, -1.0], dtype=q.dtype)
        opt.step()
        reference.step()
    np.testing.assert_allclose(host(p.float()), host(q.float()), rtol=0.02)


def test_a_step_is_one_op_of_all_parameters():
    from tgrad import dispatch

    class Count:
        def __init__(self):
            self.names = []

        def begin(self, op):
            self.names.append(op)

        def end(self, op):
            pass

    for name, given, called in (("SGD", {"momentum": 0.9}, "sgd"), ("AdamW", {"amsgrad": True}, "adam")):
        (ours, opt), _ = pair(name, given)
        for p in ours:
            p.grad = T.ones_like(p)
        opt.step()
        counter = Count()
        dispatch.observer = counter
        try:
            opt.step()
        finally:
            dispatch.observer = None
        assert counter.names == [called]


def test_strided_parameters_and_gradients():
    values, g = np.arange(12.0).reshape(3, 4), np.linspace(-1, 1, 12).reshape(4, 3)
    p = T.nn.Parameter(T.tensor(values).t())
    q = torch.nn.Parameter(torch.tensor(values).t())
    opt, reference = T.optim.AdamW([p], lr=0.1), torch.optim.AdamW([q], lr=0.1)
    for _ in range(3):
        p.grad, q.grad = T.tensor(np.ascontiguousarray(g)), torch.tensor(g)
        opt.step()
        reference.step()
    assert p.stride() == q.stride() == (1, 4)
    assert_same([p], [q], rtol=1e-12)


def test_a_step_counts_as_a_write_and_is_not_recorded():
    p = T.nn.Parameter(T.ones(3))
    out = (p * p).sum()
    out.backward(retain_graph=True)
    before = p._version
    T.optim.SGD([p], lr=0.1).step()
    assert p._version == before + 1 and p.is_leaf and p.requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def test_parameters_without_gradient_are_left_alone():
    p, q = T.nn.Parameter(T.ones(2)), T.nn.Parameter(T.ones(2))
    opt = T.optim.AdamW([p, q])
    q.grad = T.ones(2)
    opt.step()
    assert p.tolist() == [1, 1] and p._version == 0 and list(opt.state) == [q]


def test_zero_grad():
    p = T.nn.Parameter(T.ones(2))
    opt = T.optim.SGD([p])
    (p * 3).sum().backward()
    g = p.grad
    opt.zero_grad(set_to_none=False)
    assert p.grad is g and g.tolist() == [0, 0]
    opt.zero_grad()
    assert p.grad is None
    assert opt.zero_grad() is None


def test_zero_grad_detaches():
    p = T.nn.Parameter(T.ones(2))
    p.grad = p * 2
    assert p.grad.requires_grad
    T.optim.SGD([p]).zero_grad(set_to_none=False)
    assert not p.grad.requires_grad and p.grad.tolist() == [0, 0]


def test_closure_runs_with_grad_mode_and_step_returns_its_loss():
    p = T.nn.Parameter(T.ones(2))
    opt = T.optim.SGD([p], lr=0.5)
    seen = []

    def closure():
        seen.append(T.is_grad_enabled())
        opt.zero_grad()
        loss = (p * p).sum()
        loss.backward()
        return loss

    with T.no_grad():
        loss = opt.step(closure)
        assert not T.is_grad_enabled()
    assert seen == [True] and loss.item() == 2 and p.tolist() == [0, 0]
    assert opt.step() is None


def test_groups_have_their_own_options():
    values = draws(1)
    ours = [T.nn.Parameter(T.tensor(v)) for v in values]
    theirs = [torch.nn.Parameter(torch.tensor(v)) for v in values]
    opts = []
    for nn, m in ((T, ours), (torch, theirs)):
        opt = nn.optim.SGD([{"params": m[:1]}, {"params": m[1], "lr": 0.5, "momentum": 0.9}], lr=0.01, weight_decay=0.1)
        opt.add_param_group({"params": m[2:], "nesterov": True, "momentum": 0.5})
        opts.append(opt)
    steps(ours, opts[0], theirs, opts[1], range(5))
    assert_same(ours, theirs, rtol=1e-12)
    assert repr(opts[0]) == repr(opts[1])


def test_learning_rate_may_change_between_steps():
    (ours, opt), (theirs, reference) = pair("AdamW", {"lr": 0.1})
    for k in range(4):
        for o in (opt, reference):
            o.param_groups[0]["lr"] = 0.1 / (k + 1)
        steps(ours, opt, theirs, reference, [k])
    assert_same(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_repr_and_options_are_torchs(name):
    (_, opt), (_, reference) = pair(name, {})
    assert repr(opt) == repr(reference)
    assert opt.defaults == reference.defaults
    assert opt.state_dict()["param_groups"] == reference.state_dict()["param_groups"]


@pytest.mark.parametrize("option", [OPTIONS[5], OPTIONS[9], OPTIONS[20]], ids=ids)
def test_state_resumes(option):
    name, given = option
    (ours, opt), (theirs, reference) = pair(name, given)
    steps(ours, opt, theirs, reference, range(4))
    saved = copy.deepcopy(opt.state_dict())
    resumed = [T.nn.Parameter(p.detach().clone()) for p in ours]
    again = getattr(T.optim, name)(resumed)
    again.load_state_dict(saved)
    steps(ours, opt, theirs, reference, range(10, 14))
    for seed in range(10, 14):
        for p, g in zip(resumed, draws(seed)):
            p.grad = T.tensor(g)
        again.step()
    for p, q in zip(ours, resumed):
        assert p.tolist() == q.tolist()
    assert again.param_groups[0]["params"][0] is resumed[0]


@pytest.mark.parametrize("option", [OPTIONS[9], OPTIONS[20]], ids=ids)
def test_states_are_interchangeable_with_torch(option):
    name, given = option
    (ours, opt), (theirs, reference) = pair(name, given)
    steps(ours, opt, theirs, reference, range(4))
    convert = lambda state, make: {
        "state": {i: {k: make(host(v).copy()) for k, v in s.items()} for i, s in state["state"].items()},
        "param_groups": state["param_groups"],
    }
    to_torch, to_tgrad = convert(opt.state_dict(), torch.tensor), convert(reference.state_dict(), T.tensor)
    (ours2, opt2), (theirs2, reference2) = pair(name, {})
    for mine, old in ((ours2, ours), (theirs2, theirs)):
        for p, q in zip(mine, old):
            p.data.copy_(q.detach())
    opt2.load_state_dict(to_tgrad)
    reference2.load_state_dict(to_torch)
    steps(ours, opt, theirs, reference, range(20, 23))
    steps(ours2, opt2, theirs2, reference2, range(20, 23))
    assert_same(ours2, theirs, rtol=1e-12)
    assert_same(ours, theirs2, rtol=1e-12)


def test_loading_converts_to_the_parameters_dtype():
    (_, opt), (_, _) = pair("AdamW", {}, dtype=np.float32)
    for p in opt.param_groups[0]["params"]:
        p.grad = T.ones_like(p)
    opt.step()
    (ours, wide), _ = pair("AdamW", {})
    wide.load_state_dict(opt.state_dict())
    state = wide.state[ours[0]]
    assert state["exp_avg"].dtype is T.float64 and state["step"].dtype is T.float32 and state["step"].item() == 1


def test_named_parameters():
    m = T.nn.Linear(2, 2)
    opt = T.optim.SGD(m.named_parameters(), lr=0.1)
    assert opt.param_groups[0]["param_names"] == ["weight", "bias"]
    assert [id(p) for p in opt.param_groups[0]["params"]] == [id(m.weight), id(m.bias)]
    with pytest.raises(ValueError, match="with/without names"):
        opt.add_param_group({"params": [T.nn.Parameter(T.ones(1))]})


REFUSED = [
    lambda lib, p: lib.optim.SGD([]),
    lambda lib, p: lib.optim.SGD(p),
    lambda lib, p: lib.optim.SGD([1.0]),
    lambda lib, p: lib.optim.SGD([p * 2]),
    lambda lib, p: lib.optim.SGD([p], lr=-1),
    lambda lib, p: lib.optim.SGD([p], lr=lib.ones(2)),
    lambda lib, p: lib.optim.SGD([p], momentum=-1),
    lambda lib, p: lib.optim.SGD([p], weight_decay=-1),
    lambda lib, p: lib.optim.SGD([p], nesterov=True),
    lambda lib, p: lib.optim.SGD([p], momentum=0.9, dampening=0.1, nesterov=True),
    lambda lib, p: lib.optim.SGD([{"params": {p}}]),
    lambda lib, p: lib.optim.SGD([{"params": [p]}, {"params": [p]}]),
    lambda lib, p: lib.optim.SGD([p]).add_param_group([p]),
    lambda lib, p: lib.optim.SGD([("a", p), lib.nn.Parameter(lib.ones(1))]),
    lambda lib, p: lib.optim.SGD([p]).load_state_dict({"state": {}, "param_groups": []}),
    lambda lib, p: lib.optim.SGD([p]).load_state_dict({"state": {}, "param_groups": [{"params": [0, 1]}]}),
    lambda lib, p: lib.optim.AdamW([p], lr=-1),
    lambda lib, p: lib.optim.AdamW([p], eps=-1),
    lambda lib, p: lib.optim.AdamW([p], betas=(1.0, 0.9)),
    lambda lib, p: lib.optim.AdamW([p], betas=(0.9, -0.1)),
    lambda lib, p: lib.optim.AdamW([p], betas=(0, 0.9)),
    lambda lib, p: lib.optim.Adam([p], weight_decay=-1),
]


@pytest.mark.parametrize("call", REFUSED, ids=range(len(REFUSED)))
def test_errors_are_torchs(call):
    p, q = T.nn.Parameter(T.ones(2)), torch.nn.Parameter(torch.ones(2))
    assert message(call, T, p) == message(call, torch, q)


def test_unsupported_options_are_refused():
    p = T.nn.Parameter(T.ones(2))
    with pytest.raises(ValueError, match="differentiable=True is not supported"):
        T.optim.SGD([{"params": [p], "differentiable": True}])
    opt = T.optim.AdamW([p])
    state = opt.state_dict()
    state["param_groups"][0]["capturable"] = True
    with pytest.raises(ValueError, match="capturable=True is not supported"):
        opt.load_state_dict(state)


def test_duplicate_parameters_warn():
    p = T.nn.Parameter(T.ones(2))
    with pytest.warns(UserWarning, match="duplicate parameters"):
        T.optim.SGD([p, p])


def test_own_optimiser():
    class Sign(T.optim.Optimizer):
        def __init__(self, params, lr=0.1):
            super().__init__(params, {"lr": lr})

        @T.no_grad()
        def step(self):
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(T.where(p.grad > 0, -1.0, 1.0) * group["lr"])

    p = T.nn.Parameter(T.tensor([1.0, 1.0]))
    (p * T.tensor([2.0, -3.0])).sum().backward()
    Sign([p], lr=0.5).step()
    assert p.tolist() == [0.5, 1.5]
