"""Linear and Identity."""

from __future__ import annotations

import math
from typing import Any

from tgrad.dtypes import dtype
from tgrad.nn import functional as F, init
from tgrad.nn.module import Module
from tgrad.nn.parameter import Parameter
from tgrad.ops import creation
from tgrad.tensor import Tensor


class Identity(Module):
    """Returns its input. Takes any arguments and ignores them.

    Shape: any; the result has the input's.
    Dtype: the input's.
    Raises: nothing.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def forward(self, input: Tensor) -> Tensor:
        return input


class Linear(Module):
    """input @ weight.T + bias.

    Attributes:
        weight: (out_features, in_features).
        bias: (out_features,), or None.

    Shape: (..., in_features) gives (..., out_features).
    Dtype: the same of input, weight and bias; `dtype` is that of the parameters.
    Raises:
        RuntimeError: the input's last size, or its dtype, does not fit.
    """

    in_features: int
    out_features: int
    weight: Parameter
    bias: Parameter | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: Any = None, dtype: dtype | None = None
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = Parameter(creation.empty(out_features, in_features, device=device, dtype=dtype))
        if bias:
            self.bias = Parameter(creation.empty(out_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew, from +-1 / sqrt(in_features)."""
        init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features) if self.in_features > 0 else 0
            init.uniform_(self.bias, -bound, bound)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
