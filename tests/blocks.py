"""Blocks of models, each fed by a Linear, and what they keep under the policies "keep" and "lean".

What is kept is written as (elements, whether they are float32 whatever the dtype): statistics are.
"""

import tgrad.nn.functional as F
from tgrad import nn

N, D, HEADS = 32, 64, 4  # rows, width
T = D // 2  # length of a sequence
SHAPES = {"flat": (N, D), "sequence": (4, T, D), "short": (16, T // 4, D)}


class SwiGLU(nn.Module):
    """silu(a x) * (b x), then a Linear: Shazeer 2020, arXiv 2002.05202."""

    def __init__(self, width, hidden, dtype):
        super().__init__()
        self.a, self.b = nn.Linear(width, hidden, dtype=dtype), nn.Linear(width, hidden, dtype=dtype)
        self.c = nn.Linear(hidden, width, dtype=dtype)

    def forward(self, x):
        return self.c(F.silu(self.a(x)) * self.b(x))


def _mlp(activation, *more):
    return lambda dtype: nn.Sequential(
        nn.Linear(D, 4 * D, dtype=dtype), activation(), *[m() for m in more], nn.Linear(4 * D, D, dtype=dtype)
    )


def _normed(norm, *more):
    return lambda dtype: nn.Sequential(norm(D, dtype=dtype), *[m() for m in more], nn.Linear(D, D, dtype=dtype))


def _encoder(dtype):
    return nn.TransformerEncoderLayer(
        D, HEADS, 4 * D, dropout=0.1, activation="gelu", norm_first=True, batch_first=True, dtype=dtype
    )


_x, _z = (N * D, False), (N * 4 * D, False)
_row, _rows, _channels = (N, True), (2 * N, True), (2 * D, True)
_tokens = 4 * T
_e, _wide = (_tokens * D, False), (_tokens * 4 * D, False)
_sums = (_tokens * HEADS, True)  # a number for each row of the attention map
_stats = (4 * _tokens, True)

# By name: what makes it, its shape, what "keep" keeps and what "lean" keeps.
_TABLE = {
    "relu": (_mlp(nn.ReLU), "flat", [_x, _z], [_x, _z]),
    "gelu": (_mlp(nn.GELU), "flat", [_x, _z, _z], [_x, _z]),
    "silu": (_mlp(nn.SiLU), "flat", [_x, _z, _z], [_x, _z]),
    "gelu, dropout": (_mlp(nn.GELU, lambda: nn.Dropout(0.1)), "flat", [_x, _z, _z], [_x, _z]),
    "relu, dropout": (_mlp(nn.ReLU, lambda: nn.Dropout(0.1)), "flat", [_x, _z, _z], [_x, _z]),
    "swiglu": (lambda dtype: SwiGLU(D, 4 * D, dtype), "flat", [_x, _z, _z, _z, _z], [_x, _z, _z]),
    "layer_norm": (_normed(nn.LayerNorm), "flat", [_x, _x, _rows], [_x, _rows]),
    "rms_norm": (_normed(nn.RMSNorm), "flat", [_x, _x, _row], [_x, _row]),
    "batch_norm, relu": (_normed(nn.BatchNorm1d, nn.ReLU), "flat", [_x, _x, _channels], [_x, _channels]),
    "encoder": (
        _encoder,
        "sequence",
        [_e, _e, *[_e] * 3, _sums, _e, _e, _e, _wide, _wide, _stats],
        [_e, *[_e] * 3, _sums, _e, _e, _wide, _stats],
    ),
    "encoder, short": (  # attention is cheap enough to be run again
        _encoder,
        "short",
        [_e, _e, *[_e] * 3, _sums, _e, _e, _e, _wide, _wide, _stats],
        [_e, *[_e] * 3, _sums, _e, _wide, _stats],
    ),
}
BLOCKS = {name: (keep, lean) for name, (_, _, keep, lean) in _TABLE.items()}


def build(name, dtype):
    """(a Linear and the block, the shape of its input)."""
    make, kind, _, _ = _TABLE[name]
    return nn.Sequential(nn.Linear(D, D, dtype=dtype), make(dtype)), SHAPES[kind]
