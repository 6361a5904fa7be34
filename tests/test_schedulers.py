"""Learning-rate schedulers against torch's, step by step; RMSprop and Adagrad."""

import math
import warnings

import numpy as np
import pytest
import torch

import tgrad as T
from tests.errors import message

SHAPES = [(5, 3), (4,), (1, 7)]
pytestmark = [pytest.mark.anywhere, pytest.mark.filterwarnings("ignore:The epoch parameter")]

SCHEDULES = [
    lambda s, o: s.StepLR(o, 3, 0.5), lambda s, o: s.MultiStepLR(o, [2, 5, 5, 9], 0.3),
    lambda s, o: s.ExponentialLR(o, 0.9), lambda s, o: s.CosineAnnealingLR(o, 5, 0.01),
    lambda s, o: s.LinearLR(o, 0.2, 0.9, 6), lambda s, o: s.ConstantLR(o, 0.3, 4),
    lambda s, o: s.LambdaLR(o, lambda n: 0.95**n), lambda s, o: s.LambdaLR(o, [lambda n: 1 / (1 + n), lambda n: n]),
    lambda s, o: s.CosineAnnealingWarmRestarts(o, 3, 2, 0.01), lambda s, o: s.CosineAnnealingWarmRestarts(o, 4),
    lambda s, o: s.OneCycleLR(o, 0.5, 20), lambda s, o: s.OneCycleLR(o, [0.5, 0.2], 20, three_phase=True),
    lambda s, o: s.OneCycleLR(o, 0.5, epochs=4, steps_per_epoch=5, anneal_strategy="linear"),
    lambda s, o: s.OneCycleLR(o, 0.5, 20, cycle_momentum=False),
    lambda s, o: s.SequentialLR(o, [s.LinearLR(o, 0.1, 1.0, 4), s.ExponentialLR(o, 0.8), s.StepLR(o, 2)], [4, 9]),
    lambda s, o: s.SequentialLR(o, [s.ConstantLR(o, 0.1, 20), s.CosineAnnealingLR(o, 10)], [5]),
]  # fmt: skip


def optimizers(name="SGD", **options):
    """The same optimiser in both, over two groups of one parameter."""
    made = []
    for library in (T, torch):
        groups = [{"params": [library.nn.Parameter(library.ones(2))]},
                  {"params": [library.nn.Parameter(library.ones(2))], "lr": 0.2}]  # fmt: skip
        made.append(getattr(library.optim, name)(groups, lr=0.1, **options))
    return made


def schedulers(build, ours, theirs):
    return build(T.optim.lr_scheduler, ours), build(torch.optim.lr_scheduler, theirs)


def same_rates(ours, theirs):
    for g, h in zip(ours.param_groups, theirs.param_groups, strict=True):
        for name in ("lr", "momentum", "betas", "initial_lr"):
            assert g.get(name, 0) == pytest.approx(h.get(name, 0), rel=1e-12, abs=1e-15), name


@pytest.mark.parametrize("optimizer", [("SGD", {"momentum": 0.9}), ("AdamW", {})], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("build", SCHEDULES)
def test_twenty_steps(build, optimizer):
    ours, theirs = optimizers(optimizer[0], **optimizer[1])
    a, b = schedulers(build, ours, theirs)
    same_rates(ours, theirs)
    for _ in range(19):
        ours.step(), theirs.step()
        a.step(), b.step()
        same_rates(ours, theirs)
        assert a.get_last_lr() == pytest.approx(b.get_last_lr(), rel=1e-12) and a.last_epoch == b.last_epoch


@pytest.mark.parametrize("build", SCHEDULES)
def test_state_dict_goes_on(build):
    one, _ = optimizers("SGD", momentum=0.9)
    two, _ = optimizers("SGD", momentum=0.9)
    a = build(T.optim.lr_scheduler, one)
    for _ in range(7):
        one.step(), a.step()
    b = build(T.optim.lr_scheduler, two)
    two.load_state_dict(one.state_dict())
    b.load_state_dict(a.state_dict())
    for _ in range(5):
        one.step(), a.step(), two.step(), b.step()
        assert a.get_last_lr() == b.get_last_lr()


@pytest.mark.parametrize("build", SCHEDULES[:6])
def test_a_given_epoch(build):
    ours, theirs = optimizers()
    a, b = schedulers(build, ours, theirs)
    ours.step(), theirs.step()
    for epoch in (3, 7, 2):
        a.step(epoch), b.step(epoch)
        same_rates(ours, theirs)


@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "max"}, {"threshold_mode": "abs", "threshold": 0.2}, {"cooldown": 2}, {"min_lr": [0.01, 0.1]},
     {"mode": "max", "threshold_mode": "abs"}],
    ids=str,
)  # fmt: skip
def test_reduce_on_plateau(options):
    ours, theirs = optimizers()
    a, b = schedulers(lambda s, o: s.ReduceLROnPlateau(o, factor=0.5, patience=1, **options), ours, theirs)
    for k in range(20):
        metric = math.sin(k) + 1.5
        a.step(T.tensor(metric, dtype=T.float64)), b.step(metric)
        same_rates(ours, theirs)
        assert a.num_bad_epochs == b.num_bad_epochs and a.best == b.best


def test_the_wrong_order_warns():
    ours, _ = optimizers()
    scheduler = T.optim.lr_scheduler.StepLR(ours, 2)
    with pytest.warns(UserWarning, match=r"Detected call of `lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        scheduler.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()


def test_a_rate_that_is_a_tensor():
    p = T.nn.Parameter(T.ones(2))
    optimizer = T.optim.SGD([p], lr=T.tensor(0.5))
    scheduler = T.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    rate = optimizer.param_groups[0]["lr"]
    optimizer.step(), scheduler.step()
    assert optimizer.param_groups[0]["lr"] is rate and float(rate) == 0.25


def test_errors_are_torchs():
    calls = [
        lambda s, o: s.ConstantLR(o, 2.0), lambda s, o: s.LinearLR(o, 0.0), lambda s, o: s.LinearLR(o, 0.5, 2.0),
        lambda s, o: s.LambdaLR(o, [lambda n: n]), lambda s, o: s.OneCycleLR(o, 0.1),
        lambda s, o: s.OneCycleLR(o, 0.1, -1), lambda s, o: s.OneCycleLR(o, [0.1], 3),
        lambda s, o: s.OneCycleLR(o, 0.1, 3, pct_start=2.0), lambda s, o: s.CosineAnnealingWarmRestarts(o, 0),
        lambda s, o: s.ReduceLROnPlateau(o, factor=1.0), lambda s, o: s.ReduceLROnPlateau(o, "best"),
        lambda s, o: s.SequentialLR(o, [], []), lambda s, o: s.SequentialLR(o, [s.StepLR(o, 1)], [1]),
        lambda s, o: s.StepLR(3, 1),
    ]  # fmt: skip
    ours, theirs = optimizers()
    for call in calls:
        assert message(call, T.optim.lr_scheduler, ours) == message(call, torch.optim.lr_scheduler, theirs)


OPTIONS = [
    ("RMSprop", {}), ("RMSprop", {"lr": 0.1, "alpha": 0.5, "eps": 1e-3}), ("RMSprop", {"weight_decay": 0.2}),
    ("RMSprop", {"momentum": 0.9}), ("RMSprop", {"centered": True}),
    ("RMSprop", {"momentum": 0.9, "centered": True, "maximize": True, "weight_decay": 0.1}),
    ("Adagrad", {}), ("Adagrad", {"lr": 0.1, "lr_decay": 0.3}), ("Adagrad", {"weight_decay": 0.2, "maximize": True}),
    ("Adagrad", {"initial_accumulator_value": 0.5, "eps": 1e-3}),
]  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_ten_steps_match_torch(option):
    name, given = option
    draws = lambda seed: [np.random.default_rng(seed + i).standard_normal(s) for i, s in enumerate(SHAPES)]
    ours = [T.nn.Parameter(T.tensor(v)) for v in draws(0)]
    theirs = [torch.nn.Parameter(torch.tensor(v)) for v in draws(0)]
    opt, reference = getattr(T.optim, name)(ours, **given), getattr(torch.optim, name)(theirs, **given)
    for seed in range(10):
        for p, q, g in zip(ours, theirs, draws(100 + 10 * seed)):
            p.grad, q.grad = T.tensor(g), torch.tensor(g)
        opt.step(), reference.step()
    for p, q in zip(ours, theirs):
        np.testing.assert_allclose(p.detach().cpu().numpy(), q.detach().numpy(), rtol=1e-11, atol=1e-13)
    state, expected = opt.state_dict()["state"], reference.state_dict()["state"]
    for i in expected:
        assert set(state[i]) == set(expected[i])
        for key, value in expected[i].items():
            np.testing.assert_allclose(state[i][key].cpu().numpy(), value.numpy(), rtol=1e-11, atol=1e-13)
    again = getattr(T.optim, name)([T.nn.Parameter(p.detach().clone()) for p in ours], **given)
    again.load_state_dict(reference.state_dict())  # PyTorch's own tensors
    for p, q in zip(ours, again.param_groups[0]["params"]):
        q.grad = p.grad
    opt.step(), again.step()
    for p, q in zip(ours, again.param_groups[0]["params"]):
        np.testing.assert_allclose(p.detach().cpu().numpy(), q.detach().cpu().numpy(), rtol=1e-10, atol=1e-12)


def test_optimizer_errors_are_torchs():
    for call in (lambda l, p: l.RMSprop(p, lr=-1.0), lambda l, p: l.RMSprop(p, alpha=-1.0),
                 lambda l, p: l.RMSprop(p, momentum=-1.0), lambda l, p: l.Adagrad(p, lr_decay=-1.0),
                 lambda l, p: l.Adagrad(p, eps=-1.0)):  # fmt: skip
        ours, theirs = [T.nn.Parameter(T.ones(1))], [torch.nn.Parameter(torch.ones(1))]
        assert message(call, T.optim, ours) == message(call, torch.optim, theirs)
