"""Custom Functions, where PyTorch has them."""

from tgrad.function import Function, FunctionCtx, once_differentiable

__all__ = ["Function", "FunctionCtx", "once_differentiable"]
