"""One entry of the database: its samples in tgrad and in torch, forward and backward, in every form that tgrad has."""

from __future__ import annotations

import random
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

import tgrad
from tests.opdb import scope
from tests.opdb.agreement import difference
from tests.opdb.composed import reference
from tests.opdb.names import Entry
from tests.opdb.translate import OURS, Translation, Untranslatable, leaves, to_tgrad, to_torch


@dataclass
class Outcome:
    """What came of one entry.

    Attributes:
        out: samples out of scope, by reason.
        failed: the first difference of each sample that failed.
        checks: (calls that torch and tgrad refuse, calls that torch refuses).
        unchecked: what torch says of those that tgrad does not refuse.
    """

    name: str
    full_name: str
    forms: list[str]
    samples: int = 0
    agreed: int = 0
    out: Counter = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    checks: tuple[int, int] = (0, 0)
    unchecked: list[str] = field(default_factory=list)


class How(NamedTuple):
    """How the results of a sample compare: whether by all but their values, and the precision if not their dtype's."""

    drawn: bool
    precision: Any


class Disagreement(Exception):
    """tgrad's result is not torch's."""


class TorchRaises(Exception):
    """torch itself raises; a form that is not for this sample, as in-place where the result would not fit."""


def seed(*key: Any) -> None:
    number = zlib.crc32(repr(key).encode())
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)
    tgrad.manual_seed(number)


def _call(form: Callable, arguments: tuple, in_place: bool) -> Any:
    input, args, kwargs = arguments
    if in_place and hasattr(input, "clone"):
        input = input.clone()
    result = form(input, *args, **kwargs)
    return list(result) if isinstance(result, (list, tuple)) and not isinstance(result, torch.Size) else result


def _reference(form: Callable, sample: tuple, translation: Translation, in_place: bool, wide: bool) -> Any:
    arguments = translation(sample)
    default = torch.get_default_dtype()
    try:
        if wide:
            torch.set_default_dtype(torch.float64)
        return _call(form, arguments, in_place)
    finally:
        torch.set_default_dtype(default)


def _differentiable(results: Any) -> list:
    return [r for r in leaves(results) if hasattr(r, "requires_grad") and r.requires_grad]


def _backward(results: Any, inputs: list, cotangents: list, engine: Any) -> list:
    return list(engine.grad(_differentiable(results), inputs, cotangents, allow_unused=True))


def _cotangents(results: list, rng: np.random.Generator) -> list[torch.Tensor]:
    return [torch.tensor(rng.normal(size=tuple(r.shape))).to(r.dtype) for r in results]


def _compare(native: Any, ours: Any, wide: Any, what: str, how: How) -> None:
    if how.drawn:  # compare all but the values
        ours = [tgrad.zeros_like(r) if isinstance(r, tgrad.Tensor) else r for r in leaves(ours)]
        native, wide = [torch.zeros_like(r) if isinstance(r, torch.Tensor) else r for r in leaves(native)], None
    found = difference(ours, native, wide, what, how.precision)
    if found:
        raise Disagreement(found)


def compare_form(form: str, pair: tuple[Callable, Callable], sample: tuple, grad: bool, how: How) -> None:
    """Run one form of an op on one sample in torch and in tgrad.

    Raises:
        Disagreement: they differ. TorchRaises: torch raises, and so does tgrad. Untranslatable: a value that tgrad has
            not.
    """
    theirs, mine = pair
    in_place = form.endswith("in-place")
    ours, native, wider = to_tgrad(grad), to_torch(grad), to_torch(grad, wide=True)
    arguments = ours(sample)
    try:
        want = _reference(theirs, sample, native, in_place, False)
    except Exception as error:
        try:
            _call(mine, arguments, in_place)
        except Exception:
            raise TorchRaises(str(error)) from None
        raise Disagreement(f"{form}: no error, torch raises {type(error).__name__}: {error}") from None
    try:
        exact = _reference(theirs, sample, wider, in_place, True)
    except Exception:
        exact = None  # torch mixes dtypes in this sample as it would not mix float64
    if exact is not None and not _comparable(want, exact):
        exact = None
    got = _call(mine, arguments, in_place)
    _compare(want, got, exact, form, how)
    for i, (a, b) in enumerate(zip(ours.tensors, native.tensors, strict=True)):
        if b._version and not (in_place and a is arguments[0]):
            _compare(b, a, None if exact is None else wider.tensors[i], f"{form}: argument {i}, written", how)
    if not grad or how.drawn:  # a draw's gradient is zero, or needs the same draw
        return
    outs, own = _differentiable(want), _differentiable(got)
    if len(outs) != len(own):
        raise Disagreement(f"{form}: {len(own)} results require grad, torch has {len(outs)}")
    if not outs or not native.inputs:
        return
    cotangents = _cotangents(outs, np.random.default_rng(1))
    try:
        backward = _backward(want, native.inputs, cotangents, torch.autograd)
    except NotImplementedError:  # torch has no derivative of this form, such as acosh_
        return
    mine_back = _backward(got, ours.inputs, [to_tgrad(False)(c) for c in cotangents], tgrad.autograd)
    exact_back: list = [None] * len(backward)
    if exact is not None and len(_differentiable(exact)) == len(outs):
        wide = [c.to(r.dtype) for c, r in zip(cotangents, _differentiable(exact), strict=True)]
        exact_back = _backward(exact, wider.inputs, wide, torch.autograd)
    for i, (g, n, w) in enumerate(zip(mine_back, backward, exact_back, strict=True)):
        _compare(n, g, w, f"{form}: gradient {i}", how)


def _comparable(native: Any, wide: Any) -> bool:
    """Whether the float64 results stand beside the native ones, element by element."""
    a, b = leaves(native), leaves(wide)
    return len(a) == len(b) and all(
        not isinstance(x, torch.Tensor) or x.shape == y.shape and x.is_floating_point() == y.is_floating_point()
        for x, y in zip(a, b, strict=True)
    )


def _compare_sample(entry: Entry, sample: tuple, grad: bool) -> None:
    how = How(scope.drawn(entry.name, sample[2]), scope.PRECISION.get(entry.name))
    for form, pair in entry.forms.items():
        try:
            compare_form(form, (reference(entry.name, pair[0], sample[0]), pair[1]), sample, grad, how)
        except TorchRaises:
            if form == "function":
                raise


def _judge(entry: Entry, sample: tuple, grad: bool, outcome: Outcome, where: str) -> None:
    outcome.samples += 1
    try:
        _compare_sample(entry, sample, grad)
    except Untranslatable as error:
        outcome.out[scope.of_value(str(error))] += 1
    except TorchRaises:
        outcome.out["torch itself raises"] += 1
    except Disagreement as error:
        outcome.failed.append(f"{where}: {error}")
    except Exception as error:
        why = scope.of_error(entry.full_name, error)
        if why is None:
            outcome.failed.append(f"{where}: {type(error).__name__}: {error}")
        else:
            outcome.out[why] += 1
    else:
        outcome.agreed += 1


def _refuses(op: Callable, sample: Any) -> bool:
    try:
        op(sample.input, *sample.args, **sample.kwargs)
    except Exception:
        return True
    return False


def _check_errors(entry: Entry, outcome: Outcome) -> None:
    """How many of the calls that torch refuses are refused here; those that cannot be made here do not count."""
    both = total = 0
    for case in entry.info.error_inputs("cpu"):
        sample = case.sample_input
        try:
            arguments = to_tgrad(False)((sample.input, sample.args, sample.kwargs))
        except Untranslatable:
            continue
        if not _refuses(entry.info.op, sample):  # some are for other devices
            continue
        total += 1
        try:
            _call(entry.forms["function"][1], arguments, False)
        except Exception:
            both += 1
        else:
            outcome.unchecked.append(f"torch: {str(case.error_regex)[:100]}")
    outcome.checks = both, total


def run(entry: Entry, dtypes: list[torch.dtype], limit: int | None = None, errors: bool = False) -> Outcome:
    """All samples of an entry (the first `limit` of each dtype) in these dtypes; `errors`: those it refuses, too."""
    info = entry.info
    outcome = Outcome(entry.name, entry.full_name, list(entry.forms))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for dtype in dtypes:
            if dtype not in info.supported_dtypes("cpu") or dtype not in OURS:
                continue
            grad = dtype.is_floating_point and info.supports_autograd and dtype in info.supported_backward_dtypes("cpu")
            seed(entry.full_name, str(dtype))
            for i, s in enumerate(info.sample_inputs("cpu", dtype, requires_grad=grad)):
                if limit is not None and i >= limit:
                    break
                _judge(entry, (s.input, s.args, s.kwargs), grad, outcome, f"{str(dtype)[6:]} sample {i}")
        if errors and info.error_inputs_func is not None:
            _check_errors(entry, outcome)
    return outcome
