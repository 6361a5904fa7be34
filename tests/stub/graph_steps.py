"""Steps with and without a CUDA graph, on whatever device there is: alike to the bit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

STEPS = 7  # of which WARMUP warm up, and one captures
WARMUP = 2


class Training:
    """A model, its optimiser and what is drawn from seed 1, alike for each of two ways to run."""

    def __init__(
        self, optimizer: str = "AdamW", dtype: str = "float32", steps: int = STEPS, small: bool = False,
        **options: Any,
    ) -> None:
        import tgrad
        import tgrad.nn as nn

        tgrad.manual_seed(1)
        self.found: list[Any] = []  # what a case wants compared, too
        large = [nn.Linear(5, 7), nn.BatchNorm1d(7), nn.GELU(), nn.Dropout(0.3), nn.Linear(7, 3)]
        layers = [nn.Linear(5, 3), nn.Dropout(0.3)] if small else large
        self.model = nn.Sequential(*layers).to(getattr(tgrad, dtype))
        self.optimizer = getattr(tgrad.optim, optimizer)(self.model.parameters(), **{"lr": 0.05, **options})
        self.inputs = [tgrad.randn(4, 5, dtype=getattr(tgrad, dtype)) for _ in range(steps)]
        self.targets = [tgrad.randint(0, 3, (4,)) for _ in range(steps)]

    def loss(self, x: Any, target: Any) -> Any:
        import tgrad.nn.functional as F

        return F.cross_entropy(self.model(x), target)

    def step(self, x: Any, target: Any) -> Any:
        self.optimizer.zero_grad()
        loss = self.loss(x, target)
        loss.backward()
        self.optimizer.step()
        return loss

    def state(self) -> list[Any]:
        """All that a step changes, as bytes and numbers."""
        from tgrad.random import default_generator

        tensors = [*self.model.parameters(), *self.model.buffers()]
        grads = [None if p.grad is None else p.grad.tolist() for p in self.model.parameters()]
        kept = [
            {k: v.tolist() if hasattr(v, "tolist") else v for k, v in self.optimizer.state.get(p, {}).items()}
            for p in self.model.parameters()
        ]
        versions = [t._version for t in tensors]
        drawn = default_generator._offset, default_generator._seed
        return [[t.tolist() for t in tensors], grads, kept, versions, *drawn, list(self.found)]


def run(
    make: Callable[[], Training], step: Callable[[Training], Callable], *, graphed: bool, graphs: int = 1,
    between: Callable[[Training, int], Any] = lambda training, i: None, steps: int = STEPS,
) -> list[Any]:  # fmt: skip
    """What each step gives and leaves behind. `between` comes after each."""
    import tgrad

    training = make()
    one = step(training)
    if graphed:
        one = tgrad.cuda.graphed(one, WARMUP)
    history = []
    for i in range(steps):
        out = one(training.inputs[i], training.targets[i])
        noise = [tgrad.full((n,), float("nan")) for n in (3, 20, 35, 600)]  # takes whatever memory is free
        history.append([out.tolist(), *training.state()])
        del noise
        between(training, i)
    if graphed:
        assert one.reason is None, one.reason
        assert one.graphs == graphs, f"{one.graphs} graphs"
    return history


def difference(a: Any, b: Any) -> str:
    """Where two histories part."""
    if isinstance(a, (list, dict)) and type(a) is type(b) and len(a) == len(b):
        keys = a if isinstance(a, dict) else range(len(a))
        return next((f"[{k!r}]{difference(a[k], b[k])}" for k in keys if repr(a[k]) != repr(b[k])), "equal")
    return f": {a} without a graph, {b} with one"


def same(make: Callable[[], Training], step: Callable[[Training], Callable], **more: Any) -> None:
    graphs = more.pop("graphs", 1)
    eager = run(make, step, graphed=False, **more)
    got = run(make, step, graphed=True, graphs=graphs, **more)
    for i, (a, b) in enumerate(zip(eager, got, strict=True)):
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert repr(x) == repr(y), f"step {i}, part {k}: {difference(x, y)}"


def falls_back(says: str, step: Callable[[Training], Callable]) -> None:
    """As without a graph, to the bit, and one warning."""
    import tgrad

    make = lambda: Training(small=True)
    eager = run(make, step, graphed=False, steps=3)
    training = make()
    one = tgrad.cuda.graphed(step(training), warmup=1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        history = []
        for i in range(3):
            out = one(training.inputs[i], training.targets[i])
            history.append([out.tolist(), *training.state()])
    for i, (a, b) in enumerate(zip(eager, history, strict=True)):
        assert repr(a) == repr(b), f"{says}, step {i}: {difference(a, b)}"
    texts = [str(w.message) for w in told if "graphed" in str(w.message)]
    assert len(texts) == 1 and says in texts[0], (says, texts)
    assert one.reason is not None and one.graphs == 0
