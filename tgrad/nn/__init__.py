"""Neural network modules, with PyTorch's names, defaults and initialisation."""

from tgrad.nn import functional, init
from tgrad.nn.activation import (
    ELU,
    GELU,
    Flatten,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from tgrad.nn.container import ModuleList, Sequential
from tgrad.nn.dropout import Dropout
from tgrad.nn.linear import Identity, Linear
from tgrad.nn.loss import CrossEntropyLoss, MSELoss
from tgrad.nn.module import Module, current_path
from tgrad.nn.norm import BatchNorm1d
from tgrad.nn.parameter import Buffer, Parameter

__all__ = [
    "ELU", "GELU", "BatchNorm1d", "Buffer", "CrossEntropyLoss", "Dropout", "Flatten", "Identity", "LeakyReLU", "Linear",
    "LogSoftmax", "MSELoss", "Module", "ModuleList", "Parameter", "ReLU", "Sequential", "SiLU", "Sigmoid", "Softmax",
    "Softplus", "Tanh", "current_path", "functional", "init",
]  # fmt: skip
