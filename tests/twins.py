"""The same module or function in tgrad and in torch: equal weights, results and gradients compared."""

import numpy as np
import torch

import tgrad as T
from tests.compare import TORCH, random

TOLERANCE = {T.float64: {"rtol": 1e-10, "atol": 1e-11}, T.float32: {"rtol": 2e-5, "atol": 2e-6}}


def host(t):
    return t.detach().cpu().numpy()


def leaves(values, dtype=T.float64, requires_grad=True):
    """(tgrad tensor, torch tensor) of the values; integers and bools stay what they are."""
    values = np.asarray(values)
    if values.dtype.kind != "f":
        return T.tensor(values), torch.tensor(values)
    ours, theirs = T.tensor(values, dtype=dtype), torch.tensor(values, dtype=TORCH[dtype])
    return ours.requires_grad_(requires_grad), theirs.requires_grad_(requires_grad)


def same(ours, theirs, what="result"):
    assert tuple(ours.shape) == tuple(theirs.shape) and repr(ours.dtype) == repr(theirs.dtype), what
    tolerance = TOLERANCE.get(ours.dtype, {"rtol": 2e-2, "atol": 2e-2})
    np.testing.assert_allclose(host(ours.double()), host(theirs.double()), **tolerance, err_msg=what)


def agree(ours, theirs, inputs):
    """Call both on `inputs`, pairs of tensors; compare the result, and the gradients by a random cotangent."""
    a, b = ours(*[x for x, _ in inputs]), theirs(*[y for _, y in inputs])
    same(a, b)
    g = random("cotangent", tuple(b.shape)).standard_normal(tuple(b.shape))
    if b.requires_grad:
        assert a.requires_grad
        a.backward(T.tensor(g, dtype=a.dtype))
        b.backward(torch.tensor(g, dtype=b.dtype))
        for i, (x, y) in enumerate(inputs):
            if y.requires_grad and y.grad is not None:
                same(x.grad, y.grad, f"gradient of input {i}")
    return a, b


def twin(ours, theirs):
    """Put torch's weights, made random, into tgrad's module; returns both."""
    for q in theirs.parameters():
        q.data = torch.tensor(random("weights", tuple(q.shape)).standard_normal(tuple(q.shape)) * 0.5, dtype=q.dtype)
    state = {k: T.tensor(host(v).copy()) for k, v in theirs.state_dict().items()}
    assert str(ours.load_state_dict(state)) == "<All keys matched successfully>"
    return ours, theirs


def same_grads(ours, theirs):
    """The gradients of all parameters, and the buffers."""
    for (name, p), (expected, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert name == expected
        same(p.grad, q.grad, name)
    for (name, p), (expected, q) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert name == expected
        same(p, q, name)
