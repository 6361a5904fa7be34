"""Attention compiled ahead of time: programs for the sweep of everything (aot_sweep.py), and each tile of its table.

    python -m tests.aot_attention 90                   every variant of every tile for sm_90; lists what breaks a gate
    python -m tests.aot_attention 90 some REPORT.json  what CI holds: one variant of each row of the table

It needs TGRAD_LAUNCH=compile:90 in the environment, and sets it where it is not.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tests.aot_sweep import Program


def programs() -> Iterator[Program]:
    """Of the two usual widths in bfloat16, one with a mask, dropout and offsets beyond 31 bits; in float32."""
    import tgrad
    import tgrad.nn.functional as F
    from tests.aot_sweep import Program, backward, pretended

    def both(dtype: Any, width: int, strides: Any = None, mask: Any = None, **options: Any) -> None:
        q, k, v = (pretended((2, 4, 512, width), dtype, strides).requires_grad_() for _ in range(3))
        backward(F.scaled_dot_product_attention(q, k, v, mask, **options))

    far, mask = (2**31, 512 * 128, 128, 1), pretended((512, 512), tgrad.bool)
    tags = "attention", "bfloat16"
    yield Program("attention bfloat16", lambda: both(tgrad.bfloat16, 64, is_causal=True), tags)
    masked = lambda: both(tgrad.bfloat16, 128, far, mask, dropout_p=0.1)
    yield Program("attention bfloat16 of 128, sums in float32", masked, tags, full=True)
    yield Program("attention float32", lambda: both(tgrad.float32, 64), ("attention",), full=True)


# --- tiles -----------------------------------------------------------------------------------------------------------
class Variant(NamedTuple):
    """One kernel of an attention.

    Attributes:
        kernel: "forward", "query" or "key".
        dtype: Triton type of the operands; width: of the heads.
        mask: Triton type of the mask's elements, or "".
        extra: "causal", "odd" (sizes and rows of the mask that are no multiple of 16 bytes), "wide" (offsets of 64
            bits), "grouped" (four heads of queries to one of keys), or "".
    """

    kernel: str
    dtype: str
    width: int
    mask: str
    drops: bool
    extra: str

    @property
    def label(self) -> str:
        what = [self.kernel, self.dtype, str(self.width), self.mask and f"mask {self.mask}", self.drops * "dropout"]
        return " ".join(filter(None, [*what, self.extra]))


def every(arch: int) -> Iterator[Variant]:
    """All kinds of attention that the table has rows for. Float16 has the tiles of bfloat16, and its code."""
    widths = {"bf16": (16, 32, 64, 96, 128, 192, 256), "fp16": (64,), "fp32": (16, 32, 64, 96, 128)}
    plain = [("", extra) for extra in ("", "causal", "odd", "wide")]
    for dtype in widths:
        for width, kernel, drops in product(widths[dtype], ("forward", "query", "key"), (False, True)):
            masks = [("i1", ""), (dtype, "odd"), ("fp32", ""), ("fp32", "wide")]
            for mask, extra in plain + [("", "grouped")] * (kernel == "key") + masks:
                yield Variant(kernel, dtype, width, mask, drops, extra)


def some(arch: int) -> Iterator[Variant]:
    """One variant of each row, in turn another one."""
    from tgrad.kernels.attention_tiles import TILES

    turns = [("", False, "causal"), ("fp32", True, ""), ("", True, "wide"), ("i1", False, "")]
    rows = [(kernel, kind, width) for (kernel, kind), table in TILES.items() for width in table]
    for i, (kernel, kind, width) in enumerate(rows):
        mask, drops, extra = turns[i % len(turns)]
        yield Variant(kernel, "bf16" if kind == "half" else "fp32", width, mask, drops, extra)


def compiled(v: Variant, n: int = 2048, heads: int = 16) -> list[Any]:
    """The kernels of a variant, compiled: two where the gradients of key and value have one each."""
    from tgrad.kernels import launch
    from tgrad.kernels.attention import Problem, prepare_attention
    from tgrad.kernels.attention_backward import prepare_key, prepare_query

    n, group = n - (v.extra == "odd"), 4 if v.extra == "grouped" else 1
    far = (2**32, n * v.width) if v.extra == "wide" else (heads * n * v.width, n * v.width)
    operand, mask = (*far, v.width, 1), [(0, 0, n, 1)] * bool(v.mask)
    problem = Problem(
        v.dtype, "fp32", v.mask or None, "i64" if v.drops else None, 8 * heads, (n, n, v.width, v.width),
        v.extra == "causal", "tf32x3", aligned=True, wide=v.extra == "wide",
    )  # fmt: skip
    used: list[Any] = []
    compile = launch.compile

    def watched(*args: Any) -> Any:
        used.append(compile(*args))
        return used[-1]

    launch.compile = watched  # type: ignore[assignment]
    try:
        if v.kernel == "forward":
            prepare_attention(problem, (8, heads), [operand] * 4 + mask, v.label)
        elif v.kernel == "query":
            prepare_query(problem, v.dtype, (8, heads), [operand] * 5 + mask, v.label)
        else:
            steps = (n * v.width, n * v.width, *[0 for _ in mask])
            both = [(True, True)] if problem.tile("key").together else [(True, False), (False, True)]
            for wanted in both:
                prepare_key(problem, v.dtype, (8, heads), [operand] * 6 + mask, (group, steps), wanted, v.label)
    finally:
        launch.compile = compile
    return used


def moves(f: dict[str, Any]) -> str | None:
    """Operands come 16 bytes at a time, and so do results go, where rows are a multiple of that."""
    from tests.aot_gates import widest

    if not f["aligned"]:
        return None
    if not f["async16"] and widest(f["loads"]) < 16:
        return f"loads of {f['loads']} bytes, no asynchronous ones of 16"
    narrow = {k: n for k, n in f["stores"].items() if int(k) < 16}  # a number of each row: log-sum-exp, or delta
    return f"stores of {f['stores']} bytes" if widest(f["stores"]) < 16 or sum(narrow.values()) > 1 else None


def report(variants: Iterator[Variant]) -> dict[str, dict]:
    """Figures (see aot_gates.py) by label, with the variant's own."""
    from tests import aot_gates

    found = {}
    for v in variants:
        for i, kernel in enumerate(compiled(v)):
            figures = aot_gates.figures(kernel)
            found[v.label + " of value" * i] = {**figures, "aligned": v.extra != "odd", "variant": v._asdict()}
    return found


def main(arch: str, how: str = "every", path: str = "") -> int:
    os.environ.setdefault("TGRAD_LAUNCH", f"compile:{arch}")
    from tests import aot_gates

    gates = aot_gates.no_spills, aot_gates.shared_fits, aot_gates.right_arithmetic, aot_gates.matrix_units, moves
    found = report((every if how == "every" else some)(int(arch)))
    if path:
        Path(path).write_text(json.dumps(found))
        return 0
    wrong = {l: said for l, f in found.items() if (said := [s for g in gates if (s := g(f))])}
    for label, said in wrong.items():
        print(label, "|", "; ".join(said))
    print(f"{len(found)} kernels, {len(wrong)} of them break a gate")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
