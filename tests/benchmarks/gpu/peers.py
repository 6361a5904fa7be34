"""Other libraries' kernels, where they are installed: none is needed."""

from __future__ import annotations

import importlib
from collections.abc import Callable

LIGER = {
    "cross_entropy": ("liger_kernel.transformers.functional", "liger_cross_entropy"),
    "layer_norm": ("liger_kernel.transformers.functional", "liger_layer_norm"),
    "rms_norm": ("liger_kernel.transformers.functional", "liger_rms_norm"),
    "linear_cross_entropy": ("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy"),
}


def liger(name: str) -> Callable | None:
    """Liger-Kernel's function; None where it is not installed, or has none of that name."""
    module, function = LIGER[name]
    try:
        return getattr(importlib.import_module(module), function, None)
    except Exception:  # whatever an installation that does not fit raises
        return None


def flag_gems() -> Callable | None:
    """FlagGems' context manager, in which PyTorch's ops run its kernels; None where it is not installed."""
    try:
        return importlib.import_module("flag_gems").use_gems
    except Exception:
        return None
