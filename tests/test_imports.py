"""The direction of imports (profiler -> tgrad -> kernels), where torch may be imported, and the length of files.

Ruff's TID251 holds a part of this as one types; it cannot say "everything but". Files are read, never imported.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT_TORCH = {
    "tgrad.storage", "tgrad.device", "tgrad.interop.memory", "tgrad.interop.bridge", "tgrad.interop.twins",
    "tgrad.interop.data", "tgrad.torch_host", "tgrad.torch_streams",
    "tgrad.profiler.torch_twin", "tgrad.profiler.torch_models", "tgrad.profiler.torch_blocks",
}  # fmt: skip
KERNELS_MAY_IMPORT = {"triton", "numpy", "__future__", *sys.stdlib_module_names}
LONGEST = 450


def sources() -> list[Path]:
    """All Python files of the three packages and the tests; kernels and profiler through their links."""
    found = []
    for folder in ("tgrad", "tgrad/kernels", "tgrad/profiler", "tests"):
        nested = {ROOT / "tgrad/kernels", ROOT / "tgrad/profiler"} - {ROOT / folder}
        found += [p for p in sorted((ROOT / folder).rglob("*.py")) if not nested & set(p.parents)]
    return found


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool = False) -> list[tuple[int, str]]:
    """(line, full name) of everything imported, at any depth; `from a import b` counts as a.b."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if is_package else module.split(".")[:-1]
                base = ".".join([*package[: len(package) + 1 - node.level], *([base] if base else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def fault(module: str, imported: str) -> str | None:
    """Why `module` may not import `imported`, or None where it may."""
    top = imported.split(".")[0]
    if top in ("kernels", "profiler"):
        return f"import tgrad.{top}, by its full name"
    if inside(module, "tests"):
        return None
    if top == "torch" and module not in MAY_IMPORT_TORCH:
        return "torch serves for device buffers only"
    if inside(module, "tgrad.kernels"):
        allowed = top in KERNELS_MAY_IMPORT or inside(imported, "tgrad.kernels")
        return None if allowed else "kernels import triton, numpy and the standard library only"
    if not inside(module, "tgrad.profiler") and inside(imported, "tgrad.profiler"):
        return "the engine does not know its profiler"
    return None


def test_imports_run_one_way():
    faults = []
    for path in sources():
        found = imports(path.read_text(encoding="utf-8"), name_of(path), path.name == "__init__.py")
        for line, imported in found:
            if why := fault(name_of(path), imported):
                faults.append(f"{path.relative_to(ROOT)}:{line} imports {imported}: {why}")
    assert not faults, "\n" + "\n".join(faults)


def test_every_folder_is_read():
    names = [name_of(path) for path in sources()]
    assert {"tgrad", "tgrad.kernels", "tgrad.profiler", "tests.test_imports"} <= set(names)
    assert len(names) == len(set(names))


def test_files_are_short():
    lengths = {p.relative_to(ROOT): len(p.read_text(encoding="utf-8").splitlines()) for p in sources()}
    long = [f"{path}: {n} lines" for path, n in lengths.items() if n > LONGEST and path.parts[0] == "tgrad"]
    assert not long, f"more than {LONGEST} lines; split by purpose:\n" + "\n".join(long)


@pytest.mark.parametrize(
    ("module", "source", "refused"),
    [
        ("tgrad.tensor", "import torch", True),
        ("tgrad.tensor", "def f():\n    from torch.nn import functional", True),
        ("tgrad.storage", "import torch", False),
        ("tgrad.tensor", "from tgrad import kernels", False),
        ("tgrad.tensor", "from . import profiler", True),
        ("tgrad.nn.linear", "from ..profiler.record import Ledger", True),
        ("tgrad.nn.linear", "from ..kernels import matmul", False),
        ("tgrad.kernels.matmul", "import os, numpy, triton.language as tl", False),
        ("tgrad.kernels.matmul", "from . import scalar", False),
        ("tgrad.kernels.matmul", "from tgrad import kernels", False),
        ("tgrad.kernels.matmul", "from tgrad import Tensor", True),
        ("tgrad.kernels.matmul", "import tgrad", True),
        ("tgrad.kernels.matmul", "from ..storage import Storage", True),
        ("tgrad.kernels.matmul", "import pandas", True),
        ("tgrad.profiler.record", "import tgrad, pandas", False),
        ("tgrad.profiler.record", "import torch", True),
        ("tgrad.profiler.torch_twin", "import torch", False),
        ("tests.test_matmul", "import torch, tgrad.profiler", False),
        ("tests.test_matmul", "import kernels.matmul", True),
        ("tgrad.profiler.cli", "from profiler import record", True),
    ],
)
def test_the_rules(module, source, refused):
    assert any(fault(module, imported) for _, imported in imports(source, module)) is refused
