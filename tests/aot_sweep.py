"""Compiles tgrad's kernels for a GPU that is not there: `python -m tests.aot_sweep ARCH SHARD SHARDS REPORT.json`.

Runs ops forward and backward with TGRAD_LAUNCH=compile:ARCH, which compiles each kernel and launches nothing, and
reports what the compiler made of each: see aot_gates.figures. Kernels are cached by Triton, figures beside them.
"""

from __future__ import annotations

import ast
import importlib
import json
import os
import pkgutil
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

N = 65536  # divisible by 16, and enough for every thread of several programs


class Program(NamedTuple):
    """Something that launches kernels.

    Attributes:
        tags: say what is expected of them.
        full: leaves it to the sweep of sm_90, if it is of float32, and to the thorough ones (TGRAD_THOROUGH=1).
    """

    label: str
    run: Callable[[], Any]
    tags: tuple[str, ...] = ()
    full: bool = False


# --- what is run -----------------------------------------------------------------------------------------------------
def programs() -> Iterator[Program]:
    """All programs. Values do not matter: nothing is computed."""
    from tests import aot_accesses, aot_attention

    yield from aot_accesses.programs()
    yield from aot_attention.programs()
    yield from table()
    yield from dense()
    yield from reductions()
    yield from rows()
    yield from products()
    yield from made()
    yield from fusions()
    yield from wide()


def pretended(
    shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None, *, aligned: bool = True
) -> Any:
    """A tensor of any size that owns 16 bytes: good enough where nothing is launched."""
    from tgrad.device import compute
    from tgrad.layout import layout
    from tgrad.storage import Storage
    from tgrad.tensor import Version, make

    storage = Storage(16, compute)
    return make(layout(dtype, shape, strides, compute, aligned), storage, storage.ptr, Version.zero())


def backward(out: Any) -> None:
    import tgrad

    if out.requires_grad:
        out.backward(tgrad.ones_like(out))


def table() -> Iterator[Program]:
    """The sample table, forward and backward: a common case of each in float32, and of each fourth in another dtype.

    The smaller sweeps take every sixteenth sample: all programs together must compile in a minute or two.
    """
    import tgrad
    from tests.samples import SAMPLES

    def run(sample: Any, case: Any, dtype: Any) -> Callable[[], Any]:
        def both() -> None:
            arguments = sample.build(case, dtype)[0]
            try:
                out = sample.ours(*arguments, **case.settings)
            except RuntimeError:
                if dtype.is_floating_point:
                    raise
                return  # not defined on integers, as test_ops.py holds
            backward(out)

        return both

    for k, sample in enumerate(SAMPLES):
        cases = sample.common
        one = sample.in_turn(k)
        yield Program(f"{sample.id} {one.id} float32", run(sample, one, tgrad.float32), full=k % 16 > 0)
        if k % 4 == 1:
            others = [tgrad.float64, (tgrad.bfloat16, tgrad.float16)[k // 4 % 2]]
            if sample.integers:
                others.append((tgrad.int64, tgrad.uint8, tgrad.int32, tgrad.bool)[k // 4 % 4])
            dtype = others[k // 4 % len(others)]
            yield Program(f"{sample.id} {cases[0].id} {dtype.name}", run(sample, cases[0], dtype), full=True)


def dense() -> Iterator[Program]:
    """Every row of the op table over whole, aligned tensors."""
    import tgrad
    from tgrad.ops import creation, pointwise as p

    for k, (name, row) in enumerate(p.TABLE.items()):
        for dtype in (tgrad.float32, tgrad.bfloat16):

            def arguments(name: str = name, row: Any = row, dtype: Any = dtype, aligned: bool = True) -> list:
                dtype = tgrad.int64 if name.startswith("bitwise") else dtype
                kinds = [tgrad.bool if n == "condition" else dtype for n in row.inputs]
                return [pretended((N,), kind, aligned=aligned) for kind in kinds]

            if dtype is (tgrad.float32, tgrad.bfloat16)[k // 4 % 2] and k % 4:
                continue  # the two take turns
            tags = ("dense", dtype.name)
            full = k % 4 > 0 or dtype is tgrad.float32
            yield Program(f"{name} dense {dtype.name}", lambda row=row, a=arguments: row(*a()), tags, full)
    x = pretended((N,), tgrad.float32, aligned=False)
    yield Program("exp unaligned", lambda: p.exp(x), ("unaligned",))
    yield Program("dropout unaligned", lambda: creation.dropout(x, 0.5), ("unaligned",))
    yield Program("add in place", lambda: pretended((N,), tgrad.float32).add_(2.0), ("dense", "float32"))


def reductions() -> Iterator[Program]:
    import tgrad

    for dtype in (tgrad.float32, tgrad.bfloat16, tgrad.int64):
        for dim in (0, 1, None):

            def sums(dtype: Any = dtype, dim: Any = dim) -> None:
                x = pretended((4096, 2048), dtype)
                tgrad.sum(x, dim)
                tgrad.amax(x, dim) if dim is not None else tgrad.amin(x)
                if dtype.is_floating_point:
                    tgrad.mean(x, dim)

            yield Program(f"sum, mean, amax {dtype.name} {dim}", sums, full=dtype is not tgrad.float32)

            def others(dtype: Any = dtype, dim: Any = dim) -> None:
                x = pretended((4096, 2048), dtype)
                tgrad.argmax(x, dim)
                tgrad.prod(x, dim)
                if dim is not None:
                    tgrad.cumsum(x, dim)
                    tgrad.cumprod(x, dim)
                if dtype.is_floating_point:
                    tgrad.std(x, dim)
                    tgrad.norm(x, 3, dim)
                    tgrad.logsumexp(x, (0, 1) if dim is None else dim)

            full = dtype is not tgrad.float32 or dim != 1
            yield Program(f"argmax, cumsum, std {dtype.name} {dim}", others, full=full)


def rows() -> Iterator[Program]:
    import tgrad
    import tgrad.nn.functional as F

    for dtype in (tgrad.float32, tgrad.bfloat16):
        for i, (shape, dim) in enumerate(
            (((512, 1000), 1), ((64, 50257), 1), ((1000, 512), 0), ((4096, 4), 1), ((64, 1), 1))
        ):

            def both(dtype: Any = dtype, shape: tuple = shape, dim: int = dim, i: int = i) -> None:
                function = (F.softmax, F.log_softmax)[i % 2]
                backward(function(pretended(shape, dtype).requires_grad_(), dim))

            yield Program(f"softmax {dtype.name} {shape} {dim}", both, full=i > 1 or dtype is tgrad.bfloat16)

        def loss(dtype: Any = dtype) -> None:
            smooth = {"weight": pretended((16,), dtype), "label_smoothing": 0.1}
            for shape, options in (((512, 1000), {}), ((64, 50257), {"reduction": "sum"}), ((20000, 16), smooth)):
                target = tgrad.tensor(np.zeros(shape[0], np.int64))
                backward(F.cross_entropy(pretended(shape, dtype).requires_grad_(), target, **options))

        yield Program(f"cross_entropy {dtype.name}", loss, full=dtype is tgrad.bfloat16)

        def linear_loss(dtype: Any = dtype) -> None:
            x, w, b = (pretended(shape, dtype).requires_grad_() for shape in ((512, 64), (1000, 64), (1000,)))
            target, each = tgrad.tensor(np.zeros(512, np.int64)), pretended((1000,), dtype)
            backward(F.linear_cross_entropy(x, w, target, linear_bias=b))
            backward(F.linear_cross_entropy(x, w, target, weight=each, label_smoothing=0.1, reduction="none"))

        yield Program(f"linear_cross_entropy {dtype.name}", linear_loss, full=dtype is not tgrad.bfloat16)

        def norm(dtype: Any = dtype) -> None:
            weight = pretended((1000,), dtype).requires_grad_()
            backward(F.layer_norm(pretended((512, 1000), dtype).requires_grad_(), (1000,), weight, weight))

        yield Program(f"layer_norm {dtype.name}", norm, full=dtype is tgrad.bfloat16)

        def batches(dtype: Any = dtype) -> None:
            for shape in ((8192, 64), (256, 1000), (64, 16, 32, 32)):
                channels = [pretended(shape[1:2], dtype).requires_grad_() for _ in range(2)]
                running = [pretended(shape[1:2], tgrad.float32) for _ in range(2)]
                for training in (True, False):
                    backward(F.batch_norm(pretended(shape, dtype).requires_grad_(), *running, *channels, training))

        yield Program(f"batch_norm {dtype.name}", batches, full=dtype is tgrad.bfloat16)
    yield Program("tril", lambda: tgrad.tril(pretended((512, 512), tgrad.float32)))


def products() -> Iterator[Program]:
    """Linear, forward (NT) and backward (NN, TN), and batched products."""
    import tgrad
    import tgrad.nn.functional as F

    for dtype in (tgrad.bfloat16, tgrad.float16, tgrad.float32, tgrad.float64):
        for m, n, k in ((4096, 4096, 1024), (1024, 256, 512), (256, 10, 64), (1, 4096, 1024), (333, 77, 55)):

            def linear(dtype: Any = dtype, m: int = m, n: int = n, k: int = k) -> None:
                x, w, b = (pretended(s, dtype).requires_grad_() for s in ((m, k), (n, k), (n,)))
                backward(F.linear(x, w, b))

            big = min(m, n, k) >= 256 and dtype is not tgrad.float64
            if dtype is tgrad.float16 and not big:
                continue
            more = m > 1024 and dtype is not tgrad.bfloat16
            full = dtype is tgrad.float16 or min(m, n, k) < 256 or more
            yield Program(f"linear {dtype.name} {(m, n, k)}", linear, ("product", dtype.name) if big else (), full)

        def batched(dtype: Any = dtype) -> None:
            a, b = (pretended((8, 512, 512), dtype).requires_grad_() for _ in range(2))
            backward(a @ b)

        tags = ("product", dtype.name) if dtype is not tgrad.float64 else ()
        yield Program(f"bmm {dtype.name}", batched, tags, full=dtype is tgrad.float16)

    def ordinary() -> None:
        tgrad.set_float32_matmul_precision("medium")
        try:
            pretended((1024, 512), tgrad.float32) @ pretended((512, 1024), tgrad.float32)
        finally:
            tgrad.set_float32_matmul_precision("highest")

    def masked() -> None:
        x, w, v = (pretended(s, tgrad.bfloat16).requires_grad_() for s in ((512, 256), (768, 256), (1024, 768)))
        backward(F.linear(tgrad.relu(F.linear(x, w)), v))

    yield Program("relu's mask in a product", masked, ("product", "bfloat16"))
    yield Program("matmul tf32", ordinary, ("product", "float32"))


def made() -> Iterator[Program]:
    """What makes tensors, and what changes them beside ops: dropout, normalisation, optimisers."""
    import tgrad
    import tgrad.nn as nn
    from tgrad.kernels import words

    kinds = [tgrad.float32, tgrad.bfloat16, tgrad.float16, tgrad.float64]

    def create(kinds: Any, integers: Any) -> None:
        for dtype in (*kinds, *integers):
            tgrad.full((N,), 1, dtype=dtype)
            tgrad.eye(64, dtype=dtype)
            if dtype is not tgrad.bool:
                tgrad.arange(N, dtype=dtype)
        tgrad.arange(0.0, 3.0, 0.5)
        for dtype in kinds:
            tgrad.rand(N, dtype=dtype)
            tgrad.randn(N, dtype=dtype)

    def draws() -> None:
        tgrad.randint(5, (N,)), tgrad.linspace(0, 1, N), tgrad.zeros(N).exponential_(), tgrad.randperm(N)
        tgrad.multinomial(tgrad.rand(16, 64), 16, True), tgrad.ones(64, 64).nonzero()
        tgrad.rand(16, 1024, dtype=tgrad.bfloat16).sort(descending=True)
        with tgrad.check_indices():
            for kind in (tgrad.int64, tgrad.int32):
                tgrad.rand(64)[tgrad.zeros(N, dtype=kind)]

    def model(*dtypes: Any) -> None:
        for dtype in dtypes:
            layers = nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.5), nn.Linear(48, 16)
            net = nn.Sequential(*layers).to(dtype)
            out = net(pretended((128, 64), dtype))
            nn.functional.mse_loss(out, pretended((128, 16), dtype)).backward()
            for optimizer in (
                tgrad.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
                tgrad.optim.SGD(net.parameters(), lr=0.1),
                tgrad.optim.AdamW(net.parameters(), lr=0.1),
            ):
                optimizer.step()
                optimizer.step()
            net.eval()(pretended((128, 64), dtype))

    def steps_of_many(dtype: Any, aligned: bool = True) -> None:
        params = [pretended((n,), dtype, aligned=aligned).requires_grad_() for n in (1000, 7, 4096)]
        for p in params:
            p.grad = pretended(tuple(p.shape), dtype)
        tgrad.optim.SGD(params, lr=0.1).step()
        if aligned:
            tgrad.optim.RMSprop(params, momentum=0.9, centered=True).step()
            nn.utils.clip_grad_norm_(params, 1.0)

    def again() -> None:
        x = pretended((N,), tgrad.float32).requires_grad_()
        (first,) = tgrad.autograd.grad((x.exp() * x.tanh()).sum(), x, create_graph=True)
        tgrad.autograd.grad(first.sum(), x)

    yield Program("steps of many", lambda: steps_of_many(tgrad.float32), ("many",))
    yield Program("steps of many bfloat16", lambda: steps_of_many(tgrad.bfloat16), ("many",))
    yield Program("steps of many unaligned", lambda: steps_of_many(tgrad.float32, aligned=False), ("unaligned",))
    yield Program("creation", lambda: create(kinds[:1], [tgrad.int64]))
    yield Program("creation of others", lambda: create(kinds[1:], [tgrad.int32, tgrad.uint8, tgrad.bool]), full=True)
    yield Program("draws and sorts", draws)
    yield Program("places", lambda: tgrad.searchsorted(tgrad.empty(7), tgrad.empty(5)))
    yield Program("numbers of a graph", lambda: words.prepare_put()(tgrad.empty(16, dtype=tgrad.int64).ptr, *range(16)))
    yield Program("training float32", lambda: model(tgrad.float32))
    yield Program("training bfloat16", lambda: model(tgrad.bfloat16), full=True)
    yield Program("second derivative", again, full=True)


def fusions() -> Iterator[Program]:
    """Fused functions, and activations folded into products."""
    import tgrad
    import tgrad.nn.functional as F
    from tgrad.ops import pointwise as p
    from tgrad.ops.linear import activated_op

    swiglu = tgrad.fuse(lambda x, gate: F.silu(gate) * x)
    gates = tgrad.fuse(lambda a, b, c, d: (tgrad.tanh(a + b) * tgrad.sigmoid(c + d), (a > 0) + (b > 0)))
    loss = tgrad.fuse(lambda x, y, b: F.mse_loss(F.gelu(x * 0.5) + b, y))

    def folded(dtype: Any, *rows: Any) -> None:
        for row in rows:
            for m in (1024, 16):
                activated_op(row, ())(*[pretended(s, dtype) for s in ((m, 512), (1024, 512), (1024,))])

    dense = lambda n: [pretended((N,), tgrad.bfloat16).requires_grad_() for _ in range(n)]
    broadcast = lambda: [pretended(s, tgrad.float32).requires_grad_() for s in ((512, 256), (512, 256), (256,))]
    yield Program("fused swiglu", lambda: backward(swiglu(*dense(2))), ("dense", "bfloat16"))
    yield Program("fused gates", lambda: backward(gates(*dense(4))[0]), full=True)
    yield Program("fused loss", lambda: backward(loss(*broadcast())))
    yield Program("linear gelu bfloat16", lambda: folded(tgrad.bfloat16, p.gelu), ("product", "bfloat16"))
    yield Program("linear tanh float32", lambda: folded(tgrad.float32, p.relu, p.tanh), ("product", "float32"), True)


def wide() -> Iterator[Program]:
    """Offsets beyond 31 bits."""
    import tgrad
    import tgrad.nn.functional as F
    from tgrad.ops import pointwise as p

    far = 2**31 + 64

    def everything() -> None:
        p.exp(pretended((far,), tgrad.bfloat16))
        tall = pretended((48, 64), tgrad.float32, (far, 1))
        p.add(tall, pretended((64,), tgrad.float32))
        tgrad.sum(pretended((far,), tgrad.float32))
        tgrad.sum(tall, 1)
        tgrad.amax(tall, 0)
        for dim in (0, 1):
            backward(F.softmax(pretended((48, 64), tgrad.float32, (far, 1)).requires_grad_(), dim))
        logits = pretended((48, 64), tgrad.float32, (far, 1)).requires_grad_()
        backward(F.cross_entropy(logits, tgrad.tensor(np.zeros(48, np.int64))))
        tall @ pretended((64, 32), tgrad.float32)
        pretended((3, 48, 64), tgrad.bfloat16, (far, 64, 1)) @ pretended((64, 32), tgrad.bfloat16)
        near = pretended((2**31 - 3,), tgrad.bfloat16)
        for row in (lambda x: F.softmax(x, 0), lambda x: tgrad.cumsum(x, 0), lambda x: F.rms_norm(x, x.shape)):
            row(near)

    yield Program("wide float32", everything, full=True)


# --- running it ------------------------------------------------------------------------------------------------------
def kernels() -> list[str]:
    """The names of all kernels: jitted functions of tgrad.kernels that store something, themselves or by those they
    call, and that no other one calls."""
    from triton.runtime import JITFunction

    import tgrad.kernels

    jitted = {}
    for info in pkgutil.iter_modules(tgrad.kernels.__path__, "tgrad.kernels."):
        if info.name.rpartition(".")[2].startswith("interpret"):
            continue
        for name, value in vars(importlib.import_module(info.name)).items():
            if isinstance(value, JITFunction) and value.module == info.name:
                jitted[f"{info.name}.{name}"] = value
    paths = {id(value): path for path, value in jitted.items()}
    named = {
        path: {paths.get(id(value.fn.__globals__.get(n.id))) for n in ast.walk(value.parse()) if type(n) is ast.Name}
        for path, value in jitted.items()
    }
    storing = {path for path, value in jitted.items() if "tl.store" in value.src}
    called: set[str] = set()
    pending = list(storing)
    while pending:
        path = pending.pop()
        callers = {other for other, names in named.items() if path in names} - {path}
        if callers:
            called.add(path)
        pending += callers - storing
        storing |= callers
    return sorted(storing - called)


def main(arch: str, shard: str, shards: str, report: str) -> None:
    from tests import aot_gates
    from tgrad.kernels import launch

    used: list[Any] = []
    compile = launch.compile

    def watched(*args: Any) -> Any:
        compiled = compile(*args)
        used.append(compiled)
        return compiled

    launch.compile = watched  # type: ignore[assignment]
    thorough = os.environ.get("TGRAD_THOROUGH") == "1"
    found: dict[str, dict] = {}
    failed: dict[str, str] = {}
    for program in programs():
        if program.full and not (thorough or (int(arch) == 90 and "float32" in program.label)):
            continue
        if zlib.crc32(program.label.encode()) % int(shards) != int(shard):
            continue
        used.clear()
        try:
            program.run()
        except Exception:
            failed[program.label] = traceback.format_exc()
        for compiled in used:
            entry = found.setdefault(compiled.hash, {"labels": [], "tags": []})
            entry["labels"].append(program.label)
            entry["tags"] = sorted({*entry["tags"], *program.tags})
            if "figures" not in entry:
                entry["figures"] = aot_gates.figures(compiled)
    Path(report).write_text(json.dumps({"arch": int(arch), "kernels": found, "failed": failed, "all": kernels()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
