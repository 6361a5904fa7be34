"""The models of the examples against the same code on PyTorch, from the same weights: outputs, gradients, training."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import tgrad as T
from tests.compare import random
from tests.twins import host

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
pytestmark = [pytest.mark.anywhere, pytest.mark.filterwarnings("ignore:.*nested tensor")]

SMALL = {
    "mlp": ("MLP", {"inputs": 6, "hidden": 16, "classes": 3, "dropout": 0.0}),
    "mixer": ("Mixer", {"size": 8, "patch": 4, "width": 12, "depth": 2, "classes": 3}),
    "transformer": ("Transformer", {"vocabulary": 11, "length": 6, "width": 16, "heads": 2, "depth": 2}),
}


def example(name, library):
    """The example's module, with `library` in the place of tgrad."""
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    if library is torch:
        source = source.replace("import tgrad as torch", "import torch").replace("from tgrad", "from torch")
    spec = importlib.util.spec_from_loader(f"{name}_{library.__name__}", loader=None)
    module = importlib.util.module_from_spec(spec)
    exec(compile(source, f"{name}.py", "exec"), vars(module))
    return module


def twins(name):
    """The small model in tgrad, with PyTorch's weights, and in PyTorch."""
    kind, sizes = SMALL[name]
    torch.manual_seed(0)
    theirs = getattr(example(name, torch), kind)(**sizes)
    ours = getattr(example(name, T), kind)(**sizes)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    return ours, theirs


def data(name, n=8, key=0):
    """(inputs, targets), as numpy arrays."""
    rng = random(name, key)
    if name == "transformer":
        tokens = rng.integers(0, 11, (n, 7))
        return tokens[:, :-1], tokens[:, 1:].reshape(-1)
    shape = (n, 6) if name == "mlp" else (n, 8, 8)
    return rng.standard_normal(shape).astype(np.float32), rng.integers(0, 3, n)


def loss_of(library, model, inputs, targets):
    scores = model(library.tensor(np.ascontiguousarray(inputs)))
    loss = library.nn.functional.cross_entropy(scores.reshape(-1, scores.shape[-1]), library.tensor(targets))
    return scores, loss


def relative(got, want):
    got, want = host(got).astype(np.float64), want.detach().numpy().astype(np.float64)
    return np.abs(got - want).max() / max(np.abs(want).max(), 1e-12)


@pytest.mark.parametrize("name", list(SMALL))
def test_outputs_and_gradients(name):
    ours, theirs = twins(name)
    inputs, targets = data(name)
    (a, first), (b, second) = loss_of(T, ours, inputs, targets), loss_of(torch, theirs, inputs, targets)
    assert relative(a, b) < 1e-5 and relative(first, second) < 1e-5
    first.backward(), second.backward()
    scale = max(float(q.grad.abs().max()) for q in theirs.parameters())
    for (path, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        error = np.abs(host(p.grad) - q.grad.numpy()).max()
        # A gradient that is zero but for rounding, as of a bias before batch norm, is compared with the others' size.
        assert error < 1e-4 * max(float(q.grad.abs().max()), 1e-2 * scale), path


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.thorough) if n == "transformer" else n for n in SMALL]
)
def test_fifty_steps_of_adamw(name):
    ours, theirs = twins(name)
    optimizers = [library.optim.AdamW(m.parameters(), lr=1e-3) for library, m in ((T, ours), (torch, theirs))]
    for step in range(50):
        inputs, targets = data(name, key=step % 5)
        found = []
        for library, model, optimizer in zip((T, torch), (ours, theirs), optimizers):
            optimizer.zero_grad()
            _, loss = loss_of(library, model, inputs, targets)
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        assert abs(found[0] - found[1]) < 1e-3 * abs(found[1]), f"step {step}: {found}"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMALL))
def test_the_examples_run(name, capsys):
    first, last = example(name, T).train(steps=2)
    assert np.isfinite([first, last]).all() and capsys.readouterr().out.startswith("step 0: loss")
