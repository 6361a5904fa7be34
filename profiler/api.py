"""The profiler as a function."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict

from tgrad.device import compute
from tgrad.profiler import isolated, measure, output
from tgrad.profiler.environment import environment
from tgrad.profiler.errors import ProfilerError
from tgrad.profiler.records import ALL_MODES, MODES
from tgrad.profiler.report import Report
from tgrad.profiler.scale import check_sizes, scale
from tgrad.profiler.workloads import Options, Workload, make

# Told (what is running, steps done, steps in all) as the profiler goes.
Progress = Callable[[str, int, int], None]

REPEATS = 10
WARMUP = 2


def profile(
    workloads: str | Workload | Sequence[str | Workload],
    modes: Sequence[str] = MODES,
    *,
    batch_size: int | None = None,
    dtype: str = "float32",
    device: str = "auto",
    width: int | None = None,
    depth: int | None = None,
    repeats: int = REPEATS,
    warmup: int = WARMUP,
    seed: int = 0,
    optimizer: str = "sgd",
    out: str | os.PathLike | None = None,
    force: bool = False,
    vs: str | None = None,
    batch_sizes: Sequence[int] | None = None,
    memory_bytes: int | None = None,
    isolate: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measure workloads in grad modes.

    Args:
        workloads: names (`tutorial`, `digits`, `mlp`), `file.py:factory`, or Workload objects.
        modes: any of ALL_MODES; `all` names every one.
        batch_size: rows of a batch; None: the workload's own.
        dtype: of parameters and inputs: float16, bfloat16, float32 or float64.
        device: `auto`, `cpu` or `cuda`. A process computes on one device: anything but that one is an error.
        width, depth: of the hidden layers of `mlp`.
        repeats: timed runs of each mode, after `warmup` untimed ones.
        seed: of weights and data.
        optimizer: one of `optimizers.CHOICES`, whose step follows each backward of a workload with a loss.
        out: a folder for the report's files; None writes nothing.
        force: replace the report that is in `out`.
        vs: `torch` measures the same workloads in PyTorch as well, which takes workloads that have a twin.
        batch_sizes: three or more; the scale law is measured at these as well (see `scale.scale`).
        memory_bytes: what its largest batch must fit.
        isolate: measure each (engine, workload, mode) in a process of its own; modes then take no turns.
        progress: told what is running.

    Returns:
        A Report.

    Raises:
        ProfilerError: the request cannot be carried out; the message is one line.
        tgrad.OutOfMemoryError: memory ran out.
    """
    given = [workloads] if isinstance(workloads, (str, Workload)) else list(workloads)
    names = (modes,) if isinstance(modes, str) else tuple(modes)
    names = ALL_MODES if names == ("all",) else names
    options = Options(batch_size, dtype, width, depth, seed, optimizer)
    check(given, names, device, repeats, warmup)
    if vs not in (None, "torch"):
        raise ProfilerError(f"--vs: unknown engine '{vs}'; choose torch, or leave it out")
    _check_sizes(given, options)
    if memory_bytes is not None and batch_sizes is None:
        raise ProfilerError("--memory: what fits is read off the scale law; add --batch-sizes 32,64,128,256")
    if batch_sizes is not None:
        check_sizes(batch_sizes)
        if any(isinstance(w, Workload) for w in given):
            raise ProfilerError("batch_sizes: a Workload has one batch size; give its name or file.py:factory instead")
    if isolate and any(isinstance(w, Workload) for w in given):
        raise ProfilerError("isolate: a Workload cannot be sent to another process; give its name or file.py:factory")
    if out is not None:
        output.check(out, force)  # before minutes of measuring
    made = _distinct([make(w, options) for w in given])
    total = sum(0 if measure.is_torch_only(w) else measure.steps(w.held, names, repeats, warmup) for w in made)
    records, done = measure.Records(), 0
    for workload, asked in zip(made, given):
        if isolate:
            records.extend(_isolated(workload, str(asked), names, options, repeats, warmup, vs, progress))
            continue

        def step(name: str = workload.name) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress(name, done, total)

        if progress is not None:
            progress(workload.name, done, total)
        if vs == "torch" or measure.is_torch_only(workload):
            records.extend(measure.twin(workload))
        if measure.is_torch_only(workload):
            continue
        found = measure.profile(workload, names, dtype=dtype, seed=seed, repeats=repeats, warmup=warmup, on_step=step)
        records.extend(found)
    report = Report(records, environment(seed), {w.name: w.about for w in made})
    for w, workload in zip(given, made):
        if batch_sizes is not None and not measure.is_torch_only(workload):
            report.scales.append(scale(
                str(w), batch_sizes, names, memory_bytes=memory_bytes, dtype=dtype, width=width, depth=depth, seed=seed,
                optimizer=optimizer, isolate=isolate, progress=progress,
            ))  # fmt: skip
    if out is not None:
        report.save(out, force)
    return report


def _isolated(
    workload: Workload, given: str, modes: Sequence[str], options: Options, repeats: int, warmup: int,
    vs: str | None, progress: Progress | None,
) -> measure.Records:  # fmt: skip
    """One workload, each mode and the twin in a process of its own."""
    records, alone = measure.Records(), measure.is_torch_only(workload)
    tasks = [] if alone else list(modes)
    for i, mode in enumerate(tasks):
        if progress is not None:
            progress(f"{workload.name} in {mode}", i, len(tasks))
        arguments = {**asdict(options), "repeats": repeats, "warmup": warmup}
        records.extend(isolated.call("profile", workload=given, mode=mode, options=arguments)[0])
    if vs == "torch" or alone:
        records.extend(isolated.call("twin", workload=given, options=asdict(options))[0])
    return records


def check(workloads: Sequence[str | Workload], modes: Sequence[str], device: str, repeats: int, warmup: int) -> None:
    """Raises ProfilerError for what can be seen to be wrong before anything is made."""
    if not workloads:
        raise ProfilerError("no workload given; name at least one, such as mlp")
    for w in workloads:
        if not isinstance(w, (str, Workload)):
            raise ProfilerError(f"a workload is a name or a Workload, got {type(w).__name__}")
    if not modes:
        raise ProfilerError(f"--modes: none given; choose from {', '.join(ALL_MODES)}")
    for i, mode in enumerate(modes):
        if mode not in ALL_MODES:
            raise ProfilerError(f"--modes: unknown mode '{mode}'; choose from {', '.join(ALL_MODES)}")
        if mode in modes[:i]:
            raise ProfilerError(f"--modes: '{mode}' is given twice; name each mode once")
    if not isinstance(repeats, int) or repeats < 1:
        raise ProfilerError(f"--repeats: expected a whole number of at least 1, got {repeats}")
    if not isinstance(warmup, int) or warmup < 0:
        raise ProfilerError(f"warmup: expected a whole number of at least 0, got {warmup}")
    if device not in ("auto", "cpu", "cuda"):
        raise ProfilerError(f"--device: unknown device '{device}'; choose auto, cpu or cuda")
    if device == "cuda" and compute.type != "cuda":
        raise ProfilerError(
            "--device cuda: there is no CUDA device that this process can use; choose --device auto or cpu"
        )
    if device == "cpu" and compute.type != "cpu":
        raise ProfilerError(
            f"--device cpu: this process computes on {compute}; set TRITON_INTERPRET=1 before Python starts"
        )


def _check_sizes(workloads: Sequence[str | Workload], options: Options) -> None:
    """Raises ProfilerError if width or depth is given and nothing has one."""
    for name in ("width", "depth"):
        if getattr(options, name) is not None and set(workloads) <= {"tutorial", "digits"}:
            raise ProfilerError(f"--{name}: of tgrad's workloads only mlp has a {name}; leave it out, or profile mlp")


def _distinct(workloads: list[Workload]) -> list[Workload]:
    """Raises ProfilerError if two share a name: rows and files are named after it."""
    seen: set[str] = set()
    for w in workloads:
        if w.name in seen:
            raise ProfilerError(f"workload '{w.name}' is given twice; name each workload once")
        seen.add(w.name)
    return workloads
