"""The errors of tensors that cannot be saved for backward, or were modified since."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tgrad.graph import Node, Saved

_HINT_OFF = (
    "Hint: enable anomaly detection to find the operation that failed to compute its gradient, with "
    "torch.autograd.set_detect_anomaly(True)."
)
_HINT_ON = (
    "Hint: the backtrace further above shows the operation that failed to compute its gradient. The variable in "
    "question was changed in there or anywhere later. Good luck!"
)


def unsaveable() -> RuntimeError:
    """The error of saving an inference tensor."""
    return RuntimeError(
        "Inference tensors cannot be saved for backward. Please do not use Tensors created in inference mode in "
        "computation tracked by autograd. To work around this, you can make a clone to get a normal tensor and use it "
        "in autograd, or use `torch.no_grad()` instead of `torch.inference_mode()`."
    )


def modified(saved: Saved, node: Node, maker: str | None, anomaly: bool) -> RuntimeError:
    """The error of a tensor that was modified in place since `node` saved it.

    Args:
        maker: the name of the node that it is a result of.
        anomaly: whether anomaly mode is on.
    """
    layout, now = saved.layout, saved.version.value
    kind = "torch.cuda" if layout.device.type == "cuda" else "torch"
    made = f", which is output 0 of {maker}," if maker else ""
    where = f", recorded {node.origin}" if node.origin else ""
    return RuntimeError(
        "one of the variables needed for gradient computation has been modified by an inplace operation: "
        f"[{kind}.{layout.dtype.legacy}Tensor {list(layout.shape)}]{made} is at version {now}; expected version "
        f"{saved.expected} instead. It is the '{saved.name}' that {node.name()}{where}, saved. {_written(saved)}"
        f"{_HINT_ON if anomaly else _HINT_OFF}"
    )


def _written(saved: Saved) -> str:
    """Where the last known write to it was made."""
    at, op, origin = getattr(saved.version, "written", (0, "", None))
    last = "last " if at == saved.version.value else ""
    return f"It was {last}written by {op} {origin}. " if at > saved.expected else ""
