"""An op of your own: a Triton kernel for its values and one for its gradient, joined by an autograd Function.

    python examples/custom_kernel.py

Runs on a CUDA device, and without one through Triton's interpreter. tgrad must be imported before a kernel is
decorated: without a device it tells Triton to interpret what is decorated from then on.
"""

import functools

import triton
import triton.language as tl

import tgrad
from tgrad.autograd.function import once_differentiable
from tgrad.kernels.launch import prepare

BLOCK = 1024


# A kernel's parameters come in this order: addresses, integers fixed per launch, constants.
@triton.jit
def softsign_kernel(out, x, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    v = tl.load(x + at, inside)
    tl.store(out + at, v / (1 + tl.abs(v)), inside)


@triton.jit
def softsign_backward_kernel(out, g, x, n, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    v = 1 + tl.abs(tl.load(x + at, inside))
    tl.store(out + at, tl.load(g + at, inside) / (v * v), inside)


@functools.cache
def launcher(kernel, n, dtypes, aligned):
    """What launches `kernel` over n elements: `prepare` fixes all but the addresses; each signature compiles once."""
    pointers = tuple(f"*{dtype.triton}" for dtype in dtypes)
    return prepare(kernel, (triton.cdiv(n, BLOCK),), pointers, (n,), {"BLOCK": BLOCK}, aligned=aligned)


def run(kernel, *tensors):
    """Launch `kernel` on contiguous tensors of one shape; the first is written."""
    addresses = [t.data_ptr() for t in tensors]
    n = tensors[0].numel()
    if n:
        aligned = all(address % 16 == 0 for address in addresses)
        launcher(kernel, n, tuple(t.dtype for t in tensors), aligned)(*addresses)
    return tensors[0]


class Softsign(tgrad.autograd.Function):
    """x / (1 + |x|)"""

    @staticmethod
    def forward(ctx, x):
        if not x.is_floating_point():
            raise TypeError(f"softsign: expected a floating dtype, got {x.dtype}")
        x = x.contiguous()
        ctx.save_for_backward(x)
        return run(softsign_kernel, tgrad.empty(*x.shape, dtype=x.dtype), x)

    @staticmethod
    @once_differentiable  # the kernel is no recorded op: a second derivative raises rather than being wrong
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return run(softsign_backward_kernel, tgrad.empty(*x.shape, dtype=x.dtype), g.contiguous(), x)


def softsign(x):
    """x / (1 + |x|), elementwise."""
    return Softsign.apply(x)


def main():
    tgrad.manual_seed(0)
    x = tgrad.randn(3, 5, dtype=tgrad.float64, requires_grad=True)
    print("gradcheck:", tgrad.autograd.gradcheck(softsign, x))

    model, target = tgrad.nn.Linear(4, 1), tgrad.tensor([[0.5], [-0.5], [0.2]])
    data = tgrad.randn(3, 4)
    optimizer = tgrad.optim.SGD(model.parameters(), lr=0.5)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (softsign(model(data)) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss: {losses[0]:.4f} -> {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    main()
