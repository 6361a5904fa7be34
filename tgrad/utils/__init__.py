"""Tools for training."""

from tgrad.utils import checkpoint

__all__ = ["checkpoint"]
