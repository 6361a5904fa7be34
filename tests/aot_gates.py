"""What is demanded of compiled kernels, read off the compiler's own output: no GPU is needed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

# Bytes of shared memory that a block may have, with opt-in (CUDA C++ Programming Guide, compute capabilities).
SHARED = {80: 166_912, 90: 232_448, 100: 232_448}
MATRIX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}

# Forms that are not PyTorch's arithmetic: approximations, flushing of subnormal numbers, nan lost in max and min.
FORBIDDEN = re.compile(
    r"^\s*(?:@\S+\s+)?("
    r"(?:max|min)(?:\.ftz)?(?:\.xorsign\.abs)?\.(?:f32|f16x2|f16|bf16x2|bf16)"
    r"|(?:div|sqrt|rsqrt|rcp|ex2|lg2|sin|cos|tanh)\.(?:full|approx)[.\w]*"
    r"|\w+(?:\.\w+)*\.ftz[.\w]*"
    r")\s",
    re.MULTILINE,
)
# libdevice's own uses of them. Each is a step of an algorithm whose result is accurate (CUDA Programming Guide: at most
# 2 ulp, pow 8), and PyTorch runs the same code: 2^x is taken of an argument reduced to [-1, 1], where the approximation
# has 2 ulp and nothing is subnormal; a reciprocal is either refined by Newton's steps or of a number at least 1.
_EXP = {"ex2.approx.ftz.f32", "ex2.approx.f32"}
_RCP, _RCP64 = {"rcp.approx.ftz.f32"}, {"rcp.approx.ftz.f64"}
# Inverse sines, hyperbolic functions and hypot take roots and quotients to 2 ulp where nvcc would have them rounded:
# libdevice asks a flag that Triton does not set, and adds one ulp to results that have 2 to 4. fmod only estimates with
# a quotient what it then subtracts exactly; atan2 and hypot look for nan apart from sorting their arguments.
_ROOT, _ROOT64, _QUOTIENT = {"sqrt.approx.f32"}, {"rsqrt.approx.ftz.f64"}, {"div.approx.f32"}
ALLOWED: dict[str, set[str]] = {
    "exp2f": _EXP, "sinhf": _EXP | _QUOTIENT | _RCP, "coshf": _EXP | _QUOTIENT | _RCP, "sinh": _RCP64, "cosh": _RCP64,
    "erfcf": _EXP | _RCP, "erfc": _RCP64, "log2": _RCP64, "log10": _RCP64, "tanf": _RCP, "tan": _RCP64,
    "asinf": _ROOT, "acosf": _ROOT, "acoshf": _ROOT | _RCP, "hypotf": _ROOT, "asin": _ROOT64, "acos": _ROOT64,
    "atanhf": _RCP, "atanh": _RCP64, "acosh": _RCP64 | _ROOT64, "asinh": _RCP64 | _ROOT64, "hypot": _ROOT64,
    "atan": _RCP64,
    "asinhf": _ROOT | _RCP | {"lg2.approx.f32"}, "atan2f": {"max.f32", "min.f32"}, "fmodf": _RCP | _QUOTIENT,
    "expf": _EXP, "expm1f": _EXP, "tanhf": _EXP | _RCP, "erff": _EXP, "powf": _EXP | _RCP,
    "log": _RCP64, "log1p": _RCP64, "tanh": _EXP | _RCP64, "erf": _EXP, "pow": _RCP64,
}  # fmt: skip
# Bytes of stack that are no sign of a tile too large. Sine and cosine reduce large arguments with a table in memory
# (Payne and Hanek); float64 division is a function call, around which a register may be saved, and so is float64 pow;
# ptxas keeps up to three addresses of a float64 product in memory at 64 to 80 of 255 registers, of its own choice.
STACK = {"tanf": 64, "tan": 64, "sinf": 64, "cosf": 64, "sin": 64, "cos": 64, "pow": 64}
STACK_FLOAT64 = 32


def figures(compiled: Any) -> dict[str, Any]:
    """The figures of a compiled kernel that the gates look at. Cached beside the kernel in Triton's cache."""
    metadata = compiled.metadata
    cubin = next(Path(p) for p in compiled.metadata_group.values() if str(p).endswith(".cubin"))
    cache = cubin.with_suffix(f".figures-{VERSION}.json")
    if cache.exists():
        return json.loads(cache.read_text())
    ptx, ttir = compiled.asm["ptx"], compiled.asm["ttir"]
    found = {
        "kernel": f"{compiled.src.fn.__module__}.{compiled.src.fn.__name__}",
        "scalar": sorted({f.__name__ for p in compiled.src.constants.values() for f, _ in getattr(p, "steps", ())}),
        "types": sorted({t for t in _flat(compiled.src.signature.values()) if t.startswith("*")}),
        "arch": metadata.target.arch,
        "warps": metadata.num_warps,
        "fusion": metadata.enable_fp_fusion,
        "shared": metadata.shared,
        "constants": _constants(compiled.src),
        **usage(cubin),
        **read(ptx, ttir),
    }
    with tempfile.NamedTemporaryFile(
        "w", dir=cubin.parent, delete=False
    ) as file:  # other processes read beside this one
        file.write(json.dumps(found))
    os.replace(file.name, cache)
    return found


VERSION = 5  # of what `figures` returns


def _flat(types: Any) -> list[str]:
    return [t for item in types for t in (_flat(item) if isinstance(item, tuple) else [item])]


def _constants(source: Any) -> dict[str, int]:
    """The whole numbers among a kernel's constants, by name."""
    named = {source.fn.arg_names[path[0]]: value for path, value in source.constants.items() if len(path) == 1}
    return {name: int(value) for name, value in named.items() if isinstance(value, int)}


def usage(cubin: Path) -> dict[str, int]:
    """Registers and bytes of stack and local memory. Spilled registers live in the stack."""
    from triton import knobs

    text = subprocess.check_output([knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(cubin)], text=True)
    found = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text))
    return {"registers": int(found["REG"]), "stack": int(found["STACK"]), "local": int(found["LOCAL"])}


def read(ptx: str, ttir: str) -> dict[str, Any]:
    """What the program text says."""
    return {
        "libdevice": sorted(set(re.findall(r'symbol = "__nv_(\w+)"', ttir))),
        "forbidden": dict(Counter(FORBIDDEN.findall(ptx))),
        "max64": len(re.findall(r"\b(?:max|min)\.f64", ptx)),
        "nan64": len(re.findall(r"\bsetp\.nan\.f64", ptx)),
        "fma": len(
            re.findall(r"\bfma(?:\.\w+)*\.f(?:32|64)\b", ptx)
        ),  # sm_80 adds bfloat16 as 1 * a + b, which is exact
        "matrix": sorted(set(re.findall(r"wgmma\.mma_async|mma\.sync|tcgen05\.mma", ptx))),
        "bulk": len(re.findall(r"\bcp\.async\.bulk\.tensor\S*\.global\.", ptx)),
        "async16": len(re.findall(r"\bcp\.async\.cg\.shared\.global", ptx)),
        "adds": len(re.findall(r"\badd(?:\.rn)?(?:\.ftz)?\.f32(?:x2)?\b", ptx)),
        "loads": dict(Counter(_width(m) for m in re.findall(r"\bld\.global(\S*)", ptx))),
        "stores": dict(Counter(_width(m) for m in re.findall(r"\bst\.global(\S*)", ptx))),
    }


def _width(suffix: str) -> int:
    """Bytes that one access moves, from the end of its name: `.v4.b32` is 16."""
    vector = re.search(r"\.v(\d)", suffix)
    bits = re.search(r"\.[bfsu](\d+)$", suffix)
    return (int(vector.group(1)) if vector else 1) * int(bits.group(1)) // 8 if bits else 0


# --- gates: each takes figures and returns what is wrong, or None ----------------------------------------------------
def no_spills(f: dict[str, Any]) -> str | None:
    """No register is spilled: no stack, but for what the functions in STACK use."""
    allowed = max([STACK.get(name, 0) for name in f["libdevice"]] + [STACK_FLOAT64 * ("*fp64" in f["types"])])
    if f["stack"] > allowed or f["local"] > 0:
        return f"{f['stack']} bytes of stack (allowed: {allowed}), {f['local']} local, {f['registers']} registers"
    return None


def shared_fits(f: dict[str, Any]) -> str | None:
    """Shared memory is within what the chip gives a block."""
    limit = SHARED[f["arch"]]
    return f"{f['shared']} bytes of shared memory, the limit is {limit}" if f["shared"] > limit else None


def right_arithmetic(f: dict[str, Any]) -> str | None:
    """No approximate, flushing or nan-losing instruction but those inside the libdevice functions that were called."""
    allowed = set().union(*(ALLOWED.get(name, set()) for name in f["libdevice"]))
    wrong = {form: n for form, n in f["forbidden"].items() if form not in allowed}
    if wrong:
        return f"forbidden instructions {wrong}"
    if f["max64"] > f["nan64"] and not {"atan2", "hypot"} & set(f["libdevice"]):
        return f"{f['max64']} float64 maxima or minima, {f['nan64']} tests for nan: one is lost"
    return None


def not_contracted(f: dict[str, Any]) -> str | None:
    """No a * b + c in one rounding where contraction is off; libdevice's functions use fma on purpose."""
    if not f["fusion"] and f["fma"] and not f["libdevice"]:
        return f"{f['fma']} fused multiply-adds"
    return None


def matrix_units(f: dict[str, Any]) -> str | None:
    """A product runs on the chip's own matrix instructions."""
    wanted = MATRIX[f["arch"]]
    return None if wanted in f["matrix"] else f"no {wanted}, found {f['matrix']}"


def any_matrix_units(f: dict[str, Any]) -> str | None:
    """A product runs on matrix instructions of some generation."""
    return None if f["matrix"] else "no matrix instruction"


def widest(accesses: dict[str, int] | dict[int, int]) -> int:
    return max(map(int, accesses), default=0)


def wide_accesses(f: dict[str, Any]) -> str | None:
    """Loads, if there are any, and stores move 16 bytes at a time; bools 8, as many elements as others. Sine's table is
    read beside."""
    if f["loads"] and widest(f["loads"]) < 16:
        return f"loads of {f['loads']} bytes"
    narrow = {k: n for k, n in f["loads"].items() if int(k) < 8}
    if narrow and not {"sin", "cos", "tan", "sinf", "cosf", "tanf"} & set(f["libdevice"]):
        return f"loads of {narrow} bytes"
    return f"stores of {f['stores']} bytes" if any(int(k) < 8 for k in f["stores"]) else None


def wide_tiles(f: dict[str, Any]) -> str | None:
    """Of a kernel that masks only a tensor's last tile, the whole tiles move 16 bytes at a time: as many bytes as the
    masked one moves by elements. One element more may be a scale that is read, or a sum that is stored."""
    for what in ("loads", "stores"):
        moved = {int(size): int(size) * n for size, n in f[what].items()}
        if sum(moved.values()) > 2 * moved.get(16, 0) + 8:
            return f"{what} of {f[what]} bytes"
    return None


FEW = 3  # narrower accesses beside the wide ones: a statistic or a target of a row, a column that is repeated


def vector_accesses(f: dict[str, Any]) -> str | None:
    """Loads and stores move 16 bytes at a time, but for FEW of either; a reduction stores no more than those."""
    if widest(f["loads"]) < 16 or sum(n for size, n in f["loads"].items() if int(size) < 16) > FEW:
        return f"loads of {f['loads']} bytes"
    narrow = sum(n for size, n in f["stores"].items() if int(size) < 16)
    return f"stores of {f['stores']} bytes" if narrow > FEW else None


# Operands as large as the result that kernels over rows read; a norm's weight and bias come from a cache each time.
READ = {
    "softmax": 1, "softmax_backward": 2, "cross_entropy": 1, "cross_entropy_backward": 1, "norm": 1, "norm_backward": 2,
    "norm_backward_sums": 2,
}  # fmt: skip


def read_once(f: dict[str, Any]) -> str | None:
    """A kernel over rows reads each element of its operands once, and writes each of its result once: that many bytes
    a thread, 16 at a time, and at most one access more, of the targets of rows."""
    constants, name = f["constants"], f["kernel"].rpartition(".")[2]
    if not constants.get("WHOLE", 1):
        return None
    itemsize = min(int(t.lstrip("*bfp")) // 8 for t in f["types"] if "fp" in t or "bf" in t)
    share = constants["BM"] * constants["BN"] * itemsize // (32 * f["warps"])  # bytes of one operand, of one thread
    operands, sums = READ[name] + constants.get("WEIGHT", 0) + constants.get("BIAS", 0), 0
    moved = {what: 16 * {int(k): n for k, n in f[what].items()}.get(16, 0) for what in ("loads", "stores")}
    if name == "norm_backward_sums":  # of many rows, but one weight, and float32 sums
        operands, one = READ[name], constants["BN"] // (32 * f["warps"])
        moved["loads"] -= constants["WEIGHT"] * one * itemsize // 16 * 16
        sums = (constants["BY_WEIGHT"] + constants["BY_BIAS"]) * one * 4
    if not 0 <= moved["loads"] - share * operands <= 16:
        return f"{moved['loads']} bytes read 16 at a time, not {operands} x {share}"
    if moved["stores"] != share * (name != "cross_entropy") + sums:
        return f"{moved['stores']} bytes written 16 at a time, not {share} + {sums}"
    return None


def element_accesses(f: dict[str, Any]) -> str | None:
    """Loads and stores move one element of 4 bytes: what may lie anywhere must not be read 16 bytes at a time."""
    both = {**f["loads"], **f["stores"]}
    return f"accesses of {both} bytes to addresses that may be any" if widest(both) > 4 else None


# --- gates of a tile of a matrix product, whose figures say which (aot_tiles.py) -------------------------------------
def _product(f: dict[str, Any]) -> bool:
    """Whether it is the kernel that multiplies, and not the one that adds pieces."""
    return not f["kernel"].endswith(".combine")


def tile_matrix_units(f: dict[str, Any]) -> str | None:
    """The chip's own matrix instructions from 64 rows on, which they need; below, those of sm_80."""
    if not _product(f) or "*fp64" in f["types"]:
        return None
    return matrix_units(f if f["tile"]["bm"] >= 64 else {**f, "arch": 80})


def tile_moves(f: dict[str, Any]) -> str | None:
    """Operands come by the bulk copy engine, or 16 bytes at a time where they are aligned; results go 16 at a time."""
    if f["tile"]["tma"] and _product(f) and f["bulk"] < 2:
        return f"{f['bulk']} bulk copies"
    if not f["aligned"] or "*fp64" in f["types"]:
        return None
    if not f["tile"]["tma"] and _product(f) and not f["async16"] and widest(f["loads"]) < 16:
        return f"loads of {f['loads']} bytes, no asynchronous ones of 16"
    return f"stores of {f['stores']} bytes" if f["stores"] and widest(f["stores"]) < 16 and not f["bulk"] > 2 else None


def tile_adds_outside(f: dict[str, Any]) -> str | None:
    """Three tf32 products of a step along K are added to the sum by additions that round, one for each element."""
    if not _product(f) or f["precision"] != "tf32x3" or "*fp32" not in f["types"] or f["types"] != ["*fp32"]:
        return None
    wanted = f["tile"]["bm"] * f["tile"]["bn"] // (32 * f["warps"])
    return f"{f['adds']} additions a thread for {wanted} elements" if f["adds"] < wanted // 2 else None


TILE_GATES = (no_spills, shared_fits, right_arithmetic, tile_matrix_units, tile_moves, tile_adds_outside)
