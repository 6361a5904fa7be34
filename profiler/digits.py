"""The digits: scikit-learn's 1,797 real images of 8 x 8 pixels, and a training run on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import tgrad
from tgrad import nn, optim
from tgrad.profiler.errors import ProfilerError

TEST_IMAGES = 360  # a fifth of 1,797


@dataclass(frozen=True)
class Digits:
    """Images as float32 rows of 64 in [0, 1], labels as int64, split after shuffling."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def load(seed: int = 0) -> Digits:
    """The images, shuffled by `seed` and split 1,437 to 360.

    Raises:
        ProfilerError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ProfilerError(
            "workload digits: its images come with scikit-learn, which is not installed: pip install scikit-learn "
            "(or this package's extra 'examples')"
        ) from None
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    images, labels = (images[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    return Digits(images[TEST_IMAGES:], labels[TEST_IMAGES:], images[:TEST_IMAGES], labels[:TEST_IMAGES])


def batches(data: Digits, epochs: int, batch_size: int, seed: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(epoch, images, labels) of every training batch, in an order fixed by `seed`; an epoch's last may be smaller."""
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        order = rng.permutation(len(data.train_images))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            yield epoch, data.train_images[rows], data.train_labels[rows]


@dataclass(frozen=True)
class Training:
    """losses: of every step, in order; accuracy: the share of test images named right."""

    losses: tuple[float, ...]
    accuracy: float


def train_digits(
    model: Any,
    epochs: int = 20,
    batch_size: int = 64,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    seed: int = 0,
    data: Digits | None = None,
    on_epoch: Callable[[int], None] | None = None,
) -> Training:
    """Train `model` (64 inputs, 10 classes) with SGD and cross-entropy.

    Raises:
        ProfilerError: scikit-learn is not installed.
    """
    data = data or load(seed)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
    losses, last = [], -1
    for epoch, images, labels in batches(data, epochs, batch_size, seed):
        if on_epoch is not None and epoch != last:
            on_epoch(epoch)
        last = epoch
        optimizer.zero_grad()
        loss = criterion(model(tgrad.tensor(images)), tgrad.tensor(labels))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.item()))
    with tgrad.no_grad():
        scores = model(tgrad.tensor(data.test_images)).cpu().numpy()
    return Training(tuple(losses), float((scores.argmax(1) == data.test_labels).mean()))
