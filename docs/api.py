"""The pages on the API, from the docstrings of every public name: `python -m docs.api` (`make docs`) writes them."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import tgrad
from docs.names import MODULES, Name, doc, entries, members, names, sections, signature

FOLDER = Path(__file__).parent
HEAD = """\
# The API of tgrad

Written by `make docs` from the docstrings; edit those. Names, arguments and defaults are PyTorch's.

What holds everywhere:

- **Shape.** "The operands broadcast" means PyTorch's rule: shapes are aligned at the right, and a size of 1, or a
  missing one, stretches. Negative dimensions count from the end; one out of range raises `IndexError`.
- **Dtype.** There are eight: float16, bfloat16, float32, float64, int32, int64, uint8, bool. "The common dtype" is that
  of `torch.result_type`: a tensor outranks a 0-dim tensor, which outranks a Python number; a lower rank decides only
  where its kind (bool, integer, floating) is higher. Half types are computed in float32 and rounded once. The default
  dtype is float32 unless `tgrad.set_default_dtype` says otherwise.
- **Device.** A process computes on one device. On a CUDA machine, tensors on the CPU store, copy and convert only
  (clone, cat, indexing by tensors, writing): computing with one raises a `RuntimeError` that says how to move it. A
  0-dim CPU tensor counts as a number. On several streams of CUDA: see `tgrad.cuda.stream`.
- **In place.** A method whose name ends in `_` writes into its tensor and returns it. It raises `RuntimeError` for a
  leaf that requires grad (or a view of one) while grad mode is on; for a tensor whose elements overlap in memory (as
  after `expand`); for an inference tensor outside inference mode; for a result whose shape, or whose kind of dtype, the
  tensor cannot hold.
- **Gradients.** Floating results are differentiable in floating inputs, to any order, unless the entry says otherwise.
"""


def escaped(text: str) -> str:
    """Text whose underscores, stars and angles are no Markdown."""
    return re.sub(r"([*_<])", r"\\\1", text)


def prose(text: str, places: dict[str, str]) -> str:
    """A paragraph in Markdown: what is in backquotes stays, and links to its entry; the rest is escaped."""
    parts = re.split(r"(`[^`]+`)", re.sub(r"\s*\n\s*", " ", text))
    for i, part in enumerate(parts):
        if not part.startswith("`"):
            parts[i] = escaped(part)
            continue
        path = re.sub(r"\(.*$", "", part[1:-1])
        parts[i] = f"[{part}]({places[path]})" if path in places else part
    return "".join(parts)


def body(text: str, places: dict[str, str], indent: str = "") -> list[str]:
    """A docstring as Markdown lines."""
    lines: list[str] = []
    for name, part in sections(text).items():
        if name == "":
            for paragraph in part.split("\n\n") if part else ():
                code = ["```python", *textwrap.dedent(paragraph).splitlines(), "```"]
                lines += [*(code if paragraph.startswith("    ") else [prose(paragraph, places)]), ""]
        elif name in ("Args", "Attributes", "Raises") and not (len(listed := entries(part)) == 1 and not listed[0][0]):
            lines.append(f"- **{name}**:")
            lines += [f"  - {f'`{n}`: ' if n else ''}{prose(d, places)}" for n, d in listed]
        elif name == "Example":
            lines += ["", "```python", *part.splitlines(), "```"]
        else:
            lines.append(f"- **{name}**: {prose(part, places)}")
    return [f"{indent}{line}".rstrip() for line in lines]


def call(x: Name) -> str:
    """How a user writes a name."""
    if x.module != "tgrad.Tensor":
        return x.path + (signature(x.value) if callable(x.value) else "")
    return "x." + x.name + ("" if isinstance(x.value, property) else signature(x.value, method=True))


def without_arguments(value: Any, places: dict[str, str]) -> dict[str, str]:
    """The places that a docstring may link to: not those that have the name of an argument."""
    own = set(re.findall(r"\w+", signature(value))) if callable(value) else set()
    return {path: place for path, place in places.items() if path not in own}


def describe(x: Name, firsts: dict[int, Name], places: dict[str, str]) -> list[str]:
    """The entry of a name."""
    places = without_arguments(x.value, places)
    lines = [f'<a id="{x.name}"></a>', "", f"### {escaped(x.name)}", ""]
    if isinstance(x.value, tgrad.dtype):
        other = "" if x.value.name == x.name else f", another name of `tgrad.{x.value.name}`"
        plural = "s" if x.value.itemsize > 1 else ""
        return [*lines, prose(f"A dtype of {x.value.itemsize} byte{plural} per element{other}.", places), ""]
    if not callable(x.value) and not isinstance(x.value, (property, classmethod, staticmethod)):
        kind = f"tgrad.{type(x.value).__name__}"
        return [*lines, prose(f"A `{kind}`.", places) if kind in places else f"`{x.value!r}`", ""]
    lines += ["```python", call(x), "```", ""]
    first = firsts[id(x.value)]
    if first.path != x.path:
        summary = sections(doc(x.value))[""].split("\n\n")[0]
        other = "As a method, `{}`." if x.module == "tgrad.Tensor" != first.module else "Another name of `{}`."
        return [*lines, prose(summary, places), "", prose(other.format(first.path), places), ""]
    lines += body(doc(x.value), places)
    if x.value is tgrad.Tensor:
        lines += ["", "Its methods, properties and operators have [a page of their own](tgrad.Tensor.md)."]
    elif isinstance(x.value, type):
        for name, member in members(x.value).items():
            if doc(member):
                arguments = "" if isinstance(member, property) else signature(member, method=True)
                near = without_arguments(member, places)
                lines += ["", f"- `.{name}{arguments}`", "", *body(doc(member), near, "  ")]
    return [*lines, ""]


def originals(found: dict[str, list[Name]]) -> dict[int, Name]:
    """The name under which each object is described: the one it was defined with, on the first page that has it."""
    firsts: dict[int, Name] = {}
    for own in (True, False):
        for x in (x for listed in found.values() for x in listed):
            if (getattr(x.value, "__name__", x.name) == x.name) is own:
                firsts.setdefault(id(x.value), x)
    return firsts


def pages() -> dict[str, str]:
    """All pages: their text by file name in docs/."""
    found = {module: listed for module in MODULES if (listed := names(module))}
    places = {x.path: f"{module}.md#{x.name}" for module, listed in found.items() for x in listed}
    firsts = originals(found)
    index = [HEAD.replace("`tgrad.set_default_dtype`", "[`tgrad.set_default_dtype`](api/tgrad.md#set_default_dtype)")]
    texts = {}
    for module, listed in found.items():
        links = " ".join(f"[{escaped(x.name)}](api/{places[x.path]})" for x in listed)
        index += [f"## [{module}](api/{module}.md)", "", f"{MODULES[module]}: {len(listed)} names.", ""]
        index += [textwrap.fill(links, 120, break_long_words=False, break_on_hyphens=False), ""]
        lines = [f"# {module}", "", f"{MODULES[module]}. Written by `make docs`; back to [the index](../api.md).", ""]
        near = {x.name: places[x.path] for x in listed} | places
        for x in listed:
            lines += describe(x, firsts, near)
        texts[f"api/{module}.md"] = tidy(lines)
    return {"api.md": tidy(index), **texts}


def tidy(lines: list[str]) -> str:
    """Lines as a page, without more than one empty line in a row."""
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def main() -> Any:
    """Write the pages; remove those of modules that are gone."""
    texts = pages()
    (FOLDER / "api").mkdir(exist_ok=True)
    for stale in {f"api/{p.name}" for p in (FOLDER / "api").glob("*.md")} - set(texts):
        (FOLDER / stale).unlink()
    for name, text in texts.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"docs/api.md, docs/api/: {len(texts)} pages, {sum(map(len, texts.values())) / 1000:.0f} kB")


if __name__ == "__main__":
    main()
