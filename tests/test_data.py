"""DataLoader and numpy arrays as they are."""

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

import tgrad as T
from tests.compare import TORCH
from tgrad import nn
from tgrad.device import compute


class Rows(Dataset):
    """Ten samples, as `make` has them: (values, label, {"index": ..., "name": ...})."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 10

    def __getitem__(self, i):
        return self.make(np.full(3, i, np.float32)), i % 3, {"index": i, "name": f"row {i}"}


def same_array(a):
    return a


on_cpu = pytest.mark.skipif(compute.type != "cpu", reason="workers are forked, and a GPU cannot be used in them")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=on_cpu)])
@pytest.mark.parametrize("make", [same_array, torch.from_numpy, pytest.param(T.from_numpy, marks=on_cpu)])
def test_a_model_trains_from_a_loader(make, workers):
    model, seen = nn.Linear(3, 3), []
    optimizer = T.optim.SGD(model.parameters(), lr=0.01)
    loader = DataLoader(Rows(make), batch_size=4, num_workers=workers)
    for values, labels, rest in loader:
        x, y = T.as_tensor(values), T.as_tensor(labels)
        assert isinstance(values, T.Tensor if make is T.from_numpy else torch.Tensor)
        assert x.dtype is T.float32 and y.dtype is T.int64 and x.device is compute
        assert y.tolist() == [i % 3 for i in rest["index"].tolist()] and len(rest["name"]) == len(x)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        seen += x[:, 0].tolist()
    assert seen == list(range(10))


def test_a_dataset_of_tensors():
    x, y = T.arange(12.0).reshape(6, 2), T.arange(6)
    dataset = TensorDataset(x, y)
    assert len(dataset) == 6 and dataset[1][0].tolist() == [2, 3]
    for i, (a, b) in enumerate(DataLoader(dataset, batch_size=4)):
        assert isinstance(a, T.Tensor) and a.tolist() == x[4 * i : 4 * i + 4].tolist() and b.dtype is T.int64
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(dataset, batch_size=3, shuffle=True, drop_last=True, generator=generator)
    assert sorted(v for _, b in loader for v in b.tolist()) == list(range(6))


@pytest.mark.parametrize("dtype", list(TORCH), ids=repr)
def test_collate(dtype):
    batch = [T.tensor([[i, 1]]).to(dtype) for i in range(2)]
    out = default_collate([{"a": t, "b": (t, 1)} for t in batch])
    assert out["a"].dtype is dtype and out["a"].tolist() == T.stack(batch).tolist() == out["b"][0].tolist()
    with pytest.raises(RuntimeError, match="equal size"):
        default_collate([T.ones(2), T.ones(3)])
    assert default_collate([T.ones(()), T.zeros(())]).tolist() == [1, 0]


def test_pinned_batches():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without a GPU there is nothing to pin for
        for dataset in (TensorDataset(torch.eye(4)), TensorDataset(T.eye(4))):
            (batch,) = next(iter(DataLoader(dataset, batch_size=4, pin_memory=True)))
            assert T.as_tensor(batch).tolist() == np.eye(4).tolist()


@on_cpu
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")  # PyTorch's own
def test_numpy_beside_tensors():
    a = np.arange(3.0)
    for library in (T, torch):
        t = library.ones(3, dtype=library.float64, requires_grad=True)
        out = np.float64(2) * t + t * a[1]
        (out * library.tensor(a)).sum().backward()
        assert t.grad.tolist() == [0, 3, 6] and out.tolist() == [3, 3, 3]
        plain = t.detach()
        for found in (plain * a, np.exp(plain), np.add(plain, a), plain == a, plain - a, np.float32(2) / plain):
            assert isinstance(found, library.Tensor)
        assert np.isnan(plain).dtype is library.uint8
        with pytest.raises(TypeError, match="unsupported operand"):
            a * plain
        with pytest.raises(RuntimeError, match="requires grad"):
            np.exp(t)
    t = T.ones(3, dtype=T.float64, requires_grad=True)
    (t * a).sum().backward()
    assert t.grad.tolist() == [0, 1, 2]
    assert np.stack([T.ones(2), T.zeros(2)]).tolist() == [[1, 1], [0, 0]] and float(np.asarray(T.tensor(2.5))) == 2.5
