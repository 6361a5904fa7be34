"""Backward passes, gradients, grad modes, custom Functions and the graph."""

from tgrad.autograd import function, grad_mode, graph
from tgrad.engine import backward, grad
from tgrad.function import Function
from tgrad.modes import enable_grad, inference_mode, no_grad, set_grad_enabled

__all__ = [
    "Function", "backward", "enable_grad", "function", "grad", "grad_mode", "graph", "inference_mode", "no_grad",
    "set_grad_enabled",
]  # fmt: skip
