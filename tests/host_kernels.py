"""The CUDA source of transports/cupy_kernels.py, compiled for the host: the same words, one thread."""

from __future__ import annotations

import ctypes
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_HEADER = """
#define __device__
#define __global__
struct Index { unsigned long long x; };
static const Index blockIdx{0}, blockDim{1}, threadIdx{0}, gridDim{1};
"""


@cache
def compiled(source: str) -> Any:
    """The function `kernel` of a source."""
    with TemporaryDirectory(prefix="treering-kernel-") as folder:
        text, library = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        text.write_text(_HEADER + source)
        flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-fno-strict-aliasing", "-w"]
        subprocess.run(["g++", *flags, str(text), "-o", str(library)], check=True, timeout=60)
        return ctypes.CDLL(str(library)).kernel


def launch(source: str, args: tuple[Any, ...]) -> None:
    """Runs it on numbers of 64 bits, as CuPy hands them over."""
    compiled(source)(*(ctypes.c_uint64(int(a) % 2**64) for a in args))
