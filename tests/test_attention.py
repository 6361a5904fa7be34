"""Attention, transformer encoders, embeddings, containers and gradient clipping against torch's."""

import warnings

import numpy as np
import pytest
import torch

import tgrad as T
import tgrad.nn.functional as F
from tests.compare import TORCH, random
from tests.errors import message
from tests.twins import agree, host, leaves, same, same_grads, twin
from tgrad import nn

G = torch.nn.functional
pytestmark = [pytest.mark.anywhere, pytest.mark.filterwarnings("ignore:enable_nested_tensor"),
              pytest.mark.filterwarnings("ignore:Support for mismatched")]  # fmt: skip
MASK = np.triu(np.ones((3, 3), bool), 1)
PADDING = np.array([[False, False, True], [False, False, False]])


def draw(*shape, key=0):
    return random("attention", shape, key).standard_normal(shape)


def both(values):
    return T.tensor(values), torch.tensor(values)


@pytest.mark.parametrize(
    "options",
    [{}, {"is_causal": True}, {"scale": 0.3}, {"mask": draw(4, 5) > 0}, {"mask": draw(4, 5)},
     {"mask": draw(2, 1, 4, 5) > 0.5}, {"mask": np.arange(20).reshape(4, 5) < 10}],
    ids=["plain", "causal", "scale", "bool", "float", "broadcast", "dead rows"],
)  # fmt: skip
def test_scaled_dot_product_attention(options):
    options = dict(options)
    mask = options.pop("mask", None)
    ours, theirs = (None, None) if mask is None else both(mask)
    pairs = [leaves(draw(2, 3, n, e, key=i)) for i, (n, e) in enumerate([(4, 6), (5, 6), (5, 7)])]
    agree(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, ours, **options),
          lambda q, k, v: G.scaled_dot_product_attention(q, k, v, theirs, **options), pairs)  # fmt: skip


def test_grouped_heads_and_dropout():
    pairs = [leaves(draw(2, h, 3, 4, key=h)) for h in (4, 2, 2)]
    agree(lambda *a: F.scaled_dot_product_attention(*a, enable_gqa=True),
          lambda *a: G.scaled_dot_product_attention(*a, enable_gqa=True), pairs)  # fmt: skip
    q = T.ones(8, 16, 4)
    assert host(F.scaled_dot_product_attention(q, q, q, dropout_p=0.9)).std() > 0
    with pytest.raises(RuntimeError, match="Explicit attn_mask should not be set when is_causal=True"):
        F.scaled_dot_product_attention(q, q, q, T.ones(16, 16), is_causal=True)


HEADS = [
    {}, {"bias": False}, {"batch_first": True}, {"kdim": 3, "vdim": 5}, {"add_bias_kv": True}, {"add_zero_attn": True},
    {"add_bias_kv": True, "add_zero_attn": True, "batch_first": True},
]  # fmt: skip


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("options", HEADS, ids=str)
def test_multihead_attention(options, need_weights):
    ours, theirs = (n.MultiheadAttention(8, 2, **options).double() for n in (nn, torch.nn))
    twin(ours, theirs)
    first = options.get("batch_first")
    sizes = [8, options.get("kdim", 8), options.get("vdim", 8)]
    pairs = [leaves(draw(*((2, 3) if first else (3, 2)), e, key=i)) for i, e in enumerate(sizes)]
    for mask, padding in ((None, None), (MASK, None), (None, PADDING), (MASK, PADDING), (draw(4, 3, 3), None)):
        (m, m2), (p, p2) = ((None, None) if x is None else both(x) for x in (mask, padding))
        got = ours(*[x for x, _ in pairs], attn_mask=m, key_padding_mask=p, need_weights=need_weights)
        want = theirs(*[y for _, y in pairs], attn_mask=m2, key_padding_mask=p2, need_weights=need_weights)
        same(got[0], want[0])
        assert (got[1] is None) == (want[1] is None)
        if need_weights:
            same(got[1], want[1])
        ours.zero_grad(), theirs.zero_grad()
        got[0].square().sum().backward(), want[0].square().sum().backward()
        same_grads(ours, theirs)


def test_self_attention_of_one_sequence():
    ours, theirs = nn.MultiheadAttention(8, 2).double(), torch.nn.MultiheadAttention(8, 2).double()
    twin(ours, theirs)
    agree(lambda x: ours(x, x, x)[0], lambda x: theirs(x, x, x)[0], [leaves(draw(5, 8))])
    x, y = leaves(draw(5, 2, 8))
    same(ours(x, x, x, average_attn_weights=False)[1], theirs(y, y, y, average_attn_weights=False)[1])


@pytest.mark.parametrize(
    "options",
    [{}, {"norm_first": True, "activation": "gelu"}, {"batch_first": True}, {"batch_first": True, "norm_first": True},
     {"bias": False}],
    ids=str,
)  # fmt: skip
def test_transformer_encoder(options):
    def build(n):
        layer = n.TransformerEncoderLayer(8, 2, 12, dropout=0.0, **options)
        return n.TransformerEncoder(layer, 2, n.LayerNorm(8))

    ours, theirs = build(nn).double(), build(torch.nn).double()
    twin(ours, theirs)
    shape = (2, 3, 8) if options.get("batch_first") else (3, 2, 8)
    (m, m2), (p, p2) = both(MASK), both(PADDING)
    agree(ours, theirs, [leaves(draw(*shape))])
    same_grads(ours, theirs)
    agree(lambda x: ours(x, m, p), lambda x: theirs(x, m2, p2), [leaves(draw(*shape, key=1))])
    agree(lambda x: ours(x, m, is_causal=True), lambda x: theirs(x, m2, is_causal=True), [leaves(draw(*shape, key=1))])


def test_attention_errors():
    x = T.zeros(3, 2, 8)
    with pytest.raises(RuntimeError, match="Need attn_mask if specifying the is_causal hint"):
        nn.MultiheadAttention(8, 2)(x, x, x, is_causal=True)
    with pytest.raises(RuntimeError, match="The shape of the 2D attn_mask is"):
        nn.MultiheadAttention(8, 2)(x, x, x, attn_mask=T.zeros(2, 2))
    for call in (lambda n: n.MultiheadAttention(8, 3), lambda n: n.MultiheadAttention(0, 1),
                 lambda n: n.TransformerEncoderLayer(8, 2, activation="tanh")):  # fmt: skip
        assert message(call, nn) == message(call, torch.nn)


# --- embedding, containers, activations ------------------------------------------------------------------------
def test_embedding():
    for options in ({}, {"padding_idx": 1}, {"padding_idx": -1}):
        ours, theirs = nn.Embedding(5, 3, **options).double(), torch.nn.Embedding(5, 3, **options).double()
        assert repr(ours) == repr(theirs)
        if options:
            assert not host(ours.weight)[options["padding_idx"]].any()
        twin(ours, theirs)
        i, j = both(np.array([[0, 1, 4], [1, 1, 0]]))
        agree(lambda *_: ours(i), lambda *_: theirs(j), [])
        same_grads(ours, theirs)
    table = T.ones(4, 2)
    assert not nn.Embedding.from_pretrained(table).weight.requires_grad
    for call in (lambda n: n.Embedding(3, 2, padding_idx=3),):
        assert message(call, nn) == message(call, torch.nn)


ACTIVATIONS = [
    lambda n: n.Hardtanh(-0.5, 0.7), lambda n: n.ReLU6(), lambda n: n.Hardswish(), lambda n: n.Hardsigmoid(),
    lambda n: n.Mish(), lambda n: n.SELU(), lambda n: n.CELU(0.7), lambda n: n.Softsign(), lambda n: n.LogSigmoid(),
    lambda n: n.Tanhshrink(), lambda n: n.Softmin(dim=1), lambda n: n.Threshold(0.1, 20.0), lambda n: n.GLU(),
    lambda n: n.PReLU(), lambda n: n.PReLU(4), lambda n: n.Unflatten(1, (2, 2)), lambda n: n.Flatten(),
]  # fmt: skip


@pytest.mark.parametrize("build", ACTIVATIONS)
def test_activations(build):
    ours, theirs = build(nn), build(torch.nn)
    assert repr(ours) == repr(theirs)
    twin(ours, theirs)
    agree(ours, theirs, [leaves(draw(3, 4) * 2, T.float32)])  # in float64 torch has some constants of float32
    same_grads(ours, theirs)


def test_containers():
    def build(n, t):
        top = n.Module()
        top.named = n.ModuleDict({"a": n.Linear(2, 3), "b": n.ReLU()})
        top.named["c"] = n.Linear(3, 1)
        top.listed = n.ParameterList([t.ones(2), n.Parameter(t.zeros(3))])
        top.listed.append(t.ones(1))
        top.dictionary = n.ParameterDict({"w": t.ones(2)})
        return top

    ours, theirs = build(nn, T), build(torch.nn, torch)
    assert [k for k, _ in ours.named_parameters()] == [k for k, _ in theirs.named_parameters()]
    assert list(ours.named) == list(theirs.named) and len(ours.named) == 3 and "a" in ours.named
    assert ours.named.pop("b").__class__ is nn.ReLU and list(ours.named.keys()) == ["a", "c"]
    assert len(ours.listed) == 3 and all(isinstance(p, nn.Parameter) for p in ours.listed)
    assert ours.listed[-1].shape == (1,) and len(ours.listed[1:]) == 2
    assert repr(ours.named).startswith("ModuleDict(\n  (a): Linear")
    with pytest.raises(IndexError):
        ours.listed[3]


# --- utils -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("norm_type", [2.0, 1.0, 3.0, float("inf")])
@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clip_grad_norm(norm_type, max_norm):
    pairs = [leaves(draw(*shape)) for shape in ((3, 4), (5,), (2,))]
    for i, (p, q) in enumerate(pairs[:2]):
        g = draw(*p.shape, key=i + 7)
        p.grad, q.grad = T.tensor(g), torch.tensor(g)
    same(nn.utils.clip_grad_norm_([p for p, _ in pairs], max_norm, norm_type),
         torch.nn.utils.clip_grad_norm_([q for _, q in pairs], max_norm, norm_type))  # fmt: skip
    for p, q in pairs[:2]:
        same(p.grad, q.grad)


def test_clip_grad_norm_refuses_nan_and_takes_nothing():
    p = T.ones(2, requires_grad=True)
    assert float(nn.utils.clip_grad_norm_([p], 1.0)) == 0
    p.grad = T.tensor([float("nan"), 1.0])
    with pytest.raises(RuntimeError, match="is non-finite, so it cannot be clipped"):
        nn.utils.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)


def test_clip_grad_value_and_vectors():
    pairs = [leaves(draw(*shape)) for shape in ((3, 4), (5,))]
    for p, q in pairs:
        p.grad, q.grad = T.tensor(host(p)), torch.tensor(host(q))
    ours, theirs = [p for p, _ in pairs], [q for _, q in pairs]
    nn.utils.clip_grad_value_(ours, 0.3), torch.nn.utils.clip_grad_value_(theirs, 0.3)
    for p, q in pairs:
        same(p.grad, q.grad)
    vector = nn.utils.parameters_to_vector(ours)
    same(vector, torch.nn.utils.parameters_to_vector(theirs))
    assert vector.requires_grad
    nn.utils.vector_to_parameters(T.arange(17).double(), ours)
    assert host(ours[1]).tolist() == [12, 13, 14, 15, 16]


def test_no_warning_without_a_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 4), 1)(T.zeros(2, 3, 4))


@pytest.mark.parametrize("dtype", [T.bfloat16, T.float16], ids=str)
def test_attention_of_half_types_keeps_its_scores_in_float32(dtype):
    """With scores of tens, which half types would round by half a unit: as exact as its inputs and results."""
    arrays = [draw(2, 3, n, 8, key=k) * 3 for k, n in enumerate((5, 7, 7))]
    ours = [T.tensor(a, dtype=dtype, requires_grad=True) for a in arrays]
    theirs = [torch.tensor(host(t.detach().double()), requires_grad=True) for t in ours]
    out, want = F.scaled_dot_product_attention(*ours), G.scaled_dot_product_attention(*theirs)
    cotangent = T.tensor(draw(2, 3, 5, 8, key=9), dtype=dtype)
    out.backward(cotangent)
    want.backward(torch.tensor(host(cotangent.double())))
    eps = torch.finfo(TORCH[dtype]).eps
    for x, y in ((out, want), *((a.grad, b.grad) for a, b in zip(ours, theirs))):
        error = np.abs(host(x.detach().double()) - y.detach().numpy())
        assert error.max() <= 2 * eps * np.abs(y.detach().numpy()).max()
