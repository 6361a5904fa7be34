"""Without a graph, a chain of layers peaks at its two largest neighbours, and what a layer still needs: to the byte."""

import pytest

import tgrad as T
from tgrad import nn
from tgrad.storage import ledger

pytestmark = pytest.mark.anywhere
N, L, E = 16, 4, 64
U = N * L * E * 4  # bytes of the stream
STATS = 2 * N * L * 4  # mean and 1 / deviation of each row, which a layer norm makes beside its result


def peak(model, mode, *shape):
    """Bytes beyond the input and the parameters."""
    x, model = T.zeros(*shape), model.eval()
    with mode():
        model(x)
        before = ledger.live_bytes
        ledger.reset_peak()
        model(x)
    return ledger.peak_bytes - before


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(E), nn.Linear(E, 4 * E), nn.GELU(), nn.Linear(4 * E, E))

    def forward(self, x):
        return x + self.body(x)


def chain(*layers):
    return lambda: nn.Sequential(*[layer() for _ in range(3) for layer in layers])


def encoder(heads, hidden=4 * E, **options):
    return lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(E, heads, hidden, batch_first=True, **options).eval(), 3
    )


def mlp(activation):
    return nn.Sequential(nn.Linear(E, 4 * E), activation(), nn.Linear(4 * E, E))


# What makes the chain, the length of a sequence, the bytes of its peak.
CHAINS = {
    "linear": (chain(lambda: nn.Linear(E, E)), L, 2 * U),
    "linear, gelu": (chain(lambda: nn.Linear(E, E), nn.GELU), L, 2 * U),
    "linear, dropout, norm": (
        chain(lambda: nn.Linear(E, E), lambda: nn.Dropout(0.1), lambda: nn.LayerNorm(E)), L, 2 * U + STATS,
    ),
    "wide": (chain(lambda: nn.Linear(E, 3 * E), nn.Softplus, lambda: nn.Linear(3 * E, E)), L, 6 * U),
    # Of a Linear and an activation that are one product the result of the first is never stored.
    "wide, folded": (chain(lambda: nn.Linear(E, 3 * E), nn.SiLU, lambda: nn.Linear(3 * E, E)), L, 4 * U),
    "folded, norm": (
        chain(lambda: nn.Linear(E, E), nn.ReLU, lambda: nn.LayerNorm(E), nn.Softplus), L, 2 * U + STATS,
    ),
    "residual": (chain(Residual), L, U + 5 * U),  # the stream, the hidden layer, and what is made of it
    # A Sequential within another: its own input goes with its first layer.
    "blocks": (chain(lambda: mlp(nn.GELU)), L, U + 4 * U),
    "blocks, not folded": (chain(lambda: mlp(nn.Softplus)), L, 4 * U + 4 * U),
    "blocks, dropout, norm": (
        chain(lambda: mlp(nn.GELU), lambda: nn.Dropout(0.1), lambda: nn.LayerNorm(E)), L, U + 4 * U,
    ),
    # The stream, and the hidden layer, which the activation writes over, with what it is made from or what is made of
    # it.
    "encoder, feedforward": (encoder(1, norm_first=True), L, U + 5 * U),
    "encoder, norms last": (encoder(1, activation="gelu"), L, U + 5 * U),
    # The stream, queries with keys and values, and what is made of them, with a number for each row of each head.
    "encoder, attention": (encoder(4, E, norm_first=True), 4 * L, U + 4 * U + 4 * N * L * 4),
}  # fmt: skip


@pytest.mark.parametrize("mode", [T.no_grad, T.inference_mode])
@pytest.mark.parametrize("name", CHAINS)
def test_the_peak_of_a_chain(name, mode):
    build, length, expected = CHAINS[name]
    assert peak(build(), mode, N * L // length, length, E) == expected


def test_a_hook_that_holds_the_hidden_layer_sees_it_unchanged():
    layer = nn.TransformerEncoderLayer(E, 1, 4 * E, batch_first=True).eval()
    x, seen = T.randn(2, L, E), []
    with T.no_grad():
        plain = layer(x)
        with layer.linear1.register_forward_hook(lambda m, args, out: seen.append((out, out.clone()))):
            assert layer(x).equal(plain)
    held, was = seen[0]
    assert held.equal(was) and held.lt(0).any()


def test_a_hook_on_a_block_gets_its_input_all_the_same():
    inner, seen = mlp(nn.GELU), []
    model, x = nn.Sequential(nn.LayerNorm(E), inner, nn.ReLU()), T.randn(5, E)
    with T.no_grad():
        plain = model(x)
        with inner.register_forward_hook(lambda m, args, out: seen.append(args[0].clone())):
            assert model(x).equal(plain)
        assert seen[0].equal(model[0](x))


def test_a_failing_block_is_not_the_running_module_afterwards():
    model = nn.Sequential(mlp(nn.GELU))
    with T.no_grad(), pytest.raises(RuntimeError, match="linear"):
        model(T.zeros(2, E + 1))
    assert nn.calls.current_path() == ""


@T.fuse
def swish_and_more(x):
    return T.tanh(x * 2 + 1) * T.sigmoid(x) - T.exp(-x) * x


@pytest.mark.parametrize("mode", [T.no_grad, T.inference_mode])
def test_a_fused_function_makes_its_result_alone(mode):
    x = T.randn(N * L, E)
    with mode():
        swish_and_more(x)
        before = ledger.live_bytes
        ledger.reset_peak()
        swish_and_more(x)
    assert ledger.peak_bytes - before == U
