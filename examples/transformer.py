"""A two-layer transformer that learns to continue a counting sequence. Run: python examples/transformer.py"""

import tgrad as torch
from tgrad import nn, optim
from tgrad.nn import functional as F


class Transformer(nn.Module):
    """Tokens (N, L) to scores of the next one (N, L, vocabulary); each position sees those before it."""

    def __init__(self, vocabulary: int = 16, length: int = 12, width: int = 32, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, activation="gelu", batch_first=True,
                                           norm_first=True)  # fmt: skip
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens):
        length = tokens.shape[1]
        at = torch.arange(length)
        mask = at.reshape(1, length) > at.reshape(length, 1)
        return self.head(self.layers(self.tokens(tokens) + self.places(at), mask=mask))


def batch(n, vocabulary=16, length=12):
    """n sequences that count up from a random start by a random step, and their continuations."""
    start, step = torch.randint(0, vocabulary, (n, 1)), torch.randint(1, 4, (n, 1))
    values = start + step * torch.arange(length + 1)
    values = values - vocabulary * (values.double() / vocabulary - 0.5 + 1e-9).round().long()
    return values[:, :-1], values[:, 1:]


def train(steps: int = 25) -> tuple[float, float]:
    """The first and the last loss."""
    torch.manual_seed(0)
    model = Transformer()
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    schedule = optim.lr_scheduler.SequentialLR(
        optimizer,
        [optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5),
         optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - 5))], [5],
    )  # fmt: skip
    losses = []
    for step in range(steps):
        tokens, following = batch(32)
        scores = model(tokens)
        loss = F.cross_entropy(scores.reshape(-1, scores.shape[-1]), following.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss))
        if step % 5 == 0 or step == steps - 1:
            print(f"step {step}: loss {losses[-1]:.3f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    train()
