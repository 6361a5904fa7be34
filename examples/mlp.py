"""A classifier of two spirals: an MLP with batch norm and dropout. Run: python examples/mlp.py"""

import math

import tgrad as torch
from tgrad import nn, optim
from tgrad.nn import functional as F


class MLP(nn.Module):
    def __init__(self, inputs: int = 2, hidden: int = 32, classes: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(dropout),
        )  # fmt: skip
        self.head = nn.Linear(hidden, classes)

    def forward(self, x):
        return self.head(self.body(x))


def spirals(n):
    """n points of each of two spirals, and which they belong to."""
    angle = torch.rand(n).sqrt() * 3 * math.pi
    points = []
    for turn in (0.0, math.pi):
        points.append(torch.stack([angle * (angle + turn).cos(), angle * (angle + turn).sin()], 1) / 5)
    labels = torch.cat([torch.zeros(n, dtype=torch.int64), torch.ones(n, dtype=torch.int64)])
    return torch.cat(points) + 0.02 * torch.randn(2 * n, 2), labels


def train(steps: int = 60) -> tuple[float, float]:
    """The first loss and the accuracy at the end."""
    torch.manual_seed(0)
    model = MLP()
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    schedule = optim.lr_scheduler.OneCycleLR(optimizer, 2e-2, total_steps=steps)
    first = None
    for step in range(steps):
        x, y = spirals(128)
        loss = F.cross_entropy(model(x), y, label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        first = float(loss) if first is None else first
        if step % 10 == 0:
            print(f"step {step}: loss {float(loss):.3f}")
    model.eval()
    with torch.no_grad():
        x, y = spirals(256)
        right = (model(x)[:, 1] > model(x)[:, 0]) == (y == 1)
    accuracy = float(right.float().mean())
    print(f"accuracy: {accuracy:.2f}")
    return first, accuracy


if __name__ == "__main__":
    train()
