"""The digits: training on them, step by step beside torch."""

import builtins
import sys

import numpy as np
import pytest
import torch

import tgrad
from tgrad import nn
from tgrad.profiler import ProfilerError, digits
from tgrad.profiler.workloads import Options, make


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("sklearn")
    return digits.load(0)


def train_torch(model, data, epochs, batch_size, learning_rate, momentum, seed):
    """The losses of each step, as `digits.train_digits` makes them."""
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
    losses = []
    for _, images, labels in digits.batches(data, epochs, batch_size, seed):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(images)), torch.from_numpy(labels))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
def test_twenty_epochs_are_torchs(data):
    tgrad.manual_seed(0)
    ours = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    theirs = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    with torch.no_grad():
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            other.copy_(torch.from_numpy(mine.detach().cpu().numpy().copy()))
    settings = {"epochs": 20, "batch_size": 128, "learning_rate": 0.1, "momentum": 0.9, "seed": 0}
    found = digits.train_digits(ours, data=data, **settings)
    expected = train_torch(theirs, data, **settings)
    assert len(expected) == 20 * 12
    np.testing.assert_allclose(found.losses, expected, rtol=1e-4)
    assert found.accuracy >= 0.95


def test_the_split_is_fixed_and_whole(data):
    again = digits.load(0)
    assert np.array_equal(data.train_images, again.train_images)
    assert data.train_images.shape == (1437, 64) and data.test_images.shape == (360, 64)
    assert data.train_images.dtype == np.float32 and data.train_labels.dtype == np.int64
    assert data.train_images.min() >= 0 and data.train_images.max() == 1
    assert not np.array_equal(data.test_labels, digits.load(1).test_labels)


def test_batches_cover_every_image_once_an_epoch(data):
    seen = [(epoch, len(labels)) for epoch, _, labels in digits.batches(data, 2, 100, 0)]
    assert [sum(n for e, n in seen if e == epoch) for epoch in (0, 1)] == [1437, 1437]
    assert seen[14] == (0, 37)


def test_without_scikit_learn_one_line_says_what_to_do(monkeypatch):
    real = builtins.__import__

    def no_sklearn(name, *args):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args)

    for name in [n for n in sys.modules if n.startswith("sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", no_sklearn)
    with pytest.raises(ProfilerError, match="pip install scikit-learn"):
        make("digits", Options())


def test_more_rows_than_images_are_refused(data):
    with pytest.raises(ProfilerError, match="a batch of 2000 was asked for"):
        make("digits", Options(batch_size=2000))
