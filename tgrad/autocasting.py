"""Mixed precision: `autocast`, which chooses the dtype that each function computes in."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any

from tgrad import dtypes
from tgrad.device import compute
from tgrad.dtypes import dtype
from tgrad.modes import current
from tgrad.tensor import Tensor

# PyTorch's lists: in the low type; in float32. All else takes what it is given, by promotion.
LOW = ("linear", "matmul", "mm", "bmm", "mv", "addmm", "addmv", "addbmm", "baddbmm", "prelu")
FULL = (
    "softmax", "log_softmax", "cross_entropy", "layer_norm", "group_norm", "rms_norm", "exp", "expm1", "log", "log10",
    "log2", "log1p", "pow", "rsqrt", "reciprocal", "tan", "sinh", "cosh", "asin", "acos", "sum", "prod", "cumsum",
    "cumprod", "norm", "softplus", "logsumexp",
)  # fmt: skip

class Region:
    """What an autocast context sets.

    Attributes:
        low: the low type; None: turned off.
        caching: whether casts of leaves are kept.
        casts: those of the outermost region and all within it: (leaf, low type, mode) by id, to (leaf, its version and
            address at the time, the cast). A leaf is held, so that its id is no other tensor's.
    """

    __slots__ = ("low", "caching", "casts")

    def __init__(self, low: dtype | None, caching: bool, casts: dict[tuple, tuple]) -> None:
        self.low, self.caching, self.casts = low, caching, casts


_state: ContextVar[Region | None] = ContextVar("tgrad_autocast", default=None)
region: Callable[[], Region | None] = _state.get


def _low() -> dtype | None:
    now = region()
    return None if now is None else now.low


def is_autocast_enabled(device_type: str | None = None) -> bool:
    """Whether autocast is on in this thread."""
    return _low() is not None


def is_autocast_cache_enabled() -> bool:
    """Whether casts of leaves are kept while autocast is on."""
    now = region()
    return now is None or now.caching


def clear_autocast_cache() -> None:
    """Forget the casts of leaves that the autocast contexts which are on have kept."""
    now = region()
    if now is not None:
        now.casts.clear()


def get_autocast_dtype(device_type: str | None = None) -> dtype:
    """The low type of the autocast that is on, else the one it would have by default."""
    return _low() or (dtypes.float16 if device_type == "cuda" else dtypes.bfloat16)


class autocast:
    """Within it, as context or decorator, matrix products run in `dtype`; softmax, losses, norms, exp, log, pow and
    sums in float32; all else in the types of its operands. Tensors of float64, and integers, are left alone.

    Args:
        device_type: "cpu" or "cuda"; on another than the one that computes it does nothing, and warns.
        dtype: bfloat16 or float16; None: float16 for "cuda", bfloat16 for "cpu".
        enabled: False turns it off within another.
        cache_enabled: whether the cast of a float32 leaf that requires grad is kept until the outermost context ends,
            so that a weight used twice is cast once, and its gradients are added in the low type. A leaf that was
            written in place since is cast anew. None: as outside, where it is on.

    Raises:
        RuntimeError: an unknown device type.
        ValueError: a device type that is no string.
    """

    def __init__(
        self, device_type: str, dtype: dtype | None = None, enabled: bool = True, cache_enabled: bool | None = None
    ) -> None:
        if not isinstance(device_type, str):
            raise ValueError(f"Expected `device_type` of type `str`, got: `{type(device_type)}`")
        if device_type not in ("cpu", "cuda"):
            raise RuntimeError(f"User specified an unsupported autocast device_type '{device_type}'")
        self.device, self.fast_dtype = device_type, dtype or get_default(device_type)
        self._enabled = enabled
        if enabled and device_type != compute.type:
            warnings.warn(
                f"User provided device_type of '{device_type}', but tgrad computes on '{compute.type}'. Disabling",
                stacklevel=2,
            )
            self._enabled = False
        elif enabled and self.fast_dtype not in (dtypes.bfloat16, dtypes.float16):
            warnings.warn(
                f"In {device_type.upper()} autocast, but the target dtype is not supported. Disabling autocast.\n"
                f"{device_type.upper()} Autocast only supports dtype of torch.bfloat16, torch.float16 currently.",
                stacklevel=2,
            )
            self._enabled = False
        self._caching = is_autocast_cache_enabled() if cache_enabled is None else bool(cache_enabled)
        self._tokens: list[Token] = []

    def _enter(self) -> Token:
        outer = region()
        return _state.set(
            Region(self.fast_dtype if self._enabled else None, self._caching, {} if outer is None else outer.casts)
        )

    def __enter__(self) -> autocast:
        self._tokens.append(self._enter())
        return self

    def __exit__(self, *exception: object) -> None:
        _state.reset(self._tokens.pop())

    def __call__(self, function: Callable) -> Callable:
        @functools.wraps(function)
        def decorated(*args: Any, **kwargs: Any) -> Any:
            before = self._enter()
            try:
                return function(*args, **kwargs)
            finally:
                _state.reset(before)

        return decorated


@contextmanager
def resumed(low: dtype | None, caching: bool) -> Iterator[None]:
    """Autocast as it was when `setting` was called, for what is run again; it keeps casts of its own."""
    before = _state.set(None if low is None else Region(low, caching, {}))
    try:
        yield
    finally:
        _state.reset(before)


def setting() -> tuple[dtype | None, bool]:
    """What `resumed` takes."""
    return _low(), is_autocast_cache_enabled()


def get_default(device_type: str) -> dtype:
    """The low type of a device type: float16 for "cuda", bfloat16 for "cpu"."""
    return dtypes.float16 if device_type == "cuda" else dtypes.bfloat16


def _cast(x: Any, kind: dtype) -> Any:
    if isinstance(x, Tensor):
        old = x.dtype
        if old is kind or not old.is_floating_point or old is dtypes.float64:
            return x
        now = region()
        if (
            now is not None and now.caching and kind is now.low and old is dtypes.float32
            and x.requires_grad and x.node is None and x.alias is None
        ):  # fmt: skip
            return _kept_cast(now.casts, x, kind)
        return x.to(kind)
    if type(x) in (tuple, list):
        return type(x)(_cast(v, kind) for v in x)
    return x


def _kept_cast(casts: dict[tuple, tuple], leaf: Tensor, kind: dtype) -> Tensor:
    """The cast of a leaf, from before or made now. One made without recording is of no use to a call that records."""
    key = id(leaf), kind, current()
    state = None if leaf.version is None else leaf.version.value, leaf.ptr, leaf.layout
    found = casts.get(key)
    if found is None or found[1] != state:
        found = casts[key] = leaf, state, leaf.to(kind)
    return found[2]


def low(*tensors: Any) -> tuple:
    """The tensors in the low type while autocast is on, else as they are: for functions that LOW names no part of."""
    to = _low()
    return tensors if to is None else tuple(_cast(t, to) for t in tensors)


def full(*tensors: Any) -> tuple:
    """The tensors in float32 while autocast is on, else as they are: for functions that FULL names no part of."""
    return tensors if _low() is None else tuple(_cast(t, dtypes.float32) for t in tensors)


def _aware(function: Callable, kind: dtype | None) -> Callable:
    """`function` that casts its tensors while autocast is on, to `kind` (None: the low type)."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        low = _low()
        if low is None:
            return function(*args, **kwargs)
        to = kind or low
        return function(*[_cast(a, to) for a in args], **{k: _cast(v, to) for k, v in kwargs.items()})

    return call


def install(functions: dict[str, Callable]) -> None:
    """Make the functions that LOW and FULL name aware of autocast, wherever a module or Tensor holds them.

    Args:
        functions: the public functions of tgrad, in which the replaced ones are put too.
    """
    from tgrad.nn import functional
    from tgrad.ops import reduce, softmax

    changed: dict[int, Callable] = {}
    for names, kind in ((LOW, None), (FULL, dtypes.float32)):
        for name in names:
            for place in (functions.get(name), getattr(functional, name, None), getattr(reduce, name, None)):
                if place is not None:
                    changed.setdefault(id(place), _aware(place, kind))
    power = vars(Tensor).get("__pow__")
    if power is not None:
        changed[id(power)] = _aware(power, dtypes.float32)
    for name in ("softmax", "log_softmax", "cross_entropy"):
        f = getattr(softmax, name)
        changed.setdefault(id(f), _aware(f, dtypes.float32))
    skipped = {id(f) for f in (functional.softmax, functional.log_softmax, functional.cross_entropy)}  # call the above
    for key in skipped - {id(getattr(softmax, n)) for n in ("softmax", "log_softmax", "cross_entropy")}:
        changed.pop(key, None)
    modules = [m for n, m in list(sys.modules.items()) if n.startswith("tgrad.") and ".kernels" not in n]
    for holder in (*[vars(m) for m in modules if m is not None], functions):
        for name, value in list(holder.items()):
            if id(value) in changed:
                holder[name] = changed[id(value)]
    for name, value in list(vars(Tensor).items()):
        if id(value) in changed:
            setattr(Tensor, name, changed[id(value)])
