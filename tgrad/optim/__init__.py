"""Optimisers, with PyTorch's names, options and results. A parameter's step is one kernel."""

from tgrad.optim.adam import Adam, AdamW
from tgrad.optim.optimizer import Optimizer
from tgrad.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer"]
