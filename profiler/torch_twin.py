"""The same accounting for PyTorch: what its graph keeps for the same model, in the same columns.

The one module of the profiler that imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class TwinRecord:
    """Bytes kept by PyTorch's graph after a forward, in the columns of RunRecord of the same names.

    Storages count once, by their size; parameters and buffers of the model are left out.
    """

    intermediates_bytes: int
    inputs_held_bytes: int
    outputs_held_bytes: int
    outputs_saved_bytes: int
    graph_bytes: int
    graph_logical_bytes: int
    parameters_bytes: int


def measure(
    model: torch.nn.Module,
    batch: Callable[[], tuple[tuple[Any, ...], tuple[Any, ...]]],
    loss: Callable[..., torch.Tensor] | None = None,
    held: int = 1,
) -> TwinRecord:
    """Run `held` forwards, keep their results, and count what saved-tensor hooks saw.

    Args:
        model: on the device to measure on.
        batch: makes a fresh (inputs, targets), tuples of tensors.
        loss: loss(output, *targets); its value is one of the results.
        held: how many batches.
    """
    # Hooks are handed every tensor that is saved; the storages are held until the end, so that no address recurs.
    kept: list[torch.Tensor] = []
    results: list[torch.Tensor] = []
    inputs: list[torch.Tensor] = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept.append(t.detach())
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.enable_grad():
        for _ in range(held):
            arguments, targets = batch()
            inputs += [t for t in (*arguments, *targets) if isinstance(t, torch.Tensor)]
            output = model(*arguments)
            outputs = [output] if isinstance(output, torch.Tensor) else list(output)
            results += outputs if loss is None else [*outputs, loss(output, *targets)]
    own = _sizes([*model.parameters(), *model.buffers()])
    batch_ids, result_sizes = _sizes(inputs), _sizes(results)
    found: dict[str, dict[int, int]] = {"intermediates": {}, "inputs": {}, "outputs": {}}
    logical = 0
    for t in kept:
        (i, nbytes), = _sizes([t]).items()  # fmt: skip
        if i in own:
            continue
        kind = "outputs" if i in result_sizes else "inputs" if i in batch_ids else "intermediates"
        found[kind][i] = nbytes
        logical += t.numel() * t.element_size()
    total = {kind: sum(sizes.values()) for kind, sizes in found.items()}
    return TwinRecord(
        intermediates_bytes=total["intermediates"],
        inputs_held_bytes=total["inputs"],
        outputs_held_bytes=sum(n for i, n in result_sizes.items() if i not in own),
        outputs_saved_bytes=total["outputs"],
        graph_bytes=sum(total.values()),
        graph_logical_bytes=logical,
        parameters_bytes=sum(_sizes(model.parameters()).values()),
    )


def _sizes(tensors: Any) -> dict[int, int]:
    """Address of each distinct storage, and its bytes. An empty one has no address and no bytes."""
    found = {}
    for t in tensors:
        storage = t.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
    return found
