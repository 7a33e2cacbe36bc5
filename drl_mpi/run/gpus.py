"""GPUs of this host that torch could use, found out without loading torch."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path


def visible_gpus() -> int:
    """Number of them; honours CUDA_VISIBLE_DEVICES. 0 for a torch that was built without CUDA."""
    if not _torch_has_cuda():
        return 0
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return 0
    return count.value


def _torch_has_cuda() -> bool:
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    return (Path(found.origin).parent / "lib" / "libtorch_cuda.so").exists()
