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


def compiled(sources: tuple[str, ...]) -> list[Any]:
    """The function `kernel` of each source."""
    text = _HEADER
    for i, source in enumerate(sources):
        text += f"namespace n{i} {{ {source.replace('void kernel(', f'void kernel{i}(')} }}\n"
    with TemporaryDirectory(prefix="treering-kernel-") as folder:
        written, library = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        written.write_text(text)
        flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-fno-strict-aliasing", "-w"]
        subprocess.run(["g++", *flags, str(written), "-o", str(library)], check=True, timeout=60)
        loaded = ctypes.CDLL(str(library))
        return [loaded[f"kernel{i}"] for i in range(len(sources))]


@cache
def kernel(source: str) -> Any:
    """The function of one source, compiled once."""
    return compiled((source,))[0]


def launch(function: Any, args: tuple[Any, ...]) -> None:
    """Runs it on numbers of 64 bits, as CuPy hands them over."""
    function(*(ctypes.c_uint64(int(a) % 2**64) for a in args))
