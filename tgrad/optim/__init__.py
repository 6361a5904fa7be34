"""Optimisers, with PyTorch's names, options and results. A parameter's step is one kernel."""

from tgrad.optim import lr_scheduler
from tgrad.optim.adagrad import Adagrad
from tgrad.optim.adam import Adam, AdamW
from tgrad.optim.optimizer import Optimizer
from tgrad.optim.rmsprop import RMSprop
from tgrad.optim.sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Optimizer", "RMSprop", "lr_scheduler"]
