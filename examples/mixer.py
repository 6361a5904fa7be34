"""A residual MLP-mixer that tells which quarter of an image is bright. Run: python examples/mixer.py"""

import tgrad as torch
from tgrad import nn, optim
from tgrad.nn import functional as F


class Block(nn.Module):
    """Mixes patches, then channels; each with a residual."""

    def __init__(self, patches: int, width: int, expansion: int = 2) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(patches, patches * expansion), nn.GELU(),
                                    nn.Linear(patches * expansion, patches))  # fmt: skip
        self.channels = nn.Sequential(nn.Linear(width, width * expansion), nn.GELU(),
                                      nn.Linear(width * expansion, width))  # fmt: skip

    def forward(self, x):
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    """Images (N, size, size) to scores (N, classes)."""

    def __init__(self, size: int = 16, patch: int = 4, width: int = 32, depth: int = 2, classes: int = 4) -> None:
        super().__init__()
        self.patch, self.side = patch, size // patch
        self.embed = nn.Linear(patch * patch, width)
        self.blocks = nn.Sequential(*[Block(self.side**2, width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        n, s, p = images.shape[0], self.side, self.patch
        patches = images.reshape(n, s, p, s, p).permute(0, 1, 3, 2, 4).reshape(n, s * s, p * p)
        return self.head(self.norm(self.blocks(self.embed(patches))).mean(dim=1))


def batch(n, size=16):
    """n noisy images, one quarter of each brighter, and which."""
    labels = torch.randint(0, 4, (n,))
    images = torch.randn(n, 2, size // 2, 2, size // 2)
    quarter = (torch.arange(4).reshape(1, 4) == labels.reshape(n, 1)).float().reshape(n, 2, 1, 2, 1)
    return (images + 0.7 * quarter).reshape(n, size, size), labels


def train(steps: int = 30) -> tuple[float, float]:
    """The first and the last loss."""
    torch.manual_seed(0)
    model = Mixer()
    optimizer = optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        images, labels = batch(64)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
        if step % 10 == 0 or step == steps - 1:
            print(f"step {step}: loss {losses[-1]:.3f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    train()
