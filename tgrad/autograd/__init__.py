"""Backward passes, gradients, grad modes, custom Functions and the graph."""

from tgrad.anomaly import detect_anomaly, is_anomaly_enabled, set_detect_anomaly
from tgrad.autograd import anomaly_mode, function, functional, grad_mode, graph
from tgrad.autograd.grad_mode import is_multithreading_enabled, set_multithreading_enabled
from tgrad.autograd.gradcheck import gradcheck, gradgradcheck
from tgrad.differentiate import backward, grad
from tgrad.function import Function
from tgrad.modes import enable_grad, inference_mode, no_grad, set_grad_enabled

__all__ = [
    "Function", "anomaly_mode", "backward", "detect_anomaly", "enable_grad", "function", "functional", "grad",
    "grad_mode", "gradcheck", "gradgradcheck", "graph", "inference_mode", "is_anomaly_enabled",
    "is_multithreading_enabled", "no_grad", "set_detect_anomaly", "set_grad_enabled", "set_multithreading_enabled",
]  # fmt: skip
