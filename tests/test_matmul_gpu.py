"""Matrix products on a GPU, with the tiles that it gets: right, as accurate as PyTorch's, and the same each time."""

import pytest
import torch

import tgrad
import tgrad.nn.functional as F
from tests.benchmarks.gpu.data import as_torch, error, share

pytestmark = pytest.mark.gpu

# Persistent and not, in pieces and whole, rows of 16 bytes and odd ones: (rows, out features, in features).
SIZES = [
    (1024, 768, 512), (4096, 2048, 1024), (64, 64, 16384), (1, 4096, 4096), (333, 77, 555), (2048, 10, 784), (17, 5, 1),
    (512, 512, 40),
]  # fmt: skip


def errors(m, n, k, dtype):
    """Of (y, gradients of x, w and b): tgrad's and torch's against float64, and tgrad's results."""
    torch.manual_seed(m + n + k)
    values = [torch.randn(shape, device="cuda").to(dtype) for shape in ((m, k), (n, k), (n,), (m, n))]
    exact = [t.double().requires_grad_() for t in values[:3]]
    theirs = [t.clone().requires_grad_() for t in values[:3]]
    ours = [share(t.clone()).requires_grad_() for t in values[:3]]
    results = []
    for leaves, g in ((exact, values[3].double()), (theirs, values[3])):
        y = torch.nn.functional.linear(*leaves)
        y.backward(g)
        results.append([y.detach(), *(t.grad for t in leaves)])
    y = F.linear(*ours)
    y.backward(share(values[3]))
    found = [as_torch(y.detach()), *(as_torch(t.grad) for t in ours)]
    return [(error(a, e), error(b, e)) for a, b, e in zip(found, results[1], results[0], strict=True)], found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_at_most_twice_the_error_of_torch(size, dtype):
    """With PyTorch's own default for float32, which is plain float32 arithmetic, and tgrad's "highest"."""
    assert torch.get_float32_matmul_precision() == tgrad.get_float32_matmul_precision() == "highest"
    for ours, theirs in errors(*size, dtype)[0]:
        assert ours <= 2 * theirs + torch.finfo(dtype).eps / 4


@pytest.mark.parametrize("size", SIZES[:4], ids=str)
def test_same_bits_each_time(size):
    first = errors(*size, torch.float32)[1]
    for again in (errors(*size, torch.float32)[1] for _ in range(3)):
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("name, least, most", [("high", 0, 5e-6), ("medium", 1e-5, 2e-3)])
def test_precisions(name, least, most):
    a, b = (torch.randn(512, 512, device="cuda") for _ in range(2))
    try:
        tgrad.set_float32_matmul_precision(name)
        off = error(as_torch(share(a) @ share(b)), a.double() @ b.double())
    finally:
        tgrad.set_float32_matmul_precision("highest")
    assert least <= off <= most


def test_another_stream():
    """Each stream has scratch memory of its own for the descriptors."""
    from tgrad.kernels import launch

    a, b = (torch.randn(1024, 1024, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    exact, before = a.double() @ b.double(), launch._stream
    x, y = share(a), share(b)
    first = x @ y
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    try:
        launch.set_stream(side.cuda_stream)
        second = x @ y
    finally:
        torch.cuda.synchronize()
        launch.set_stream(before if before is not None else 0)
    assert error(as_torch(first), exact) < 1e-2 and torch.equal(as_torch(first), as_torch(second))
