"""Numbers from the host into device memory. They are arguments of a launch: nobody has to keep them until it has run,
and nobody waits for a copy."""

from __future__ import annotations

import functools

import triton
import triton.language as tl

from tgrad.kernels.launch import Launch, holders, prepare

COUNT = 16  # words of one launch


@triton.jit
def put(out, words):
    """out[k] = words[k]."""
    for k in tl.static_range(len(words)):
        tl.store(out + k, words[k])


@functools.cache
def prepare_put() -> Launch:
    """A launch that takes an address and COUNT 64-bit integers to store there."""
    return prepare(put, (1,), ("*i64", ("i64",) * COUNT), (), {}, warps=1)


holders.append(prepare_put.cache_clear)
