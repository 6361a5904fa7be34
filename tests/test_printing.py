"""`tgrad.printing` against torch's own repr, text for text."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import _tensor_str

from tgrad import printing

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]
WIDE_UNSIGNED = [torch.uint16, torch.uint32, torch.uint64]
COMPLEX = [torch.complex64, torch.complex128]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"precision": 2},
    {"precision": 0},
    {"precision": 10},
    {"sci_mode": True},
    {"sci_mode": False},
    {"linewidth": 40},
    {"linewidth": 7},
    {"linewidth": 200},
    {"threshold": 5},
    {"threshold": 0, "edgeitems": 1},
    {"threshold": 10, "edgeitems": 2, "precision": 6, "sci_mode": True},
    {"edgeitems": 0},
    {"edgeitems": 0, "threshold": 3},
    {"profile": "short"},
    {"profile": "full"},
    {"profile": "short", "precision": 7, "linewidth": 100},
    {"profile": "unknown", "precision": 3},
]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Every test starts from, and leaves, the default options on both sides."""
    set_both(profile="default")
    yield
    set_both(profile="default")
    torch.set_default_dtype(torch.float32)


def set_both(**options: Any) -> None:
    torch.set_printoptions(**options)
    printing.set_printoptions(**options)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def array_of(t: torch.Tensor) -> np.ndarray:
    t = t.detach().resolve_conj().resolve_neg()
    return (t.float() if t.dtype == torch.bfloat16 else t).numpy()


def ours(t: torch.Tensor, **extra: Any) -> str:
    return printing.format_tensor(
        array_of(t),
        dtype=name_of(t.dtype),
        shape=tuple(t.shape),
        requires_grad=t.requires_grad,
        grad_fn=type(t.grad_fn).__name__ if t.grad_fn is not None else None,
        default_dtype=name_of(torch.get_default_dtype()),
        **extra,
    )


def same(t: torch.Tensor) -> None:
    assert ours(t) == repr(t)


VALUES: list[Any] = [
    0.0, -0.0, 1.0, -1.5, 3.14159265, 1e-5, 1e8, 1.0000001e8, 99999.0, 123456789.0, 1e-4, 0.99e-4, math.nan, math.inf,
    -math.inf,
    [], [[]], [[], []], [[[]]],
    [0.0], [0.0, -0.0], [-0.0, 1.5], [1.0, -0.0], [1.0, 2.0], [1.0, 2.5], [-1.0, 10.0, 100.0], [1.0, 1000.0],
    [1.0, 1001.0], [0.5, 500.0], [0.5, 501.0], [1e-4, 1e-2], [1e-5, 1e-3], [1e8, 1e7], [2e8, 1e8], [1e8 + 16, 1e7],
    [1e4, -1e4], [65504.0, 60000.0], [6e-8, 1.0], [1e-45, 1e38], [1e30, 1e-30, -1e10], [0.1, 0.12345, 0.99999],
    [0.00005, 0.00015, 0.00025], [0.99996, 9.99996], [-9.99996, 9.99996], [2.5, 0.5, 1.5],
    [math.nan], [math.inf], [-math.inf], [math.nan, math.inf, -math.inf], [math.nan, 0.0], [math.nan, 1.0],
    [math.inf, 1.5], [-math.inf, 1.0], [-math.inf, 100000.0], [math.nan, 1e10, 1.5], [math.inf, -1e-9, 0.0],
    [[1.0, 2.0], [3.0, 4.0]], [[1.0], [2.5]], [[[1.5, -2.0]], [[3.0, 4.0]]], [[[[0.1]], [[0.2]]]], [[-0.0, math.nan]],
]  # fmt: skip


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_values(dtype: torch.dtype) -> None:
    for values in VALUES:
        same(torch.tensor(values, dtype=dtype))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_float_values_under_options(options: dict[str, Any]) -> None:
    set_both(**options)
    for values in VALUES:
        same(torch.tensor(values))
        same(torch.tensor(values, dtype=torch.float64, requires_grad=True))


@pytest.mark.parametrize("dtype", INTEGERS + WIDE_UNSIGNED)
def test_integers_at_their_limits(dtype: torch.dtype) -> None:
    info = torch.iinfo(dtype)
    for values in (0, info.max, info.min, [info.min, 0, info.max], [[1, 20], [3, 100]], [], [[]], [[[7]]]):
        same(torch.tensor(values, dtype=dtype))


def test_bool() -> None:
    for values in (True, False, [True, False], [[False], [False]], [True] * 30, [], [[], []]):
        same(torch.tensor(values, dtype=torch.bool))
    same(torch.arange(2000) % 2 == 0)


@pytest.mark.parametrize("dtype", COMPLEX)
def test_complex(dtype: torch.dtype) -> None:
    table: list[Any] = [
        1 + 2j, -1.5 - 0.5j, complex(math.nan, -math.inf), complex(0.0, -0.0), complex(-0.0, math.nan), [], [[]],
        [1 + 1j, 2 - 3j], [1e5 + 1j, 0.5 - 3e-6j], [complex(i, -i / 3) for i in range(20)],
    ]  # fmt: skip
    for values in table:
        same(torch.tensor(values, dtype=dtype))
    same(torch.arange(1500).to(dtype) * (1 - 0.25j))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.float16, torch.uint8])
def test_empty(dtype: torch.dtype) -> None:
    for shape in ((0,), (0, 3), (3, 0), (0, 0), (2, 0, 5), (1, 2, 0)):
        same(torch.empty(shape, dtype=dtype))
    assert ours(torch.empty(0, dtype=torch.int64)) == "tensor([], dtype=torch.int64)"
    assert ours(torch.empty(0, 3)) == "tensor([], size=(0, 3))"


@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_default_dtype_is_not_shown(default: torch.dtype) -> None:
    torch.set_default_dtype(default)
    for dtype in FLOATS + INTEGERS + COMPLEX + [torch.bool]:
        same(torch.ones(3).to(dtype))
        same(torch.ones(()).to(dtype))
        same(torch.empty(0, 2, dtype=dtype))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_summaries_under_options(options: dict[str, Any]) -> None:
    set_both(**options)
    shapes = [(1000,), (1001,), (7, 200), (6, 200), (200, 6), (200, 7), (2, 3, 400), (10, 11, 12), (400, 1, 3),
              (1001, 1), (3, 3, 3, 50), (8, 8, 8, 8)]  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        count = math.prod(shape)
        if options.get("profile") == "full" and count > 2000:
            continue
        same(torch.arange(count).reshape(shape))
        same(torch.randn(shape, generator=generator, dtype=torch.float64))
        same(torch.randn(shape, generator=generator, requires_grad=True))


def test_a_summary_takes_its_format_from_the_edges() -> None:
    t = torch.ones(2000)
    t[1000] = 1e-9
    same(t)
    t[-1] = 1e-9
    same(t)
    grid = torch.ones(50, 50)
    grid[25, :] = 0.123
    grid[:, 25] = 1e12
    same(grid)
    grid[2, 48] = -0.5
    same(grid)


def test_the_edges_alone_are_enough() -> None:
    for shape in ((2000,), (50, 60), (3, 400, 2), (2, 3, 4)):
        t = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        indices = printing.edge_indices(shape)
        values = t.numpy() if indices is None else t.numpy()[np.ix_(*indices)]
        assert printing.format_tensor(values, dtype="float32", shape=shape) == repr(t)
    assert printing.edge_indices(()) is None
    with pytest.raises(ValueError, match="neither the data nor the edges"):
        printing.format_tensor(np.ones(3, np.float32), dtype="float32", shape=(4,))


def test_the_array_may_be_strided_or_read_only() -> None:
    t = torch.randn(8, 12, generator=torch.Generator().manual_seed(2))
    for view in (t.T, t[::2, 1::3], t[0].expand(3, 12), t[:, 5]):
        same(view)
    frozen = t.numpy().copy()
    frozen.setflags(write=False)
    assert printing.format_tensor(frozen, dtype="float32", shape=(8, 12)) == repr(t)


def test_grad_suffixes() -> None:
    leaf = torch.randn(3, 4, generator=torch.Generator().manual_seed(3)).requires_grad_()
    for t in (leaf, leaf * 2, leaf.sum(), leaf.T, leaf.double(), leaf.bfloat16(), leaf[:0], leaf.relu().mean(0)):
        same(t)
    assert ours(torch.ones(2, requires_grad=True)) == "tensor([1., 1.], requires_grad=True)"
    assert ours(torch.ones(2, requires_grad=True) * 2) == "tensor([2., 2.], grad_fn=<MulBackward0>)"
    parameter = torch.nn.Parameter(torch.randn(2, 3, generator=torch.Generator().manual_seed(4)))
    assert "Parameter containing:\n" + ours(parameter) == repr(parameter)


@pytest.mark.parametrize("linewidth", [80, 50, 20])
def test_suffixes_break_at_the_same_column(linewidth: int) -> None:
    set_both(linewidth=linewidth)
    for count in range(1, 40):
        t = torch.ones(count)
        for value in (t, t.double(), t.half().requires_grad_(), t.requires_grad_() * 2, t.reshape(1, -1) * 2):
            same(value)
    for digits in range(1, 19):
        for count in (1, 2, 3, 4, 5):
            same(torch.full((count,), 10**digits).to(torch.float64).requires_grad_())


def test_device_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_get_default_device", lambda: "cuda")
    for count in range(1, 30):
        for t in (torch.ones(count).half().requires_grad_(), torch.ones(count, 0, dtype=torch.int64), torch.ones(())):
            assert ours(t, device="cpu") == repr(t)


def test_prefix_sets_the_indent() -> None:
    class LongerName(torch.Tensor):
        pass

    t = torch.randn(4, 30, generator=torch.Generator().manual_seed(5)).as_subclass(LongerName)
    assert ours(t.as_subclass(torch.Tensor), prefix="LongerName") == repr(t)


def test_options_follow_torch() -> None:
    for options in OPTIONS:
        set_both(**options)
        assert printing.get_printoptions() == _tensor_str.get_printoptions()
    set_both(profile="default", sci_mode=True)
    set_both(precision=3)  # any call resets sci_mode
    assert printing.get_printoptions() == _tensor_str.get_printoptions()
    before = printing.get_printoptions()
    with pytest.raises(RuntimeError), printing.printoptions(precision=1, sci_mode=True):
        assert printing.get_printoptions()["precision"] == 1
        raise RuntimeError
    assert printing.get_printoptions() == before


def random_tensor(rng: random.Random, generator: torch.Generator) -> torch.Tensor:
    """A tensor of random rank, dtype and magnitude, sometimes with special values, sometimes above the threshold."""
    rank = rng.randrange(5)
    largest = rng.choice([3, 5, 9, 40, 1200]) if rank < 3 else 7
    shape = [rng.randrange(0 if rng.random() < 0.1 else 1, largest + 1) for _ in range(rank)]
    dtype = rng.choice(FLOATS + FLOATS + INTEGERS + COMPLEX + [torch.bool])
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) > rng.random()
    if not (dtype.is_floating_point or dtype.is_complex):
        info = torch.iinfo(dtype)
        low, high = rng.choice([(0, 10), (max(-100, info.min), 100), (info.min, info.max)])
        return torch.randint(low, high, shape, generator=generator, dtype=dtype)
    t = torch.randn(shape, generator=generator, dtype=torch.float64)
    kind = rng.randrange(5)
    if kind == 0:
        t = t * 10.0 ** rng.randrange(-12, 12)
    elif kind == 1:
        t = (t * 10.0 ** rng.randrange(1, 10)).round()
    elif kind == 2:
        t = t * 10 ** (torch.randn(shape, generator=generator, dtype=torch.float64) * rng.choice([1, 3, 20]))
    elif kind == 3:
        t = t.round(decimals=rng.randrange(5))
    for special in rng.sample([0.0, -0.0, math.nan, math.inf, -math.inf], rng.choice([0, 0, 1, 3])):
        t = torch.where(torch.rand(shape, generator=generator) < 0.2, special, t)
    return (t * (1 - 0.5j)).to(dtype) if dtype.is_complex else t.to(dtype)


@pytest.mark.parametrize("seed", range(320))
def test_random(seed: int) -> None:
    rng = random.Random(seed)
    t = random_tensor(rng, torch.Generator().manual_seed(seed))
    if t.is_floating_point() and rng.random() < 0.5:
        t.requires_grad_()
        if rng.random() < 0.5:
            t = rng.choice([lambda x: x * 1, lambda x: x.exp(), lambda x: x.clone(), lambda x: x.sum()])(t)
    same(t)
    options = rng.choice(OPTIONS)
    if t.numel() <= 20000 or options.get("profile") != "full":
        set_both(**options)
        same(t)
