"""Module and Parameter: registration, modes, state and conversion."""

import copy
from collections import OrderedDict

import numpy as np
import pytest
import torch

import tgrad as T
from tests.compare import NEWEST
from tests.errors import message
from tgrad import nn

pytestmark = pytest.mark.anywhere


def host(t):
    return t.detach().cpu().numpy()


def block(lib):
    """A class of modules with everything in it, over either library's nn."""

    class Block(lib.Module):
        def __init__(self, width=3):
            super().__init__()
            tensor = T if lib is nn else torch
            self.fc1 = lib.Linear(2, width)
            self.scale = lib.Parameter(tensor.ones(width))
            self.register_buffer("seen", tensor.zeros(1))
            self.register_buffer("scratch", tensor.zeros(2), persistent=False)
            self.register_parameter("nothing", None)
            self.layers = lib.ModuleList([lib.Linear(width, width), lib.ReLU()])
            self.norm = lib.BatchNorm1d(width)
            self.again = self.fc1

        def forward(self, x):
            x = self.fc1(x) * self.scale
            for layer in self.layers:
                x = layer(x)
            return self.norm(x)

        def extra_repr(self):
            return "width=3"

    return Block()


@pytest.fixture
def both():
    return block(nn), block(torch.nn)


# --- parameters ------------------------------------------------------------------------------------------------
def test_parameter():
    x = T.tensor([1.0, 2.0])
    p = nn.Parameter(x)
    assert isinstance(p, T.Tensor) and p.requires_grad and p.is_leaf and not x.requires_grad
    assert p.data_ptr() == x.data_ptr()
    x.add_(1)
    assert p.tolist() == [2, 3] and p._version == x._version == 1
    assert type(p * 2) is T.Tensor and type(p.detach()) is T.Tensor
    assert repr(p) == "Parameter containing:\n" + repr(torch.nn.Parameter(torch.tensor([2.0, 3.0]))).split("\n", 1)[1]
    h = p * 2
    q = nn.Parameter(h)
    (q * 3).sum().backward()
    assert q.is_leaf and q.grad.tolist() == [3, 3] and p.grad is None
    assert nn.Parameter().shape == (0,)
    assert not nn.Parameter(x, requires_grad=False).requires_grad
    with T.no_grad():
        assert nn.Parameter(x).requires_grad
    p.note = "mine"  # as on torch's parameters


def test_parameter_refuses():
    assert message(lambda: nn.Parameter(T.tensor([1]))) == message(lambda: torch.nn.Parameter(torch.tensor([1])))
    assert nn.Parameter(T.tensor([1]), requires_grad=False).dtype is T.int64
    with pytest.raises(TypeError, match="expected data to be a Tensor, got list"):
        nn.Parameter([1.0])
    with T.inference_mode():
        x = T.ones(2)
        assert nn.Parameter(x).is_inference()
    with pytest.raises(RuntimeError, match="Setting requires_grad=True on inference tensor outside InferenceMode"):
        nn.Parameter(x)
    assert nn.Parameter(x, requires_grad=False).is_inference()


def test_deepcopy():
    m = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    m(T.randn(3, 2)).sum().backward()
    c = copy.deepcopy(m)
    assert c[0].weight is not m[0].weight and type(c[0].weight) is nn.Parameter
    assert c[0].weight.tolist() == m[0].weight.tolist() and c[0].weight.data_ptr() != m[0].weight.data_ptr()
    assert c[0].weight.grad is None and m[0].weight.grad is not None
    assert c[1].num_batches_tracked.item() == 1 and c[1].running_mean is not m[1].running_mean
    tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    tied[1].weight = tied[0].weight
    c = copy.deepcopy(tied)
    assert c[0].weight is c[1].weight


# --- registration ----------------------------------------------------------------------------------------------
def names(pairs):
    return [name for name, _ in pairs]


def test_the_tree_is_torchs(both):
    ours, theirs = both
    for list_names in (
        lambda m: names(m.named_parameters()), lambda m: names(m.named_buffers()), lambda m: names(m.named_modules()),
        lambda m: names(m.named_children()), lambda m: list(m.state_dict()), lambda m: list(m.state_dict(prefix="a.")),
        lambda m: names(m.named_parameters(prefix="p", recurse=False)), lambda m: len(list(m.parameters())),
        lambda m: names(m.named_parameters(remove_duplicate=False)), lambda m: names(m.named_modules(prefix="x")),
        lambda m: len(list(m.modules())), lambda m: len(list(m.children())), lambda m: len(list(m.buffers())),
        repr, lambda m: list(m.state_dict()._metadata.items()),
    ):  # fmt: skip
        assert list_names(ours) == list_names(theirs) or (list_names is repr and not NEWEST)
    assert {"fc1", "scale", "seen", "layers"} <= set(dir(ours))


def test_assignment_moves_a_name_between_the_tables():
    m = nn.Module()
    m.a = 1
    m.a = nn.Parameter(T.ones(1))
    assert names(m.named_parameters()) == ["a"] and "a" not in m.__dict__
    m.a = None
    assert m.a is None and not list(m.parameters())
    del m.a
    m.register_buffer("a", T.ones(1))
    m.a = nn.Linear(1, 1)
    assert names(m.named_children()) == ["a"] and not m._buffers
    assert names(m.named_parameters()) == ["a.weight", "a.bias"]
    m.b = T.ones(1)
    assert not list(m.buffers()) and "b" in m.__dict__
    m.c = nn.Buffer(T.ones(1), persistent=False)
    m.c = T.zeros(2)
    assert names(m.named_buffers()) == ["c"] and "c" not in m.state_dict() and m.c.shape == (2,)
    del m.c, m.a
    assert not m._buffers and not m._modules and not m._non_persistent_buffers_set
    with pytest.raises(AttributeError):
        del m.a


def assigned(lib, before, after):
    def assign():
        t = T if lib is nn else torch
        m = lib.Module()
        m.x = before(lib, t)
        m.x = after(lib, t)

    return assign


def registered(lib, method, *args):
    def register():
        m = lib.Linear(1, 1)
        t = T if lib is nn else torch
        getattr(m, method)(*[a(lib, t) if callable(a) else a for a in args])

    return register


def early(kind):
    def before_init(lib):
        t = T if lib is nn else torch

        class M(lib.Module):
            def __init__(self):
                self.x = kind(lib, t)

        return M

    return before_init


REFUSED = [
    lambda n: assigned(n, lambda n, t: n.Parameter(t.ones(1)), lambda n, t: t.ones(1)),
    lambda n: assigned(n, lambda n, t: n.Parameter(t.ones(1)), lambda n, t: 3),
    lambda n: assigned(n, lambda n, t: n.ReLU(), lambda n, t: 3),
    lambda n: assigned(n, lambda n, t: n.ReLU(), lambda n, t: t.ones(1)),
    lambda n: assigned(n, lambda n, t: n.Buffer(t.ones(1)), lambda n, t: "x"),
    early(lambda n, t: n.Parameter(t.ones(1))),
    early(lambda n, t: n.ReLU()),
    early(lambda n, t: n.Buffer(t.ones(1))),
    lambda n: registered(n, "register_parameter", "x", lambda n, t: t.ones(1)),
    lambda n: registered(n, "register_parameter", "in_features", None),
    lambda n: registered(n, "register_parameter", "a.b", None),
    lambda n: registered(n, "register_parameter", "", None),
    lambda n: registered(n, "register_parameter", 3, None),
    lambda n: registered(n, "register_buffer", "weight", None),
    lambda n: registered(n, "register_buffer", "x", 3),
    lambda n: registered(n, "register_buffer", "a.b", None),
    lambda n: registered(n, "add_module", "x", 3),
    lambda n: registered(n, "add_module", "a.b", None),
    lambda n: registered(n, "register_module", "weight", None),
    lambda n: registered(n, "get_submodule", "a.b"),
    lambda n: registered(n, "get_submodule", "weight"),
    lambda n: registered(n, "get_parameter", "in_features"),
    lambda n: registered(n, "get_parameter", "x"),
    lambda n: registered(n, "get_buffer", "weight"),
    lambda n: registered(n, "__getattr__", "foo"),
    lambda n: registered(n, "train", 1),
    lambda n: registered(n, "to", lambda n, t: t.int64),
    lambda n: registered(n, "load_state_dict", 3),
    lambda n: n.Module(),
    lambda n: n.ModuleList(),
]


@pytest.mark.parametrize("build", REFUSED, ids=range(len(REFUSED)))
def test_errors_are_torchs(build):
    assert message(build(nn)) == message(build(torch.nn))


def test_a_computed_tensor_is_no_parameter():
    def assign(t, n):
        h = n.Parameter(t.ones(2), requires_grad=False)
        h.mul_(n.Parameter(t.ones(2)))
        n.Module().h = h

    assert message(lambda: assign(T, nn)) == message(lambda: assign(torch, torch.nn))


def test_lookup(both):
    ours, _ = both
    assert ours.get_submodule("layers.0") is ours.layers[0] and ours.get_submodule("") is ours
    assert ours.get_parameter("layers.0.weight") is ours.layers[0].weight
    assert ours.get_buffer("norm.running_mean") is ours.norm.running_mean
    seen = []
    assert ours.apply(lambda m: seen.append(type(m).__name__)) is ours
    assert seen == ["Linear", "Linear", "ReLU", "ModuleList", "BatchNorm1d", "Block"]


# --- containers ------------------------------------------------------------------------------------------------
def test_containers():
    def edit(lib, kind):
        a, b, c = lib.Linear(1, 2), lib.ReLU(), lib.Tanh()
        m = lib.Sequential(a, b) if kind == "Sequential" else lib.ModuleList([a, b])
        steps = [repr(m.append(c)), len(m), repr(m[1:]), m[-1] is c, [x is y for x, y in zip(m, (a, b, c))]]
        m.insert(1, lib.Sigmoid())
        steps.append(repr(m))
        m[0] = lib.GELU()
        steps.append(repr(m))
        del m[1]
        steps += [repr(m), repr(m.pop(-1)), repr(m), repr(m.extend([c, c])), repr(m + lib_of(kind, lib)(m))]
        del m[1:3]
        m += lib_of(kind, lib)([b])
        steps.append(repr(m))
        if kind == "Sequential":
            m *= 2
            steps += [repr(m), repr(m * 2), repr(2 * m)]
        return steps

    def lib_of(kind, lib):
        return (lambda modules: lib.Sequential(*modules)) if kind == "Sequential" else lib.ModuleList

    for kind in ("Sequential", "ModuleList"):
        assert edit(nn, kind) == edit(torch.nn, kind)
    named = nn.Sequential(OrderedDict(first=nn.Linear(2, 2), second=nn.ReLU()))
    assert named.first is named[0] and names(named.named_children()) == ["first", "second"]
    assert repr(named[:1]) == repr(torch.nn.Sequential(OrderedDict(first=torch.nn.Linear(2, 2))))


# --- modes and gradients ---------------------------------------------------------------------------------------
def test_train_and_eval(both):
    ours, _ = both
    assert ours.training and ours.eval() is ours
    assert not any(m.training for m in ours.modules())
    ours.norm.train()
    assert not ours.training and ours.norm.training and ours.train() is ours
    assert ours.eval()(T.ones(2, 2)).requires_grad  # eval is not no_grad


def test_requires_grad_and_zero_grad():
    m = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    m[0].requires_grad_(False)
    x = T.ones(3, 2, requires_grad=True)
    m(x).sum().backward()
    assert m[0].weight.grad is None and m[1].weight.grad is not None and x.grad is not None
    g = m[1].weight.grad
    m.zero_grad(set_to_none=False)
    assert m[1].weight.grad is g and not host(g).any()
    assert m.zero_grad() is None and m[1].weight.grad is None


# --- state -----------------------------------------------------------------------------------------------------
def to_tgrad(state):
    return {k: T.tensor(host(v).copy()) for k, v in state.items()}


def test_states_fit_torchs_both_ways(both):
    ours, theirs = both
    assert repr(ours.load_state_dict(to_tgrad(theirs.state_dict()))) == "<All keys matched successfully>"
    back = {k: torch.tensor(host(v).copy()) for k, v in ours.state_dict().items()}
    assert repr(theirs.load_state_dict(back)) == "<All keys matched successfully>"
    x = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
    np.testing.assert_allclose(host(ours(T.tensor(x))), theirs(torch.tensor(x)).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_state_dict_shares_memory():
    m = nn.Linear(2, 2)
    state = m.state_dict()
    assert isinstance(state, OrderedDict) and list(state) == ["weight", "bias"]
    assert type(state["weight"]) is T.Tensor and not state["weight"].requires_grad
    assert state["weight"].data_ptr() == m.weight.data_ptr()
    assert m.state_dict(keep_vars=True)["weight"] is m.weight


def test_loading_copies_in_place():
    m = nn.Linear(2, 2)
    w, version = m.weight, m.weight._version
    m.load_state_dict({"weight": T.full((2, 2), 2.0, dtype=T.float64), "bias": T.zeros(2)})
    assert m.weight is w and w._version == version + 1 and w.dtype is T.float32 and w.tolist() == [[2, 2], [2, 2]]
    new = T.ones(2, 2, dtype=T.float64)
    m.load_state_dict({"weight": new, "bias": T.zeros(2)}, assign=True)
    assert m.weight is not w and type(m.weight) is nn.Parameter and m.weight.data_ptr() == new.data_ptr()
    assert m.weight.requires_grad and m.weight.dtype is T.float64


def test_a_model_loads_while_a_graph_lives():
    m = nn.Linear(2, 2)
    out = m(T.ones(1, 2, requires_grad=True)).sum()
    m.load_state_dict(nn.Linear(2, 2).state_dict())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward()


def load(lib, given, **options):
    t = T if lib is nn else torch
    m = lib.Sequential(lib.Linear(2, 3), lib.ReLU(), lib.Linear(3, 1))
    state = m.state_dict()
    given(state, t)
    return m.load_state_dict(state, **options)


def spoil(state, t):
    del state["0.bias"]
    state["0.extra"], state["5.weight"], state["top"] = t.ones(1), t.ones(1), t.ones(1)
    state["2.weight"] = t.ones(4, 4)


LOADS = [
    lambda n: load(n, spoil),
    lambda n: load(n, spoil, strict=False),
    lambda n: load(n, lambda s, t: s.pop("0.bias")),
    lambda n: load(n, lambda s, t: s.update({"1.x": t.ones(1)})),
    lambda n: load(n, lambda s, t: s.update({"0.bias": [1.0]})),
]


@pytest.mark.parametrize("call", LOADS, ids=range(len(LOADS)))
def test_loading_errors_are_torchs(call):
    assert message(lambda: call(nn)) == message(lambda: call(torch.nn))


def test_loading_loosely():
    def drop(state, t):
        del state["0.bias"]
        state["x"] = t.ones(1)

    assert repr(load(nn, drop, strict=False)) == repr(load(torch.nn, drop, strict=False))
    result = load(nn, drop, strict=False)
    assert result.missing_keys == ["0.bias"] and result.unexpected_keys == ["x"]
    scalar = nn.Module()
    scalar.s = nn.Parameter(T.tensor(0.0))
    scalar.load_state_dict({"s": T.tensor([2.0])})
    assert scalar.s.item() == 2


# --- conversion ------------------------------------------------------------------------------------------------
def test_conversion_keeps_the_parameters():
    m = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    m(T.randn(3, 2)).sum().backward()
    w, version = m[0].weight, m[0].weight._version
    values = w.tolist()
    assert m.double() is m and m[0].weight is w and w.dtype is T.float64 and w.tolist() == values
    assert w.grad.dtype is T.float64 and w.requires_grad and w.is_leaf and w._version == version
    assert m[1].running_mean.dtype is T.float64 and m[1].num_batches_tracked.dtype is T.int64
    m(T.randn(3, 2, dtype=T.float64)).sum().backward()
    for method, kind in (("half", T.float16), ("bfloat16", T.bfloat16), ("float", T.float32)):
        assert getattr(m, method)()[0].bias.dtype is kind
    assert m.to(T.float64)[0].weight.dtype is T.float64
    assert m.to(T.ones(1))[0].weight.dtype is T.float32
    assert m.to("cpu", T.float64).cpu()[0].weight.dtype is T.float64
    assert m.to(device=T.ones(1).device, dtype=T.float32)[0].weight is w
    assert nn.Linear(2, 2).to(T.float64)(T.ones(1, 2, dtype=T.float64)).dtype is T.float64


def test_the_script_of_the_readme():
    m = nn.Sequential(nn.Linear(10, 5), nn.ReLU(), nn.Linear(5, 2)).eval()
    with T.no_grad():
        out = m(T.randn(1, 10))
    assert repr(out.shape) == "torch.Size([1, 2])" and not out.requires_grad
