"""tgrad beside PyTorch on one GPU: `python3 -m tests.benchmarks.gpu --out DIR` writes gpu.csv and gpu.json.

Method. Both run in this process on the same random data, in turns. Device time is between CUDA events, after a write
of 256 MB that empties the L2 cache and gives the host a head start; medians with the 20th and 80th percentiles. "wall"
rows include host time: many calls, one synchronisation. Ceilings (copy, bf16 product) are measured in the same run.
Errors are ||out - ref|| / ||ref|| against float64 on some rows. A ratio is tgrad's time over PyTorch's: below 1 is
faster.

Exit codes: 0 all measured, 1 something failed (the rest is still there), 3 no CUDA device.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gc
import json
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BUDGET = 235.0  # seconds; sections that would begin later are left out, and said to be
FLUSH = 256 << 20
Call = Callable[[], Any]


@dataclass
class Row:
    """One comparison. Times in ms; `rate` in GB/s or TFLOP/s, `percent` of the ceiling for it."""

    section: str
    name: str
    dtype: str = ""
    shape: str = ""
    tgrad_ms: float | None = None
    tgrad_p20: float | None = None
    tgrad_p80: float | None = None
    torch_ms: float | None = None
    torch_p20: float | None = None
    torch_p80: float | None = None
    ratio: float | None = None
    rate: float | None = None
    torch_rate: float | None = None
    unit: str = ""
    percent: float | None = None
    error: float | None = None
    torch_error: float | None = None
    note: str = ""


class Bench:
    """Timing, ceilings, rows and failures of one run. `dry`: on the CPU, tiny, once, to see that the code runs."""

    def __init__(self, dry: bool, budget: float) -> None:
        import torch

        self.dry, self.deadline = dry, time.monotonic() + budget
        self.device = torch.device("cpu" if dry else "cuda")
        self.rows: list[Row] = []
        self.failures: list[str] = []
        self.ceilings = {"GB/s": 0.0, "TFLOP/s": 0.0}
        self.flush = torch.empty(16 if dry else FLUSH, dtype=torch.uint8, device=self.device)

    # --- data ------------------------------------------------------------------------------------
    def size(self, *sizes: int) -> tuple[int, ...]:
        return tuple(min(n, 8) for n in sizes) if self.dry else sizes

    def random(self, shape: tuple[int, ...], dtype: Any) -> tuple[Any, Any]:
        """(tgrad tensor, torch tensor) over one memory."""
        import torch

        t = torch.randn(shape, device=self.device, dtype=torch.float32).to(dtype)
        return share(t), t

    # --- time ------------------------------------------------------------------------------------
    def device_times(self, calls: tuple[Call, ...], seconds: float = 0.3) -> list[tuple[float, float, float]]:
        """(median, 20th, 80th percentile) of each call's device time in ms; the calls take turns."""
        import torch

        for call in calls:
            call()
            call()
        if self.dry:
            return [(1.0, 1.0, 1.0) for _ in calls]
        torch.cuda.synchronize()
        start = time.perf_counter()
        for call in calls:
            self.flush.zero_()
            call()
        torch.cuda.synchronize()
        rounds = int(min(100, max(7, seconds / (time.perf_counter() - start))))
        events = [[[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in calls] for _ in range(rounds)]
        for i, row in enumerate(events):
            order = list(zip(calls, row, strict=True))
            for call, (begin, end) in order if i % 2 else order[::-1]:
                self.flush.zero_()
                begin.record()
                call()
                end.record()
        torch.cuda.synchronize()
        return [quantiles([row[k][0].elapsed_time(row[k][1]) for row in events]) for k in range(len(calls))]

    def wall_times(self, calls: tuple[Call, ...], count: int) -> list[tuple[float, float, float]]:
        """The same of host-inclusive time: `count` calls and one synchronisation, per call, in ms."""
        import torch

        count, rounds = (1, 1) if self.dry else (count, 9)
        wait = (lambda: None) if self.dry else torch.cuda.synchronize
        found: list[list[float]] = [[] for _ in calls]
        for call in calls:
            for _ in range(min(count, 20)):
                call()
        for i in range(rounds):
            order = list(enumerate(calls))
            for k, call in order if i % 2 else order[::-1]:
                wait()
                start = time.perf_counter()
                for _ in range(count):
                    call()
                wait()
                found[k].append((time.perf_counter() - start) / count * 1000)
        return [quantiles(times) for times in found]

    def compare(
        self,
        section: str,
        name: str,
        dtype: Any,
        shape: Any,
        ours: Call,
        theirs: Call,
        *,
        nbytes: float = 0,
        flops: float = 0,
        wall: int = 0,
        **more: Any,
    ) -> Row:
        """Time both and add the row. `nbytes`, `flops`: the least to move or do; `wall`: calls per wall time."""
        a, b = self.wall_times((ours, theirs), wall) if wall else self.device_times((ours, theirs))
        row = Row(
            section, name, str(dtype).rpartition(".")[2], "x".join(map(str, shape)), *a, *b, ratio=a[0] / b[0], **more
        )
        work, row.unit, scale = (flops, "TFLOP/s", 1e-9) if flops else (nbytes, "GB/s", 1e-6)
        if work:
            row.rate, row.torch_rate = work * scale / a[0], work * scale / b[0]
            ceiling = self.ceilings[row.unit]
            row.percent = 100 * row.rate / ceiling if ceiling and not (flops and row.dtype != "bfloat16") else None
        row.unit = row.unit if work else ""
        self.rows.append(row)
        return row

    def run(self, section: Callable[[Bench], None]) -> None:
        """Run a section; what goes wrong is kept, with the row it was at."""
        import torch

        if time.monotonic() > self.deadline:
            self.rows.append(Row(section.__name__, "left out", note="out of time"))
            return
        before = len(self.rows)
        try:
            section(self)
        except Exception as error:
            at = self.rows[-1].name if len(self.rows) > before else "its beginning"
            self.failures.append(f"{section.__name__}, after {at}: {traceback.format_exc()}")
            first = (str(error).splitlines() or [""])[0]
            self.rows.append(Row(section.__name__, "FAILED", note=f"{type(error).__name__}: {first}"[:160]))
        gc.collect()
        if not self.dry:
            torch.cuda.empty_cache()

    def late(self) -> bool:
        return time.monotonic() > self.deadline


def quantiles(times: list[float]) -> tuple[float, float, float]:
    """Median, 20th and 80th percentile."""
    ordered = sorted(times)
    at = lambda q: ordered[min(len(ordered) - 1, round(q * (len(ordered) - 1)))]
    return at(0.5), at(0.2), at(0.8)


# --- one memory, two libraries ---------------------------------------------------------------------------------------
def share(t: Any) -> Any:
    """A tgrad tensor over a torch tensor's memory."""
    import torch

    import tgrad
    from tgrad.device import compute
    from tgrad.layout import layout
    from tgrad.storage import adopt
    from tgrad.tensor import Version, make

    storage = adopt(t.view(-1).view(torch.uint8))
    kind = getattr(tgrad, str(t.dtype).rpartition(".")[2])
    to = layout(kind, tuple(t.shape), None, compute, storage.ptr % 16 == 0)
    return make(to, storage, storage.ptr, Version.zero())


def as_torch(t: Any) -> Any:
    """A torch tensor over the memory of a contiguous tgrad tensor."""
    import torch

    return t.storage.buffer[: t.nbytes].view(getattr(torch, t.dtype.name)).view(tuple(t.shape))


def error(out: Any, reference: Any) -> float:
    """||out - reference|| / ||reference||, in float64; nan where a nan is."""
    return float((out.double() - reference).norm() / reference.norm())


# --- sections --------------------------------------------------------------------------------------------------------
def ceilings(b: Bench) -> None:
    """Copy and bf16 product by PyTorch: what the rest is measured against."""
    import torch

    (n,) = b.size(1 << 30)
    source = torch.randint(0, 255, (n,), dtype=torch.uint8, device=b.device)
    target = torch.empty_like(source)
    ((ms, low, high),) = b.device_times((lambda: target.copy_(source),))
    b.ceilings["GB/s"] = 2 * n / ms * 1e-6
    row = Row("ceilings", "copy", "uint8", str(n), torch_rate=b.ceilings["GB/s"], unit="GB/s")
    b.rows.append(dataclasses.replace(row, torch_ms=ms, torch_p20=low, torch_p80=high))
    (n,) = b.size(8192)
    x, y = (torch.randn(n, n, device=b.device, dtype=torch.bfloat16) for _ in range(2))
    ((ms, low, high),) = b.device_times((lambda: x @ y,))
    b.ceilings["TFLOP/s"] = 2 * n**3 / ms * 1e-9
    row = Row("ceilings", "product", "bfloat16", f"{n}x{n}x{n}", torch_rate=b.ceilings["TFLOP/s"], unit="TFLOP/s")
    b.rows.append(dataclasses.replace(row, torch_ms=ms, torch_p20=low, torch_p80=high))
    ((a, *_), (c, *_)) = b.device_times((lambda: target.copy_(source), lambda: target.copy_(source)))
    b.rows.append(Row("ceilings", "noise: copy beside itself", "uint8", tgrad_ms=a, torch_ms=c, ratio=a / c))


def pointwise(b: Bench) -> None:
    import torch

    for dtype in (torch.float32, torch.bfloat16):
        for n in (1 << 26, 1 << 20):
            _vectors(b, dtype, b.size(n))
        _matrices(b, dtype, b.size(8192, 8192))


def _vectors(b: Bench, dtype: Any, shape: tuple[int, ...]) -> None:
    import torch
    import torch.nn.functional as TF

    import tgrad
    import tgrad.nn.functional as GF

    (x, tx), (y, ty) = (b.random(shape, dtype) for _ in range(2))
    cases: list[tuple[str, Call, Call, int]] = [
        ("add", lambda: x + y, lambda: tx + ty, 3),
        ("relu", lambda: tgrad.relu(x), lambda: torch.relu(tx), 2),
        ("gelu", lambda: GF.gelu(x), lambda: TF.gelu(tx), 2),
        ("exp", lambda: tgrad.exp(x), lambda: torch.exp(tx), 2),
        ("relu(x * 2 + y)", lambda: tgrad.relu(x * 2.0 + y), lambda: torch.relu(tx * 2.0 + ty), 7),
    ]
    for name, ours, theirs, passes in cases:
        wrong = error(as_torch(ours()), theirs().double())
        more = {"error": wrong, "note": "error: to torch"}
        b.compare("pointwise", name, dtype, shape, ours, theirs, nbytes=passes * x.nbytes, **more)


def _matrices(b: Bench, dtype: Any, shape: tuple[int, ...]) -> None:
    (x, tx), (v, tv) = b.random(shape, dtype), b.random(shape[1:], dtype)
    b.compare("pointwise", "matrix + row", dtype, shape, lambda: x + v, lambda: tx + tv, nbytes=2 * x.nbytes)
    ours, theirs = lambda: x.t().contiguous(), lambda: tx.t().contiguous()
    b.compare("pointwise", "transposed copy", dtype, shape, ours, theirs, nbytes=2 * x.nbytes)


def rows(b: Bench) -> None:
    """Reductions, softmax, cross-entropy."""
    import torch

    for dtype in (torch.float32, torch.bfloat16):
        _reductions(b, dtype, b.size(8192, 8192))
        _losses(b, dtype, *b.size(8192, 32000))


def _reductions(b: Bench, dtype: Any, shape: tuple[int, ...]) -> None:
    import torch

    import tgrad

    x, tx = b.random(shape, dtype)
    wide = tx.double()
    cases: list[tuple[str, Call, Call, Any, int]] = [
        ("sum of rows", lambda: tgrad.sum(x, 1), lambda: torch.sum(tx, 1), wide.sum(1), 1),
        ("sum of columns", lambda: tgrad.sum(x, 0), lambda: torch.sum(tx, 0), wide.sum(0), 1),
        ("sum of all", lambda: tgrad.sum(x), lambda: torch.sum(tx), wide.sum(), 1),
        ("softmax", lambda: tgrad.softmax(x, 1), lambda: torch.softmax(tx, 1), torch.softmax(wide, 1), 2),
    ]
    del wide
    for name, ours, theirs, exact, passes in cases:
        errors = {"error": error(as_torch(ours()), exact), "torch_error": error(theirs(), exact)}
        b.compare("rows", name, dtype, shape, ours, theirs, nbytes=passes * x.nbytes, **errors)


def _losses(b: Bench, dtype: Any, m: int, n: int) -> None:
    import torch
    import torch.nn.functional as TF

    import tgrad
    import tgrad.nn.functional as GF

    x, tx = b.random((m, n), dtype)
    target = torch.randint(0, n, (m,), device=b.device)
    classes = share(target)
    part, labels = tx[:64].clone(), target[:64].clone()
    exact = TF.cross_entropy(part.double(), labels)
    got, other = GF.cross_entropy(share(part), share(labels)), TF.cross_entropy(part, labels)
    errors = {"error": error(as_torch(got), exact), "torch_error": error(other, exact)}
    ours, theirs = lambda: GF.cross_entropy(x, classes), lambda: TF.cross_entropy(tx, target)
    with tgrad.no_grad(), torch.no_grad():
        b.compare("rows", "cross_entropy", dtype, (m, n), ours, theirs, nbytes=x.nbytes, **errors)
    x.requires_grad_()
    tx.requires_grad_()

    def ours_both() -> None:
        x.grad = None
        GF.cross_entropy(x, classes).backward()

    def theirs_both() -> None:
        tx.grad = None
        TF.cross_entropy(tx, target).backward()

    b.compare("rows", "cross_entropy, both ways", dtype, (m, n), ours_both, theirs_both, nbytes=3 * x.nbytes)


SIZES = [
    (8192, 8192, 8192), (4096, 4096, 4096), (2048, 2048, 2048), (1024, 1024, 1024), (8192, 8192, 512), (16, 8192, 8192),
    (128, 4096, 4096), (8192, 10, 1024),
]  # fmt: skip


def products(b: Bench) -> None:
    """NT is linear's forward, NN its input's gradient, TN its weight's."""
    import torch

    for dtype in (torch.bfloat16, torch.float32):
        for m, n, k in SIZES:
            if b.late():
                return
            m, n, k = b.size(m, n, k)
            for kind in ("NT", "NN", "TN") if (m, n, k) == b.size(4096, 4096, 4096) else ("NT",):
                a, ta = b.random((k, m) if kind[0] == "T" else (m, k), dtype)
                c, tc = b.random((n, k) if kind[1] == "T" else (k, n), dtype)
                a, ta = (a.t(), ta.t()) if kind[0] == "T" else (a, ta)
                c, tc = (c.t(), tc.t()) if kind[1] == "T" else (c, tc)
                ours, theirs = (lambda a=a, c=c: a @ c), (lambda ta=ta, tc=tc: ta @ tc)
                some = min(m, 64)
                exact = ta[:some].double() @ tc.double()
                errors = {"error": error(as_torch(ours())[:some], exact), "torch_error": error(theirs()[:some], exact)}
                del exact
                b.compare("products", f"matmul {kind}", dtype, (m, n, k), ours, theirs, flops=2 * m * n * k, **errors)


def perceptron(b: Bench, width: int, depth: int, dtype: Any) -> tuple[Any, Any]:
    """The same network with the same parameters in tgrad and in torch."""
    import torch

    import tgrad

    theirs = torch.nn.Sequential(
        *[layer for _ in range(depth) for layer in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    )
    theirs = theirs.to(device=b.device, dtype=dtype)
    ours = tgrad.nn.Sequential(
        *[layer for _ in range(depth) for layer in (tgrad.nn.Linear(width, width), tgrad.nn.ReLU())]
    )
    ours = ours.to(getattr(tgrad, str(dtype).rpartition(".")[2]))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        p.data.copy_(share(q.detach().clone()))
    return ours, theirs


def training(b: Bench) -> None:
    """An MLP's training step: device time, and wall time where the host is what counts."""
    import torch

    import tgrad

    for batch, width, depth, dtype, wall in (
        (8192, 4096, 4, torch.bfloat16, 0), (4096, 2048, 4, torch.float32, 0), (64, 64, 4, torch.float32, 50),
    ):  # fmt: skip
        if b.late():
            return
        batch, width = b.size(batch, width)
        ours, theirs = perceptron(b, width, depth, dtype)
        (x, tx), (y, ty) = (b.random((batch, width), dtype) for _ in range(2))
        step, torch_step = tgrad.optim.SGD(ours.parameters(), lr=1e-3), torch.optim.SGD(theirs.parameters(), lr=1e-3)

        def train(x: Any = x, y: Any = y, model: Any = ours, optimizer: Any = step) -> Any:
            optimizer.zero_grad()
            loss = tgrad.nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        def torch_train(x: Any = tx, y: Any = ty, model: Any = theirs, optimizer: Any = torch_step) -> Any:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        wrong = abs(float(train().item()) / float(torch_train()) - 1)
        name = f"MLP step, {depth} layers" + (", wall" if wall else "")
        flops = 0 if wall else 6 * batch * width * width * depth
        more = {"flops": flops, "wall": wall, "error": wrong, "note": "error: first loss to torch's"}
        b.compare("training", name, dtype, (batch, width), train, torch_train, **more)


def tiny(b: Bench) -> None:
    """Wall time of calls too small for the device to matter."""
    import torch
    import torch.nn.functional as TF

    import tgrad
    import tgrad.nn.functional as GF

    (x, tx), (w, tw), (v, tv) = (b.random(s, torch.float32) for s in ((8, 8), (8, 8), (8,)))
    for t in (w, tw, v, tv):
        t.requires_grad_()
    modes: tuple[tuple[str, Any, Any], ...] = (
        ("grad", tgrad.enable_grad, torch.enable_grad), ("no_grad", tgrad.no_grad, torch.no_grad),
        ("inference", tgrad.inference_mode, torch.inference_mode),
    )  # fmt: skip
    for mode, ours, theirs in modes:
        with ours(), theirs():
            for name, mine, other in (
                ("x + w", lambda: x + w, lambda: tx + tw), ("x * 2.0", lambda: x * 2.0, lambda: tx * 2.0),
                ("relu(w)", lambda: tgrad.relu(w), lambda: torch.relu(tw)),
                ("linear", lambda: GF.linear(x, w, v), lambda: TF.linear(tx, tw, tv)),
            ):  # fmt: skip
                b.compare("tiny", f"{name}, wall, {mode}", torch.float32, (8, 8), mine, other, wall=1000)


def memory(b: Bench) -> None:
    """Bytes: what tgrad's ledger counts, what the allocator gave for it, and what PyTorch takes for the same."""
    import torch

    import tgrad
    from tgrad.storage import ledger

    batch, width = b.size(4096, 2048)
    ours, theirs = perceptron(b, width, 4, torch.float32)
    x, tx = b.random((batch, width), torch.float32)
    modes: tuple[tuple[str, Any, Any], ...] = (
        ("grad", tgrad.enable_grad, torch.enable_grad), ("no_grad", tgrad.no_grad, torch.no_grad),
        ("inference", tgrad.inference_mode, torch.inference_mode),
    )  # fmt: skip
    allocated = (lambda: 0) if b.dry else torch.cuda.memory_allocated
    peak = (lambda: 0) if b.dry else torch.cuda.max_memory_allocated
    reset = (lambda: None) if b.dry else torch.cuda.reset_peak_memory_stats
    for mode, mine, other in modes:
        gc.collect()
        found = {}
        with mine():
            reset()
            ledger.reset_peak()
            before, counted = allocated(), ledger.live_bytes
            out = ours(x)
            found |= {"ledger": ledger.live_bytes - counted, "ledger peak": ledger.peak_bytes - counted}
            found |= {"allocator": allocated() - before, "allocator peak": peak() - before}
            del out
        with other():
            reset()
            before = allocated()
            out = theirs(tx)
            found |= {"torch": allocated() - before, "torch peak": peak() - before}
            del out
        text = ", ".join(f"{k} {v / 2**20:.1f}" for k, v in found.items())
        b.rows.append(Row("memory", f"MLP forward, {mode}", "float32", f"{batch}x{width}", note=f"MiB: {text}"))


SECTIONS = (ceilings, pointwise, products, tiny, training, rows, memory)


# --- output ----------------------------------------------------------------------------------------------------------
def environment(dry: bool) -> dict[str, str]:
    """The device, the versions and the commit that the numbers belong to."""
    import numpy
    import torch
    import triton

    import tgrad
    from tgrad.device import describe

    def said(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            return ""

    facts = {
        "tgrad": tgrad.__version__,
        "python": sys.version.split()[0],
        "triton": triton.__version__,
        "numpy": numpy.__version__,
        "commit": said("git", "rev-parse", "HEAD"),
        "changed": str(bool(said("git", "status", "--porcelain"))),
        "dry_run": str(dry),
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "float32": f"tgrad {tgrad.get_float32_matmul_precision()}, torch {torch.get_float32_matmul_precision()}",
    }
    return describe() | facts


def write(b: Bench, facts: dict[str, str], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows = [dataclasses.asdict(row) for row in b.rows]
    (out / "gpu.json").write_text(
        json.dumps({"environment": facts, "ceilings": b.ceilings, "rows": rows, "failures": b.failures}, indent=1)
    )
    with open(out / "gpu.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(rows)


def table(b: Bench) -> str:
    """The rows, for a terminal."""
    number = lambda value, form: format(value, form) if value is not None else ""
    columns = [
        ("", 9, lambda r: f"{r.section:9}"),
        ("", 26, lambda r: f"{r.name[:26]:26}"), ("", 8, lambda r: f"{r.dtype[:8]:8}"),
        ("", 15, lambda r: f"{r.shape[:15]:15}"), ("tgrad ms", 9, lambda r: number(r.tgrad_ms, ".4f")),
        ("torch ms", 9, lambda r: number(r.torch_ms, ".4f")), ("ratio", 6, lambda r: number(r.ratio, ".2f")),
        ("rate", 6, lambda r: number(r.rate, ".0f")), ("torch", 6, lambda r: number(r.torch_rate, ".0f")),
        ("", 7, lambda r: f"{r.unit:7}"), ("%", 4, lambda r: number(r.percent, ".0f")),
        ("error", 8, lambda r: number(r.error, ".1e")), ("torch", 8, lambda r: number(r.torch_error, ".1e")),
        ("", 0, lambda r: "" if r.note.startswith("error") else r.note),
    ]  # fmt: skip
    lines = [" ".join(f"{title:>{width}}" for title, width, _ in columns)]
    lines += [" ".join(f"{cell(r):>{width}}" for _, width, cell in columns) for r in b.rows]
    return "\n".join(line.rstrip() for line in lines)


def main(arguments: list[str] | None = None, sections: tuple | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tests.benchmarks.gpu", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.csv and gpu.json")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds after which no section begins")
    parser.add_argument(
        "--dry-run", action="store_true", help="each section once, tiny, on the CPU: times mean nothing"
    )
    options = parser.parse_args(arguments)

    import torch

    import tgrad  # noqa: F401  before anything of torch that loads Triton
    from tgrad.device import compute

    if not options.dry_run and compute.type != "cuda":
        print("benchmarks: no CUDA device", file=sys.stderr)
        return 3
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    b = Bench(options.dry_run, options.budget)
    facts = environment(options.dry_run)
    for section in sections or SECTIONS:
        started = time.monotonic()
        b.run(section)
        print(f"{section.__name__}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        write(b, facts, options.out)
    for failure in b.failures:
        print(failure[-1500:], file=sys.stderr)
    print(", ".join(f"{k} {v}" for k, v in facts.items() if v))
    print(table(b))
    return 1 if b.failures else 0


if __name__ == "__main__":
    sys.exit(main())
