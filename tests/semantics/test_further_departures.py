"""Departures that the README's table lists beyond section 7: what tgrad does, and that torch does otherwise."""

import pytest
import torch

import tgrad


def leaf(M):
    return M.tensor([1.0, 2.0, 3.0], requires_grad=True)


def test_an_old_value_that_the_gradient_needs_is_copied():
    def square_in_place(M):
        x = leaf(M)
        h = x * 1
        h.mul_(h)
        h.sum().backward()
        return x.grad.tolist()

    assert square_in_place(tgrad) == [2.0, 4.0, 6.0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        square_in_place(torch)


@pytest.mark.parametrize(("M", "seen"), [(tgrad, [[10.0, 10.0]]), (torch, [])], ids=["tgrad", "torch"])
def test_hooks_on_a_view_stay_with_its_old_value(M, seen):
    z, log = leaf(M) * 1, []
    view = z[1:]
    view.register_hook(lambda g: log.append(g.tolist()))
    view.mul_(10.0)
    z.sum().backward()
    assert log == seen


@pytest.mark.parametrize(("M", "recorded"), [(tgrad, True), (torch, False)], ids=["tgrad", "torch"])
def test_ops_on_inference_tensors_alone(M, recorded):
    with M.inference_mode():
        x = M.ones(2, requires_grad=True)
    assert (x + x).requires_grad is recorded
