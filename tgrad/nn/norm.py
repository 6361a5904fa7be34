"""Batch normalisation."""

from __future__ import annotations

from typing import Any

from tgrad.dtypes import dtype, int64
from tgrad.nn import functional as F, init
from tgrad.nn.module import Module
from tgrad.nn.parameter import Parameter
from tgrad.ops import creation
from tgrad.tensor import Tensor


class BatchNorm1d(Module):
    """Normalises each channel of (N, C) or (N, C, L) over the batch, then scales and shifts it.

    Args:
        num_features: C.
        momentum: how far running statistics move towards those of a batch; None: they are the mean of all batches.
        affine, bias: whether there is a weight (C,), and a bias (C,).
        track_running_stats: keep running statistics, for evaluation.
    """

    _version = 2
    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, affine: bool = True,
        track_running_stats: bool = True, device: Any = None, dtype: dtype | None = None, *, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats

        def new(fill: Any) -> Tensor:
            return fill(num_features, device=device, dtype=dtype)

        self.register_parameter("weight", Parameter(new(creation.ones)) if affine else None)
        self.register_parameter("bias", Parameter(new(creation.zeros)) if affine and bias else None)
        tracked = track_running_stats
        self.register_buffer("running_mean", new(creation.zeros) if tracked else None)
        self.register_buffer("running_var", new(creation.ones) if tracked else None)
        self.register_buffer("num_batches_tracked", creation.tensor(0, dtype=int64, device=device) if tracked else None)

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1, no batches."""
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.running_mean.zero_()
            self.running_var.fill_(1)
            self.num_batches_tracked.zero_()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0, and the running statistics."""
        self.reset_running_stats()
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim not in (2, 3):
            raise ValueError(f"expected 2D or 3D input (got {input.ndim}D input)")
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:
                momentum = 1.0 / float(self.num_batches_tracked)
        track = not self.training or self.track_running_stats
        return F.batch_norm(
            input,
            self.running_mean if track else None,
            self.running_var if track else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any
    ) -> None:
        version = local_metadata.get("version")
        if (version is None or version < 2) and self.num_batches_tracked is not None:
            state_dict.setdefault(prefix + "num_batches_tracked", self.num_batches_tracked)  # older states lack it
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )
