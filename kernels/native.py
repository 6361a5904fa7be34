"""The native launcher: a launch for a tenth of what Triton's own costs in host time.

`launcher.c` is built at first use by the compiler that Triton needs anyway, and cached beside Triton's kernels. It
relies on nothing of Triton but a kernel's handle, its metadata and the order of its parameters. Where it cannot be
built, or a kernel needs more than it does (clusters, cooperative launches), launches go Triton's own
way.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import triton

LETTERS = {"i32": "i", "i64": "l", "fp32": "f", "fp64": "d"}


@functools.cache
def module() -> ModuleType | None:
    """The built launcher; None where it cannot be built, or the environment variable TGRAD_NATIVE is 0."""
    return build([Path(__file__).with_name("launcher.c")], "tgrad_launcher", what="a launch")


def build(parts: Sequence[Path], name: str, *, what: str) -> ModuleType | None:
    """A C extension, built and cached by Triton's own means; None where that fails, or TGRAD_NATIVE is 0.

    Args:
        parts: its files, compiled as one, in this order.
        what: costs more host time without it, as the warning says.
    """
    if os.environ.get("TGRAD_NATIVE") == "0":
        return None
    try:
        from triton.runtime.build import compile_module_from_src

        include = Path(triton.__file__).parent / "backends/nvidia/include"
        source = "\n".join(f'#line 1 "{part.name}"\n{part.read_text()}' for part in parts)
        return compile_module_from_src(source, name, [], [str(include)], ["dl"])
    except Exception as error:
        warnings.warn(f"{parts[0].name} could not be built ({error!r}): {what} costs more host time", stacklevel=3)
        return None


def fits(metadata: Any) -> bool:
    """Whether a kernel needs nothing that the native launcher lacks."""
    return (
        metadata.num_ctas == 1
        and not getattr(metadata, "launch_cooperative_grid", False)
        and not getattr(metadata, "launch_pdl", False)
        and not getattr(metadata, "profile_scratch_size", 0)
    )


def agrees(compiled: Any, count: int) -> bool:
    """Whether a compiled kernel takes `count` parameters and Triton's two scratch pointers, as this launcher gives it.

    What Triton adds is its own affair and may change with its version: this reads it off the kernel's PTX.
    """
    header = compiled.asm["ptx"].partition(".entry")[2].partition("{")[0]
    found = header.count(".param")
    if found == count + SCRATCH_POINTERS:
        return True
    _warn_of_another_triton(found, count)
    return False


SCRATCH_POINTERS = 2


@functools.cache
def _warn_of_another_triton(found: int, count: int) -> None:
    warnings.warn(
        f"Triton {triton.__version__} gives a kernel of {count} parameters {found}, not {count + SCRATCH_POINTERS}: it "
        "is launched Triton's own way, which costs about 0.4 us more of host time",
        stacklevel=4,
    )


def prepare(
    native: ModuleType, compiled: Any, grid: tuple[int, int, int], runtime: list[str], fixed: list[tuple[str, int]]
) -> Callable[..., None]:
    """A launch of a compiled kernel.

    Args:
        runtime: Triton types of the run-time parameters, flat.
        fixed: type and value of the fixed ones.
    """
    kinds = "".join("P" if t.startswith("*") else LETTERS[t] for t in [*runtime, *(t for t, _ in fixed)])
    metadata = compiled.metadata
    return native.make(
        compiled.function, *grid, 32 * metadata.num_warps, metadata.shared, len(runtime), kinds,
        tuple(v for _, v in fixed), bool(getattr(metadata, "global_scratch_size", 0)),
    )  # fmt: skip
