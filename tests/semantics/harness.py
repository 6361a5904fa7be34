"""Snippets that run on torch and on tgrad, and the comparison of what comes out."""

import functools
import math
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import tgrad

# Statement -> names of the tests that cover it; filled as the test modules are imported.
COVERED: dict[str, list[str]] = {}

# The sums of float32 products may differ in the last bits.
TOLERANCE = 1e-6

# How much of torch's message tgrad's must contain: its first sentence, up to this many characters.
ESSENTIAL = 70


class Refused(NamedTuple):
    """An exception: its class and its text."""

    kind: str
    text: str


class Tensor(NamedTuple):
    """What a tensor is, apart from its history."""

    dtype: str
    shape: tuple
    values: Any


def statement(*texts: str, **differs: Any) -> Callable:
    """Decorate a snippet, `def test_...(M)`: it runs with M = tgrad and M = torch and must give the same outcome.

    Args:
        texts: the statements it covers, lines of `statements.STATEMENTS`.
        differs: `ours=` and `theirs=`, what tgrad and what torch give where tgrad departs on purpose.
    """

    def decorate(snippet: Callable) -> Callable:
        for text in texts:
            COVERED.setdefault(text, []).append(f"{snippet.__module__}.{snippet.__name__}")

        @functools.wraps(snippet)
        def test() -> None:
            ours, theirs = run(snippet, tgrad), run(snippet, torch)
            if differs:
                check(ours, plain(differs["ours"]), "tgrad, against what its documentation says")
                check(theirs, plain(differs["theirs"]), "torch, against what it is said to do")
                assert repr(differs["ours"]) != repr(differs["theirs"]), "a departure in name only"
            else:
                check(ours, theirs, "tgrad, against torch")

        del test.__wrapped__  # pytest would read M as the name of a fixture
        return test

    return decorate


def run(snippet: Callable, module: Any) -> Any:
    """The outcome of a snippet, in a thread of its own: whatever it leaves behind in the grad mode ends with it."""
    outcome: list[Any] = []

    def work() -> None:
        outcome.append(attempt(lambda: plain(snippet(module))))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert outcome, f"the snippet ended {module.__name__}'s thread without an outcome"
    return outcome[0]


def attempt(function: Callable, *args: Any) -> Any:
    """What a call gives: its value, or the exception."""
    try:
        return function(*args)
    except AssertionError:
        raise
    except Exception as error:
        return Refused(type(error).__name__, str(error))


def warned(function: Callable, *args: Any) -> tuple:
    """(value, categories of the warnings) of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = attempt(function, *args)
    return value, [w.category.__name__ for w in caught]


def plain(value: Any) -> Any:
    """Comparable values: tensors become what they hold."""
    if isinstance(value, (tgrad.Tensor, torch.Tensor)):
        return Tensor(str(value.dtype).removeprefix("torch."), tuple(value.shape), plain(value.detach().tolist()))
    if isinstance(value, (Refused, Tensor)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return type(value).__name__


def check(got: Any, wanted: Any, what: str) -> None:
    """Raise unless the two outcomes are the same."""
    if not same(got, wanted):
        raise AssertionError(f"{what}:\n  got      {got}\n  expected {wanted}")


def same(a: Any, b: Any) -> bool:
    """Whether two outcomes agree: numbers up to rounding, exceptions in class and in torch's essential words (b)."""
    if isinstance(a, Refused) and isinstance(b, Refused):
        return a.kind == b.kind and essential(b.text) in words(a.text)
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return (math.isnan(a) and math.isnan(b)) or a == b or math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return a == b


def words(text: str) -> str:
    """A message without what differs for no reason: case, line breaks, the library's name."""
    return " ".join(text.lower().replace("tgrad.", "torch.").split())


def essential(text: str) -> str:
    """The words of torch's message that a user would search for: its first sentence."""
    return words(text).split(". ")[0].rstrip(".")[:ESSENTIAL]


# --- what snippets use again and again -------------------------------------------------------------------------------
def leaf(M: Any, *values: float) -> Any:
    """tensor([1., 2., 3.], requires_grad=True), or of other values."""
    return M.tensor(list(values or (1.0, 2.0, 3.0)), requires_grad=True)


def state(M: Any) -> tuple[bool, bool]:
    """The grad mode of this thread."""
    return M.is_grad_enabled(), M.is_inference_mode_enabled()


def flags(t: Any) -> tuple:
    """What the graph says of a tensor."""
    return t.requires_grad, t.is_leaf, name(t.grad_fn)


def name(node: Any) -> str | None:
    """The name of a node, or None."""
    return None if node is None else node.name()


def version_kept(t: Any, write: Callable) -> tuple:
    """How a write is refused, and whether values and version are as before."""
    values, version = t.detach().clone().tolist(), t._version
    outcome = attempt(write)
    return outcome, t.detach().tolist() == values, t._version - version
