"""More activations: modules over the functions of tgrad/activations.py."""

from __future__ import annotations

from typing import Any

from tgrad import activations as A, docstrings
from tgrad.dtypes import dtype
from tgrad.nn import functional as F, init
from tgrad.nn.module import Module
from tgrad.nn.parameter import Parameter
from tgrad.ops import activations as rows, creation, pointwise as p
from tgrad.tensor import Tensor


@docstrings.described(rows.hardtanh, 1)
class Hardtanh(Module):
    """The input limited to [min_val, max_val].

    Raises:
        AssertionError: min_val is not less than max_val.
        RuntimeError: the dtype is uint8 and a limit is negative.
    """

    def __init__(self, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        if not min_val < max_val:
            raise AssertionError("max_val must be larger than min_val")
        self.min_val, self.max_val, self.inplace = min_val, max_val, inplace

    def forward(self, input: Tensor) -> Tensor:
        return A.hardtanh(input, self.min_val, self.max_val, self.inplace)

    def extra_repr(self) -> str:
        return f"min_val={self.min_val}, max_val={self.max_val}" + (", inplace=True" if self.inplace else "")


@docstrings.described(rows.hardtanh, 1)
class ReLU6(Hardtanh):
    """The input limited to [0, 6]."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__(0.0, 6.0, inplace)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


@docstrings.described(rows.hardswish, 1)
class Hardswish(Module):
    """x * relu6(x + 3) / 6."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return A.hardswish(input, inplace=self.inplace)


@docstrings.described(rows.hardsigmoid, 1)
class Hardsigmoid(Module):
    """relu6(x + 3) / 6."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return A.hardsigmoid(input, inplace=self.inplace)


@docstrings.described(rows.mish, 1)
class Mish(Module):
    """x * tanh(softplus(x))."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return A.mish(input, inplace=self.inplace)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


@docstrings.described(rows.selu, 1)
class SELU(Module):
    """Scaled ELU, with the constants that keep mean 0 and variance 1."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, input: Tensor) -> Tensor:
        return A.selu(input, inplace=self.inplace)

    def extra_repr(self) -> str:
        return "inplace=True" if self.inplace else ""


@docstrings.described(rows.celu, 1)
class CELU(Module):
    """x where positive, else alpha * (exp(x / alpha) - 1)."""

    def __init__(self, alpha: float = 1.0, inplace: bool = False) -> None:
        super().__init__()
        self.alpha, self.inplace = alpha, inplace

    def forward(self, input: Tensor) -> Tensor:
        return A.celu(input, self.alpha, self.inplace)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}" + (", inplace=True" if self.inplace else "")


@docstrings.described(rows.softsign, 1)
class Softsign(Module):
    """x / (1 + |x|)."""

    def forward(self, input: Tensor) -> Tensor:
        return A.softsign(input)


@docstrings.described(rows.logsigmoid, 1)
class LogSigmoid(Module):
    """log(sigmoid(x))."""

    def forward(self, input: Tensor) -> Tensor:
        return A.logsigmoid(input)


@docstrings.described(p.tanh, 1)
class Tanhshrink(Module):
    """x - tanh(x).

    Raises:
        RuntimeError: the dtype is bool.
    """

    def forward(self, input: Tensor) -> Tensor:
        return input - F.tanh(input)


class Softmin(Module):
    """softmax(-x) along `dim`.

    Shape: any; the result has the input's.
    Dtype: floating; the result has the input's.
    Raises:
        RuntimeError: the dtype is not floating.
        IndexError: `dim` is out of range.
    """

    def __init__(self, dim: int | None = None) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return F.softmax(-input, self.dim, _stacklevel=5)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


@docstrings.described(rows.threshold, 1)
class Threshold(Module):
    """x where it is greater than `threshold`, else `value`."""

    def __init__(self, threshold: float, value: float, inplace: bool = False) -> None:
        super().__init__()
        self.threshold, self.value, self.inplace = threshold, value, inplace

    def forward(self, input: Tensor) -> Tensor:
        return A.threshold(input, self.threshold, self.value, self.inplace)

    def extra_repr(self) -> str:
        return f"threshold={self.threshold}, value={self.value}" + (", inplace=True" if self.inplace else "")


class GLU(Module):
    """The first half of `dim` times the sigmoid of the second.

    Shape: an even size at `dim`, of which the result has half.
    Dtype: floating; the result has the input's.
    Raises:
        RuntimeError: there is no dimension, or its size is odd; the dtype is not floating.
        IndexError: `dim` is out of range.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return A.glu(input, self.dim)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"


class PReLU(Module):
    """x where positive, else weight * x; weight (num_parameters,) is learned: one, or one for each channel.

    Shape: any; the result has the input's.
    Dtype: floating, the same of input and weight.
    Raises:
        RuntimeError: the input has neither `num_parameters` channels nor is `num_parameters` 1; the dtype is not
            floating.
    """

    def __init__(
        self, num_parameters: int = 1, init: float = 0.25, device: Any = None, dtype: dtype | None = None
    ) -> None:
        super().__init__()
        self.num_parameters, self.init = num_parameters, init
        self.weight = Parameter(creation.empty(num_parameters, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weight `init`."""
        init.constant_(self.weight, self.init)

    def forward(self, input: Tensor) -> Tensor:
        return A.prelu(input, self.weight)

    def extra_repr(self) -> str:
        return f"num_parameters={self.num_parameters}"
