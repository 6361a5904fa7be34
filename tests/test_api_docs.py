"""The pages on the API are what the docstrings say, and every public docstring says its shapes, dtypes and errors.

The convention: paragraphs that begin "Shape:", "Dtype:" and "Raises:". A docstring may instead refer to another public
name ("See `tgrad.add`."), which then says them.
"""

import ast
import builtins
import inspect
import re
import textwrap

import pytest

import tgrad
from docs import api
from docs.names import MODULES, doc, entries, members, names, sections
from tgrad import arithmetic, dtypes, functions

PUBLIC = {x.path: x for module in MODULES for x in names(module)}
EXCEPTIONS = {
    *vars(builtins), "OutOfMemoryError", "GradcheckError", "CheckpointError", "ProfilerError",
}  # fmt: skip
CONTAINERS = (
    tgrad.nn.Module, tgrad.nn.Sequential, tgrad.nn.ModuleList, tgrad.nn.ModuleDict, tgrad.nn.ParameterList,
    tgrad.nn.ParameterDict, tgrad.optim.Optimizer,
)  # fmt: skip


def has_doc(value):
    return callable(value) or isinstance(value, (property, classmethod, staticmethod))


def computes(value):
    """Whether a name takes or makes tensors, so that there are shapes and dtypes to speak of."""
    if isinstance(value, type):
        return issubclass(value, (tgrad.nn.Module, tgrad.optim.Optimizer)) and value not in CONTAINERS
    function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    if getattr(function, "__module__", "") == "tgrad.autograd.functional":  # takes functions of tensors
        return True
    annotations = [p.annotation for p in inspect.signature(function).parameters.values()]
    annotations += [inspect.signature(function).return_annotation]
    return any(re.search(r"\bTensor\b", str(a)) for a in annotations)


def referred(text):
    """The public name whose entry a docstring sends its reader to, or None."""
    found = re.search(r"\bSee `([\w.]+)`", text)
    return found and (PUBLIC.get(found[1]) or PUBLIC.get(f"tgrad.{found[1]}"))


def lacks(value, seen=0):
    """What a docstring does not say: "Shape", "Dtype", "Raises"."""
    text = doc(value)
    missing = [part for part in ("Shape", "Dtype", "Raises") if not sections(text).get(part)]
    other = referred(text)
    if missing and other is not None and seen < 3:
        return lacks(other.value, seen + 1)
    return missing


def raised(value):
    """The exceptions in the raise statements of a function's own lines, or of a class's construction and call."""
    if isinstance(value, type):
        own = [vars(value).get(n) for n in ("__init__", "forward", "__call__", "__enter__")]
        return set().union(*(raised(f) for f in own if inspect.isfunction(f)))
    function = value.fget if isinstance(value, property) else inspect.unwrap(getattr(value, "__func__", value))
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # a lambda within an expression, or made by a table
        return set()
    calls = [n.exc for n in ast.walk(tree) if isinstance(n, ast.Raise) and isinstance(n.exc, ast.Call)]
    found = {c.func.id for c in calls if isinstance(c.func, ast.Name)}
    return {name for name in found if name[0].isupper() and name != "NotImplementedError"}


def test_the_pages_are_what_the_docstrings_say():
    texts = api.pages()
    on_disk = {"api.md", *(f"api/{p.name}" for p in (api.FOLDER / "api").iterdir())}
    stale = {n for n, text in texts.items() if n not in on_disk or (api.FOLDER / n).read_text("utf-8") != text}
    assert not stale | (on_disk - set(texts)), "the docstrings have changed: run `make docs`"


def test_every_link_has_a_target():
    texts = api.pages()
    anchors = {n: set(re.findall(r'<a id="([^"]+)">', text)) for n, text in texts.items()}
    for page, text in texts.items():
        for file, anchor in re.findall(r"\]\(([\w./]*\.md)#([^)]+)\)", text):
            assert anchor in anchors[file if file.startswith("api/") else f"api/{file}"], (page, file, anchor)
        assert " at 0x" not in text, page


def test_every_public_name_is_listed():
    for path in ("tgrad.exp", "tgrad.zeros", "tgrad.no_grad", "tgrad.float16", "tgrad.Tensor.add_", "tgrad.Tensor.T",
                 "tgrad.Tensor.__matmul__", "tgrad.nn.Linear", "tgrad.nn.functional.linear", "tgrad.optim.AdamW",
                 "tgrad.nn.init.ones_", "tgrad.amp.GradScaler", "tgrad.linalg.vector_norm"):  # fmt: skip
        assert path in PUBLIC
    assert not [n for n in vars(tgrad) if n in tgrad._functions.FUNCTIONS and f"tgrad.{n}" not in PUBLIC]


@pytest.mark.parametrize("module", [m for m in MODULES if names(m)])
def test_docstrings_say_shapes_dtypes_and_errors(module):
    faults = {}
    for x in names(module):
        if not has_doc(x.value):
            continue
        if not sections(doc(x.value))[""]:
            faults[x.path] = "no docstring"
        elif computes(x.value) and (missing := lacks(x.value)):
            faults[x.path] = f"no line that begins {', '.join(missing)}"
        elif isinstance(x.value, type) and x.value is not tgrad.Tensor:
            own = {n: m for n, m in members(x.value).items() if n[:2] != "__" and n not in ("forward", "extra_repr")}
            faults |= {f"{x.path}.{n}": "no docstring" for n, m in own.items() if not inspect.getdoc(m)}
    assert not faults, "\n" + "\n".join(f"{path}: {why}" for path, why in faults.items())


@pytest.mark.parametrize("module", [m for m in MODULES if names(m)])
def test_errors_that_are_raised_are_named(module):
    faults = []
    for x in (x for x in names(module) if has_doc(x.value)):
        other = referred(doc(x.value))
        said = doc(x.value) + (doc(other.value) if other else "")
        faults += [f"{x.path}: {name}" for name in sorted(raised(x.value)) if name not in said]
        for name, _ in entries(sections(doc(x.value)).get("Raises", "")):
            unknown = {n.removeprefix("tgrad.") for n in filter(None, name.split(", "))} - EXCEPTIONS
            faults += [f"{x.path}: {one} is no exception" for one in sorted(unknown)]
    assert not faults, "\n" + "\n".join(faults)


ROWS = (*functions.UNARY, *functions.TESTS, *functions.BINARY, "mul", "add", "div", "clamp_min", "xlogy", "nan_to_num",
        *arithmetic.BITWISE, "bitwise_not", "lerp", "addcmul", "addcdiv")  # fmt: skip
ACTIVATIONS = ("relu", "elu", "silu", "gelu", "softplus", "leaky_relu", "sigmoid", "tanh", "tanhshrink", "mish", "selu",
               "celu", "hardswish", "hardsigmoid", "relu6", "softsign", "logsigmoid")  # fmt: skip


@pytest.mark.parametrize("module, listed", [(tgrad, ROWS), (tgrad.nn.functional, ACTIVATIONS)])
def test_dtype_lines_say_what_functions_do(module, listed):
    """What was derived from a row, against calls with each dtype."""
    for name in listed:
        function = getattr(module, name)
        said = sections(doc(function))
        operands = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty and p.kind < 2]
        for d in dtypes.ALL:
            try:
                got = function(*(tgrad.ones(1).to(d) for _ in operands)).dtype
            except RuntimeError:
                got = None
            line = said["Dtype"]
            refused = re.search(r"the dtype is (.*?)[.;]", said["Raises"].replace("\n", " "))
            kinds = refused[1] if refused else ""
            nots = "not floating" in kinds and not d.is_floating_point
            if nots or d.name in kinds or ("floating" in kinds and "not" not in kinds and d.is_floating_point):
                expected = None
            elif line.startswith("bool"):
                expected = tgrad.bool
            elif "of bool int64" in line and d is tgrad.bool:
                expected = tgrad.int64
            else:
                expected = tgrad.float32 if "default dtype" in line and not d.is_floating_point else d
            assert got is expected, f"{name} of {d.name}: {got}, but its docstring says {line} {kinds}"
