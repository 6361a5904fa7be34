"""Kernels that break the gates, since gates that cannot fail hold nothing: `python -m tests.aot_bad REPORT.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.aot_gates import figures


@triton.jit
def cheap_exp(out, a, b, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.exp(tl.load(a + i)))


@triton.jit
def cheap_div(out, a, b, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(a + i) / tl.load(b + i))


@triton.jit
def cheap_sqrt(out, a, b, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.sqrt(tl.load(a + i)))


@triton.jit
def nan_lost(out, a, b, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.maximum(tl.load(a + i), tl.load(b + i)))


@triton.jit
def contracted(out, a, b, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(a + i)
    tl.store(out + i, x * x + tl.load(b + i))


@triton.jit
def product(out, a, b, BLOCK: tl.constexpr):
    i, j = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    x, y = tl.load(a + i * BLOCK + j), tl.load(b + i * BLOCK + j)
    tl.store(out + i * BLOCK + j, tl.dot(x, y, input_precision="ieee"))


def build(
    kernel: Any, kind: str = "*fp32", block: int = 1024, *, aligned: bool = True, arch: int = 90, **options: Any
) -> dict[str, Any]:
    """Figures of `kernel(out, a, b, BLOCK)`."""
    source = ASTSource(
        fn=kernel, signature={"out": kind, "a": kind, "b": kind, "BLOCK": "constexpr"}, constexprs={"BLOCK": block},
        attrs={(i,): [["tt.divisibility", 16]] for i in range(3)} if aligned else {},
    )  # fmt: skip
    return figures(
        triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"enable_reflect_ftz": False, **options})
    )


def main(report: str) -> None:
    found = {
        "cheap_exp": build(cheap_exp), "cheap_div": build(cheap_div), "cheap_sqrt": build(cheap_sqrt),
        "nan_lost": build(nan_lost), "nan_lost_64": build(nan_lost, "*fp64"),
        "contracted": build(contracted) | {"fusion": False},
        "not_contracted": build(contracted, enable_fp_fusion=False),
        "no_matrix": build(product, block=32), "spilled": build(product, block=64, maxnreg=32),
        "unaligned": build(contracted, aligned=False), "aligned": build(contracted),
    }  # fmt: skip
    Path(report).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
