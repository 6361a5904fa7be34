"""Workloads: a model, its batches and its loss, and the registry of those with a name."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tgrad
from tgrad import nn
from tgrad.profiler import digits, optimizers
from tgrad.profiler.errors import ProfilerError, one_line
from tgrad.profiler.origins import inside, shown
from tgrad.storage import OutOfMemoryError
from tgrad.tensor import Tensor

DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Options:
    """What a workload is made with; None leaves the choice to the workload.

    batch_size counts rows; width and depth are the hidden layers of `mlp`; seed starts weights and data; optimizer, one
    of `optimizers.CHOICES`, steps those that have a loss.
    """

    batch_size: int | None = None
    dtype: str = "float32"
    width: int | None = None
    depth: int | None = None
    seed: int = 0
    optimizer: str = "sgd"


@dataclass(frozen=True)
class Workload:
    """What is profiled.

    Attributes:
        name: as it appears in tables and file names.
        model: a `tgrad.nn.Module`, or any callable on tensors.
        batch: makes a fresh batch, (inputs, targets), each a tuple of tensors; not a part of any time measured.
        loss: loss(output, *targets), a scalar where backward starts; None: at the output, with a random gradient.
        held: how many outputs (of as many batches) are held at once in the memory pass.
        batch_size: rows of a batch.
        about: one sentence for the report.
        twin: makes the same workload in PyTorch, a `torch_twin.Twin`. With model None there is nothing but that.
        optimizer: makes the optimiser of the parameters it is given, which steps after each backward. None: no step.
    """

    name: str
    model: Any
    batch: Callable[[], tuple[tuple[Any, ...], tuple[Any, ...]]]
    loss: Callable[..., Tensor] | None = None
    held: int = 1
    batch_size: int = 0
    about: str = ""
    twin: Callable[[], Any] | None = None
    optimizer: Callable[[list[Tensor]], Any] | None = None

    def forward(self, inputs: tuple[Any, ...], targets: tuple[Any, ...]) -> list[Tensor]:
        """The results that the caller keeps: the model's output tensors, then the loss if there is one."""
        output = self.model(*inputs)
        if self.loss is None:
            return tensors_in(output)
        return [*tensors_in(output), self.loss(output, *targets)]


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in a tensor, or in nested tuples, lists and dicts of them."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in tensors_in(v)] if isinstance(value, (tuple, list)) else []


# --- the workloads that come with tgrad ------------------------------------------------------------------------------
def tutorial(options: Options) -> Workload:
    """PyTorch's no_grad tutorial: a loop that keeps 100 outputs of Linear(1000, 1000), each from a batch of its own."""
    rows = options.batch_size or 100
    model = nn.Linear(1000, 1000, dtype=_dtype(options))
    held = 100
    return Workload(
        "tutorial", model, lambda: ((tgrad.randn(rows, 1000, dtype=_dtype(options)),), ()), None, held, rows,
        f"The loop of PyTorch's no_grad tutorial: it keeps {held} outputs of Linear(1000, 1000), each computed from a "
        f"batch of its own of {rows} x 1000.",
        lambda: _torch().tutorial(rows, options.dtype, held),
    )  # fmt: skip


def digits_(options: Options) -> Workload:
    """A small classifier on the 1,797 real images of scikit-learn's digits."""
    rows = options.batch_size or 256
    data = digits.load(options.seed)
    if rows > len(data.train_images):
        raise ProfilerError(
            f"workload digits: a batch of {rows} was asked for, and there are {len(data.train_images)} images to "
            "train on: use a smaller --batch-size"
        )
    model = nn.Sequential(
        nn.Linear(64, 64, dtype=_dtype(options)), nn.ReLU(), nn.Linear(64, 10, dtype=_dtype(options))
    )  # fmt: skip

    def batch() -> tuple[tuple, tuple]:
        images = tgrad.tensor(data.train_images[:rows], dtype=_dtype(options))
        return (images,), (tgrad.tensor(data.train_labels[:rows]),)

    return Workload(
        "digits", model, batch, nn.CrossEntropyLoss(), 1, rows,
        f"An MLP 64-64-10 with cross-entropy on {rows} of the 1,797 images of handwritten digits (UCI) that "
        "scikit-learn ships.",
        lambda: _torch().digits_(rows, options.dtype, data), optimizers.NAMED.get(options.optimizer),
    )  # fmt: skip


def mlp(options: Options) -> Workload:
    """A deep MLP: `depth` hidden layers of `width`, each Linear and ReLU, and a Linear to 10 classes."""
    rows, width, depth = options.batch_size or 256, options.width or 256, options.depth or 8
    dtype = _dtype(options)
    layers: list[Any] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width, dtype=dtype), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(width, 10, dtype=dtype))

    def batch() -> tuple[tuple, tuple]:
        return (tgrad.randn(rows, width, dtype=dtype),), (tgrad.tensor(np.arange(rows) % 10),)

    return Workload(
        "mlp", model, batch, nn.CrossEntropyLoss(), 1, rows,
        f"A deep MLP: {depth} hidden layers of {width} with ReLU, 10 classes, cross-entropy, random batches "
        f"of {rows} x {width}.",
        lambda: _torch().mlp(rows, options.dtype, width, depth), optimizers.NAMED.get(options.optimizer),
    )  # fmt: skip


def _torch() -> Any:
    from tgrad.profiler import torch_models

    return torch_models


REGISTRY: dict[str, Callable[[Options], Workload]] = {"tutorial": tutorial, "digits": digits_, "mlp": mlp}


def _dtype(options: Options) -> Any:
    return getattr(tgrad, options.dtype)


def check_options(options: Options) -> None:
    """Raises ProfilerError for an option that no workload can take."""
    for name in ("batch_size", "width", "depth"):
        value = getattr(options, name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ProfilerError(f"--{name.replace('_', '-')}: expected a whole number of at least 1, got {value}")
    if options.dtype not in DTYPES:
        raise ProfilerError(f"--dtype: unknown dtype '{options.dtype}'; choose one of {', '.join(DTYPES)}")
    if options.optimizer not in optimizers.CHOICES:
        raise ProfilerError(
            f"--optimizer: unknown optimiser '{options.optimizer}'; choose from {', '.join(optimizers.CHOICES)}"
        )
    if not isinstance(options.seed, int) or not 0 <= options.seed < 2**32:
        raise ProfilerError(f"--seed: expected a whole number from 0 to {2**32 - 1}, got {options.seed}")


def make(given: str | Workload, options: Options) -> Workload:
    """The workload of a name, or of `file.py:factory`, made from `options.seed`.

    Raises:
        ProfilerError: there is no such workload; or the file, the factory or what it returns is wrong.
    """
    check_options(options)
    if isinstance(given, Workload):
        return given
    tgrad.manual_seed(options.seed)
    if given in REGISTRY:
        return REGISTRY[given](options)
    path, colon, factory = given.rpartition(":")
    if colon and path.endswith(".py"):
        return from_factory(Path(path), factory, options)
    if given.endswith(".py"):
        raise ProfilerError(f"workload '{given}': name the factory in it as well: {given}:factory")
    raise ProfilerError(f"unknown workload '{given}'; choose from {', '.join(REGISTRY)}, or give file.py:factory")


# --- a user's own model ----------------------------------------------------------------------------------------------
def from_factory(path: Path, name: str, options: Options) -> Workload:
    """The workload that the function `name` of a Python file returns.

    It returns (model, example_input), (model, example_input, loss_fn) or a Workload; example_input is a tensor or a
    tuple of the model's arguments, and loss_fn takes the model's output. It is given `dtype` and `seed` if it has such
    parameters, and `batch_size`, `width` and `depth` if they were asked for.

    Raises:
        ProfilerError: says what is wrong, with the line of the user's file.
    """
    label = f"workload {path}:{name}"
    factory = _load(path, name, label)
    try:
        given = _arguments(factory, options, label)
        made = factory(**given)
    except (ProfilerError, MemoryError, tgrad.OutOfMemoryError):
        raise
    except Exception as error:
        raise ProfilerError(f"{label}: the factory failed: {one_line(error)}{where(error, path)}") from error
    if isinstance(made, Workload):
        return made
    if isinstance(made, tuple) and made and _torch().is_model(made[0]):
        twin = _torch().of_user(made, label)
        return Workload(
            _name(path, name), None, lambda: ((), ()), None, 1, _torch().rows_of(made),
            f"The PyTorch model of {path.name}:{name}, run by PyTorch alone.", lambda: twin,
        )  # fmt: skip
    expected = "expected (model, example_input), (model, example_input, loss_fn) or a Workload"
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        got = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise ProfilerError(f"{label}: the factory returned {got}; {expected}")
    model, example = made[0], made[1]
    loss = made[2] if len(made) == 3 else None
    inputs = example if isinstance(example, tuple) else (example,)
    if not callable(model):
        raise ProfilerError(
            f"{label}: the factory's model is of type {type(model).__name__}, which cannot be called; {expected}"
        )
    if not tensors_in(list(inputs)):
        raise ProfilerError(
            f"{label}: the example input is of type {type(example).__name__}, without a tgrad tensor; {expected}"
        )
    if loss is not None and not callable(loss):
        raise ProfilerError(f"{label}: loss_fn is of type {type(loss).__name__}, which cannot be called; {expected}")
    first = tensors_in(list(inputs))[0]
    return Workload(
        _name(path, name), model, lambda: (tuple(map(_fresh, inputs)), ()), loss, 1,
        first.shape[0] if first.ndim else 1,
        f"The model of {path.name}:{name} on inputs of "
        + ", ".join("x".join(map(str, t.shape)) or "()" for t in tensors_in(list(inputs))) + ".",
        _user_twin(factory, options, path, label),
        optimizers.NAMED.get(options.optimizer) if loss is not None else None,
    )  # fmt: skip


def _name(path: Path, name: str) -> str:
    return path.stem if name in ("factory", "make", "main", "model", "workload") else name


def _user_twin(factory: Callable[..., Any], options: Options, path: Path, label: str) -> Callable[[], Any] | None:
    """What makes the twin of a user's workload: the function `torch_twin` beside its factory, if there is one."""
    function = getattr(factory, "__globals__", {}).get("torch_twin")
    if not callable(function):
        return None

    def make_twin() -> Any:
        try:
            made = function(**_arguments(function, options, f"{label}: torch_twin"))
        except ProfilerError:
            raise
        except Exception as error:
            raise ProfilerError(f"{label}: torch_twin failed: {one_line(error)}{where(error, path)}") from error
        return _torch().of_user(made, f"{label}: torch_twin")

    return make_twin


def function(given: str) -> Callable[..., Any]:
    """The function that `file.py:name` means.

    Raises:
        ProfilerError: says what is wrong.
    """
    path, colon, name = given.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise ProfilerError(f"'{given}': expected file.py:function, a function that runs one iteration")
    return _load(Path(path), name, given)


def _fresh(value: Any) -> Any:
    """A copy that shares no memory: a batch is made anew, or what the graph keeps of it could not be told apart."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _load(path: Path, name: str, label: str) -> Callable[..., Any]:
    if not path.is_file():
        raise ProfilerError(f"{label}: there is no file {path}; give the path of a Python file, then :factory")
    spec = importlib.util.spec_from_file_location(f"_tgrad_workload_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look it up
    sys.path.insert(0, str(path.parent.resolve()))  # it may import its neighbours, as when run as a script
    try:
        spec.loader.exec_module(module)
    except (MemoryError, tgrad.OutOfMemoryError):
        raise
    except (Exception, SystemExit) as error:
        raise ProfilerError(f"{label}: the file could not be loaded: {one_line(error)}{where(error, path)}") from error
    finally:
        sys.path.pop(0)
    factory = getattr(module, name, None)
    if factory is None:
        found = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == spec.name]
        listed = f"it has {', '.join(sorted(found))}" if found else "it has no functions"
        raise ProfilerError(f"{label}: {path} has no '{name}'; {listed}")
    if not callable(factory):
        raise ProfilerError(
            f"{label}: '{name}' is of type {type(factory).__name__}; expected a function that returns a model"
        )
    return factory


def _arguments(factory: Callable[..., Any], options: Options, label: str) -> dict[str, Any]:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    given: dict[str, Any] = {"seed": options.seed, "dtype": _dtype(options)}
    for option in ("batch_size", "width", "depth"):
        value = getattr(options, option)
        if value is not None:
            given[option] = value
            if option not in parameters:
                raise ProfilerError(
                    f"{label}: --{option.replace('_', '-')} was given, but the factory has no parameter '{option}': "
                    "add it, or leave the option out"
                )
    if options.dtype != "float32" and "dtype" not in parameters:
        raise ProfilerError(
            f"{label}: --dtype was given, but the factory has no parameter 'dtype': add it, or leave it out"
        )
    missing = [
        p.name for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in given
    ]  # fmt: skip
    if missing:
        raise ProfilerError(f"{label}: the factory needs {', '.join(missing)}: give each a default")
    return {k: v for k, v in given.items() if k in parameters}


def where(error: BaseException, path: Path | None = None) -> str:
    """` (at file:line)` of the innermost frame in `path`, or outside of tgrad; empty if there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" (at {shown(error.filename)}:{error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        wanted = not inside(frame.filename) if path is None else Path(frame.filename).resolve() == path.resolve()
        if wanted:
            return f" (at {shown(frame.filename)}:{frame.lineno})"
    return ""


@contextmanager
def failures(workload: Workload, mode: str, phase: str) -> Iterator[None]:
    """Turn an error of a user's model into one line. Out of memory passes as it is."""
    try:
        yield
    except (ProfilerError, MemoryError, OutOfMemoryError):
        raise
    except Exception as error:
        raise ProfilerError(
            f"workload {workload.name}: the {phase} in mode {mode} failed: {one_line(error)}{where(error)}"
        ) from error
