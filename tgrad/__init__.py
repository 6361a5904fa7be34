"""tgrad: tensors and autograd whose every operation is a Triton kernel, with PyTorch's names and semantics."""

from __future__ import annotations

import builtins as _builtins
import os as _os
import sys as _sys

__version__ = "0.1.0"

_triton_first = "triton" in _sys.modules

from tgrad import device as _device_module

if _device_module.compute.type == "cpu" and "TGRAD_LAUNCH" not in _os.environ:
    # Triton decides on interpretation when a kernel is decorated: before the first kernel, and its own library, load.
    _os.environ["TRITON_INTERPRET"] = "1"
    if _triton_first:
        from tgrad.kernels.interpret import repair_library as _repair_library

        _repair_library()

from tgrad import functions as _functions
from tgrad import methods as _methods

_methods.install()

from tgrad import autograd, cuda, linalg, nn, optim, random, utils
from tgrad.anomaly import is_anomaly_check_nan_enabled, is_anomaly_enabled, set_anomaly_enabled
from tgrad.device import device
from tgrad.dtypes import (
    bfloat16,
    double,
    dtype,
    float16,
    float32,
    float64,
    get_default_dtype,
    half,
    int32,
    int64,
    long,
    set_default_dtype,
    uint8,
)
from tgrad.dtypes import bool_ as bool
from tgrad.formats import contiguous_format, memory_format, preserve_format
from tgrad.layout import Size
from tgrad.modes import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    is_inference_mode_enabled,
    no_grad,
    set_grad_enabled,
)
from tgrad.ops.bounds import check_indices
from tgrad.ops.creation import (
    arange,
    as_tensor,
    empty,
    empty_like,
    eye,
    from_numpy,
    full,
    full_like,
    ones,
    ones_like,
    rand,
    rand_like,
    randn,
    randn_like,
    tensor,
    zeros,
    zeros_like,
)
from tgrad.ops.matmul import get_float32_matmul_precision, set_float32_matmul_precision
from tgrad.printing import set_printoptions
from tgrad import signs as _signs  # relu's bits  # isort: skip
from tgrad.policy import activation_memory, get_activation_memory, set_activation_memory
from tgrad.random import Generator, get_rng_state, initial_seed, manual_seed, seed, set_rng_state
from tgrad.storage import OutOfMemoryError
from tgrad.tensor import Tensor

from tgrad import amp, interop
from tgrad.interop import data as _torch_data, memory as _torch_memory
from tgrad.autocasting import (
    autocast,
    clear_autocast_cache,
    get_autocast_dtype,
    install as _install_autocast,
    is_autocast_cache_enabled,
    is_autocast_enabled,
)
from tgrad.fusion.fuse import fuse
from tgrad.interop import from_dlpack
from tgrad.nn import blocks as _blocks  # which gives the policy "leanest" its blocks
from tgrad.serialization import load, save

_torch_memory.install()
_torch_data.install()
_install_autocast(_functions.FUNCTIONS)
globals().update(_functions.FUNCTIONS)
globals().update(_functions.library.FREE)
float = float32
int = int32


def is_tensor(x: object) -> _builtins.bool:
    """Whether x is a Tensor."""
    return isinstance(x, Tensor)


def is_inference(x: Tensor) -> _builtins.bool:
    """Whether x was made in inference mode.

    Shape: any.
    Dtype: any.
    Raises: nothing.
    """
    return x.is_inference()
