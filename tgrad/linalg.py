"""The part of `torch.linalg` that needs no factorisation: vector norms."""

from tgrad.ops.statistics import vector_norm as vector_norm
