"""Backward passes, gradients, grad modes and the graph."""

from tgrad.autograd import grad_mode, graph
from tgrad.engine import backward, grad
from tgrad.modes import enable_grad, inference_mode, no_grad, set_grad_enabled

__all__ = ["backward", "enable_grad", "grad", "grad_mode", "graph", "inference_mode", "no_grad", "set_grad_enabled"]
