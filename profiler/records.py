"""What is recorded: frozen dataclasses whose fields are the columns of the CSV files.

Names carry their unit: `_bytes` are whole bytes, `_ms` milliseconds and `_us` microseconds as floats, `_ns` whole
nanoseconds. Nothing is scaled before it is shown. What cannot be measured is NaN, never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

MODES = ("grad", "no_grad", "inference_mode")  # those that are measured unless others are asked for
# All, in the order in which each is explained as a difference from one before.
ALL_MODES = (
    "grad", "no_grad", "inference_mode", "set_grad_enabled_false", "grad+checkpoint", "grad+save_on_cpu", "keep",
    "lean", "leanest",
)  # fmt: skip
POLICIES = ("keep", "lean", "leanest")  # grad under a policy of tgrad.activation_memory
REST = "(others)"  # the op of a row that is the sum of many
GRAPH_MODES = ("grad", "grad+checkpoint", "grad+save_on_cpu", *POLICIES)

# What a byte is live for, in the order that plots stack it.
CATEGORIES = ("parameter", "optimizer", "output", "input", "intermediate", "gradient", "temporary", "constant", "other")


@dataclass(frozen=True)
class RunRecord:
    """One workload in one mode: a row of runs.csv.

    Memory, in bytes (padding of a storage's end apart, in `padding_bytes`):
        parameters_bytes, buffers_bytes: of the model; live before the forward.
        gradients_bytes: of the parameters' gradients after the backward.
        optimizer_bytes: of the optimiser's state; live before the forward, as it is from the second step on.
        intermediates_bytes: storages that only the graph keeps: neither parameters, nor of the batch, nor results.
        inputs_held_bytes: storages of batches that the graph keeps although the caller dropped them.
        outputs_held_bytes: storages of the results, which the caller keeps, in every mode.
        outputs_saved_bytes: the part of outputs_held_bytes that the graph keeps as well.
        graph_bytes: all that the graph keeps: intermediates + inputs held + outputs saved. Each storage counts once.
        graph_logical_bytes: elements times their size over every saved tensor, so a tensor saved twice counts twice.
        other_live_bytes: live before and not of the model: other workloads, or the program that calls.
        live_before_bytes, live_after_bytes: the ledger before the batch was made, and after the forward.
        residual_bytes: live_after - live_before - (intermediates + inputs held + outputs held).
        allocator_bytes: what the device's allocator gave out from before the batch was made until after the forward;
            on the CPU that is the ledger. It is the sum of what stays live, of rounding_bytes (blocks are larger than
            what is asked for), of free_blocks_bytes (more blocks in tgrad's free lists) and of
            allocator_residual_bytes, which is 0.
        peak_bytes, peak_forward_bytes: the most live at any time, and before the backward; other_live_bytes apart.

    Time, over `repeats` runs on one batch, the profiler's recording switched off:
        *_wall_*_ms: from the call to the end of its last kernel; median, quartiles, and the ends of the median's 95 %
            interval (percentile bootstrap, Efron 1979). step: the optimiser's.
        *_gpu_median_ms: between device events; NaN without CUDA.
        host_us_per_op: from the call of the forward to its return, for each op. In the interpreter this includes the
            computation itself.
        host_share: of the forward's wall time, the part until it returned; near 1 it is launch-bound. NaN without CUDA.

    recomputed_kernels: those of backward_kernels that make again what the forward did not keep. host_bytes: of host
        memory that offloaded tensors take; in no other column.
    """

    run_id: str
    created_at: str
    workload: str
    mode: str
    engine: str
    engine_version: str
    device: str
    is_interpreted: bool
    dtype: str
    optimizer: str
    batch_size: int
    held: int
    seed: int
    repeats: int
    parameters: int
    parameters_bytes: int
    buffers_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    intermediates_bytes: int
    inputs_held_bytes: int
    outputs_held_bytes: int
    outputs_saved_bytes: int
    graph_bytes: int
    graph_logical_bytes: int
    padding_bytes: int
    nodes: int
    other_live_bytes: int
    live_before_bytes: int
    live_after_bytes: int
    residual_bytes: int
    allocator_bytes: int
    rounding_bytes: int
    free_blocks_bytes: int
    allocator_residual_bytes: int
    peak_forward_bytes: int
    peak_bytes: int
    forward_kernels: int
    backward_kernels: int
    step_kernels: int
    recomputed_kernels: int
    host_bytes: int
    forward_ops: int
    backward_ops: int
    step_ops: int
    forward_wall_q1_ms: float
    forward_wall_median_ms: float
    forward_wall_q3_ms: float
    backward_wall_q1_ms: float
    backward_wall_median_ms: float
    backward_wall_q3_ms: float
    step_wall_q1_ms: float
    step_wall_median_ms: float
    step_wall_q3_ms: float
    forward_wall_low_ms: float
    forward_wall_high_ms: float
    backward_wall_low_ms: float
    backward_wall_high_ms: float
    step_wall_low_ms: float
    step_wall_high_ms: float
    forward_gpu_median_ms: float
    backward_gpu_median_ms: float
    step_gpu_median_ms: float
    host_us_per_op: float
    host_share: float


@dataclass(frozen=True)
class SampleRecord:
    """One timed forward, backward or optimiser's step: a row of samples.csv.

    host_ms ends when the call returns, wall_ms when its last kernel ended, gpu_ms lies between device events.
    """

    run_id: str
    workload: str
    mode: str
    phase: str
    rep: int
    is_warmup: bool
    wall_ms: float
    host_ms: float
    gpu_ms: float


@dataclass(frozen=True)
class SavedRow:
    """One tensor that the graph keeps: a row of saved.csv.

    op and argument name the operation that saved it and which of its tensors it is; module, file, line and function say
    where that was called. charged_bytes is storage_bytes at the first row of a storage, 0 after: sums are safe. reason
    names the gradients whose formulas need it, and by what it is recomputed. kind: `leaf`, `result` (of the op itself),
    `value` (an input of it), `packed` (by a saved-tensor hook), `recomputed` (no bytes: a recipe stands for it),
    `offloaded` (no bytes on the device, host_bytes in host memory) or `held` (no formula needs it). The times count
    from the first event: when it was saved, when backward first used it, when its memory was freed; -1: not within the
    run. tensors: how many the row stands for: 1, but in a last row whose op is REST, the sum of those that are too many
    to list.
    """

    run_id: str
    workload: str
    mode: str
    seq: int
    op: str
    argument: str
    category: str
    module: str
    file: str
    line: int
    function: str
    shape: str
    dtype: str
    storage_id: int
    is_leaf: bool
    logical_bytes: int
    storage_bytes: int
    charged_bytes: int
    reason: str = ""
    kind: str = ""
    saved_at_ns: int = field(default=-1, compare=False)
    used_at_ns: int = field(default=-1, compare=False)
    freed_at_ns: int = field(default=-1, compare=False)
    tensors: int = 1
    host_bytes: int = 0


@dataclass(frozen=True)
class EventRow:
    """One allocation or free: a row of events.csv. live_bytes is the ledger after it; t_ns counts from the first.

    action: `alloc` or `free`. Of a run with more events than are listed, `alloc (rest)` and `free (rest)` are the sums
    of the others in a phase, `count` of them, and `start` and `peak` mark the beginning and the peak; their storage_id
    is 0.
    """

    run_id: str
    workload: str
    mode: str
    t_ns: int
    action: str
    storage_id: int
    bytes: int
    live_bytes: int
    phase: str
    category: str
    count: int = 1


def columns(record: type) -> tuple[str, ...]:
    """The field names of a record class, in order: the header of its CSV file."""
    return tuple(f.name for f in fields(record))


def row(record: Any) -> tuple[Any, ...]:
    """The values of a record, in order."""
    return tuple(getattr(record, name) for name in columns(type(record)))
