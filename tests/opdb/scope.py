"""What is out of scope, and why: the whole list. Whatever else does not agree has failed."""

from __future__ import annotations

import re

import tgrad

# Values that tgrad has no counterpart of (translate.Untranslatable).
VALUES = {
    "complex dtype": "tgrad has no complex dtypes",
    "complex number": "tgrad has no complex dtypes",
    "dtype": "not one of tgrad's eight dtypes",
    "sparse layout": "tgrad has no sparse layouts",
    "layout=": "tgrad has one layout, strided, and no argument for it",
    "channels-last": "tgrad has no channels-last strides",
}

# (op, what the error says, why this is not offered). An op that raises anything else has failed.
RAISES: tuple[tuple[str, str, str], ...] = (
    ("norm.nuc", "'nuc' is not supported", "the nuclear norm needs a singular value decomposition"),
)

# Ops whose values are drawn, or not set: shape and dtype are compared.
DRAWN = {
    "bernoulli", "empty", "empty_like", "empty_strided", "multinomial", "new_empty", "normal", "rand_like", "randint",
    "randint_like", "randn", "randn_like",
}  # fmt: skip


def drawn(name: str, kwargs: dict) -> bool:
    """Whether the values of a sample are drawn: two correct libraries differ."""
    dropping = kwargs.get("dropout_p", 0) if name != "nn.functional.dropout" else kwargs.get("p", 0.5)
    if name in ("nn.functional.dropout", "nn.functional.scaled_dot_product_attention"):
        return kwargs.get("training", True) and 0 < dropping < 1
    return name in DRAWN


# Where torch computes in less than the result's precision: the dtype whose tolerance holds instead.
PRECISION = {"nn.functional.hardsigmoid": tgrad.float32}  # its backward multiplies by 1/6 rounded to float32


def of_value(text: str) -> str:
    """The reason for a value that cannot be translated."""
    return VALUES["dtype" if text.startswith("dtype ") else text]


def of_error(op: str, error: Exception) -> str | None:
    """The reason why an op may refuse, or None."""
    for name, pattern, why in RAISES:
        if name == op and re.search(pattern, str(error)):
            return why
    return None
