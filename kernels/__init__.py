"""Triton kernels and their launching: addresses and numbers in, memory written. Nothing here allocates or records."""
