"""Normalisation: by batch, layer, group and root mean square."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tgrad import once
from tgrad.dtypes import dtype, int64
from tgrad.nn import functional as F, init
from tgrad.nn.module import Module
from tgrad.nn.parameter import Parameter
from tgrad.ops import creation
from tgrad.ops.norm import batch_norm
from tgrad.tensor import Tensor


class BatchNorm1d(Module):
    """Normalises each channel over the batch, then scales and shifts it (Ioffe and Szegedy, 2015).

    Args:
        num_features: C.
        momentum: how far running statistics move towards those of a batch; None: they are the mean of all batches.
        affine, bias: whether there is a weight (C,), and a bias (C,).
        track_running_stats: keep running statistics, for evaluation.

    Shape: (N, C) or (N, C, L); the result has the input's.
    Dtype: floating; the result has the input's; `dtype` is that of the parameters.
    Raises:
        ValueError: another number of dimensions; one value per channel in training.
        RuntimeError: another number of channels.
    """

    _version = 2
    _ranks: tuple[int, ...] = (2, 3)
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
        if input.ndim not in self._ranks:
            ranks = " or ".join(f"{n}D" for n in self._ranks)
            raise ValueError(f"expected {ranks} input (got {input.ndim}D input)")
        momentum, counted = self.momentum, self.training and self.track_running_stats
        counter = self.num_batches_tracked if counted else None
        if momentum is None:
            momentum = 0.0
            if counter is not None and not once.is_again():
                counter.add_(1)
                momentum, counter = 1.0 / float(counter), None
        track = not self.training or self.track_running_stats
        return batch_norm(
            input,
            self.running_mean if track else None,
            self.running_var if track else None,
            self.weight,
            self.bias,
            self.training or (self.running_mean is None and self.running_var is None),
            momentum,
            self.eps,
            counter,
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


class BatchNorm2d(BatchNorm1d):
    """Normalises each channel over all else, then scales and shifts it. Arguments as of `tgrad.nn.BatchNorm1d`.

    Shape: (N, C, H, W); the result has the input's.
    Dtype: floating; the result has the input's; `dtype` is that of the parameters.
    Raises:
        ValueError: another number of dimensions; one value per channel in training.
        RuntimeError: another number of channels.
    """

    _ranks = (4,)


class LayerNorm(Module):
    """Normalises over trailing dimensions, then scales and shifts each element (Ba et al., 2016).

    Args:
        normalized_shape: their sizes; an integer for one.
        elementwise_affine, bias: whether there is a weight, and a bias, of that shape.

    Shape: (..., *normalized_shape); the result has the input's.
    Dtype: floating; the result has the input's; `dtype` is that of the parameters.
    Raises:
        RuntimeError: the trailing sizes are others; the dtype is not floating.
    """

    def __init__(
        self, normalized_shape: int | Sequence[int], eps: float = 1e-5, elementwise_affine: bool = True,
        bias: bool = True, device: Any = None, dtype: dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.normalized_shape = _shape(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        new = lambda: Parameter(creation.empty(self.normalized_shape, device=device, dtype=dtype))
        self.register_parameter("weight", new() if elementwise_affine else None)
        self.register_parameter("bias", new() if elementwise_affine and bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        _reset(self)

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )


class RMSNorm(Module):
    """Divides by the root of the mean square over trailing dimensions, then scales each element (Zhang and Sennrich,
    2019).

    Args:
        normalized_shape: their sizes; an integer for one.
        eps: added to the mean square; None: the distance from 1 to the next number of the input's dtype.
        elementwise_affine: whether there is a weight of that shape.

    Shape: (..., *normalized_shape); the result has the input's.
    Dtype: floating; the result has the input's; `dtype` is that of the parameters.
    Raises:
        RuntimeError: the trailing sizes are others; the dtype is not floating.
    """

    def __init__(
        self, normalized_shape: int | Sequence[int], eps: float | None = None, elementwise_affine: bool = True,
        device: Any = None, dtype: dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.normalized_shape = _shape(normalized_shape)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        weight = Parameter(creation.empty(self.normalized_shape, device=device, dtype=dtype))
        self.register_parameter("weight", weight if elementwise_affine else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1."""
        _reset(self)

    def forward(self, input: Tensor) -> Tensor:
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"


class GroupNorm(Module):
    """Normalises over each group of channels, then scales and shifts each channel (Wu and He, 2018).

    Shape: (N, C, ...); the result has the input's.
    Dtype: floating; the result has the input's; `dtype` is that of the parameters.
    Raises:
        ValueError: num_channels is no multiple of num_groups; one value per group.
        RuntimeError: another number of channels; the dtype is not floating.
    """

    def __init__(
        self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True, device: Any = None,
        dtype: dtype | None = None, *, bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if num_channels % num_groups != 0:
            raise ValueError(f"num_channels ({num_channels}) must be divisible by num_groups ({num_groups})")
        self.num_groups = num_groups
        self.num_channels = num_channels
        self.eps = eps
        self.affine = affine
        new = lambda: Parameter(creation.empty(num_channels, device=device, dtype=dtype))
        self.register_parameter("weight", new() if affine else None)
        self.register_parameter("bias", new() if affine and bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        _reset(self)

    def forward(self, input: Tensor) -> Tensor:
        return F.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.num_groups}, {self.num_channels}, eps={self.eps}, affine={self.affine}, "
            f"bias={self.bias is not None}"
        )


def _shape(given: int | Sequence[int]) -> tuple[int, ...]:
    return (given,) if isinstance(given, int) else tuple(given)


def _reset(module: Any) -> None:
    if module.weight is not None:
        init.ones_(module.weight)
    if getattr(module, "bias", None) is not None:
        init.zeros_(module.bias)
