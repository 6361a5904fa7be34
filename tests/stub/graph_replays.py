"""What a replay does, step by step: what the step does without a graph. For the GPU, and for graphs.py."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

from tests.stub.graph_steps import WARMUP, Training, same
from tests.stub.two_devices import raises

CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def small() -> Training:
    return Training(small=True)


@case
def optimizers() -> None:
    for name, options in (
        ("SGD", {"momentum": 0.9, "nesterov": True}), ("Adam", {"amsgrad": True, "foreach": False}),
        ("RMSprop", {"momentum": 0.5, "centered": True}), ("Adagrad", {"lr_decay": 0.1}),
    ):  # fmt: skip
        same(lambda: Training(name, small=name != "AdamW", **options), lambda t: t.step, steps=4)


@case
def dtypes() -> None:
    import tgrad

    for dtype in ("float64", "bfloat16"):
        same(lambda: Training(dtype=dtype, small=True), lambda t: t.step, steps=5)

    def autocast(t: Training) -> Callable:
        def step(x: Any, target: Any) -> Any:
            t.optimizer.zero_grad()
            with tgrad.autocast("cuda", dtype=tgrad.bfloat16):
                loss = t.loss(x, target)
            loss.backward()
            t.optimizer.step()
            return loss

        return step

    same(small, autocast)
    with tgrad.autocast("cuda", dtype=tgrad.bfloat16):  # what it casts once outside must not serve the graph
        same(small, lambda t: t.step)

        def forward(t: Training) -> Callable:
            return tgrad.no_grad()(lambda x, target: t.model(x))

        def shrink(t: Training, i: int) -> None:
            with tgrad.no_grad():
                if i < 3:
                    return
                for p in t.model.parameters():
                    p.mul_(0.5)

        same(small, forward, between=shrink)


@case
def gradients() -> None:
    """Set to None or to zero, at the beginning, at the end, outside, or not at all; clipped."""
    import tgrad

    def variant(begin: bool | None, end: bool | None, clip: bool = False) -> Callable:
        def make(t: Training) -> Callable:
            def step(x: Any, target: Any) -> Any:
                if begin is not None:
                    t.optimizer.zero_grad(set_to_none=begin)
                loss = t.loss(x, target)
                loss.backward()
                if clip:
                    tgrad.nn.utils.clip_grad_norm_(t.model.parameters(), 0.1)
                t.optimizer.step()
                if end is not None:
                    t.optimizer.zero_grad(set_to_none=end)
                return loss

            return step

        return make

    for begin, end in ((False, None), (None, True), (None, False), (None, None)):
        same(small, variant(begin, end), steps=5)
    same(small, variant(True, None, clip=True), steps=5)
    for to_none in (True, False):
        same(small, variant(None, None), between=lambda t, i: t.optimizer.zero_grad(set_to_none=to_none))


@case
def gradients_come_and_go() -> None:
    """A graph that begins without gradients does not serve where there are some."""

    def accumulate(t: Training) -> Callable:
        def step(x: Any, target: Any) -> Any:
            loss = t.loss(x, target)
            loss.backward()
            return loss

        return step

    def now_and_then(t: Training, i: int) -> None:
        if i < 3:
            t.optimizer.zero_grad()

    same(small, accumulate, between=now_and_then, graphs=2)


@case
def gradients_replaced() -> None:
    """A gradient that somebody puts in the place of the captured one is what the step goes on from."""

    def accumulate(t: Training) -> Callable:
        def step(x: Any, target: Any) -> Any:
            loss = t.loss(x, target)
            loss.backward()
            return loss

        return step

    def between(t: Training, i: int) -> None:
        if i >= 2:
            for p in t.model.parameters():
                p.grad = p.grad * 0.5

    same(small, accumulate, between=between)


@case
def schedulers() -> None:
    import tgrad

    for kind, options in (
        ("StepLR", {"step_size": 2, "gamma": 0.5}),
        ("OneCycleLR", {"max_lr": 0.3, "total_steps": 40}),  # moves betas, too
    ):

        def between(t: Training, i: int) -> None:
            if i == 0:
                t.scheduler = getattr(tgrad.optim.lr_scheduler, kind)(t.optimizer, **options)
            t.scheduler.step()

        same(small, lambda t: t.step, between=between)


@case
def random_numbers() -> None:
    import tgrad

    def draws(t: Training) -> Callable:
        def step(x: Any, target: Any) -> Any:
            u, n = tgrad.rand(3), tgrad.randn(2, dtype=tgrad.float64)
            kinds = tgrad.multinomial(tgrad.ones(4), 6, replacement=True)
            return tgrad.cat([u, n.float(), kinds.float(), tgrad.randperm(5).float(), tgrad.bernoulli(x[0], 0.5)])

        return step

    same(small, draws)
    same(small, draws, between=lambda t, i: tgrad.manual_seed(i) if i == 4 else tgrad.rand(3))


@case
def recomputed() -> None:
    """Recipes and checkpoints run dropout again, with the draws of this step."""
    import tgrad
    from tgrad.utils.checkpoint import checkpoint

    class Checkpointed(Training):
        def loss(self, x: Any, target: Any) -> Any:
            import tgrad.nn.functional as F

            hidden = checkpoint(self.model[:4], x, use_reentrant=False)
            return F.cross_entropy(self.model[4](hidden), target)

    same(Checkpointed, lambda t: t.step)
    smallest, tgrad.graph.SMALLEST_RECIPE = tgrad.graph.SMALLEST_RECIPE, 1
    try:
        for policy in ("lean", "leanest"):
            with tgrad.activation_memory(policy):
                same(Training, lambda t: t.step, steps=5)

        def pending(t: Training, i: int) -> None:
            """A forward pass whose backward comes after steps that write what would be recomputed for it."""
            weight = t.model[0].weight
            if i in (1, 4):
                t.before = weight.relu()
                t.before = t.before * t.before
            if i in (3, 5):
                (grad,) = tgrad.autograd.grad(t.before.sum(), weight)
                t.found.append(grad.tolist())

        same(Training, lambda t: t.step, between=pending)
    finally:
        tgrad.graph.SMALLEST_RECIPE = smallest


@case
def inference() -> None:
    import tgrad

    for mode in (tgrad.no_grad, tgrad.inference_mode):

        def forward(t: Training) -> Callable:
            t.model.eval()

            def step(x: Any, target: Any) -> Any:
                with mode():
                    return t.model(x).softmax(-1)

            return step

        same(small, forward)


@case
def signatures() -> None:
    """Shapes, Python arguments and modes have graphs of their own; trees of arguments and results."""
    import tgrad

    def both(pair: dict, scale: float = 1.0) -> dict:
        return {"twice": [pair["a"] * scale, 7], "sum": pair["b"].sum()}

    one = tgrad.cuda.graphed(both, warmup=1)
    for i in range(4):
        for n in (2, 3):
            for scale in (1.0, 2.0):
                a, b = tgrad.full((n,), float(i)), tgrad.arange(n) + i
                found = one({"a": a, "b": b}, scale=scale)
                assert found["twice"][0].tolist() == [scale * i] * n and found["twice"][1] == 7
                assert found["sum"].item() == sum(range(i, i + n))
    assert one.graphs == 4
    view = tgrad.arange(12).reshape(3, 4).float()
    for x in (view.t(), view[:, 1:3], tgrad.ones(1).expand(5)):
        doubled = tgrad.cuda.graphed(lambda x: x * 2 + x.sum(), warmup=1)
        for i in range(4):
            given = x + i if i % 2 else x
            assert doubled(given).tolist() == (given * 2 + given.sum()).tolist()
    many = tgrad.cuda.graphed(lambda x: x + 1, warmup=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for n in range(1, 11):
            for _ in range(3):
                assert many(tgrad.zeros(n)).tolist() == [1.0] * n
    assert len(told) == 1 and "more than 8 graphs" in str(told[0].message)
    one.reset()
    assert one.graphs == 0


@case
def modes_of_modules() -> None:
    def between(t: Training, i: int) -> None:
        t.model.train(i < 3)

    same(Training, lambda t: t.step, between=between, graphs=2)


@case
def state_replaced() -> None:
    """What is loaded into the optimiser, or set on it, is what the next step uses."""

    def between(t: Training, i: int) -> None:
        if i == 3:
            t.optimizer.load_state_dict(t.optimizer.state_dict())
        if i == 5:
            t.model.load_state_dict({k: v * 0.5 for k, v in t.model.state_dict().items()})

    same(small, lambda t: t.step, between=between, graphs=2)

    def slower(t: Training, i: int) -> None:
        if i == 3:
            saved = t.optimizer.state_dict()
            saved["param_groups"][0]["lr"] = 0.001
            t.optimizer.load_state_dict(saved)

    same(lambda: Training("SGD", small=True), lambda t: t.step, between=slower, graphs=2)

    def cleared(t: Training, i: int) -> None:
        if i == 3:
            t.optimizer.state.clear()

    same(small, lambda t: t.step, between=cleared, graphs=2)

    def other_update(t: Training, i: int) -> None:
        if i == 3:
            t.optimizer.param_groups[0]["weight_decay"] = 0.0

    same(small, lambda t: t.step, between=other_update, graphs=2)


@case
def own_optimizer() -> None:
    """An optimiser of the user's: its options are those of the capture, so other ones are captured anew."""
    import tgrad

    class Plain(tgrad.optim.Optimizer):
        def __init__(self, params: Any, lr: float) -> None:
            super().__init__(params, {"lr": lr})

        def step(self, closure: Any = None) -> None:
            with tgrad.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.add_(p.grad, alpha=-group["lr"])

    class Mine(Training):
        def __init__(self) -> None:
            super().__init__(small=True)
            self.optimizer = Plain(self.model.parameters(), 0.1)

    def between(t: Training, i: int) -> None:
        if i == 3:
            t.optimizer.param_groups[0]["lr"] = 0.01

    same(Mine, lambda t: t.step, between=between, graphs=2)


@case
def state_begun_late() -> None:
    """A state that begins in the step to be captured: zeros in each replay would forget it. The next step will do."""
    import tgrad

    late: list[bool] = []

    def make(t: Training) -> Callable:
        late.clear()
        head = tgrad.nn.Linear(3, 3)
        t.optimizer.add_param_group({"params": list(head.parameters())})

        def step(x: Any, target: Any) -> Any:
            t.optimizer.zero_grad()
            out = t.model(x)
            loss = tgrad.nn.functional.cross_entropy(head(out) if late else out, target)
            loss.backward()
            t.optimizer.step()
            return loss

        return step

    def between(t: Training, i: int) -> None:
        if i == WARMUP - 1:
            late.append(True)

    for name in ("Adam", "SGD"):
        options = {"momentum": 0.9} if name == "SGD" else {}
        same(lambda: Training(name, small=True, **options), make, between=between)


@case
def memory_stays() -> None:
    """What a graph reads is kept, though nobody else does; what it wrote is guarded by versions."""
    import tgrad

    kept = [tgrad.full((50,), 3.0)]
    one = tgrad.cuda.graphed(lambda x: x * kept[0], warmup=1)
    x = tgrad.ones(50, requires_grad=True)
    for _ in range(2):
        out = one(x.detach())
    kept[0] = tgrad.full((50,), 5.0)
    gc.collect()
    noise = [tgrad.full((50,), float("nan")) for _ in range(9)]
    assert one(x.detach()).tolist() == [3.0] * 50  # as captured: nothing told the graph
    assert len(noise) == 9
    y = x * out
    one(x.detach())
    raises(RuntimeError, "modified by an inplace operation", lambda: y.sum().backward())
