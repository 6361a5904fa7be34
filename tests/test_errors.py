"""Bad input: one clear line that says what came and what was expected, and no traceback from inside Triton."""

import traceback

import numpy as np
import pytest

import tgrad
from tgrad.ops import linear, norm, softmax

F, I = tgrad.zeros(3, 4), tgrad.zeros(3, 4, dtype=tgrad.int64)
B = tgrad.zeros(3, 4, dtype=tgrad.bool)

# (call, error, words that must be in its message)
REFUSED = {
    "add shapes": (lambda: F + tgrad.zeros(3, 5), RuntimeError, ["4", "5", "dimension 1", "(3, 4)", "(3, 5)"]),
    "mul_ shapes": (lambda: tgrad.zeros(4).mul_(F), RuntimeError, ["[4]", "[3, 4]"]),
    "where shapes": (lambda: tgrad.where(B, F, tgrad.zeros(2)), RuntimeError, ["(3, 4)", "(2,)"]),
    "where condition": (lambda: tgrad.where(F, F, F), RuntimeError, ["boolean", "torch.float32"]),
    "where number": (lambda: tgrad.where(True, F, F), RuntimeError, ["boolean", "bool"]),
    "add a string": (lambda: tgrad.add(F, "a"), TypeError, ["Tensor or a number", "str"]),
    "add None": (lambda: F.add(None), TypeError, ["add", "NoneType"]),
    "operator and a list": (lambda: F + [1], TypeError, ["list"]),
    "operator and None": (lambda: F * None, TypeError, ["NoneType"]),
    "in place and a string": (lambda: tgrad.zeros(2).add_("a"), TypeError, ["add", "str"]),
    "exp of a number": (lambda: tgrad.exp(1.0), TypeError, ["exp", "Tensor", "float"]),
    "maximum of numbers": (lambda: tgrad.maximum(1, 2), TypeError, ["maximum", "int"]),
    "neg of bool": (lambda: -B, RuntimeError, ["neg", "bool", "logical_not"]),
    "sub of bools": (lambda: B - B, RuntimeError, ["bool", "logical_not"]),
    "clamp nothing": (lambda: F.clamp(), RuntimeError, ["At least one of 'min' or 'max'"]),
    "integer power": (lambda: I**-1, RuntimeError, ["Integers to negative integer powers"]),
    "& of floats": (lambda: F & F, RuntimeError, ["bitwise_and", "float32"]),
    "~ of floats": (lambda: ~F, TypeError, ["integer and Boolean-type"]),
    "mean of integers": (lambda: I.mean(), RuntimeError, ["mean", "Long"]),
    "sum dim": (lambda: F.sum(2), IndexError, ["[-2, 1]", "got 2"]),
    "sum dims twice": (lambda: F.sum((0, 0)), RuntimeError, ["dim 0", "multiple times"]),
    "sum dim type": (lambda: F.sum("a"), TypeError, ["str"]),
    "amax of nothing": (lambda: tgrad.zeros(0).amax(), RuntimeError, ["amax", "dim"]),
    "amax over nothing": (lambda: tgrad.zeros(0, 3).amax(0), IndexError, ["amax", "dim 0", "non-zero size"]),
    "matmul shapes": (lambda: F @ F, RuntimeError, ["3x4", "4 columns meet 3 rows"]),
    "matmul dtypes": (lambda: F @ F.double().t(), RuntimeError, ["torch.float32", "torch.float64"]),
    "matmul scalar": (lambda: F @ tgrad.zeros(()), RuntimeError, ["at least 1D", "0D"]),
    "matmul batch": (lambda: tgrad.zeros(2, 3, 4) @ tgrad.zeros(5, 4, 3), RuntimeError, ["2", "5"]),
    "matmul dot": (lambda: tgrad.zeros(3) @ tgrad.zeros(4), RuntimeError, ["[3]", "[4]"]),
    "matmul number": (lambda: tgrad.matmul(F, 2), TypeError, ["two Tensors", "int"]),
    "matmul bool": (lambda: B @ B.t(), RuntimeError, ["bool"]),
    "mm of batches": (lambda: tgrad.mm(tgrad.zeros(2, 3, 4), F), RuntimeError, ["mm", "3D"]),
    "bmm of matrices": (lambda: tgrad.bmm(F, F), RuntimeError, ["3D", "2D"]),
    "linear features": (lambda: linear.linear(F, tgrad.zeros(2, 5)), RuntimeError, ["4 features", "5", "(2, 5)"]),
    "linear bias": (lambda: linear.linear(F, tgrad.zeros(2, 4), tgrad.zeros(3)), RuntimeError,
        ["bias", "(2,)", "(3,)"]),
    "linear weight": (lambda: linear.linear(F, tgrad.zeros(4)), RuntimeError, ["weight", "2-dimensional", "(4,)"]),
    "linear weight of a batch": (lambda: linear.linear(tgrad.zeros(2, 3, 4), tgrad.zeros(4)), RuntimeError,
        ["weight", "2-dimensional"]),
    "linear dtypes": (lambda: linear.linear(F, tgrad.zeros(2, 4, dtype=tgrad.float16)), RuntimeError,
        ["torch.float32", "torch.float16"]),
    "linear types": (lambda: linear.linear(F, None), TypeError, ["weight", "NoneType"]),
    "softmax of integers": (lambda: softmax.softmax(I, 0), RuntimeError, ["softmax", "torch.int64"]),
    "softmax dim": (lambda: softmax.log_softmax(F, 2), IndexError, ["[-2, 1]"]),
    "loss batch": (lambda: softmax.cross_entropy(F, tgrad.zeros(2, dtype=tgrad.int64)), ValueError,
        ["batch_size (3)", "batch_size (2)"]),
    "loss shape": (lambda: softmax.cross_entropy(F, I), RuntimeError, ["(3,)", "(3, 4)"]),
    "loss dtype": (lambda: softmax.cross_entropy(F, tgrad.zeros(3)), RuntimeError, ["Long", "Float"]),
    "loss reduction": (lambda: softmax.cross_entropy(F, I[:, 0], reduction="avg"), ValueError, ["avg"]),
    "loss types": (lambda: softmax.cross_entropy(F, [0, 1, 2]), TypeError, ["Tensor", "list"]),
    "norm channels": (lambda: norm.batch_norm(F, None, None, tgrad.zeros(5), training=True), RuntimeError,
        ["weight", "4", "5"]),
    "norm of one value": (lambda: norm.batch_norm(F[:1], None, None, training=True), ValueError,
        ["more than 1 value per channel", "[1, 4]"]),
    "default dtype": (lambda: tgrad.set_default_dtype(tgrad.int32), TypeError, ["floating-point", "torch.int32"]),
    "matmul precision": (lambda: tgrad.set_float32_matmul_precision("best"), RuntimeError, ["highest", "best"]),
    "dim type": (lambda: F.transpose("a", 0), TypeError, ["int", "str"]),
    "shape type": (lambda: F.view("a"), TypeError, ["integers"]),
    "expand": (lambda: F.expand(3, 5), RuntimeError, ["(5)", "(4)", "dimension 1"]),
    "numpy array with a tensor": (lambda: F + np.zeros((3, 5)), (RuntimeError, TypeError, ValueError), []),
    "too many": (lambda: tgrad.exp(F, F), TypeError, ["argument"]),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, error, words = REFUSED[name]
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert message and "\n" not in message
    assert not [w for w in words if w.lower() not in message.lower()], message
    frames = [f.filename for e in (raised.value,
        raised.value.__cause__) if e for f in traceback.extract_tb(e.__traceback__)]
    assert not [f for f in frames if "triton" in f or "kernels" in f], "raised inside a kernel"


@pytest.mark.skipif(tgrad.cuda.is_available(), reason="checked on the CPU alone: a GPU would have to be waited for")
@pytest.mark.parametrize("classes", [[0, 4, 1], [0, -1, 1]])
def test_classes_out_of_range(classes):
    with pytest.raises(IndexError, match=f"Target {[c for c in classes if c not in range(4)][0]} is out of bounds"):
        softmax.cross_entropy(F, tgrad.tensor(classes))


def test_an_unhashable_or_foreign_comparison_is_python_s():
    assert (F == "a") is False and (F != "a") is True
    assert F in [F] and hash(F) == hash(F)
