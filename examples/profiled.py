"""A model to profile, and a loop with the classic leak: what docs/howto.md asks the profiler about."""

import tgrad
from tgrad import nn


class Block(nn.Module):
    """(batch, width) -> (batch, width): a residual block."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(self.act(self.up(self.norm(x))))


def model(batch_size=16, width=32, depth=2, seed=0):
    """(model, an example of its input, loss): what `tgrad profile examples/profiled.py:model` runs."""
    tgrad.manual_seed(seed)
    net = nn.Sequential(*(Block(width) for _ in range(depth)), nn.Linear(width, 10))
    return net, tgrad.randn(batch_size, width), lambda out: out.square().mean()


net, x, loss = model()
losses = []


def step():
    """One iteration, as `tgrad leaks examples/profiled.py:step` runs it; it keeps a graph in each loss."""
    losses.append(loss(net(x)))
